"""DreamerV3 (Hafner et al., Nature 2025; arXiv 2301.04104v2).

A recurrent model of the world is learned from replayed sequences; an actor and a critic are learned inside it, from
imagined continuations of every replayed state. One backward pass, one set of values for all domains.

This is the final version; `v3_2023.py` is the first one. `docs/choices.md` has measurements of their differences.
Unlike the reference code (danijar/dreamerv3@e3f0224), the discrete policy does mix in 1 % uniform, as the papers say.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import jax
import jax.numpy as jnp
import optax
from jax.lax import stop_gradient
from jaxtyping import Array, Float, PRNGKeyArray

from reverie.agent import Metrics, Row
from reverie.algos import Unsuitable
from reverie.algos.choices import HasChoices
from reverie.algos.dreamer.agent import BehaviorLoss, Dreamer, WorldLoss, behavior_metrics
from reverie.algos.dreamer.loops import loop_of
from reverie.algos.dreamer.planning import Improvement, Planning
from reverie.algos.dreamer.world import Model, Posterior, State, divergences, latent_metrics, prediction_losses
from reverie.behavior.actor_critic import actor_critic_losses, replayed_value_loss
from reverie.behavior.explore import Exploration
from reverie.behavior.imagine import Trajectory
from reverie.behavior.returns import ReturnScale
from reverie.envs.base import Spaces
from reverie.fields import ConfigError, Count, Layers, Number, Positive, Share, Weight, Within, check
from reverie.model.canvas import canvas, halvings, images
from reverie.model.decode import Decoder
from reverie.model.dynamics import Design, Dynamics, features
from reverie.model.encode import Coding, Encoder, width
from reverie.model.heads import FlagHead, PolicyHead, ScalarHead, legal_head
from reverie.model.memoryless import Memoryless
from reverie.model.rssm import RSSM, Loop, scan
from reverie.model.stoch import Categorical
from reverie.model.transformer import Transformer
from reverie.nn.init import Weights
from reverie.nn.layers import Style
from reverie.nn.optim import laprop

STOCH = 32  # categorical variables
BLOCKS = 8  # of the block recurrence, and of the layer from it to an image
DYNAMICS: dict[str, Callable[..., Dynamics]] = {"rssm": RSSM, "transformer": Transformer, "none": Memoryless}
DEPTHS = (2, 3, 4, 4)  # channels per pooling stage, in multiples of `depth`; strided stages double them


@dataclass(frozen=True)
class Widths:
    """Widths and depths of one named size."""

    deter: int
    units: int
    classes: int
    depth: int
    predictors: int = 1
    """Layers of the reward and continue heads."""
    behavior: int = 3
    """Layers of actor and critic."""


SIZES = {
    "200k": Widths(deter=256, units=32, classes=4, depth=2),  # ours, for laptops and tests
    # The final version: only widths change (reference `configs.yaml`).
    "1m": Widths(deter=512, units=64, classes=4, depth=4),
    "12m": Widths(deter=2048, units=256, classes=16, depth=16),
    "25m": Widths(deter=3072, units=384, classes=24, depth=24),
    "50m": Widths(deter=4096, units=512, classes=32, depth=32),
    "100m": Widths(deter=6144, units=768, classes=48, depth=48),
    "200m": Widths(deter=8192, units=1024, classes=64, depth=64),
    "400m": Widths(deter=12288, units=1536, classes=96, depth=96),
    # 2023 (arXiv v1, table B.1): heads, actor and critic grow deeper together.
    "XS": Widths(deter=256, units=256, classes=32, depth=24, predictors=1, behavior=1),
    "S": Widths(deter=512, units=512, classes=32, depth=32, predictors=2, behavior=2),
    "M": Widths(deter=1024, units=640, classes=32, depth=48, predictors=3, behavior=3),
    "L": Widths(deter=2048, units=768, classes=32, depth=64, predictors=4, behavior=4),
    "XL": Widths(deter=4096, units=1024, classes=32, depth=96, predictors=5, behavior=5),
}
ActorGradient = Literal["reinforce", "dynamics", "auto"]
SIZE_NAMES = Literal["200k", "1m", "12m", "25m", "50m", "100m", "200m", "400m", "XS", "S", "M", "L", "XL"]


@dataclass(frozen=True)
class Choices(Weights):
    """How the networks are built and what they predict: constants of a paper, and what ablations change
    (`docs/choices.md`)."""

    recurrence: Literal["block", "dense"] = "block"
    """A GRU of eight blocks, or a dense one whose gates are normalised."""
    first_state: Literal["zeros", "learned"] = "zeros"
    """The latent before an episode."""
    norm: Literal["rms", "layer"] = "rms"
    """RMSNorm, or LayerNorm behind layers without bias."""
    fan: Literal["in", "average"] = "in"
    """Variance of initial weights: one over the inputs of a unit, or over the mean of its inputs and outputs."""
    convolutions: Literal["pool", "stride"] = "pool"
    """Stages of the image networks: max-pooling and nearest upsampling, `stages` of them; or strided and transposed
    convolutions, until the image is 4x4."""
    stages: Annotated[int, Within(1, 4)] = 4
    """Halvings of an image by pooling: four for sides of 48 pixels or more, to which smaller ones are enlarged."""
    kernel: Annotated[int, Within(1, 64)] = 5
    """Side of the convolutions' kernels. With strides, the code of 2023 has 4, its paper 3."""
    pixels: Literal["sigmoid", "shift"] = "sigmoid"
    """Brightness of a predicted image: a sigmoid of the decoder's output, or the output plus a half."""
    prior_layers: Layers = 2
    """Hidden layers of the prior."""
    vector_layers: Annotated[int, Within(0, 1000)] = 3
    """Layers that read and write vectors and discrete values. 0: as many as the size gives the reward head."""
    vector_units: Annotated[int, Within(0, 2**16)] = 0
    """Width of these layers. 0: that of the size."""
    policy_scale: Weight = 0.01
    """Scale of the policy's initial output weights."""
    images: Literal["normalised", "symlogged"] = "normalised"
    """Brightness as it is, or its symlog; both scaled to [0, 1]."""
    image_loss: Literal["squared", "gaussian"] = "squared"
    """Squared error, or the likelihood of a Gaussian with the most likely variance."""
    vectors: Literal["symlogged", "plain"] = "symlogged"
    """Float vectors squashed before they are read and predicted, or not."""
    scalars: Literal["symexp_two_hot", "symlog_two_hot", "symlog_squared"] = "symexp_two_hot"
    """Reward and value: a two-hot code over exponential bins, the same over equal bins of the symlog, or squared
    error of the symlog."""
    bins: Annotated[int, Within(3, 4095)] = 255
    """Bins of a two-hot code, an odd number: one of them is 0."""
    kl: Literal["summed", "averaged"] = "summed"
    """KL over the categorical variables, before free nats are granted."""
    straight_through: bool = True
    """Whether sampled latents carry the gradient of their probabilities."""

    def __post_init__(self) -> None:
        check(self, str)
        kernels = {"pool": (3, 5), "stride": (3, 4, 5)}[self.convolutions]
        if self.kernel not in kernels:
            known = " or ".join(map(str, kernels))
            raise ConfigError(f"kernel must be {known} with convolutions {self.convolutions}, got {self.kernel}")
        if self.bins % 2 == 0:
            raise ConfigError(f"bins must be odd, got {self.bins}: {self.bins + 1} has one for 0")


