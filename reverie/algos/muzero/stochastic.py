"""Stochastic MuZero (Antonoglou et al., ICLR 2022): planning where the world rolls dice.

What differs from MuZero: a step is two. The player's action leads to an afterstate, and chance, one of C codes, from
there to the next state. An encoder names the code that really came; the afterstate learns how probable each one is. In
the tree, decisions and chance take turns.

    state s_k --action--> afterstate a_k --code--> state s_{k+1}
    policy, value         code probabilities, value    reward, policy, value
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax
from jax.lax import stop_gradient
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from reverie.agent import Row
from reverie.algos.muzero import model, muzero
from reverie.algos.muzero.frames import observed
from reverie.algos.muzero.model import Legal
from reverie.algos.muzero.values import Puct
from reverie.behavior.returns import Window
from reverie.behavior.search import TINY, SearchResult
from reverie.behavior.tree import ILLEGAL
from reverie.envs.base import Spaces
from reverie.fields import Share, Weight, Within
from reverie.model.heads import ScalarHead
from reverie.model.unroll import Hidden, halve_gradient
from reverie.nn.dists import straight_through
from reverie.nn.layers import FINAL, MLP, Linear


@dataclass(frozen=True, kw_only=True)
class Config(Puct):
    """The values of the algorithm."""

    codes: Annotated[int, Within(1, 2**16)] = 32
    """C: outcomes of chance that the model can tell apart."""
    search: Literal["puct", "gumbel"] = "puct"
    """PUCT as in the paper; or Gumbel's improved policy, which makes do with few simulations."""
    chance_scale: Weight = 1.0
    """Weight of the loss of their probabilities."""
    commitment_scale: Weight = 1.0
    """Weight of the loss that keeps the encoder close to the codes it chooses."""
    balance_scale: Weight = 0.0
    """Weight of a loss that keeps all codes in use: how far their mean over a batch is from even, in nats. Without it
    the encoder may settle on one code before it matters which, and the model is one without chance."""

    # MuZero's, with other defaults.
    lam: Share = 0.5
    discount: Share = 0.999
    root_noise: Share = 0.1


class Chance(eqx.Module):
    """An afterstate's own networks, and the encoder of what came of it."""

    body: model.Body  # of which only `advance` is used, from a state by an action
    prob: tuple[MLP, Linear]
    val: ScalarHead
    enc: tuple[MLP, Linear]


class Model(model.Model):
    """MuZero's, whose dynamics take a code of chance instead of an action, with afterstates. `memory` of a latent is
    bool `[*B]`: whether it is an afterstate."""

    after: Chance
    codes: int = eqx.field(static=True)

    def __init__(self, config: Any, obs_space: Spaces, act_space: Spaces, dtype: str, key: PRNGKeyArray):
        base, *keys = jax.random.split(key, 8)
        super().__init__(config, obs_space, act_space, dtype, base, moves=config.codes)
        self.codes = config.codes
        seen = model.seen_space(obs_space, config.stack)
        read, units, even = self.body.outputs, config.units, FINAL.output(0.0)  # at first, chance does anything
        self.after = Chance(
            body=model.make_body(config, seen, self.classes, keys[0]),
            prob=(MLP(read, units, config.layers, key=keys[1]), Linear(units, self.codes, key=keys[2], style=even)),
            val=ScalarHead(read, units, config.layers, **config.scalar(), key=keys[3]),
            enc=(MLP(2 * read, units, config.layers, key=keys[4]), Linear(units, self.codes, key=keys[5])),
        )

    def represent(self, obs: Mapping[str, Array]) -> Hidden:
        root = super().represent(obs)
        return root._replace(memory=jnp.zeros(root.reward.shape, bool))

    def moved(self, hidden: Hidden, action: Int[Array, "*B"]) -> Hidden:
        """The afterstate of an action. It pays nothing."""
        state = self.after.body.advance(hidden.state, jax.nn.one_hot(action, self.classes))
        return Hidden(state, jnp.zeros_like(hidden.reward), jnp.ones(hidden.reward.shape, bool))

    def after_chance(self, after: Hidden, code: Float[Array, "*B c"]) -> Hidden:
        """The state that chance leads to, and the reward of the whole step."""
        state = self.body.advance(after.state, code)
        return Hidden(state, self.rew(self.body.read(state)).pred(), jnp.zeros(after.reward.shape, bool))

    def advance(self, hidden: Hidden, action: Int[Array, "*B"]) -> Hidden:
        """One whole step, with the most probable outcome."""
        after = self.moved(hidden, action)
        return self.after_chance(after, jax.nn.one_hot(jnp.argmax(self.odds(after), -1), self.codes))

    def odds(self, after: Hidden) -> Float[Array, "*B c"]:
        """Logits of the codes at an afterstate."""
        hidden, out = self.after.prob
        return out(hidden(self.body.read(after.state))).astype(jnp.float32)

    def encode(self, before: Array, now: Array) -> Float[Array, "*B c"]:
        """Probabilities of the code that stands for what came, from the representations before and after it."""
        hidden, out = self.after.enc
        both = jnp.concatenate([self.body.read(before), self.body.read(now)], -1)
        return jax.nn.softmax(out(hidden(both)).astype(jnp.float32), -1)

    def imagine(self, latent: Hidden, action: Int[Array, "*B"], key: PRNGKeyArray) -> Hidden:
        """Half a step: an action at a state, a code at an afterstate. Which it is differs from tree to tree."""
        moved, after_chance = self.moved(latent, action), self.after_chance(latent, jax.nn.one_hot(action, self.codes))
        pick = lambda a, b: jnp.where(
            latent.memory.reshape(*latent.memory.shape, *[1] * (a.ndim - latent.memory.ndim)), a, b
        )
        return jax.tree.map(pick, after_chance, moved)

    def predict(self, latent: Hidden) -> tuple[Float[Array, "*B"], Float[Array, "*B"]]:
        """An afterstate is reached for nothing and at once, and is worth what it is to the player who moved. The next
        state pays, counts as a step, and may be another player's."""
        return latent.reward, jnp.where(latent.memory, 1.0, self.discount(latent))

    def chance(self, latent: Hidden) -> Bool[Array, "*B"]:
        return latent.memory

    def evaluate(self, latent: Hidden) -> tuple[Float[Array, "*B a"], Float[Array, "*B"]]:
        policy, value = self.judge(latent)
        most = max(self.classes, self.codes)
        pad = lambda x: jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, most - x.shape[-1])], constant_values=ILLEGAL)
        odds = jax.nn.log_softmax(self.odds(latent), -1)
        after = latent.memory
        logits = jnp.where(after[..., None], pad(odds), pad(policy.logp[..., 0, :]))
        return logits, jnp.where(after, self.after.val(self.body.read(latent.state)).pred(), value.pred())


