"""Dynamics by attention: a causal transformer over past latents and actions, instead of a recurrence.

posterior: stoch_t ~ q(. | tokens_t)                                no loop over time in training
deter_t    = transformer((stoch_t, action_{t-1}), those before it)  of the same episode, at most `WINDOW` steps back
prior    : stoch_t ~ p(. | deter_{t-1}, action_{t-1})

The prior is a small network of deter and the next action, so deter holds all of the past that any next step depends on.
An actor reads the same deter. With an attention that sees the action as well, deter_t would only hold what foretells
step t: in Recall, the answer would appear in it after the question, when the actor has spoken.

The memory of a latent is what attention needs of the past: keys and values of the last steps, in every layer. Imagining
a step computes one new entry and forgets the oldest (the world models of Micheli et al. 2023, arXiv 2209.00588, and
Zhang et al. 2023, arXiv 2310.09615, are of this kind). How far back an entry lies is told by a learned bias for every
distance, so that an entry never has to be computed anew when it moves.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from reverie.model.dynamics import Design, Dynamics, Latent, TokenPosterior, bounded, flat_stoch
from reverie.nn.layers import MLP, Linear, Style
from reverie.nn.norm import RMSNorm

WINDOW = 32  # steps that are remembered
BLOCKS = 2
HEADS = 4
NEVER = -1e9  # attention to what may not be seen


class Memory(NamedTuple):
    """The past of a latent, the oldest first; `[*B, blocks, W, D]` and, bool, `[*B, W]`. And the parameters of its
    stoch's distribution before it was observed."""

    keys: Float[Array, "*B n w d"]
    values: Float[Array, "*B n w d"]
    there: Bool[Array, "*B w"]
    prior: Float[Array, "*B s p"]


class Block(eqx.Module):
    """Attention, then an MLP, each behind a norm and added to what came in."""

    norms: tuple[RMSNorm, RMSNorm]
    query: Linear
    key: Linear
    value: Linear
    out: Linear
    widen: Linear
    narrow: Linear
    distance: Float[Array, "h w1"]

    def __init__(self, width: int, *, key: PRNGKeyArray, style: Style):
        keys, plain = jax.random.split(key, 6), style.out
        self.norms = RMSNorm(width), RMSNorm(width)
        self.query, self.key, self.value, self.out = (
            Linear(width, width, key=k, bias=False, style=plain) for k in keys[:4]
        )
        self.widen = Linear(width, 2 * width, key=keys[4], style=style)
        self.narrow = Linear(2 * width, width, key=keys[5], style=plain)
        self.distance = jnp.zeros((HEADS, WINDOW + 1), jnp.float32)

    def entries(self, x: Float[Array, "*B d"]) -> tuple[Array, Array, Array]:
        """Query, key and value of inputs."""
        x = self.norms[0](x)
        return self.query(x), self.key(x), self.value(x)

    def __call__(
        self,
        x: Float[Array, "*B q d"],
        query: Float[Array, "*B q d"],
        keys: Float[Array, "*B k d"],
        values: Float[Array, "*B k d"],
        back: Int[Array, "q k"],
        seen: Bool[Array, "*B q k"],
    ) -> Float[Array, "*B q d"]:
        """The outputs of inputs `x`; entry k lies `back[q, k]` steps before q, and is `seen` from there or not."""
        split = lambda x: x.reshape(*x.shape[:-1], HEADS, -1)
        query, keys, values = split(query), split(keys), split(values)
        scores = jnp.einsum("...qhc,...khc->...hqk", query, keys, preferred_element_type=jnp.float32)
        bias = self.distance[:, jnp.clip(back, 0, WINDOW)]
        scores = scores / math.sqrt(query.shape[-1]) + bias.reshape((1,) * (scores.ndim - 3) + bias.shape)
        weights = jax.nn.softmax(jnp.where(seen[..., None, :, :], scores, NEVER), -1).astype(values.dtype)
        found = jnp.einsum("...hqk,...khc->...qhc", weights, values)
        x = x + self.out(found.reshape(x.shape))
        return x + self.narrow(jax.nn.silu(self.widen(self.norms[1](x))))


