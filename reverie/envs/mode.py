"""Whether the envs of the host run in this process, or in one each."""

from __future__ import annotations

import os
import statistics
import time
from typing import Literal

import gymnasium

from reverie.envs.build import make_env
from reverie.envs.facts import wander
from reverie.envs.guard import Fault, Late, guarded
from reverie.envs.spec import EnvSpec, UnusableEnv

Mode = Literal["auto", "inline", "process"]

CHEAP = 200e-6  # seconds a step: above, a process costs less than waiting for the env
PATIENCE = 20.0  # seconds for building and trying an env, imports on a busy machine included


def resolve(spec: EnvSpec, mode: Mode, memory: float) -> Literal["inline", "process"]:
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
    if not _harmless(spec.id):
        return "process"
    try:
        with guarded(PATIENCE):
            return "inline" if _seconds_per_step(spec) < CHEAP else "process"
    except Late:
        return "process"  # whatever keeps it, the other envs need not wait for that
    except Fault:
        return "inline"  # building it in earnest meets the same fault, and tells


def _harmless(name: str) -> bool:
    """Whether the env is one that neither hangs nor crashes: it may run in this process."""
    registered = gymnasium.registry.get(name)
    shipped = registered is not None and str(registered.entry_point).startswith("gymnasium.")
    return shipped or name.startswith("reverie.envs.toy:")


def _seconds_per_step(spec: EnvSpec) -> float:
    env, stop = make_env(spec), time.perf_counter() + 5e-3
    times: list[float] = []
    for _, seconds in wander(env, [1]):
        times.append(seconds)
        if len(times) >= 5 and time.perf_counter() > stop:
            break
    env.close()
    return statistics.median(times)
