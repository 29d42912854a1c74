"""Envs of gymnax (Lange, 2022): classic tasks as pure functions.

gymnax reports one `done`, whether the world ended or the clock ran out. Here its clock is taken away, and one of our
own truncates at the same step: what is terminal then is the world's end alone.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from reverie.envs.base import DeviceEnv, Space, Spaces, action_vector
from reverie.envs.device_wrappers import Outcome, TimeLimit
from reverie.envs.options import NoOptions as Options
from reverie.envs.options import own_name
from reverie.fields import INT32

try:
    import gymnax
    from gymnax.environments import spaces
except ModuleNotFoundError as error:
    # gymnax 0.0.9 imports a package that it does not ask for.
    raise ValueError(f"gymnax needs a package that it does not bring: type `pip install {error.name}`") from error


class Task:
    """One gymnax env as a `DeviceEnv` without a clock.

    Observation: `obs`, a float32 `vector` (or `discrete`). Action: `action`, `discrete`, or a `vector` in [-1, 1] that
    is stretched to the env's own bounds.
    """

    players = 1

    def __init__(self, env: Any, params: Any) -> None:
        shown, actions = env.observation_space(params), env.action_space(params)
        self._env, self._params, self._actions = env, params, actions
        self._state = jax.eval_shape(lambda key: env.reset_env(key, params)[1], jax.random.key(0))
        self.obs_space: Spaces = {"obs": _space(shown, "observation")}
        space = _space(actions, "action")
        if space.kind == "vector":
            if not (np.isfinite(actions.low).all() and np.isfinite(actions.high).all()):
                raise ValueError(f"its actions lie between {actions.low} and {actions.high}, expected bounds")
            space = action_vector(space.shape)
        self.act_space: Spaces = {"action": space}

    def init(self, key: Any) -> Outcome:
        obs, inner = self._env.reset_env(key, self._params)
        return self._outcome(inner, obs, 0, True, False)

    def step(self, state: Outcome, action: Any, key: Any) -> Outcome:
        act = action["action"]
        if self.act_space["action"].kind == "vector":
            low, high = (jnp.broadcast_to(jnp.asarray(x), act.shape) for x in (self._actions.low, self._actions.high))
            act = low + (act + 1) / 2 * (high - low)
        obs, inner, reward, done, _ = self._env.step_env(key, state.inner, act, self._params)
        return self._outcome(inner, obs, reward, False, done)

    def row(self, state: Outcome) -> dict[str, Any]:
        return state.row("obs")

    def _outcome(self, inner: Any, obs: Any, reward: Any, first: bool, terminal: Any) -> Outcome:
        """A state of fixed shapes and dtypes; gymnax mixes Python numbers, ints and floats."""
        space = self.obs_space["obs"]
        return Outcome(
            jax.tree.map(lambda x, like: jnp.asarray(x, like.dtype).reshape(like.shape), inner, self._state),
            jnp.asarray(obs, space.dtype).reshape(space.shape),
            jnp.asarray(reward, jnp.float32).reshape(()),
            jnp.bool_(first),
            jnp.asarray(terminal, bool).reshape(()),
        )


def make(name: str, options: Options) -> DeviceEnv:
    """The env of an id such as `gymnax:CartPole-v1`; raises ValueError if there is none that can be used."""
    env, params = gymnax.make(own_name(name, "gymnax:", gymnax.registered_envs))
    limit = getattr(params, "max_steps_in_episode", 0)
    if not limit:
        return Task(env, params)
    return TimeLimit(Task(env, replace(params, max_steps_in_episode=INT32)), limit)


def _space(space: Any, what: str) -> Space:
    if isinstance(space, spaces.Discrete):
        return Space("discrete", (), classes=(int(space.n),))
    if isinstance(space, spaces.Box):
        return Space("vector", tuple(space.shape))
    raise ValueError(f"its {what} is a {type(space).__name__}, expected a Box or a Discrete")
