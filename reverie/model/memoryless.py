"""Dynamics without a memory: the state is a function of the latest observation alone.

posterior: stoch_t ~ q(. | tokens_t)
deter_t    = g(stoch_t)
prior    : stoch_t ~ p(. | stoch_{t-1}, action_{t-1})

Enough where an observation tells all there is to know; what was seen earlier is forgotten, so it is also the measure of
what a memory is worth.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from reverie.model.dynamics import Design, Dynamics, Latent, TokenPosterior, bounded, flat_stoch
from reverie.nn.layers import MLP, Linear


class Memoryless(Dynamics):
    """`Dynamics` of one step. What is said of a recurrence means nothing here. What came before matters for one step
    only, so replay keeps nothing."""

    posterior: TokenPosterior
    prior_mlp: MLP
    prior_out: Linear
    expand: MLP

    def __init__(self, design: Design, *, key: PRNGKeyArray, **recurrence: Any):
        action, _, deter, stoch, kind, hidden, prior_layers, style = design
        keys = jax.random.split(key, 4)
        self.posterior = TokenPosterior(design, key=keys[0])
        self.prior_mlp = MLP(stoch * kind.width + action, hidden, prior_layers, key=keys[1], style=style)
        self.prior_out = Linear(hidden, stoch * kind.parameters, key=keys[2], style=style.out)
        self.expand = MLP(stoch * kind.width, deter, 1, key=keys[3], style=style)
        self.deter, self.stoch, self.kind, self.act = deter, stoch, kind, style.act

    def zeros(self, batch: tuple[int, ...], dtype: jnp.dtype) -> Latent:
        prior = jnp.zeros((*batch, self.stoch, self.kind.parameters), dtype)
        return super().zeros(batch, dtype)._replace(memory=prior)

    def observe(
        self,
        start: Latent,
        tokens: Float[Array, "B T e"],
        actions: Float[Array, "B T a"],
        resets: Bool[Array, "B T"],
        key: PRNGKeyArray,
    ) -> tuple[Latent, Float[Array, "B T s p"]]:
        dtype, out = start.deter.dtype, self.group(self.posterior(tokens))
        stoch = self.draw(out, key, dtype)
        fresh = resets[..., None]
        before = jnp.concatenate([start.stoch[:, None], stoch[:, :-1]], 1)
        before = jnp.where(fresh[..., None], jnp.zeros_like(before), before)
        prior = self._prior(before, jnp.where(fresh, 0.0, actions))
        return self._latent(stoch, prior), self.kind.belief(out)

    def prior(self, latent: Latent) -> Float[Array, "*B s p"]:
        return self.kind.belief(latent.memory)

    def imagine(self, latent: Latent, action: Float[Array, "*B a"], key: PRNGKeyArray) -> Latent:
        out = self._prior(latent.stoch, action)
        return self._latent(self.draw(out, key, latent.deter.dtype), out)

    def _latent(self, stoch: Float[Array, "*B s z"], prior: Float[Array, "*B s p"]) -> Latent:
        """The latent; its memory is only what was expected of it."""
        return Latent(self.expand(flat_stoch(stoch)), stoch, prior)

    def _prior(self, stoch: Float[Array, "*B s z"], action: Float[Array, "*B a"]) -> Float[Array, "*B s p"]:
        x = jnp.concatenate([flat_stoch(stoch), bounded(action).astype(stoch.dtype)], -1)
        return self.group(self.prior_out(self.prior_mlp(x)))
