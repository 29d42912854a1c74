"""Envs and a policy, turned into rows; and rows turned into chunks.

One step of a group of envs, with the row of t committed when its successor is known:

    recv        o_t+1 arrives                 or the env failed in between (cut):
    commit      (o_t, a_t, out_t)             the same row with is_last: a truncation
    policy      a_t+1, out_t+1 from o_t+1     from the first observation of the next episode
    send        a_t+1                         the env works while the next group is served

With two groups the envs of one work while the policy decides for the other.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import numpy as np

from reverie.envs.spec import EnvLike, summary
from reverie.envs.workers import Workers
from reverie.run.checkpoint import flatten, unflatten

Row = dict[str, np.ndarray]
Carry = Any
Policy = Callable[[Carry, Row], tuple[Carry, Row, Row]]


class Episode(NamedTuple):
    """A finished episode. One that was cut by a failing env is none: its return means nothing."""

    env: int
    episode_return: float
    length: int  # steps taken, one less than its rows
    figures: Mapping[str, float] = {}  # what the env says about it


def pack(episodes: Sequence[Episode]) -> np.ndarray:
    """Episodes as JSON, uint8 [n], to lie among the arrays of a checkpoint. Floats keep every bit."""
    return np.frombuffer(json.dumps(episodes).encode(), np.uint8)


def unpack(text: np.ndarray) -> list[Episode]:
    """Inverse of `pack`. Raises ValueError or TypeError for what `pack` did not write."""
    if text.dtype != np.uint8 or text.ndim != 1:
        raise ValueError(f"episodes are {text.dtype} {text.shape}, expected uint8 [n]")
    episodes = [Episode(*episode) for episode in json.loads(text.tobytes())]
    if not all(type(x) in (int, float) for episode in episodes for x in episode[:3]):
        raise ValueError("an episode is told in numbers")
    return episodes


def mean_figures(env: EnvLike, figures: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The mean of each figure over the episodes that have it, and what the env's family makes of these."""
    names = sorted({name for each in figures for name in each})
    means = {name: float(np.mean([each[name] for each in figures if name in each])) for name in names}
    return means | summary(env, means)


class Tally:
    """Adds up the episodes of N envs, row by row.

    The return is that of the only player. With two it is that of the one who moved first: what a move earned belongs
    to the player whose turn it was, on the row before.
    """

    def __init__(self, num: int) -> None:
        self._returns = np.zeros(num, np.float64)
        self._lengths = np.zeros(num, np.int64)
        self._sign = np.ones(num, np.int64)  # -1 where the second player moves now
        self._episodes: list[Episode] = []

    def add(self, envs: np.ndarray, rows: Row, figures: Sequence[Mapping[str, float]] = ()) -> None:
        """Takes the next rows `[n, ...]` of `envs` [n]; `figures` are those of all N, at the end of an episode."""
        on = ~rows["is_first"]
        self._returns[envs] = np.where(on, self._returns[envs] + self._sign[envs] * rows["reward"], 0.0)
        self._lengths[envs] = np.where(on, self._lengths[envs] + 1, 0)
        if "obs/player" in rows:
            self._sign[envs] = 1 - 2 * rows["obs/player"].astype(np.int64)
        for i in envs[rows["is_last"]].tolist():
            said = dict(figures[i]) if figures else {}
            self._episodes.append(Episode(i, float(self._returns[i]), int(self._lengths[i]), said))

    def take(self) -> list[Episode]:
        """The episodes that finished since the last call."""
        finished, self._episodes = self._episodes, []
        return finished

    def state(self) -> Row:
        state = {"returns": self._returns.copy(), "lengths": self._lengths.copy(), "episodes": pack(self._episodes)}
        # Only games have it: what runs of other envs have saved stays readable.
        return state | ({"sign": self._sign.copy()} if (self._sign < 0).any() else {})

    def restore(self, state: Row) -> None:
        sign = state.get("sign", np.ones_like(self._lengths))
        new = (state["returns"], state["lengths"], sign)
        for own, given in zip((self._returns, self._lengths, self._sign), new, strict=True):
            if (own.dtype, own.shape) != (given.dtype, given.shape):
                raise ValueError(f"a tally has {given.dtype} {given.shape}, expected {own.dtype} {own.shape}")
        self._returns, self._lengths, self._sign = (x.copy() for x in new)
        self._episodes = unpack(state["episodes"])


