"""Imagined trajectories: what comes of acting inside a world model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, PRNGKeyArray

from reverie.agent import WorldModel
from reverie.behavior.returns import lambda_return


class Trajectory(NamedTuple):
    """Imagined trajectories and their returns, time-major; `H1` is `H + 1`.

        latent      s0   s1   ...   sH       s0 is a replayed state
        action      a0   a1   ...   (aH)     a_t chosen at s_t; aH leads nowhere
        reward      .    r1   ...   rH       predicted from s_t, gained by a_{t-1}
        discount    .    d1   ...   dH       gamma times the chance that s_t is not the end
        value       v0   v1   ...   vH       what the critic says of s_t
        target      R0   R1   ...   .        lambda-returns of s_t; sH only bootstraps
        weight      w0   w0d1 ...            how likely the trajectory is to get this far, without a gradient

    Where the actions carry a gradient, so do reward, discount, value and target.
    """

    latent: Any
    action: Any
    reward: Float[Array, "H1 M"]
    discount: Float[Array, "H1 M"]
    value: Float[Array, "H1 M"]
    target: Float[Array, "H M"]
    weight: Float[Array, "H1 M"]

    def figures(self) -> dict[str, Array]:
        """Metrics of the trajectory; `length` is steps, `[M]`."""
        names = {"return": self.target, "reward": self.reward, "value": self.value, "discount": self.discount}
        return names | {"length": self.weight[:-1].sum(0)}


def trajectory(
    latent: Any,
    action: Any,
    reward: Float[Array, "H1 M"],
    discount: Float[Array, "H1 M"],
    value: Float[Array, "H1 M"],
    *,
    lam: float,
    first: Float[Array, " M"] | None = None,
) -> Trajectory:
    """The worth of a `rollout` (DreamerV3, eq. 4).

    Args:
      reward, discount: predicted of the latents' own steps, and `value` of the latents.
      lam: lambda of the returns.
      first: w0, the weight of the start state. None: d0, as the model predicts it.
    """
    target = lambda_return(reward.T, discount.T, jnp.full_like(value.T, lam), value.T).T
    chances = discount if first is None else discount.at[0].set(first)
    weight = lax.stop_gradient(jnp.cumprod(chances, 0))
    return Trajectory(latent, action, reward, discount, value, target, weight)


def rollout(
    model: WorldModel, policy: Callable[[Any, PRNGKeyArray], Any], start: Any, horizon: int, key: PRNGKeyArray
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
