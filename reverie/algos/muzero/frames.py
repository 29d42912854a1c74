"""The input of MuZero's networks: this observation, and the episode's earlier ones if it is a picture or a board."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array

from reverie.agent import Row, select
from reverie.model.encode import planar


def see(agent: Any, carry: Any, obs: Row) -> tuple[dict[str, Array], Any]:
    """The networks' input at these rows, and the carry that remembers them."""
    first = obs["is_first"]
    moves = jnp.where(first, 0, carry.moves)
    seen, frames = raw(agent, obs), {}
    for key, before in carry.frames.items():
        before = jnp.where(first.reshape(-1, *[1] * (before.ndim - 1)), jnp.zeros_like(before), before)
        both = jnp.concatenate([before, seen[key][:, None]], 1)
        seen[key], frames[key] = as_channels(both), both[:, 1:]
    return seen, type(carry)(frames, moves, carry.key, carry.held)


def raw(agent: Any, rows: Mapping[str, Array]) -> dict[str, Array]:
    return {k: v for k, v in select(rows, "obs/").items() if k in agent.seen_space}


def observed(agent: Any, batch: Row, first: int, count: int) -> dict[str, Array]:
    """The networks' input at positions `first` to `first + count - 1`, `[B, count, ...]`, as `see` has it."""
    begin = agent.context + first
    at = lambda x, back: x[:, begin - back : begin - back + count]
    seen = {k: at(v, 0) for k, v in raw(agent, batch).items()}
    episode = jnp.cumsum(batch["is_first"], 1)
    for key in planar(agent.obs_space) if agent.context else ():
        whole = batch[f"obs/{key}"]
        frames = []
        for back in range(agent.context, -1, -1):
            same = at(episode, back) == at(episode, 0)
            frame = at(whole, back)
            frames.append(jnp.where(same.reshape(*same.shape, 1, 1, 1), frame, jnp.zeros_like(frame)))
        seen[key] = as_channels(jnp.stack(frames, 2))
    return seen


def as_channels(frames: Array) -> Array:
    """`[*B, F, H, W, C] -> [*B, H, W, F * C]`."""
    moved = jnp.moveaxis(frames, -4, -2)
    return moved.reshape(*moved.shape[:-2], -1)
