"""How a Dreamer acts: on a latent of all that it has seen, by its actor or by a search in its dreams."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from reverie.agent import Mode, Row, add_prefix, select
from reverie.algos.dreamer import planning
from reverie.algos.dreamer.world import Model, State
from reverie.behavior.explore import RepeatedAction, explore, unheld
from reverie.behavior.search import SearchResult
from reverie.envs.base import Spaces
from reverie.model.dynamics import Dynamics, Latent, features
from reverie.model.encode import flat, legal_actions, width
from reverie.model.heads import sample
from reverie.nn.dists import OneHot


class Carry(eqx.Module):
    """The policy's memory between steps: the latent, the last action, and random actions that go on."""

    latent: Latent
    action: Float[Array, "N a"]
    key: PRNGKeyArray
    held: RepeatedAction | None = None  # None: random actions are not repeated
    plan: Any = None  # what a planner remembers


class Acting:
    """The half of a `Dreamer` that acts."""

    config: Any
    obs_space: Spaces
    act_space: Spaces
    dtype: jnp.dtype
    context: int = 0
    out_space: Mapping[str, jax.ShapeDtypeStruct]
    planner: planning.Planner | None

    def dynamics(self, tokens: int, key: PRNGKeyArray) -> Dynamics:
        """The dynamics of the latents; `tokens` is the width of an encoded observation."""
        raise NotImplementedError

    def add_noise(self, action: dict[str, Array], legal: Array | None, key: PRNGKeyArray) -> dict[str, Array]:
        """Actions of training with noise of the paper's own, among what is legal."""
        return action

    @cached_property
    def dyn(self) -> Dynamics:
        """The dynamics without parameters: what is known of latents before there are any."""
        return jax.eval_shape(lambda key: self.dynamics(1, key), jax.random.key(0))

    def to_replay(self, latent: Latent) -> Row:
        """The arrays stored beside a step: its latent, if sequences start from one."""
        return add_prefix("out/", self.dyn.to_replay(latent)) if self.context else {}

    def init_carry(self, batch: int, key: PRNGKeyArray) -> Carry:
        explores = self.config.hold > 1 or self.config.random_moves > 0
        return Carry(
            latent=self.dyn.zeros((batch,), self.dtype),
            action=jnp.zeros((batch, width(self.act_space)), jnp.float32),
            key=key,
            held=unheld(self.random_action(batch, None, key)) if explores else None,
            plan=self.planner.begin(batch) if self.planner else None,
        )

    def policy(self, state: State, carry: Carry, obs: Row, mode: Mode) -> tuple[Carry, Row, Row]:
        key, observe_key, act_key = jax.random.split(carry.key, 3)
        legal, plan = obs.get("obs/legal"), carry.plan
        latent = self.observe_step(state.model, carry, obs, observe_key)
        if mode == "random":
            action = self.random_action(len(carry.action), legal, act_key)
        elif self.planner:
            action, plan = self.planner.decide(state.model, latent, plan, obs, mode, act_key)
        else:
            dists = state.model.policy(features(latent), legal)
            action = {k: d.pred() for k, d in dists.items()} if mode == "eval" else sample(dists, act_key)
        if mode == "train":
            action = self.add_noise(action, legal, jax.random.fold_in(act_key, 1))
        action, held = self.bounded(action), carry.held
        if held is not None and mode in ("random", "train"):
            draw_key, hold_key = jax.random.split(jax.random.fold_in(act_key, 2))
            drawn = self.random_action(len(carry.action), legal, draw_key)
            share = 1.0 if mode == "random" else self.config.random_moves
            still = legal_actions(legal, self.act_space, held.action)
            held, action = explore(self.config, held, action, drawn, obs["is_first"], hold_key, share, still)
        carry = Carry(latent, flat(self.act_space, action), key, held, plan)
        return carry, add_prefix("action/", action), self.to_replay(latent)

    def observe_step(self, model: Model, carry: Carry, obs: Row, key: PRNGKeyArray) -> Latent:
        """The latents of N envs after what they show now."""
        tokens = model.enc(select(obs, "obs/"), self.dtype)
        latents, _ = model.dyn.observe(
            carry.latent, tokens[:, None], carry.action[:, None], obs["is_first"][:, None], key
        )
        return jax.tree.map(lambda x: x[:, 0], latents)

    def think(self, state: State, carry: Carry, obs: Row) -> tuple[dict[str, Array], SearchResult]:
        """As `Searches.think`, if there is a planner."""
        _, observe_key, act_key = jax.random.split(carry.key, 3)
        latent = self.observe_step(state.model, carry, obs, observe_key)
        ((name, space),) = self.act_space.items()
        actions = {name: jnp.arange(space.width, dtype=jnp.int32).reshape(-1, *space.shape)}
        legal = obs.get("obs/legal")
        return actions, planning.search(self.config, state.model, latent, act_key, legal, greedy=True)

    def bounded(self, action: dict[str, Array]) -> dict[str, Array]:
        """Vectors in [-1, 1], as every env takes them."""
        return {k: jnp.clip(a, -1, 1) if self.act_space[k].kind == "vector" else a for k, a in action.items()}

    def random_action(self, batch: int, legal: Array | None, key: PRNGKeyArray) -> dict[str, Array]:
        """Uniform draws of N envs, `[N, ...]`, of discrete actions among what is `legal`."""
        action = {}
        keys = jax.random.split(key, len(self.act_space))
        for name, own_key in zip(sorted(self.act_space), keys, strict=True):
            space = self.act_space[name]
            if space.kind == "discrete":
                even = OneHot(jnp.zeros((batch, space.width)), space.classes, space.shape, legal=legal)
                action[name] = even.sample(own_key)
            else:
                action[name] = jax.random.uniform(own_key, (batch, *space.shape), minval=-1, maxval=1)
        return action
