"""What a person installs: one version, and a wheel that works where nothing else is."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

import reverie

ROOT = Path(__file__).parents[1]


def test_the_version_is_in_one_place() -> None:
    assert 'dynamic = ["version"]' in (ROOT / "pyproject.toml").read_text()
    assert f"\nversion: {reverie.__version__}\n" in (ROOT / "CITATION.cff").read_text()
    assert f"\n## {reverie.__version__}" in (ROOT / "CHANGELOG.md").read_text()


@pytest.mark.slow
def test_the_wheel_works_in_an_empty_environment(tmp_path: Path) -> None:
    def call(*command: str) -> str:
        own = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=own, check=False)
        assert done.returncode == 0, f"{command}: {done.stdout[-2000:]}{done.stderr[-2000:]}"
        return done.stdout

    source = tmp_path / "source"  # setuptools builds where the source lies
    shutil.copytree(ROOT / "reverie", source / "reverie", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    call(
        sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(tmp_path / "dist"), str(source)
    )
    (wheel,) = (tmp_path / "dist").iterdir()
    assert wheel.name.startswith(f"reverie-{reverie.__version__}-")
    inside = zipfile.ZipFile(wheel).namelist()
    assert "reverie/py.typed" in inside
    packed = {name for name in inside if re.match(r"reverie/.*\.py$", name)}
    assert packed == {str(path.relative_to(ROOT)) for path in (ROOT / "reverie").rglob("*.py")}
    venv.create(tmp_path / "env", with_pip=False)
    python = str(tmp_path / "env" / "bin" / "python")
    call(
        sys.executable,
        "-m",
        "pip",
        "--python",
        python,
        "install",
        "--quiet",
        "--constraint",
        str(ROOT / "constraints.txt"),
        str(wheel),
    )
    program = str(tmp_path / "env" / "bin" / "reverie")
    assert call(program, "--version").strip() == reverie.__version__
    small = ["--env", "CartPole-v1", "--steps", "300", "--warmup", "100", "--envs", "2", "--eval-episodes", "1"]
    assert "Done: 300 steps" in call(program, "train", "gumbel_muzero", *small, "--preset", "none", "--run", "x")
    call(program, "eval", "x", "--episodes", "1", "--video", "x.gif")
    call(python, "-c", "import reverie; reverie.load('x').export('out')")
    call(python, "out/example.py")
