"""Compares algorithms at equal env steps and at equal time: what each returns after so many of either.

    python -m bench.experiments.compare --seeds 5 --out results/dream_ppo.json --picture docs/dream_ppo.png
    python -m bench.experiments.compare --tasks cartpole recall --steps 3000 14000 --clock cpu  # others use the machine
    python -m bench.experiments.compare --algorithms dreamer_v2 dreamer_v3 --tasks pendulum

Every run is a `reverie train` of the preset that both have for the task, without an early end. A return is that of the
newest greedy evaluation; time is what was spent on collecting and learning, not on evaluations (programs that an
earlier run compiled are loaded). Tables give means over seeds with intervals of 95 % (percentiles of the bootstrap over
seeds: with few seeds, no more than their range). Prints one JSON line per run and per figure; `--folder` keeps finished
runs, so that more seeds can be added later.
"""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import tyro

from bench.common import command_line, keep, tell
from reverie.run.log import read

SHARES = (0.25, 0.5, 0.75, 1.0)  # of all env steps, and of the time that the fastest run had
RESAMPLES = 10_000


@dataclass(frozen=True)
class Args:
    algorithms: tuple[str, ...] = ("dreamer_v3", "dream_ppo")
    tasks: tuple[str, ...] = ("cartpole", "pendulum", "catch")
    """Presets that all of them have."""
    seeds: int = 5
    """Seeds 0, 1, ... up to this many."""
    steps: tuple[int, ...] = ()
    """Env steps of each of the tasks, in their order; those of the presets if none are given."""
    flags: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """Further flags of `reverie train`, as `--flags=--steps=2000`."""
    clock: Literal["wall", "cpu"] = "wall"
    """Time by the clock; or, where others use the cores too, the run's CPU time, spread evenly over its updates."""
    folder: Path | None = None
    """Where the runs lie and stay; what is finished there is not done again."""
    out: Path | None = None
    """File for the tables and curves, rewritten after every run."""
    picture: Path | None = None


def run(args: Args, task: str, algorithm: str, seed: int, folder: Path) -> dict[str, Any]:
    """One training run: its curve in env steps and in minutes."""
    path = folder / f"{task}-{algorithm}-{seed}"
    kept = path.with_suffix(".json")
    if not kept.exists():
        command = command_line("train", algorithm, "--preset", task, "--seed", str(seed))
        command += ["--run", str(path), "--stop-return", "None", "--video-every", "0", "--report-every", "0", "--json"]
        command += ["--steps", str(args.steps[args.tasks.index(task)])] if args.steps else []
        since = time.perf_counter()
        with path.with_suffix(".log").open("w") as log:
            child = subprocess.Popen([*command, *args.flags], stdout=subprocess.DEVNULL, stderr=log)
            _, status, usage = os.wait4(child.pid, 0)
        if status:
            raise SystemExit(f"{' '.join(command)} failed; {log.name} tells why")
        spent = {"wall": time.perf_counter() - since, "cpu": usage.ru_utime + usage.ru_stime}
        kept.write_text(json.dumps({name: round(seconds / 60, 2) for name, seconds in spent.items()}))
    minutes = json.loads(kept.read_text())
    rows = read(path / "metrics.jsonl")
    return {
        "task": task,
        "algorithm": algorithm,
        "seed": seed,
        "minutes": minutes,
        "updates": rows[-1]["updates"],
        "curve": curve(rows, minutes["cpu"] if args.clock == "cpu" else None),
        "config": json.loads((path / "config.json").read_text()),
    }


def curve(rows: list[dict[str, Any]], spread: float | None) -> list[dict[str, float]]:
    """Greedy returns by env step and minute: by the clock, or of `spread` minutes as many as the share of updates."""
    points, minutes, before = [], 0.0, 0
    for row in rows:
        if "time/steps_per_second" in row:
            minutes += (row["step"] - before) / row["time/steps_per_second"] / 60
            before = row["step"]
            if spread is not None:
                minutes = spread * row["updates"] / rows[-1]["updates"]
        if "eval/mean_return" in row:
            place = {"step": row["step"], "minute": round(minutes, 3)}
            points.append(place | {"return": round(row["eval/mean_return"], 2)})
    return points


def at(points: list[dict[str, float]], axis: str, place: float) -> float:
    """The newest return at `place`; before the first evaluation, that."""
    passed = [p["return"] for p in points if p[axis] <= place]
    return passed[-1] if passed else points[0]["return"]


