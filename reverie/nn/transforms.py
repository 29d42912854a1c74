"""Squashing functions and the two-hot code of scalars."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float


def symlog(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """`sign(x) log(1 + |x|)`: compresses large magnitudes of either sign (DreamerV3, eq. 9)."""
    return jnp.sign(x) * jnp.log1p(jnp.abs(x))


def symexp(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """Inverse of `symlog`."""
    return jnp.sign(x) * jnp.expm1(jnp.abs(x))


class Squash(NamedTuple):
    """A transform of targets, and its inverse for predictions."""

    to: Callable[[Array], Array]
    back: Callable[[Array], Array]


SYMLOG = Squash(symlog, symexp)
PLAIN = Squash(lambda x: x, lambda y: y)


def at_scale(center: np.ndarray, spread: np.ndarray, squash: Squash) -> Squash:
    """`squash` of `(x - center) / spread`, which have the last axes of `x`."""

    def wide(x: Array) -> tuple[np.ndarray, np.ndarray]:
        shape = (1,) * (x.ndim - center.ndim) + center.shape
        return center.reshape(shape), spread.reshape(shape)

    def to(x: Array) -> Array:
        middle, unit = wide(x)
        return squash.to((x - middle) / unit)

    def back(y: Array) -> Array:
        middle, unit = wide(y)
        return squash.back(y) * unit + middle

    return Squash(to, back)


def h(x: Float[Array, "..."], eps: float = 1e-3) -> Float[Array, "..."]:
    """`sign(x) (sqrt(|x| + 1) - 1) + eps x`: MuZero's compression of values (Pohlen et al. 2018; MuZero, App. F)."""
    return jnp.sign(x) * (jnp.sqrt(jnp.abs(x) + 1) - 1) + eps * x


def h_inverse(y: Float[Array, "..."], eps: float = 1e-3) -> Float[Array, "..."]:
    """Inverse of `h`.

    The textbook form subtracts two nearly equal numbers and divides by `2 eps`; with the difference rationalised,
    `root` is exact to float32's last digits instead of to three of them.
    """
    size = jnp.abs(y)
    # sqrt(x + 1) = root solves eps root^2 + root - (1 + eps + |y|) = 0.
    ahead = 1 + eps + size
    root = 2 * ahead / (1 + jnp.sqrt(1 + 4 * eps * ahead))
    return jnp.sign(y) * (root * root - 1)


H = Squash(h, h_inverse)


_WHITE = float(np.log1p(255.0))
# Of pixels in [0, 1]: symlog of 0 to 255, scaled back into [0, 1], so that nothing else about an image changes.
SYMLOG_PIXELS = Squash(lambda x: symlog(255.0 * x) / _WHITE, lambda y: symexp(_WHITE * y) / 255.0)


def even_bins(count: int, limit: float = 20.0) -> Float[np.ndarray, " v"]:
    """`count` equally spaced bins, symmetric around zero: for targets in symlog space (DreamerV3 of 2023), or in that
    of `h`, where MuZero has the integers from -300 to 300."""
    return np.linspace(-limit, limit, count, dtype=np.float32)


def symexp_bins(count: int, limit: float = 20.0) -> Float[np.ndarray, " v"]:
    """`count` bins, symmetric around zero and exponentially spaced up to `symexp(limit)` (DreamerV3, eq. 10).

    Mirrored rather than computed over the whole range, so that the two halves cancel to the last bit.
    """
    half = np.linspace(-limit, 0, count // 2 + count % 2, dtype=np.float32)
    half = np.sign(half) * np.expm1(np.abs(half))
    return np.concatenate([half, -half[: count // 2][::-1]]).astype(np.float32)


def two_hot(x: Float[Array, "*B"], bins: Float[np.ndarray, " v"]) -> Float[Array, "*B v"]:
    """Weights on the two bins next to `x`, whose weighted sum is `x`; beyond the ends all weight is on the end."""
    last = len(bins) - 2
    below = jnp.clip(jnp.searchsorted(bins, x, side="right").astype(jnp.int32) - 1, 0, last)
    low, high = jnp.asarray(bins)[below], jnp.asarray(bins)[below + 1]
    # Both weights by their own division: one minus the other would lose the digits of a small one.
    weight_high = jnp.clip((x - low) / (high - low), 0, 1)
    weight_low = jnp.clip((high - x) / (high - low), 0, 1)
    # Compared with every bin rather than scattered: elementwise, and fused with what reads it.
    offset = jnp.arange(len(bins)).reshape((1,) * x.ndim + (-1,)) - below[..., None]
    return jnp.where(offset == 0, weight_low[..., None], jnp.where(offset == 1, weight_high[..., None], 0.0))
