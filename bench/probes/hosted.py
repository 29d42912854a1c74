"""The same agent in the same game, on the host and on the device: wins against the same opponent.

    python -m bench.probes.hosted runs/c4 --out results/hosted_connect_four.json

The run is one of `pgx:connect_four`; its parameters play `pettingzoo:connect_four_v3` as well. Each opponent is written
twice, for arrays (`envs/opponents.py`) and for objects (`envs/opposed.py`): what they come to must agree. Intervals are
those of Wilson for a share of wins, at 95 %. Prints one JSON line per env. More games with the same `--seed` begin with
those of a shorter match: only another seed measures anew.
"""

from __future__ import annotations

import dataclasses
import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

from bench.common import keep, tell
from reverie import api
from reverie.envs.spec import EnvSpec
from reverie.run import evaluation
from reverie.run.envs import open_evaluation
from reverie.run.jitted import JittedAgent
from reverie.run.seeds import evaluation_key

ENVS = ("pgx:connect_four", "pettingzoo:connect_four_v3")


@dataclass(frozen=True)
class Args:
    run: tyro.conf.Positional[Path]
    opponent: str = "mcts:50"
    games: int = 100
    simulations: int | None = None
    """Of the agent's searches; those of training if left out."""
    envs: int = 2
    """Games of the host at once, each in a process."""
    seed: int = 1_000_000
    out: Path | None = None
    """File for the results."""


def interval(wins: int, games: int, z: float = 1.96) -> list[float]:
    """Of Wilson, for the probability of a win."""
    share, spread = wins / games, z * z / games
    middle = (share + spread / 2) / (1 + spread)
    half = z * math.sqrt(share * (1 - share) / games + spread / games / 4) / (1 + spread)
    return [round(middle - half, 4), round(middle + half, 4)]


def played(agent: Any, name: str, args: Args) -> dict[str, Any]:
    """A line of the results."""
    run = dataclasses.replace(agent.config.run, eval_envs=args.envs)
    space, began = agent.env.obs_space, time.monotonic()
    with open_evaluation(run, EnvSpec(name), space, args.games, args.seed, args.opponent) as envs:
        if (envs.obs_space, envs.act_space) != (space, agent.env.act_space):
            raise SystemExit(f"{name} shows {envs.obs_space}, and the agent was trained with {space}")
        key = evaluation_key(args.seed, 0)
        found = evaluation.evaluate(
            JittedAgent(agent.agent), agent.state, envs, args.games, key, opponent=args.opponent
        )
    assert found is not None
    wins = found.returns.count(1.0)
    told = {"env": name, "opponent": args.opponent, "games": args.games, "wins": wins, "seats": found.seats}
    return told | {"interval": interval(wins, args.games), "seconds": round(time.monotonic() - began, 1)}


def main(args: Args) -> None:
    agent = api.load(args.run, simulations=args.simulations)
    if agent.spec.id != ENVS[0]:
        raise SystemExit(f"{args.run} was trained in {agent.spec.id}, expected {ENVS[0]}")
    lines = []
    for name in ENVS:
        lines.append(played(agent, name, args))
        tell({"bench": "hosted", **lines[-1]})
    if args.out:
        told = {"run": f"{agent.config.algorithm}, {agent.step:,} steps", "simulations": agent.config.agent.simulations}
        keep(args.out, told | {"results": lines})


if __name__ == "__main__":
    main(tyro.cli(Args))
