"""Around a device env: a time limit, a view for the host, and what is checked before any of it is compiled."""

from __future__ import annotations

import json
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from reverie.envs.base import Arrays, DeviceEnv, Space, Step
from reverie.envs.code import UnusableEnv

FLAGS = ("is_first", "is_last", "is_terminal")


class TimeLimit:
    """Truncates an episode after `limit` steps: `is_last` without `is_terminal`."""

    def __init__(self, env: DeviceEnv, limit: int) -> None:
        self.obs_space, self.act_space, self.players = env.obs_space, env.act_space, env.players
        self.env, self.limit = env, limit

    def init(self, key: Any) -> tuple[Any, Any]:
        return self.env.init(key), jnp.int32(0)

    def step(self, state: tuple[Any, Any], action: Any, key: Any) -> tuple[Any, Any]:
        inner, taken = state
        return self.env.step(inner, action, key), taken + 1

    def row(self, state: tuple[Any, Any]) -> dict[str, Any]:
        inner, taken = state
        row = self.env.row(inner)
        return {**row, "is_last": row["is_last"] | (taken >= self.limit)}


class Outcome(NamedTuple):
    """The state of an env without a clock whose package says only while it steps what there is to see."""

    inner: Any  # the package's own state
    obs: Any  # of the last step, as are reward and is_terminal
    reward: Any
    is_first: Any  # an episode has just begun
    is_terminal: Any

    def row(self, key: str) -> dict[str, Any]:
        """Its row, in which the observation is called `key`."""
        flags = {"is_first": self.is_first, "is_last": self.is_terminal, "is_terminal": self.is_terminal}
        return {f"obs/{key}": self.obs, "reward": self.reward, **flags}


class HostView:
    """A device env as an `Env` of the host, one step at a time: to check it, to look at it, to play it."""

    def __init__(self, env: DeviceEnv, name: str = "env") -> None:
        check(env, name)
        self.device, self.obs_space, self.act_space = env, env.obs_space, env.act_space
        self._world: tuple[Any, Any] | None = None  # its state, and the key of what is drawn next
        self._seed = 0
        self._after = jax.jit(self._next)

    def reset(self, seed: int | None = None) -> Step:
        self._seed = self._seed + 1 if seed is None else seed
        return self._shown(None, jax.random.key(self._seed), None)

    def step(self, action: Arrays) -> Step:
        if self._world is None:
            raise RuntimeError("step before reset")
        return self._shown(*self._world, action)

    def render(self) -> np.ndarray | None:
        return None

    def close(self) -> None:
        pass

    def _shown(self, state: Any, key: Any, action: Arrays | None) -> Step:
        self._world, row = self._after(state, key, action)
        row = jax.tree.map(np.array, row)
        obs = {name.removeprefix("obs/"): x for name, x in row.items() if name.startswith("obs/")}
        first, last, terminal = (bool(row[name]) for name in FLAGS)
        return Step(obs, float(row["reward"]), first, last, terminal)

    def _next(self, state: Any, key: Any, action: Any) -> tuple[tuple[Any, Any], dict[str, Any]]:
        """The world after `action`, and its row; without a state, where an episode begins."""
        now, key = jax.random.split(key)
        state = strong(self.device.init(now) if state is None else self.device.step(state, action, now))
        return (state, key), self.device.row(state)


def check(env: DeviceEnv, name: str) -> None:
    """Raises UnusableEnv unless states keep their shapes and rows are what the spaces say; computes nothing."""
    key = jax.random.key(0)
    action = {k: jax.ShapeDtypeStruct(s.shape, s.dtype) for k, s in env.act_space.items()}
    state = jax.eval_shape(env.init, key)
    faults = _changes(state, jax.eval_shape(env.step, state, action, key))
    shown = jax.eval_shape(env.row, state)
    wanted = {f"obs/{k}": s for k, s in env.obs_space.items()}
    faults += [f"{k}: shown, but not in the spaces" for k in shown.keys() - wanted.keys() - {"reward", *FLAGS}]
    wanted |= {"reward": Space("vector", ())} | {k: Space("legal", ()) for k in FLAGS}
    for k, space in wanted.items():
        given = f"{shown[k].dtype} {list(shown[k].shape)}" if k in shown else "nothing"
        if given != f"{space.dtype} {list(space.shape)}":
            faults.append(f"{k}: {given}, expected {space.dtype} {list(space.shape)}")
    kinds = {key: space.kind for key, space in env.obs_space.items()}
    if env.players not in (1, 2):
        faults.append(f"it has {env.players} players, expected 1 or 2")
    if env.players == 2 and (kinds.get("legal"), kinds.get("player")) != ("legal", "player"):
        faults.append(f"a game of two players shows {json.dumps(kinds)}, expected also `legal` and `player`")
    if faults:
        raise UnusableEnv(f"{name} is no sound device env:\n  " + "\n  ".join(sorted(faults)))


def _changes(before: Any, after: Any) -> list[str]:
    one: Any = jax.tree.structure(before)
    other: Any = jax.tree.structure(after)
    if one != other:
        return [f"step gives a state of another structure: {other}, expected {one}"]
    pairs = zip(jax.tree.leaves_with_path(before), jax.tree.leaves(after), strict=True)
    return [
        f"step changes state{jax.tree_util.keystr(path)} from {a.dtype} {list(a.shape)} to {b.dtype} {list(b.shape)}"
        for (path, a), b in pairs
        if (a.shape, a.dtype) != (b.shape, b.dtype)
    ]


def strong(state: Any) -> Any:
    """A state whose dtypes are its own: a Python number in it would be compiled for again once it is an array."""
    is_key = lambda x: hasattr(x, "dtype") and jnp.issubdtype(x.dtype, jax.dtypes.extended)
    return jax.tree.map(lambda x: x if is_key(x) else jax.lax.convert_element_type(x, jnp.result_type(x)), state)
