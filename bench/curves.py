"""Draws the learning curves of a file that `bench/solve.py --out` wrote.

python bench/curves.py results/cartpole.json docs/cartpole.png
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import matplotlib.pyplot as plt
import tyro


@dataclass(frozen=True)
class Args:
    results: tyro.conf.Positional[Path]
    picture: tyro.conf.Positional[Path]


def main(args: Args) -> None:
    data = json.loads(args.results.read_text())
    run = data["config"]["run"]
    figure, axes = plt.subplots(figsize=(7, 3.6), layout="constrained")
    for result in data["runs"]:
        points = [(p["step"], p["greedy"]) for p in result["curve"] if "greedy" in p]
        axes.plot(*zip(*points, strict=True), marker="o", markersize=3, label=f"seed {result['seed']}")
    axes.axhline(data["threshold"], color="gray", linestyle=":", linewidth=1)
    axes.set(xlabel="env steps", ylabel="greedy return", title=f"{data['config']['algorithm']} on {run['env']}")
    axes.legend(frameon=False, fontsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(args.picture, dpi=110)


if __name__ == "__main__":
    main(tyro.cli(Args))
