"""A program whose output nobody reads any more."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import fakes
from test_compile_cache import CHILD

import reverie
from reverie.safe_stdout import Outlet


def start(*argv: str) -> subprocess.Popen[bytes]:
    """The program; both of its outputs are pipes."""
    root = Path(reverie.__file__).parents[1]
    own = {"PYTHONPATH": f"{root}:{Path(fakes.__file__).parent}", "GLIBC_TUNABLES": ""}  # no second start
    words = [sys.executable, "-c", CHILD, *argv]
    return subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env={**os.environ, **own})


def test_a_stream_falls_silent_once_nobody_reads_it() -> None:
    read, write = os.pipe()
    with os.fdopen(write, "w") as stream:
        outlet = Outlet(stream)
        assert outlet.write("heard") == 5
        outlet.flush()
        assert os.read(read, 99) == b"heard"
        os.close(read)
        for _ in range(3):
            assert outlet.write("x" * 100_000) == 100_000
            outlet.flush()
        print("to nobody", file=outlet, flush=True)
        assert outlet.fileno() == write


def test_a_run_outlives_who_reads_its_output(tmp_path: Path) -> None:
    process = start(
        *("train", "fake", "--env", "reverie.envs.toy:Counting", "--preset", "quick", "--run", str(tmp_path / "run")),
        *("--steps", "60", "--warmup", "20", "--envs", "2", "--workers", "inline", "--eval-episodes", "1"),
    )
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    process.stderr.close()
    assert process.wait(840) == 0
    last = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[-1])
    assert last["step"] == 60


def test_a_long_help_may_be_cut_short() -> None:
    process = start("train", "fake", "--help")
    assert process.stdout is not None
    process.stdout.close()
    assert process.communicate(timeout=840)[1] == b""
    assert process.returncode == 0
