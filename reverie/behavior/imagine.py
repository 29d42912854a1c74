"""Rollouts inside a world model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import PRNGKeyArray

from reverie.agent import WorldModel


def rollout(
    model: WorldModel,
    policy: Callable[[Any, PRNGKeyArray], Any],
    start: Any,
    horizon: int,
    key: PRNGKeyArray,
) -> tuple[Any, Any]:
    """Imagines `horizon` steps from every start state.

        latents   s0   s1   ...   sH        s0 = start
        actions   a0   a1   ...   aH        a_t chosen at s_t; aH leads nowhere, its state only closes the return

    Args:
      policy: `(latent, key) -> action`, batched like `start`.
      start: latents with a leading axis `[M, ...]`.

    Returns:
      `(latents, actions)`, time-major `[H + 1, M, ...]`: the layout the loop produces, so nothing is moved.
    """

    def step(latent: Any, key: PRNGKeyArray) -> tuple[Any, tuple[Any, Any]]:
        act_key, model_key = jax.random.split(key)
        action = policy(latent, act_key)
        return model.imagine(latent, action, model_key), (latent, action)

    keys = jax.random.split(key, horizon + 1)
    last, (latents, actions) = lax.scan(step, start, keys[:horizon])
    final = (last, policy(last, keys[horizon]))
    return jax.tree.map(lambda xs, x: jnp.concatenate([xs, x[None]], 0), (latents, actions), final)
