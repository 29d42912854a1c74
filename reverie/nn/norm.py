"""Normalisation over the last axis, computed in float32 whatever the compute dtype."""

from __future__ import annotations

import equinox as eqx
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float


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
        scale = self.scale.reshape((1,) * (x.ndim - 1) + self.scale.shape)
        return (x32 * (inverse * scale)).astype(x.dtype)


class NoNorm(eqx.Module):
    """`x` as it is: what the first two Dreamers have where the third has a norm."""

    def __call__(self, x: Float[Array, "*B d"]) -> Float[Array, "*B d"]:
        return x


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
        shape = (1,) * (x.ndim - 1) + self.scale.shape
        return (x32 * (inverse * self.scale.reshape(shape)) + self.offset.reshape(shape)).astype(x.dtype)


Norm = RMSNorm | LayerNorm | NoNorm
