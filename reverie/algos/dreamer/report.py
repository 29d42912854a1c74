"""Reports on a Dreamer's model: how well it reconstructs, how well it predicts, and its dreams themselves.

The functions take an agent (`Dreamer`), its state and a batch, and change nothing.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, PRNGKeyArray

from reverie.agent import CONTEXT_ROWS, HORIZONS, Dream, Metrics, Row, select
from reverie.algos.dreamer.world import Model
from reverie.behavior.imagine import rollout
from reverie.model.dynamics import Latent, features


def report(agent: Any, state: Any, batch: Row) -> Metrics:
    """How well the model sees, and how well it dreams.

    Returns:
      `open_loop/<key>/<h>`: error of the decoded observation (summed squares; symlog space for vectors;
      cross-entropy for discrete values) `h` steps after the last row seen, `open_loop/reward/<h>` the squared
      error of the reward, and `closed_loop/<key>` the same with the observations seen. Sequences in which an
      episode begins after the first five rows are left out from there on; NaN if that leaves none.
      `open_loop/<key>/unexplained`: over all dreamt rows, the error's share of the signal's variance in time
      (`Dream.squares`), for images, vectors and the reward.
    """
    steps = batch["reward"].shape[1] - agent.context
    if steps <= CONTEXT_ROWS:
        return {}
    rows, seen, latents, valid = open_loop(agent, state, batch, CONTEXT_ROWS)
    metrics: Metrics = {}
    for name, error in _errors(agent, state.model, latents, rows).items():
        for h in HORIZONS:
            if CONTEXT_ROWS + h <= steps:
                there = valid[:, CONTEXT_ROWS + h - 1].astype(jnp.float32)
                metrics[f"open_loop/{name}/{h}"] = jnp.sum(there * error[:, CONTEXT_ROWS + h - 1]) / there.sum()
    for name, error in _errors(agent, state.model, seen, rows).items():
        metrics[f"closed_loop/{name}"] = error.mean()
    shown = _dream(agent, state.model, rows, latents, valid)
    for key, value in shown.dream.items():
        if jnp.issubdtype(value.dtype, jnp.floating):
            error, variance = shown.squares(key)
            metrics[f"open_loop/{key.removeprefix('obs/')}/unexplained"] = error.sum() / variance.sum()
    return metrics


def dream(agent: Any, state: Any, batch: Row, seen: int = CONTEXT_ROWS) -> Dream:
    """As `Agent.dream`."""
    rows, _, latents, valid = open_loop(agent, state, batch, seen)
    return _dream(agent, state.model, rows, latents, valid)


def drive(agent: Any, state: Any, batch: Row, length: int) -> Row:
    """The policy in its own imagination: it sees the T rows of a batch, then acts greedily for `length` steps.

        row      1 .. T   | T+1   T+2  ...  T+length
        latent   observed | imagined from what the policy does at T, T+1, ...

    The same state and batch give the same drive. `length` is static under jit.

    Returns:
      decoded `obs/<key>` and `reward`, `[B, T + length, ...]` in the units of `Dream`, and `valid`, bool: False
      after an imagined row of which the model thinks that the world likelier ends there than not.
    """
    model, key = state.model, jax.random.fold_in(state.key, state.updates)
    post, _ = agent.observe(model, batch, key)
    act = lambda latent, _: agent.bounded({k: d.pred() for k, d in model.policy(features(latent)).items()})
    imagined, _ = rollout(model, act, jax.tree.map(lambda x: x[:, -1], post.latents), length, key)
    latents = jax.tree.map(lambda x, y: jnp.concatenate([x, jnp.swapaxes(y[1:], 0, 1)], 1), post.latents, imagined)
    shown = _decode(model, latents)
    seen = post.alive.shape[1]
    ended = jnp.zeros_like(shown["reward"], bool)
    if model.con is not None:
        ended = (model.con(features(latents)).prob() < 0.5).at[:, :seen].set(False)
    before = jnp.concatenate([jnp.zeros_like(ended[:, :1]), ended[:, :-1]], 1)
    return shown | {"valid": jnp.cumsum(before, 1) == 0}


def open_loop(agent: Any, state: Any, batch: Row, seen: int) -> tuple[Row, Latent, Latent, Array]:
    """The rows, their latents with every row seen, their latents in the dream, and where the dream is valid.

    row      1 .. 5   | 6    7    8  ...  T
    latent   observed | imagined from the actions a5, a6, ... that were really taken
    horizon           | 1    2    3
    """
    steps = batch["reward"].shape[1] - agent.context
    if not 0 < seen < steps:
        raise ValueError(f"a dream of {steps} rows can be shown 1 to {steps - 1} of them, got seen={seen}")
    key = jax.random.fold_in(state.key, state.updates)
    (rows, latents, *_), _ = agent.observe(state.model, batch, key)

    def step(latent: Latent, xs: tuple[dict[str, Array], PRNGKeyArray]) -> tuple[Latent, Latent]:
        latent = state.model.imagine(latent, *xs)
        return latent, latent

    taken = {k: jnp.swapaxes(v[:, seen - 1 : -1], 0, 1) for k, v in select(rows, "action/").items()}
    start = jax.tree.map(lambda x: x[:, seen - 1], latents)
    _, imagined = lax.scan(step, start, (taken, jax.random.split(key, steps - seen)))
    whole = jax.tree.map(lambda x, y: jnp.concatenate([x[:, :seen], jnp.swapaxes(y, 0, 1)], 1), latents, imagined)
    begun = rows["is_first"].at[:, :seen].set(False)  # what is seen may begin an episode
    return rows, latents, whole, jnp.cumsum(begun, 1) == 0


def _dream(agent: Any, model: Model, rows: Row, latents: Latent, valid: Array) -> Dream:
    """Rows and latents `[B, T]` as a person can look at them."""
    shown, targets = _decode(model, latents), agent.decode_targets(rows)
    seen = {key: targets[key.removeprefix("obs/")] for key in shown if key != "reward"}
    return Dream({"reward": rows["reward"]} | seen, shown, valid)


def _decode(model: Model, latents: Latent) -> Row:
    """The observations and rewards that latents `[B, T]` stand for: `obs/<key>` and `reward`."""
    reward, _ = model.predict(latents)
    return {"reward": reward} | {f"obs/{k}": dist.pred() for k, dist in model.decode(latents).items()}


def _errors(agent: Any, model: Model, latents: Latent, rows: Row) -> dict[str, Array]:
    """Error `[B, T]` of every decoded observation and of the reward."""
    reward, _ = model.predict(latents)
    errors, targets = {"reward": jnp.square(reward - rows["reward"])}, agent.decode_targets(rows)
    for name, dist in model.decode(latents).items():
        errors[name] = dist.loss(targets[name])
    return errors
