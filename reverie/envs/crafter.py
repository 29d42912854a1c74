"""Crafter (Hafner, 2021): survive and craft in an open world; 22 achievements.

The package speaks the old interface of four values and takes no seed on reset. Its episodes are also not
the same twice under one seed, because creatures to be removed are picked from a Python set, whose order
is that of addresses in memory; here they are picked in the order in which they came.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import crafter
import gymnasium
import numpy as np
from gymnasium import spaces

from reverie.envs.options import Info, own_name
from reverie.fields import Steps, Within

VARIANTS = ("reward", "noreward")
ACHIEVEMENTS = tuple(crafter.constants.achievements)


@dataclass(frozen=True)
class Options:
    """Keyword arguments of `crafter` ids."""

    size: Annotated[int, Within(9)] = 64
    """Images are [size, size, 3]."""
    length: Steps = 10_000
    """Steps after which an episode is truncated. 0: never."""


def make(name: str, options: Options) -> Crafter:
    """`crafter` or `crafter:reward`; `crafter:noreward` for exploration without any reward."""
    variant = own_name(name.partition(":")[2] or "reward", "crafter:", VARIANTS, kind="variant")
    return Crafter(options, reward=variant == "reward")


def score(rates: Mapping[str, float]) -> float:
    """The Crafter score: the geometric mean of success rates, offset by one so that 0 is allowed.

        exp(mean(log(1 + 100 rate))) - 1        Hafner, 2021, section 3; in percent

    Args:
      rates: achievement -> fraction of episodes, in [0, 1], in which it was unlocked. All 22.
    """
    if set(rates) != set(ACHIEVEMENTS):
        raise ValueError(f"rates of {sorted(rates)}, expected all of {ACHIEVEMENTS}")
    percent = 100 * np.array([rates[name] for name in ACHIEVEMENTS])
    return float(np.expm1(np.log1p(percent).mean()))


def summary(means: Mapping[str, float]) -> dict[str, float]:
    """The score, from the means of what `info["figures"]` says in many episodes."""
    return {"score": score({name.removeprefix("achievement/"): rate for name, rate in means.items()})}


class Crafter(gymnasium.Env):
    """The world.

    Observation: uint8 `[size, size, 3]`. 17 actions. The reward is 1 for each achievement the first
    time in an episode, and a tenth of every change of health.
    `info["figures"]` says of every achievement whether it was unlocked in this episode (1.0 or 0.0).
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 10}  # noqa: RUF012 (Gymnasium's own form)
    render_mode = "rgb_array"

    def __init__(self, options: Options = Options(), reward: bool = True) -> None:
        self.observation_space = spaces.Box(0, 255, (options.size, options.size, 3), np.uint8)
        self.action_space = spaces.Discrete(len(crafter.constants.actions))
        self._length, self._steps = options.length, 0
        self._game = _Game(size=(options.size, options.size), reward=reward, length=None, seed=0)

    def reset(self, *, seed: int | None = None, options: Info | None = None) -> tuple[np.ndarray, Info]:
        super().reset(seed=seed)
        self._steps = 0
        self._game._seed, self._game._episode = int(self.np_random.integers(2**31)), 0
        return self._game.reset(), {}

    def step(self, action: int | np.integer) -> tuple[np.ndarray, float, bool, bool, Info]:
        image, reward, dead, info = self._game.step(int(action))
        self._steps += 1
        done = {f"achievement/{name}": float(count > 0) for name, count in info["achievements"].items()}
        late = bool(self._length) and self._steps >= self._length
        return image, float(reward), bool(dead), late and not dead, {"figures": done}

    def render(self) -> np.ndarray:
        return self._game.render((256, 256))


class _Game(crafter.Env):
    def _balance_object(self, chunk: Any, objs: Any, *args: Any) -> None:
        number = self._world._obj_map  # numbers count up as objects come
        super()._balance_object(chunk, sorted(objs, key=lambda one: number[tuple(one.pos)]), *args)
