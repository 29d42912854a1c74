"""Compiled programs on the shelf: whole, shared, bounded, and without a trace in the results."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import fakes
import pytest

import reverie
from reverie import compile_cache


def shelved(shelf: Path) -> dict[str, bytes]:
    return {p.name.rpartition(".")[0]: p.read_bytes() for p in shelf.glob("*-cache.*")}


def lent(own: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in own.iterdir()}


def added(shelf: Path, **entries: bytes) -> None:
    """One process that compiles these programs."""
    own = compile_cache.borrow(shelf)
    for name, content in entries.items():
        (own / f"{name}-cache").write_bytes(content)
    compile_cache.hand_on(own, shelf)
    assert not own.exists()


def test_what_one_process_adds_the_next_one_has(tmp_path: Path) -> None:
    shelf = tmp_path / "not" / "yet"
    added(shelf, a=b"A" * 1000)
    added(shelf, b=b"B")
    assert lent(compile_cache.borrow(shelf)) == shelved(shelf) == {"a-cache": b"A" * 1000, "b-cache": b"B"}


@pytest.mark.parametrize("damage", [b"", b"A" * 999, b"A" * 999 + b"B", b"A" * 1001])
def test_what_is_not_whole_goes(tmp_path: Path, damage: bytes) -> None:
    added(tmp_path, a=b"A" * 1000, b=b"B")
    next(tmp_path.glob("a-cache.*")).write_bytes(damage)
    own = compile_cache.borrow(tmp_path)
    assert lent(own) == shelved(tmp_path) == {"b-cache": b"B"}
    (own / "a-cache").write_bytes(b"A" * 1000)  # compiled again
    compile_cache.hand_on(own, tmp_path)
    assert shelved(tmp_path) == {"a-cache": b"A" * 1000, "b-cache": b"B"}


def test_two_processes_at_once(tmp_path: Path) -> None:
    added(tmp_path, a=b"A")
    one, other = compile_cache.borrow(tmp_path), compile_cache.borrow(tmp_path)
    for own, content in ((one, b"first"), (other, b"second")):
        (own / "same-cache").write_bytes(content)
        (own / f"{content.decode()}-cache").write_bytes(content)
    (one / "half-cache").write_bytes(b"ha")
    assert lent(other).keys() == {"a-cache", "same-cache", "second-cache"}, "half of a program is nobody else's"
    (one / "half-cache").unlink()
    compile_cache.hand_on(one, tmp_path)
    compile_cache.hand_on(other, tmp_path)
    assert shelved(tmp_path).keys() == {"a-cache", "same-cache", "first-cache", "second-cache"}
    assert lent(compile_cache.borrow(tmp_path))["same-cache"] in (b"first", b"second")


def test_what_a_killed_process_leaves_is_removed_and_what_a_living_one_has_is_not(tmp_path: Path) -> None:
    code = "import sys, os, pathlib; from reverie import compile_cache;"
    code += "own = compile_cache.borrow(pathlib.Path(sys.argv[1]));"
    code += "(own / 'half-cache').write_bytes(b'ha'); print(own, flush=True); os.kill(os.getpid(), 9)"
    root = str(Path(reverie.__file__).parents[1])
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, env={"PYTHONPATH": root})
    left = Path(done.stdout.decode().strip())
    assert (left / "half-cache").exists()
    living = compile_cache.borrow(tmp_path)
    assert not left.exists()
    compile_cache.borrow(tmp_path)
    assert living.exists()
    assert shelved(tmp_path) == {}


def test_the_oldest_programs_make_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compile_cache, "LIMIT", 2500)
    for age, name in enumerate("abc"):
        added(tmp_path, **{name: name.encode() * 1000})
        os.utime(next(tmp_path.glob(f"{name}-*")), (1e9 + age, 1e9 + age))
    added(tmp_path)
    assert shelved(tmp_path).keys() == {"b-cache", "c-cache"}


@pytest.mark.parametrize("name", ["JAX_COMPILATION_CACHE_DIR", "JAX_ENABLE_COMPILATION_CACHE"])
def test_who_tells_jax_otherwise_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv(name, "x")
    before = dict(os.environ)
    compile_cache.keep_programs()
    assert os.environ == before
    assert list(tmp_path.iterdir()) == []


# ----------------------------------------------------------------------------------- with JAX

CHILD = """
import sys
from reverie import algos, cli
algos.ALGORITHMS["fake"] = "fakes"
sys.argv[0] = "reverie"
cli.program()
"""
ARGS = (
    "train fake --env reverie.envs.toy:Counting --preset quick --steps 60 --warmup 20 --envs 2 --workers inline"
    " --eval-episodes 1 --checkpoint-every 20"
)


def run(path: Path, home: Path) -> str:
    """Trains the fake in a process of its own; returns what it printed to stderr."""
    root = Path(reverie.__file__).parents[1]
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("JAX_COMPILATION")}
    own = {
        "XDG_CACHE_HOME": str(home),
        "MPLCONFIGDIR": str(path.parent),  # it would complain of such a home by itself
        "PYTHONPATH": f"{root}:{Path(fakes.__file__).parent}",
        "GLIBC_TUNABLES": "",  # no second start for large pages
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "PYTHONWARNINGS": "error",
    }
    argv = [sys.executable, "-c", CHILD, *ARGS.split(), "--run", str(path)]
    done = subprocess.run(argv, capture_output=True, text=True, env={**inherited, **own})
    assert done.returncode == 0, done.stderr
    return done.stderr


def arrays(path: Path) -> bytes:
    return (path / "checkpoints" / "step-000000000060" / "arrays.safetensors").read_bytes()


@pytest.mark.slow  # four processes that compile
def test_a_loaded_program_computes_the_same_bits_and_no_directory_breaks_a_run(tmp_path: Path) -> None:
    fresh, cold, warm, worn = (tmp_path / name for name in ("fresh", "cold", "warm", "worn"))
    home, file = tmp_path / "home", tmp_path / "file"
    file.touch()
    assert run(fresh, file) == "", "where there is no room for a shelf, there is none"
    run(cold, home)
    (shelf,) = (home / "reverie" / "programs").iterdir()
    stored = {p.name: p.stat().st_mtime_ns for p in shelf.iterdir()}
    assert any(name.startswith("jit_traced") for name in stored), "the agent's functions are called so"
    run(warm, home)
    assert {p.name: p.stat().st_mtime_ns for p in shelf.iterdir()} == stored, "all was loaded, nothing compiled"
    for entry in list(shelf.iterdir())[::2]:
        entry.write_bytes(entry.read_bytes()[:-20])
    assert run(worn, home) == ""
    assert {p.name.rpartition(".")[0] for p in shelf.iterdir()} == {name.rpartition(".")[0] for name in stored}
    assert arrays(fresh) == arrays(cold) == arrays(warm) == arrays(worn)