class StochasticMuZero(muzero.MuZero):
    networks = Model

    def search(
        self, model: Any, root: Hidden, key: PRNGKeyArray, legal: Legal, temperature: Float[Array, " B"] | None
    ) -> SearchResult:
        wide = max(self.choices, self.config.codes)
        if legal is None:
            legal = jnp.ones((root.reward.shape[0], self.choices), bool)
        legal = jnp.pad(legal, ((0, 0), (0, wide - self.choices)))
        found = super().search(model, root, key, legal, temperature)
        return found._replace(policy=found.policy[:, : self.choices])

    def unroll(self, model: Any, batch: Row, actions: Array) -> Hidden:
        """States 0 to K; `memory` of state k holds what led to it: the afterstate, the code that came, and the code's
        probabilities by the encoder (of state 0: by nothing)."""
        config = self.config
        seen = model.represent(observed(self, batch, 0, config.unroll + 1)).state
        probs = model.encode(seen[:, :-1], seen[:, 1:])  # [B, K, C]
        hard = jax.nn.one_hot(jnp.argmax(probs, -1), config.codes)
        codes = straight_through(hard, probs)
        root = model.represent({k: v[:, 0] for k, v in observed(self, batch, 0, 1).items()})

        def step(hidden: Hidden, xs: tuple[Array, Array]) -> tuple[Hidden, tuple[Hidden, Array]]:
            action, code = xs
            after = model.moved(hidden._replace(state=halve_gradient(hidden.state)), action)
            now = model.after_chance(after, code)
            return now, (now, after.state)

        _, (rest, afters) = lax.scan(step, root, (actions.T, jnp.swapaxes(codes, 0, 1)), unroll=True)
        join = lambda x, xs: jnp.concatenate([x[:, None], jnp.swapaxes(xs, 0, 1)], 1)
        plain = Hidden(join(root.state, rest.state), join(root.reward, rest.reward))
        return plain._replace(memory=(jnp.swapaxes(afters, 0, 1), hard, probs))

    def losses(self, model: Any, states: Hidden, window: Window, batch: Row) -> muzero.Losses:
        config, reward = self.config, states.reward[:, 1:]
        afters, hard, probs = states.memory
        losses = super().losses(model, states._replace(memory=()), window, batch)
        after = Hidden(afters, reward, jnp.ones(reward.shape, bool))
        # Of the step from k to k + 1, counted with state k.
        there = window.same_episode.astype(jnp.float32)
        pad = lambda x: jnp.concatenate([there * x, jnp.zeros_like(x[:, :1])], 1)
        chance = -(stop_gradient(hard) * jax.nn.log_softmax(model.odds(after), -1)).sum(-1)
        value = model.after.val(model.body.read(afters)).loss(self.worth(window))
        commitment = jnp.square(probs - stop_gradient(hard)).sum(-1)
        use = (there[..., None] * probs).sum((0, 1)) / jnp.maximum(there.sum(), 1.0)
        uneven = jnp.log(config.codes) + (use * jnp.log(jnp.maximum(use, TINY))).sum()
        return losses | {
            "chance": (config.chance_scale, pad(chance)),
            "after_value": (config.value_scale, pad(value)),
            "commitment": (config.commitment_scale, pad(commitment)),
            "balance": (config.balance_scale, pad(jnp.broadcast_to(uneven, there.shape))),
        }

    def worth(self, window: Window) -> Float[Array, "B u"]:
        """Value targets of the afterstates between rows k and k + 1, in the view of the player who moved: what the
        state before returned; or, with the values of what was seen, what came and such a value, whoever is to move."""
        if self.config.unrolled_value == "return":
            return window.value[:, :-1]
        discount = jnp.where(window.player_changes, -self.config.discount, self.config.discount)
        return (window.reward + discount * window.value)[:, 1:]


make_agent = StochasticMuZero
