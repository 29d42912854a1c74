"""Reports on MuZero's model: how well it predicts rewards and values, and whether actions matter to it."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.lax import stop_gradient
from jaxtyping import Array

from reverie.agent import CONTEXT_ROWS, Dream, Metrics, Row
from reverie.algos.muzero.frames import observed
from reverie.algos.muzero.model import Model
from reverie.model.unroll import Hidden
from reverie.nn.dists import randomness


def report(agent: Any, state: Any, batch: Row) -> Metrics:
    """`open_loop/reward/<h>`, `open_loop/value/<h>`: squared errors of the reward, and of the value against that
    of the search, `h` steps after the last row seen, where no episode begins in between."""
    shown = dream(agent, state, batch)
    metrics: Metrics = {}
    for name in shown.dream:
        error = jnp.square(shown.dream[name] - shown.truth[name])
        for h in range(1, min(agent.config.unroll, error.shape[1] - CONTEXT_ROWS) + 1):
            there = shown.valid[:, CONTEXT_ROWS + h - 1].astype(jnp.float32)
            metrics[f"open_loop/{name}/{h}"] = jnp.sum(there * error[:, CONTEXT_ROWS + h - 1]) / there.sum()
    return metrics


def dream(agent: Any, state: Any, batch: Row, seen: int = CONTEXT_ROWS) -> Dream:
    """Rewards and values: all that this model can tell of the future. Of rows seen, the value is the network's."""
    rows = {k: v[:, agent.context :] for k, v in batch.items()}
    steps = rows["reward"].shape[1]
    if not 0 < seen < steps:
        raise ValueError(f"a dream of {steps} rows can be shown 1 to {steps - 1} of them, got seen={seen}")
    latents = state.model.represent(observed(agent, batch, 0, seen))
    start = jax.tree.map(lambda x: x[:, -1], latents)

    def step(hidden: Hidden, action: Array) -> tuple[Hidden, Hidden]:
        after = state.model.advance(hidden, action)
        return after, after

    _, ahead = lax.scan(step, start, jnp.swapaxes(agent.taken(rows)[:, seen - 1 : -1], 0, 1))
    value = lambda hidden: state.model.value(hidden).pred()
    dream = {
        "reward": jnp.concatenate([rows["reward"][:, :seen], ahead.reward.T], 1),
        "value": jnp.concatenate([value(latents), value(ahead).T], 1),
    }
    truth = {"reward": rows["reward"], "value": rows["out/value"]}
    begun = rows["is_first"].at[:, :seen].set(False)
    return Dream(truth, dream, jnp.cumsum(begun, 1) == 0)


def diagnose(agent: Any, model: Model, states: Hidden, actions: Array) -> Metrics:
    """How random the policy is, and whether actions matter to the dynamics at all."""
    root = jax.tree.map(lambda x: stop_gradient(x[:, 0]), states)
    frozen = stop_gradient(model)
    policies = frozen.pol(frozen.body.read(root.state))
    taken, other = (
        frozen.advance(root, a).state.astype(jnp.float32) for a in (actions[:, 0], agent.other(actions[:, 0]))
    )
    spread = jnp.abs(taken - jnp.roll(taken, 1, 0)).mean()  # between unrelated states
    return {
        **{f"policy/entropy/{k}": dist.entropy().mean() for k, dist in policies.items()},
        **{f"policy/randomness/{k}": randomness(dist).mean() for k, dist in policies.items()},
        "action/influence": jnp.abs(taken - other).mean() / jnp.maximum(spread, 1e-6),
    }
