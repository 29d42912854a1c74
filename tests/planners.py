"""Small members of the MuZero family and batches for them."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from dreamer import config_of

from reverie import algos
from reverie.envs.base import Space

VECTOR = {"vector": Space("vector", (3,))}
BOARD = {
    "board": Space("planes", (3, 4, 2)),
    "legal": Space("legal", (5,)),
    "player": Space("player", (), alternating=True),
}
IMAGE = {"image": Space("image", (12, 12, 1)), "vector": Space("vector", (3,))}
FIVE = {"action": Space("discrete", (), (5,))}
BOX = {"torque": Space("vector", (2,), low=(-1.0,) * 2, high=(1.0,) * 2), "gear": Space("discrete", (), (3,))}
SMALL: dict[str, Any] = {
    "hidden": 8,
    "units": 8,
    "channels": 4,
    "blocks": 1,
    "simulations": 3,
    "unroll": 2,
    "n_step": 3,
    "support": 5,
    "lr_warmup": 0,
    "learning_rate": 3e-3,
}
OWN: dict[str, dict[str, Any]] = {
    "muzero": {},
    "gumbel_muzero": {},
    "efficientzero": {
        "choices": '{"projection": 8, "predictor": 4, "prefix_units": 4}',
        "reanalyse": 0.5,
        "trust_updates": 3,
    },
    "sampled_muzero": {"candidates": 4},
    "stochastic_muzero": {"codes": 3},
}
FAMILY = tuple(OWN)
B = 4


def small_agent(algorithm: str, obs: Any = VECTOR, act: Any = None, precision: str = "float32", **values: Any) -> Any:
    module = algos.load(algorithm)
    act = act or (BOX if algorithm == "sampled_muzero" else FIVE)
    return module.make_agent(config_of(module, **(SMALL | OWN[algorithm] | values)), obs, act, precision=precision)


def random_batch(agent: Any, seed: int = 0, batch: int = B) -> dict[str, Any]:
    """Rows `[B, C + T]` without episode boundaries."""
    rng = np.random.default_rng(seed)
    lead = (batch, agent.context + agent.rows)
    rows: dict[str, Any] = {}
    for prefix, spaces in (("obs/", agent.obs_space), ("action/", agent.act_space)):
        rows |= {prefix + key: drawn(rng, space, lead) for key, space in spaces.items()}
    rows |= {k: np.zeros(lead, bool) for k in ("is_first", "is_last", "is_terminal")}
    rows["reward"] = rng.normal(size=lead).astype(np.float32)
    for key, spec in agent.out_space.items():
        x = rng.uniform(0, 1, (*lead, *spec.shape)).astype(spec.dtype)
        rows[f"out/{key}"] = x / x.sum(-1, keepdims=True) if key == "policy" else x
    if "priority" in agent.out_space:
        rows["weight"] = np.ones(batch, np.float32)
    return jax.tree.map(jnp.asarray, rows)


def drawn(rng: np.random.Generator, space: Space, lead: tuple[int, int]) -> Any:
    """Random values of a space; everything is legal, and the players take turns."""
    shape = (*lead, *space.shape)
    if space.kind == "legal":
        return np.ones(shape, bool)
    if space.kind == "player":
        return (np.arange(lead[1]) % 2).astype(np.int8)[None].repeat(lead[0], 0)
    if space.kind == "vector":
        return rng.uniform(-1, 1, shape).astype(np.float32)
    return rng.integers(0, {"image": 256, "planes": 2}.get(space.kind) or space.classes[0], shape, space.dtype)


def first_rows(agent: Any, count: int, seed: int = 0) -> dict[str, Any]:
    """What `count` envs show at the beginning of an episode."""
    batch = random_batch(agent, seed, count)
    flags = {k: jnp.zeros(count, bool) for k in ("is_last", "is_terminal")}
    seen = {k: v[:, 0] for k, v in batch.items() if k.startswith("obs/")}
    return seen | flags | {"is_first": jnp.ones(count, bool), "reward": jnp.zeros(count)}
