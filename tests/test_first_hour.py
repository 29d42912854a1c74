"""The path of a new user, as docs/first-hour.md has it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

import reverie

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "first-hour.md").read_text()
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```", PAGE, re.M | re.S)
MINUTES = 5


def test_the_page_has_an_env_commands_and_code() -> None:
    assert [kind for kind, _ in BLOCKS] == ["python", "bash", "python"]
    for _, code in BLOCKS[::2]:
        compile(code, "page", "exec")
    assert [line.split()[1] for line in BLOCKS[1][1].splitlines()] == ["check-env", "train", "eval", "dream"]


@pytest.mark.slow
def test_it_goes_as_the_page_says_within_five_minutes(tmp_path: Path) -> None:
    (tmp_path / "my_envs.py").write_text(BLOCKS[0][1])
    program = tmp_path / "bin" / "reverie"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m reverie.cli "$@"\n')
    program.chmod(0o755)
    env = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}  # as a user's
    env |= {"PYTHONPATH": str(Path(reverie.__file__).parents[1]), "PATH": f"{program.parent}:{os.environ['PATH']}"}

    def call(*command: str) -> str:
        done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{command}: {done.stdout[-3000:]}{done.stderr[-3000:]}"
        return done.stdout

    before = os.times()
    began = time.monotonic()
    for line in BLOCKS[1][1].splitlines():
        call("sh", "-c", line)
    out = call(sys.executable, "-c", BLOCKS[2][1])
    after = os.times()
    spent = after.children_user + after.children_system - before.children_user - before.children_system
    print(f"{time.monotonic() - began:.0f} s, {spent:.0f} s of a core")
    assert re.search(r"^return \d+", out, re.M)
    assert (tmp_path / "reach.gif").stat().st_size > 1000
    assert (tmp_path / "dream.png").stat().st_size > 1000
    call(sys.executable, "reach/example.py")
    assert spent < 60 * MINUTES, "seconds of a core: less than that of the clock where there are two that idle"
