"""Initial values of weights."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

# Standard deviation of a unit normal truncated at two: dividing by it gives back unit variance.
_TRUNCATED_STD = 0.87962566103423978


def truncated_normal(key: PRNGKeyArray, shape: tuple[int, ...], fan: float, scale: float = 1.0) -> Float[Array, "..."]:
    """Normal truncated at two standard deviations, with variance `scale**2 / fan`.

    `fan` is the number of inputs of a unit (DreamerV3, final version), or the mean of its inputs and outputs (2023).
    `scale` 0 gives exact zeros, which makes a head predict its neutral value before training.
    """
    if scale == 0.0:
        return jnp.zeros(shape, jnp.float32)
    std = scale / math.sqrt(fan) / _TRUNCATED_STD
    return std * jax.random.truncated_normal(key, -2.0, 2.0, shape, jnp.float32)
