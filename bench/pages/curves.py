"""Draws the learning curves of the runs of one task.

python -m bench.pages.curves docs/cartpole.png --env CartPole-v1 --algorithm dreamer_v3
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import matplotlib.pyplot as plt
import tyro

from bench.pages.scores import RUNS, commands, name


@dataclass(frozen=True)
class Args:
    picture: tyro.conf.Positional[Path]
    env: str
    algorithm: str
    results: Path = RUNS
    """Records of runs; those of the first command for this task are drawn."""


def main(args: Args) -> None:
    every = {(name(runs[0]), runs[0].algorithm): runs for runs in reversed(commands(args.results))}
    if (args.env, args.algorithm) not in every:
        raise SystemExit(f"no run of {args.algorithm} on {args.env}, only of {every.keys()}")
    runs = every[args.env, args.algorithm]
    figure, axes = plt.subplots(figsize=(7, 3.6), layout="constrained")
    for run in runs:
        axes.plot(run.curve["step"], run.curve["value"], marker="o", markersize=3, label=f"seed {run.seed}")
    axes.axhline(runs[0].threshold, color="gray", linestyle=":", linewidth=1)
    axes.set(xlabel="env steps", ylabel="greedy return", title=f"{args.algorithm} on {args.env}")
    axes.legend(frameon=False, fontsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(args.picture, dpi=110)


if __name__ == "__main__":
    main(tyro.cli(Args))
