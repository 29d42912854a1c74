"""DreamerV3 (Hafner et al., Nature 2025; arXiv 2301.04104, v1 of 2023 and v2).

A recurrent model of the world is learned from replayed sequences; an actor and a critic are learned inside it, from
imagined continuations of every replayed state. One backward pass, one set of values for all domains.

The values are in `dreamer_v3_values.py`. Their defaults are the final version; `v3-2023` is another set of them.
Unlike the reference code (danijar/dreamerv3@e3f0224), the discrete policy does mix in 1 % uniform, as the papers say.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.lax import stop_gradient
from jaxtyping import Array, Float, PRNGKeyArray

from reverie.agent import Metrics, Row
from reverie.algos import Unsuitable
from reverie.algos.dreamer import Dreamer, Model, Seen, behavior_metrics, check, in_parts, legal_head
from reverie.algos.dreamer_v3_values import SIZES, Config
from reverie.behavior.imagine import rollout
from reverie.behavior.policy_gradient import imagined_losses, replayed_value_loss, through_dynamics
from reverie.behavior.returns import ReturnScale
from reverie.envs.base import Spaces
from reverie.model.canvas import Size, canvas, halvings, images
from reverie.model.decode import Decoder
from reverie.model.encode import Encoder, width
from reverie.model.heads import FlagHead, PolicyHead, ScalarHead, sample
from reverie.model.rssm import RSSM, Latent, features
from reverie.model.stoch import Categorical
from reverie.nn.layers import Style
from reverie.nn.optim import adam, laprop

STOCH = 32  # categorical variables
BLOCKS = 8  # of the block recurrence, and of the layer from it to an image
DEPTHS = (2, 3, 4, 4)  # channels per pooling stage, in multiples of `depth`; strided stages double them


def networks(config: Config, obs_space: Spaces, act_space: Spaces, key: PRNGKeyArray) -> Model:
    """The networks of this paper."""
    size, style = SIZES[config.size], Style(config.norm, config.fan, init=config.hidden_init)
    keys = jax.random.split(key, 7)
    stoch = STOCH * size.classes
    feat = size.deter + stoch
    shared: dict[str, Any] = {
        "units": config.vector_units or size.units,
        "layers": config.vector_layers or size.predictors,
        "depths": image_depths(config, obs_space),
        "kernel": config.kernel,
        "convolutions": config.convolutions,
        "symlog_vectors": config.vectors == "symlogged",
        "symlog_images": config.images == "symlogged",
        "style": style,
    }
    enc = Encoder(obs_space, **shared, key=keys[0])
    dyn = RSSM(
        action=width(act_space),
        tokens=enc.outputs,
        deter=size.deter,
        stoch=STOCH,
        kind=Categorical(size.classes, config.unimix, config.straight_through),
        hidden=size.units,
        recurrence=config.recurrence,
        blocks=BLOCKS,
        prior_layers=config.prior_layers,
        first=config.first_state,
        style=style,
        key=keys[1],
    )
    dec = Decoder(
        obs_space,
        deter=size.deter,
        stoch=stoch,
        map_units=size.units,
        blocks=BLOCKS,
        pixels=config.pixels,
        image_loss=config.image_loss,
        **shared,
        key=keys[2],
    )
    scalar: dict[str, Any] = {"kind": config.scalars, "style": style}
    rew = ScalarHead(feat, size.units, size.predictors, **scalar, key=keys[3])
    con = FlagHead(feat, size.units, size.predictors, style=style, key=keys[4])
    leg = legal_head(obs_space, act_space, feat, size.units, size.predictors, style, key)
    pol = PolicyHead(
        act_space,
        feat,
        size.units,
        size.behavior,
        unimix=config.policy_unimix,
        scale=config.policy_scale,
        mean_init=config.mean_init,
        std_init=config.std_init,
        style=style,
        key=keys[5],
    )
    val = ScalarHead(feat, size.units, size.behavior, **scalar, init=config.critic_init, key=keys[6])
    gamma = 1.0 if config.discount == "learned" else 1 - 1 / config.horizon
    return Model(enc, dyn, dec, rew, con, leg, pol, val, tuple(sorted(act_space.items())), gamma)


def image_depths(config: Config, obs_space: Spaces) -> tuple[int, ...]:
    """Channels after each stage of the image networks: four with pooling; with strides, until 4x4 is reached."""
    multiples = DEPTHS if config.convolutions == "pool" else [1 << stage for stage in range(halvings(obs_space))]
    return tuple(SIZES[config.size].depth * multiple for multiple in multiples)


def image_canvas(config: Config, obs_space: Spaces) -> Size:
    """Height and width at which the image networks see."""
    pictures = images(obs_space)
    return canvas(pictures, len(image_depths(config, obs_space)), config.convolutions) if pictures else (0, 0)


class DreamerV3(Dreamer):
    """The `Agent`."""

    def __init__(self, config: Config, obs_space: Spaces, act_space: Spaces, dtype: jnp.dtype):
        size = SIZES[config.size]
        super().__init__(
            config,
            obs_space,
            act_space,
            dtype,
            canvas=image_canvas(config, obs_space),
            widths=(size.deter, STOCH, size.classes),
            optimizer=make_optimizer(config),
            differentiable=through_dynamics(act_space, config.actor_gradient),
            scales={
                "dynamics": config.dynamics_scale,
                "representation": config.representation_scale,
                "reward": 1.0,
                "continue": 1.0,
                "policy": 1.0,
                "value": 1.0,
                "replay_value": config.replay_value_scale,
                **{f"decode/{key}": 1.0 for key in obs_space},
            },
        )
        self.gamma = 1 - 1 / config.horizon
        if config.initial != "zeros":
            # Latents in replay cost more than a vector observation: half precision for h, one byte per code of z.
            self.context = 1
            self.out_space = {
                "deter": jax.ShapeDtypeStruct((size.deter,), jnp.bfloat16),
                "stoch": jax.ShapeDtypeStruct((STOCH,), jnp.uint8),
            }

    def networks(self, key: PRNGKeyArray) -> Model:
        return networks(self.config, self.obs_space, self.act_space, key)

    def slowed(self, model: Model, slow: ScalarHead | None, updates: Array) -> ScalarHead:
        """A moving average of the critic."""
        if slow is None:
            return jax.tree.map(jnp.copy, model.val)
        return optax.incremental_update(model.val, slow, self.config.slow_rate)

    def counted(self, kl: Float[Array, "B T"]) -> Float[Array, "B T"]:
        return kl / STOCH if self.config.kl == "averaged" else kl

    def granted(self, kl: Float[Array, "B T"]) -> Float[Array, "B T"]:
        """Free nats at every step."""
        return jnp.maximum(kl, self.config.free_nats)

    def continues(self, alive: Float[Array, "B T"]) -> Float[Array, "B T"]:
        return self.gamma * alive if self.config.discount == "learned" else alive

    def stored(self, latent: Latent) -> Row:
        if not self.context:
            return {}
        stoch = jnp.argmax(latent.stoch, -1).astype(jnp.uint8)
        return {"out/deter": latent.deter.astype(jnp.bfloat16), "out/stoch": stoch}

    def restored(self, row: Row) -> Latent:
        stoch = jax.nn.one_hot(row["out/stoch"], self.widths[-1], dtype=self.dtype)
        return Latent(row["out/deter"].astype(self.dtype), stoch)

    def refreshed(self, latents: Latent) -> Row:
        return self.stored(latents) if self.config.initial == "stored+refreshed" else {}

    def behave(
        self, model: Model, slow: ScalarHead | None, returns: ReturnScale, seen: Seen, key: PRNGKeyArray
    ) -> tuple[dict[str, Array], ReturnScale, Metrics]:
        assert slow is not None
        losses, returns, imagined, metrics = self.imagined(model, slow, returns, seen, key)
        losses = {k: v.reshape(seen.alive.shape) for k, v in losses.items()}
        # The critic also learns from what really happened; this gradient reaches the world model.
        if self.config.replay_value_scale:
            feat = features(seen.latents)
            losses["replay_value"], target = replayed_value_loss(
                model.val(feat),
                slow(stop_gradient(feat)).pred(),
                seen.rows["reward"],
                self.gamma * seen.alive,
                seen.rows["is_last"].astype(jnp.float32),
                imagined.reshape(seen.alive.shape),
                lam=self.config.lam,
            )
            metrics["replay/return"] = target.mean()
        return losses, returns, metrics

    def imagined(
        self,
        model: Model,
        slow: ScalarHead,
        returns: ReturnScale,
        seen: Seen,
        key: PRNGKeyArray,
    ) -> tuple[dict[str, Array], ReturnScale, Array, Metrics]:
        """Actor and critic losses `[M]` of imagining from every replayed state, the moved return scale, the return
        `[M]` of those states, and metrics.

        Two ways for the actor to learn. Score function: what is imagined is data, and nothing flows through it.
        Dynamics: actions are functions of the policy, and the return's gradient reaches them through the imagined
        latents and the frozen networks that judge them, but not through the policy's own inputs.
        """
        config, frozen = self.config, stop_gradient(model)
        actor = model if self.differentiable else frozen
        act = lambda latent, key: sample(actor.policy(stop_gradient(features(latent))), key)
        imagined, actions = rollout(frozen, act, self.starts(seen), config.imagination, key)
        feat = features(imagined)  # [H + 1, M, F]; time-major, as the loop leaves it
        fixed = stop_gradient(feat)
        reward, discount = frozen.rew(feat).pred(), frozen.discount(feat)
        if config.first_continue == "true":
            discount = discount.at[0].set(model.gamma * seen.alive.ravel())
        policy = model.policy(fixed, model.legal(fixed, actions))
        value, slow_value = model.val(fixed), slow(fixed).pred()
        losses, returns = imagined_losses(
            policy,
            actions,
            value,
            slow_value,
            reward,
            discount,
            returns,
            lam=config.lam,
            entropy=config.entropy,
            rate=config.return_rate,
            gamma=model.gamma,
            baseline=frozen.val(feat).pred() if self.differentiable else None,
            differentiable=self.differentiable,
        )
        metrics = behavior_metrics(
            policy,
            **{"return": losses.target, "reward": reward, "value": slow_value, "discount": discount},
            length=losses.weight.sum(0),
        )
        metrics["policy/return_scale"] = returns.scale()
        metrics["policy/advantage"] = stop_gradient(jnp.abs(losses.advantage).mean())
        means = {"policy": losses.actor.mean(0), "value": losses.critic.mean(0)}
        return means, returns, losses.target[0], metrics


def make_agent(
    config: Config, obs_space: Spaces, act_space: Spaces, *, precision: str, kind: type[DreamerV3] = DreamerV3
) -> DreamerV3:
    """The agent for these spaces. `precision`: compute dtype, `float32` or `bfloat16`; builds no arrays.

    Raises:
      Unsuitable: actions that have no gradient where one is asked for, or a game of two players.
    """
    check(obs_space)
    try:
        return kind(config, obs_space, act_space, jnp.dtype(precision))
    except ValueError as error:
        raise Unsuitable(str(error)) from error


def make_optimizer(config: Config) -> optax.GradientTransformation:
    """LaProp over all parameters; or three times Adam, over the world model, the actor and the critic."""
    if config.optimizer == "laprop":
        return laprop(config.learning_rate, warmup=config.lr_warmup, agc=config.clip, eps=config.eps)
    behavior = adam(
        config.behavior_learning_rate,
        eps=config.behavior_eps,
        clip=config.behavior_clip,
        warmup=config.lr_warmup,
    )
    model = adam(config.learning_rate, eps=config.eps, clip=config.clip, warmup=config.lr_warmup)
    return in_parts(model, behavior, behavior)