def interval(values: list[float]) -> dict[str, float]:
    """The mean, and the middle 95 % of the means of resampled seeds."""
    rng = np.random.default_rng(0)
    means = rng.choice(values, (RESAMPLES, len(values))).mean(1)
    low, high = np.percentile(means, (2.5, 97.5))
    return {"mean": round(float(np.mean(values)), 1), "low": round(float(low), 1), "high": round(float(high), 1)}


def table(runs: list[dict[str, Any]], axis: str) -> list[dict[str, Any]]:
    """Rows of one task: a place on the axis, and what each algorithm returns there."""
    end = min(r["curve"][-1][axis] for r in runs)
    rows = []
    for place in (share * end for share in SHARES):
        own: dict[str, list[float]] = {}
        for r in runs:
            own.setdefault(r["algorithm"], []).append(at(r["curve"], axis, place))
        rows.append({axis: round(place, 2)} | {name: interval(values) for name, values in own.items()})
    return rows


def draw(runs: list[dict[str, Any]], path: Path) -> None:
    """One row per task: returns by env step and by minute, means and intervals."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot as plt

    tasks = list(dict.fromkeys(r["task"] for r in runs))
    figure, axes = plt.subplots(len(tasks), 2, figsize=(9, 2.8 * len(tasks)), squeeze=False, layout="constrained")
    for row, task in zip(axes, tasks, strict=True):
        own = [r for r in runs if r["task"] == task]
        for panel, axis in zip(row, ("step", "minute"), strict=True):
            places = np.linspace(0, min(r["curve"][-1][axis] for r in own), 40)
            for name in dict.fromkeys(r["algorithm"] for r in own):
                curves = [r["curve"] for r in own if r["algorithm"] == name]
                there = [interval([at(c, axis, place) for c in curves]) for place in places]
                (line,) = panel.plot(places, [t["mean"] for t in there], label=f"{name} ({len(curves)} seeds)")
                low, high = ([t[side] for t in there] for side in ("low", "high"))
                panel.fill_between(places, low, high, color=line.get_color(), alpha=0.2, linewidth=0)
            panel.set(title=task, xlabel={"step": "env steps", "minute": "minutes"}[axis], ylabel="greedy return")
            panel.spines[["top", "right"]].set_visible(False)
        row[0].legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=80)
    plt.close(figure)


def main(args: Args) -> None:
    if args.steps and len(args.steps) != len(args.tasks):
        raise SystemExit(f"--steps gives {len(args.steps)} numbers, --tasks {len(args.tasks)} presets: one for each")
    runs: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as scratch:
        folder = args.folder or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        # Seed by seed, the algorithms in turns: what other work on the machine costs is shared by all.
        for seed, task, name in ((s, t, a) for s in range(args.seeds) for t in args.tasks for a in args.algorithms):
            runs.append(run(args, task, name, seed, folder))
            last = {k: v for k, v in runs[-1].items() if k not in ("curve", "config")}
            last |= {"value": runs[-1]["curve"][-1]["return"]}
            tell({"bench": "compare", "unit": "mean greedy return"} | last)
            write(args, runs)
    for row in tables(runs):
        tell({"bench": "compare"} | row)


def tables(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """All rows of all tasks."""
    tasks = dict.fromkeys(r["task"] for r in runs)
    own = {task: [r for r in runs if r["task"] == task] for task in tasks}
    return [{"task": t} | row for t in tasks for axis in ("step", "minute") for row in table(own[t], axis)]


def write(args: Args, runs: list[dict[str, Any]]) -> None:
    """What there is so far, into `--out` and `--picture`."""
    if args.picture:
        draw(runs, args.picture)
    if args.out:
        words = ["python", "-m", "bench.experiments.compare", "--algorithms", *args.algorithms, "--tasks", *args.tasks]
        words += ["--steps", *map(str, args.steps)] if args.steps else []
        words += ["--seeds", str(args.seeds), "--clock", args.clock, *(f"--flags={flag}" for flag in args.flags)]
        kept = {
            "command": " ".join(words),
            "tables": tables(runs),
            "configs": {f"{r['task']}/{r['algorithm']}": r["config"] for r in reversed(runs)},  # of the first seed
            "runs": [{k: v for k, v in r.items() if k != "config"} for r in runs],
        }
        keep(args.out, kept)


if __name__ == "__main__":
    main(tyro.cli(Args))
