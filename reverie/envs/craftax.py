"""Craftax (Matthews et al., 2024): Crafter, and a deeper world of nine floors, as pure functions.

Craftax reports one `done`, whether the player died or the clock ran out. Here its clock is taken away, and one of our
own truncates at the same step.
"""

from __future__ import annotations

import contextlib
import sys
from typing import Any

import jax.numpy as jnp
from craftax.craftax_env import make_craftax_env_from_name

from reverie.envs.base import DeviceEnv, Space, Spaces
from reverie.envs.device_wrappers import Outcome, TimeLimit
from reverie.envs.options import NoOptions as Options
from reverie.envs.options import own_name
from reverie.fields import INT32

NAMES = tuple(f"Craftax-{world}{view}-v1" for world in ("", "Classic-") for view in ("Symbolic", "Pixels"))


class Task:
    """One world as a `DeviceEnv` without a clock.

    Observation: `obs`, a float32 `vector` of the map in front of the player and of what he has, or `image`, uint8
    `[H, W, 3]`. Action: `action`, `discrete`.
    """

    players = 1

    def __init__(self, env: Any) -> None:
        self._env, self._params = env, env.default_params.replace(max_timesteps=INT32)
        shape = env.observation_space(self._params).shape
        self._key, space = ("image", Space("image", shape)) if len(shape) == 3 else ("obs", Space("vector", shape))
        self.obs_space: Spaces = {self._key: space}
        self.act_space: Spaces = {"action": Space("discrete", (), (env.num_actions,))}

    def init(self, key: Any) -> Outcome:
        obs, inner = self._env.reset_env(key, self._params)
        return Outcome(inner, self._observation(obs), jnp.float32(0), jnp.bool_(True), jnp.bool_(False))

    def step(self, state: Outcome, action: Any, key: Any) -> Outcome:
        obs, inner, reward, done, _ = self._env.step_env(key, state.inner, action["action"], self._params)
        return Outcome(inner, self._observation(obs), jnp.asarray(reward, jnp.float32), jnp.bool_(False), done)

    def row(self, state: Outcome) -> dict[str, Any]:
        return state.row(self._key)

    def _observation(self, obs: Any) -> Any:
        """Pixels come as numbers between 0 and 1."""
        return jnp.round(255 * obs).astype(jnp.uint8) if self._key == "image" else obs.astype(jnp.float32)


def make(name: str, options: Options) -> DeviceEnv:
    """The env of an id such as `craftax:Craftax-Classic-Symbolic-v1`; raises ValueError if there is none."""
    name = own_name(name, "craftax:", NAMES)
    with contextlib.redirect_stdout(sys.stderr):  # it tells when it draws its textures, once after it was installed
        env = make_craftax_env_from_name(name, auto_reset=False)
    return TimeLimit(Task(env), env.default_params.max_timesteps)
