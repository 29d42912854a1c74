"""The replay that a run needs: what it stores of a step, how many rows it holds, how often they are learned from."""

from __future__ import annotations

import math
from collections.abc import Mapping
from fractions import Fraction
from typing import Any

import jax
import numpy as np

from reverie.agent import Agent
from reverie.config import ConfigError, RunConfig
from reverie.envs.base import Spaces
from reverie.fields import amount
from reverie.replay.device_rows import DeviceRows
from reverie.replay.rows import PRIORITY, Batch, Field, Row, bytes_per_row
from reverie.replay.sequences import Replay
from reverie.run.seeds import seeds


def row_fields(obs_space: Spaces, act_space: Spaces) -> dict[str, Field]:
    """The row of one step in these spaces, without what an agent adds."""
    row = {f"obs/{key}": Field(space.shape, space.dtype) for key, space in obs_space.items()}
    row |= {f"action/{key}": Field(space.shape, space.dtype) for key, space in act_space.items()}
    row["reward"] = Field((), np.dtype("float32"))
    return row | {name: Field((), np.dtype(bool)) for name in ("is_first", "is_last", "is_terminal")}


def fields(agent: Agent) -> dict[str, Field]:
    """The row of one step of this agent."""
    own = {f"out/{key}": Field(x.shape, np.dtype(x.dtype)) for key, x in agent.out_space.items()}
    return row_fields(agent.obs_space, agent.act_space) | own


def capacity(run: RunConfig, stored: dict[str, Field]) -> int:
    """Rows of these fields that replay may hold: by their number and by their bytes."""
    return min(run.replay_size, int(run.replay_gb * 1e9) // bytes_per_row(stored))


def window(run: RunConfig, agent: Agent) -> int:
    """Rows of a window that replay serves."""
    return agent.context + (agent.rows or run.length)


def replay_of(run: RunConfig, agent: Agent) -> Replay:
    """The replay of a run, empty."""
    stored = fields(agent)
    return Replay(
        stored,
        streams=run.envs,
        length=window(run, agent),
        capacity=capacity(run, stored),
        seed=seeds(run.seed).replay,
        online=run.online,
        within_episodes=run.within_episodes,
        rare_share=run.rare_share,
        context=agent.context,
        alpha=run.priority_alpha,
        store=DeviceRows if run.replay_on == "device" else None,
    )


def shapes(run: RunConfig, agent: Agent, count: int = 1) -> dict[str, jax.ShapeDtypeStruct]:
    """Those of `draw`, without ids: they are known before there is a row."""
    lead = *([count] if count > 1 else []), run.batch
    rows = {k: jax.ShapeDtypeStruct((*lead, window(run, agent), *x.shape), x.dtype) for k, x in fields(agent).items()}
    return rows | ({"weight": jax.ShapeDtypeStruct(lead, np.float32)} if PRIORITY in rows else {})


def at_once(run: RunConfig, due: int) -> int:
    """Updates in the next dispatch, where so many are due."""
    return run.updates_per_dispatch if due >= run.updates_per_dispatch else 1


def draw(run: RunConfig, replay: Replay, updates: int, count: int) -> Batch:
    """The batch to train on after so many updates, key -> [B, L, ...]; of a `count` above 1, all: [K, B, L, ...]."""
    powers = [beta(run, updates + number) for number in range(count)]
    return replay.sample(run.batch, beta=powers[0]) if count == 1 else replay.samples(run.batch, powers)


class WriteBack:
    """Results of updates for the rows they learned from, on their way to replay: one dispatch late, on every machine.
    So a device has its next update before the host asks for what the last one found.

        draw     batch 1    batch 2              batch 3              batch 4
        update              1                    2                    3
        write                                    out of 1             out of 2

    Where K updates are one dispatch, a number stands for K batches, drawn one after the other, and for the K outs of
    them, of which the last counts where they have a row in common. A checkpoint holds those on their way.
    """

    def __init__(self, replay: Replay) -> None:
        self._replay = replay
        self._ids = np.zeros((0, 0), np.int64)  # [B, T], or [K, B, T]
        self._out: Mapping[str, Any] = {}

    def follow(self, ids: np.ndarray, out: Mapping[str, jax.Array]) -> None:
        """Writes the results of the dispatch before; those of this one, for the rows `ids` [..., B, T], are next."""
        near = jax.device_get({key: x for key, x in self._out.items() if key in self._replay.arrays})
        before, values = self._ids, {**self._out, **near}
        self._ids, self._out = ids, out
        if values:
            self._replay.update(before, values)

    def arrays(self) -> Row:
        """The argument of `restore`; empty, if nothing is on its way."""
        return {"ids": self._ids, **jax.device_get(self._out)} if self._out else {}

    def restore(self, arrays: Row) -> None:
        """Inverse of `arrays`."""
        out = dict(arrays)
        self._ids, self._out = out.pop("ids", self._ids), out


def beta(run: RunConfig, updates: int) -> float:
    """Power of the importance weights after so many updates."""
    share = min(1.0, updates / run.priority_anneal) if run.priority_anneal else 0.0
    return run.priority_beta + share * (1 - run.priority_beta)


class Ratio:
    """Updates after so many env steps: `floor(ratio * max(0, steps - start) / batch_steps)`. What is to do follows from
    those done and left out, so that a resumed run owes exactly what the interrupted one owed.

    Args:
      replayed_per_step: rows trained on per env step, taken as the decimal number it is written as (0.1 is one tenth),
        so that a long run does not drift.
      batch_steps: trained rows of one update, `B * T`.
      start: env steps before the first update can be due.
    """

    def __init__(self, replayed_per_step: float, batch_steps: int, start: int) -> None:
        self._updates_per_step = Fraction(str(replayed_per_step)) / batch_steps
        self._start = start

    def total(self, steps: int) -> int:
        """Updates that `steps` env steps ask for in all."""
        return int(self._updates_per_step * max(0, steps - self._start))

    def most(self, steps: int) -> int:
        """Updates that any `steps` env steps in a row ask for at most."""
        return math.ceil(self._updates_per_step * steps)

    @property
    def first(self) -> int | None:
        """Env steps after which the first update is due; None if there is never one."""
        return self._start + math.ceil(1 / self._updates_per_step) if self._updates_per_step else None


def ratio(run: RunConfig, agent: Agent) -> Ratio:
    """Updates per step. The first is due after warm-up, when some env has filled one window."""
    start = max(run.warmup, run.envs * window(run, agent))
    return Ratio(run.replay_ratio, run.batch * (agent.trained or agent.rows or run.length), start)


def check_dispatch(run: RunConfig, agent: Agent, on_device: bool) -> None:
    """Raises ConfigError if `--updates-per-dispatch` are never due at once, with envs on the device or on the host."""
    most = ratio(run, agent).most(math.ceil(run.envs / run.groups) * (run.scan if on_device else 1))
    if run.updates_per_dispatch > max(1, most):
        raise ConfigError(
            f"--updates-per-dispatch {run.updates_per_dispatch}, but between two env steps --replay-ratio "
            f"{run.replay_ratio:g} asks for {amount(most, 'update')} at most: type --updates-per-dispatch "
            f"{max(1, most)}, or a higher --replay-ratio, or more --envs"
        )
