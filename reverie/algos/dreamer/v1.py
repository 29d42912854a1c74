"""DreamerV1 (Hafner et al., "Dream to Control", 2020; arXiv 1912.01603).

A latent of a GRU and Gaussian variables. The actor climbs the gradient of the imagined return itself: through the
reward, through the critic, and through the dynamics back to the actions.

Values and networks follow danijar/dreamer@56d4d44. Three liberties: initial weights are truncated normals with Glorot's
variance; vectors and discrete values, which the paper does not have, go through an MLP; and a discrete action learns by
a straight-through gradient.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.lax import stop_gradient
from jaxtyping import Array, Float, PRNGKeyArray

from reverie.agent import Row
from reverie.algos.dreamer.agent import BehaviorLoss, Dreamer, WorldLoss, behavior_metrics, in_parts
from reverie.algos.dreamer.planning import Improvement
from reverie.algos.dreamer.world import Model, Posterior, State, divergences, latent_metrics, prediction_losses
from reverie.behavior.explore import Exploration
from reverie.envs.base import Spaces
from reverie.fields import Layers, Positive, Share, Weight, Width, Within
from reverie.model.canvas import INSIDE
from reverie.model.decode import Decoder
from reverie.model.dynamics import Design, Dynamics, features
from reverie.model.encode import Coding, Encoder, width
from reverie.model.heads import Continuous, FlagHead, PolicyHead, ScalarHead, legal_head
from reverie.model.rssm import RSSM, Recurrence
from reverie.model.stoch import Gaussian, Stoch
from reverie.nn.init import Weights
from reverie.nn.layers import Act, Style
from reverie.nn.optim import adam


@dataclass(frozen=True)
class Values(Improvement, Exploration, Weights):
    """The values that the first two papers share, as the first has them."""

    deter: Width = 200
    """Units of the GRU."""
    hidden: Width = 200
    """Width of the layers around the GRU."""
    units: Width = 400
    """Width of all heads."""
    depth: Annotated[int, Within(1, 2**12)] = 32
    """Channels of the first convolution; the others double them."""

    free_nats: Weight = 3.0
    """KL of the mean over the batch below which it costs nothing."""
    kl_scale: Weight = 1.0
    """Weight of the KL."""

    imagination: Annotated[int, Within(1, 2**12)] = 15
    """Imagined steps from every replayed state."""
    gamma: Share = 0.99
    """Discount of one step."""
    lam: Share = 0.95
    """Lambda of the returns: 0 trusts the critic, 1 the imagined rewards."""

    learning_rate: Positive = 6e-4
    """Step size of the world model."""
    actor_learning_rate: Positive = 8e-5
    """Step size of the actor."""
    critic_learning_rate: Positive = 8e-5
    """Step size of the critic."""
    clip: Weight = 100.0
    """Largest gradient norm of each of the three. 0 clips nothing."""


@dataclass(frozen=True)
class Config(Values):
    """The values of the paper."""

    stoch: Width = 30
    """Gaussian variables."""
    vector_layers: Layers = 3
    """Layers that read and write vectors and discrete values."""
    continue_scale: Weight = 0.0
    """Weight of the head that predicts whether the world goes on; 10 in Atari. 0: there is none, and it always does."""
    exploration: Weight = 0.3
    """Standard deviation of the noise on continuous actions in training; share of random ones among the discrete."""


class HeadLayers(NamedTuple):
    """Hidden layers of what reads and writes vectors and discrete values, and of the heads."""

    vectors: int
    reward: int
    flags: int
    policy: int
    value: int


class Paper(NamedTuple):
    """The differences between the world models of the first two papers."""

    stoch: int  # random variables
    kind: Stoch  # of these
    recurrence: Recurrence
    style: Style  # of all layers
    image_act: Act  # of the convolutions
    layers: HeadLayers
    continuous: Continuous  # how the policy keeps actions within bounds
    kl_shares: tuple[float, float]  # of the KL: of its gradient by the prior, and by the posterior
    continue_scale: float  # 0: there is no such head, and the world always goes on
    eps: float = 1e-8  # of the optimizers
    decay: float = 0.0  # share of every parameter that is lost at each update


class DreamerV1Model(Dreamer):
    """A Dreamer with the world model of one of the first two papers, for a behaviour of its own."""

    def __init__(self, config: Any, obs_space: Spaces, act_space: Spaces, precision: str, paper: Paper):
        dynamics, representation = paper.kl_shares
        # The likelihood of normals with a variance of one: half of the square.
        scales = {
            "dynamics": config.kl_scale * dynamics,
            "representation": config.kl_scale * representation,
            "reward": 0.5,
            "continue": paper.continue_scale,
            "policy": 1.0,
            "value": 0.5,
            **{f"decode/{k}": 1.0 if s.kind == "discrete" else 0.5 for k, s in obs_space.items()},
        }
        super().__init__(config, obs_space, act_space, precision, (INSIDE, INSIDE), scales)
        self.paper = paper
        rates = (config.learning_rate, config.actor_learning_rate, config.critic_learning_rate)
        self.optimizer = in_parts(*(adam(x, eps=paper.eps, clip=config.clip, decay=paper.decay) for x in rates))

    def dynamics(self, tokens: int, key: PRNGKeyArray) -> Dynamics:
        config, paper = self.config, self.paper
        design = Design(
            action=width(self.act_space),
            tokens=tokens,
            deter=config.deter,
            stoch=paper.stoch,
            kind=paper.kind,
            hidden=config.hidden,
            prior_layers=1,
            style=paper.style,
        )
        return RSSM(design, recurrence=paper.recurrence, key=key)

    def networks(self, key: PRNGKeyArray) -> Model:
        config, paper, obs_space, act_space = self.config, self.paper, self.obs_space, self.act_space
        keys, style, layers = jax.random.split(key, 7), paper.style, paper.layers
        stoch = paper.stoch * paper.kind.width
        feat, units = config.deter + stoch, config.units
        coding = Coding(
            units=units,
            layers=layers.vectors,
            depths=tuple(config.depth << stage for stage in range(4)),
            kernel=4,
            convolutions="inside",
            symlog_vectors=False,
            style=style,
            image_act=paper.image_act,
            pixels="shift",
        )
        enc = Encoder(obs_space, coding, key=keys[0])
        dyn = self.dynamics(enc.outputs, keys[1])
        dec = Decoder(obs_space, coding, deter=config.deter, stoch=stoch, blocks=1, key=keys[2])
        scalar: dict[str, Any] = {"kind": "squared", "scale": 1.0, "style": style}
        rew = ScalarHead(feat, units, layers.reward, **scalar, key=keys[3])
        con = FlagHead(feat, units, layers.flags, style=style, key=keys[4]) if paper.continue_scale else None
        leg = legal_head(obs_space, act_space, feat, units, layers.flags, style, jax.random.fold_in(key, 7))
        policy: dict[str, Any] = {"unimix": 0.0, "scale": 1.0, "continuous": paper.continuous, "style": style}
        policy |= {"mean_init": config.mean_init, "std_init": config.std_init}
        pol = PolicyHead(act_space, feat, units, layers.policy, **policy, key=keys[5])
        val = ScalarHead(feat, units, layers.value, **scalar, init=config.critic_init, key=keys[6])
        gamma = 1.0 if paper.continue_scale else config.gamma  # the head knows it
        return Model(enc, dyn, dec, rew, con, leg, pol, val, tuple(sorted(act_space.items())), gamma)

    def world_loss(self, model: Model, batch: Row, key: PRNGKeyArray) -> WorldLoss:
        """The variational bound on what was seen and earned (V1, eq. 10; V2, eq. 2 and algorithm 2): likelihoods, and a
        KL above the free nats."""
        post, beliefs = self.observe(model, batch, key)
        dynamics, representation = divergences(model, beliefs)
        losses = {
            "dynamics": free_nats_of_mean(dynamics, self.config.free_nats),
            "representation": free_nats_of_mean(representation, self.config.free_nats),
        }
        predictions, metrics = prediction_losses(
            model, post, self.decode_targets(post.rows), self.config.gamma * post.alive
        )
        return losses | predictions, post, metrics | latent_metrics(model, beliefs, dynamics)


def free_nats_of_mean(kl: Float[Array, "B T"], nats: float) -> Float[Array, ""]:
    """A KL whose mean over the batch costs nothing up to so many nats (DreamerV1 and V2)."""
    return jnp.maximum(kl.mean(), nats)


class DreamerV1(DreamerV1Model):
    def __init__(self, config: Config, obs_space: Spaces, act_space: Spaces, precision: str):
        paper = Paper(
            stoch=config.stoch,
            kind=Gaussian(),
            recurrence="plain",
            style=Style(norm="none", fan="average", act="elu", init=config.hidden_init),
            image_act="relu",
            layers=HeadLayers(vectors=config.vector_layers, reward=2, flags=3, policy=4, value=3),
            continuous="tanh",
            kl_shares=(1.0, 1.0),  # one KL with both gradients
            continue_scale=config.continue_scale,
        )
        super().__init__(config, obs_space, act_space, precision, paper)
        self.differentiable = frozenset(act_space)

    def add_noise(self, action: dict[str, Array], legal: Array | None, key: PRNGKeyArray) -> dict[str, Array]:
        amount, noisy = self.config.exploration, {}
        random = self.random_action(len(next(iter(action.values()))), legal, key)
        for name, own_key in zip(sorted(action), jax.random.split(key, len(action)), strict=True):
            value = action[name]
            if self.act_space[name].kind == "discrete":
                noisy[name] = jnp.where(jax.random.uniform(own_key, value.shape) < amount, random[name], value)
            else:
                noisy[name] = value + amount * jax.random.normal(own_key, value.shape)
        return noisy

    def behavior_loss(self, model: Model, state: State, post: Posterior, key: PRNGKeyArray) -> BehaviorLoss:
        """The actor climbs the returns (eq. 7), the critic learns them (eq. 8)."""
        imagined = self.imagine(model, model.val, post, post.alive.ravel(), key)
        feat, action = stop_gradient((features(imagined.latent), imagined.action))
        weight = imagined.weight[:-1]
        losses = {"policy": -weight * imagined.target, "value": weight * model.val(feat[:-1]).loss(imagined.target)}
        policy = model.policy(feat, model.legal(feat, action))
        return losses, state.returns, behavior_metrics(policy, **imagined.figures())


make_agent = DreamerV1
