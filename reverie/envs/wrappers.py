"""Small changes to an env: observations left out, action repeat, time limit, image size, gray. An `Env` in, one out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
from PIL import Image

from reverie.envs.base import RULES, Arrays, Env, Spaces, Step
from reverie.envs.gym import GymEnv
from reverie.envs.masks import LEAF
from reverie.envs.values import may_act
from reverie.fields import chosen

Shape = tuple[int, ...]


class Wrapper:
    """Passes everything on. A wrapper overrides `step`, or sets `obs_space` and overrides `observation`."""

    def __init__(self, env: Env) -> None:
        self.env = env
        self.obs_space: Spaces = env.obs_space
        self.act_space: Spaces = env.act_space

    def observation(self, obs: Arrays) -> Arrays:
        return obs

    def reset(self, seed: int | None = None) -> Step:
        step = self.env.reset(seed)
        return replace(step, obs=self.observation(step.obs))

    def step(self, action: Arrays) -> Step:
        step = self.env.step(action)
        return replace(step, obs=self.observation(step.obs))

    def render(self) -> np.ndarray | None:
        return self.env.render()

    def close(self) -> None:
        self.env.close()


class ActionRepeat(Wrapper):
    """Every action is taken `repeat` times (fewer if the episode ends, or if the action is no longer legal); the
    rewards are summed."""

    def __init__(self, env: Env, repeat: int) -> None:
        super().__init__(env)
        self._repeat = repeat

    def step(self, action: Arrays) -> Step:
        total, terminal = 0.0, False
        for _ in range(self._repeat):
            step = self.env.step(action)
            total += step.reward
            terminal |= step.is_terminal
            legal = step.obs.get("legal")
            if step.is_last or (legal is not None and not may_act(action, legal, self.act_space)):
                break
        return replace(step, reward=total, is_terminal=terminal)


class TimeLimit(Wrapper):
    """Truncates an episode after `limit` steps: `is_last` without `is_terminal`."""

    def __init__(self, env: Env, limit: int) -> None:
        super().__init__(env)
        self._limit, self._steps = limit, 0

    def reset(self, seed: int | None = None) -> Step:
        self._steps = 0
        return self.env.reset(seed)

    def step(self, action: Arrays) -> Step:
        self._steps += 1
        step = self.env.step(action)
        return replace(step, is_last=True) if self._steps >= self._limit else step


class ObsKeys(Wrapper):
    """Shows what patterns choose (`fields.chosen`), and the rules of a game, which no network sees."""

    def __init__(self, env: Env, patterns: str) -> None:
        super().__init__(env)
        rules = {key for key, space in env.obs_space.items() if space.kind in RULES}
        keys = rules | chosen((key for key in env.obs_space if key not in rules), patterns)
        self.obs_space = {key: space for key, space in env.obs_space.items() if key in keys}

    def observation(self, obs: Arrays) -> Arrays:
        # A key that is in no space is passed on, for the gate to name.
        return {key: x for key, x in obs.items() if key in self.obs_space or key not in self.env.obs_space}


class _ImageWrapper(Wrapper):
    """Changes images only: of any `shape` to the other, by `change`."""

    def __init__(
        self, env: Env, flag: str, shape: Callable[[Shape], Shape], change: Callable[[np.ndarray], np.ndarray]
    ) -> None:
        super().__init__(env)
        self._images = {key: space for key, space in env.obs_space.items() if space.kind == "image"}
        if not self._images:
            seen = {key: space.describe() for key, space in env.obs_space.items()}
            raise ValueError(
                f"{flag} needs an image (a uint8 Box [H, W, C]), but the env shows {seen}; leave {flag} out"
            )
        self._change = change
        self.obs_space = env.obs_space | {k: replace(s, shape=shape(s.shape)) for k, s in self._images.items()}

    def observation(self, obs: Arrays) -> Arrays:
        return {key: self._change(x) if self._is_image(key, x) else x for key, x in obs.items()}

    def _is_image(self, key: str, value: np.ndarray) -> bool:
        # A malformed image is passed on as it is: changing it would hide it from the gate.
        return key in self._images and value.dtype == np.uint8 and value.shape == self._images[key].shape


class ResizeImages(_ImageWrapper):
    """Every image becomes `[size, size, C]`, or with a pair `[height, width, C]` (bilinear, antialiased)."""

    def __init__(self, env: Env, size: int | tuple[int, int]) -> None:
        sides = (size, size) if isinstance(size, int) else size
        super().__init__(env, "--image-size", lambda shape: (*sides, shape[2]), lambda x: _resize(x, sides))


class GrayImages(_ImageWrapper):
    """Every colour image becomes `[H, W, 1]`: ITU-R 601 luma; a gray image stays as it is."""

    def __init__(self, env: Env) -> None:
        super().__init__(env, "--gray", lambda shape: (*shape[:2], 1), _gray)
        for key, space in self._images.items():
            if space.shape[2] not in (1, 3, 4):
                raise ValueError(f"gray: obs/{key} is {space.describe()}, expected 1 channel, 3 (RGB) or 4 (RGBA)")


def observe(env: Env, raw: Any, mask: Any = None) -> Arrays:
    """The agent's observation where the innermost Gymnasium env shows `raw` and allows the actions of `mask`."""
    if isinstance(env, Wrapper):
        return env.observation(observe(env.env, raw, mask))
    return env.observe(raw, mask) if isinstance(env, GymEnv) else raw


def innermost(env: Env) -> GymEnv | None:
    """The Gymnasium env that `env` is wrapped around; None if it is one of another kind."""
    while isinstance(env, Wrapper):
        env = env.env
    return env if isinstance(env, GymEnv) else None


def masks(env: Env) -> str:
    """Where the innermost Gymnasium env tells its action masks, in words, if it is not in what it shows."""
    inside = innermost(env)
    return inside.masks if inside and inside.masks != LEAF else ""


def native_action(env: Env, action: Arrays) -> Any:
    """`action` in the words of the innermost Gymnasium env: own bounds, own nesting."""
    inside = innermost(env)
    return inside.native(action) if inside else action


def _resize(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    if image.shape[:2] == size:
        return image
    small = lambda plane: np.asarray(Image.fromarray(plane).resize(size[::-1], Image.Resampling.BILINEAR))
    if image.shape[2] == 3:
        return small(image)
    # Frame stacks; and four channels, which Pillow would blend by the fourth as alpha.
    return np.stack([small(image[:, :, c]) for c in range(image.shape[2])], -1)


def _gray(image: np.ndarray) -> np.ndarray:
    if image.shape[2] == 1:
        return image
    luma = image[..., :3].astype(np.uint32) @ np.array([299, 587, 114], np.uint32)
    return ((luma + 500) // 1000).astype(np.uint8)[..., None]
