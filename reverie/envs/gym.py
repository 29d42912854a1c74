"""Gymnasium envs, translated: any `gymnasium.Env` in, an `Env` of ours out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

from reverie.envs.base import Arrays, Space, Spaces, Step
from reverie.envs.masks import INFO, LEAF, MASK, METHOD, METHOD_CALL, apart, legal_of, mask_width, without_mask
from reverie.envs.spaces import action_spaces, actor, channels_first, observation_spaces, observer
from reverie.envs.values import Malformed


class GymEnv:
    """The adapter. Termination and truncation stay apart: both at once count as termination.

    Of `info`, three keys mean something here. `is_terminal` (bool): a loss that counts as an end though the
    episode goes on, such as a life. `figures` (dict of numbers): of the episode so far, for the log. `action_mask`:
    see `masks`. Whether there is one only a reset tells: with discrete actions it happens at once.

    Args:
      env: any `gymnasium.Env` (Gymnasium >= 1.0).
      obs_keys: which observations are seen, patterns as in `fields.chosen`; the others may be of any space.
      seed: of the first reset. If it is asked for with this seed, what the one at once gave is given.

    Raises:
      ValueError: a space, or an action mask, that no agent here can use; the message says what to declare instead.
    """

    def __init__(self, env: gymnasium.Env, obs_keys: str = "", seed: int = 0) -> None:
        self.env = env
        self.act_space: Spaces = action_spaces(env.action_space)
        self.shown: Any = None  # the last observation as the env itself returned it
        self._first_results: dict[int | None, Any] = {}  # by its seed: a reset that nobody has seen yet
        self.masks = self._mask_source(seed)  # where its action masks come from, in words; empty if it has none
        seen = without_mask(env.observation_space) if self.masks == LEAF else env.observation_space
        self.obs_space: Spaces = observation_spaces(seen, obs_keys)
        self._observe = observer(seen, obs_keys)
        if self.masks:
            self.obs_space["legal"] = Space("legal", (mask_width(self.act_space, self.masks),))
        self.native = actor(env.action_space)  # Arrays -> the env's own action

    def observe(self, raw: Any, mask: Any = None, last: bool = False) -> Arrays:
        """The env's own observation as `Arrays`, and the mask of its actions.

        Args:
          mask: the env's own, where it is not part of the observation.
          last: the episode ends here: a mask of zeros, or none at all, is as good as any.

        Raises:
          Malformed: what was seen is not what the space says, or the mask is none.
        """
        if self.masks == LEAF:
            raw, mask = apart(raw)
        obs = self._observe(raw)
        if self.masks:
            obs["legal"] = legal_of(mask, self.act_space, self.masks, last)
        return obs

    def _mask_source(self, seed: int) -> str:
        """Where the env tells its masks; empty if nowhere, or if it has no discrete action.

        Raises ValueError for a mask that is none.
        """
        if not any(space.kind == "discrete" for space in self.act_space.values()):
            return ""
        seen = self.env.observation_space
        if isinstance(seen, spaces.Dict) and MASK in seen.spaces:
            width, leaf = mask_width(self.act_space, LEAF), seen.spaces[MASK]
            if leaf.shape != (width,) or np.dtype(leaf.dtype).kind not in "biu":
                raise ValueError(f"{LEAF}: {leaf}, expected MultiBinary({width}): a flag for each class of the action")
            return LEAF
        try:
            self._first_results[seed] = _, info = self.env.reset(seed=seed)
            mask = info.get(MASK)
            source = "" if mask is None else INFO
            if mask is None and self.env.has_wrapper_attr(METHOD):
                source, mask = METHOD_CALL, self.env.get_wrapper_attr(METHOD)()
        except Exception:  # the border of the user's code; whoever resets it in earnest meets the same fault, and tells
            self._first_results = {}
            return ""
        if source:
            mask_width(self.act_space, source)
            try:
                legal_of(mask, self.act_space, source, last=False)
            except Malformed as error:
                raise ValueError(str(error)) from error
        return source

    def _mask(self, info: dict[str, Any]) -> Any:
        """The mask of a reset or step, if it is not a part of the observation."""
        return self.env.get_wrapper_attr(METHOD)() if self.masks == METHOD_CALL else info.get(MASK)

    def reset(self, seed: int | None = None) -> Step:
        kept, self._first_results = self._first_results, {}
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
            float(_single("reward", reward, "biuf", "one number")),
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


def _check_info(where: str, info: Any) -> None:
    if not isinstance(info, dict):
        raise Malformed(f"{where}() returned an info of type {type(info).__name__}, expected dict")


def _single(name: str, value: Any, kinds: str, expected: str) -> Any:
    """A value that is one number of these kinds of dtype, however the env has wrapped it."""
    array = np.asarray(value)
    if array.ndim or array.dtype.kind not in kinds:
        raise Malformed(f"{name} is {value!r}, expected {expected}")
    return array.item()


def _flag(name: str, value: Any) -> bool:
    return bool(_single(name, value, "biu", "True or False"))


def _figures(value: Any) -> dict[str, float]:
    if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
        arrays = {key: np.asarray(x) for key, x in value.items()}
        if all(x.ndim == 0 and x.dtype.kind in "biuf" for x in arrays.values()):
            return {key: float(x) for key, x in arrays.items()}
    raise Malformed(f'info["figures"] is {value!r}, expected a dict of numbers by name')
