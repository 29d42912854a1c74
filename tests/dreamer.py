"""Small Dreamers and batches for them."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np

from reverie.algos.dreamer import v3, v3_2023
from reverie.envs.base import Space

OBS = {"vector": Space("vector", (3,)), "token": Space("discrete", (), (4,))}
ACT = {"action": Space("discrete", (), (3,))}
EVERY_ACTION = {
    "discrete": Space("discrete", (), (5,)),
    "multi": Space("discrete", (3,), (2, 7, 3)),
    "binary": Space("discrete", (4,), (2, 2, 2, 2)),
    "box": Space("vector", (2, 1), low=(-1.0,) * 2, high=(1.0,) * 2),
}
# The first update of a warm-up changes nothing: tests do without.
SMALL = {"size": "200k", "imagination": 3, "lr_warmup": 0, "learning_rate": 3e-3}
SMALL2023 = {"size": "200k", "imagination": 3, "vector_layers": 1, "vector_units": 32}
KEY = jax.random.key(0)
B, T = 2, 7


def config_of(module, **values):
    """The config of a paper, whose constants may stand among the values."""
    names = {field.name for field in dataclasses.fields(module.Config().paper())}
    choices = json.loads(values.pop("choices", "{}"))
    choices |= {name: values.pop(name) for name in names & values.keys()}
    return module.Config(**values, choices=json.dumps(choices))


def small_agent(obs=OBS, act=ACT, precision="float32", **values):
    return v3.make_agent(config_of(v3, **SMALL | values), obs, act, precision=precision)


def agent_2023(obs=OBS, act=ACT, precision="float32", **values):
    return v3_2023.make_agent(config_of(v3_2023, **SMALL2023 | values), obs, act, precision=precision)


def random_values(rng, spaces, prefix, lead):
    def draw(space):
        if space.kind == "image":
            return rng.integers(0, 256, (*lead, *space.shape), np.uint8)
        if space.kind in ("vector", "target"):
            return rng.uniform(-1, 1, (*lead, *space.shape)).astype(np.float32)
        if space.kind == "legal":
            return np.ones((*lead, *space.shape), bool)
        return rng.integers(0, np.reshape(space.classes, space.shape), (*lead, *space.shape), np.int32)

    return {prefix + k: draw(s) for k, s in spaces.items()}


def random_batch(agent, batch=B, length=T, seed=0):
    """Rows `[B, C + T]` without episode boundaries and with a reward of 1."""
    rng = np.random.default_rng(seed)
    lead = (batch, agent.context + length)
    rows = random_values(rng, agent.obs_space, "obs/", lead) | random_values(rng, agent.act_space, "action/", lead)
    rows |= {k: np.zeros(lead, bool) for k in ("is_first", "is_last", "is_terminal")}
    rows |= {"reward": np.ones(lead, np.float32)}
    for key, spec in agent.out_space.items():
        x = rng.uniform(-1, 1, (*lead, *spec.shape)) if key == "deter" else rng.integers(0, 4, (*lead, *spec.shape))
        rows[f"out/{key}"] = x.astype(spec.dtype)
    return jax.tree.map(jnp.asarray, rows)


def filled_state(agent, seed=0):
    """A state with random weights, heads included, before its first update, that costs no compilation."""
    rng = np.random.default_rng(seed)
    state = jax.eval_shape(agent.init, KEY)

    def fill(path, x):
        if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
            return KEY
        if path[0].name == "optimizer" or not jnp.issubdtype(x.dtype, jnp.floating):
            return jnp.zeros(x.shape, x.dtype)
        return jnp.asarray(rng.normal(0, 0.2, x.shape), x.dtype)

    return jax.tree_util.tree_map_with_path(fill, state)


def bits(tree):
    """All arrays of a tree as bytes, PRNG keys included."""

    def data(x):
        return jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x

    return {
        jax.tree_util.keystr(k): np.asarray(data(x)).tobytes() for k, x in jax.tree_util.tree_leaves_with_path(tree)
    }