@dataclass(frozen=True)
class ModelConfig(Planning, Exploration, HasChoices):
    """The values of the world model, and of what every behaviour in it needs. Each is a flag."""

    # Networks
    size: SIZE_NAMES = "1m"
    """Width of all networks, named after the number of parameters; XS to XL are those of 2023."""
    dynamics: Literal["rssm", "transformer", "none"] = "rssm"
    """Dynamics of the latents: a recurrent state-space model; a causal transformer over the last 32 steps; or none, a
    state that is a function of the latest observation alone, without a memory."""
    unimix: Share = 0.01
    """Share of uniform distribution in the latent categoricals."""
    policy_unimix: Share = 0.01
    """Share of uniform distribution in discrete actions."""

    # World model
    free_nats: Weight = 1.0
    """KL below which the dynamics and representation losses are constant."""
    dynamics_scale: Weight = 1.0
    """Weight of the KL that trains the prior."""
    representation_scale: Weight = 0.1
    """Weight of the KL that trains the posterior."""
    initial: Literal["zeros", "stored", "stored+refreshed"] = "stored+refreshed"
    """Start of a replayed sequence: zeros (the first state of an episode), the latent stored by the policy, or
    that latent kept fresh by writing back what training recomputes."""

    # Behaviour
    imagination: Annotated[int, Within(1, 2**12)] = 15
    """Imagined steps from every replayed state."""
    horizon: Count = 333
    """Discount horizon in steps: gamma = 1 - 1 / horizon."""
    lam: Share = 0.95
    """Lambda of the returns: 0 trusts the critic, 1 the imagined rewards."""
    slow_rate: Share = 0.02
    """Share of the critic that moves into the slow critic at every update."""

    # Optimisation
    learning_rate: Positive = 4e-5
    """Step size after warm-up."""
    lr_warmup: Number = 1000
    """Updates over which the learning rate rises from zero."""
    clip: Weight = 0.3
    """Largest gradient norm of a tensor, as a share of the tensor's own norm. 0 clips nothing."""
    eps: Positive = 1e-20
    """Smallest divisor of the optimizer."""

    def __post_init__(self) -> None:
        super().__post_init__()
        HasChoices.__post_init__(self)

    @property
    def gamma(self) -> float:
        """Discount of one step."""
        return 1 - 1 / self.horizon

    def paper(self) -> Choices:
        return Choices()


