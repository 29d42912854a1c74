"""The protocol of collectors, which fill replay, and the episodes that they count meanwhile."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np

from reverie.agent import Carry, Mode, State
from reverie.envs.spec import EnvLike, summary
from reverie.replay.rows import Row

# -> carry, action, out: name -> array `[n, ...]`, which the device may still be computing.
Policy = Callable[[State, Mode, Carry, Row], tuple[Carry, Any, Any]]
Fetch = Callable[[Any], Any]  # waits for arrays, and returns them on the host
TALLY_KEYS = ("reward", "is_first", "is_last", "obs/player")  # what a tally reads of a row
Add = Callable[[np.ndarray, Row], object]  # takes envs [n], and one row of each `[n, ...]` or U of them `[U, n, ...]`


@runtime_checkable
class Collector(Protocol):
    """Acts somewhere, and commits the rows that come of it to replay. A step has two halves, so that a device gets more
    to do before the host waits for what was decided."""

    groups: list[np.ndarray]  # the envs of each group that is stepped by itself, int [n]
    carry: list[Carry]  # the policy's of each group. The caller sets it before the first `step`
    pending: list[Row]  # `[n, ...]` of each group, whose successors are not known yet; none before its first step
    tally: Tally  # counts the episodes

    @property
    def upcoming(self) -> int:
        """Rows that the next step commits."""

    def decide(self, state: State, mode: Mode) -> None:
        """Asks the policy of `state` for the next actions, and waits for none of them. `act` must follow."""

    def act(self) -> int:
        """Waits for these actions and takes them; returns the number of rows that this step committed."""

    def state(self) -> Row:
        """All there is to know between two steps, as arrays."""

    def restore(self, state: Row) -> np.ndarray:
        """Continues from `state`, in a new process, with `carry` as it was to begin with.

        Returns:
          bool [N]: envs that could not be brought back; their episodes are cut.

        Raises:
          ValueError: the state is of something else; nothing is changed then.
        """


def step(collector: Collector, state: State, mode: Mode) -> int:
    """Both halves of a step; returns the number of rows that it committed."""
    collector.decide(state, mode)
    return collector.act()


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
            own = dict(figures[i]) if figures else {}
            self._episodes.append(Episode(i, float(self._returns[i]), int(self._lengths[i]), own))

    def take(self) -> list[Episode]:
        """The episodes that finished since the last call."""
        new_episodes, self._episodes = self._episodes, []
        return new_episodes

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
