"""Gymnasium envs, translated: any `gymnasium.Env` in, an `Env` of ours out.

Gymnasium space                     becomes
    Box uint8, three axes [H, W, C] `image`; [C, H, W] is turned around
    any other Box                   `vector`: float32; as an action rescaled to [-1, 1]
    Discrete, MultiDiscrete         `discrete`: classes counted from 0 whatever `start` is
    MultiBinary                     `discrete` of 2 classes
    a mission of MiniGrid           `discrete`: words by number; left out where it never varies, or in other words
    Dict, Tuple (nested)            one array per leaf, names joined with "/"

A space that is a single leaf has no name of its own: as an observation it is called by its kind
("image", "vector", "discrete"), as an action "action".

An action mask becomes `legal`, whichever way the env has of telling it: a leaf `action_mask` of a Dict observation (as
in PettingZoo), `info["action_mask"]` of reset and step, or a method `action_masks()` (as in sb3-contrib). It is bool or
0 and 1, one flag for each class of the one discrete action; those of a MultiDiscrete side by side.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

from reverie.envs.base import Arrays, Space, Spaces, Step
from reverie.envs.values import Malformed
from reverie.fields import chosen

Path = tuple[Any, ...]
Leaves = list[tuple[Path, gymnasium.Space]]
MASK, METHOD = "action_mask", "action_masks"  # as Gymnasium and PettingZoo, and as sb3-contrib call it
# Where an env tells it, in words.
LEAF, INFO, METHOD_CALL = f"obs/{MASK}", f'info["{MASK}"]', f"{METHOD}()"
RESERVED = ("legal", "player")  # keys of observations that mean something (`envs.base.RULES`)


class GymEnv:
    """The adapter. Termination and truncation stay apart: both at once count as termination.

    Of `info`, three keys mean something here. `is_terminal` (bool): a loss that counts as an end though the
    episode goes on, such as a life. `figures` (dict of numbers): of the episode so far, for the log. `action_mask`:
    above. Whether there is one only a reset tells: with discrete actions it happens at once.

    Args:
      env: any `gymnasium.Env` (Gymnasium >= 1.0).
      obs_keys: which observations are seen, patterns as in `fields.chosen`; the others may be of any space.
      seed: of the first reset. If it is asked for with this seed, what the one at once gave is given.

    Attributes:
      shown: the last observation as the env itself returned it.

    Raises:
      ValueError: a space, or an action mask, that no agent here can use; the message says what to declare instead.
    """

    def __init__(self, env: gymnasium.Env, obs_keys: str = "", seed: int = 0) -> None:
        self.env = env
        self._act_space = action_spaces(env.action_space)
        self.shown: Any = None
        self._kept: dict[int | None, Any] = {}  # by its seed: a reset that nobody has seen yet
        self._source = self._mask_source(seed)
        seen = without_mask(env.observation_space) if self._source == LEAF else env.observation_space
        self._obs_space = observation_spaces(seen, obs_keys)
        self._observe = observer(seen, obs_keys)
        if self._source:
            width = mask_width(self._act_space, self._source)
            self._obs_space["legal"] = Space("legal", (width,))
        self.native = actor(env.action_space)  # Arrays -> the env's own action

    @property
    def masks(self) -> str:
        """Where the env's action masks come from, in words; empty if it has none."""
        return self._source

    def observe(self, raw: Any, mask: Any = None, last: bool = False) -> Arrays:
        """The env's own observation as `Arrays`, and the mask of its actions.

        Args:
          mask: the env's own, where it is not part of the observation.
          last: the episode ends here: a mask of zeros, or none at all, is as good as any.

        Raises:
          Malformed: what was seen is not what the space says, or the mask is none.
        """
        if self._source == LEAF:
            raw, mask = _apart(raw)
        obs = self._observe(raw)
        if self._source:
            obs["legal"] = legal_of(mask, self._act_space, self._source, last)
        return obs

    def _mask_source(self, seed: int) -> str:
        """Where the env tells its masks; empty if nowhere, or if it has no discrete action.

        Raises ValueError for a mask that is none.
        """
        if not any(space.kind == "discrete" for space in self._act_space.values()):
            return ""
        seen = self.env.observation_space
        if isinstance(seen, spaces.Dict) and MASK in seen.spaces:
            width, leaf = mask_width(self._act_space, LEAF), seen.spaces[MASK]
            if leaf.shape != (width,) or np.dtype(leaf.dtype).kind not in "biu":
                raise ValueError(f"{LEAF}: {leaf}, expected MultiBinary({width}): a flag for each class of the action")
            return LEAF
        try:
            self._kept[seed] = _, info = self.env.reset(seed=seed)
            mask = info.get(MASK)
            source = "" if mask is None else INFO
            if mask is None and self.env.has_wrapper_attr(METHOD):
                source, mask = METHOD_CALL, self.env.get_wrapper_attr(METHOD)()
        except Exception:  # the border of the user's code; whoever resets it in earnest meets the same fault, and tells
            self._kept = {}
            return ""
        if source:
            mask_width(self._act_space, source)
            try:
                legal_of(mask, self._act_space, source, last=False)
            except Malformed as error:
                raise ValueError(str(error)) from error
        return source

    def _mask(self, info: dict[str, Any]) -> Any:
        """The mask of a reset or step, if it is not a part of the observation."""
        return self.env.get_wrapper_attr(METHOD)() if self._source == METHOD_CALL else info.get(MASK)

    @property
    def obs_space(self) -> Spaces:
        return self._obs_space

    @property
    def act_space(self) -> Spaces:
        return self._act_space

    def reset(self, seed: int | None = None) -> Step:
        kept, self._kept = self._kept, {}
        result = kept[seed] if seed in kept else self.env.reset(seed=seed)
        if not (isinstance(result, tuple) and len(result) == 2):
            raise Malformed(
                f"reset() returned a {type(result).__name__}, expected two values: obs, info "
                "(obs alone is the old Gym interface: `return obs, {}`)"
            )
        self.shown, info = result
        _check_info("reset", info)
        return Step(self.observe(self.shown, self._mask(info)), 0.0, True, False, False)

    def step(self, action: Arrays) -> Step:
        result = self.env.step(self.native(action))
        if not (isinstance(result, tuple) and len(result) == 5):
            given = f"{len(result)} values" if isinstance(result, tuple) else type(result).__name__
            raise Malformed(
                f"step() returned {given}, expected five: obs, reward, terminated, truncated, info "
                "(four are the old Gym interface: split `done` into terminated and truncated)"
            )
        self.shown, reward, terminated, truncated, info = result
        _check_info("step", info)
        terminated = _flag("terminated", terminated)
        last = terminated or _flag("truncated", truncated)
        return Step(
            self.observe(self.shown, self._mask(info), last),
            _reward(reward),
            False,
            last,
            terminated or _flag('info["is_terminal"]', info.get("is_terminal", False)),
            _figures(info.get("figures", {})),
        )

    def render(self) -> np.ndarray | None:
        if self.env.render_mode is None:
            return None
        frame = self.env.render()
        if isinstance(frame, list):
            frame = frame[-1] if frame else None
        if isinstance(frame, np.ndarray) and frame.ndim == 3 and frame.dtype == np.uint8:
            return np.moveaxis(frame, 0, -1) if channels_first(frame.shape) else frame
        return None

    def close(self) -> None:
        self.env.close()


