"""Random actions that lead somewhere: each is repeated for a while.

Actions drawn anew at every step cancel out. A pendulum that nobody pushes twice in the same direction never swings up,
and a walker on a grid stays where it is. Repeated actions find such rewards by the dozen (temporally extended
exploration: Dabney, Ostrovski & Barreto, arXiv 2006.01782). How long is long enough nobody knows beforehand, so every
episode has a length of its own: 1, 2, 4, ... steps at most, all equally likely.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int, PRNGKeyArray

from reverie.fields import Share, Within


@dataclass(frozen=True, kw_only=True)
class Exploration:
    """Random actions in training. Every algorithm has these values."""

    random_moves: Share = 0.0
    """Share of the actions in training that are drawn evenly from what is legal. In a game that two good players always
    play alike, this is how other positions are seen; in a task whose reward is hard to find, how it is found again."""
    hold: Annotated[int, Within(1, 2**16)] = 1
    """Longest repetition of a random action, warm-up included. Every episode draws its own bound from 1, 2, 4, ... up
    to this, and every random action a number of steps up to that bound. 1: no repetition."""


class RepeatedAction(eqx.Module):
    """The random actions that are being repeated, of N envs."""

    action: dict[str, Array]  # as the env takes it, `[N, ...]`
    left: Int[Array, " N"]  # further steps for which it is taken
    bound: Int[Array, " N"]  # most steps of a random action in this episode


def unheld(action: dict[str, Array]) -> RepeatedAction:
    """Nothing is being repeated. `action`: of the shapes that will be, `[N, ...]`."""
    none = jnp.zeros(len(next(iter(action.values()))), jnp.int32)
    return RepeatedAction(action, none, jnp.ones_like(none))


def explore(
    values: Exploration,
    held: RepeatedAction,
    chosen: dict[str, Array],
    drawn: dict[str, Array],
    first: Bool[Array, " N"],
    key: PRNGKeyArray,
    share: float,
    may_act: Bool[Array, " N"] | None = None,
) -> tuple[RepeatedAction, dict[str, Array]]:
    """The actions taken: the chosen ones, or random ones, begun now or before.

    Args:
      chosen, drawn: what the policy would do, and fresh random actions, `[N, ...]`.
      first: an episode begins; what was being repeated in the one before is not.
      share: of all steps that random actions take up; 1 in warm-up.
      may_act: whether the repeated action may be taken now. None: it always may.
    """
    bound_key, begin_key, length_key = jax.random.split(key, 3)
    powers = 1 + int(math.log2(values.hold))
    bound = jnp.where(first, 2 ** jax.random.randint(bound_key, held.bound.shape, 0, powers), held.bound)
    going = (held.left > 0) & ~first
    if may_act is not None:
        going &= may_act
    mean = (bound + 1) / 2  # steps of a random action
    begin = ~going & jax.random.bernoulli(begin_key, share / (share + (1 - share) * mean))
    length = jax.random.randint(length_key, bound.shape, 1, bound + 1)
    left = jnp.where(going, held.left - 1, jnp.where(begin, length - 1, 0))

    def each(before: Array, chosen: Array, drawn: Array) -> Array:
        over = lambda mask: mask.reshape(-1, *[1] * (chosen.ndim - 1))
        return jnp.where(over(going), before, jnp.where(over(begin), drawn, chosen))

    action = {k: each(held.action[k], chosen[k], drawn[k]) for k in chosen}
    return RepeatedAction(action, left, bound), action
