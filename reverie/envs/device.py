"""Envs that live on the device: pure functions, stepped many at once inside the scan that runs the policy.

The timeline of one of them is that of every env (`envs/base.py`):

    state     s0     s1     s2     |  s3
              init   step   step      init
    is_last   0      0      1      |  0
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any, Literal, NamedTuple

import jax

from reverie.envs.base import DeviceEnv
from reverie.envs.build import device_env
from reverie.envs.device_wrappers import check, strong
from reverie.envs.spec import EnvSpec, UnusableEnv


def advance(env: DeviceEnv, state: Any, action: Any, key: Any) -> Any:
    """The state after `action`; the first of the next episode if `state` was the last of its own."""
    return jax.lax.cond(
        env.row(state)["is_last"], lambda: strong(env.init(key)), lambda: strong(env.step(state, action, key))
    )


class World(NamedTuple):
    """Where N device envs are: everything there is to save of them. Leading axis [N] on the arrays of `state`."""

    state: Any
    key: Any


class DeviceEnvs(AbstractContextManager["DeviceEnvs"]):
    """N device envs: what `Workers` are to the envs of the host.

    Args:
      spec: an `EnvSpec`, an id, or a class or function that builds a `DeviceEnv`.
      num: N.
      seed: of everything that is drawn.

    Raises:
      UnusableEnv: what it shows differs from what its spaces say; names every key.
    """

    mode: Literal["device"] = "device"
    failures = 0  # ever: what is compiled neither hangs nor dies

    def __init__(self, spec: EnvSpec, num: int, *, seed: int) -> None:
        env = device_env(spec)
        if env is None:
            raise UnusableEnv(f"{spec.id} is an env of the host, expected one of the device, such as pgx:connect_four")
        check(env, spec.id)
        self.spec, self.num, self._seed = spec, num, seed
        self.env = env  # one of them, its time limit included
        self.obs_space, self.act_space = env.obs_space, env.act_space

    def begin(self) -> World:
        """All envs at the beginning of an episode."""
        first, key = jax.random.split(jax.random.key(self._seed))
        return World(jax.vmap(lambda k: strong(self.env.init(k)))(jax.random.split(first, self.num)), key)

    def rows(self, world: World) -> dict[str, Any]:
        """The rows of all envs, `[N, ...]`."""
        return jax.vmap(self.env.row)(world.state)

    def step(self, world: World, action: dict[str, Any]) -> World:
        """One step of every env, with actions `[N, ...]`."""
        now, key = jax.random.split(world.key)
        next_state = jax.vmap(lambda *x: advance(self.env, *x))(world.state, action, jax.random.split(now, self.num))
        return World(next_state, key)

    def close(self) -> None:
        pass

    def __exit__(self, *error: object) -> None:
        self.close()