def observation_spaces(space: gymnasium.Space, obs_keys: str = "") -> Spaces:
    """The `obs_space` of a Gymnasium observation space; raises ValueError where there is none."""
    named = _named(space, _seen_leaves(space, obs_keys), _observed, single=None)
    for name in RESERVED:
        if name in named:
            raise ValueError(
                f"obs/{name}: this name stands for what the rules of a game say; rename the key"
                + (f", or call it {MASK!r} if it says which actions may be taken" if name == "legal" else "")
            )
    return named


def action_spaces(space: gymnasium.Space) -> Spaces:
    """The `act_space` of a Gymnasium action space; raises ValueError where there is none."""
    return _named(space, _leaves(space), _acted, single="action")


def observer(space: gymnasium.Space, obs_keys: str = "") -> Callable[[Any], Arrays]:
    """A function from the env's own observations to `Arrays` of those that are seen.

    It casts what can be cast without changing the meaning (float64 to float32, int64 to int32).
    Everything else it hands on as it came, for the `Gate` to reject with a proper message.
    """
    if not isinstance(space, spaces.Dict | spaces.Tuple):
        (name,) = observation_spaces(space, obs_keys)
        convert = _converter(space)
        return lambda value: {name: convert(value)}
    converters = {path: _converter(leaf) for path, leaf in _seen_leaves(space, obs_keys)}

    def observe(value: Any) -> Arrays:
        out: Arrays = {}
        _walk(space, value, (), converters, out)
        return out

    return observe


