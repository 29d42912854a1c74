"""An agent as files that act without Reverie: StableHLO and arrays, to be loaded with JAX and NumPy alone.

    begin.stablehlo  begin(seed) -> carry                             seed: uint32
    act.stablehlo    act(parameters, carry, obs) -> (action, carry)   dicts of arrays
    parameters.npz   what the policy reads of the agent's state
    spaces.json      names, shapes, dtypes and bounds of `obs` and `action`
    example.py       these ten lines, for a start

Observations and actions are in the env's own words, every array with an axis [N] in front. Only what Reverie's wrappers
would do first (`--image-size`, `--gray`) is left to the caller, and to turn an image with its channels first around to
`[H, W, C]`. `carry["is_first"]`, bool `[N]`, is true where an
episode begins; `act` makes it false. Nothing in these files is code of Python, but for the example.
"""

from __future__ import annotations

import io
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
from gymnasium import spaces

from reverie import files
from reverie.agent import Agent, Mode, Row, State, select
from reverie.config import Config
from reverie.envs.base import Env, to_json
from reverie.envs.spaces import leaves
from reverie.envs.wrappers import innermost
from reverie.run.checkpoint import is_key, leaf_name
from reverie.saved import RELEASE

PLATFORMS = ("cpu", "cuda")  # that the functions run on
ALONE = "all"  # name of an array that is a whole tree

EXAMPLE = '''\
"""Acts with JAX and NumPy alone: pip install jax flatbuffers"""
import json
from pathlib import Path
import numpy as np
from jax import export

here = Path(__file__).parent
begin, act = (export.deserialize(bytearray((here / f"{x}.stablehlo").read_bytes())).call for x in ("begin", "act"))
parameters = dict(np.load(here / "parameters.npz", allow_pickle=False))
spaces = json.loads((here / "spaces.json").read_text())

carry = begin(np.uint32(0))  # a seed: an episode begins in every env
obs = {k: np.zeros((spaces["envs"], *x["shape"]), x["dtype"]) for k, x in spaces["obs"].items()}  # yours
action, carry = act(parameters, carry, obs)
print({k: np.asarray(x).tolist() for k, x in action.items()})
'''


def export(path: Path, agent: Agent, state: State, env: Env, conf: Config, mode: Mode, envs: int) -> None:
    """`LoadedAgent.export`, of an agent with the parameters of `state`; raises files.DiskError."""
    hidden = {key: space for key, space in agent.obs_space.items() if space.kind == "target"}
    seen, done = _native(env)

    def begin(seed: Any) -> Row:
        return named(agent.init_carry(envs, jax.random.key(seed))) | {"is_first": jnp.ones(envs, bool)}

    like = jax.eval_shape(lambda: agent.init_carry(envs, jax.random.key(0)))
    parameters = named(state)

    def act(parameters: Row, carry: Row, obs: Row) -> tuple[Row, Row]:
        no = jnp.zeros(envs, bool)
        row = {"is_first": carry["is_first"], "is_last": no, "is_terminal": no, "reward": jnp.zeros(envs, jnp.float32)}
        row |= {f"obs/{key}": _to_index(x, seen.get(key)) for key, x in obs.items()}
        row |= {f"obs/{key}": jnp.zeros((envs, *space.shape), space.dtype) for key, space in hidden.items()}
        whole = rebuild(state, parameters)
        after, action, _ = agent.policy(whole, rebuild(like, carry), row, mode)
        action = {key: _rescale(x, done.get(key)) for key, x in select(action, "action/").items()}
        return action, named(after) | {"is_first": no}

    shapes_of = lambda arrays: {key: jax.ShapeDtypeStruct(np.shape(x), x.dtype) for key, x in arrays.items()}
    obs_space = {key: space for key, space in agent.obs_space.items() if key not in hidden}
    shown = {key: jax.ShapeDtypeStruct((envs, *space.shape), space.dtype) for key, space in obs_space.items()}
    carry_shapes = jax.eval_shape(begin, jnp.uint32(0))
    convert = lambda function, *shapes: jax.export.export(jax.jit(function), platforms=PLATFORMS)(*shapes)

    # Most of a state is of no concern to the policy: the optimizer, slow networks, what only training reads.
    whole = convert(lambda *x: act(*x), shapes_of(parameters), carry_shapes, shown)
    order = sorted(parameters)  # of the leaves of a dict
    parameters = {order[at]: parameters[order[at]] for at in whole.module_kept_var_idx if at < len(order)}
    others = {key: jnp.zeros(np.shape(x), x.dtype) for key, x in named(state).items() if key not in parameters}

    def acting(own: Row, carry: Row, obs: Row) -> tuple[Row, Row]:
        return act({**own, **others}, carry, obs)

    functions = {
        "begin": convert(begin, jax.ShapeDtypeStruct((), jnp.uint32)),
        "act": convert(acting, shapes_of(parameters), carry_shapes, shown),
    }
    table = io.BytesIO()
    np.savez(table, allow_pickle=False, **{key: np.asarray(x) for key, x in parameters.items()})
    written = {f"{name}.stablehlo": bytes(function.serialize()) for name, function in functions.items()}
    written["parameters.npz"] = table.getvalue()
    written["spaces.json"] = json.dumps(_content(agent, env, conf, mode, envs), indent=1).encode()
    written["example.py"] = EXAMPLE.encode()
    for name, data in written.items():
        files.replace(path / name, data)


