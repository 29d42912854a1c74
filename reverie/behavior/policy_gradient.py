"""Losses of actor and critic on imagined and on replayed steps."""

from __future__ import annotations

from collections.abc import Mapping

import jax.numpy as jnp
from jax.lax import stop_gradient
from jaxtyping import Array, Float

from reverie.nn.dists import BoundedNormal, OneHot, TwoHot


def reinforce(
    policy: Mapping[str, OneHot | BoundedNormal],
    actions: Mapping[str, Array],
    advantage: Float[Array, "*B"],
    entropy_scale: float,
) -> Float[Array, "*B"]:
    """Score-function loss with an entropy bonus, for discrete and continuous actions alike (DreamerV3, eq. 6)."""
    logp = sum(dist.logp_of(stop_gradient(actions[name])) for name, dist in policy.items())
    entropy = sum(dist.entropy() for dist in policy.values())
    return -(logp * stop_gradient(advantage) + entropy_scale * entropy)


def critic(
    value: TwoHot, target: Float[Array, "*B"], slow: Float[Array, "*B"], slow_scale: float = 1.0
) -> Float[Array, "*B"]:
    """Cross-entropy to the return, and to the slow critic's own mean, which keeps targets from running away."""
    return value.loss(target) + slow_scale * value.loss(slow)