class Transformer(Dynamics):
    """`Dynamics` by attention. What is said of a recurrence means nothing here. A memory is many times as large as what
    is seen, so every sequence makes its own."""

    posterior: TokenPosterior
    embed: Linear
    blocks: tuple[Block, ...]
    norm: RMSNorm
    out: Linear
    prior_mlp: MLP
    prior_out: Linear
    width: int = eqx.field(static=True)

    def __init__(self, design: Design, *, key: PRNGKeyArray, **recurrence: Any):
        action, _, deter, stoch, kind, hidden, prior_layers, style = design
        keys = jax.random.split(key, 5 + BLOCKS)
        self.width = 2 * hidden
        self.posterior = TokenPosterior(design, key=keys[0])
        self.embed = Linear(stoch * kind.width + action, self.width, key=keys[1], style=style.out)
        self.blocks = tuple(Block(self.width, key=k, style=style) for k in keys[5:])
        self.norm = RMSNorm(self.width)
        self.out = Linear(self.width, deter, key=keys[2], style=style.out)
        self.prior_mlp = MLP(deter + action, hidden, prior_layers, key=keys[3], style=style)
        self.prior_out = Linear(hidden, stoch * kind.parameters, key=keys[4], style=style.out)
        self.deter, self.stoch, self.kind, self.act = deter, stoch, kind, style.act

    def zeros(self, batch: tuple[int, ...], dtype: jnp.dtype) -> Latent:
        """As `Dynamics.zeros`: an empty memory."""
        past = jnp.zeros((*batch, BLOCKS, WINDOW, self.width), dtype)
        prior = jnp.zeros((*batch, self.stoch, self.kind.parameters), dtype)
        memory = Memory(past, past, jnp.zeros((*batch, WINDOW), bool), prior)
        return super().zeros(batch, dtype)._replace(memory=memory)

    def observe(
        self,
        start: Latent,
        tokens: Float[Array, "B T e"],
        actions: Float[Array, "B T a"],
        resets: Bool[Array, "B T"],
        key: PRNGKeyArray,
    ) -> tuple[Latent, Float[Array, "B T s p"]]:
        """As `Dynamics.observe`, all steps at once.

        entry     m1 .. mW | u1   u2   ...  uT       W of the memory of `start`, then (stoch_t, action_{t-1})
        query                u1   u2   ...  uT
        seen      in the same episode, not later, at most W steps before
        """
        dtype, out, steps = start.deter.dtype, self.group(self.posterior(tokens)), tokens.shape[1]
        stoch = self.draw(out, key, dtype)
        fresh = resets[..., None]
        actions = jnp.where(fresh, 0.0, actions)
        x = self._embed(stoch, actions)

        episode = jnp.cumsum(resets, 1)
        episodes = jnp.concatenate([jnp.zeros((len(resets), WINDOW), episode.dtype), episode], 1)
        there = jnp.concatenate([start.memory.there, jnp.ones_like(resets)], 1)
        at = jnp.arange(WINDOW + steps)
        back = at[WINDOW:, None] - at[None]
        near = (back >= 0) & (back <= WINDOW)
        seen = near[None] & there[:, None] & (episode[..., None] == episodes[:, None])

        x, keys, values = self._attend(x, start.memory, back, seen)
        deter = self._deter(x)
        before = jnp.concatenate([start.deter[:, None], deter[:, :-1]], 1)
        prior = self._prior(jnp.where(fresh, jnp.zeros_like(before), before), actions)

        # The memory after step t: entries t + 1 to t + W of all, those of the episode that t belongs to.
        span = jnp.arange(steps)[:, None] + 1 + jnp.arange(WINDOW)[None]
        past = lambda all: all[:, :, span].swapaxes(1, 2)  # [B, T, n, W, D]
        lasting = there[:, span] & (episodes[:, span] == episode[..., None])
        latents = Latent(deter, stoch, Memory(past(keys), past(values), lasting, prior))
        return latents, self.kind.belief(out)

    def prior(self, latent: Latent) -> Float[Array, "*B s p"]:
        return self.kind.belief(latent.memory.prior)

    def imagine(self, latent: Latent, action: Float[Array, "*B a"], key: PRNGKeyArray) -> Latent:
        """As `Dynamics.imagine`: one new entry, and the oldest is forgotten."""
        out = self._prior(latent.deter, action)
        stoch = self.draw(out, key, latent.deter.dtype)
        x = self._embed(stoch, action)[..., None, :]
        one = jnp.ones((*latent.memory.there.shape[:-1], 1), bool)
        there = jnp.concatenate([latent.memory.there, one], -1)
        back = jnp.arange(WINDOW, -1, -1)[None]
        x, keys, values = self._attend(x, latent.memory, back, there[..., None, :])
        memory = Memory(keys[..., 1:, :], values[..., 1:, :], there[..., 1:], out)
        return Latent(self._deter(x[..., 0, :]), stoch, memory)

    def _attend(
        self, x: Float[Array, "*B q d"], memory: Memory, back: Int[Array, "q k"], seen: Bool[Array, "*B q k"]
    ) -> tuple[Float[Array, "*B q d"], Float[Array, "*B n k d"], Float[Array, "*B n k d"]]:
        """Outputs of inputs `x` that follow a memory, and the keys and values of both in every layer."""
        keys, values = [], []
        for n, block in enumerate(self.blocks):
            query, key, value = block.entries(x)
            keys.append(jnp.concatenate([memory.keys[..., n, :, :], key], -2))
            values.append(jnp.concatenate([memory.values[..., n, :, :], value], -2))
            x = block(x, query, keys[-1], values[-1], back, seen)
        return x, jnp.stack(keys, -3), jnp.stack(values, -3)

    def _deter(self, x: Float[Array, "*B d"]) -> Float[Array, "*B e"]:
        return jnp.tanh(self.out(self.norm(x)))

    def _embed(self, stoch: Float[Array, "*B s z"], action: Float[Array, "*B a"]) -> Float[Array, "*B d"]:
        return self.embed(jnp.concatenate([flat_stoch(stoch), bounded(action).astype(stoch.dtype)], -1))

    def _prior(self, deter: Float[Array, "*B e"], action: Float[Array, "*B a"]) -> Float[Array, "*B s p"]:
        x = jnp.concatenate([deter, bounded(action).astype(deter.dtype)], -1)
        return self.group(self.prior_out(self.prior_mlp(x)))
