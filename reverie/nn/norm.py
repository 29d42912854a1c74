"""Normalisation over the last axis, computed in float32 whatever the compute dtype."""

from __future__ import annotations

import math
from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

MANY = 1 << 16  # rows: more than an update of vectors has


@partial(jax.custom_vjp, nondiff_argnums=(1,))
def to_rows(vector: Float[Array, " d"], shape: tuple[int, ...]) -> Float[Array, "*B d"]:
    """An array of this shape whose rows all are `vector`: a scale or a bias, one number for every unit.

    Its gradient is the sum of all rows. XLA on a CPU walks through the whole array once for every unit; where these are
    the pixels of images, a sum of rows that are 64 times as long, and then of their parts, takes a tenth to a fortieth
    of the time (docs/notebook.md). Fewer rows gain nothing, and another sum is one more to be compiled.
    """
    return jnp.broadcast_to(vector, shape)


def _sum_of_rows(shape: tuple[int, ...], _: None, x: Float[Array, "*B d"]) -> tuple[Float[Array, " d"]]:
    rows, units = math.prod(shape[:-1]), shape[-1]
    if rows < MANY:
        return (x.reshape(rows, units).sum(0),)
    together = math.gcd(rows, 64)
    return (x.reshape(rows // together, together * units).sum(0).reshape(together, units).sum(0),)


to_rows.defvjp(lambda vector, shape: (to_rows(vector, shape), None), _sum_of_rows)


class RMSNorm(eqx.Module):
    """`x / sqrt(mean(x^2) + eps) * scale` (Zhang & Sennrich 2019); DreamerV3 uses eps 1e-4 and no shift."""

    scale: Float[Array, " d"]
    eps: float = eqx.field(static=True, default=1e-4)

    def __init__(self, size: int, eps: float = 1e-4):
        self.scale = jnp.ones(size, jnp.float32)
        self.eps = eps

    def __call__(self, x: Float[Array, "*B d"]) -> Float[Array, "*B d"]:
        x32 = x.astype(jnp.float32)
        inverse = lax.rsqrt(jnp.mean(x32 * x32, -1, keepdims=True) + self.eps)
        return (x32 * (inverse * to_rows(self.scale, x.shape))).astype(x.dtype)


class LayerNorm(eqx.Module):
    """`(x - mean) / sqrt(variance + eps) * scale + offset` (Ba et al. 2016); DreamerV3 of 2023 uses eps 1e-3."""

    scale: Float[Array, " d"]
    offset: Float[Array, " d"]

    def __init__(self, size: int):
        self.scale = jnp.ones(size, jnp.float32)
        self.offset = jnp.zeros(size, jnp.float32)

    def __call__(self, x: Float[Array, "*B d"]) -> Float[Array, "*B d"]:
        x32 = x.astype(jnp.float32)
        x32 = x32 - jnp.mean(x32, -1, keepdims=True)
        inverse = lax.rsqrt(jnp.mean(x32 * x32, -1, keepdims=True) + 1e-3)
        return (x32 * (inverse * to_rows(self.scale, x.shape)) + to_rows(self.offset, x.shape)).astype(x.dtype)


Norm = RMSNorm | LayerNorm | eqx.nn.Identity  # the first two Dreamers have none
