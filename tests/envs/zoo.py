"""Sixty envs that people bring: spaces of every kind, images of every size, and every fault that was met.

`ZOO[name]()` builds one. Episodes have eight steps unless the fault is another; observations are drawn from the space
by the episode's own generator, and an action is checked against its space.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

LENGTH = 8
FLOATS = spaces.Box(-1, 1, (3,), np.float32)
TWO = spaces.Discrete(2)


class Animal(gymnasium.Env):
    """An env of these spaces. Of everything it returns, `faults` may say something else: `name -> value`, or a function
    of the env."""

    def __init__(self, sees: Any = FLOATS, does: Any = TWO, length: int = LENGTH, **faults: Any) -> None:
        self.observation_space, self.action_space = sees, does
        self._length, self._faults, self.taken = length, faults, 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        super().reset(seed=seed)
        if seed is not None:
            self.observation_space.seed(seed)
        self.taken = 0
        self._say("reset_runs", None)
        seen = self._say("obs", self._sampled)
        return self._say("reset", lambda: (seen, self._say("info", dict)))

    def step(self, action: Any) -> Any:
        assert self.action_space.contains(action), f"{action!r} is not in {self.action_space}"
        self.taken += 1
        self._say("step_runs", None)
        seen = self._say("obs", self._sampled)
        reward = self._say("reward", lambda: float(self.taken % 2))
        end = self._say("terminated", lambda: self.taken >= self._length)
        return self._say("step", lambda: (seen, reward, end, False, self._say("info", dict)))

    def _sampled(self) -> Any:
        return self.observation_space.sample()

    def _say(self, what: str, sound: Callable[[], Any] | None) -> Any:
        given = self._faults.get(what, sound)
        if what in self._faults and not callable(given):
            return given
        return (given(self) if what in self._faults else given()) if given else None


class Seedless(Animal):
    def reset(self) -> Any:  # type: ignore[override]
        return super().reset()


class Unbuildable(Animal):
    def __init__(self) -> None:
        raise RuntimeError("no screen")


class Bare:
    """Nothing that steps."""


def image(height: int, wide: int, channels: int = 3) -> spaces.Box:
    return spaces.Box(0, 255, (height, wide, channels), np.uint8)


def box(shape: tuple[int, ...], dtype: Any = np.float32, low: Any = -1, high: Any = 1) -> spaces.Box:
    return spaces.Box(low, high, shape, dtype)


def several(sizes: list[spaces.Box]) -> spaces.Space:
    return sizes[0] if len(sizes) == 1 else spaces.Dict({f"view{i}": x for i, x in enumerate(sizes)})


def pictures(env: Animal) -> Any:
    """A bright bar that moves with the step, in every image of the space."""

    def draw(space: spaces.Box) -> np.ndarray:
        wide = space.shape[1]
        picture = np.full(space.shape, 30, np.uint8)
        picture[:, wide * (env.taken % 3) // 3 : wide * (env.taken % 3 + 1) // 3] = 220
        return picture

    space = env.observation_space
    if isinstance(space, spaces.Dict):
        return {key: draw(sub) for key, sub in space.spaces.items()}
    return draw(space)


def raising(env: Animal) -> None:
    raise RuntimeError("the simulator is gone")


def hanging(env: Animal) -> None:
    time.sleep(3600)


IMAGES = {
    "7x7": [image(7, 7)],
    "84x84": [image(84, 84)],
    "210x160": [image(210, 160)],
    "37x91": [image(37, 91)],
    "two sizes": [image(64, 64), image(7, 12, 1)],
}
OBSERVATIONS: dict[str, spaces.Space] = {
    "one number": box(()),
    "a vector": box((3,)),
    "a matrix": box((3, 4)),
    "unbounded": box((2,), low=-np.inf, high=np.inf),
    "float64": box((2,), np.float64),
    "integers": box((2,), np.int32, -100, 100),
    "bytes": box((9,), np.uint8, 0, 255),
    "wide": box((2000,)),
    "gray without an axis": box((20, 20), np.uint8, 0, 255),
    "a float image": box((16, 16, 3), low=0),
    "nothing": box((0,)),
    "no pixels": image(0, 64),
    "five": spaces.Discrete(5),
    "one": spaces.Discrete(1),
    "from -3": spaces.Discrete(7, start=-3),
    "several": spaces.MultiDiscrete([3, 4]),
    "a grid": spaces.MultiDiscrete(np.full((3, 3), 4)),
    "bits": spaces.MultiBinary(4),
    "a plane of bits": spaces.MultiBinary((2, 3)),
    "nested": spaces.Dict({"a": box((2,)), "b": spaces.Tuple((TWO, spaces.Dict({"c": image(8, 8)})))}),
    "empty": spaces.Dict({}),
    "text": spaces.Dict({"x": FLOATS, "mission": spaces.Text(9)}),
    "a sequence": spaces.Dict({"x": FLOATS, "things": spaces.Sequence(FLOATS)}),
    "a graph": spaces.Graph(FLOATS, None),
    "one pixel": image(1, 1),
    "16x16 gray": image(16, 16, 1),
    "64x64": image(64, 64),
    "four channels": image(30, 30, 4),
    "a strip": image(8, 200),
    "channels first": box((3, 64, 64), np.uint8, 0, 255),
    "stack first": box((4, 84, 84), np.uint8, 0, 255),
}
ACTIONS: dict[str, spaces.Space] = {
    "one": spaces.Discrete(1),
    "eighteen": spaces.Discrete(18),
    "from -1": spaces.Discrete(3, start=-1),
    "several": spaces.MultiDiscrete([2, 3]),
    "bits": spaces.MultiBinary(3),
    "a vector": box((2,)),
    "a matrix": box((2, 2), low=0, high=5),
    "unbounded": box((1,), low=-np.inf, high=np.inf),
    "whole": box((1,), np.int32, 0, 4),
    "a dict": spaces.Dict({"turn": TWO, "push": box((1,))}),
    "text": spaces.Text(3),
    "nothing": box((0,)),
}
# The last two only look wrong.
FAULTS: dict[str, Callable[[], Any]] = {
    "nan": partial(Animal, obs=lambda env: np.full(3, np.nan, np.float32)),
    "out of bounds": partial(Animal, obs=lambda env: np.full(3, 9, np.float32)),
    "another shape": partial(Animal, obs=lambda env: np.zeros(4, np.float32)),
    "another kind of number": partial(Animal, obs=lambda env: np.zeros(3, np.int64)),
    "a missing key": partial(Animal, spaces.Dict({"a": FLOATS, "b": TWO}), obs=lambda env: {"b": 1}),
    "no reward": partial(Animal, reward=None),
    "a reward of nan": partial(Animal, reward=np.nan),
    "several rewards": partial(Animal, reward=np.zeros(2)),
    "half an end": partial(Animal, terminated=0.5),
    "no info": partial(Animal, info=None),
    "old reset": partial(Animal, reset=lambda env: np.zeros(3, np.float32)),
    "old step": partial(Animal, step=lambda env: (np.zeros(3, np.float32), 0.0, False, {})),
    "raises in step": partial(Animal, step_runs=raising),
    "raises in reset": partial(Animal, reset_runs=raising),
    "hangs": partial(Animal, step_runs=hanging),
    "takes no seed": Seedless,
    "cannot be built": Unbuildable,
    "is no env": Bare,
    "a vector of envs": lambda: gymnasium.make_vec("CartPole-v1", 2),
    "ends at once": partial(Animal, length=1),
    "never ends": partial(Animal, length=10**9),
}
ZOO: dict[str, Callable[[], Any]] = {
    **{f"image: {k}": partial(Animal, several(v), obs=pictures) for k, v in IMAGES.items()},
    **{f"sees: {k}": partial(Animal, v) for k, v in OBSERVATIONS.items()},
    **{f"does: {k}": partial(Animal, FLOATS, v) for k, v in ACTIONS.items()},
    **FAULTS,
}