class Collector:
    """Steps groups of envs in turn and commits their rows.

    Args:
      workers: the envs.
      add: takes `(envs [n], rows [n, ...])`, each row with `obs/ action/ out/` and the flags.
      groups: number of groups that take turns; env i is in group `i * groups // num`.

    Attributes:
      groups: the envs of each group, int [n].
      carry: the policy's carry of each group. The caller sets it before the first `step`.
      pending: the rows `[n, ...]` of each group whose successors are not known yet; none before its first step.
    """

    def __init__(self, workers: Workers, add: Callable[[np.ndarray, Row], object], groups: int = 1) -> None:
        if not 1 <= groups <= workers.num:
            raise ValueError(f"groups is {groups}, expected 1 to {workers.num}, the number of envs")
        self.groups = np.array_split(np.arange(workers.num), groups)
        self.carry: list[Carry] = [None] * groups
        self._workers, self._add = workers, add
        self.pending: list[Row] = [{} for _ in range(groups)]
        self._turn = 0
        self._begun = False
        self._tally = Tally(workers.num)

    def step(self, policy: Policy) -> int:
        """Advances the group whose turn it is by one step.

        Args:
          policy: `(carry, rows) -> (carry, action, out)` over the n envs of a group; keys of
            `action` and `out` without prefix or with `action/` and `out/`.

        Returns:
          the number of rows committed: n, or 0 in a group's first step.
        """
        if not self._begun:
            nothing = {
                key: np.zeros((self._workers.num, *space.shape), space.dtype)
                for key, space in self._workers.act_space.items()
            }
            self._workers.send(np.arange(self._workers.num), nothing)  # every env is reset
            self._begun = True
        group, self._turn = self._turn, (self._turn + 1) % len(self.groups)
        envs, pending = self.groups[group], self.pending[group]
        rows, cut = self._workers.recv(envs)
        if pending:
            pending["is_last"] = pending["is_last"] | cut
            self._add(envs, pending)
        self._tally.add(envs, rows, self._workers.figures)
        self.carry[group], action, out = policy(self.carry[group], rows)
        action, out = jax.tree.map(np.array, (action, out))  # own memory: jax may reuse its
        action = {key.removeprefix("action/"): value for key, value in action.items()}
        out = {key.removeprefix("out/"): value for key, value in out.items()}
        self._workers.send(envs, action)
        rows |= {f"action/{key}": value for key, value in action.items()}
        rows |= {f"out/{key}": value for key, value in out.items()}
        self.pending[group] = rows
        return len(envs) if pending else 0

    def episodes(self) -> list[Episode]:
        """The episodes that finished since the last call."""
        return self._tally.take()

    def state(self) -> Row:
        """All there is to know between two steps, as arrays; the envs go on working."""
        state = {f"workers/{key}": value for key, value in self._workers.state().items()}
        for group, pending in enumerate(self.pending):
            state |= {f"pending/{group}/{key}": value for key, value in pending.items()}
            carry = flatten(self.carry[group])
            state |= {f"carry/{group}/{key}": value for key, value in carry.items()}
        state["groups"] = np.array(len(self.groups), np.int64)
        state["turn"] = np.array(self._turn, np.int64)
        state["begun"] = np.array(self._begun)
        return state | self._tally.state()

    def restore(self, state: Row) -> np.ndarray:
        """Continues from `state`, with fresh workers and with `carry` as it was to begin with.

        Returns:
          bool [N]: envs that could not be brought back; their episodes are cut.

        Raises:
          ValueError: the state is of other envs, groups or carries; nothing is changed then.
        """
        for key, kind in (("groups", np.int64), ("turn", np.int64), ("begun", np.bool_)):
            if (state[key].dtype, state[key].shape) != (kind, ()):
                raise ValueError(f"{key} is {state[key].dtype} {list(state[key].shape)}, expected one {kind.__name__}")
        if int(state["groups"]) != len(self.groups):
            raise ValueError(f"the state is of {int(state['groups'])} groups of envs, expected {len(self.groups)}")
        turn = int(state["turn"])
        if turn not in range(len(self.groups)):
            raise ValueError(f"it is the turn of group {turn}, expected 0 to {len(self.groups) - 1}")
        carry = [unflatten(like, _under(f"carry/{g}/", state)) for g, like in enumerate(self.carry)]
        tally = Tally(self._workers.num)
        tally.restore(state)
        cut = self._workers.restore(_under("workers/", state))
        self.carry, self._tally = carry, tally
        self.pending = [_under(f"pending/{g}/", state) for g in range(len(self.groups))]
        self._turn, self._begun = turn, bool(state["begun"])
        return cut


