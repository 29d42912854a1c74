"""The two places where an env may live: in this process, or in one of its own; and which of them `auto` takes.

Both begin to build the env at once, with the seed of the reset that follows, and have the same methods: `spaces`, which
waits for it; `bind`; `begin` a step, or with a seed a reset, and `result` to wait for it; `memory`, the bytes of its
process; `hang_up`, then `close`. All failures are `Fault`s.
"""

from __future__ import annotations

import contextlib
import json
import os
import statistics
import time
from functools import partial
from types import CodeType
from typing import Literal

import gymnasium

from reverie.envs import host
from reverie.envs.base import Arrays, Spaces, from_json
from reverie.envs.build import make_env
from reverie.envs.facts import wander
from reverie.envs.guard import Fault, Late, guarded
from reverie.envs.host import Flags, Host
from reverie.envs.process import Child, ChildGone, Hung
from reverie.envs.spec import EnvSpec, UnusableEnv

Mode = Literal["auto", "inline", "process"]

CHEAP = 200e-6  # seconds a step: above, a process costs less than waiting for the env
PATIENCE = 20.0  # seconds for building and trying an env, imports on a busy machine included


class Inline:
    """An env in this process. It works when its result is asked for.

    Args:
      passing: as in `guarded`.
    """

    def __init__(self, spec: EnvSpec, index: int, seed: int, deadline: float, passing: frozenset[CodeType]) -> None:
        self._index, self._guard = index, partial(guarded, deadline, passing)
        self._seed: int | None = None  # of the reset to do; None: a step
        with self._guard():
            self._host = Host(spec, seed)

    def spaces(self) -> tuple[Spaces, Spaces]:
        return self._host.env.obs_space, self._host.env.act_space

    def bind(self, obs: Arrays, action: Arrays) -> None:
        self._host.bind(obs, action, self._index)

    def begin(self, seed: int | None = None) -> None:
        self._seed = seed

    def result(self) -> Flags:
        with self._guard():
            return self._host.step() if self._seed is None else self._host.reset(self._seed)

    def memory(self) -> int:
        return 0  # none of its own

    def hang_up(self) -> None:
        pass

    def close(self) -> None:
        # A broken env may well fail to close; it is thrown away either way.
        with contextlib.suppress(Fault), self._guard():
            self._host.close()


class Process(Child):
    """An env in a process of its own."""

    def __init__(self, spec: EnvSpec, index: int, num: int, seed: int, fd: int, deadline: float, limit: float) -> None:
        self._deadline, self._limit = deadline, limit
        self._until = time.monotonic() + deadline
        values = {"spec": spec.to_json(), "index": index, "num": num, "seed": seed}
        super().__init__("reverie.envs.host:serve", values, (fd,))

    def spaces(self) -> tuple[Spaces, Spaces]:
        _, text = self._answer()
        obs_space, act_space = json.loads(text)
        return from_json(obs_space), from_json(act_space)

    def bind(self, obs: Arrays, action: Arrays) -> None:
        pass  # the process maps the memory itself

    def begin(self, seed: int | None = None) -> None:
        self._until = time.monotonic() + self._deadline
        self.write(host.COMMAND.pack(host.STEP if seed is None else host.RESET, seed or 0))

    def result(self) -> Flags:
        flags, figures = self._answer()
        # An episode that is over is not lost for it: the reset after it is soon enough.
        if self._limit and not flags.is_last and (taken := self.memory()) > self._limit:
            raise Fault(f"its process has taken {taken / 1e9:.2f} GB, --worker-memory is {self._limit / 1e9:g}")
        return flags._replace(figures=json.loads(figures)) if figures else flags

    def close(self) -> None:
        self.end(patience=1.0)

    def _answer(self) -> tuple[Flags, str]:
        """Its answer, and the text with it."""
        try:
            how, length, *flags = host.REPLY.unpack(self.read(host.REPLY.size, self._until))
            text = self.read(length, self._until).decode()
        except Hung:
            self.end()
            raise Fault(f"it hung: no answer within {self._deadline:g} s") from None
        except ChildGone as gone:
            raise Fault(str(gone)) from None
        if how == host.UNUSABLE:
            raise UnusableEnv(text)
        if how == host.MSG_ERROR:
            raise Fault(text)
        return Flags(*flags), text


Seat = Inline | Process


def resolve_mode(spec: EnvSpec, mode: Mode, memory: float) -> Literal["inline", "process"]:
    """`auto`, decided; and that a limit of `memory` needs processes.

    Raises:
      UnusableEnv: the limit cannot be kept.
    """
    if memory:
        if mode == "inline":
            raise UnusableEnv(
                f"--worker-memory {memory:g} is a limit of processes, and with --workers inline or --debug "
                f"{spec.id} runs in this one: leave one of them out"
            )
        if not os.path.exists("/proc/self/statm"):
            raise UnusableEnv("--worker-memory needs Linux, which tells how much memory a process has: leave it out")
        return "process"
    if mode != "auto":
        return mode
    if spec.factory is not None:
        return "inline"
    entry = gymnasium.registry.get(spec.id)
    from_gymnasium = entry is not None and str(entry.entry_point).startswith("gymnasium.")
    if not (from_gymnasium or spec.id.startswith("reverie.envs.toy:")):
        return "process"  # it may hang or crash
    try:
        with guarded(PATIENCE):
            return "inline" if _seconds_per_step(spec) < CHEAP else "process"
    except Late:
        return "process"  # whatever keeps it, the other envs need not wait for that
    except Fault:
        return "inline"  # building it in earnest meets the same fault, and tells


def _seconds_per_step(spec: EnvSpec) -> float:
    env, stop = make_env(spec), time.perf_counter() + 5e-3
    times: list[float] = []
    for _, seconds in wander(env, [1]):
        times.append(seconds)
        if len(times) >= 5 and time.perf_counter() > stop:
            break
    env.close()
    return statistics.median(times)
