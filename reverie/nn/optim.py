"""The optimizer of DreamerV3: adaptive gradient clipping, then LaProp, then a learning rate with warm-up."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax


def clip_per_tensor(factor: float, floor: float = 1e-3) -> optax.GradientTransformation:
    """Adaptive gradient clipping (Brock et al. 2021) by whole tensors: |g| <= factor * max(floor, |p|)."""

    def update(grads: Any, state: Any, params: Any) -> tuple[Any, Any]:
        def clip(g: jax.Array, p: jax.Array) -> jax.Array:
            limit = factor * jnp.maximum(floor, jnp.linalg.norm(p.ravel()))
            return g / jnp.maximum(1.0, jnp.linalg.norm(g.ravel()) / limit)

        return jax.tree.map(clip, grads, params), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


def laprop(
    learning_rate: float,
    *,
    warmup: int = 1000,
    agc: float = 0.3,
    beta1: float = 0.9,
    beta2: float = 0.999,
    eps: float = 1e-20,
    floor: float = 1e-3,
) -> optax.GradientTransformation:
    """LaProp (Ziyin et al. 2020): RMS scaling first, momentum after, so that a tiny `eps` stays harmless.

    Both moments are bias-corrected. The learning rate rises linearly from 0 over `warmup` updates, so that with a
    warm-up the first update changes nothing. `agc` 0 clips nothing.
    """
    parts = [clip_per_tensor(agc, floor)] if agc else []
    rate = optax.linear_schedule(0.0, learning_rate, warmup) if warmup else learning_rate
    return optax.chain(
        *parts,
        optax.scale_by_rms(decay=beta2, eps=eps, eps_in_sqrt=False, bias_correction=True),
        optax.ema(beta1, debias=True),
        optax.scale_by_learning_rate(rate),
    )
