"""The spaces of Gymnasium and their values, translated to ours and back.

Gymnasium space                     becomes
    Box uint8, three axes [H, W, C] `image`; [C, H, W] is turned around
    any other Box                   `vector`: float32; as an action rescaled to [-1, 1]
    Discrete, MultiDiscrete         `discrete`: classes counted from 0 whatever `start` is
    MultiBinary                     `discrete` of 2 classes
    a mission of MiniGrid           `discrete`: words by number; left out where it never varies, or in other words
    Dict, Tuple (nested)            one array per leaf, names joined with "/"

A space that is a single leaf has no name of its own: as an observation it is called by its kind
("image", "vector", "discrete"), as an action "action".
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from types import ModuleType
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

from reverie.envs.base import RULES, Arrays, Space, Spaces, action_vector
from reverie.envs.masks import MASK
from reverie.envs.values import Malformed
from reverie.fields import chosen

Path = tuple[Any, ...]
Leaves = list[tuple[Path, gymnasium.Space]]


def observation_spaces(space: gymnasium.Space, obs_keys: str = "") -> Spaces:
    """The `obs_space` of a Gymnasium observation space; raises ValueError where there is none."""
    named = _by_name(space, _seen_leaves(space, obs_keys), _observe, single=None)
    for name in sorted(RULES):  # which are called by their kinds
        if name in named:
            raise ValueError(
                f"obs/{name}: this name stands for what the rules of a game say; rename the key"
                + (f", or call it {MASK!r} if it says which actions may be taken" if name == "legal" else "")
            )
    return named


def action_spaces(space: gymnasium.Space) -> Spaces:
    """The `act_space` of a Gymnasium action space; raises ValueError where there is none."""
    return _by_name(space, _leaves(space), _actions, single="action")


def observer(space: gymnasium.Space, obs_keys: str = "") -> Callable[[Any], Arrays]:
    """A function from the env's own observations to `Arrays` of those that are seen.

    It casts what can be cast without changing the meaning (float64 to float32, int64 to int32).
    Everything else it hands on as it came, for the `Gate` to reject with a proper message.
    """
    names, seen = observation_spaces(space, obs_keys), _seen_leaves(space, obs_keys)
    leaves = {path: (name, _converter(leaf)) for name, (path, leaf) in zip(names, seen, strict=True)}

    def walk(node: gymnasium.Space, value: Any, path: Path) -> Iterator[tuple[str, np.ndarray]]:
        if path in leaves:
            name, convert = leaves[path]
            yield name, convert(value)
        elif isinstance(node, spaces.Dict):
            if not isinstance(value, Mapping):
                wish = f"expected a dict with the keys {list(node.spaces)}"
                raise Malformed(f"obs/{_name(path)}: a {type(value).__name__}, {wish}")
            for key, sub in value.items():
                if key in node.spaces:
                    yield from walk(node.spaces[key], sub, (*path, key))
                else:
                    yield _name((*path, key)), np.asarray(sub)
        elif isinstance(node, spaces.Tuple):
            if not isinstance(value, tuple | list) or len(value) != len(node.spaces):
                wish = f"expected a tuple of {len(node.spaces)}"
                raise Malformed(f"obs/{_name(path)}: a {type(value).__name__}, {wish}")
            for i, sub in enumerate(value):
                yield from walk(node.spaces[i], sub, (*path, i))

    return lambda value: dict(walk(space, value, ()))


def actor(space: gymnasium.Space) -> Callable[[Arrays], Any]:
    """A function from an action in [-1, 1] and class numbers to the env's own action."""
    natives = {path: _native(leaf) for path, leaf in _leaves(space)}

    def build(action: Arrays, node: gymnasium.Space, path: Path) -> Any:
        if isinstance(node, spaces.Dict):
            return {key: build(action, sub, (*path, key)) for key, sub in node.spaces.items()}
        if isinstance(node, spaces.Tuple):
            return tuple(build(action, sub, (*path, i)) for i, sub in enumerate(node.spaces))
        return natives[path](action[_name(path) or "action"])

    return lambda action: build(action, space, ())


def left_out(space: gymnasium.Space, obs_keys: str = "") -> list[str]:
    """Names of what there is to observe and is not seen."""
    seen = {path for path, _ in _seen_leaves(space, obs_keys)}
    return [_name(path) for path, _ in _leaves(space) if path not in seen]


