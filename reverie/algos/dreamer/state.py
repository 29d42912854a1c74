"""Everything that changes: the training state, and the policy's carry."""

from __future__ import annotations

from typing import Any

import equinox as eqx
from jaxtyping import Array, Float, PRNGKeyArray

from reverie.algos.dreamer.world import Model
from reverie.behavior.explore import RepeatedAction
from reverie.behavior.returns import ReturnScale
from reverie.model.dynamics import Latent
from reverie.model.heads import ScalarHead


class State(eqx.Module):
    """Everything training changes."""

    model: Model
    slow: ScalarHead | None  # a critic that follows the other one; None where the paper has none
    returns: ReturnScale
    optimizer: Any
    key: PRNGKeyArray
    updates: Array  # int32, applied updates
    nonfinite: Array  # int32 [2]: updates skipped in all, and in a row


class Carry(eqx.Module):
    """The policy's memory between steps: the latent, the last action, and random actions that go on."""

    latent: Latent
    action: Float[Array, "N a"]
    key: PRNGKeyArray
    held: RepeatedAction | None = None  # None: random actions are not repeated
    plan: Any = None  # what a planner remembers
