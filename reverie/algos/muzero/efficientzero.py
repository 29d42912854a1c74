"""EfficientZero (Ye et al., NeurIPS 2021; arXiv 2111.00210): MuZero with little data.

What differs from MuZero: the dynamics' output is pulled to the representation of what is really observed next; the
reward head tells sums of rewards along a path (value prefix), not each of them; value targets of old data are shorter;
nearly all of a batch is searched again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.lax import stop_gradient
from jaxtyping import Array, Float, Int, PRNGKeyArray

from reverie.agent import Mode, Row
from reverie.algos.muzero import model, muzero
from reverie.algos.muzero.frames import observed
from reverie.algos.muzero.values import PuctChoices
from reverie.behavior.returns import Window
from reverie.envs.base import Spaces
from reverie.fields import Count, Number, Share, Weight, Width, Within
from reverie.model.heads import Scalar, ScalarHead
from reverie.model.unroll import LSTM, Hidden
from reverie.nn.layers import MLP, Linear


@dataclass(frozen=True, kw_only=True)
class Choices(PuctChoices):
    """Constants of MuZero, and of the networks that only this algorithm has."""

    projection: Width = 256
    """Width of the space in which the two are compared (1024 for Atari)."""
    predictor: Width = 128
    """Hidden width of the predictor before the comparison (512 for Atari)."""
    prefix_units: Width = 64
    """Width of the memory that sums up rewards (512 for Atari)."""
    prefix_horizon: Count = 5
    """Steps after which a sum of rewards begins anew."""


@dataclass(frozen=True, kw_only=True)
class Config(muzero.Config):
    """The values of the algorithm."""

    # MuZero's, with other defaults.
    blocks: Annotated[int, Within(0, 1000)] = 1
    channels: Width = 64
    n_step: Annotated[int, Within(1, 2**16)] = 5
    reanalyse: Share = 0.99
    bootstrap: Literal["stored", "network", "search"] = "search"
    target_every: Count = 200

    consistency_scale: Weight = 2.0
    """Weight of the loss that pulls the dynamics' output to the representation of the next observation."""
    trust_updates: Number = 30_000
    """Every so many updates of age cost a value target one of its n rewards (0.3 of all updates). 0: never."""

    def paper(self) -> Choices:
        return Choices()


class Path(NamedTuple):
    """The memory of a path's rewards: the value prefix lives in the latent."""

    hidden: Float[Array, "*B u"]
    cell: Float[Array, "*B u"]
    total: Float[Array, "*B"]  # of the rewards since the sum last began
    steps: Int[Array, "*B"]  # since then


class Model(model.Model):
    """MuZero's, with a memory of rewards and a space in which states are compared."""

    prefix: LSTM
    project: tuple[MLP, Linear]
    predictor: tuple[MLP, Linear]
    horizon: int = eqx.field(static=True)

    def __init__(self, config: Any, obs_space: Spaces, act_space: Spaces, dtype: str, key: PRNGKeyArray):
        base_key, *keys = jax.random.split(key, 7)
        super().__init__(config, obs_space, act_space, dtype, base_key)
        choices = config.chosen()
        units, read = choices.prefix_units, self.body.outputs
        self.horizon = choices.prefix_horizon
        self.prefix = LSTM(read, units, key=keys[0])
        self.rew = ScalarHead(units, config.units, config.layers, **config.scalar(), key=keys[1])
        wide, narrow = choices.projection, choices.predictor
        self.project = (MLP(read, wide, 1, key=keys[2]), Linear(wide, wide, key=keys[3]))
        self.predictor = (MLP(wide, narrow, 1, key=keys[4]), Linear(narrow, wide, key=keys[5]))

    def represent(self, obs: Mapping[str, Array]) -> Hidden:
        root = super().represent(obs)
        batch = root.reward.shape
        empty = jnp.zeros((*batch, self.prefix.gates.weight.shape[1] // 4), root.state.dtype)
        return root._replace(memory=Path(empty, empty, jnp.zeros(batch), jnp.zeros(batch, jnp.int32)))

    def advance(self, hidden: Hidden, action: Int[Array, "*B"]) -> Hidden:
        """One step of the dynamics; the reward is what it added to the sum."""
        state = self.body.advance(hidden.state, jax.nn.one_hot(action, self.classes))
        path: Path = hidden.memory
        fresh = path.steps % self.horizon == 0
        clear = lambda x: jnp.where(fresh[..., None], jnp.zeros_like(x), x)
        memory, cell = self.prefix(self.body.read(state), clear(path.hidden), clear(path.cell))
        total = self.rew(memory).pred()
        reward = total - jnp.where(fresh, 0.0, path.total)
        return Hidden(state, reward, Path(memory, cell, total, path.steps + 1))

    def reward_of(self, hidden: Hidden) -> Scalar:
        """The sum of rewards at `hidden`, as a distribution."""
        return self.rew(hidden.memory.hidden)

    def agreement(self, imagined: Array, seen: Array) -> Float[Array, "*B"]:
        """Cosine between the dynamics' output and the representation of what was seen, which is not moved
        (SimSiam, Chen & He 2021)."""
        apply = lambda net, x: net[1](net[0](x))
        mine = apply(self.predictor, apply(self.project, self.body.read(imagined))).astype(jnp.float32)
        other = stop_gradient(apply(self.project, self.body.read(seen))).astype(jnp.float32)
        unit = lambda x: x / jnp.maximum(jnp.linalg.norm(x, axis=-1, keepdims=True), 1e-5)
        return jnp.sum(unit(mine) * unit(other), -1)


class EfficientZero(muzero.MuZero):
    networks = Model

    def stored(self) -> dict[str, jax.ShapeDtypeStruct]:
        return {"born": jax.ShapeDtypeStruct((), jnp.int32)}  # updates when the step was taken

    def policy(self, state: Any, carry: Any, obs: Row, mode: Mode) -> tuple[Any, Row, Row]:
        carry, action, out = super().policy(state, carry, obs, mode)
        return carry, action, out | {"out/born": jnp.full(obs["is_first"].shape, state.updates)}

    def td_steps_for_age(self, rows: Row, updates: Int[Array, ""]) -> Int[Array, " B"] | None:
        config = self.config
        if not config.trust_updates:
            return None
        age = updates - rows["out/born"][:, 0]
        return jnp.clip(config.n_step - age // config.trust_updates, 1, config.n_step)

    def losses(self, model: Any, states: Hidden, window: Window, batch: Row) -> muzero.Losses:
        losses = super().losses(model, states, window, batch)
        seen = model.represent(observed(self, batch, 1, self.config.unroll)).state
        apart = -model.agreement(states.state[:, 1:], seen)
        # The end of an episode is still observed; what follows it is of another.
        there = window.same_episode.astype(jnp.float32)
        pad = jnp.zeros_like(apart[:, :1])
        losses["consistency"] = (self.config.consistency_scale, jnp.concatenate([pad, there * apart], 1))
        return losses

    def reward_of(self, window: Window) -> Float[Array, "B k"]:
        """Sums of the rewards since the last multiple of the horizon."""
        reward, horizon = window.reward.at[:, 0].set(0.0), self.config.chosen().prefix_horizon
        total = jnp.cumsum(reward, 1)
        begin = (jnp.arange(total.shape[1]) - 1).clip(0) // horizon * horizon
        return total - total[:, begin]


make_agent = EfficientZero
