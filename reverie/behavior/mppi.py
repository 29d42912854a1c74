"""Planning continuous actions inside a world model: model predictive path integral control (MPPI).

Sequences of actions are drawn around a plan and around what the policy would do, imagined, and judged by the rewards on
the way and the value at the end; the plan moves to the best of them, weighted by how good they are, a few times over
(Williams et al. 2015, arXiv 1509.01149; with a learned model and value, and the policy among the candidates, Hansen et
al. 2022, arXiv 2203.04955). The next step begins with this plan, moved on by one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, PRNGKeyArray

ITERATIONS = 6
ELITES = 8  # one sequence in so many moves the plan
POLICY_SHARE = 16  # one in so many is the policy's own
TEMPERATURE = 0.5  # of the weights of the elites, whose returns are spread from 0 to 1
WIDEST, NARROWEST = 1.0, 0.05  # standard deviations of an action


class Plan(NamedTuple):
    """A sequence of actions in [-1, 1] for each of N envs, as a distribution."""

    mean: Float[Array, "N h a"]
    std: Float[Array, "N h a"]
    value: Float[Array, " N"]  # of the best sequence

    def moved_on(self) -> Float[Array, "N h a"]:
        """The first guess of the next step: the rest of the plan, and zeros for its last step."""
        return jnp.concatenate([self.mean[:, 1:], jnp.zeros_like(self.mean[:, :1])], 1)


def mppi(
    imagine: Callable[[Any, Float[Array, "M a"], PRNGKeyArray], Any],
    predict: Callable[[Any], tuple[Array, Array]],
    policy: Callable[[Any, PRNGKeyArray], Float[Array, "M a"]],
    value: Callable[[Any], Float[Array, " M"]],
    latent: Any,
    mean: Float[Array, "N h a"],
    key: PRNGKeyArray,
    *,
    samples: int,
) -> Plan:
    """Plans from `latent`, `[N, ...]`.

    Args:
      imagine, predict: the model's, of flat actions: the next latent; reward and discount of a latent's own step.
      policy: flat actions, for the sequences that it guides.
      value: of latents.
      mean: the plan to begin with, of H steps.
      samples: sequences that are imagined in each iteration.
    """
    envs, steps, width = mean.shape
    from_policy, elites = max(1, samples // POLICY_SHARE), max(1, samples // ELITES)
    guide_key, judge_key, key = jax.random.split(key, 3)
    spread = lambda x, count: jax.tree.map(lambda x: jnp.repeat(x, count, 0), x)

    def follow(latent: Any, key: PRNGKeyArray) -> tuple[Any, Array]:
        act_key, step_key = jax.random.split(key)
        action = jnp.clip(policy(latent, act_key), -1, 1)
        return imagine(latent, action, step_key), action

    _, own = lax.scan(follow, spread(latent, from_policy), jax.random.split(guide_key, steps))
    own = jnp.moveaxis(own.reshape(steps, envs, from_policy, width), 0, 2)  # [N, G, H, A]
    # All sequences of all iterations meet the same chance: what differs between them is what was done.
    chances = jax.random.split(judge_key, steps)

    def judge_plans(actions: Float[Array, "N s h a"]) -> Float[Array, "N s"]:
        """Return of every sequence."""
        flat = jnp.moveaxis(actions.reshape(-1, steps, width), 1, 0)

        def step(carry: tuple[Any, Array, Array], xs: tuple[Array, Array]) -> tuple[tuple[Any, Array, Array], None]:
            latent, total, weight = carry
            latent = imagine(latent, *xs)
            reward, discount = predict(latent)
            return (latent, total + weight * reward, weight * discount), None

        start = (spread(latent, samples), jnp.zeros(len(flat[0])), jnp.ones(len(flat[0])))
        (last, total, weight), _ = lax.scan(step, start, (flat, chances))
        return (total + weight * value(last)).reshape(envs, samples)

    def iterate(plan: Plan, key: PRNGKeyArray) -> tuple[Plan, None]:
        noise = jax.random.normal(key, (envs, samples - from_policy, steps, width))
        drawn = jnp.clip(plan.mean[:, None] + plan.std[:, None] * noise, -1, 1)
        actions = jnp.concatenate([own, drawn], 1)
        best, at = lax.top_k(judge_plans(actions), elites)
        chosen = jnp.take_along_axis(actions, at[..., None, None], 1)
        range_ = jnp.maximum(best[:, :1] - best[:, -1:], 1e-6)
        weight = jax.nn.softmax((best - best[:, :1]) / range_ / TEMPERATURE, -1)[..., None, None]
        mean = (weight * chosen).sum(1)
        std = jnp.sqrt((weight * jnp.square(chosen - mean[:, None])).sum(1))
        return Plan(mean, jnp.clip(std, NARROWEST, WIDEST), best[:, 0]), None

    begin = Plan(mean, jnp.full_like(mean, WIDEST), jnp.zeros(envs))
    plan, _ = lax.scan(iterate, begin, jax.random.split(key, ITERATIONS))
    return plan
