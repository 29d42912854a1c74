"""The contract of what moves a Dreamer's latents, and the parts that every kind of it has.

A latent has a deterministic half `deter` and random variables `stoch`; a kind of dynamics may keep more beside them
(a memory). Heads, losses and imagination read the two halves and pass the rest on, so a new kind is one file that
answers `Dynamics`.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from reverie.model.stoch import Stoch
from reverie.nn.layers import ACTIVATIONS, FINAL, Act, Linear, Style
from reverie.nn.norm import Norm


class Latent(NamedTuple):
    """A state of the model: `deter` `[*B, D]` and samples `stoch` `[*B, S, Z]` in the compute dtype. Z: the classes of
    one-hot variables, 1 for Gaussian ones. `memory`: whatever more the next latent is computed from."""

    deter: Float[Array, "*B d"]
    stoch: Float[Array, "*B s z"]
    memory: Any = ()


class Beliefs(NamedTuple):
    """About the random half of latents, `[B, T, S, P]`: log-probabilities, or means and standard deviations."""

    posterior: Float[Array, "B T s p"]  # with the observation
    prior: Float[Array, "B T s p"]  # without it


class Dynamics(eqx.Module):
    """How latents follow one another, seen or imagined. Methods take any leading batch shape unless they name axes.

    Replay keeps nothing of a latent, and every sequence starts from `zeros`, unless a kind of dynamics says otherwise.
    """

    deter: int = eqx.field(static=True)  # numbers of the deterministic half
    stoch: int = eqx.field(static=True)  # random variables
    kind: Stoch = eqx.field(static=True)  # of these variables
    act: Act = eqx.field(static=True)

    @abstractmethod
    def observe(
        self,
        start: Latent,
        tokens: Float[Array, "B T e"],
        actions: Float[Array, "B T a"],
        resets: Bool[Array, "B T"],
        key: PRNGKeyArray,
    ) -> tuple[Latent, Float[Array, "B T s p"]]:
        """Latents of observed sequences.

            tokens    x1   x2   x3         of the rows themselves
            actions   a0   a1   a2         taken BEFORE the rows: the caller shifts them
            latents   s1   s2   s3

        Args:
          start: s0, `[B, ...]`.
          resets: `is_first` of the rows: there the state is the one before an episode and the action zero.

        Returns:
          Latents `[B, T, ...]` (samples), and the posterior's belief about their random half.
        """

    @abstractmethod
    def prior(self, latent: Latent) -> Float[Array, "*B s p"]:
        """The distribution of a latent's stoch before its observation."""

    @abstractmethod
    def imagine(self, latent: Latent, action: Float[Array, "*B a"], key: PRNGKeyArray) -> Latent:
        """The latent that follows when `action` is taken, sampled from the prior."""

    def zeros(self, batch: tuple[int, ...], dtype: jnp.dtype) -> Latent:
        """The latent of which nothing is known, with these leading axes; of shapes alone, it needs no parameters."""
        deter, stoch = (*batch, self.deter), (*batch, self.stoch, self.kind.width)
        return Latent(jnp.zeros(deter, dtype), jnp.zeros(stoch, dtype))

    def stored(self) -> dict[str, jax.ShapeDtypeStruct]:
        """The part of a latent that replay keeps."""
        return {}

    def to_replay(self, latent: Latent) -> dict[str, Array]:
        """A latent as replay keeps it, by the keys of `stored`."""
        return {}

    def from_replay(self, row: dict[str, Array], batch: int, dtype: jnp.dtype) -> Latent:
        """Inverse of `to_replay`: latents `[B, ...]`."""
        return self.zeros((batch,), dtype)

    def group(self, out: Float[Array, "*B sp"]) -> Float[Array, "*B s p"]:
        """A network's output, variable by variable."""
        return out.reshape(*out.shape[:-1], self.stoch, self.kind.parameters)

    def draw(self, out: Float[Array, "*B s p"], key: PRNGKeyArray, dtype: jnp.dtype) -> Float[Array, "*B s z"]:
        """A sample of stoch."""
        return self.kind.sample(out, self.kind.noise(key, out.shape[:-1])).astype(dtype)


def features(latent: Latent) -> Float[Array, "*B f"]:
    """The input of the heads: `[stoch, deter]`."""
    return jnp.concatenate([flat_stoch(latent.stoch), latent.deter], -1)


def flat_stoch(stoch: Float[Array, "*B s z"]) -> Float[Array, "*B sz"]:
    """All variables of a latent, one after the other."""
    return stoch.reshape(*stoch.shape[:-2], -1)


def bounded(action: Float[Array, "*B a"]) -> Float[Array, "*B a"]:
    """Actions as dynamics see them: beyond [-1, 1] only their sign is left."""
    return action / lax.stop_gradient(jnp.maximum(1.0, jnp.abs(action)))


class Design(NamedTuple):
    """The widths of a dynamics, whatever its kind."""

    action: int  # of the inputs
    tokens: int
    deter: int  # numbers of the deterministic half
    stoch: int  # random variables
    kind: Stoch  # of these
    hidden: int  # of hidden layers
    prior_layers: int = 2  # hidden ones
    style: Style = FINAL


class TokenPosterior(eqx.Module):
    """The distribution of stoch by an observation alone: one hidden layer."""

    hidden: Linear
    norm: Norm
    out: Linear
    act: Act = eqx.field(static=True)

    def __init__(self, design: Design, *, key: PRNGKeyArray):
        _, tokens, _, stoch, kind, hidden, _, style = design
        keys = jax.random.split(key)
        self.hidden = Linear(tokens, hidden, key=keys[0], bias=style.bias, style=style)
        self.norm = style.norm_of(hidden)
        self.out = Linear(hidden, stoch * kind.parameters, key=keys[1], style=style.out)
        self.act = style.act

    def __call__(self, tokens: Float[Array, "*B e"]) -> Float[Array, "*B sp"]:
        return self.out(ACTIVATIONS[self.act](self.norm(self.hidden(tokens))))
