"""Bodies of brax (Freeman et al., 2021): ant, humanoid and others, their physics as pure functions.

brax itself says only when a body has fallen. The clock is one of our own, and truncates.
"""

from __future__ import annotations

import contextlib
import io
import warnings
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
    # A package that it needs is no longer maintained, and MuJoCo's prints what it could use besides.
    warnings.simplefilter("ignore", DeprecationWarning)
    from brax import envs

from reverie.envs.base import DeviceEnv, Space, Spaces, action_vector
from reverie.envs.device_wrappers import Outcome, TimeLimit
from reverie.envs.options import own_name

LENGTH = 1000  # steps of an episode, as in brax's own training
FLUID = "swimmer"  # its physics calls jax.numpy.clip with names of arguments that JAX 0.10 has no longer
NAMES = tuple(sorted(envs._envs.keys() - {FLUID, "fast"}))  # the second is for brax's own tests


@dataclass(frozen=True)
class Options:
    """Keyword arguments of `brax:...` ids."""

    backend: Literal["generalized", "positional", "spring", "mjx"] = "generalized"
    """The physics: `generalized` stays near MuJoCo's; `spring` is the fastest, and another physics; `mjx` is MuJoCo's
    own in JAX, which compiles for minutes."""


class State(NamedTuple):
    """brax's own state, and whether an episode has just begun."""

    inner: Any
    is_first: Any


class Task:
    """One env of brax as a `DeviceEnv` without a clock.

    Observation: `obs`, a float32 `vector`. Action: `action`, a `vector` in [-1, 1]. A body that has fallen is terminal.
    """

    players = 1

    def __init__(self, env: envs.Env) -> None:
        self._env = env
        shown = jax.eval_shape(env.reset, jax.random.key(0)).obs
        self.obs_space: Spaces = {"obs": Space("vector", shown.shape)}
        self.act_space: Spaces = {"action": action_vector((env.action_size,))}

    def init(self, key: Any) -> State:
        return State(self._env.reset(key), jnp.bool_(True))

    def step(self, state: State, action: Any, key: Any) -> State:
        before = jax.tree.map(lambda x: x, state.inner)  # brax writes into the dicts of what it is given
        return State(self._env.step(before, action["action"]), jnp.bool_(False))

    def row(self, state: State) -> dict[str, Any]:
        fallen = jnp.asarray(state.inner.done) > 0
        obs, reward = (jnp.asarray(x, jnp.float32) for x in (state.inner.obs, state.inner.reward))
        return Outcome(state.inner, obs, reward, state.is_first, fallen).row("obs")


def make(name: str, options: Options) -> DeviceEnv:
    """The env of an id such as `brax:ant`; raises ValueError if there is none that can be used."""
    if name == f"brax:{FLUID}":
        raise ValueError("brax's physics of fluids does not work with JAX 0.10 or newer: try dmc:swimmer_swimmer6")
    name = own_name(name, "brax:", NAMES)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Brax System", UserWarning)  # is no longer developed, it says
        env = envs.get_environment(name, backend=options.backend)
    return TimeLimit(Task(env), LENGTH)
