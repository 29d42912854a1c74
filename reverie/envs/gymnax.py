"""Envs of gymnax (Lange, 2022): classic tasks as pure functions.

gymnax reports one `done`, whether the world ended or the clock ran out. Here its clock is taken away, and one of our
own truncates at the same step: what is terminal then is the world's end alone.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from reverie.envs.base import DeviceEnv, Space, Spaces
from reverie.envs.device_wrappers import TimeLimit
from reverie.envs.options import unknown

try:
    import gymnax
    from gymnax.environments import spaces
except ModuleNotFoundError as error:
    # gymnax 0.0.9 imports a package that it does not ask for.
    raise ValueError(f"gymnax needs a package that it does not bring: type `pip install {error.name}`") from error

NEVER = np.iinfo(np.int32).max


@dataclass(frozen=True)
class Options:
    """Keyword arguments of `gymnax:...` ids: none; a shorter `--time-limit` is possible."""


class State(NamedTuple):
    """gymnax's own state; what it showed and said last; whether an episode has just begun."""

    inner: Any
    obs: Any
    reward: Any
    is_first: Any
    is_terminal: Any


class Task:
    """One gymnax env as a `DeviceEnv` without a clock.

    Observation: `obs`, a float32 `vector` (or `discrete`). Action: `action`, `discrete`, or a `vector` in [-1, 1] that
    is stretched to the env's own bounds.
    """

    players = 1

    def __init__(self, env: Any, params: Any) -> None:
        shown, self._actions = env.observation_space(params), env.action_space(params)
        self._env, self._params = env, params
        self._state = jax.eval_shape(lambda key: env.reset_env(key, params)[1], jax.random.key(0))
        self.obs_space: Spaces = {"obs": _space(shown, "observation")}
        self.act_space: Spaces = {"action": _space(self._actions, "action")}
        if self.act_space["action"].kind == "vector":
            bounds = np.concatenate([np.ravel(self._actions.low), np.ravel(self._actions.high)])
            if not np.isfinite(bounds).all():
                raise ValueError(
                    f"its actions lie between {self._actions.low} and {self._actions.high}, expected bounds"
                )
            size = math.prod(self._actions.shape)
            self.act_space = {"action": Space("vector", self._actions.shape, (), (-1.0,) * size, (1.0,) * size)}

    def init(self, key: Any) -> State:
        obs, inner = self._env.reset_env(key, self._params)
        return self._row_state(inner, obs, jnp.float32(0), True, False)

    def step(self, state: State, action: Any, key: Any) -> State:
        act = action["action"]
        if self.act_space["action"].kind == "vector":
            low, high = (jnp.broadcast_to(jnp.asarray(x), act.shape) for x in (self._actions.low, self._actions.high))
            act = low + (act + 1) / 2 * (high - low)
        obs, inner, reward, done, _ = self._env.step_env(key, state.inner, act, self._params)
        return self._row_state(inner, obs, reward, False, done)

    def row(self, state: State) -> dict[str, Any]:
        return {
            "obs/obs": state.obs,
            "reward": state.reward,
            "is_first": state.is_first,
            "is_last": state.is_terminal,
            "is_terminal": state.is_terminal,
        }

    def _row_state(self, inner: Any, obs: Any, reward: Any, first: Any, terminal: Any) -> State:
        """A state of fixed shapes and dtypes; gymnax mixes Python numbers, ints and floats."""
        space = self.obs_space["obs"]
        return State(
            jax.tree.map(lambda x, like: jnp.asarray(x, like.dtype).reshape(like.shape), inner, self._state),
            jnp.asarray(obs, space.dtype).reshape(space.shape),
            jnp.asarray(reward, jnp.float32).reshape(()),
            jnp.asarray(first, bool),
            jnp.asarray(terminal, bool).reshape(()),
        )


def make(name: str, options: Options) -> DeviceEnv:
    """The env of an id such as `gymnax:CartPole-v1`; raises ValueError if there is none that can be used."""
    name, known = name.removeprefix("gymnax:"), gymnax.registered_envs
    if name not in known:
        raise unknown(name, known, "gymnax")
    env, params = gymnax.make(name)
    limit = getattr(params, "max_steps_in_episode", 0)
    if not limit:
        return Task(env, params)
    return TimeLimit(Task(env, replace(params, max_steps_in_episode=NEVER)), limit)


def _space(space: Any, what: str) -> Space:
    if isinstance(space, spaces.Discrete):
        return Space("discrete", (), classes=(int(space.n),))
    if isinstance(space, spaces.Box):
        return Space("vector", tuple(space.shape))
    raise ValueError(f"its {what} is a {type(space).__name__}, expected a Box or a Discrete")
