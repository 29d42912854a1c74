"""Envs that say which actions are legal, and raise where an illegal one is taken."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

FORBIDDEN = "an illegal action"


class Masked(gymnasium.Env):
    """What is legal differs from step to step; once in a while it is one action alone. High numbers pay.

    What is seen is a hash of what is legal, so that it can be learned, in part.
    """

    width = 5
    action_space: spaces.Space = spaces.Discrete(5)
    observation_space: spaces.Space = spaces.Box(-1, 1, (8,), np.float32)
    length = 13

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.t, self.mask = 0, self.draw()
        return self.seen(), self.info()

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        if not self.allows(action):
            raise AssertionError(FORBIDDEN)
        self.t += 1
        reward, over = float(np.max(action)) / self.width, self.t == self.length
        self.mask = np.zeros(self.width, bool) if over else self.draw()
        return self.seen(), reward, over, False, self.info()

    def allows(self, action: Any) -> bool:
        return bool(self.mask[action])

    def draw(self) -> np.ndarray:
        mask = self.np_random.random(self.width) < 0.5
        mask[self.np_random.integers(self.width)] = True
        return mask

    def seen(self) -> Any:
        pattern = np.random.default_rng(0).normal(size=(self.width, 8))
        return np.tanh(self.mask @ pattern).astype(np.float32)

    def info(self) -> dict[str, Any]:
        return {"action_mask": self.mask.astype(np.int8)}


class InObservation(Masked):
    """As PettingZoo and others show it."""

    observation_space = spaces.Dict(
        {"seen": spaces.Box(-1, 1, (8,), np.float32), "action_mask": spaces.Box(0, 1, (5,), np.int8)}
    )

    def seen(self) -> Any:
        return {"seen": super().seen(), "action_mask": self.mask.astype(np.int8)}

    def info(self) -> dict[str, Any]:
        return {}


class ByMethod(Masked):
    """As sb3-contrib asks for it."""

    def action_masks(self) -> np.ndarray:
        return self.mask

    def info(self) -> dict[str, Any]:
        return {}


class Several(Masked):
    """An action of two elements, with a mask of both side by side."""

    action_space = spaces.MultiDiscrete([2, 3])

    def allows(self, action: Any) -> bool:
        return bool(self.mask[action[0]] and self.mask[2 + action[1]])

    def draw(self) -> np.ndarray:
        mask = super().draw()
        mask[self.np_random.integers(2)] = mask[2 + self.np_random.integers(3)] = True
        return mask


class Lazy(Masked):
    """Its mask is `wrong` from the second step on; with `at_once`, from the first reset."""

    def __init__(self, wrong: Any = None, at_once: bool = False) -> None:
        self.wrong, self.at_once = wrong, at_once

    def info(self) -> dict[str, Any]:
        if not self.at_once and self.t < 2:
            return super().info()
        return {} if self.wrong is None else {"action_mask": self.wrong}