def leaves(space: gymnasium.Space, named: Spaces) -> dict[str, gymnasium.Space]:
    """The leaves of a Gymnasium space by their names in `named`, which was made of it."""
    return {_name(path) or next(iter(named)): leaf for path, leaf in _leaves(space)}


def normaliser(space: gymnasium.Space) -> Callable[[np.ndarray], np.ndarray]:
    """The inverse of `actor` for a leaf: the env's own actions `[T, ...]` in [-1, 1], or as classes from 0."""
    if isinstance(space, spaces.Box):
        low, high = space.low.astype(np.float64), space.high.astype(np.float64)
        width = np.where(high > low, high - low, 1.0)
        return lambda value: (2 * (np.asarray(value, np.float64) - low) / width - 1).astype(np.float32)
    start = np.asarray(getattr(space, "start", 0))
    return lambda value: _cast(np.asarray(value) - start, "iub", np.int32)


def _by_name(
    space: gymnasium.Space, leaves: Leaves, translate: Callable[[gymnasium.Space, str], Space], single: str | None
) -> Spaces:
    out: Spaces = {}
    for path, leaf in leaves:
        ours = translate(leaf, _name(path) or "the space")
        name = _name(path) or single or ours.kind
        if name in out:
            raise ValueError(f"two spaces are called {name!r}; rename one key of the Dict space")
        out[name] = ours
    if not out:
        raise ValueError(f"{space} is empty: there is nothing to see or to do")
    return out


def _seen_leaves(space: gymnasium.Space, obs_keys: str) -> Leaves:
    """The leaves of an observation that `--obs-keys` keeps, without missions that say nothing."""
    leaves = _leaves(space)
    if not isinstance(space, spaces.Dict | spaces.Tuple):
        chosen([_observe(space, "the space").kind], obs_keys)
        return leaves
    kept = chosen((_name(path) for path, _ in leaves), obs_keys) if leaves else ()
    speaks = lambda leaf: (missions := _missions(leaf)) is None or missions.is_mission(leaf)
    return [(path, leaf) for path, leaf in leaves if _name(path) in kept and speaks(leaf)]


def _missions(space: gymnasium.Space) -> ModuleType | None:
    """The module that puts missions of MiniGrid into numbers, if the space is of such; the package is there then."""
    speaks = any(kind.__module__ == "minigrid.core.mission" for kind in type(space).__mro__)
    return importlib.import_module("reverie.envs.minigrid") if speaks else None


def _leaves(space: gymnasium.Space, path: Path = ()) -> Leaves:
    if isinstance(space, spaces.Dict):
        return [x for key, sub in space.spaces.items() for x in _leaves(sub, (*path, key))]
    if isinstance(space, spaces.Tuple):
        return [x for i, sub in enumerate(space.spaces) for x in _leaves(sub, (*path, i))]
    return [(path, space)]


def _name(path: Path) -> str:
    return "/".join(str(part) for part in path)


def _observe(space: gymnasium.Space, name: str) -> Space:
    if isinstance(space, spaces.Box):
        if _is_image(space):
            swap = channels_first(space.shape)
            return Space("image", turned_around(space.shape) if swap else space.shape, channels_first=swap)
        with np.errstate(over="ignore"):  # a float64 bound may be infinite as a float32
            low, high = (x.astype(np.float32).reshape(-1) for x in (space.low, space.high))
        return Space("vector", space.shape, (), tuple(low.tolist()), tuple(high.tolist()))
    if missions := _missions(space):
        return Space("discrete", (missions.LENGTH,), (len(missions.WORDS) + 1,) * missions.LENGTH)
    try:
        return _discrete(space, name)
    except ValueError as error:
        raise ValueError(f"{error}; or leave it out: --obs-keys '!{name}'") from None


def _actions(space: gymnasium.Space, name: str) -> Space:
    if not isinstance(space, spaces.Box):
        return _discrete(space, name)
    with np.errstate(over="ignore"):
        width = space.high.astype(np.float32) - space.low.astype(np.float32)
    if not np.isfinite(width).all():
        raise ValueError(
            f"action {name}: {space} is unbounded, expected finite low and high, for example "
            f"Box(-1.0, 1.0, {space.shape}); agents act in [-1, 1] and need to know what that spans"
        )
    return action_vector(space.shape)


