"""Runs of tests: killed, started in processes of their own, and compared to the last bit."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import fakes
import numpy as np
import pytest

import reverie
from reverie import api, config, fields
from reverie.agent import add_prefix
from reverie.envs.base import from_json
from reverie.replay.segments import Segments
from reverie.run import experience, log, loop
from reverie.run.checkpoint import Checkpoints

COUNTING = "reverie.envs.toy:Counting"
QUICK: dict[str, Any] = {
    "env": COUNTING,
    "env_kwargs": '{"episodes": false}',
    "workers": "inline",
    "steps": 240,
    "envs": 3,
    "batch": 2,
    "length": 4,
    "warmup": 30,
    "replay_ratio": 2.0,
    "replay_size": 150,
    "log_every": 20,
    "eval_every": 70,
    "eval_episodes": 3,
    "eval_envs": 2,
    "report_every": 50,
    "video_every": 0,
    "checkpoint_every": 40,
}
SEVERAL: dict[str, Any] = {"steps": 51, "replay_ratio": 24.0, "eval_episodes": 0, "report_every": 0}  # 9 updates a turn


class Killed(BaseException):
    """What a SIGKILL would do, as far as the disk can tell."""


def train(path: Path, **values: Any) -> reverie.Run:
    """A short run of the fake agent, with some values changed."""
    return reverie.train("fake", run=path, **{**QUICK, **values})


def metrics(path: Path, size: int | None = None) -> list[dict[str, Any]]:
    """All metrics but those that no run can repeat, or those in the first `size` bytes."""
    records = log.read(path / "metrics.jsonl", size)
    return [{k: v for k, v in r.items() if not k.startswith(("time/", "memory/"))} for r in records]


def state(path: Path, until: int | None = None) -> dict[str, np.ndarray]:
    """Every array that decides how the run goes on, replay included, in its newest checkpoint (up to a moment)."""
    saved = config.saved(path)
    checkpoint = Checkpoints(path / "checkpoints").load_latest(until)
    assert saved is not None
    assert checkpoint is not None
    spaces = (from_json(checkpoint.meta[name]) for name in ("obs_space", "act_space"))
    replay = experience.replay_of(saved.run, api.make_agent(saved, *spaces))
    assert Segments(path / "replay").load(replay, checkpoint.meta["replay"]) == 0
    meta = {k: checkpoint.meta[k] for k in ("progress", "ratio", "names")}
    meta["sampler"] = checkpoint.meta["replay"]["replay"]
    text = np.frombuffer(json.dumps(meta, sort_keys=True).encode(), np.uint8)
    kept = add_prefix("replay/", replay.read(np.flatnonzero(replay.held), list(replay.fields)))
    return {**checkpoint.arrays, **kept, "meta": text}


def assert_same(a: Path, b: Path) -> None:
    assert metrics(a) == metrics(b)
    assert_same_state(a, b)


def assert_same_state(a: Path, b: Path) -> None:
    one, other = state(a), state(b)
    assert one.keys() == other.keys()
    for name in one:
        assert one[name].tobytes() == other[name].tobytes(), name


def kill_at(monkeypatch: pytest.MonkeyPatch, call: int, method: str = "collect") -> None:
    """The `call`-th time from now, `method` of the loop dies."""
    original, calls = getattr(loop.Training, method), iter(range(1, 10**6))

    def dying(self: loop.Training, *args: Any) -> Any:
        if next(calls) == call:
            raise Killed
        return original(self, *args)

    monkeypatch.setattr(loop.Training, method, dying)


def start(path: Path, algorithm: str, **values: Any) -> subprocess.Popen[str]:
    """The command that begins or continues the run in `path`."""
    program = [str(Path(fakes.__file__))] if algorithm == "fake" else ["-m", "reverie.cli"]
    flags = [x for k, v in {**values, "run": path}.items() for x in (fields.flag(k), str(v))]
    return subprocess.Popen(
        [sys.executable, *program, "train", algorithm, *flags],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(reverie.__file__).parents[1])},
    )


def wait_for_metrics(path: Path, lines: int) -> None:
    until = time.monotonic() + 840  # only a safety net: on a busy machine a run takes long to begin
    while len(log.read(path / "metrics.jsonl")) < lines:
        assert time.monotonic() < until, "the run writes no metrics"
        time.sleep(0.005)


def digest(path: Path, until: int | None = None) -> str:
    """SHA-256 of all that the newest checkpoint (up to a moment) counts on: its state, and the metrics before it."""
    checkpoint = Checkpoints(path / "checkpoints").load_latest(until)
    assert checkpoint is not None
    seen = hashlib.sha256(json.dumps(metrics(path, checkpoint.meta["metrics_bytes"])).encode())
    for name, array in sorted(state(path, until).items()):
        seen.update(f"{name} {array.dtype} {array.shape}".encode() + array.tobytes())
    return seen.hexdigest()
