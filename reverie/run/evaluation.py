"""Episodes that are only measured: of the host's envs, of the device's, and games against an opponent."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np

from reverie.agent import Mode as Acting
from reverie.agent import State
from reverie.envs.workers import Workers
from reverie.replay.rows import Row
from reverie.run.arena import Game, scores
from reverie.run.collect.base import Episode, mean_figures
from reverie.run.collect.rollout import play
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
    """Plays episodes; in games of two, against `opponent` and half of them from each seat. (On the host, the opponent
    is that of the envs.)

    Every env plays its share to the end, so that short episodes do not crowd out long ones. An
    episode that a failing env cut is played again.

    Args:
      workers: fresh ones. Episode e is number `e // N` of env `e % N`.
      episodes: how many, 1 or more.
      key: for the policy.
      stop: gives up when it has a signal.
      mode: in which the agent acts.

    Returns:
      the evaluation, or None if it was given up.
    """
    if workers.mode == "device" and workers.env.players == 2:
        games = compiled.arena(workers, opponent, mode).play(state, episodes, key, stop)
        if games is None:
            return None
        outcomes = [float(game.outcome) for game in games]
        return Evaluation(outcomes, [game.length for game in games], opponent=opponent, seats=scores(games))
    num = workers.num
    share = np.array([len(range(env, episodes, num)) for env in range(num)])
    if workers.mode == "device":
        carry = compiled.agent.init_carry(num, key)
        played = play(compiled.rollout(workers, SCAN), mode, state, carry, share, stop)
    else:
        played = _play(compiled, mode, state, workers, share, key, stop)
    if played is None:
        return None
    order = [played[e % num][e // num] for e in range(episodes)]
    if workers.spec.opponent:
        matches = [Game(e % 2, int(np.sign(game.episode_return)), game.length) for e, game in enumerate(order)]
        outcomes = [float(game.outcome) for game in matches]
        lengths = [game.length for game in matches]
        return Evaluation(outcomes, lengths, opponent=workers.spec.opponent, seats=scores(matches))
    figures = mean_figures(workers.spec, [e.figures for e in order])
    return Evaluation([e.episode_return for e in order], [e.length for e in order], figures)


def _play(
    compiled: JittedAgent,
    mode: Acting,
    state: State,
    workers: Workers,
    share: np.ndarray,
    key: jax.Array,
    stop: Stop | None,
) -> list[list[Episode]] | None:
    """`rollout.play` with envs of the host. In games of two, returns are those of the agent, whose seat is
    the first in every other env: what a move earned belongs to the player whose turn it was, on the row before."""
    num = workers.num
    seat, sign = np.arange(num) % 2, np.ones(num)  # -1 where the opponent moves now
    played: list[list[Episode]] = [[] for _ in range(num)]
    returns, lengths = np.zeros(num), np.zeros(num, int)  # of the open episodes
    carry = compiled.agent.init_carry(num, key)
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
        returns[active] = np.where(new["is_first"], 0, returns[active] + sign[active] * new["reward"])
        if workers.spec.opponent:
            sign[active] = np.where(new["obs/player"] == seat[active], 1, -1)
        lengths[active] = np.where(new["is_first"], 0, lengths[active] + 1)
        for env in active[new["is_last"]].tolist():
            played[env].append(Episode(env, float(returns[env]), int(lengths[env]), dict(workers.figures[env])))
        carry, actions, _ = compiled.policy[mode](state, carry, rows)
        action = {k.removeprefix("action/"): np.asarray(a) for k, a in actions.items()}
        active = np.array([env for env in active.tolist() if len(played[env]) < share[env]], int)
    return played
