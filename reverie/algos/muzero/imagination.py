"""Actor-critic inside MuZero's model: what policy and value learn where nothing searches."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax.lax import stop_gradient
from jaxtyping import Array, Float, PRNGKeyArray

from reverie.agent import Metrics
from reverie.algos.muzero.model import Model
from reverie.behavior.actor_critic import actor
from reverie.behavior.imagine import rollout, trajectory
from reverie.behavior.returns import ReturnScale, Window
from reverie.model.unroll import Hidden


def imagination_losses(
    agent: Any, model: Model, states: Hidden, window: Window, key: PRNGKeyArray
) -> tuple[dict[str, tuple[float, Float[Array, "B k"]]], Metrics]:
    """Losses of policy and value, in place of those of a search, from playing on inside the model; and metrics.

        state      s0   s1   ...   sH        s0: any of the K + 1 states of the unroll, the root among them
        action     a0   a1   ...   (aH)      a_t ~ policy(s_t)
        reward          r1   ...   rH
        return     R0   R1   ...             lambda-returns; sH only bootstraps
        advantage  R_t - v_t, over the range of the batch's returns from the 5th to the 95th percentile, at least 1

    The model is data here: it learns from what really happened alone, and the value from both. Where the world ends
    the model goes on, with rewards and values that it learned to be 0. The losses are means over H steps, and
    stand where they began.
    """
    config, frozen = agent.config, stop_gradient(model)
    starts = jax.tree.map(lambda x: stop_gradient(x).reshape(-1, *x.shape[2:]), states)

    def act(latent: Hidden, key: PRNGKeyArray) -> Array:
        policy, _ = frozen.judge(latent, frozen.legal(latent))
        return policy.sample(key).reshape(latent.reward.shape)

    latent, action = rollout(frozen, act, starts, config.imagination, key)
    ahead = trajectory(latent, action, *frozen.predict(latent), frozen.value(latent).pred(), lam=config.imagined_lam)
    feat = frozen.body.read(ahead.latent.state)[:-1]
    legal = jax.tree.map(lambda x: x[:-1], frozen.legal(ahead.latent, ahead.action))
    policy, value, target = model.pol(feat, legal), model.val(feat), ahead.target
    spread = ReturnScale().update(target, rate=1.0).scale()
    advantage = (target - ahead.value[:-1]) / spread
    taken = ahead.action[:-1].reshape(*target.shape, *agent.act_space[agent.action].shape)
    acting = actor(policy, {agent.action: taken}, advantage, config.entropy)
    real = window.real.astype(jnp.float32)
    begun = lambda x: real * x.mean(0).reshape(real.shape)
    metrics = {
        "imagined/return": target.mean(),
        "imagined/reward": ahead.reward[1:].mean(),
        "imagined/value": ahead.value.mean(),
        "policy/return_scale": spread,
        "policy/advantage": jnp.abs(advantage).mean(),
    }
    return {
        "policy": (config.chosen().policy_scale, begun(acting)),
        "imagined_value": (config.value_scale, begun(value.loss(target))),
    }, metrics