@dataclass(frozen=True)
class Config(Improvement, ModelConfig):
    """The values of the final paper, but for the size."""

    first_continue: Literal["predicted", "true"] = "predicted"
    """Whether imagination may go on from a replayed state: as the head predicts, or as replay knows."""
    actor_gradient: ActorGradient = "reinforce"
    """The score function, or the gradient of the return through the model; auto: the latter for continuous actions."""
    entropy: Weight = 3e-4
    """Weight of the policy's entropy."""
    replay_value_scale: Weight = 0.3
    """Weight of the critic loss on replayed steps."""
    return_rate: Share = 0.01
    """Share of the new percentiles that moves into the return scale at every update."""
    observe: Literal["scan", "fused", "auto"] = "scan"
    """How the steps of replayed sequences are observed: one after the other; by one GPU kernel, for sizes 200k and 1m
    on one device; or, auto, by what a new run measures to be faster on its GPU. On a CPU, fused is interpreted,
    for tests, and auto is scan."""


def image_depths(config: ModelConfig, obs_space: Spaces) -> tuple[int, ...]:
    """Channels after each stage of the image networks: of all with pooling; with strides, until 4x4 is reached."""
    choices = config.chosen()
    pooled = choices.convolutions == "pool"
    multiples = DEPTHS[-choices.stages :] if pooled else [1 << stage for stage in range(halvings(obs_space))]
    return tuple(SIZES[config.size].depth * multiple for multiple in multiples)


