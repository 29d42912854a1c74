"""The recurrent state-space model of DreamerV3: a GRU with categorical latents.

deter_t  = core(deter_{t-1}, stoch_{t-1}, action_{t-1})      h, deterministic
prior    : stoch_t ~ p(. | deter_t)                          imagine: without the observation
posterior: stoch_t ~ q(. | deter_t, tokens_t)                observe: with it
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from reverie.nn.dists import mixed, sample_one_hot, straight_through, unimix
from reverie.nn.layers import FINAL, MLP, BlockLinear, Linear, Style, biased, per_block
from reverie.nn.norm import LayerNorm, RMSNorm


class Latent(NamedTuple):
    """A state of the model: `deter` `[*B, D]` and one-hot `stoch` `[*B, S, Z]`, both in the compute dtype."""

    deter: Float[Array, "*B d"]
    stoch: Float[Array, "*B s z"]


def features(latent: Latent) -> Float[Array, "*B f"]:
    """What the heads read: `[stoch, deter]`."""
    stoch = latent.stoch.reshape(*latent.stoch.shape[:-2], -1)
    return jnp.concatenate([stoch, latent.deter], -1)


def bounded(action: Float[Array, "*B a"]) -> Float[Array, "*B a"]:
    """Actions as the recurrence sees them: beyond [-1, 1] only their sign is left."""
    return action / lax.stop_gradient(jnp.maximum(1.0, jnp.abs(action)))


class BlockGRU(eqx.Module):
    """The deterministic transition of the final version (reference `rssm.py: _core`).

    Three inputs of equal width - from deter, stoch and action - are fed to all blocks; a block of the recurrence sees
    them and its own slice of deter only. Reset gate, candidate and update gate are split within each block.
    """

    from_deter: Linear
    from_stoch: Linear
    from_action: Linear
    deter_norm: RMSNorm | LayerNorm
    stoch_norm: RMSNorm | LayerNorm
    action_norm: RMSNorm | LayerNorm
    hidden: BlockLinear
    hidden_norm: RMSNorm | LayerNorm
    gates: BlockLinear

    def __init__(
        self,
        deter: int,
        stoch: int,
        action: int,
        hidden: int,
        blocks: int,
        *,
        key: PRNGKeyArray,
        style: Style = FINAL,
    ):
        keys, bias = jax.random.split(key, 5), style.bias
        self.from_deter = Linear(deter, hidden, key=keys[0], bias=bias, style=style)
        self.from_stoch = Linear(stoch, hidden, key=keys[1], bias=bias, style=style)
        self.from_action = Linear(action, hidden, key=keys[2], bias=bias, style=style)
        self.deter_norm, self.stoch_norm, self.action_norm = (style.norm_of(hidden) for _ in range(3))
        self.hidden = BlockLinear(deter + blocks * 3 * hidden, deter, blocks, key=keys[3], bias=bias, style=style)
        self.hidden_norm = style.norm_of(deter)
        self.gates = BlockLinear(deter, 3 * deter, blocks, key=keys[4], style=style)

    def drive(self, action: Float[Array, "*B a"], dtype: jnp.dtype) -> Float[Array, "*B d"]:
        """What the action adds to the hidden pre-activation; needs no state, so all steps are computed at once."""
        x = jax.nn.silu(self.action_norm(self.from_action(bounded(action).astype(dtype))))
        _, _, from_action = self._shared_weights()
        return biased(x @ from_action.astype(dtype), self.hidden.bias)

    def __call__(
        self, deter: Float[Array, "*B d"], stoch: Float[Array, "*B sz"], drive: Float[Array, "*B d"]
    ) -> Float[Array, "*B d"]:
        """The next deter. `drive` is `self.drive(action)`."""
        from_deter, from_stoch, _ = self._shared_weights()
        own = self.hidden.weight[:, : deter.shape[-1] // self._blocks].astype(deter.dtype)
        x0 = jax.nn.silu(self.deter_norm(self.from_deter(deter)))
        x1 = jax.nn.silu(self.stoch_norm(self.from_stoch(stoch)))
        shared = jnp.concatenate([from_deter, from_stoch], 0).astype(deter.dtype)
        x = jnp.concatenate([x0, x1], -1) @ shared + per_block(lambda w, h: h @ w, own, deter) + drive
        return self.gates.map(gru, jax.nn.silu(self.hidden_norm(x)), deter)

    @property
    def _blocks(self) -> int:
        return self.gates.weight.shape[0]

    def _shared_weights(self) -> tuple[Array, Array, Array]:
        """The rows of the block weights that read the inputs common to all blocks, as dense matrices `[hidden, D]`."""
        blocks, rows, outputs = self.hidden.weight.shape
        width = self.from_deter.weight.shape[1]
        shared = self.hidden.weight[:, rows - 3 * width :]
        dense = jnp.swapaxes(shared, 0, 1).reshape(3 * width, blocks * outputs)
        return dense[:width], dense[width : 2 * width], dense[2 * width :]


class DenseGRU(eqx.Module):
    """The deterministic transition of the first version (reference `nets.py@8fa35f8: RSSM, _gru`).

    One hidden layer reads stoch and action; one layer from it and deter to the gates, normalised as a whole.
    """

    hidden: Linear
    hidden_norm: RMSNorm | LayerNorm
    gates: Linear
    gates_norm: RMSNorm | LayerNorm

    def __init__(self, deter: int, stoch: int, action: int, hidden: int, *, key: PRNGKeyArray, style: Style = FINAL):
        keys = jax.random.split(key)
        self.hidden = Linear(stoch + action, hidden, key=keys[0], bias=style.bias, style=style)
        self.hidden_norm = style.norm_of(hidden)
        self.gates = Linear(deter + hidden, 3 * deter, key=keys[1], bias=style.bias, style=style)
        self.gates_norm = style.norm_of(3 * deter)

    def drive(self, action: Float[Array, "*B a"], dtype: jnp.dtype) -> Float[Array, "*B h"]:
        """What the action adds to the hidden pre-activation; needs no state, so all steps are computed at once."""
        from_action = self.hidden.weight[-action.shape[-1] :].astype(dtype)
        return biased(bounded(action).astype(dtype) @ from_action, self.hidden.bias)

    def __call__(
        self, deter: Float[Array, "*B d"], stoch: Float[Array, "*B sz"], drive: Float[Array, "*B h"]
    ) -> Float[Array, "*B d"]:
        """The next deter. `drive` is `self.drive(action)`."""
        from_stoch = self.hidden.weight[: stoch.shape[-1]].astype(deter.dtype)
        x = jax.nn.silu(self.hidden_norm(stoch @ from_stoch + drive))
        return gru(self.gates_norm(self.gates(jnp.concatenate([deter, x], -1))), deter)


def gru(gates: Float[Array, "*B g"], state: Float[Array, "*B d"]) -> Float[Array, "*B d"]:
    """The gated update of `state`; gates are reset, candidate and update, in this order."""
    reset, candidate, update = jnp.split(gates, 3, -1)
    candidate = jnp.tanh(jax.nn.sigmoid(reset) * candidate)
    update = jax.nn.sigmoid(update - 1)
    return update * candidate + (1 - update) * state


class RSSM(eqx.Module):
    """Dynamics and beliefs. All methods take any leading batch shape unless they name a time axis.

    Args:
      action, tokens: widths of the inputs.
      deter, stoch, classes, hidden: widths of the state (`stoch` variables of `classes`) and of hidden layers.
      blocks: of the recurrence, a `BlockGRU`; 0 for a `DenseGRU`.
      unimix: share of uniform distribution in prior and posterior.
      prior_layers: hidden layers of the prior.
      first: what an episode starts from: nothing, or a learned deter and the most probable stoch after it.
      straight_through: whether samples carry the gradient of their probabilities. If not, the encoder learns from the
        KL alone, and no gradient reaches an earlier stoch.
    """

    core: BlockGRU | DenseGRU
    prior_mlp: MLP
    prior_out: Linear
    post_hidden: Linear
    post_norm: RMSNorm | LayerNorm
    post_out: Linear
    first: Float[Array, " d"] | None
    deter: int = eqx.field(static=True)
    stoch: int = eqx.field(static=True)
    classes: int = eqx.field(static=True)
    unimix: float = eqx.field(static=True)
    straight_through: bool = eqx.field(static=True)

    def __init__(
        self,
        *,
        action: int,
        tokens: int,
        deter: int,
        stoch: int,
        classes: int,
        hidden: int,
        blocks: int,
        unimix: float,
        key: PRNGKeyArray,
        prior_layers: int = 2,
        first: Literal["zeros", "learned"] = "zeros",
        straight_through: bool = True,
        style: Style = FINAL,
    ):
        keys = jax.random.split(key, 5)
        if blocks:
            self.core = BlockGRU(deter, stoch * classes, action, hidden, blocks, key=keys[0], style=style)
        else:
            self.core = DenseGRU(deter, stoch * classes, action, hidden, key=keys[0], style=style)
        self.prior_mlp = MLP(deter, hidden, prior_layers, key=keys[1], style=style)
        self.prior_out = Linear(hidden, stoch * classes, key=keys[2], style=style)
        self.post_hidden = Linear(deter + tokens, hidden, key=keys[3], bias=style.bias, style=style)
        self.post_norm = style.norm_of(hidden)
        self.post_out = Linear(hidden, stoch * classes, key=keys[4], style=style)
        self.first = jnp.zeros(deter, jnp.float32) if first == "learned" else None
        self.deter, self.stoch, self.classes, self.unimix = deter, stoch, classes, unimix
        self.straight_through = straight_through

    def zeros(self, batch: tuple[int, ...], dtype: jnp.dtype) -> Latent:
        """No state: what stands where a sequence begins with `is_first`."""
        return Latent(
            jnp.zeros((*batch, self.deter), dtype),
            jnp.zeros((*batch, self.stoch, self.classes), dtype),
        )

    def begin(self, dtype: jnp.dtype) -> Latent:
        """The state before an episode, `[D]` and `[S, Z]`."""
        if self.first is None:
            return self.zeros((), dtype)
        deter = jnp.tanh(self.first).astype(dtype)
        best = jnp.argmax(self._prior(deter), -1)
        return Latent(deter, jax.nn.one_hot(best, self.classes, dtype=dtype))

    def prior(self, deter: Float[Array, "*B d"]) -> Float[Array, "*B s z"]:
        """Log-probabilities of stoch given deter alone."""
        return unimix(self._prior(deter), self.unimix)

    def observe(
        self,
        start: Latent,
        tokens: Float[Array, "B T e"],
        actions: Float[Array, "B T a"],
        resets: Bool[Array, "B T"],
        key: PRNGKeyArray,
    ) -> tuple[Latent, Float[Array, "B T s z"]]:
        """Latents of observed sequences.

            tokens    x1   x2   x3         of the rows themselves
            actions   a0   a1   a2         taken BEFORE the rows: the caller shifts them
            latents   s1   s2   s3

        Args:
          start: s0, `[B, ...]`.
          resets: `is_first` of the rows: there the state is the one before an episode and the action zero.

        Returns:
          Latents `[B, T, ...]` (samples) and the posterior's log-probabilities.
        """
        dtype = start.deter.dtype
        # Everything that does not depend on the state leaves the loop: one large product instead of T small ones.
        drive = self.core.drive(jnp.where(resets[..., None], 0.0, actions), dtype)
        seen = biased(tokens @ self.post_hidden.weight[self.deter :].astype(dtype), self.post_hidden.bias)
        first = self.begin(dtype)
        uniform = jax.random.uniform(key, (*resets.shape, self.stoch))

        def step(latent: Latent, xs: tuple[Array, ...]) -> tuple[Latent, tuple[Latent, Array]]:
            drive, seen, reset, uniform = xs
            fresh = lambda x, begun: jnp.where(reset.reshape(-1, *[1] * (x.ndim - 1)), begun[None], x)
            latent = jax.tree.map(fresh, latent, first)
            deter = self.core(latent.deter, self._flat(latent.stoch), drive)
            logits = self._posterior(deter, seen)
            latent = Latent(deter, self._sample(logits, uniform).astype(dtype))
            return latent, (latent, logits)

        time_major = jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1), (drive, seen, resets, uniform))
        _, out = lax.scan(step, start, time_major)
        latents, logits = jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1), out)
        return latents, unimix(logits, self.unimix)

    def imagine(self, latent: Latent, action: Float[Array, "*B a"], key: PRNGKeyArray) -> Latent:
        """The latent that follows when `action` is taken, sampled from the prior."""
        drive = self.core.drive(action, latent.deter.dtype)
        deter = self.core(latent.deter, self._flat(latent.stoch), drive)
        logits = self._prior(deter)
        uniform = jax.random.uniform(key, logits.shape[:-1])
        return Latent(deter, self._sample(logits, uniform).astype(deter.dtype))

    def _prior(self, deter: Float[Array, "*B d"]) -> Float[Array, "*B s z"]:
        return self._grouped(self.prior_out(self.prior_mlp(deter)))

    def _posterior(self, deter: Float[Array, "*B d"], seen: Float[Array, "*B h"]) -> Float[Array, "*B s z"]:
        x = deter @ self.post_hidden.weight[: self.deter].astype(deter.dtype) + seen
        return self._grouped(self.post_out(jax.nn.silu(self.post_norm(x))))

    def _grouped(self, x: Float[Array, "*B sz"]) -> Float[Array, "*B s z"]:
        return x.reshape(*x.shape[:-1], self.stoch, self.classes)

    def _sample(self, logits: Float[Array, "*B s z"], uniform: Float[Array, "*B s"]) -> Float[Array, "*B s z"]:
        probs = mixed(logits, self.unimix)
        sample = sample_one_hot(lax.stop_gradient(probs), uniform)
        return straight_through(sample, probs) if self.straight_through else sample

    def _flat(self, stoch: Float[Array, "*B s z"]) -> Float[Array, "*B sz"]:
        return stoch.reshape(*stoch.shape[:-2], -1)
