"""Puzzles, packing and routing of jumanji (Bonnet et al., 2024): pure functions, most of which say what is legal.

jumanji nests its observations; here every leaf is an array of its own. Where it takes an action of several parts and
masks their combinations (a row, a column and a digit of a sudoku), the combination is one discrete action; where it
masks each part by itself (one move for each of several robots), the parts stay apart.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import jumanji
import numpy as np
from jumanji import specs
from jumanji.environments import TSP, Game2048

from reverie.envs.base import Space, Spaces, action_vector
from reverie.envs.masks import MASK
from reverie.envs.options import NoOptions as Options
from reverie.envs.options import own_name

# Leaves whose first two axes are the rows and columns of a board. Their specs do not tell: an array of two axes may as
# well be the places of some robots, or who is whose neighbour.
BOARDS = frozenset({"board", "grid", "puzzle", "walls"})
COUNTS = frozenset({"step", "step_count"})  # numbers, however few
MANY = 64  # from this many values on an integer is a number, not a class


class State(NamedTuple):
    """jumanji's own state, and what it shows."""

    inner: Any
    row: dict[str, Any]


class Task:
    """One env of jumanji as a `DeviceEnv`.

    Observations: the leaves of jumanji's own, their names joined with "/". Floats, counts and integers of many or
    unknown values are `vector`s, truth values and integers of two values are `planes`, integers of a board are one
    plane for each value, all others are `discrete`, counted from 0. `action_mask` is `legal`.

    The rewards of several agents are summed, and the world has ended where it has for all of them. A discount of 0
    is terminal; the last step of an episode with another one is a truncation.

    Raises ValueError for actions that are no choice and have no bounds, and for masks that mask neither all
    combinations of an action's parts nor each part by itself.
    """

    players = 1

    def __init__(self, env: jumanji.Environment) -> None:
        _, first = jax.eval_shape(env.reset, jax.random.key(0))
        shown = _leaves(first.observation)
        mask = shown.pop(MASK, None)
        self._env, self.obs_space, self._shows = env, Spaces(), {}
        for name in shown:
            self.obs_space[name], self._shows[name] = _observation(env, name)
        space, self._native = _actions(env.action_spec, mask)
        self.act_space: Spaces = {"action": space}
        if mask is not None:
            self.obs_space["legal"] = Space("legal", (space.width,))

    def init(self, key: Any) -> State:
        inner, step = self._env.reset(key)
        return State(inner, self._row(step, first=True))

    def step(self, state: State, action: Any, key: Any) -> State:
        inner, step = self._env.step(state.inner.replace(key=key), self._native(action["action"]))
        return State(inner, self._row(step, first=False))

    def row(self, state: State) -> dict[str, Any]:
        return state.row

    def _row(self, step: Any, first: bool) -> dict[str, Any]:
        leaves, last = _leaves(step.observation), step.last()
        row = {f"obs/{name}": shows(leaves[name]) for name, shows in self._shows.items()}
        if MASK in leaves:
            row["obs/legal"] = _legal(leaves[MASK], self.act_space["action"])
        return row | {
            "reward": jnp.asarray(step.reward, jnp.float32).sum(),
            "is_first": jnp.bool_(first),
            "is_last": last,
            "is_terminal": last & (jnp.max(step.discount) == 0),
        }


def make(name: str, options: Options) -> Task:
    """The env of an id such as `jumanji:Snake-v1`; raises ValueError if there is none that can be used."""
    name = own_name(name, "jumanji:", sorted(jumanji.registered_environments()))
    try:
        return Task(jumanji.make(name))
    except OSError as error:  # Sokoban's levels are not in the package
        raise ValueError(f"jumanji fetches what this env needs from the web, and that failed: {error}") from error


def _leaves(observation: Any) -> dict[str, Any]:
    """The arrays of a nested observation by name."""
    paths, _ = jax.tree_util.tree_flatten_with_path(observation)
    return {"/".join(str(part.name) for part in path): leaf for path, leaf in paths}


