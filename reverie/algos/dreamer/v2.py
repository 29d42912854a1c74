"""DreamerV2 (Hafner et al., "Mastering Atari with Discrete World Models", 2021; arXiv 2010.02193).

What differs from DreamerV1: the random variables are categorical, with straight-through gradients; the KL is balanced,
so that the prior moves faster towards the posterior than the other way round; a slow copy of the critic gives the
targets; and discrete actions learn from the score function, or from a mixture of both gradients.

Values and networks follow danijar/dreamerv2@07d906e. Initial weights are truncated normals with Glorot's variance.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import jax
import jax.numpy as jnp
from jax.lax import stop_gradient
from jaxtyping import Array, Float, PRNGKeyArray

from reverie.algos.dreamer.agent import BehaviorLoss, behavior_metrics
from reverie.algos.dreamer.v1 import DreamerV1Model, HeadLayers, Paper, Values
from reverie.algos.dreamer.world import Model, Posterior, State
from reverie.behavior.actor_critic import actor
from reverie.envs.base import Spaces
from reverie.fields import Count, Layers, Positive, Share, Weight, Width, Within
from reverie.model.dynamics import features
from reverie.model.heads import ScalarHead
from reverie.model.stoch import Categorical
from reverie.nn.layers import Style

STOCH = 32  # categorical variables


@dataclass(frozen=True)
class Config(Values):
    """The values of the paper's default; `atari` and `dmc-vision` are presets."""

    # DreamerV1's, with other defaults.
    deter: Width = 1024
    hidden: Width = 1024
    depth: Annotated[int, Within(1, 2**12)] = 48
    free_nats: Weight = 0.0
    learning_rate: Positive = 1e-4
    critic_learning_rate: Positive = 2e-4

    classes: Annotated[int, Within(2, 2**16)] = 32
    """Classes of each of the 32 categorical variables."""
    layers: Layers = 4
    """Layers of all heads, and of what reads and writes vectors and discrete values."""
    norm: Literal["none", "layer"] = "none"
    """Normalisation of all hidden layers (Crafter: layer); the gates of the GRU always have a LayerNorm."""

    kl_balance: Share = 0.8
    """Share of the KL's gradient that moves the prior to the posterior; the rest moves the posterior."""
    discount_scale: Weight = 1.0
    """Weight of the head that predicts the discount. 0: there is none, and the world always goes on."""
    reward_squash: Literal["none", "tanh"] = "none"
    """Squashing of rewards before anything learns from them."""

    actor_gradient: Literal["auto", "reinforce", "dynamics", "both"] = "auto"
    """The score function, the gradient of the return through the model, or both (see --actor-mix); auto: the first for
    discrete actions, the second for continuous ones."""
    actor_mix: Share = 0.1
    """both: share of the gradient through the model."""
    entropy: Weight = 2e-3
    """Weight of the policy's entropy."""
    slow_every: Count = 100
    """Updates after which the critic is copied into the one that gives the targets."""
    decay: Share = 1e-6
    """Share of every parameter that is lost at each update."""


class DreamerV2(DreamerV1Model):
    def __init__(self, config: Config, obs_space: Spaces, act_space: Spaces, precision: str):
        paper = Paper(
            stoch=STOCH,
            kind=Categorical(config.classes, unimix=0.0),
            recurrence="dense",
            style=Style(config.norm, fan="average", act="elu", init=config.hidden_init),
            image_act="elu",
            layers=HeadLayers(*[config.layers] * 5),
            continuous="truncated",
            kl_shares=(config.kl_balance, 1 - config.kl_balance),
            continue_scale=config.discount_scale,
            eps=1e-5,
            decay=config.decay,
        )
        super().__init__(config, obs_space, act_space, precision, paper)
        everything = frozenset(act_space)
        self.differentiable = {
            "auto": frozenset(name for name, space in act_space.items() if space.kind == "vector"),
            "reinforce": frozenset(),
            "dynamics": everything,
            "both": everything,
        }[config.actor_gradient]

    def target_critic(self, model: Model, slow: ScalarHead | None, updates: Array) -> ScalarHead:
        """A copy of the critic, renewed now and then."""
        if slow is None:
            return jax.tree.map(jnp.copy, model.val)
        due = updates % self.config.slow_every == 0
        return jax.tree.map(lambda new, old: jnp.where(due, new, old), model.val, slow)

    def transform_reward(self, reward: Float[Array, "*B"]) -> Float[Array, "*B"]:
        return jnp.tanh(reward) if self.config.reward_squash == "tanh" else reward

    def behavior_loss(self, model: Model, state: State, post: Posterior, key: PRNGKeyArray) -> BehaviorLoss:
        """Actor (eq. 6) and critic (eq. 5); both look at returns that the target critic closes (eq. 4)."""
        config = self.config
        assert state.slow is not None
        imagined = self.imagine(model, state.slow, post, post.alive.ravel(), key)
        feat, action = stop_gradient((features(imagined.latent), imagined.action))
        legal = model.legal(feat, action)
        feat, action, legal = jax.tree.map(lambda x: x[:-1], (feat, action, legal))
        policy = model.policy(feat, legal)
        advantage = imagined.target - stop_gradient(imagined.value[:-1])
        mix = config.actor_mix if config.actor_gradient == "both" else 1.0
        weight = imagined.weight[:-1]
        losses = {
            "policy": weight * actor(policy, action, advantage, config.entropy, self.differentiable, mix),
            "value": weight * model.val(feat).loss(imagined.target),
        }
        return losses, state.returns, behavior_metrics(policy, **imagined.figures())


make_agent = DreamerV2
