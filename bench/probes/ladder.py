"""How strong the checkpoints of a run are, against a ladder of players that learn nothing.

    python -m bench.probes.ladder runs/c4 --out results/gumbel_connect_four.json --picture docs/connect_four.png
    python -m bench.probes.ladder runs/c4 --simulations 64 --rungs random mcts:50 mcts:200

Train with `--keep 20 --checkpoint-every N`. Every checkpoint plays every rung, and every rung the one below it, half of
the games from each seat. The newest checkpoint plays `--last-games`. Elo is the maximum of the likelihood of all
results, with one game between each two that played counted as drawn, so that a player who wins everything has one;
the first rung is 0. Prints one JSON line per pair.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import jax
import matplotlib.pyplot as plt
import numpy as np
import tyro

from bench.common import keep, minutes, tell
from reverie import api
from reverie.agent import Agent, State
from reverie.envs.device import DeviceEnvs
from reverie.envs.opponents import Opponent, opponent
from reverie.run.arena import SEATS
from reverie.run.checkpoint import Checkpoints
from reverie.run.directory import RunDirectory
from reverie.run.log import read
from reverie.run.snapshot import agent_state


@dataclass(frozen=True)
class Args:
    run: tyro.conf.Positional[Path]
    rungs: tuple[str, ...] = ("random", "mcts:10", "mcts:50", "mcts:200", "mcts:800")
    """From weak to strong."""
    games: int = 40
    """Of each pair."""
    last_games: int = 100
    """Of the newest checkpoint and each rung."""
    every: int = 1
    """Of the checkpoints every n-th, counted back from the newest."""
    simulations: int = 0
    """Of the agent's searches; 0: as many as in training."""
    seed: int = 1_000_000
    out: Path | None = None
    """File for the results."""
    picture: Path | None = None
    """File for a plot of Elo over steps."""


class Learned:
    """A checkpoint as an `Opponent`: greedy, of an agent that remembers nothing between moves."""

    def __init__(self, agent: Agent, state: State) -> None:
        assert not agent.context, "an agent that sees stacked boards remembers them"
        self.agent, self.state = agent, state
        self._policy = jax.jit(lambda state, carry, rows: agent.policy(state, carry, rows, "eval")[1])

    def act(self, state: Any, rows: dict[str, Any], key: Any) -> Any:
        carry = self.agent.init_carry(len(rows["is_first"]), key)
        (action,) = self._policy(self.state, carry, rows).values()
        return action


class Result(NamedTuple):
    """Games of `one` against `other`: `[wins, draws, losses]` of `one` by its seat."""

    one: str
    other: str
    seats: dict[str, list[int]]

    @property
    def score(self) -> float:
        """Points of `one`, a draw counting half."""
        return float(sum(wins + draws / 2 for wins, draws, _ in self.seats.values()))

    @property
    def games(self) -> int:
        return sum(map(sum, self.seats.values()))


def duel(envs: DeviceEnvs, players: tuple[Opponent, Opponent], key: Any) -> list[int]:
    """`[wins, draws, losses]` of the first of two players in N games that it begins."""
    step, show = jax.jit(envs.step), jax.jit(envs.rows)
    ((name, _),) = envs.act_space.items()
    world = envs.begin()._replace(key=jax.random.fold_in(key, 0))
    score, over, first = np.zeros(envs.num), np.zeros(envs.num, bool), np.ones(envs.num, bool)
    moves = 0
    while True:
        rows = show(world)
        # The reward is of the player who moved on the row before.
        score += np.where(over, 0, np.where(first, 1, -1) * np.asarray(rows["reward"])) if moves else 0
        over |= np.asarray(rows["is_last"])
        if over.all():
            return [int((score > 0).sum()), int((score == 0).sum()), int((score < 0).sum())]
        first, moves = np.asarray(rows["obs/player"]) == 0, moves + 1
        draws = jax.random.split(jax.random.fold_in(key, moves))
        chosen = [np.asarray(p.act(world.state, rows, k)) for p, k in zip(players, draws, strict=True)]
        world = step(world, {name: np.where(first, *chosen)})


