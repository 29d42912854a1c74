"""Everything that changes: the training state, and the policy's carry."""

from __future__ import annotations

from typing import Any

import equinox as eqx
from jaxtyping import Array, Bool, Int, PRNGKeyArray

from reverie.algos.muzero.model import Model
from reverie.behavior.explore import RepeatedAction

Legal = Bool[Array, "B a"] | None  # the actions that may be taken at every root; None: all


class State(eqx.Module):
    """Everything training changes."""

    model: Model
    target: Model  # a copy, some updates old
    optimizer: Any
    key: PRNGKeyArray
    updates: Array  # int32, applied updates
    nonfinite: Array  # int32 [2]: updates skipped in all, and in a row


class Carry(eqx.Module):
    """The policy's memory between steps: the frames before this one, how many moves were made, and random actions
    that go on."""

    frames: dict[str, Array]  # [N, stack - 1, ...], the oldest first; 0 where the episode had not begun
    moves: Int[Array, " N"]
    key: PRNGKeyArray
    held: RepeatedAction | None = None  # None: random actions are not repeated