class DreamerV3Model(Dreamer):
    """The world model of the paper and how it learns, for any behaviour."""

    continue_knows_gamma = True  # the continue head learns the discount, not only the flag to go on

    def __init__(self, config: Any, obs_space: Spaces, act_space: Spaces, precision: str, loop: Loop = scan):
        self.loop = loop
        scales = {
            "dynamics": config.dynamics_scale,
            "representation": config.representation_scale,
            "reward": 1.0,
            "continue": 1.0,
            "policy": 1.0,
            "value": 1.0,
            **{f"decode/{key}": 1.0 for key in obs_space},
        }
        size = canvas(images(obs_space), len(image_depths(config, obs_space)), config.chosen().convolutions)
        super().__init__(config, obs_space, act_space, precision, size, scales)
        self.optimizer = laprop(config.learning_rate, warmup=config.lr_warmup, agc=config.clip, eps=config.eps)
        if config.initial != "zeros":
            self.context = 1
            self.out_space = self.dyn.stored()
        self.refreshes = config.initial == "stored+refreshed"

    @property
    def style(self) -> Style:
        """The style of all layers."""
        choices = self.config.chosen()
        return Style(choices.norm, choices.fan, init=choices.hidden_init)

    def dynamics(self, tokens: int, key: PRNGKeyArray) -> Dynamics:
        config, size, choices = self.config, SIZES[self.config.size], self.config.chosen()
        design = Design(
            action=width(self.act_space),
            tokens=tokens,
            deter=size.deter,
            stoch=STOCH,
            kind=Categorical(size.classes, config.unimix, choices.straight_through, choices.kl == "averaged"),
            hidden=size.units,
            prior_layers=choices.prior_layers,
            style=self.style,
        )
        recurrence: dict[str, Any] = {"recurrence": choices.recurrence, "blocks": BLOCKS, "first": choices.first_state}
        return DYNAMICS[config.dynamics](design, **recurrence, loop=self.loop, key=key)

    def networks(self, key: PRNGKeyArray) -> Model:
        config, obs_space, act_space = self.config, self.obs_space, self.act_space
        size, choices = SIZES[config.size], config.chosen()
        style, keys = self.style, jax.random.split(key, 7)
        stoch = STOCH * size.classes
        feat = size.deter + stoch
        coding = Coding(
            units=choices.vector_units or size.units,
            layers=choices.vector_layers or size.predictors,
            depths=image_depths(config, obs_space),
            kernel=choices.kernel,
            convolutions=choices.convolutions,
            symlog_vectors=choices.vectors == "symlogged",
            symlog_images=choices.images == "symlogged",
            style=style,
            pixels=choices.pixels,
            image_loss=choices.image_loss,
        )
        enc = Encoder(obs_space, coding, key=keys[0])
        dyn = self.dynamics(enc.outputs, keys[1])
        dec = Decoder(
            obs_space, coding, deter=size.deter, stoch=stoch, map_units=size.units, blocks=BLOCKS, key=keys[2]
        )
        scalar: dict[str, Any] = {"kind": choices.scalars, "bins": choices.bins, "style": style}
        rew = ScalarHead(feat, size.units, size.predictors, **scalar, key=keys[3])
        con = FlagHead(feat, size.units, size.predictors, style=style, key=keys[4])
        leg = legal_head(obs_space, act_space, feat, size.units, size.predictors, style, jax.random.fold_in(key, 7))
        policy: dict[str, Any] = {"unimix": config.policy_unimix, "scale": choices.policy_scale, "style": style}
        policy |= {"mean_init": choices.mean_init, "std_init": choices.std_init}
        pol = PolicyHead(act_space, feat, size.units, size.behavior, **policy, key=keys[5])
        val = ScalarHead(feat, size.units, size.behavior, **scalar, init=choices.critic_init, key=keys[6])
        gamma = 1.0 if self.continue_knows_gamma else config.gamma
        return Model(enc, dyn, dec, rew, con, leg, pol, val, tuple(sorted(act_space.items())), gamma)

    def target_critic(self, model: Model, slow: ScalarHead | None, updates: Array) -> ScalarHead:
        """A moving average of the critic."""
        if slow is None:
            return jax.tree.map(jnp.copy, model.val)
        return optax.incremental_update(model.val, slow, self.config.slow_rate)

    def world_loss(self, model: Model, batch: Row, key: PRNGKeyArray) -> WorldLoss:
        """Prediction, dynamics and representation losses (eqs. 2 and 3); free nats are granted at every step."""
        post, beliefs = self.observe(model, batch, key)
        dynamics, representation = divergences(model, beliefs)
        losses = {
            "dynamics": jnp.maximum(dynamics, self.config.free_nats),
            "representation": jnp.maximum(representation, self.config.free_nats),
        }
        continues = (self.config.gamma if self.continue_knows_gamma else 1.0) * post.alive
        predictions, metrics = prediction_losses(model, post, self.decode_targets(post.rows), continues)
        return losses | predictions, post, metrics | latent_metrics(model, beliefs, dynamics)