def match(envs: DeviceEnvs, names: tuple[str, str], players: tuple[Opponent, Opponent], seed: int) -> Result:
    """Both seats, N games each."""
    keys = jax.random.split(jax.random.key(seed))
    begun, second = duel(envs, players, keys[0]), duel(envs, players[::-1], keys[1])
    result = Result(*names, dict(zip(SEATS, (begun, second[::-1]), strict=True)))
    tell({"bench": "ladder", **result._asdict(), "score": result.score})
    return result


def elo(results: list[Result], anchor: str) -> dict[str, float]:
    """Ratings of greatest likelihood (Bradley & Terry), by Zermelo's iteration."""
    names = sorted({name for r in results for name in (r.one, r.other)})
    at = {name: i for i, name in enumerate(names)}
    points = np.zeros((len(names), len(names)))
    for r in results:
        points[at[r.one], at[r.other]] += r.score + 0.5
        points[at[r.other], at[r.one]] += r.games - r.score + 0.5
    played, strength = points + points.T, np.ones(len(names))
    for _ in range(20_000):
        strength = points.sum(1) / (played / (strength[:, None] + strength)).sum(1)
        strength /= strength[at[anchor]]
    return {name: round(float(400 * np.log10(strength[at[name]])), 1) for name in names}


def main(args: Args) -> None:
    loaded = api.load(args.run)
    run = loaded.config.run
    simulations = args.simulations or loaded.config.agent.simulations
    played = replace(loaded.config, agent=replace(loaded.config.agent, simulations=simulations))
    agent = api.make_agent(played, loaded.env.obs_space, loaded.env.act_space)
    store = Checkpoints(RunDirectory(args.run).checkpoints)
    steps = sorted({manifest["step"] for manifest in store.manifests()})[:: -args.every][::-1]
    envs = {games: DeviceEnvs(loaded.spec, games // 2, seed=args.seed) for games in (args.games, args.last_games)}
    rungs = {name: opponent(name, envs[args.games].env) for name in args.rungs}
    results = [
        match(envs[args.games], (one, other), (rungs[one], rungs[other]), args.seed + i)
        for i, (other, one) in enumerate(zip(args.rungs, args.rungs[1:], strict=False))
    ]
    player = Learned(agent, loaded.state)
    for step in steps:
        checkpoint = store.load_latest(until=step)
        assert checkpoint is not None
        player.state = agent_state(agent, checkpoint)
        games = args.last_games if step == steps[-1] else args.games
        for i, name in enumerate(args.rungs):
            results.append(match(envs[games], (str(step), name), (player, rungs[name]), args.seed + 10 * step + i))
    ratings = elo(results, args.rungs[0])
    tell({"bench": "ladder", "elo": ratings})
    if args.out:
        rows = read(args.run / "metrics.jsonl")
        kept = {
            "commands": [
                f"reverie train {loaded.config.algorithm} --env {run.env} --seed {run.seed} --run runs/r",
                f"python -m bench.probes.ladder runs/r --games {args.games} --last-games {args.last_games} "
                f"--every {args.every} --simulations {simulations}",
            ],
            "seed": run.seed,
            "minutes": round(minutes(rows), 1),
            "updates": rows[-1]["updates"],
            "simulations": {"training": loaded.config.agent.simulations, "ladder": simulations},
            "elo": ratings,
            "results": [{**r._asdict(), "score": r.score, "games": r.games} for r in results],
            "config": json.loads((args.run / "config.json").read_text()),
        }
        keep(args.out, kept)
    if args.picture:
        draw(args.picture, run.env, steps, ratings, args.rungs)


def draw(picture: Path, env: str, steps: list[int], ratings: dict[str, float], rungs: tuple[str, ...]) -> None:
    """Elo over steps, the rungs as lines."""
    figure, axes = plt.subplots(figsize=(7, 3.6), layout="constrained")
    axes.plot(steps, [ratings[str(step)] for step in steps], marker="o", markersize=3)
    for name in rungs:
        axes.axhline(ratings[name], color="gray", linestyle=":", linewidth=1)
        axes.annotate(name, (1, ratings[name]), xycoords=("axes fraction", "data"), ha="right", va="bottom", fontsize=8)
    axes.set(xlabel="env steps", ylabel="Elo (random: 0)", title=env)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(picture, dpi=110)


if __name__ == "__main__":
    main(tyro.cli(Args))
