"""Initial values of weights."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

# Standard deviation of a unit normal truncated at two: dividing by it gives back unit variance.
_TRUNCATED_STD = 0.87962566103423978

Hidden = Literal["paper", "truncated", "fan_in", "kaiming", "orthogonal"]
Output = Literal["paper", "small", "orthogonal", "zero"]


@dataclass(frozen=True, kw_only=True)
class Weights:
    """Where the weights of a Dreamer begin. Every Dreamer has these values."""

    hidden_init: Hidden = "paper"
    """Weights of hidden layers. truncated: a normal cut at two deviations, fan_in: uniform within 1 / sqrt(inputs),
    kaiming: a normal and orthogonal: an orthogonal matrix, both times the gain of the activation."""
    mean_init: Output = "paper"
    """Weights of the policy's output: logits of discrete actions, means of continuous ones. small: a hundredth;
    orthogonal: an orthogonal matrix; zero."""
    std_init: Output = "paper"
    """Weights of the policy's output for standard deviations."""
    critic_init: Output = "paper"
    """Weights of the critic's output. Over exponential bins (V3), anything but zero begins with values of tens of
    thousands, with which Pendulum is not learned in 3,000 steps."""


def truncated_normal(key: PRNGKeyArray, shape: tuple[int, ...], fan: float, scale: float = 1.0) -> Float[Array, "..."]:
    """Normal truncated at two standard deviations, with variance `scale**2 / fan`.

    `fan` is the number of inputs of a unit (DreamerV3, final version), or the mean of its inputs and outputs (2023).
    `scale` 0 gives exact zeros, which makes a head predict its neutral value before training.
    """
    if scale == 0.0:
        return jnp.zeros(shape, jnp.float32)
    std = scale / math.sqrt(fan) / _TRUNCATED_STD
    return std * jax.random.truncated_normal(key, -2.0, 2.0, shape, jnp.float32)


def drawn(kind: Hidden, key: PRNGKeyArray, shape: tuple[int, ...], fan: int, gain: float) -> Float[Array, "... i o"]:
    """Weights of units with `fan` inputs, by a rule that is not a paper's.

    Args:
      gain: for `kaiming` (He et al. 2015) and `orthogonal` (Saxe et al. 2014), which keep the mean square of units from
        layer to layer: that of the activation (`GAINS`). The other two know of no activation.
    """
    if kind == "fan_in":
        return jax.random.uniform(key, shape, jnp.float32, -1 / math.sqrt(fan), 1 / math.sqrt(fan))
    if kind == "kaiming":
        return gain / math.sqrt(fan) * jax.random.normal(key, shape, jnp.float32)
    if kind == "orthogonal" and len(shape) == 3:  # every block of a block-diagonal matrix
        return jax.vmap(lambda k: drawn(kind, k, shape[1:], fan, gain))(jax.random.split(key, shape[0]))
    if kind == "orthogonal":
        return jax.nn.initializers.orthogonal(gain)(key, shape, jnp.float32)
    return truncated_normal(key, shape, fan)
