"""Envs of our own, for tests and demos. Plain `gymnasium.Env`s: they take a user's road."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

from reverie.envs.options import Info


class Catch(gymnasium.Env):
    """A ball falls, a paddle catches it: the smallest task that must be seen to be solved.

    Observation: uint8 [64, 64, 3], a grid of `cells` by `cells` enlarged. Actions: left, stay,
    right.
    The ball starts in a random column of the top row and falls one cell a step; when it reaches the
    bottom the episode ends, with reward +1 if the paddle is under it and -1 if not.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 8}  # noqa: RUF012 (Gymnasium's own form)

    def __init__(self, cells: int = 8, render_mode: str | None = None) -> None:
        if cells < 2 or 64 % cells:
            raise ValueError(f"cells is {cells}, expected a divisor of 64 from 2 on: 4, 8, 16 ...")
        self.render_mode = render_mode
        self.observation_space = spaces.Box(0, 255, (64, 64, 3), np.uint8)
        self.action_space = spaces.Discrete(3)
        self._cells = cells
        self._ball = [0, 0]
        self._paddle = 0

    def reset(self, *, seed: int | None = None, options: Info | None = None) -> tuple[np.ndarray, Info]:
        super().reset(seed=seed)
        self._ball = [0, int(self.np_random.integers(self._cells))]
        self._paddle = self._cells // 2
        return self._picture(), {}

    def step(self, action: int | np.integer) -> tuple[np.ndarray, float, bool, bool, Info]:
        self._paddle = min(max(self._paddle + int(action) - 1, 0), self._cells - 1)
        self._ball[0] += 1
        over = self._ball[0] == self._cells - 1
        caught = self._ball[1] == self._paddle
        reward = (1.0 if caught else -1.0) if over else 0.0
        return self._picture(), reward, over, False, {}

    def render(self) -> np.ndarray | None:
        return self._picture() if self.render_mode == "rgb_array" else None

    def _picture(self) -> np.ndarray:
        grid = np.full((self._cells, self._cells, 3), 16, np.uint8)
        grid[-1, self._paddle] = (80, 160, 255)
        grid[tuple(self._ball)] = (255, 220, 80)
        size = 64 // self._cells
        return grid.repeat(size, 0).repeat(size, 1)


class Recall(gymnasium.Env):
    """A cue is shown once and asked for later: only a memory can know the answer.

        step          0      1 .. delay     delay + 1     delay + 2
        observation   cue    zeros          query         cue, the end
        reward               0              0             +1 if the last action names the cue, else -1

    Observation: float32 [cues + 1], the cue as a one-hot, then the flag of the query. Actions: `cues`; those
    before the query do nothing. Without memory the expected return is 2 / cues - 1.

    Args:
      cues: how many there are, 2 or more.
      delay: blank steps between cue and query, 0 or more.
      shortest: where it is given, every episode draws its delay from `shortest` .. `delay`.
    """

    def __init__(self, cues: int = 4, delay: int = 10, shortest: int | None = None) -> None:
        if cues < 2 or delay < 0:
            raise ValueError(f"cues is {cues} and delay {delay}, expected 2 or more and 0 or more")
        if shortest is not None and not 0 <= shortest <= delay:
            raise ValueError(f"shortest is {shortest}, expected 0 .. delay, which is {delay}")
        self.observation_space = spaces.Box(0, 1, (cues + 1,), np.float32)
        self.action_space = spaces.Discrete(cues)
        self._cues, self._delays = cues, (delay if shortest is None else shortest, delay)
        self._cue = self._delay = self._step = 0

    def reset(self, *, seed: int | None = None, options: Info | None = None) -> tuple[np.ndarray, Info]:
        super().reset(seed=seed)
        self._cue, self._step = int(self.np_random.integers(self._cues)), 0
        self._delay = int(self.np_random.integers(self._delays[0], self._delays[1] + 1))
        return self._shown(self._cue), {}

    def step(self, action: int | np.integer) -> tuple[np.ndarray, float, bool, bool, Info]:
        self._step += 1
        if self._step <= self._delay:
            return self._shown(), 0.0, False, False, {}
        if self._step == self._delay + 1:
            return self._shown(self._cues), 0.0, False, False, {}
        return self._shown(self._cue), 1.0 if int(action) == self._cue else -1.0, True, False, {}

    def _shown(self, at: int | None = None) -> np.ndarray:
        shown = np.zeros(self._cues + 1, np.float32)
        if at is not None:
            shown[at] = 1
        return shown


class Counting(gymnasium.Env):
    """Counts, so that a test can tell from the data alone which step of which episode it sees.

    Observation: `step` (steps since the reset) and `episode` (how often this instance was reset,
    from 0), both float32 `[1]`. The reward is the step count. The action (2 classes) does nothing.

    Args:
      length: steps of an episode; 0 draws each length from 1 .. `longest` by the seed.
      longest: upper end of the random lengths.
      truncate: whether episodes end by truncation; None draws it by the seed.
      episodes: whether `episode` is shown. It outlives a reset, so re-enactment cannot restore it.
    """

    def __init__(self, length: int = 0, longest: int = 9, truncate: bool | None = None, episodes: bool = True) -> None:
        count = spaces.Box(-1, np.inf, (1,), np.float32)
        self._keys = ("step", "episode") if episodes else ("step",)
        self.observation_space = spaces.Dict(dict.fromkeys(self._keys, count))
        self.action_space = spaces.Discrete(2)
        self._length, self._longest, self._truncate = length, longest, truncate
        self._step, self._episode, self._end, self._cut = 0, -1, 0, False

    def reset(self, *, seed: int | None = None, options: Info | None = None) -> tuple[dict[str, np.ndarray], Info]:
        super().reset(seed=seed)
        self._step = 0
        self._episode += 1
        self._end = self._length or int(self.np_random.integers(1, self._longest + 1))
        coin = bool(self.np_random.integers(2))
        self._cut = coin if self._truncate is None else self._truncate
        return self._shown(), {}

    def step(self, action: int | np.integer) -> tuple[dict[str, np.ndarray], float, bool, bool, Info]:
        self._step += 1
        over = self._step >= self._end
        return self._shown(), float(self._step), over and not self._cut, over and self._cut, {}

    def _shown(self) -> dict[str, np.ndarray]:
        values = {"step": self._step, "episode": self._episode}
        return {key: np.array([values[key]], np.float32) for key in self._keys}


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
