"""Squashing functions and the two-hot code of scalars."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float


def symlog(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """`sign(x) log(1 + |x|)`: compresses large magnitudes of either sign (DreamerV3, eq. 9)."""
    return jnp.sign(x) * jnp.log1p(jnp.abs(x))


def symexp(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """Inverse of `symlog`."""
    return jnp.sign(x) * jnp.expm1(jnp.abs(x))


def symexp_bins(count: int, limit: float = 20.0) -> Float[np.ndarray, " v"]:
    """`count` bins, symmetric around zero and exponentially spaced up to `symexp(limit)` (DreamerV3, eq. 10).

    Mirrored rather than computed over the whole range, so that the two halves cancel to the last bit.
    """
    half = np.linspace(-limit, 0, count // 2 + count % 2, dtype=np.float32)
    half = np.sign(half) * np.expm1(np.abs(half))
    return np.concatenate([half, -half[: count // 2][::-1]]).astype(np.float32)


def two_hot(x: Float[Array, "*B"], bins: Float[np.ndarray, " v"]) -> Float[Array, "*B v"]:
    """Weights on the two bins next to `x`, whose weighted sum is `x`; beyond the ends all weight is on the end.

    Written as the hat function of every bin: rising from its left neighbour and falling to its right one. That is
    elementwise, where the usual search-and-scatter is not, and the same numbers.
    """
    shape = (1,) * x.ndim + (-1,)
    low, high = bins[:-1].reshape(shape), bins[1:].reshape(shape)
    gap = high - low
    column = x[..., None]
    # An even count has two bins at zero: across that empty gap all weight goes to the upper one.
    safe = np.where(gap > 0, gap, 1)
    rise = jnp.where(gap > 0, (column - low) / safe, (column >= low).astype(x.dtype))
    fall = jnp.where(gap > 0, (high - column) / safe, (column < low).astype(x.dtype))
    ones = jnp.ones((*x.shape, 1), x.dtype)
    up = jnp.concatenate([ones, rise], -1)  # of every bin, seen from its left neighbour
    down = jnp.concatenate([fall, ones], -1)
    return jnp.clip(jnp.minimum(up, down), 0, 1)