def _discrete(space: gymnasium.Space, name: str) -> Space:
    if isinstance(space, spaces.Discrete):
        return Space("discrete", (), (int(space.n),))
    if isinstance(space, spaces.MultiDiscrete):
        return Space("discrete", space.shape, tuple(int(n) for n in space.nvec.reshape(-1)))
    if isinstance(space, spaces.MultiBinary):
        return Space("discrete", space.shape, (2,) * math.prod(space.shape))
    if type(space).__module__.partition(".")[0] == "gym":
        raise ValueError(f"{name}: a space of the old `gym` package: write `from gymnasium import spaces`")
    raise ValueError(
        f"{name}: {type(space).__name__} spaces are not supported, expected Box, Discrete, "
        "MultiDiscrete, MultiBinary, or a Dict or Tuple of these; encode it as one of them in a "
        "gymnasium.ObservationWrapper or gymnasium.ActionWrapper"
    )


def _is_image(space: spaces.Box) -> bool:
    return space.dtype == np.uint8 and len(space.shape) == 3


def channels_first(shape: tuple[int, ...]) -> bool:
    """Whether an image is shaped `[C, H, W]`: a few channels before two sides that cannot be meant as channels."""
    channels, *sides = shape
    few = (channels <= 4 and min(sides) >= 7) or (channels <= 16 and min(sides) >= 32)
    return few and sides[-1] not in (1, 3, 4)


def turned_around(shape: tuple[int, ...]) -> tuple[int, ...]:
    """`[C, H, W]` as `[H, W, C]`."""
    return (*shape[1:], shape[0])


def _turn(value: Any, shape: tuple[int, ...]) -> np.ndarray:
    array = np.asarray(value)
    if array.shape != shape:
        raise Malformed(f"an image is {list(array.shape)}, expected {list(shape)}, channels first, as declared")
    return np.ascontiguousarray(np.moveaxis(array, 0, -1))


def _converter(space: gymnasium.Space) -> Callable[[Any], np.ndarray]:
    if isinstance(space, spaces.Box):
        if _is_image(space):
            return partial(_turn, shape=space.shape) if channels_first(space.shape) else np.asarray
        kinds: str = "iu" if space.dtype.kind in "iu" else space.dtype.kind
        return lambda value: _cast(value, kinds, np.float32)
    if missions := _missions(space):
        return lambda value: _mission_codes(missions, value)
    start, kinds = np.asarray(getattr(space, "start", 0)), "iub" if isinstance(space, spaces.MultiBinary) else "iu"
    if not start.any():
        return lambda value: _cast(value, kinds, np.int32)
    # An array of the wrong shape or dtype is left alone: the gate names it.
    return lambda value: (
        _cast(np.asarray(value) - start, kinds, np.int32)
        if np.shape(value) == start.shape and np.asarray(value).dtype.kind in kinds
        else np.asarray(value)
    )


def _mission_codes(missions: ModuleType, value: Any) -> np.ndarray:
    try:
        return np.asarray(missions.tokens(value), np.int32)
    except ValueError as error:
        raise Malformed(f"{error}; --obs-keys '!mission' leaves it out") from None


def _cast(value: Any, kinds: str, dtype: type) -> np.ndarray:
    array = np.asarray(value)
    with np.errstate(over="ignore"):  # what a float32 cannot hold is infinite, and the gate names it
        return array.astype(dtype) if array.dtype.kind in kinds else array


def _native(space: gymnasium.Space) -> Callable[[np.ndarray], Any]:
    if isinstance(space, spaces.Box):
        low, high = space.low.astype(np.float64), space.high.astype(np.float64)
        half, dtype = (high - low) / 2, space.dtype
        whole = dtype.kind in "iu"

        def rescale(action: np.ndarray) -> np.ndarray:
            value = np.clip(low + (np.asarray(action, np.float64) + 1) * half, low, high)
            return np.asarray(np.rint(value) if whole else value, dtype)

        return rescale
    if isinstance(space, spaces.Discrete):
        first = int(space.start)
        return lambda action: int(action) + first
    start = getattr(space, "start", 0)
    return lambda action: np.asarray(action + start, space.dtype)
