"""How the MuZero family acts: by a search from what it sees, or by its policy alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

from reverie.agent import Mode, Row, add_prefix
from reverie.algos.muzero.frames import see
from reverie.algos.muzero.model import Legal, Model, State
from reverie.behavior.explore import RepeatedAction, explore, unheld
from reverie.behavior.search import SearchResult, gumbel, puct
from reverie.envs.base import Spaces
from reverie.model.encode import legal_actions, planar, width
from reverie.model.unroll import Hidden


class Carry(eqx.Module):
    """The policy's memory between steps: the frames before this one, how many moves were made, and random actions
    that go on."""

    frames: dict[str, Array]  # [N, stack - 1, ...], the oldest first; 0 where the episode had not begun
    moves: Int[Array, " N"]
    key: PRNGKeyArray
    held: RepeatedAction | None = None  # None: random actions are not repeated


class Acting:
    """The half of a `MuZero` that acts."""

    config: Any
    obs_space: Spaces
    act_space: Spaces
    seen_space: Spaces
    action: str
    context: int

    @property
    def choices(self) -> int:
        """Actions that a search tells apart."""
        return width(self.act_space)

    def init_carry(self, batch: int, key: PRNGKeyArray) -> Carry:
        frames = {
            k: jnp.zeros((batch, self.context, *s.shape), s.dtype)
            for k, s in self.obs_space.items()
            if self.context and k in planar(self.obs_space)
        }
        action = {k: jnp.zeros((batch, *s.shape), s.dtype) for k, s in self.act_space.items()}
        held = unheld(action) if self.config.hold > 1 else None
        return Carry(frames, jnp.zeros(batch, jnp.int32), key, held)

    def policy(self, state: State, carry: Carry, obs: Row, mode: Mode) -> tuple[Carry, Row, Row]:
        key, root_key, search_key = jax.random.split(carry.key, 3)
        seen, carry = see(self, carry, obs)
        given = obs.get("obs/legal")
        root, legal = self.root_of(state.model, seen, root_key, given)
        if mode == "random":
            root = self.even_root(root, root_key, given)
            policy = uniform(legal, (obs["is_first"].shape[0], self.choices))
            chosen = jax.random.categorical(search_key, jnp.log(policy)).astype(jnp.int32)
            fresh = self.fresh(root, policy, jnp.zeros(chosen.shape, jnp.float32))
        else:
            temperature = self.temperature(state, carry) if mode == "train" else None
            chosen, policy, value = self.decide(state.model, root, search_key, legal, temperature)
            fresh = self.fresh(root, policy, value)
            if mode == "sample":
                chosen = jax.random.categorical(jax.random.fold_in(search_key, 1), jnp.log(policy)).astype(jnp.int32)
            if mode == "train" and self.config.random_moves and carry.held is None:
                coin_key, even_key = jax.random.split(root_key)
                coin = jax.random.bernoulli(coin_key, self.config.random_moves, chosen.shape)
                chosen = jnp.where(coin, self._even(legal, chosen.shape[0], even_key), chosen)
        if self.config.prioritized:
            fresh |= {"priority": jnp.zeros_like(fresh["value"])}  # replay knows the largest so far
        action, held = self.to_env_action(root, chosen), carry.held
        if held is not None and mode in ("random", "train"):
            draw_key, hold_key = jax.random.split(jax.random.fold_in(root_key, 1))
            even = self._even(legal, chosen.shape[0], draw_key)
            drawn = self.to_env_action(self.even_root(root, draw_key, given), even)
            share = 1.0 if mode == "random" else self.config.random_moves
            still = legal_actions(given, self.act_space, held.action)
            held, action = explore(self.config, held, action, drawn, obs["is_first"], hold_key, share, still)
        carry = Carry(carry.frames, carry.moves + 1, key, held)
        return carry, add_prefix("action/", action), add_prefix("out/", fresh)

    def think(self, state: State, carry: Carry, obs: Row) -> tuple[dict[str, Array], SearchResult]:
        """As `Searches.think`, also if `policy` does not search."""
        _, root_key, search_key = jax.random.split(carry.key, 3)
        seen, carry = see(self, carry, obs)
        root, legal = self.root_of(state.model, seen, root_key, obs.get("obs/legal"))
        found = self.search(state.model, root, search_key, legal, None)
        numbers = jnp.arange(self.choices, dtype=jnp.int32)
        return self.to_env_action(jax.tree.map(lambda x: x.repeat(self.choices, 0), root), numbers), found

    def even_root(self, root: Hidden, key: PRNGKeyArray, legal: Legal) -> Hidden:
        """A root whose actions do not depend on the networks."""
        return root

    def _even(self, legal: Legal, envs: int, key: PRNGKeyArray) -> Int[Array, " N"]:
        """Numbers of actions, drawn evenly from what is legal."""
        return jax.random.categorical(key, jnp.log(uniform(legal, (envs, self.choices)))).astype(jnp.int32)

    def to_env_action(self, root: Hidden, chosen: Int[Array, " N"]) -> dict[str, Array]:
        """The env's actions for what a search chose."""
        return {self.action: chosen}

    def decide(
        self, model: Model, root: Hidden, key: PRNGKeyArray, legal: Legal, temperature: Float[Array, " B"] | None
    ) -> tuple[Int[Array, " B"], Float[Array, "B a"], Float[Array, " B"]]:
        """The actions at `root`, and the policy and value to be stored: of a search, or of the networks themselves."""
        if self.config.behavior == "search":
            found = self.search(model, root, key, legal, temperature)
            return found.action, found.policy, found.value
        policy, value = model.judge(root, legal)
        logits = policy.logp[..., 0, :]
        action = jnp.argmax(logits, -1) if temperature is None else jax.random.categorical(key, logits)
        return action.astype(jnp.int32), jnp.exp(logits), value.pred()

    def search(
        self, model: Model, root: Hidden, key: PRNGKeyArray, legal: Legal, temperature: Float[Array, " B"] | None
    ) -> SearchResult:
        """Plans from `root`. `temperature`: of the draw of an action; None: greedy and without noise."""
        config = self.config
        shared: dict[str, Any] = {"simulations": config.simulations, "legal": legal}
        if config.search == "gumbel":
            return gumbel(model, root, key, **shared, scale=0.0 if temperature is None else 1.0, **config.sigma())
        return puct(
            model,
            root,
            key,
            **shared,
            dirichlet_alpha=config.chosen().root_alpha,
            dirichlet_fraction=0.0 if temperature is None else config.root_noise,
            temperature=0.0 if temperature is None else temperature,
            least_range=config.least_range,
        )

    def temperature(self, state: State, carry: Carry) -> Float[Array, " N"]:
        """Temperature of the visits from which actions are drawn, in training."""
        config, choices = self.config, self.config.chosen()
        if config.search == "gumbel":  # the noise at the root explores, not the draw of an action
            return jnp.zeros(carry.moves.shape)
        if config.temperature_moves:
            return (carry.moves < config.temperature_moves).astype(jnp.float32)
        half, quarter = (state.updates >= u for u in (choices.half_heat, choices.quarter_heat))
        return jnp.full(carry.moves.shape, jnp.where(quarter, 0.25, jnp.where(half, 0.5, 1.0)), jnp.float32)

    def root_of(self, model: Model, seen: Mapping[str, Array], key: PRNGKeyArray, legal: Legal) -> tuple[Hidden, Legal]:
        """The root of a search where these actions are legal, and which of its `choices` may be taken there."""
        return model.represent(seen), legal

    def fresh(self, root: Hidden, policy: Float[Array, "B a"], value: Float[Array, " B"]) -> Row:
        """The stored part of a search result, by its key in `out_space`."""
        return {"policy": policy, "value": value}


def uniform(legal: Legal, shape: tuple[int, ...]) -> Float[Array, "B a"]:
    """Equal probabilities of what is legal; of everything, where nothing is (the end of a game)."""
    if legal is None:
        return jnp.full(shape, 1 / shape[-1])
    may_act = (legal | ~legal.any(-1, keepdims=True)).astype(jnp.float32)
    return may_act / may_act.sum(-1, keepdims=True)