def _content(agent: Agent, env: Env, conf: Config, mode: Mode, envs: int) -> dict[str, Any]:
    """The content of `spaces.json`."""
    run, (seen, done) = conf.run, _native(env)
    describe_space = lambda key, space: {**to_json({key: space})[key], "dtype": str(space.dtype)}
    return {
        "reverie": RELEASE,
        "algorithm": conf.algorithm,
        "env": run.env,
        "mode": mode,
        "envs": envs,
        "wrapped": {name: getattr(run, name) for name in ("action_repeat", "time_limit", "image_size", "gray")},
        "obs": {
            key: {**describe_space(key, space), **_offset(seen.get(key))}
            for key, space in agent.obs_space.items()
            if space.kind != "target"
        },
        "action": {key: {**describe_space(key, x), **_bounds(done.get(key))} for key, x in agent.act_space.items()},
    }


def named(tree: Any) -> dict[str, Any]:
    """The arrays of a tree by the place where they stand; random keys as the numbers they are made of."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {leaf_name(path, ALONE): jax.random.key_data(x) if is_key(x) else x for path, x in leaves}


def rebuild(like: Any, arrays: Mapping[str, Any]) -> Any:
    """Inverse of `named`, with the structure of `like`."""

    def value(path: Any, leaf: Any) -> Any:
        array = arrays[leaf_name(path, ALONE)]
        return jax.random.wrap_key_data(array) if is_key(leaf) else array

    return jax.tree_util.tree_map_with_path(value, like)


def _native(env: Env) -> tuple[dict[str, gymnasium.Space], dict[str, gymnasium.Space]]:
    """The leaves of both spaces of the Gymnasium env inside, as the agent names them; none if there is no such env."""
    inside = innermost(env)
    if inside is None:
        return {}, {}
    return leaves(inside.env.observation_space, inside.obs_space), leaves(inside.env.action_space, inside.act_space)


def _to_index(value: Any, space: gymnasium.Space | None) -> Any:
    """Classes counted from 0, which the env counts from elsewhere."""
    start = np.asarray(getattr(space, "start", 0))
    return value - start[None].astype(np.int32) if start.any() else value


def _rescale(value: Any, space: gymnasium.Space | None) -> Any:
    """An action in [-1, 1] or a class number, in the env's own words (`envs.spaces.actor`), float32 or int32."""
    if isinstance(space, spaces.Box):
        low, high = (np.asarray(x, np.float32)[None] for x in (space.low, space.high))
        value = jnp.clip(low + (value + 1) * ((high - low) / 2), low, high)
        return jnp.rint(value) if space.dtype.kind in "iu" else value
    return value + np.asarray(getattr(space, "start", 0), np.int32)[None]


def _offset(space: gymnasium.Space | None) -> dict[str, Any]:
    start = np.asarray(getattr(space, "start", 0))
    return {"start": start.tolist()} if start.any() else {}


def _bounds(space: gymnasium.Space | None) -> dict[str, Any]:
    """The env's own space of an action: here bounds are its own, no longer -1 and 1."""
    if not isinstance(space, spaces.Box):
        return _offset(space)
    ends = {"low": space.low, "high": space.high}
    return {key: np.asarray(x, np.float64).reshape(math.prod(space.shape)).tolist() for key, x in ends.items()}
