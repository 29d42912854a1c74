"""An env of every kind of space."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

from reverie.envs.toy import Info


class Dummy(gymnasium.Env):
    """Every kind of space at once, random contents; reward 1 a step, `length` steps."""

    def __init__(self, length: int = 100) -> None:
        self.observation_space = spaces.Dict(
            {
                "image": spaces.Box(0, 255, (64, 64, 3), np.uint8),
                "vector": spaces.Box(-np.inf, np.inf, (7,), np.float32),
                "token": spaces.Discrete(256),
                "count": spaces.Box(0, length, (), np.float32),
                "float2d": spaces.Box(-np.inf, np.inf, (4, 5), np.float32),
                "int2d": spaces.MultiDiscrete(np.full((2, 3), 4)),
            }
        )
        self.action_space = spaces.Dict({"disc": spaces.Discrete(5), "cont": spaces.Box(-1, 1, (6,), np.float32)})
        self._length, self._step = length, 0

    def reset(self, *, seed: int | None = None, options: Info | None = None) -> tuple[dict[str, Any], Info]:
        super().reset(seed=seed)
        self._step = 0
        return self._shown(), {}

    def step(self, action: dict[str, Any]) -> tuple[dict[str, Any], float, bool, bool, Info]:
        assert self.action_space.contains(action), action
        self._step += 1
        return self._shown(), 1.0, False, self._step >= self._length, {}

    def _shown(self) -> dict[str, Any]:
        rng = self.np_random
        return {
            "image": rng.integers(0, 256, (64, 64, 3), np.uint8),
            "vector": rng.standard_normal(7).astype(np.float32),
            "token": int(rng.integers(256)),
            "count": np.float32(self._step),
            "float2d": rng.standard_normal((4, 5)).astype(np.float32),
            "int2d": rng.integers(0, 4, (2, 3)),
        }
