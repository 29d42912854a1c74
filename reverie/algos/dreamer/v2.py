"""DreamerV2 (Hafner et al., "Mastering Atari with Discrete World Models", 2021; arXiv 2010.02193).

What differs from DreamerV1: the random variables are categorical, with straight-through gradients; the KL is balanced,
so that the prior moves faster towards the posterior than the other way round; a slow copy of the critic gives the
targets; and discrete actions learn from the score function, or from a mixture of both gradients.

Values and networks follow danijar/dreamerv2@07d906e. Initial weights are truncated normals with Glorot's variance.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

import jax
import jax.numpy as jnp
from jax.lax import stop_gradient
from jaxtyping import Array, Float, PRNGKeyArray

from reverie.agent import Metrics, Row
from reverie.algos.dreamer.agent import Dreamer, behavior_metrics, in_parts
from reverie.algos.dreamer.planning import Improvement
from reverie.algos.dreamer.world import (
    Model,
    Posterior,
    divergences,
    free_nats_of_mean,
    latent_metrics,
    legal_head,
    prediction_losses,
)
from reverie.behavior.actor_critic import actor
from reverie.behavior.explore import Exploration
from reverie.behavior.returns import ReturnScale
from reverie.envs.base import Spaces
from reverie.fields import Count, Layers, Positive, Share, Weight, Width, Within
from reverie.model.canvas import INSIDE
from reverie.model.decode import Decoder
from reverie.model.dynamics import Dynamics, features
from reverie.model.encode import Encoder, width
from reverie.model.heads import FlagHead, PolicyHead, ScalarHead
from reverie.model.rssm import RSSM
from reverie.model.stoch import Categorical
from reverie.nn.init import Weights
from reverie.nn.layers import Style
from reverie.nn.optim import adam

STOCH = 32  # categorical variables


@dataclass(frozen=True)
class Config(Improvement, Exploration, Weights):
    """The values of the paper's default; `atari` and `dmc-vision` are presets."""

    deter: Width = 1024
    """Units of the GRU."""
    classes: Annotated[int, Within(2, 2**16)] = 32
    """Classes of each of the 32 categorical variables."""
    hidden: Width = 1024
    """Width of the layers around the GRU."""
    units: Width = 400
    """Width of all heads."""
    layers: Layers = 4
    """Layers of all heads, and of what reads and writes vectors and discrete values."""
    depth: Annotated[int, Within(1, 2**12)] = 48
    """Channels of the first convolution; the others double them."""
    norm: Literal["none", "layer"] = "none"
    """Normalisation of all hidden layers (Crafter: layer); the gates of the GRU always have a LayerNorm."""

    kl_scale: Weight = 1.0
    """Weight of the KL."""
    kl_balance: Share = 0.8
    """Share of the KL's gradient that moves the prior to the posterior; the rest moves the posterior."""
    free_nats: Weight = 0.0
    """KL of the mean over the batch below which it costs nothing."""
    discount_scale: Weight = 1.0
    """Weight of the head that predicts the discount. 0: there is none, and the world always goes on."""
    reward_squash: Literal["none", "tanh"] = "none"
    """Squashing of rewards before anything learns from them."""

    imagination: Annotated[int, Within(1, 2**12)] = 15
    """Imagined steps from every replayed state."""
    gamma: Share = 0.99
    """Discount of one step."""
    lam: Share = 0.95
    """Lambda of the returns: 0 trusts the critic, 1 the imagined rewards."""
    actor_gradient: Literal["auto", "reinforce", "dynamics", "both"] = "auto"
    """The score function, the gradient of the return through the model, or both (see --actor-mix); auto: the first for
    discrete actions, the second for continuous ones."""
    actor_mix: Share = 0.1
    """both: share of the gradient through the model."""
    entropy: Weight = 2e-3
    """Weight of the policy's entropy."""
    slow_every: Count = 100
    """Updates after which the critic is copied into the one that gives the targets."""

    learning_rate: Positive = 1e-4
    """Step size of the world model."""
    actor_learning_rate: Positive = 8e-5
    """Step size of the actor."""
    critic_learning_rate: Positive = 2e-4
    """Step size of the critic."""
    clip: Weight = 100.0
    """Largest gradient norm of each of the three. 0 clips nothing."""
    decay: Share = 1e-6
    """Share of every parameter that is lost at each update."""


