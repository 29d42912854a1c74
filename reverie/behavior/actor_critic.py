"""Losses of actor and critic on imagined and on replayed steps."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import jax.numpy as jnp
from jax.lax import stop_gradient
from jaxtyping import Array, Float

from reverie.behavior.imagine import Trajectory
from reverie.behavior.returns import ReturnScale, lambda_return
from reverie.nn.dists import Action, SquaredError, TwoHot


def actor(
    policy: Mapping[str, Action],
    actions: Mapping[str, Array],
    advantage: Float[Array, "*B"],
    entropy_scale: float,
    differentiable: frozenset[str] = frozenset(),
    mix: float = 1.0,
) -> Float[Array, "*B"]:
    """The policy's loss, with an entropy bonus.

    By default the score-function estimate (REINFORCE, DreamerV3, eq. 6), for discrete and continuous actions alike.
    `advantage` has a gradient by the actions named in `differentiable`: these follow it instead; or, with a `mix` below
    one, that share of it and for the rest the score (DreamerV2, eq. 6).
    """
    shares = {name: 1 - mix if name in differentiable else 1.0 for name in policy}
    terms = [(dist, actions[name], shares[name]) for name, dist in policy.items() if shares[name]]
    logp = sum(share * dist.logp_of(stop_gradient(action)) for dist, action, share in terms)
    entropy = sum(dist.entropy() for dist in policy.values())
    gain = logp * stop_gradient(advantage)
    if differentiable:
        gain += mix * advantage
    return -(gain + entropy_scale * entropy)


def critic(value: TwoHot | SquaredError, target: Float[Array, "*B"], slow: Float[Array, "*B"]) -> Float[Array, "*B"]:
    """Distance to the return, and to the slow critic's own mean, which keeps targets from running away."""
    return value.loss(target) + value.loss(slow)


def log_probability(policy: Mapping[str, Action], actions: Mapping[str, Array]) -> Float[Array, "..."]:
    """Log-probability of all actions together, in nats, without a gradient by the actions."""
    return jnp.sum(jnp.stack([dist.logp_of(stop_gradient(actions[name])) for name, dist in policy.items()]), 0)


def clipped_surrogate(
    logp: Float[Array, "*B"], before: Float[Array, "*B"], advantage: Float[Array, "*B"], clip: float
) -> Float[Array, "*B"]:
    """PPO's loss of a policy on actions of an older one (Schulman et al. 2017, eq. 7; here to be minimised).

    With r = exp(logp - before) it is `-min(r A, clip(r, 1 - clip, 1 + clip) A)`: once an action is `clip` more likely
    than it was and that is good, or less likely and that is bad, it gains nothing more and has no gradient. At r = 1
    the gradient is that of the score function.

    Args:
      logp, before: log-probability of what was done, now and when it was done.
      advantage: of what was done; no gradient flows into it.
    """
    ratio, advantage = jnp.exp(logp - stop_gradient(before)), stop_gradient(advantage)
    return -jnp.minimum(ratio * advantage, jnp.clip(ratio, 1 - clip, 1 + clip) * advantage)


def clipped_value_loss(
    value: TwoHot | SquaredError, target: Float[Array, "*B"], before: Float[Array, "*B"], limit: float | Array
) -> Float[Array, "*B"]:
    """The critic's loss, without a gradient where its mean has gone `limit` or more from what it said `before`, and
    would be further from the target had it stopped there: the same trust region as that of the policy.

    For squared errors this has the gradient of `max((v - R)^2, (clip(v, v_old - limit, v_old + limit) - R)^2)`, as
    PPO's reference code (openai/baselines, ppo2) clips values. A two-hot code has no such maximum; where its mean may
    not go, it has no gradient either.
    """
    mean, target = stop_gradient(value.pred()), stop_gradient(target)
    clipped_mean = jnp.clip(mean, before - limit, before + limit)
    loss = value.loss(target)
    return jnp.where(jnp.abs(clipped_mean - target) > jnp.abs(mean - target), stop_gradient(loss), loss)


class ActorCritic(NamedTuple):
    """Losses of an imagined trajectory, time-major `[H, M]`, and what they are made of."""

    actor: Float[Array, "H M"]
    critic: Float[Array, "H M"]
    advantage: Float[Array, "H M"]


def actor_critic_losses(
    policy: Mapping[str, Action],
    value: TwoHot | SquaredError,
    target_value: Float[Array, "H1 M"],
    imagined: Trajectory,
    weight: Float[Array, "H1 M"],
    returns: ReturnScale,
    *,
    entropy: float,
    rate: float = 0.01,
    differentiable: frozenset[str] = frozenset(),
) -> tuple[ActorCritic, ReturnScale]:
    """Actor and critic losses on imagined trajectories (DreamerV3, eqs. 5-7).

    Args:
      policy, value: distributions of the features of all states, `[H + 1, M]`.
      target_value: the target critic's mean.
      weight: of each state's losses.
      returns: the running scale; it is moved before it is used.
      differentiable: the actions that follow the trajectory's own gradient (DreamerV1, section 3).
    """
    returns = returns.update(imagined.target, rate)
    advantage = (imagined.target - imagined.value[:-1]) / returns.scale()
    # The last state has no target: its losses are computed along with the others and dropped.
    pad = lambda x: jnp.concatenate([x, jnp.zeros_like(x[:1])], 0)
    acting = (weight * actor(policy, imagined.action, pad(advantage), entropy, differentiable))[:-1]
    valuing = (weight * critic(value, pad(imagined.target), target_value))[:-1]
    return ActorCritic(acting, valuing, advantage), returns


def replayed_value_loss(
    value: TwoHot | SquaredError,
    slow: Float[Array, "B T"],
    reward: Float[Array, "B T"],
    discount: Float[Array, "B T"],
    last: Float[Array, "B T"],
    bootstrap: Float[Array, "B T"],
    *,
    lam: float,
) -> tuple[Float[Array, "B T-1"], Float[Array, "B T-1"]]:
    """The critic's loss on what really happened, and its targets.

    Returns are built from replayed rewards and bootstrapped with imagined ones. A row with `last` bootstraps and
    carries no loss: the row that follows it belongs to another episode.

    Args:
      discount: gamma, 0 where the row is terminal.
      last: 1 where the episode ends, for any reason.
      bootstrap: the return imagined from each row.
    """
    target = lambda_return(reward, discount, lam * (1 - last), bootstrap)
    whole = jnp.concatenate([target, jnp.zeros_like(target[:, :1])], 1)
    return ((1 - last) * critic(value, whole, slow))[:, :-1], target