def _observation(env: jumanji.Environment, name: str) -> tuple[Space, Callable[[Any], Any]]:
    """The space of one leaf, and the function from jumanji's own value to one of it."""
    spec: Any = env.observation_spec
    *_, own = parts = name.split("/")
    for part in parts:
        spec = spec[part]
    shape, bounds = tuple(spec.shape), _bounds(env, name, spec)
    if bounds is None or own in COUNTS or (bounds[1] - bounds[0]).max() >= MANY - 1:
        return Space("vector", shape), lambda x: jnp.asarray(x, jnp.float32)
    low, high = bounds
    board = own in BOARDS and len(shape) >= 2
    if not low.any() and (high == 1).all():
        shape = (*shape, 1) if board and len(shape) == 2 else shape
        return Space("planes", shape), lambda x: jnp.asarray(x, jnp.uint8).reshape(shape)
    if board:
        least, count = int(low.min()), int(high.max() - low.min()) + 1
        deep = (*shape[:2], math.prod(shape[2:]) * count)
        return Space("planes", deep), lambda x: jax.nn.one_hot(x - least, count, dtype=jnp.uint8).reshape(deep)
    classes = tuple((high - low + 1).reshape(-1).tolist())
    return Space("discrete", shape, classes), lambda x: jnp.asarray(x, jnp.int32) - low


def _bounds(env: jumanji.Environment, name: str, spec: specs.Array) -> tuple[np.ndarray, np.ndarray] | None:
    """The least and the largest value of every element; None where they are not known or not whole."""
    if np.dtype(spec.dtype).kind not in "biu":
        return None
    if isinstance(spec, specs.BoundedArray):
        low, high = spec.minimum, spec.maximum
        if isinstance(env, TSP) and name == "position":
            low = -1  # nowhere yet, which its spec does not say
    elif isinstance(env, Game2048):
        low, high = 0, env.board_size**2 + 1  # exponents; the largest tile there is room for
    else:
        return None
    return np.broadcast_to(np.int32(low), spec.shape), np.broadcast_to(np.int32(high), spec.shape)


def _actions(spec: specs.Array, mask: Any) -> tuple[Space, Callable[[Any], Any]]:
    """The space of the actions, and the function from one of ours to jumanji's own."""
    if isinstance(spec, specs.DiscreteArray):
        return Space("discrete", (), (int(spec.num_values),)), lambda x: x.astype(spec.dtype)
    if isinstance(spec, specs.MultiDiscreteArray):
        counts = tuple(np.ravel(spec.num_values).tolist())
        if mask is None or mask.shape == counts:
            return (
                Space("discrete", (), (math.prod(counts),)),
                lambda x: jnp.stack(jnp.unravel_index(x, counts)).reshape(spec.shape).astype(spec.dtype),
            )
        if set(counts) == {mask.shape[-1]} and mask.size == sum(counts):
            return Space("discrete", tuple(spec.shape), counts), lambda x: x.astype(spec.dtype)
        raise ValueError(f"its mask is {list(mask.shape)}, expected one for all combinations of {counts}, or for each")
    if isinstance(spec, specs.BoundedArray) and np.dtype(spec.dtype).kind == "f":
        low, high = (np.broadcast_to(x, spec.shape) for x in (spec.minimum, spec.maximum))
        if np.isfinite(low).all() and np.isfinite(high).all():
            return action_vector(tuple(spec.shape)), lambda x: low + (x + 1) / 2 * (high - low)
    raise ValueError(
        f"its actions are {np.dtype(spec.dtype)} {list(spec.shape)} of a {type(spec).__name__}, expected a "
        "DiscreteArray, a MultiDiscreteArray, or floats between bounds"
    )


def _legal(mask: Any, space: Space) -> Any:
    """jumanji's mask side by side. Where nothing can be done, as at the end of an episode, everything may be."""
    parts = mask.reshape(len(space.classes), -1)
    return (parts | ~parts.any(-1, keepdims=True)).reshape(-1)
