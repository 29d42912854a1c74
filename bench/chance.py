"""2048 with a model of chance and without one, at equal env steps, beside random play.

    python bench/chance.py --seeds 2 --out results/2048.json

`stochastic_muzero` and `muzero` are trained with their presets `2048`, which agree in every value that both have; the
score of a seed is that of `bench/solve.py`. Prints one JSON line per seed and one per player.
"""

from __future__ import annotations

import json
import os
import platform
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
import solve
import tyro

from reverie import api, config
from reverie.envs.device import DeviceEnvs
from reverie.envs.spec import EnvSpec
from reverie.run.collect import Tally
from reverie.run.rollout import Rollout, count

PRESET = "2048"


@dataclass(frozen=True)
class Args:
    algorithms: tuple[str, ...] = ("stochastic_muzero", "muzero")
    seeds: int = 2
    """Seeds 0, 1, ... up to this many, of each."""
    episodes: int = 40
    """Greedy episodes of a score."""
    flags: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """Further flags of `reverie train`, as `--flags=--steps=50000`."""
    folder: Path | None = None
    """Where the runs lie and stay."""
    out: Path | None = None
    """File for the results and curves."""


def random_play(episodes: int) -> list[float]:
    """Returns of evenly drawn legal moves, the first episode of each env."""
    conf = config.override(config.default("muzero", PRESET), precision="float32")
    envs = DeviceEnvs(EnvSpec(conf.run.env), episodes, seed=0)
    agent = api.make_agent(conf, envs.obs_space, envs.act_space)
    play = Rollout(envs, agent, 64).traced["random"]
    state, world, carry = agent.init(jax.random.key(0)), envs.begin(), agent.init_carry(episodes, jax.random.key(1))
    tally, first = Tally(episodes), dict[int, float]()
    while len(first) < episodes:
        world, carry, rows = play(state, world, carry)
        count(tally, jax.device_get(rows))
        for episode in tally.take():
            first.setdefault(episode.env, episode.episode_return)
    return list(first.values())


def main(args: Args) -> None:
    cores = sorted(os.sched_getaffinity(0))
    players: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        for algorithm in args.algorithms:
            folder = (args.folder or Path(scratch)) / algorithm
            folder.mkdir(parents=True, exist_ok=True)
            task = solve.Args(algorithm, PRESET, episodes=args.episodes, threshold=0.0, flags=args.flags)
            runs = []
            for seed in range(args.seeds):
                run = solve.run_seed(task, seed, folder, cores)
                print(json.dumps({"algorithm": algorithm, "seed": seed, "value": run["value"]}), flush=True)
                runs.append({k: v for k, v in run.items() if k not in ("bench", "name", "solved", "config")})
                values = run["config"]
            players[algorithm] = {"mean": np.mean([r["value"] for r in runs]), "runs": runs, "config": values}
    returns = random_play(256)
    players["random"] = {"mean": np.mean(returns), "episodes": len(returns)}
    for name, player in players.items():
        print(json.dumps({"bench": "chance", "name": name, "value": player["mean"], "unit": "mean greedy return"}))
    if args.out:
        flags = " ".join(f"--flags={flag}" for flag in args.flags)
        kept = {
            "command": f"python bench/chance.py --seeds {args.seeds} --episodes {args.episodes} {flags}".strip(),
            "commit": solve.commit(),
            "machine": {"cpu": solve.processor(), "cores": len(cores), "python": platform.python_version()},
            "players": players,
        }
        args.out.write_text(json.dumps(kept, indent=1) + "\n")


if __name__ == "__main__":
    main(tyro.cli(Args))
