"""The recurrent state-space model of the Dreamers: a GRU, and beside it random variables.

deter_t  = core(deter_{t-1}, stoch_{t-1}, action_{t-1})      h, deterministic
prior    : stoch_t ~ p(. | deter_t)                          imagine: without the observation
posterior: stoch_t ~ q(. | deter_t, tokens_t)                observe: with it
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Literal, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from reverie.model.dynamics import Design, Dynamics, Latent, bounded, flat_stoch
from reverie.model.stoch import Categorical
from reverie.nn.layers import ACTIVATIONS, FINAL, MLP, Act, BlockLinear, Linear, Style, add_bias, per_block, product
from reverie.nn.norm import LayerNorm, Norm

Recurrence = Literal["block", "dense", "plain"]
First = Literal["zeros", "learned"]


class BlockGRU(eqx.Module):
    """The deterministic transition of the final version (reference `rssm.py: _core`).

    Three inputs of equal width - from deter, stoch and action - are fed to all blocks; a block of the recurrence sees
    them and its own slice of deter only. Reset gate, candidate and update gate are split within each block.
    """

    from_deter: Linear
    from_stoch: Linear
    from_action: Linear
    deter_norm: Norm
    stoch_norm: Norm
    action_norm: Norm
    hidden: BlockLinear
    hidden_norm: Norm
    gates: BlockLinear
    act: Act = eqx.field(static=True)

    def __init__(
        self, deter: int, stoch: int, action: int, hidden: int, blocks: int, *, key: PRNGKeyArray, style: Style = FINAL
    ):
        keys, bias = jax.random.split(key, 5), style.bias
        self.from_deter = Linear(deter, hidden, key=keys[0], bias=bias, style=style)
        self.from_stoch = Linear(stoch, hidden, key=keys[1], bias=bias, style=style)
        self.from_action = Linear(action, hidden, key=keys[2], bias=bias, style=style)
        self.deter_norm, self.stoch_norm, self.action_norm = (style.norm_of(hidden) for _ in range(3))
        self.hidden = BlockLinear(deter + blocks * 3 * hidden, deter, blocks, key=keys[3], bias=bias, style=style)
        self.hidden_norm = style.norm_of(deter)
        self.gates = BlockLinear(deter, 3 * deter, blocks, key=keys[4], style=style.out)
        self.act = style.act

    def drive(self, action: Float[Array, "*B a"], dtype: jnp.dtype) -> Float[Array, "*B d"]:
        """The action's share of the hidden pre-activation; needs no state, so all steps are computed at once."""
        x = ACTIVATIONS[self.act](self.action_norm(self.from_action(bounded(action).astype(dtype))))
        _, _, from_action = self._shared_weights()
        return add_bias(product(x, from_action), self.hidden.bias)

    def __call__(
        self, deter: Float[Array, "*B d"], stoch: Float[Array, "*B sz"], drive: Float[Array, "*B d"]
    ) -> Float[Array, "*B d"]:
        """The next deter. `drive` is `self.drive(action)`."""
        act = ACTIVATIONS[self.act]
        from_deter, from_stoch, _ = self._shared_weights()
        own = self.hidden.weight[:, : deter.shape[-1] // len(self.hidden.weight)].astype(deter.dtype)
        x0 = act(self.deter_norm(self.from_deter(deter)))
        x1 = act(self.stoch_norm(self.from_stoch(stoch)))
        shared = jnp.concatenate([from_deter, from_stoch], 0).astype(deter.dtype)
        x = product(jnp.concatenate([x0, x1], -1), shared) + per_block(lambda w, h: product(h, w), own, deter) + drive
        return self.gates.map(gru, act(self.hidden_norm(x)), deter)

    def _shared_weights(self) -> tuple[Array, Array, Array]:
        """The rows of the block weights that read the inputs common to all blocks, as dense matrices `[hidden, D]`."""
        blocks, rows, outputs = self.hidden.weight.shape
        width = self.from_deter.weight.shape[1]
        shared = self.hidden.weight[:, rows - 3 * width :]
        dense = jnp.swapaxes(shared, 0, 1).reshape(3 * width, blocks * outputs)
        return dense[:width], dense[width : 2 * width], dense[2 * width :]


class HiddenGRU(eqx.Module):
    """A deterministic transition behind one hidden layer that reads stoch and action."""

    hidden: Linear
    act: Act = eqx.field(static=True)

    def drive(self, action: Float[Array, "*B a"], dtype: jnp.dtype) -> Float[Array, "*B h"]:
        """The action's share of the hidden pre-activation; needs no state, so all steps are computed at once."""
        from_action = self.hidden.weight[-action.shape[-1] :].astype(dtype)
        return add_bias(product(bounded(action).astype(dtype), from_action), self.hidden.bias)

    def _before_act(self, stoch: Float[Array, "*B sz"], drive: Float[Array, "*B h"]) -> Float[Array, "*B h"]:
        """The whole pre-activation."""
        return product(stoch, self.hidden.weight[: stoch.shape[-1]]) + drive


class DenseGRU(HiddenGRU):
    """The deterministic transition of DreamerV2 and of the first DreamerV3 (reference `nets.py@8fa35f8: RSSM, _gru`).

    One hidden layer reads stoch and action; one layer from it and deter to the gates, normalised as a whole (in V2 too,
    which has no other norm).
    """

    hidden_norm: Norm
    gates: Linear
    gates_norm: LayerNorm

    def __init__(self, deter: int, stoch: int, action: int, hidden: int, *, key: PRNGKeyArray, style: Style = FINAL):
        keys = jax.random.split(key)
        self.hidden = Linear(stoch + action, hidden, key=keys[0], bias=style.bias, style=style)
        self.hidden_norm = style.norm_of(hidden)
        self.gates = Linear(deter + hidden, 3 * deter, key=keys[1], bias=False, style=style.out)
        self.gates_norm = LayerNorm(3 * deter)
        self.act = style.act

    def __call__(
        self, deter: Float[Array, "*B d"], stoch: Float[Array, "*B sz"], drive: Float[Array, "*B h"]
    ) -> Float[Array, "*B d"]:
        x = ACTIVATIONS[self.act](self.hidden_norm(self._before_act(stoch, drive)))
        return gru(self.gates_norm(self.gates(jnp.concatenate([deter, x], -1))), deter)


class PlainGRU(HiddenGRU):
    """The deterministic transition of DreamerV1: the GRU of Keras, behind one hidden layer that reads stoch and action.

    The input and the state have products of their own, each with a bias: the reset gate acts on the state's alone.
    """

    from_input: Linear
    from_state: Linear

    def __init__(self, deter: int, stoch: int, action: int, hidden: int, *, key: PRNGKeyArray, style: Style = FINAL):
        keys = jax.random.split(key, 3)
        self.hidden = Linear(stoch + action, hidden, key=keys[0], style=style)
        self.from_input = Linear(hidden, 3 * deter, key=keys[1], style=style.out)
        self.from_state = Linear(deter, 3 * deter, key=keys[2], style=style.out)
        self.act = style.act

    def __call__(
        self, deter: Float[Array, "*B d"], stoch: Float[Array, "*B sz"], drive: Float[Array, "*B h"]
    ) -> Float[Array, "*B d"]:
        x = ACTIVATIONS[self.act](self._before_act(stoch, drive))
        keep, reset, candidate = jnp.split(self.from_input(x), 3, -1)
        old_keep, old_reset, old = jnp.split(self.from_state(deter), 3, -1)
        keep = jax.nn.sigmoid(keep + old_keep)
        candidate = jnp.tanh(candidate + jax.nn.sigmoid(reset + old_reset) * old)
        return keep * deter + (1 - keep) * candidate


def gru(gates: Float[Array, "*B g"], state: Float[Array, "*B d"]) -> Float[Array, "*B d"]:
    """The gated update of `state`; gates are reset, candidate and update, in this order."""
    reset, candidate, update = jnp.split(gates, 3, -1)
    return blend(reset, candidate, update, state)


def blend(reset: Array, candidate: Array, update: Array, state: Array) -> Float[Array, "*B d"]:
    """`gru` of gates that are apart; all four are `[*B, d]`."""
    candidate = jnp.tanh(jax.nn.sigmoid(reset) * candidate)
    update = jax.nn.sigmoid(update - 1)
    return update * candidate + (1 - update) * state


class Inputs(NamedTuple):
    """All that an observed step reads beside the state, computed before the loop."""

    drive: Float[Array, "*B d"]  # the action's share of the transition
    seen: Float[Array, "*B u"]  # the observation's share of the posterior
    reset: Bool[Array, "*B"]
    noise: Float[Array, "*B s"]  # the random numbers that decide the samples


# `dyn, start [B, ...], first [...], inputs [T, B, ...] -> latents and outputs of the posterior, [T, B, ...]`
Loop = Callable[["RSSM", Latent, Latent, Inputs], tuple[Latent, Float[Array, "T B s p"]]]


def scan(dyn: RSSM, start: Latent, first: Latent, inputs: Inputs) -> tuple[Latent, Float[Array, "T B s p"]]:
    """The `Loop` that takes one step after the other."""
    return lax.scan(partial(dyn.step, first), start, inputs)[1]


class RSSM(Dynamics):
    """`Dynamics` with a recurrence.

    Args:
      recurrence: a `BlockGRU` of `blocks`, a `DenseGRU` or a `PlainGRU`.
      first: what an episode starts from: nothing, or a learned deter and the most probable stoch after it.
      loop: takes the steps of observed sequences.
    """

    core: BlockGRU | DenseGRU | PlainGRU
    prior_mlp: MLP
    prior_out: Linear
    post_hidden: Linear
    post_norm: Norm
    post_out: Linear
    first: Float[Array, " d"] | None
    loop: Loop = eqx.field(static=True)

    def __init__(
        self,
        design: Design,
        *,
        recurrence: Recurrence,
        key: PRNGKeyArray,
        blocks: int = 8,
        first: First = "zeros",
        loop: Loop = scan,
    ):
        action, tokens, deter, stoch, kind, hidden, prior_layers, style = design
        keys = jax.random.split(key, 5)
        widths = (deter, stoch * kind.width, action, hidden)
        if recurrence == "block":
            self.core = BlockGRU(*widths, blocks, key=keys[0], style=style)
        else:
            self.core = (DenseGRU if recurrence == "dense" else PlainGRU)(*widths, key=keys[0], style=style)
        self.prior_mlp = MLP(deter, hidden, prior_layers, key=keys[1], style=style)
        self.prior_out = Linear(hidden, stoch * kind.parameters, key=keys[2], style=style.out)
        self.post_hidden = Linear(deter + tokens, hidden, key=keys[3], bias=style.bias, style=style)
        self.post_norm = style.norm_of(hidden)
        self.post_out = Linear(hidden, stoch * kind.parameters, key=keys[4], style=style.out)
        self.first = jnp.zeros(deter, jnp.float32) if first == "learned" else None
        self.deter, self.stoch, self.kind, self.act, self.loop = deter, stoch, kind, style.act, loop

    def begin(self, dtype: jnp.dtype) -> Latent:
        """The state before an episode, `[D]` and `[S, Z]`."""
        if self.first is None:
            return self.zeros((), dtype)
        deter = jnp.tanh(self.first).astype(dtype)
        return Latent(deter, self.kind.best(self._prior(deter)).astype(dtype))

    def prior(self, latent: Latent) -> Float[Array, "*B s p"]:
        """As `Dynamics.prior`: of deter alone."""
        return self.kind.belief(self._prior(latent.deter))

    def observe(
        self,
        start: Latent,
        tokens: Float[Array, "B T e"],
        actions: Float[Array, "B T a"],
        resets: Bool[Array, "B T"],
        key: PRNGKeyArray,
    ) -> tuple[Latent, Float[Array, "B T s p"]]:
        """As `Dynamics.observe`."""
        dtype = start.deter.dtype
        # Everything that does not depend on the state leaves the loop: one large product instead of T small ones.
        drive = self.core.drive(jnp.where(resets[..., None], 0.0, actions), dtype)
        seen = add_bias(product(tokens, self.post_hidden.weight[self.deter :]), self.post_hidden.bias)
        first = self.begin(dtype)
        noise = self.kind.noise(key, (*resets.shape, self.stoch))
        inputs = jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1), Inputs(drive, seen, resets, noise))
        found = self.loop(self, start, first, inputs)
        latents, out = jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1), found)
        return latents, self.kind.belief(out)

    def step(
        self, first: Latent, latent: Latent, inputs: Inputs
    ) -> tuple[Latent, tuple[Latent, Float[Array, "B s p"]]]:
        """One observed step of B sequences, as a scan takes it; `first` is the state before an episode."""
        drive, seen, reset, noise = inputs
        dtype = latent.deter.dtype
        fresh = lambda x, begun: jnp.where(reset.reshape(-1, *[1] * (x.ndim - 1)), begun[None], x)
        latent = jax.tree.map(fresh, latent, first)
        deter = self.core(latent.deter, flat_stoch(latent.stoch), drive)
        x = product(deter, self.post_hidden.weight[: self.deter]) + seen
        out = self.group(self.post_out(ACTIVATIONS[self.act](self.post_norm(x))))
        latent = Latent(deter, self.kind.sample(out, noise).astype(dtype))
        return latent, (latent, out)

    def imagine(self, latent: Latent, action: Float[Array, "*B a"], key: PRNGKeyArray) -> Latent:
        drive = self.core.drive(action, latent.deter.dtype)
        deter = self.core(latent.deter, flat_stoch(latent.stoch), drive)
        return Latent(deter, self.draw(self._prior(deter), key, deter.dtype))

    def stored(self) -> dict[str, jax.ShapeDtypeStruct]:
        """Latents in replay cost more than a vector observation: half precision for deter, one byte per code."""
        assert isinstance(self.kind, Categorical), self.kind
        return {
            "deter": jax.ShapeDtypeStruct((self.deter,), jnp.bfloat16),
            "stoch": jax.ShapeDtypeStruct((self.stoch,), jnp.uint8),
        }

    def to_replay(self, latent: Latent) -> dict[str, Array]:
        stoch = jnp.argmax(latent.stoch, -1).astype(jnp.uint8)
        return {"deter": latent.deter.astype(jnp.bfloat16), "stoch": stoch}

    def from_replay(self, row: dict[str, Array], batch: int, dtype: jnp.dtype) -> Latent:
        stoch = jax.nn.one_hot(row["stoch"], self.kind.width, dtype=dtype)
        return Latent(row["deter"].astype(dtype), stoch)

    def _prior(self, deter: Float[Array, "*B d"]) -> Float[Array, "*B s p"]:
        return self.group(self.prior_out(self.prior_mlp(deter)))
