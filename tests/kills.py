"""SIGKILL by the hundred, at random moments: whatever is found was there before, and what follows is what would have.

    python tests/kills.py [--kills 200] [--only gumbel_muzero] >> results/kills.jsonl

Every combination has a run that nothing interrupts and that keeps all of its checkpoints. Another run, of the same
command, is killed and begun again, over and over; where it gets to its end, a new one begins. After every kill its
newest checkpoint is compared with the uninterrupted one's of the same step, bit by bit: parameters, optimizer, keys,
envs, replay, its sampler, metrics. A kill counts as survived once a later checkpoint, or the end of the run, is the
same.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import planners
import tyro
from runs import digest, start

from reverie.run.checkpoint import Checkpoints
from reverie.run.directory import RunDirectory

EVERY: dict[str, Any] = {
    "envs": 2,
    "batch": 4,
    "warmup": 60,
    "eval_every": 1000,
    "eval_episodes": 2,
    "eval_envs": 2,
    "time_limit": 100,
    "report_every": 0,
    "video_every": 0,
    "log_every": 50,
    "checkpoint_every": 100,
    "replay_size": 900,  # rows are evicted, segments are cleaned
    "precision": "float32",
}
DREAMER = {
    **EVERY,
    "size": "200k",
    "imagination": 3,
    "choices": '{"vector_layers": 1}',
    "length": 8,
    "replay_ratio": 4.0,
}
V3 = {**DREAMER, "steps": 1600, "learning_rate": 1e-3}
PPO = {**DREAMER, "steps": 1600, "model_minibatches": 2, "minibatch": 8, "ppo_updates": 2, "epochs": 2}
PLANNER = {**EVERY, **planners.SMALL, "preset": "paper", "batch": 16, "steps": 3200, "checkpoint_every": 200}
PLANNER |= {"replay_ratio": 2.0, "reanalyse": 0.25}
EFFICIENT = PLANNER | planners.OWN["efficientzero"]
# Name -> algorithm and flags: both families, envs of the host and of the device, in this process and in others.
COMBINATIONS: dict[str, tuple[str, dict[str, Any]]] = {
    "dreamer_v3, processes": ("dreamer_v3", {**V3, "env": "CartPole-v1", "workers": "process", "groups": 2}),
    "dreamer_v3, on the device": ("dreamer_v3", {**V3, "env": "device:CartPole"}),
    "dream_ppo, inline": ("dream_ppo", {**PPO, "env": "Pendulum-v1", "workers": "inline"}),
    "dream_ppo, on the device": ("dream_ppo", {**PPO, "env": "device:CartPole"}),
    "gumbel_muzero, processes": ("gumbel_muzero", {**PLANNER, "env": "CartPole-v1", "workers": "process"}),
    "gumbel_muzero, on the device": ("gumbel_muzero", {**PLANNER, "env": "device:CartPole"}),
    "efficientzero, inline": ("efficientzero", {**EFFICIENT, "env": "CartPole-v1", "workers": "inline"}),
    "efficientzero, on the device": ("efficientzero", {**EFFICIENT, "env": "device:CartPole"}),
}
KEPT = 2  # checkpoints

Moment = Literal["start", "training", "checkpoint", "replay", "prune"]
# How often each is chosen, and how long after it the kill comes at the latest (seconds).
MOMENTS: dict[Moment, tuple[float, float]] = {
    "start": (0.1, 4.0),
    "training": (0.3, 0.5),
    "checkpoint": (0.25, 0.01),
    "replay": (0.2, 0.002),
    "prune": (0.15, 0.001),
}


@dataclass
class Whole:
    """The run that nothing interrupts."""

    path: Path
    algorithm: str
    values: dict[str, Any]
    known: dict[int, str] = field(default_factory=dict)

    def run(self) -> None:
        finish(start(self.path, self.algorithm, **self.values, keep=10**6))

    def digest(self, step: int) -> str:
        if step not in self.known:
            self.known[step] = digest(self.path, step)
        return self.known[step]


def finish(process: subprocess.Popen[str]) -> None:
    errors = process.communicate()[1]
    assert process.returncode == 0, errors


def kill(whole: Whole, kills: int, folder: Path, seed: int = 0) -> dict[str, Any]:
    """Kills runs in `folder` that are begun like `whole`, which has ended.

    Returns what it came to: `kills`, how many of them were `identical`, and what they `hit`.
    """
    rng = np.random.default_rng(seed)
    hit: Counter[str] = Counter()
    wrong: list[str] = []
    done, identical, chain = 0, 0, 0
    while done < kills:
        path, chain = folder / str(chain), chain + 1
        pending, newest, ended = 0, -1, False  # kills that no later checkpoint has spoken for; the step of the newest
        while not ended:
            process = start(path, whole.algorithm, **whole.values, keep=KEPT)
            if done < kills:
                await_moment(process, path, rng.choice(list(MOMENTS), p=[share for share, _ in MOMENTS.values()]), rng)
                process.kill()
            errors = process.communicate()[1]
            ended = process.returncode == 0
            assert ended or process.returncode == -signal.SIGKILL, errors
            step = newest_step(path)
            assert step >= newest, f"step {newest} was there and is gone"
            if step >= 0 and digest(path, step) != whole.digest(step):
                wrong.append(f"step {step} of run {chain}, after {done} kills")
                break  # this run is lost, and its kills with it
            if step > newest or ended:
                identical, pending, newest = identical + pending, 0, step
            if not ended:
                done, pending = done + 1, pending + 1
                hit.update(traces(path))
    return {"kills": done, "identical": identical, "runs": chain, "hit": dict(sorted(hit.items())), "wrong": wrong}


Watch = Callable[[], bool]


def metrics_grow(path: Path) -> Watch:
    before = size_of(path / "metrics.jsonl")
    return lambda: size_of(path / "metrics.jsonl") > before


def half_written(path: Path) -> Watch:
    return lambda: any(name.startswith("tmp-") for name in listed(path / "checkpoints"))


def replay_grows(path: Path) -> Watch:
    def written() -> int:
        return sum(size_of(path / "replay" / name) for name in listed(path / "replay"))

    before = written()
    return lambda: written() > before


def too_many(path: Path) -> Watch:
    return lambda: sum(name.startswith("step-") for name in listed(path / "checkpoints")) > KEPT


WATCHES: dict[Moment, Callable[[Path], Watch]] = {
    "training": metrics_grow,
    "checkpoint": half_written,
    "replay": replay_grows,
    "prune": too_many,
}


def await_moment(process: subprocess.Popen[str], path: Path, moment: Moment, rng: np.random.Generator) -> None:
    """Returns at a random time after `moment` has come, or when the process has ended."""
    longest = MOMENTS[moment][1]
    if moment != "start":
        watch = {"training": metrics_grow, "checkpoint": half_written, "replay": replay_grows, "prune": too_many}[
            moment
        ]
        times = 1 if moment == "training" else int(rng.integers(1, 4))
        for _ in range(times):
            come = watch(path)
            while not come() and process.poll() is None:
                time.sleep(2e-4)
            while times > 1 and come() and moment in ("checkpoint", "prune") and process.poll() is None:
                time.sleep(2e-4)  # until this one is over
    time.sleep(rng.uniform(0, longest))


def listed(folder: Path) -> list[str]:
    try:
        return os.listdir(folder)
    except FileNotFoundError:
        return []


def size_of(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def newest_step(path: Path) -> int:
    """Of the checkpoints that are there, the newest, which must be sound; -1 if there is none."""
    names = sorted(name for name in listed(path / "checkpoints") if name.startswith("step-"))
    if not names:
        return -1
    latest = Checkpoints(RunDirectory(path).checkpoints).load_latest()
    assert latest is not None
    assert latest.path.name == names[-1], f"{names[-1]} is damaged"
    return latest.step


def traces(path: Path) -> list[str]:
    """What a kill hit, as far as the disk tells."""
    found = []
    manifests = Checkpoints(RunDirectory(path).checkpoints).manifests()
    if not manifests:
        found.append("before the first checkpoint")
    if half_written(path)():
        found.append("a checkpoint half written")
    if too_many(path)():
        found.append("before the older ones were removed")
    marks = {s["name"]: s["length"] for m in reversed(manifests) for s in m["meta"]["replay"]["segments"]}
    sizes = {name: (path / "replay" / name).stat().st_size for name in listed(path / "replay")}
    if any(size > marks.get(name, 0) for name, size in sizes.items()):
        found.append("replay beyond its mark, or not yet removed")
    return found or ["between two saves"]


def main(kills: int = 200, only: str = "") -> int:
    """Prints one JSON line per combination.

    Args:
      kills: in all, spread over the combinations.
      only: combinations whose names begin so.
    """
    chosen = [name for name in COMBINATIONS if name.startswith(only)]
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    fine = True
    os.environ.setdefault("XLA_FLAGS", "--xla_cpu_use_fusion_emitters=false")  # compiles in two thirds of the time
    for i, name in enumerate(chosen):
        share = kills * (i + 1) // len(chosen) - kills * i // len(chosen)
        algorithm, values = COMBINATIONS[name]
        with tempfile.TemporaryDirectory() as folder:
            os.environ["XDG_CACHE_HOME"] = folder  # where the killed ones find their programs compiled
            began = time.monotonic()
            whole = Whole(Path(folder) / "whole", algorithm, values)
            whole.run()
            figures = kill(whole, share, Path(folder), seed=i)
        fine &= figures["identical"] == figures["kills"]
        seconds = round(time.monotonic() - began)
        line = {"bench": "kills", "name": name, "env": values["env"], **figures, "seconds": seconds, "commit": commit}
        print(json.dumps(line), flush=True)
    return 0 if fine else 1


if __name__ == "__main__":
    sys.exit(tyro.cli(main))