def actor(space: gymnasium.Space) -> Callable[[Arrays], Any]:
    """A function from an action in [-1, 1] and class numbers to the env's own action."""
    if not isinstance(space, spaces.Dict | spaces.Tuple):
        native = _native(space)
        return lambda action: native(action["action"])
    natives = {path: _native(leaf) for path, leaf in _leaves(space)}

    def build(action: Arrays, node: gymnasium.Space, path: Path) -> Any:
        if isinstance(node, spaces.Dict):
            return {key: build(action, sub, (*path, key)) for key, sub in node.spaces.items()}
        if isinstance(node, spaces.Tuple):
            return tuple(build(action, sub, (*path, i)) for i, sub in enumerate(node.spaces))
        return natives[path](action[_name(path)])

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


# ---------------------------------------------------------------------------------- action masks


def mask_width(act_space: Spaces, source: str = MASK) -> int:
    """Flags of a mask of these actions; raises ValueError unless they are one discrete choice, or several in one."""
    if len(act_space) != 1 or any(space.kind != "discrete" for space in act_space.values()):
        kinds = {key: space.describe() for key, space in act_space.items()}
        raise ValueError(
            f"{source} masks one Discrete or MultiDiscrete action, and the actions are {kinds}; make one MultiDiscrete "
            "space of them"
        )
    (space,) = act_space.values()
    return space.width


def without_mask(space: gymnasium.Space) -> gymnasium.Space:
    """A Dict observation space without its `action_mask`; a rest of one leaf called `observation` keeps its name."""
    assert isinstance(space, spaces.Dict), space
    return spaces.Dict({key: sub for key, sub in space.spaces.items() if key != MASK})


def _apart(raw: Any) -> tuple[Any, Any]:
    """A Dict observation without its mask, and that; of anything else, and for what lacks it, None."""
    if not isinstance(raw, Mapping):
        return raw, None
    return {key: value for key, value in raw.items() if key != MASK}, raw.get(MASK)


def legal_of(mask: Any, act_space: Spaces, source: str, last: bool) -> np.ndarray:
    """A mask as bool `[A]`. Where an episode has ended nothing is taken any more: without a mask, all is legal.

    Raises Malformed for one that is missing, or of another length or dtype, or that leaves no choice.
    """
    (space,) = act_space.values()
    width = space.width
    if last and mask is None:
        return np.ones(width, bool)
    expected = f"expected bool [{width}] (or int8 of 0 and 1), a flag for each class of the action"
    if mask is None:
        raise Malformed(f"{source} is missing, {expected}, with every reset and step")
    array = np.asarray(mask)
    if array.shape != (width,):
        raise Malformed(f"{source} is {array.dtype} {list(array.shape)}, {expected}")
    if array.dtype.kind not in "biu" or (array.dtype != bool and ((array < 0) | (array > 1)).any()):
        raise Malformed(f"{source} is {array.dtype} {array.tolist()}, {expected}")
    array = array.astype(bool)
    parts = np.split(array, np.cumsum(space.classes)[:-1])
    if not all(part.any() for part in parts):
        if last:
            return np.ones(width, bool)
        raise Malformed(f"{source} allows no action, expected one at least: end the episode where nothing can be done")
    return array


