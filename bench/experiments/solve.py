"""Trains a preset with several seeds and says which of them solve their task.

    python -m bench.experiments.solve --seeds 5                              # CartPole-v1, the demo
    python -m bench.experiments.solve --preset pendulum --seeds 3 --out results/runs.jsonl
    python -m bench.experiments.solve --algorithm gumbel_muzero --threshold 475

Every seed is one `reverie train` in a process of its own; its score is a greedy `reverie eval` of what it left, on
episodes that the run itself never saw.
Prints one JSON line per seed and one for all; `--out` adds the seeds' to a file, as `bench.common.Record` says.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import tyro

from bench.common import Record, answer, commit, evaluated, greedy_curve, machine, minutes, side_by_side, tell
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
    """File to which the records are added."""


def solve(args: Args, seed: int, folder: Path, cores: Sequence[int]) -> Record:
    """One training run, pinned to `cores`."""
    run = folder / f"{args.preset}-{seed}"
    words = ["train", args.algorithm, "--preset", args.preset, "--seed", str(seed), "--run", str(run), *args.flags]
    result = answer(words, log=run.with_suffix(".log"), cores=cores)
    score = evaluated(run, args.episodes)
    return Record(
        env=json.loads((run / "config.json").read_text())["run"]["env"],
        algorithm=args.algorithm,
        preset=args.preset,
        seed=seed,
        value=score["mean_return"],
        std=score["std_return"],
        episodes=args.episodes,
        threshold=threshold(args),
        steps=result["steps"],
        updates=result["updates"],
        minutes=round(minutes(read(run / "metrics.jsonl")), 2),
        cores=len(cores),
        command=" ".join(command(args)),
        commit=commit(),
        machine=machine(),
        curve=greedy_curve(run),
    )


def command(args: Args) -> list[str]:
    """What makes these results again, wherever the runs lay."""
    words = ["python", "-m", "bench.experiments.solve", "--preset", args.preset, "--seeds", str(args.seeds)]
    words += ["--algorithm", args.algorithm] if args.algorithm != Args.algorithm else []
    words += ["--threshold", str(args.threshold)] if args.threshold is not None else []
    words += ["--first-seed", str(args.first_seed)] if args.first_seed else []
    words += ["--episodes", str(args.episodes)] if args.episodes != Args.episodes else []
    return words + [f"--flags={flag}" for flag in args.flags]


def threshold(args: Args) -> float:
    return THRESHOLDS[args.preset] if args.threshold is None else args.threshold


def main(args: Args) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        folder = args.folder or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)

        def one(seed: int, cores: Sequence[int]) -> Record:
            record = solve(args, seed, folder, cores)
            tell(record, args.out)
            return record

        found = side_by_side(one, range(args.first_seed, args.first_seed + args.seeds), args.parallel)
    solved = sum(record.solved for record in found)
    tell({"bench": "solve", "name": f"{args.preset}/solved", "value": solved, "unit": f"of {len(found)} seeds"})


if __name__ == "__main__":
    main(tyro.cli(Args))
