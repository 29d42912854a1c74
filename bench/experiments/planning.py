"""Says what a search adds to trained Dreamers: their greedy return without a planner and with 4, 16 and 64 simulations.

    python -m bench.experiments.planning runs/a runs/b              # finished runs: seeds of one task, or of several
    python -m bench.experiments.planning --train cartpole catch --seeds 5 --folder runs/planning
    python -m bench.experiments.planning --train cartpole --seeds 5 --folder runs/early --flags=--steps=1500

Runs of the same algorithm on the same env, with as many --steps, are seeds of one task. All planners play the same
episodes, on which none of the runs was evaluated. Means and interquartile means (of the middle half of all episodes)
have 95 % intervals of a stratified bootstrap, as in Agarwal et al. (2021, "Deep Reinforcement Learning at the Edge of
the Statistical Precipice"): seeds are drawn anew within their task, and episodes within their seed. `gain` is the
difference to no planner, seed by seed and episode by episode. Of one seed, the interval tells of episodes alone.

Prints a table, and keeps it with all returns in `--out`.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tyro

from bench.common import command_line, keep

DRAWS = 2000
# What `--train` can train: flags of `reverie train`.
TASKS = {
    "cartpole": ("--preset", "cartpole"),
    "catch": ("--preset", "catch"),
    "minigrid-empty": ("--preset", "minigrid-empty"),
    "acrobot": ("--preset", "cartpole", "--env", "Acrobot-v1", "--steps", "20000", "--stop-return", "-90"),
}


@dataclass(frozen=True)
class Args:
    runs: tyro.conf.Positional[tuple[Path, ...]] = ()
    """Directories of finished runs of Dreamers with discrete actions."""
    train: tuple[str, ...] = ()
    """Tasks to train first: cartpole, catch, minigrid-empty, acrobot. What --folder has already is not trained anew."""
    algorithm: str = "dreamer_v3"
    """Of --train."""
    seeds: int = 5
    """Of --train: seeds 0, 1, ... up to this many."""
    folder: Path = Path("runs/planning")
    """Where the runs of --train lie and stay."""
    flags: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """Further flags of `reverie train`, as `--flags=--steps=5000`."""
    planner: str = "gumbel"
    scale: float = 0.1
    """--planner-scale: how much the values of a search outweigh the actor."""
    simulations: tuple[int, ...] = (4, 16, 64)
    episodes: int = 20
    """Of every run, with every number of simulations."""
    seed: int = 1_000_000
    """Of the episodes."""
    out: Path | None = None
    """File for the table and all returns (results/planning.json)."""


def trained(args: Args) -> list[Path]:
    """The runs of `--train`, trained as far as they are not."""
    runs = []
    for task in args.train:
        for seed in range(args.seeds):
            run = args.folder / f"{task}-{seed}"
            command = command_line("train", args.algorithm, *TASKS[task], *args.flags)
            subprocess.run([*command, "--seed", str(seed), "--run", str(run)], check=True, stdout=sys.stderr)
            runs.append(run)
    return runs


def played(args: Args, run: Path, simulations: int) -> dict[str, Any]:
    """Greedy episodes of a run; 0 simulations: without a planner."""
    import reverie

    if simulations:
        agent = reverie.load(run, planner=args.planner, simulations=simulations, planner_scale=args.scale)
    else:
        agent = reverie.load(run, planner="none")
    began = time.perf_counter()
    found = reverie.evaluate(agent, args.episodes, args.seed)
    conf = agent.config
    result = {
        "task": f"{conf.algorithm} on {conf.run.env}, up to {conf.run.steps:,} steps",
        "seed": conf.run.seed,
        "trained": agent.step,
        "simulations": simulations,
        "returns": found.returns,
        "lengths": found.lengths,
        "seconds": round(time.perf_counter() - began, 2),  # compilation included
    }
    print(json.dumps({k: v for k, v in result.items() if k not in ("returns", "lengths")}), file=sys.stderr, flush=True)
    return result


def interquartile_mean(scores: np.ndarray) -> np.ndarray:
    """Mean of the middle half, along the last axis; a quarter of an odd number is cut to an integer, as SciPy does."""
    count = scores.shape[-1]
    cut = count // 4
    middle: np.ndarray = np.sort(scores, -1)[..., cut : count - cut].mean(-1)
    return middle


def resampled(shape: tuple[int, int], draws: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Places of drawn episodes, `[draws, seeds * episodes]` each: seeds with replacement, and episodes within them."""
    seeds, episodes = shape
    seed = rng.integers(0, seeds, (draws, seeds, 1)).repeat(episodes, 2)
    episode = rng.integers(0, episodes, (draws, seeds, episodes))
    return seed.reshape(draws, -1), episode.reshape(draws, -1)


def interval(samples: np.ndarray) -> list[float]:
    low, high = np.percentile(samples, (2.5, 97.5))
    return [round(float(low), 3), round(float(high), 3)]


def table(results: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """A row per task and number of simulations."""
    rows: list[dict[str, Any]] = []
    for task in dict.fromkeys(r["task"] for r in results):
        mine = [r for r in results if r["task"] == task]
        seeds = sorted({r["seed"] for r in mine})
        scores = {
            n: np.array([next(r["returns"] for r in mine if (r["seed"], r["simulations"]) == (s, n)) for s in seeds])
            for n in dict.fromkeys(r["simulations"] for r in mine)
        }
        # The same draws for all of them: the difference to no planner is then one of pairs.
        drawn = resampled(scores[0].shape, DRAWS, np.random.default_rng(0))
        for simulations, returns in scores.items():
            gain = returns - scores[0]
            rows.append(
                {
                    "task": task,
                    "seeds": len(seeds),
                    "simulations": simulations,
                    "mean": round(float(returns.mean()), 3),
                    "mean_interval": interval(returns[drawn].mean(-1)),
                    "iqm": round(float(interquartile_mean(returns.ravel())), 3),
                    "iqm_interval": interval(interquartile_mean(returns[drawn])),
                    "gain": round(float(gain.mean()), 3),
                    "gain_interval": interval(gain[drawn].mean(-1)),
                }
            )
    return rows


def show(rows: Sequence[dict[str, Any]]) -> None:
    """The table, as Markdown."""
    print("| task | seeds | simulations | mean | interquartile mean | gain |\n|---|---|---|---|---|---|")
    for row in rows:
        with_interval = lambda name, row=row: "{:.4g} [{:.4g}, {:.4g}]".format(row[name], *row[f"{name}_interval"])
        gain = with_interval("gain") if row["simulations"] else ""
        cells = (with_interval("mean"), with_interval("iqm"), gain)
        print("|", " | ".join((row["task"], str(row["seeds"]), str(row["simulations"]), *cells)), "|", flush=True)


def main(args: Args) -> None:
    if unknown := set(args.train) - set(TASKS):
        raise SystemExit(f"no task {', '.join(sorted(unknown))}: expected --train {' '.join(TASKS)}")
    runs = [*args.runs, *trained(args)]
    if not runs:
        raise SystemExit("which runs? Type their directories, or --train cartpole")
    results = [played(args, run, simulations) for run in runs for simulations in (0, *args.simulations)]
    rows = table(results)
    show(rows)
    if args.out:
        kept = {
            "bench": "planning",
            "planner": args.planner,
            "scale": args.scale,
            "episodes": args.episodes,
            "table": rows,
            "runs": results,
        }
        keep(args.out, kept)


if __name__ == "__main__":
    main(tyro.cli(Args))
