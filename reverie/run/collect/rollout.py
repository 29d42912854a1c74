"""Device envs, a policy and the recording of rows, all in one compiled scan.

u             0            1           ...    U - 1      |  the next call
row           o0 a0 out0   o1 a1 out1         ...        |
env state  s0      -> s1         -> s2     ->            |  sU
carry      c0      -> c1         -> c2     ->            |  cU
"""

from __future__ import annotations

from functools import partial
from typing import Any, get_args

import jax
import numpy as np

from reverie.agent import Agent, Carry, Mode, State, add_prefix, select
from reverie.envs.device import DeviceEnvs, World
from reverie.envs.workers import EnvError
from reverie.replay.rows import Row
from reverie.run.checkpoint import flatten, unflatten
from reverie.run.collect.base import TALLY_KEYS, Add, Episode, Tally
from reverie.run.counted_jit import CountedJit, decision_options
from reverie.run.stop import Stop


class Rollout:
    """N device envs and a policy that take `steps` steps in one call; `options` are those of `jax.jit`."""

    def __init__(self, envs: DeviceEnvs, agent: Agent, steps: int, **options: Any) -> None:
        self.envs, self.agent, self.steps = envs, agent, steps
        options["compiler_options"] = decision_options()
        # Mode -> `(state, world, carry) -> (world, carry, rows)`; rows `[steps, N, ...]` with `obs/`, `action/`, `out/`
        # and the flags.
        self.traced = {
            mode: CountedJit(
                f"rollout/{mode}/{envs.num}x{steps}", partial(self._scan, mode), same_state=True, **options
            )
            for mode in get_args(Mode)
        }

    def _scan(self, mode: Mode, state: State, world: World, carry: Carry) -> tuple[World, Carry, dict[str, Any]]:
        def step(at: tuple[World, Carry], _: None) -> tuple[tuple[World, Carry], dict[str, Any]]:
            world, carry = at
            rows = self.envs.rows(world)
            carry, action, out = self.agent.policy(state, carry, rows, mode)
            return (self.envs.step(world, select(action, "action/")), carry), rows | action | out

        (world, carry), rows = jax.lax.scan(step, (world, carry), length=self.steps)
        return world, carry, rows


class DeviceCollector:
    """Steps all device envs together and commits their rows: a `Collector`.

    Nothing here can fail between two rows, so every row is committed in the call that makes it.
    """

    def __init__(self, rollout: Rollout, extend: Add) -> None:
        self.groups = [np.arange(rollout.envs.num)]
        self.carry: list[Carry] = [None]
        self.pending: list[Row] = [{}]  # of its one group, and never any
        self._rollout, self._extend = rollout, extend
        self._world = rollout.envs.begin()
        self._decision: tuple[World, Carry, dict[str, Any]] | None = None  # by a call that nobody has waited for
        self.tally = Tally(rollout.envs.num)

    @property
    def upcoming(self) -> int:
        return self._rollout.steps * self._rollout.envs.num

    def decide(self, state: State, mode: Mode) -> None:
        """See `Collector`."""
        self._decision = self._rollout.traced[mode](state, self._world, self.carry[0])

    def act(self) -> int:
        """U steps of every env, all U * N rows of which are committed.

        Raises:
          EnvError: an observation or a reward is not finite.
        """
        assert self._decision is not None, "`decide` comes first"
        world, carry, made = self._decision
        rows: Row = jax.device_get(made)
        self._require_finite(rows)
        self._world, self.carry, self._decision = world, [carry], None
        self._extend(self.groups[0], rows)
        count(self.tally, rows)
        return self.upcoming

    def state(self) -> Row:
        """See `Collector`; the envs themselves are saved."""
        state = add_prefix("world/", flatten(self._world)) | add_prefix("carry/", flatten(self.carry[0]))
        return state | add_prefix("tally/", self.tally.state())

    def restore(self, state: Row) -> np.ndarray:
        """See `Collector`. Every env is brought back; a state of other envs or carries is a Mismatch."""
        world = unflatten(self._world, select(state, "world/"))
        carry = unflatten(self.carry[0], select(state, "carry/"), computed=True)
        self._world, self.carry = world, [carry]
        self.tally.restore(select(state, "tally/"))
        return np.zeros(len(self.groups[0]), bool)

    def _require_finite(self, rows: Row) -> None:
        for key, x in rows.items():
            if (key.startswith("obs/") or key == "reward") and x.dtype == np.float32 and not np.isfinite(x).all():
                _, env, *_ = np.argwhere(~np.isfinite(x))[0].tolist()
                raise EnvError(
                    f"env {env} of {self._rollout.envs.spec.id} showed values of {key} that are not finite: look for a "
                    f"division by zero, or a state that grows without bound"
                )


def play(
    rollout: Rollout, mode: Mode, state: State, carry: Carry, share: np.ndarray, stop: Stop | None = None
) -> list[list[Episode]] | None:
    """The first `share` [N] episodes of each env, in order; all play on until every env has finished its own. None if
    `stop` has a signal meanwhile."""
    world, tally = rollout.envs.begin(), Tally(rollout.envs.num)
    played: list[list[Episode]] = [[] for _ in share]
    while any(len(own) < wanted for own, wanted in zip(played, share, strict=True)):
        if stop and stop.signal:
            return None
        world, carry, made = rollout.traced[mode](state, world, carry)
        count(tally, jax.device_get({key: made[key] for key in TALLY_KEYS if key in made}))
        for episode in tally.take():
            played[episode.env].append(episode)
    return [own[:wanted] for own, wanted in zip(played, share, strict=True)]


def count(tally: Tally, rows: Row) -> None:
    """Adds rows `[U, N, ...]` of all envs to a tally."""
    steps, num = rows["reward"].shape
    for u in range(steps):
        tally.add(np.arange(num), {key: rows[key][u] for key in TALLY_KEYS if key in rows})
