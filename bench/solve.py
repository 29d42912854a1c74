"""Trains a preset with several seeds and says which of them solve their task.

    python bench/solve.py --seeds 5                              # CartPole-v1, the demo
    python bench/solve.py --preset pendulum --seeds 3 --out results/pendulum.json
    python bench/solve.py --algorithm gumbel_muzero --threshold 475

Every seed is one `reverie train` in a process of its own; its score is a greedy `reverie eval` of what it left, on
episodes that the run itself never saw.
Prints one JSON line per seed and one for all; `--out` keeps them with the learning curves, the commit and the machine.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

from reverie.run.log import read

# 2048: twice what random moves score. cartpole-swingup: 2.5 times what random actions earn.
THRESHOLDS = {
    "cartpole": 450.0,
    "cartpole-imagined": 450.0,
    "cartpole-swingup": 200.0,
    "pendulum": -250.0,
    "catch": 0.9,
    "recall": 0.9,
    "minigrid-empty": 0.9,
    "2048": 2163.0,
}


@dataclass(frozen=True)
class Args:
    algorithm: str = "dreamer_v3"
    preset: str = "cartpole"
    seeds: int = 5
    """Seeds 0, 1, ... up to this many."""
    first_seed: int = 0
    episodes: int = 20
    """Greedy episodes that decide, on seeds that the run itself never evaluates on."""
    threshold: float | None = None
    """Mean greedy return that counts as solved; each preset has its own."""
    parallel: int = 1
    """Runs at the same time, each pinned to its own share of the cores."""
    flags: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """Further flags of `reverie train`, as `--flags=--steps=5000`."""
    folder: Path | None = None
    """Where the runs lie and stay; what is finished there is only scored again."""
    out: Path | None = None
    """File for the results and curves."""


def run_seed(args: Args, seed: int, folder: Path, cores: Sequence[int]) -> dict[str, Any]:
    """One training run, pinned to `cores`."""
    run = folder / f"{args.preset}-{seed}"
    command = [sys.executable, "-m", "reverie.cli", "train", args.algorithm, "--preset", args.preset]
    command += ["--seed", str(seed), "--run", str(run), "--json", *args.flags]
    done = subprocess.run(
        command,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        stderr=(folder / f"{args.preset}-{seed}.log").open("w"),
        preexec_fn=lambda: os.sched_setaffinity(0, cores),
    )
    result = json.loads(done.stdout.splitlines()[-1])
    evaluation = evaluated(run, args.episodes)
    score = evaluation["mean_return"]
    keys = {"eval/mean_return": "greedy", "episode/return": "episode"}
    rows = read(run / "metrics.jsonl")
    curve = [
        {"step": row["step"]} | {name: round(row[key], 3) for key, name in keys.items() if key in row} for row in rows
    ]
    return {
        "bench": "solve",
        "name": args.preset,
        "seed": seed,
        "value": score,
        "unit": "mean greedy return",
        "episodes": args.episodes,
        "std_return": evaluation["std_return"],
        "last_evaluation_of_the_run": (result["evaluation"] or {}).get("mean_return"),
        "solved": score >= threshold(args),
        "minutes": round(minutes(rows), 2),
        "cores": len(cores),
        "steps": result["steps"],
        "updates": result["updates"],
        "config": json.loads((run / "config.json").read_text()),
        "curve": [point for point in curve if len(point) > 1],
    }


def evaluated(run: Path, episodes: int) -> dict[str, Any]:
    """What `reverie eval` says, of other episodes than those that decided when to stop."""
    words = [sys.executable, "-m", "reverie.cli", "eval", str(run), "--seed", "1000000", "--json"]
    words += ["--episodes", str(episodes)]
    said = subprocess.run(words, stdout=subprocess.PIPE, text=True, check=True).stdout
    result: dict[str, Any] = json.loads(said.splitlines()[-1])
    return result


def minutes(rows: list[dict[str, Any]]) -> float:
    """Wall time of a run, over all its sessions; what was done twice after a kill is not counted twice."""
    total, before = 0.0, 0.0
    for row in rows:
        now = row.get("time/session", before)
        total, before = total + (now - before if now >= before else now), now
    return total / 60


def command(args: Args) -> list[str]:
    """What makes these results again, wherever the runs lay."""
    words = ["python", "bench/solve.py", "--preset", args.preset, "--seeds", str(args.seeds)]
    words += ["--algorithm", args.algorithm] if args.algorithm != Args.algorithm else []
    words += ["--threshold", str(args.threshold)] if args.threshold is not None else []
    words += ["--first-seed", str(args.first_seed)] if args.first_seed else []
    words += ["--episodes", str(args.episodes)] if args.episodes != Args.episodes else []
    return words + [f"--flags={flag}" for flag in args.flags]


def threshold(args: Args) -> float:
    return THRESHOLDS[args.preset] if args.threshold is None else args.threshold


def main(args: Args) -> None:
    cores = sorted(os.sched_getaffinity(0))
    share = len(cores) // args.parallel
    with tempfile.TemporaryDirectory() as scratch, ThreadPoolExecutor(args.parallel) as pool:
        folder = args.folder or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        free = [cores[i * share : (i + 1) * share] for i in range(args.parallel)]

        def one(seed: int) -> dict[str, Any]:
            mine = free.pop()
            try:
                result = run_seed(args, seed, folder, mine)
            finally:
                free.append(mine)
            print(
                json.dumps({k: v for k, v in result.items() if k not in ("curve", "config")}),
                flush=True,
            )
            return result

        results = list(pool.map(one, range(args.first_seed, args.first_seed + args.seeds)))
    solved = sum(r["solved"] for r in results)
    summary = {
        "bench": "solve",
        "name": f"{args.preset}/solved",
        "value": solved,
        "unit": f"of {len(results)} seeds",
    }
    print(json.dumps(summary), flush=True)
    if args.out:
        kept = {
            "command": " ".join(command(args)),
            "threshold": threshold(args),
            "solved": f"{solved} of {len(results)}",
            "commit": commit(),
            "machine": {
                "cpu": processor(),
                "cores": len(cores),
                "python": platform.python_version(),
            },
            "config": results[0]["config"],
            "runs": [{k: v for k, v in r.items() if k not in ("bench", "name", "config")} for r in results],
        }
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(kept, indent=1) + "\n")


def commit() -> str:
    return subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False).stdout.strip()


def processor() -> str:
    info = Path("/proc/cpuinfo")
    names = [line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if "model name" in line]
    return names[0] if names else platform.processor()


if __name__ == "__main__":
    main(tyro.cli(Args))
