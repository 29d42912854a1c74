"""What measurements share: lines that say where they come from, runs of the command line, and the record of a run."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from queue import SimpleQueue
from typing import Any, TypeVar

from reverie.run.log import read

Item = TypeVar("Item")
Result = TypeVar("Result")
LONG = ("curve", "config")  # of a line: not worth a terminal's space


@dataclass(frozen=True, kw_only=True)
class Record:
    """What became of one training run. `results/runs.jsonl` has a line for each.

    Attributes:
      env, algorithm, preset, seed: of the run.
      value, std, episodes, unit: mean and standard deviation of greedy episodes that the run itself never saw.
      threshold: what `value` must reach to count as solved.
      steps, updates, minutes: how long it was. Minutes are of wall time on `cores`.
      command: makes this run and its score again, with the other seeds of the same command.
      commit, machine: where it was made.
      curve: `step` and `value` of the greedy evaluations on the way, lists of one length; `minutes` beside them where
        time is compared.
      note: what a reader must know besides.
    """

    env: str
    algorithm: str
    preset: str
    seed: int
    value: float
    std: float
    episodes: int
    unit: str = "mean greedy return"
    threshold: float
    steps: int
    updates: int
    minutes: float
    cores: int
    command: str
    commit: str
    machine: dict[str, Any]
    curve: dict[str, list[float]]
    note: str = ""

    @property
    def solved(self) -> bool:
        return self.value >= self.threshold


def records(path: Path) -> list[Record]:
    """The records of a file that `tell` wrote."""
    return [Record(**json.loads(line)) for line in path.read_text().splitlines()]


def tell(line: Record | dict[str, Any], out: Path | None = None) -> None:
    """Prints a line as JSON, without what is long, and adds all of it to a file."""
    values = asdict(line) if isinstance(line, Record) else line
    print(json.dumps({k: v for k, v in values.items() if k not in LONG}), flush=True)
    if out:
        out.parent.mkdir(parents=True, exist_ok=True)
        with out.open("a") as file:
            file.write(json.dumps(values) + "\n")


def keep(out: Path, values: dict[str, Any]) -> None:
    """Writes a whole file of results, with where they come from."""
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(values | origin(), indent=1) + "\n")


def origin() -> dict[str, Any]:
    """Where a figure comes from."""
    return {"commit": commit(), "machine": machine()}


def commit() -> str:
    return subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False).stdout.strip()


def machine() -> dict[str, Any]:
    """What computes, how many cores of it this process may use, and the versions that decide how fast it is."""
    facts = {"cores": len(os.sched_getaffinity(0)), "python": platform.python_version(), "jax": version("jax")}
    if "jax" in sys.modules and (device := sys.modules["jax"].devices()[0]).platform != "cpu":
        return {"device": device.device_kind} | facts
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = [line.split(":", 1)[1].strip() for line in lines if "model name" in line]
    return {"cpu": names[0] if names else platform.processor()} | facts


# ------------------------------------------------------------------------------------------ runs


def command_line(*words: str) -> list[str]:
    """`reverie` of this environment, wherever its script lies."""
    return [sys.executable, "-m", "reverie.cli", *words]


def answer(words: Iterable[str], *, log: Path | None = None, cores: Iterable[int] | None = None) -> dict[str, Any]:
    """What a command of `reverie` says with `--json`.

    Args:
      log: file for what it tells a person.
      cores: those that it may use.
    """
    pinned = None if cores is None else set(cores)
    done = subprocess.run(
        command_line(*words, "--json"),
        stdout=subprocess.PIPE,
        stderr=log.open("w") if log else None,
        text=True,
        check=True,
        preexec_fn=None if pinned is None else lambda: os.sched_setaffinity(0, pinned),
    )
    said: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return said


def evaluated(run: Path, episodes: int) -> dict[str, Any]:
    """What `reverie eval` says, of other episodes than those that decided when to stop."""
    return answer(["eval", str(run), "--seed", "1000000", "--episodes", str(episodes)])


def minutes(rows: list[dict[str, Any]]) -> float:
    """Wall time of a run, over all its sessions; what was done twice after a kill is not counted twice."""
    total, before = 0.0, 0.0
    for row in rows:
        now = row.get("time/session", before)
        total, before = total + (now - before if now >= before else now), now
    return total / 60


def greedy_curve(run: Path) -> dict[str, list[float]]:
    """The evaluations that a run has made so far, as a record has them."""
    rows = read(run / "metrics.jsonl") if (run / "metrics.jsonl").exists() else []
    found = [row for row in rows if "eval/mean_return" in row]
    return {"step": [row["step"] for row in found], "value": [round(row["eval/mean_return"], 3) for row in found]}


def side_by_side(job: Callable[[Item, list[int]], Result], items: Iterable[Item], parallel: int) -> list[Result]:
    """What `job(item, cores)` returns for every item, so many at once, each with a share of the cores of its own."""
    cores = sorted(os.sched_getaffinity(0))
    share = len(cores) // parallel
    free: SimpleQueue[list[int]] = SimpleQueue()
    for i in range(parallel):
        free.put(cores[i * share : (i + 1) * share])

    def pinned(item: Item) -> Result:
        mine = free.get()
        try:
            return job(item, mine)
        finally:
            free.put(mine)

    with ThreadPoolExecutor(parallel) as pool:
        return list(pool.map(pinned, items))