# ------------------------------------------------------------------------------ the classical view


@dataclass(frozen=True)
class Chunk:
    """B pieces of episodes, in transitions. Zero where `mask` is false.

        position p      0       1       2       3
        obs             o0      o1      o2      0        next_obs: o3
        action          a0      a1      a2      0
        reward          r1      r2      r3      0        reward_p arrived AFTER action_p
        terminated                      1?      0        the world ended with o3
        truncated                       1?      0        the episode did, the world did not
        mask            1       1       1       0

    Attributes:
      obs: `[B, T, ...]` per key.
      action: `[B, T, ...]` per key.
      reward: float32 [B, T].
      terminated, truncated: bool [B, T], true only at the last real position - but that a life lost in the middle of
        an episode may be terminal, too.
      mask: bool [B, T]: the position is real, its action had an effect.
      next_obs: `[B, ...]` per key, what followed the last real position; for bootstrapping.
      is_first: bool [B], the piece begins its episode.
    """

    obs: Row
    action: Row
    reward: np.ndarray
    terminated: np.ndarray
    truncated: np.ndarray
    mask: np.ndarray
    next_obs: Row
    is_first: np.ndarray


def chunks(rows: Iterable[tuple[np.ndarray, Row]], length: int, batch: int) -> Iterator[Chunk]:
    """Cuts committed rows into pieces that end with their episode, or after `length` positions.

    Args:
      rows: what a `Collector` gives to `add`: `(envs [n], rows [n, ...])`, in order.
      length: T.
      batch: B.

    Yields:
      Chunks of B pieces in the order in which the pieces ended. When `rows` is exhausted, the
      pieces still open follow; a last chunk with fewer than B is filled up with pieces that are
      all padding.

    Every transition appears exactly once. A row that is last has none of its own: its action had no
    effect. That holds for the last row of an episode that a failing env cut, too.
    """
    if length < 1 or batch < 1:
        raise ValueError(f"length is {length} and batch is {batch}, expected 1 or more of both")
    last: dict[int, Row] = {}  # env -> its newest row
    open_: dict[int, list[tuple[Row, Row]]] = {}  # env -> (row, its successor), one per position
    ready: list[list[tuple[Row, Row]]] = []
    for envs, many in rows:
        for at, env in enumerate(envs.tolist()):
            row = {key: value[at] for key, value in many.items()}
            before = last.get(env)
            last[env] = row
            if before is None or before["is_last"]:
                continue
            if row["is_first"]:
                raise ValueError(f"env {env}: an episode begins before the one before it ended")
            piece = open_.setdefault(env, [])
            piece.append((before, row))
            if row["is_last"] or len(piece) == length:
                ready.append(open_.pop(env))
            if len(ready) == batch:
                yield _chunk(ready, length, batch)
                ready = []
    ready += open_.values()
    for begin in range(0, len(ready), batch):
        yield _chunk(ready[begin : begin + batch], length, batch)


def _chunk(pieces: list[list[tuple[Row, Row]]], length: int, batch: int) -> Chunk:
    like = pieces[0][0][0]
    full = {key: np.zeros((batch, length, *x.shape), x.dtype) for key, x in like.items()}
    tail = {key: np.zeros((batch, *x.shape), x.dtype) for key, x in like.items()}
    mask = np.zeros((batch, length), bool)
    terminated, truncated = np.zeros_like(mask), np.zeros_like(mask)
    for b, piece in enumerate(pieces):
        mask[b, : len(piece)] = True
        for p, (row, after) in enumerate(piece):
            for key, value in row.items():
                full[key][b, p] = value
            full["reward"][b, p] = after["reward"]
        for key, value in after.items():
            tail[key][b] = value
        terminated[b, p] = after["is_terminal"]
        truncated[b, p] = after["is_last"] and not after["is_terminal"]
    return Chunk(
        obs=_under("obs/", full),
        action=_under("action/", full),
        reward=full["reward"],
        terminated=terminated,
        truncated=truncated,
        mask=mask,
        next_obs=_under("obs/", tail),
        is_first=full["is_first"][:, 0],
    )


def _under(prefix: str, arrays: Row) -> Row:
    """The arrays whose name begins with `prefix`, without it."""
    return {key.removeprefix(prefix): value for key, value in arrays.items() if key.startswith(prefix)}