def through_dynamics(spaces: Spaces, kind: ActorGradient) -> frozenset[str]:
    """The actions that learn from the gradient of the return itself, through the model: `auto` picks the continuous.

    Raises:
      Unsuitable: `dynamics` with a discrete action, of which there is no gradient.
    """
    discrete = sorted(name for name, space in spaces.items() if space.kind == "discrete")
    if kind == "dynamics" and discrete:
        raise Unsuitable(
            f"--actor-gradient dynamics: no gradient flows through discrete actions ({', '.join(discrete)});"
            " --actor-gradient auto takes reinforce for these and the dynamics for continuous ones"
        )
    return frozenset() if kind == "reinforce" else frozenset(spaces) - frozenset(discrete)


class DreamerV3(DreamerV3Model):
    def __init__(self, config: Config, obs_space: Spaces, act_space: Spaces, precision: str):
        super().__init__(config, obs_space, act_space, precision, loop_of(config.observe))
        self.differentiable = through_dynamics(act_space, config.actor_gradient)
        self.scales["replay_value"] = config.replay_value_scale

    def behavior_loss(self, model: Model, state: State, post: Posterior, key: PRNGKeyArray) -> BehaviorLoss:
        """Actor and critic learn from imagined trajectories (eqs. 4 to 7), the critic from replayed ones, too."""
        config = self.config
        known = post.alive.ravel() if config.first_continue == "true" else None
        losses, returns, metrics, imagined = dream_losses(self, model, state, post, known, key)

        # The critic also learns from what really happened; this gradient reaches the world model.
        if config.replay_value_scale:
            assert state.slow is not None
            feat = features(post.latents)
            losses["replay_value"], target = replayed_value_loss(
                model.val(feat),
                state.slow(stop_gradient(feat)).pred(),
                post.rows["reward"],
                config.gamma * post.alive,
                post.rows["is_last"].astype(jnp.float32),
                imagined.target[0].reshape(post.alive.shape),
                lam=config.lam,
            )
            metrics["replay/return"] = target.mean()
        return losses, returns, metrics


def dream_losses(
    agent: Dreamer, model: Model, state: State, post: Posterior, known: Float[Array, " M"] | None, key: PRNGKeyArray
) -> tuple[dict[str, Array], ReturnScale, Metrics, Trajectory]:
    """Losses of actor and critic on imagined trajectories (eqs. 4 to 7), `[B, T]`; and those trajectories.

    Args:
      known: the true discounts of the replayed states; None: as the continue head predicts.
    """
    config, shape = agent.config, post.alive.shape
    assert state.slow is not None

    # Imagination
    imagined = agent.imagine(model, model.val, post, known, key)
    feat = stop_gradient(features(imagined.latent))  # [H + 1, M, F]; time-major, as the loop leaves it
    discount = imagined.discount if known is None else imagined.discount.at[0].set(known)
    # The weights begin with what the model itself predicts of the start state, or what is known of it: no gamma.
    weight = imagined.weight / model.gamma if model.gamma != 1 else imagined.weight

    # Actor and critic
    policy = model.policy(feat, model.legal(feat, imagined.action))
    value, slow_value = model.val(feat), state.slow(feat).pred()
    learned, returns = actor_critic_losses(
        policy,
        value,
        slow_value,
        imagined,
        weight,
        state.returns,
        entropy=config.entropy,
        rate=config.return_rate,
        differentiable=agent.differentiable,
    )
    losses = {"policy": learned.actor.mean(0).reshape(shape), "value": learned.critic.mean(0).reshape(shape)}
    figures = {"return": imagined.target, "reward": imagined.reward, "value": slow_value, "discount": discount}
    metrics = behavior_metrics(policy, **figures, length=weight.sum(0))
    metrics["policy/return_scale"] = returns.scale()
    metrics["policy/advantage"] = stop_gradient(jnp.abs(learned.advantage).mean())
    return losses, returns, metrics, imagined


make_agent = DreamerV3
