"""Episodes that are only measured: of the host's envs, of the device's, and games against an opponent."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np

from reverie.agent import Carry, State, select
from reverie.agent import Mode as Acting
from reverie.envs.workers import Workers
from reverie.replay.rows import Row
from reverie.run.arena import Game, scores
from reverie.run.collect.base import Episode, Tally, mean_figures
from reverie.run.collect.rollout import play
from reverie.run.counted_jit import CountedJit
from reverie.run.envs import Envs
from reverie.run.jitted import JittedAgent
from reverie.run.stop import Stop

# --eval-mode, and how the agent acts.
ACTING: dict[str, Acting] = {"greedy": "eval", "sample": "sample"}
SCAN = 64  # steps of device envs in one call of an evaluation


@dataclass(frozen=True)
class Evaluation:
    """Episodes of an evaluation: undiscounted returns, lengths in steps, and means of what the env said about them.

    Of games for two, returns are outcomes (win 1, draw 0, loss -1) against `opponent`, and `seats` counts the `wins`,
    `draws` and `losses` of an agent that moved `first` and `second`.
    """

    returns: list[float]
    lengths: list[int]
    figures: dict[str, float] = field(default_factory=dict)
    opponent: str = ""
    seats: dict[str, dict[str, int]] = field(default_factory=dict)

    @property
    def mean_return(self) -> float:
        return float(np.mean(self.returns))

    @property
    def std_return(self) -> float:
        return float(np.std(self.returns))

    def to_json(self) -> dict[str, Any]:
        return {
            "mean_return": self.mean_return,
            "std_return": self.std_return,
            "returns": self.returns,
            "lengths": self.lengths,
            **({"figures": self.figures} if self.figures else {}),
            **({"opponent": self.opponent, "seats": self.seats} if self.seats else {}),
        }


def evaluate(
    compiled: JittedAgent,
    state: State,
    workers: Envs,
    episodes: int,
    key: jax.Array,
    stop: Stop | None = None,
    opponent: str = "random",
    mode: Acting = "eval",
) -> Evaluation | None:
    """Plays 1 or more episodes in fresh envs, acting in `mode` with the policy's `key`; None if `stop` has a signal
    meanwhile. In games of two, against `opponent` and half of them from each seat. (On the host, the opponent is that
    of the envs.)

    Every env plays its share to the end, so that short episodes do not crowd out long ones: episode e is number
    `e // N` of env `e % N`. An episode that a failing env cut is played again.
    """
    if workers.mode == "device" and workers.env.players == 2:
        games = compiled.arena(workers, opponent, mode).play(state, episodes, key, stop)
        return None if games is None else _of_games(games, opponent)
    num = workers.num
    share = np.array([len(range(env, episodes, num)) for env in range(num)])
    carry = compiled.agent.init_carry(num, key)
    if workers.mode == "device":
        played = play(compiled.rollout(workers, SCAN), mode, state, carry, share, stop)
    else:
        played = _play(compiled.policy[mode], state, workers, carry, share, stop)
    if played is None:
        return None
    order = [played[e % num][e // num] for e in range(episodes)]
    if workers.spec.opponent:
        # The agent has the first seat in every other env.
        return _of_games([Game.of(episode, e % 2) for e, episode in enumerate(order)], workers.spec.opponent)
    figures = mean_figures(workers.spec, [e.figures for e in order])
    return Evaluation([e.episode_return for e in order], [e.length for e in order], figures)


def _of_games(games: list[Game], opponent: str) -> Evaluation:
    returns, lengths = [float(game.outcome) for game in games], [game.length for game in games]
    return Evaluation(returns, lengths, opponent=opponent, seats=scores(games))


def _play(
    policy: CountedJit, state: State, workers: Workers, carry: Carry, share: np.ndarray, stop: Stop | None
) -> list[list[Episode]] | None:
    """`rollout.play` with envs of the host."""
    num, tally = workers.num, Tally(workers.num)
    played: list[list[Episode]] = [[] for _ in range(num)]
    action = {k: np.zeros((num, *s.shape), s.dtype) for k, s in workers.act_space.items()}
    rows: Row = {}
    active = np.flatnonzero(share)
    while active.size:
        if stop and stop.signal:
            return None
        workers.send(active, {k: a[active] for k, a in action.items()})
        new, _ = workers.recv(active)  # a cut shows as `is_first`: the episode starts over
        rows = rows or {k: np.zeros((num, *x.shape[1:]), x.dtype) for k, x in new.items()}
        for k, x in new.items():
            rows[k][active] = x
        tally.add(active, new, workers.figures)
        for episode in tally.take():
            played[episode.env].append(episode)
        carry, actions, _ = policy(state, carry, rows)
        action = {k: np.asarray(a) for k, a in select(actions, "action/").items()}
        active = np.array([env for env in active.tolist() if len(played[env]) < share[env]], int)
    return played
