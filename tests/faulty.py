"""An env that breaks by a script."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Mapping
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

CRASHES = ("raise", "hang", "exit", "sigkill")
WRONG_OBS = ("nan_obs", "wrong_shape", "wrong_dtype", "missing_key", "extra_key", "out_of_bounds")
FAULTS = (*CRASHES, "nan_reward", *WRONG_OBS, "wrong_info")


class Faulty(gymnasium.Env):
    """Counts like `Counting`, and breaks by a script.

    Observation: `step`, float32 `[1]` in [0, 1000]; `pair`, float32 `[2]`, the step count twice.
    The reward is the step count; an episode is truncated after `length` steps.

    Args:
      script: moment -> one of `FAULTS`. A moment is `"build"`, `"reset"` (every one), `"3"` (step 3
        of every episode), `"total:5"` (the fifth step of this instance, counted over episodes), or
        `"reset:2"` (the reset that begins episode 2 of this instance, counted from 0).
      length: steps of an episode.
      once: path of a file; a fault leaves it behind, and none strikes while it exists.
    """

    def __init__(self, script: Mapping[str, str] | None = None, length: int = 10, once: str = "") -> None:
        self._script = dict(script or {})
        unknown = set(self._script.values()) - set(FAULTS)
        if unknown:
            raise ValueError(f"unknown faults {sorted(unknown)}, expected some of {FAULTS}")
        self.observation_space = spaces.Dict(
            {"step": spaces.Box(0, 1000, (1,), np.float32), "pair": spaces.Box(0, 1000, (2,), np.float32)}
        )
        self.action_space = spaces.Discrete(2)
        self._length, self._once = length, once
        self._step, self._total, self._episode = 0, 0, -1
        self._strike("build")

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, Any]:
        super().reset(seed=seed)
        self._step = 0
        self._episode += 1
        fault = self._strike("reset", f"reset:{self._episode}")
        obs, _, info = self._fault_result(fault)
        return obs, info

    def step(self, action: int | np.integer) -> tuple[Any, float, bool, bool, Any]:
        self._step += 1
        self._total += 1
        fault = self._strike(str(self._step), f"total:{self._total}")
        obs, reward, info = self._fault_result(fault)
        return obs, reward, False, self._step >= self._length, info

    def _strike(self, *moments: str) -> str:
        fault = next((self._script[m] for m in moments if m in self._script), "")
        if not fault:
            return ""
        if self._once:
            try:  # atomic: of several envs with one file, one is struck
                os.close(os.open(self._once, os.O_CREAT | os.O_EXCL))
            except FileExistsError:
                return ""
        if fault == "raise":
            raise RuntimeError(f"a fault on purpose at {moments[0]}")
        if fault == "hang":
            time.sleep(10_000)
        if fault == "exit":
            os._exit(3)
        if fault == "sigkill":
            os.kill(os.getpid(), signal.SIGKILL)
        return fault

    def _fault_result(self, fault: str) -> tuple[Any, float, Any]:
        count = np.array([self._step], np.float32)
        wrong_pair = {
            "nan_obs": np.array([0, np.nan], np.float32),
            "wrong_shape": np.zeros(3, np.float32),
            "wrong_dtype": np.zeros(2, np.int64),
            "out_of_bounds": np.array([0, 1001], np.float32),
        }
        obs = {"step": count, "pair": wrong_pair.get(fault, count.repeat(2))}
        if fault == "missing_key":
            del obs["pair"]
        if fault == "extra_key":
            obs["more"] = count
        reward = float("nan") if fault == "nan_reward" else float(self._step)
        return obs, reward, "nothing" if fault == "wrong_info" else {}