# ---------------------------------------------------------------------------------------- spaces


def _named(
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
        chosen([_observed(space, "the space").kind], obs_keys)
        return leaves
    kept = chosen((_name(path) for path, _ in leaves), obs_keys) if leaves else ()
    words = {path: module for path, leaf in leaves if (module := _missions(leaf))}
    return [
        (path, leaf) for path, leaf in leaves if _name(path) in kept and (path not in words or words[path].worded(leaf))
    ]


def _missions(space: gymnasium.Space) -> ModuleType | None:
    """The module that puts missions of MiniGrid into numbers, if the space is of such; the package is there then."""
    told = any(kind.__module__ == "minigrid.core.mission" for kind in type(space).__mro__)
    return importlib.import_module("reverie.envs.minigrid") if told else None


def _leaves(space: gymnasium.Space, path: Path = ()) -> Leaves:
    if isinstance(space, spaces.Dict):
        return [x for key, sub in space.spaces.items() for x in _leaves(sub, (*path, key))]
    if isinstance(space, spaces.Tuple):
        return [x for i, sub in enumerate(space.spaces) for x in _leaves(sub, (*path, i))]
    return [(path, space)]


def _name(path: Path) -> str:
    return "/".join(str(part) for part in path)


def _observed(space: gymnasium.Space, name: str) -> Space:
    if isinstance(space, spaces.Box):
        if _is_image(space):
            turned = channels_first(space.shape)
            return Space("image", turned_around(space.shape) if turned else _shape(space), channels_first=turned)
        with np.errstate(over="ignore"):  # a float64 bound may be infinite as a float32
            low, high = (x.astype(np.float32).reshape(-1) for x in (space.low, space.high))
        return Space("vector", _shape(space), (), tuple(low.tolist()), tuple(high.tolist()))
    if missions := _missions(space):
        return Space("discrete", (missions.LENGTH,), (len(missions.WORDS) + 1,) * missions.LENGTH)
    try:
        return _discrete(space, name)
    except ValueError as error:
        raise ValueError(f"{error}; or leave it out: --obs-keys '!{name}'") from None


def _acted(space: gymnasium.Space, name: str) -> Space:
    if not isinstance(space, spaces.Box):
        return _discrete(space, name)
    with np.errstate(over="ignore"):
        width = space.high.astype(np.float32) - space.low.astype(np.float32)
    if not np.isfinite(width).all():
        raise ValueError(
            f"action {name}: {space} is unbounded, expected finite low and high, for example "
            f"Box(-1.0, 1.0, {space.shape}); agents act in [-1, 1] and need to know what that spans"
        )
    size = math.prod(space.shape)
    return Space("vector", _shape(space), (), (-1.0,) * size, (1.0,) * size)


def _discrete(space: gymnasium.Space, name: str) -> Space:
    if isinstance(space, spaces.Discrete):
        return Space("discrete", (), (int(space.n),))
    if isinstance(space, spaces.MultiDiscrete):
        return Space("discrete", _shape(space), tuple(int(n) for n in space.nvec.reshape(-1)))
    if isinstance(space, spaces.MultiBinary):
        return Space("discrete", _shape(space), (2,) * math.prod(space.shape))
    if type(space).__module__.partition(".")[0] == "gym":
        raise ValueError(f"{name}: a space of the old `gym` package: write `from gymnasium import spaces`")
    raise ValueError(
        f"{name}: {type(space).__name__} spaces are not supported, expected Box, Discrete, "
        "MultiDiscrete, MultiBinary, or a Dict or Tuple of these; encode it as one of them in a "
        "gymnasium.ObservationWrapper or gymnasium.ActionWrapper"
    )


def _shape(space: gymnasium.Space) -> tuple[int, ...]:
    return tuple(int(n) for n in space.shape or ())


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


def _turner(shape: tuple[int, ...]) -> Callable[[Any], np.ndarray]:
    def turn(value: Any) -> np.ndarray:
        array = np.asarray(value)
        if array.shape != shape:
            raise Malformed(f"an image is {list(array.shape)}, expected {list(shape)}, channels first, as declared")
        return np.ascontiguousarray(np.moveaxis(array, 0, -1))

    return turn


# ---------------------------------------------------------------------------------------- values


def _converter(space: gymnasium.Space) -> Callable[[Any], np.ndarray]:
    if isinstance(space, spaces.Box):
        if _is_image(space):
            return _turner(space.shape) if channels_first(space.shape) else np.asarray
        kinds = "iu" if space.dtype.kind in "iu" else space.dtype.kind
        return lambda value: _cast(value, kinds, np.float32)
    if isinstance(space, spaces.MultiBinary):
        return lambda value: _cast(value, "iub", np.int32)
    if missions := _missions(space):
        return lambda value: _worded(missions, value)
    start = np.asarray(getattr(space, "start", 0))
    if not start.any():
        return lambda value: _cast(value, "iu", np.int32)
    # An array of the wrong shape or dtype is left alone: the gate names it.
    return lambda value: (
        _cast(np.asarray(value) - start, "iu", np.int32)
        if np.shape(value) == start.shape and np.asarray(value).dtype.kind in "iu"
        else np.asarray(value)
    )


def _worded(missions: ModuleType, value: Any) -> np.ndarray:
    try:
        return np.asarray(missions.tokens(value), np.int32)
    except ValueError as error:
        raise Malformed(f"{error}; --obs-keys '!mission' leaves it out") from None


def _cast(value: Any, kinds: str, dtype: type) -> np.ndarray:
    array = np.asarray(value)
    with np.errstate(over="ignore"):  # what a float32 cannot hold is infinite, and the gate names it
        return array.astype(dtype) if array.dtype.kind in kinds else array


def _walk(
    node: gymnasium.Space,
    value: Any,
    path: Path,
    converters: Mapping[Path, Callable[[Any], np.ndarray]],
    out: Arrays,
) -> None:
    if path in converters:
        out[_name(path)] = converters[path](value)
        return
    if not isinstance(node, spaces.Dict | spaces.Tuple):
        return  # not seen
    if isinstance(node, spaces.Dict):
        if not isinstance(value, Mapping):
            raise Malformed(
                f"obs/{_name(path)}: a {type(value).__name__}, expected a dict with the keys {list(node.spaces)}"
            )
        for key, sub in value.items():
            if key in node.spaces:
                _walk(node.spaces[key], sub, (*path, key), converters, out)
            else:
                out[_name((*path, key))] = np.asarray(sub)
        return
    if not isinstance(value, tuple | list) or len(value) != len(node.spaces):
        raise Malformed(f"obs/{_name(path)}: a {type(value).__name__}, expected a tuple of {len(node.spaces)}")
    for i, sub in enumerate(value):
        _walk(node.spaces[i], sub, (*path, i), converters, out)


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


def _check_info(where: str, info: Any) -> None:
    if not isinstance(info, dict):
        raise Malformed(f"{where}() returned an info of type {type(info).__name__}, expected dict")


def _flag(name: str, value: Any) -> bool:
    if isinstance(value, bool | np.bool_):
        return bool(value)
    array = np.asarray(value)
    if array.ndim == 0 and array.dtype.kind in "biu":
        return bool(array)
    raise Malformed(f"{name} is {value!r}, expected True or False")


def _figures(value: Any) -> dict[str, float]:
    if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
        arrays = {key: np.asarray(x) for key, x in value.items()}
        if all(x.ndim == 0 and x.dtype.kind in "biuf" for x in arrays.values()):
            return {key: float(x) for key, x in arrays.items()}
    raise Malformed(f'info["figures"] is {value!r}, expected a dict of numbers by name')


def _reward(value: Any) -> float:
    if isinstance(value, float | int):
        return float(value)
    array = np.asarray(value)
    if array.ndim == 0 and array.dtype.kind in "biuf":
        return float(array)
    raise Malformed(f"reward is {value!r}, expected one number")
