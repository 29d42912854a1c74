"""Half an hour of faults at random: nobody helps, nothing that was committed is lost.

    python tests/soak.py [--minutes 30] [--seconds 60] >> results/soak.jsonl

Two runs train side by side, and whenever one has ended, its command is given again. Every `seconds` one of them meets
a fault. The first meets only those that must not change a bit, and in the end it is compared with a run that met none;
the second meets all. A run must have saved a newer checkpoint before it meets the next fault; until then, it is the
other one's turn.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

import numpy as np
import planners
import tyro
from kills import half_written, listed
from runs import digest, start, state
from shaky import order

from reverie.run.checkpoint import Checkpoints

ENV = f"{Path(__file__).with_name('shaky.py')}:Shaky"
ALGORITHM = "gumbel_muzero"
VALUES: dict[str, Any] = {
    **planners.SMALL,
    "preset": "paper",
    "env": ENV,
    "envs": 2,
    "workers": "process",
    "deadline": 5,
    "batch": 16,
    "replay_ratio": 2,
    "replay_size": 3000,  # rows are evicted, segments are cleaned
    "reanalyse": 0.25,
    "warmup": 100,
    "log_every": 100,
    "checkpoint_every": 300,
    "eval_episodes": 0,
    "report_every": 1000,
    "video_every": 0,
    "precision": "float32",
}
PAUSE = 0.02  # seconds a step: the run is mostly idle, and it is the wall clock that counts here
PATIENCE = 600.0  # seconds within which a run must have saved again


class Lost(Exception):
    """Something that was promised did not happen."""


class Kept:
    """A run that is kept alive: whenever it has ended, the same command is given again.

    Attributes:
      ends: of its processes, by exit code.
      told: what they said, the newest last.
    """

    def __init__(self, path: Path, **values: Any) -> None:
        self.path, self.orders = path, path.with_suffix(".orders")
        kwargs = json.dumps({"orders": str(self.orders), "pause": PAUSE})
        self.values = {**VALUES, "steps": 10**9, "env_kwargs": kwargs, **values}
        self.ends: Counter[int] = Counter()
        self.told: list[str] = []
        self.met(-1)
        self.start()

    def start(self) -> None:
        self.process = start(self.path, ALGORITHM, **self.values)
        self._ear = threading.Thread(target=self._hear, args=(self.process.stderr,))
        self._ear.start()

    def end(self, number: int, *expected: int) -> None:
        """Sends a signal and waits for the end, which must have one of these exit codes."""
        workers = children(self.process.pid)
        self.process.send_signal(number)
        self.ended(*expected)
        until = time.monotonic() + 30
        while left := [pid for pid in workers if Path(f"/proc/{pid}").exists()]:
            if time.monotonic() > until:
                raise Lost(f"the workers {left} outlive their learner")
            time.sleep(0.05)

    def ended(self, *expected: int, within: float = PATIENCE) -> None:
        code = self.process.wait(within)
        self._ear.join()
        self.ends[code] += 1
        if code not in expected:
            raise Lost(f"exit code {code}, expected {expected}. " + "".join(self.told[-20:]))

    def newest(self) -> int:
        """Step of the newest checkpoint; -1 while there is none."""
        steps = [int(name.split("-")[1]) for name in listed(self.path / "checkpoints") if name.startswith("step-")]
        return max(steps, default=-1)

    def _hear(self, errors: IO[str]) -> None:
        with errors:
            self.told.extend(errors)

    def met(self, step: int) -> None:
        """A fault, at this step: it has to save a later one now."""
        self._beyond, self._until = step, time.monotonic() + PATIENCE

    def recovered(self) -> bool:
        """Whether it has. Raises Lost if it ended by itself, or takes too long."""
        if self.newest() > self._beyond:
            return True
        if self.process.poll() is not None:
            self.ended()
        if time.monotonic() > self._until:
            raise Lost(f"{self.path.name} has not saved since step {self._beyond}")
        return False


def children(pid: int) -> list[int]:
    found: list[int] = []
    with suppress(FileNotFoundError, ProcessLookupError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            found += [int(x) for x in (task / "children").read_text().split()]
    return found


def flip(path: Path, rng: np.random.Generator) -> None:
    """One bit of a file, anywhere."""
    with open(path, "r+b") as file:
        at = int(rng.integers(os.fstat(file.fileno()).st_size))
        file.seek(at)
        byte = file.read(1)[0] ^ (1 << int(rng.integers(8)))
        file.seek(at)
        file.write(bytes([byte]))


# ------------------------------------------------------------------------------------------- faults

Fault = Callable[[Kept, np.random.Generator], None]


def killed(run: Kept, rng: np.random.Generator) -> None:
    run.end(signal.SIGKILL, -signal.SIGKILL)
    run.start()


def killed_in_a_save(run: Kept, rng: np.random.Generator) -> None:
    come, until = half_written(run.path), time.monotonic() + PATIENCE
    while not come() and time.monotonic() < until:
        time.sleep(2e-4)
    time.sleep(rng.uniform(0, 0.01))
    killed(run, rng)


def killed_while_it_starts(run: Kept, rng: np.random.Generator) -> None:
    killed(run, rng)
    time.sleep(rng.uniform(0, 8))
    killed(run, rng)


def signalled(number: signal.Signals, code: int) -> Fault:
    def strike(run: Kept, rng: np.random.Generator) -> None:
        run.end(number, code)
        run.start()

    return strike


def stopped(run: Kept, rng: np.random.Generator) -> None:
    """The learner stands still for longer than an env may."""
    run.process.send_signal(signal.SIGSTOP)
    time.sleep(8)
    run.process.send_signal(signal.SIGCONT)


def disk_full(run: Kept, rng: np.random.Generator) -> None:
    """No file can grow for a while, as far as this process goes."""
    limits = resource.prlimit(run.process.pid, resource.RLIMIT_FSIZE)
    resource.prlimit(run.process.pid, resource.RLIMIT_FSIZE, (0, limits[1]))
    time.sleep(rng.uniform(5, 20))
    if run.process.poll() is None:
        resource.prlimit(run.process.pid, resource.RLIMIT_FSIZE, limits)


def newest_checkpoint_damaged(run: Kept, rng: np.random.Generator) -> None:
    run.end(signal.SIGKILL, -signal.SIGKILL)
    newest = sorted(p for p in (run.path / "checkpoints").iterdir() if p.name.startswith("step-"))[-1]
    flip(newest / str(rng.choice(["arrays.safetensors", "manifest.json"])), rng)
    run.start()


def newest_checkpoint_cut(run: Kept, rng: np.random.Generator) -> None:
    run.end(signal.SIGKILL, -signal.SIGKILL)
    newest = sorted(p for p in (run.path / "checkpoints").iterdir() if p.name.startswith("step-"))[-1]
    file = newest / "arrays.safetensors"
    os.truncate(file, int(rng.integers(file.stat().st_size)))
    run.start()


def tensorboard_in_the_way(run: Kept, rng: np.random.Generator) -> None:
    """A file where the directory was."""
    run.end(signal.SIGKILL, -signal.SIGKILL)
    folder = run.path / "tensorboard"
    if folder.is_dir():
        folder.rename(run.path / f"tensorboard-{time.monotonic_ns()}")
        folder.touch()
    else:
        folder.unlink()
    run.start()


def asked_twice(run: Kept, rng: np.random.Generator) -> None:
    """The same command, while the first is at it."""
    second = start(run.path, ALGORITHM, **run.values)
    errors = second.communicate(timeout=PATIENCE)[1]
    if second.returncode != 2 or f"process {run.process.pid} " not in errors:
        raise Lost(f"a second run ended with {second.returncode}: {errors}")


def segment_damaged(run: Kept, rng: np.random.Generator) -> None:
    run.end(signal.SIGKILL, -signal.SIGKILL)
    flip(rng.choice(sorted((run.path / "replay").iterdir())), rng)
    run.start()


def segment_gone(run: Kept, rng: np.random.Generator) -> None:
    run.end(signal.SIGKILL, -signal.SIGKILL)
    rng.choice(sorted((run.path / "replay").iterdir())).unlink()
    run.start()


def metrics_damaged(run: Kept, rng: np.random.Generator) -> None:
    run.end(signal.SIGKILL, -signal.SIGKILL)
    flip(run.path / "metrics.jsonl", rng)
    run.start()


def worker_meets(number: signal.Signals) -> Fault:
    def strike(run: Kept, rng: np.random.Generator) -> None:
        while not (workers := children(run.process.pid)):
            time.sleep(0.1)
        with suppress(ProcessLookupError):
            os.kill(int(rng.choice(workers)), number)

    return strike


def env_ordered(fault: str) -> Fault:
    def strike(run: Kept, rng: np.random.Generator) -> None:
        order(run.orders, fault)

    return strike


# Name -> row of the fault table, fault. These must not change a bit of what is learned.
HARMLESS: dict[str, tuple[int, Fault]] = {
    "SIGKILL": (8, killed),
    "SIGKILL in a save": (1, killed_in_a_save),
    "SIGKILL, and again while it starts": (4, killed_while_it_starts),
    "SIGTERM": (6, signalled(signal.SIGTERM, 0)),
    "SIGHUP": (6, signalled(signal.SIGHUP, 0)),
    "SIGINT": (7, signalled(signal.SIGINT, 130)),
    "SIGSTOP of the learner": (31, stopped),
    "disk full": (9, disk_full),
    "a bit of the newest checkpoint": (21, newest_checkpoint_damaged),
    "the newest checkpoint cut short": (21, newest_checkpoint_cut),
    "a file in place of tensorboard": (36, tensorboard_in_the_way),
    "a second run in the directory": (29, asked_twice),
}
# These cost an episode, some rows of replay, or a line of metrics.
OTHERS: dict[str, tuple[int, Fault]] = {
    "a bit of a replay segment": (20, segment_damaged),
    "a replay segment gone": (20, segment_gone),
    "a bit of metrics.jsonl": (36, metrics_damaged),
    "SIGKILL of a worker": (15, worker_meets(signal.SIGKILL)),
    "SIGSTOP of a worker": (14, worker_meets(signal.SIGSTOP)),
    "an env raises": (12, env_ordered("raise")),
    "an env hangs": (14, env_ordered("hang")),
    "an env exits": (15, env_ordered("exit")),
    "NaN reward": (17, env_ordered("nan_reward")),
    "NaN observation": (18, env_ordered("nan_obs")),
    "an observation of another shape": (18, env_ordered("wrong_shape")),
}
FAULTS = HARMLESS | OTHERS


def soak(folder: Path, minutes: float, seconds: float, seed: int, tell: Callable[[str], None]) -> dict[str, Any]:
    """Returns what it came to. Raises Lost if anything that was promised did not happen."""
    rng, faults = np.random.default_rng(seed), Counter[str]()
    # Programs are kept by who ends, not by who is killed: one ends first, so that no start has to compile.
    Kept(folder / "warm", steps=1100, env_kwargs="{}").ended(0)
    first, second = Kept(folder / "first"), Kept(folder / "second")
    try:
        wait_for(first, second)
        began = time.monotonic()
        while time.monotonic() < began + 60 * minutes:
            due = time.monotonic() + seconds
            ready = wait_for(first, second, all_of_them=False)
            run = ready[int(rng.integers(len(ready)))]
            name = str(rng.choice(list(FAULTS if run is second else HARMLESS)))
            tell(f"{time.monotonic() - began:6.0f} s  {run.path.name} at step {run.newest()}: {name}")
            before = run.newest()
            FAULTS[name][1](run, rng)
            run.met(before)
            faults[name] += 1
            time.sleep(max(0.0, due - time.monotonic()))
        wait_for(first, second)
        for run in (first, second):
            run.end(signal.SIGTERM, 0)
    finally:
        for run in (first, second):
            if run.process.poll() is None:
                run.process.kill()
                run.ended(-signal.SIGKILL)
    whole = Kept(folder / "whole", steps=first.newest() + 1, keep=10**6, env_kwargs="{}")
    whole.ended(0, within=3600)
    state(second.path)  # sound, whatever it went through
    return {
        "faults": dict(sorted(faults.items())),
        "rows": sorted({FAULTS[name][0] for name in faults}),
        "starts": sum(first.ends.values()) + sum(second.ends.values()),
        "steps": [first.newest(), second.newest()],
        "compared": compare(first.path, whole.path),
    }


def wait_for(*runs: Kept, all_of_them: bool = True) -> list[Kept]:
    """Those that have recovered from their last fault, as soon as one has, or all."""
    while len(ready := [run for run in runs if run.recovered()]) < (len(runs) if all_of_them else 1):
        time.sleep(0.2)
    return ready


def compare(path: Path, whole: Path) -> list[int]:
    """The steps of the checkpoints of `path` that are, to the last bit, those of a run that met no fault."""
    there = {m["step"] for m in Checkpoints(whole / "checkpoints", 10**6).manifests()}
    steps = sorted(m["step"] for m in Checkpoints(path / "checkpoints").manifests() if m["step"] in there)
    if not steps:
        raise Lost("no checkpoint to compare")
    for step in steps:
        if digest(path, step) != digest(whole, step):
            raise Lost(f"step {step} differs from that of the run without faults")
    return steps


def main(minutes: float = 30.0, seconds: float = 60.0, seed: int = 0) -> int:
    """Prints one JSON line; what happens meanwhile goes to stderr.

    Args:
      minutes: in all.
      seconds: between two faults.
      seed: of the faults.
    """
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    began = time.monotonic()
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # under `nohup` the runs would not hear it
    with tempfile.TemporaryDirectory() as folder:
        os.environ["XDG_CACHE_HOME"] = folder  # where a run that goes on finds its programs compiled
        try:
            figures = soak(Path(folder), minutes, seconds, seed, lambda line: print(line, file=sys.stderr, flush=True))
        except Lost as error:
            figures = {"lost": str(error)}
    spent = round(time.monotonic() - began)
    print(json.dumps({"bench": "soak", "minutes": minutes, **figures, "seconds": spent, "commit": commit}), flush=True)
    return "lost" in figures


if __name__ == "__main__":
    sys.exit(tyro.cli(main))
