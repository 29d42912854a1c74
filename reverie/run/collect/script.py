"""A person's own policy for collecting: a plain function of what one env shows."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from reverie.agent import Carry, Mode, State, select
from reverie.envs.base import Spaces
from reverie.envs.code import UnusableEnv, check_function, find
from reverie.envs.values import problem
from reverie.replay.rows import Row
from reverie.run.collect.base import Policy


class Script:
    """`function(obs, rng) -> action` for every env in turn.

    `obs` is key -> array without a batch axis, `rng` a `numpy.random.Generator` of its own for every step of every env;
    there is no other memory, so that a resumed run acts as an uninterrupted one. The action is one array (or number) if
    the env takes one, else key -> array: vectors in [-1, 1], class numbers from 0.

    Args:
      name: module:function or path/to/file.py:function; UnusableEnv if there is none.
    """

    def __init__(self, name: str, act_space: Spaces, seed: int) -> None:
        module, _, function = name.rpartition(":")
        if not module:
            raise UnusableEnv(f"--collector {name!r}, expected module:function or path/to/file.py:function")
        self.name, self._function = name, find(module, function)
        check_function(self._function, f"--collector {name}")
        self._space, self._seed = act_space, seed

    def instead_of(self, policy: Policy, step: Callable[[], int]) -> Policy:
        """The policy with these actions in place of its own, after `step` env steps of the run; what it stores beside a
        step is still its own. It raises UnusableEnv for an action that is none of the space, and says which."""

        def decide(state: State, mode: Mode, carry: Carry, rows: Row) -> tuple[Carry, Row, Any]:
            carry, _, out = policy(state, mode, carry, rows)
            seen, taken = select(rows, "obs/"), []
            for env in range(len(rows["is_first"])):
                rng = np.random.default_rng((self._seed, step(), env))
                given = self._function({key: x[env] for key, x in seen.items()}, rng)
                taken.append(self._action(given))
            return carry, {f"action/{key}": np.stack([action[key] for action in taken]) for key in self._space}, out

        return decide

    def _action(self, given: object) -> Row:
        if not isinstance(given, Mapping):
            given = dict.fromkeys(self._space, given) if len(self._space) == 1 else {}
        if given.keys() != self._space.keys():
            raise UnusableEnv(f"--collector {self.name} gave no dict with the keys {sorted(self._space)}")
        action = {}
        for key, space in self._space.items():
            action[key] = np.asarray(given[key], space.dtype)
            if fault := problem(action[key], space):
                raise UnusableEnv(f"--collector {self.name} gave for {key}: {fault}")
        return action
