"""The optimizers: LaProp behind adaptive gradient clipping (DreamerV3, final version), Adam for each part (before)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Int

S = TypeVar("S", bound=Any)
Row = dict[str, Array]


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


def finite(tree: Any) -> Bool[Array, ""]:
    """Whether every number of a tree is."""
    floats = [x for x in jax.tree.leaves(tree) if jnp.issubdtype(x.dtype, jnp.inexact)]
    return jnp.stack([jnp.array(True), *(jnp.isfinite(x).all() for x in floats)]).all()


def guarded(sound: Bool[Array, ""], old: S, new: S, out: Row, stored: Row) -> tuple[S, Row, Row]:
    """The guarded result of an update: nothing that is not finite may reach the state or replay, since one poisoned
    batch must not destroy a run. If anything was not, all is kept as it was, bit for bit, but for the counters. Decided
    on the device, without asking the host.

    Args:
      sound: whether the loss, its gradient and all else that the state gets from the batch are finite. Parameters
        and the optimizer's moments are if the gradient is; to look at each of them as well would double the time of a
        small update. A checkpoint is looked at as a whole.
      old, new: states before and after, with a field `nonfinite`, int32 [2]: updates skipped in all, and in a row.
      out, stored: what is to be written to replay, which is looked at here, and what stands there; of the same shapes.

    Returns:
      the state, what to write, and the counters as metrics.
    """
    sound &= finite(out)
    total, streak = old.nonfinite
    counts = jnp.where(sound, jnp.stack([total, 0 * streak]), old.nonfinite + 1)
    new, out = jax.tree.map(lambda n, o: jnp.where(sound, n, o), (new, out), (old, stored))
    new = eqx.tree_at(lambda s: s.nonfinite, new, counts)
    return new, out, {"nonfinite/total": counts[0], "nonfinite/streak": counts[1]}
