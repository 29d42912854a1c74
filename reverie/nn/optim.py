"""The optimizers: LaProp behind adaptive gradient clipping (DreamerV3, final version), Adam for each part (before)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int


class LaPropState(NamedTuple):
    """Moments of the gradient, shaped like the parameters, and the number of updates made."""

    updates: Int[Array, ""]
    mean: Any
    square: Any


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
    """LaProp (Ziyin et al. 2020) behind adaptive gradient clipping (Brock et al. 2021), as in DreamerV3.

    RMS scaling comes first and momentum after it, so that a tiny `eps` stays harmless. Both moments are
    bias-corrected. The learning rate rises linearly from 0 over `warmup` updates: with a warm-up the first
    update changes nothing. Gradients are clipped by whole tensors, `|g| <= agc * max(floor, |p|)`; `agc` 0 clips
    nothing.
    """

    def init(params: Any) -> LaPropState:
        zeros = lambda: jax.tree.map(jnp.zeros_like, params)  # anew for each: training donates both
        return LaPropState(jnp.zeros((), jnp.int32), zeros(), zeros())

    def update(grads: Any, state: LaPropState, params: Any) -> tuple[Any, LaPropState]:
        count = state.updates + 1
        # One minus a power, without the cancellation that would cost three digits in the first updates.
        bias1 = -jnp.expm1(count * math.log(beta1))
        bias2 = -jnp.expm1(count * math.log(beta2))
        rate = learning_rate * jnp.minimum(1.0, state.updates / warmup) if warmup else learning_rate

        if agc:
            grads = clip_per_tensor(grads, params, agc, floor)
        square = jax.tree.map(lambda v, g: beta2 * v + (1 - beta2) * g * g, state.square, grads)
        scaled = jax.tree.map(lambda v, g: g / (jnp.sqrt(v / bias2) + eps), square, grads)
        mean = jax.tree.map(lambda m, g: beta1 * m + (1 - beta1) * g, state.mean, scaled)
        changes = jax.tree.map(lambda m: -rate * m / bias1, mean)
        return changes, LaPropState(count, mean, square)

    return optax.GradientTransformation(init, update)


def adam(
    learning_rate: float, *, eps: float = 1e-8, clip: float = 0.0, warmup: int = 0, decay: float = 0.0
) -> optax.GradientTransformation:
    """Adam (Kingma & Ba 2015) behind a bound on the norm of the whole gradient; `clip` 0 bounds nothing.

    The learning rate rises linearly from 0 over `warmup` updates. `decay`: share of every parameter that is
    lost at each update, whatever the learning rate.
    """
    rate = optax.linear_schedule(0.0, learning_rate, warmup) if warmup else learning_rate
    return optax.chain(
        optax.clip_by_global_norm(clip) if clip else optax.identity(),
        optax.adam(rate, eps=eps),
        optax.add_decayed_weights(-decay) if decay else optax.identity(),
    )


def each(
    optimizers: Mapping[str, optax.GradientTransformation], part_of: Callable[[str], str]
) -> optax.GradientTransformation:
    """An optimizer of its own for every part of the parameters, norms included.

    Args:
      part_of: the key in `optimizers` of a parameter below this first name (field or key) of the tree.
    """

    def labels(params: Any) -> Any:
        first = lambda path: jax.tree_util.keystr(path[:1], simple=True)
        return jax.tree_util.tree_map_with_path(lambda path, _: part_of(first(path)), params)

    return optax.multi_transform(optimizers, labels)


def clip_per_tensor(grads: Any, params: Any, factor: float, floor: float = 1e-3) -> Any:
    """Scales every tensor of `grads` down to a norm of at most `factor * max(floor, norm of the parameter)`."""

    def clip(g: Array, p: Array) -> Array:
        limit = factor * jnp.maximum(floor, jnp.linalg.norm(p.ravel()))
        return g / jnp.maximum(1.0, jnp.linalg.norm(g.ravel()) / limit)

    return jax.tree.map(clip, grads, params)


def keep(finite: Array, new: Any, old: Any) -> Any:
    """`new` if an update was finite, else `old`, bit for bit: decided on the device, without asking the host."""
    return jax.tree.map(lambda n, o: jnp.where(finite, n, o), new, old)


def count_nonfinite(counts: Int[Array, "2"], finite: Array) -> Int[Array, "2"]:
    """Updates that were skipped in all, and in a row."""
    total, streak = counts
    return jnp.where(finite, jnp.stack([total, 0 * streak]), counts + 1)