class DreamerV2(Dreamer):
    """The `Agent`."""

    def __init__(self, config: Config, obs_space: Spaces, act_space: Spaces, precision: str):
        scales = {
            "dynamics": config.kl_scale * config.kl_balance,
            "representation": config.kl_scale * (1 - config.kl_balance),
            # The likelihood of normals with a variance of one: half of the square.
            "reward": 0.5,
            "continue": config.discount_scale,
            "policy": 1.0,
            "value": 0.5,
            **{f"decode/{k}": 1.0 if s.kind == "discrete" else 0.5 for k, s in obs_space.items()},
        }
        super().__init__(config, obs_space, act_space, precision, (INSIDE, INSIDE), scales)
        everything = frozenset(act_space)
        self.differentiable = {
            "auto": frozenset(name for name, space in act_space.items() if space.kind == "vector"),
            "reinforce": frozenset(),
            "dynamics": everything,
            "both": everything,
        }[config.actor_gradient]
        rates = (config.learning_rate, config.actor_learning_rate, config.critic_learning_rate)
        self.optimizer = in_parts(*(adam(rate, eps=1e-5, clip=config.clip, decay=config.decay) for rate in rates))
        self.style = Style(config.norm, fan="average", act="elu", init=config.hidden_init)

    def dynamics(self, tokens: int, key: PRNGKeyArray) -> Dynamics:
        config = self.config
        return RSSM(
            action=width(self.act_space),
            tokens=tokens,
            deter=config.deter,
            stoch=STOCH,
            kind=Categorical(config.classes, unimix=0.0),
            hidden=config.hidden,
            recurrence="dense",
            prior_layers=1,
            style=self.style,
            key=key,
        )

    def networks(self, key: PRNGKeyArray) -> Model:
        config, obs_space, act_space = self.config, self.obs_space, self.act_space
        keys, style = jax.random.split(key, 7), self.style
        stoch = STOCH * config.classes
        feat, units, layers = config.deter + stoch, config.units, config.layers
        shared: dict[str, Any] = {
            "units": units,
            "layers": layers,
            "depths": tuple(config.depth << stage for stage in range(4)),
            "kernel": 4,
            "convolutions": "inside",
            "symlog_vectors": False,
            "style": style,
        }
        enc = Encoder(obs_space, **shared, key=keys[0])
        dyn = self.dynamics(enc.outputs, keys[1])
        dec = Decoder(obs_space, deter=config.deter, stoch=stoch, blocks=1, pixels="shift", **shared, key=keys[2])
        scalar: dict[str, Any] = {"kind": "squared", "scale": 1.0, "style": style}
        rew = ScalarHead(feat, units, layers, **scalar, key=keys[3])
        con = FlagHead(feat, units, layers, style=style, key=keys[4]) if config.discount_scale else None
        leg = legal_head(obs_space, act_space, feat, units, layers, style, key)
        policy: dict[str, Any] = {"unimix": 0.0, "scale": 1.0, "continuous": "truncated", "style": style}
        policy |= {"mean_init": config.mean_init, "std_init": config.std_init}
        pol = PolicyHead(act_space, feat, units, layers, **policy, key=keys[5])
        val = ScalarHead(feat, units, layers, **scalar, init=config.critic_init, key=keys[6])
        gamma = 1.0 if config.discount_scale else config.gamma  # the head knows it
        return Model(enc, dyn, dec, rew, con, leg, pol, val, tuple(sorted(act_space.items())), gamma)

    def target_critic(self, model: Model, slow: ScalarHead | None, updates: Array) -> ScalarHead:
        """A copy of the critic, renewed now and then."""
        if slow is None:
            return jax.tree.map(jnp.copy, model.val)
        due = updates % self.config.slow_every == 0
        return jax.tree.map(lambda new, old: jnp.where(due, new, old), model.val, slow)

    def transform_reward(self, reward: Float[Array, "*B"]) -> Float[Array, "*B"]:
        return jnp.tanh(reward) if self.config.reward_squash == "tanh" else reward

    def world_loss(self, model: Model, batch: Row, key: PRNGKeyArray) -> tuple[dict[str, Array], Posterior, Metrics]:
        """Likelihoods of what was seen and earned, and a balanced KL (eq. 2, algorithm 2)."""
        post, beliefs = self.observe(model, batch, key)
        dynamics, representation = divergences(model, beliefs)
        losses = {
            "dynamics": free_nats_of_mean(dynamics, self.config.free_nats),
            "representation": free_nats_of_mean(representation, self.config.free_nats),
        }
        targets, continues = self.decode_targets(post.rows), self.config.gamma * post.alive
        predictions, metrics = prediction_losses(model, post, targets, continues)
        return losses | predictions, post, metrics | latent_metrics(model, beliefs, dynamics)

    def behavior_loss(
        self, model: Model, slow: ScalarHead | None, returns: ReturnScale, post: Posterior, key: PRNGKeyArray
    ) -> tuple[dict[str, Array], ReturnScale, Metrics]:
        """Actor (eq. 6) and critic (eq. 5); both look at returns that the target critic closes (eq. 4)."""
        config = self.config
        assert slow is not None
        imagined = self.imagine(model, slow, post, post.alive.ravel(), key)
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
        return losses, returns, behavior_metrics(policy, **imagined.figures())


make_agent = DreamerV2
