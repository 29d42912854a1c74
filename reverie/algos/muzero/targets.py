"""Targets of MuZero's values and policies, where they are not what was stored when the agent acted."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import PRNGKeyArray

from reverie.agent import Metrics, Row
from reverie.algos.muzero.frames import observed
from reverie.algos.muzero.model import Model
from reverie.behavior.returns import Window


def observed_values(agent: Any, model: Model, window: Window, batch: Row) -> Window:
    """The window whose values at positions 1 to K are the model's own of the observations there, 0 from the end of
    the world on.

    The returns of one game differ by far more than the moves of one position do. The value of a root sees through
    that, for boards are alike; the state that a move leads to inherits it this way, with no noise but that of
    chance in one step (in the spirit of agent-consistent models, Farquhar et al. 2021).
    """
    seen = model.represent(observed(agent, batch, 1, agent.config.unroll))
    value = jnp.where(window.real[:, 1:], model.value(seen).pred(), 0.0)
    return window._replace(value=window.value.at[:, 1:].set(value))


def reanalyse_batch(agent: Any, target: Model, batch: Row, before: Row, key: PRNGKeyArray) -> tuple[Row, Row, Metrics]:
    """The batch with fresh policies and values in its reanalysed share, what of it is to be written back
    (`[B, T, ...]`, position by position; elsewhere what replay holds, `before`), and metrics.

    Policies are searched where they are targets, positions 0 to K; with `bootstrap` search all positions are, since
    a target may bootstrap from any of them: from the last row of an episode that is cut, or by lambda, or by age.
    """
    config = agent.config
    share = round(config.reanalyse * batch["reward"].shape[0])
    if not share:
        return batch, {}, {}
    count = agent.rows if config.bootstrap == "search" else config.unroll + 1
    part = {k: v[:share] for k, v in batch.items()}
    flat = lambda x: x.reshape(-1, *x.shape[2:])
    root_key, search_key = jax.random.split(jax.random.fold_in(key, 1))
    seen = {k: flat(v) for k, v in observed(agent, part, 0, count).items()}
    at = slice(agent.context, agent.context + count)
    legal = flat(part["obs/legal"][:, at]) if "obs/legal" in part else None
    root, legal = agent.root_of(target, seen, root_key, legal)
    _, policy, value = agent.decide(target, root, search_key, legal, jnp.ones(share * count, jnp.float32))
    used, out = {}, {}
    for name, found in agent.fresh(root, policy, value).items():
        held = before[f"out/{name}"]
        fresh = found.reshape(share, count, *found.shape[1:]).astype(held.dtype)
        used[f"out/{name}"] = batch[f"out/{name}"].at[:share, at].set(fresh)
        out[f"out/{name}"] = held.at[:share, at].set(fresh)[:, agent.context :]
    span = slice(agent.context, agent.context + config.unroll + 1)
    moved = jnp.abs(used["out/value"][:share, span] - before["out/value"][:share, span]).mean()
    return batch | used, out, {"reanalyse/value_moved": moved}


def revalue(agent: Any, target: Model, batch: Row) -> Row:
    """The whole batch, all of whose values are the target network's. They are not written back: no search found
    them."""
    seen = target.represent(observed(agent, batch, 0, agent.rows))
    value = batch["out/value"].at[:, agent.context :].set(target.value(seen).pred())
    return batch | {"out/value": value}
