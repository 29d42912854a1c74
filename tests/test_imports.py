"""The rules of the house: who may import whom, what nobody may import, who may print, and which clocks count."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "reverie"
FILES = sorted(PACKAGE.rglob("*.py"))

# What a file or folder of the package may import of the rest of it, itself included. Only downward:
# cli > run > agent, envs, replay, view; algos > model, behavior > nn. Contracts are everybody's, and so are `errors`.
ALLOWED = {
    "nn": {"nn"},
    "model": {"model", "nn", "envs.base"},
    "behavior": {"behavior", "nn", "agent", "envs.base", "fields"},
    "algos": {"algos", "model", "behavior", "nn", "agent", "envs.base", "fields", "health"},
    "agent": {"envs.base", "health"},
    "errors": set(),
    "health": set(),
    "envs": {"envs", "fields"},
    "fields": set(),
    "files": set(),  # everything that reaches the disk goes through here
    "saved": set(),
    "memory": set(),
    "safe_stdout": set(),
    "compile_cache": {"files"},
    "replay": {"replay", "agent", "envs.base", "files", "memory", "saved"},
    "view": {"view", "agent", "envs", "fields", "files"},
    "config": {"algos", "earlier", "fields", "files", "presets", "run.config", "saved"},  # algorithms by name
    "earlier": {"algos", "fields"},
    "presets": {"algos", "fields"},
    "run": {"run", "agent", "envs", "replay", "view", "config", "fields", "files", "health", "memory", "saved"},
}
TOP = {
    "actor",
    "afford",
    "api",
    "assembly",
    "cli",
    "defaults",
    "export",
    "flags",
    "help",
    "pictures",
    "plan",
    "resolve",
    "trained",
    "__init__",
}  # these may import everything


def imports(path: Path) -> set[str]:
    """Absolute dotted names of all that a file imports; `from a import b` gives `a.b`."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: imports are absolute here"
            assert node.module
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def room(path: Path) -> str:
    """The first part of a module's name below `reverie`."""
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def test_every_file_belongs_to_a_room():
    assert {room(path) for path in FILES} <= ALLOWED.keys() | TOP


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_only_point_downward(path):
    if room(path) in TOP:
        return
    for name in imports(path):
        if not name.startswith("reverie."):
            assert name != "reverie", f"{path}: import the room, not the house"
            continue
        name = name.removeprefix("reverie.")
        allowed = any(f"{name}.".startswith(f"{a}.") for a in ALLOWED[room(path)] | {"errors"})
        assert allowed, f"{path}: {room(path)} may not import {name}"


def test_nothing_can_run_code_from_a_file():
    for path in FILES:
        found = {name.split(".")[0] for name in imports(path)} & {
            "pickle",
            "cloudpickle",
            "dill",
            "joblib",
            "shelve",
        }
        assert not found, f"{path} imports {found}"
        assert "allow_pickle=True" not in path.read_text(), path


def test_only_the_command_line_and_the_log_print():
    for path in FILES:
        if path.relative_to(PACKAGE).as_posix() in ("cli.py", "flags.py", "run/log.py"):
            continue
        calls = [n for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Call)]
        prints = [n.lineno for n in calls if isinstance(n.func, ast.Name) and n.func.id == "print"]
        assert not prints, f"{path}: print at lines {prints}"


WALL_CLOCKS = {("time", "time"), ("time", "time_ns"), ("time", "localtime"), ("datetime", "now")}
STAMPS = {"run/directory.py", "run/events.py"}  # what they write of the time is for people to read


def test_no_period_is_measured_by_a_clock_that_may_jump():
    for path in FILES:
        if path.relative_to(PACKAGE).as_posix() in STAMPS:
            continue
        found = [
            f"{n.value.id}.{n.attr} at line {n.lineno}"
            for n in ast.walk(ast.parse(path.read_text()))
            if isinstance(n, ast.Attribute) and isinstance(n.value, ast.Name)
            if (n.value.id, n.attr) in WALL_CLOCKS
        ]
        assert not found, f"{path}: {found}; time.monotonic never goes back"


DEVICE = ("brax", "craftax", "device", "device_toy", "device_wrappers", "gymnax", "jumanji", "opponents", "pgx")
ON_DEVICE = {f"envs/{name}.py" for name in DEVICE} | {"replay/device_rows.py"}


def test_workers_start_without_jax():
    """What hosts a user's environment in a process of its own must be there at once."""
    for path in FILES:
        if room(path) in ("envs", "replay") and path.relative_to(PACKAGE).as_posix() not in ON_DEVICE:
            found = {name.split(".")[0] for name in imports(path)} & {
                "jax",
                "equinox",
                "optax",
                "jaxtyping",
            }
            assert not found, f"{path} imports {found}"
    code = "import sys, reverie.envs.host, reverie.envs.check; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_the_command_line_begins_without_jax() -> None:
    """It decides where compiled programs are kept, which JAX reads as it is imported."""
    code = "import sys, reverie.cli; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


@pytest.mark.parametrize(
    "typed",
    [
        "--help",
        "train --help",
        "tran",
        "train dreamr_v3 --env X",
        "train --env CartPloe-v1",
        "train dreamer_v3 --env CartPloe-v1 --steps 100",
        "eval nosuch",
        "diff a b",
        "list nosuch",
    ],
)
def test_help_and_mistakes_do_not_wait_for_jax(typed: str) -> None:
    code = f"import sys; from reverie import cli; cli.main({typed.split()})"
    code = f"try:\n  {code}\nexcept SystemExit: pass\nsys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0


BENCH = sorted((PACKAGE.parent / "bench").rglob("*.py"))


def test_benchmarks_read_metrics_as_the_package_does():
    """Whose reader leaves out torn and damaged lines."""
    lines = [f"{path.name}: {line.strip()}" for path in BENCH for line in path.read_text().splitlines()]
    lines = [line for line in lines if "metrics.jsonl" in line]
    assert lines
    assert [line for line in lines if not re.search(r'\bread\([\w.]+ / "metrics\.jsonl"\)', line)] == []
