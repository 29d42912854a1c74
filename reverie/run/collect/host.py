"""Envs of the host and a policy, turned into rows.

One step of a group of envs, with the row of t committed when its successor is known:

    recv        o_t+1 arrives                 or the env failed in between (cut):
    commit      (o_t, a_t, out_t)             the same row with is_last: a truncation
    policy      a_t+1, out_t+1 from o_t+1     from the first observation of the next episode
    ...         the caller may give the device more to do, behind the policy
    send        a_t+1                         the env works while the next group is served

With two groups the envs of one work while the policy decides for the other.
"""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from reverie.agent import Carry, Mode, State, add_prefix, select
from reverie.envs.workers import Workers
from reverie.replay.rows import Row
from reverie.run.checkpoint import flatten, unflatten
from reverie.run.collect.base import Add, Fetch, Policy, Tally


class HostCollector:
    """Steps groups of envs in turn and commits their rows: a `Collector`. Env i is in group `i * groups // num`.
    `fetch` waits for what the policy decided."""

    def __init__(
        self, workers: Workers, policy: Policy, add: Add, groups: int = 1, fetch: Fetch = jax.device_get
    ) -> None:
        self.groups = np.array_split(np.arange(workers.num), groups)
        self.carry: list[Carry] = [None] * groups
        self._workers, self._policy, self._add, self._fetch = workers, policy, add, fetch
        self.pending: list[Row] = [{} for _ in range(groups)]
        self._turn = 0
        # Of the group whose turn it is, between `decide` and `act`: what it sees; its action, what is stored beside.
        self._rows: Row = {}
        self._decision: list[Any] = []
        self.tally = Tally(workers.num)

    @property
    def upcoming(self) -> int:
        return len(self.groups[self._turn]) if self.pending[self._turn] else 0

    def decide(self, state: State, mode: Mode) -> None:
        """See `Collector`. It is the turn of one group, whose n rows are committed, none in its first step."""
        if not any(self.pending):
            num, spaces = self._workers.num, self._workers.act_space
            nothing = {key: np.zeros((num, *space.shape), space.dtype) for key, space in spaces.items()}
            self._workers.send(np.arange(num), nothing)  # every env is reset
        envs, pending = self.groups[self._turn], self.pending[self._turn]
        rows, cut = self._workers.recv(envs)
        if pending:
            pending["is_last"] = pending["is_last"] | cut
            self._add(envs, pending)
        self.tally.add(envs, rows, self._workers.figures)
        self.carry[self._turn], *self._decision = self._policy(state, mode, self.carry[self._turn], rows)
        self._rows = rows

    def act(self) -> int:
        """See `Collector`."""
        envs, row_count = self.groups[self._turn], self.upcoming
        action, out = jax.tree.map(np.array, self._fetch(self._decision))  # own memory: jax may reuse its
        self._workers.send(envs, select(action, "action/"))
        self.pending[self._turn] = self._rows | action | out
        self._turn = (self._turn + 1) % len(self.groups)
        return row_count

    def state(self) -> Row:
        """See `Collector`; the envs go on working."""
        state = add_prefix("workers/", self._workers.state())
        for group, (pending, carry) in enumerate(zip(self.pending, self.carry, strict=True)):
            state |= add_prefix(f"pending/{group}/", pending) | add_prefix(f"carry/{group}/", flatten(carry))
        state["groups"] = np.array(len(self.groups), np.int64)
        state["turn"] = np.array(self._turn, np.int64)
        state["begun"] = np.array(any(self.pending))
        return state | self.tally.state()

    def restore(self, state: Row) -> np.ndarray:
        """See `Collector`. The workers are fresh; a state of other envs, groups or carries is a ValueError."""
        for key, kind in (("groups", np.int64), ("turn", np.int64), ("begun", np.bool_)):
            if (state[key].dtype, state[key].shape) != (kind, ()):
                raise ValueError(f"{key} is {state[key].dtype} {list(state[key].shape)}, expected one {kind.__name__}")
        if int(state["groups"]) != len(self.groups):
            raise ValueError(f"the state is of {int(state['groups'])} groups of envs, expected {len(self.groups)}")
        turn = int(state["turn"])
        if turn not in range(len(self.groups)):
            raise ValueError(f"it is the turn of group {turn}, expected 0 to {len(self.groups) - 1}")
        carry = [unflatten(like, select(state, f"carry/{g}/"), computed=True) for g, like in enumerate(self.carry)]
        tally = Tally(self._workers.num)
        tally.restore(state)
        cut = self._workers.restore(select(state, "workers/"))
        self.carry, self.tally = carry, tally
        self.pending = [select(state, f"pending/{g}/") for g in range(len(self.groups))]
        self._turn = turn
        return cut
