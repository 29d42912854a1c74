"""The envs of a run: opened, and collected from, wherever they live."""

from __future__ import annotations

from dataclasses import replace

from reverie.config import RunConfig
from reverie.envs.base import Spaces
from reverie.envs.build import device_env
from reverie.envs.device import DeviceEnvs
from reverie.envs.seats import Mode
from reverie.envs.spec import EnvSpec, UnusableEnv
from reverie.envs.workers import Workers
from reverie.run.collect.base import Add, Collector, Policy
from reverie.run.collect.host import HostCollector
from reverie.run.collect.rollout import DeviceCollector
from reverie.run.jitted import JittedAgent

Envs = Workers | DeviceEnvs


def open_envs(run: RunConfig, spec: EnvSpec, num: int, seed: int, mode: Mode | None = None) -> Envs:
    """`num` envs: supervised ones of the host, or pure functions where the env lives on the device. Their limits are
    those of the run; so is their mode, if it is left out.

    Raises:
      UnusableEnv, EnvError: as `Workers`; or a device env is wanted in processes.
    """
    mode = mode or _mode(run)
    if device_env(spec) is None:
        return Workers(spec, num, seed=seed, mode=mode, deadline=run.deadline, memory=run.worker_memory)
    if mode == "process" or run.worker_memory:
        flag = "--workers process" if mode == "process" else "--worker-memory"
        raise UnusableEnv(f"{spec.id} lives on the device, where there are no processes: leave {flag} out")
    return DeviceEnvs(spec, num, seed=seed)


def open_evaluation(
    run: RunConfig, spec: EnvSpec, obs_space: Spaces, episodes: int, seed: int, opponent: str, mode: Mode | None = None
) -> Envs:
    """The envs of an evaluation: `eval_envs` of them. For games of two on the device as many as one seat plays; on the
    host an even number, with the opponent in them, and the agent in the first seat of every other one.

    Raises:
      UnusableEnv, EnvError: as `open_envs`; or the opponent cannot play.
    """
    env, num = device_env(spec), min(run.eval_envs, episodes)
    if env is not None and env.players == 2:
        num = -(-episodes // 2)
    elif "player" in obs_space:
        num += num % 2
        seats = [replace(spec, opponent=opponent, seat=i % 2) for i in range(num)]
        mode = mode or _mode(run)
        return Workers(seats, num, seed=seed, mode=mode, deadline=run.deadline, memory=run.worker_memory)
    return open_envs(run, spec, num, seed, mode)


def _mode(run: RunConfig) -> Mode:
    return "inline" if run.debug else run.workers


def collector(
    envs: Envs, compiled: JittedAgent, policy: Policy, add: Add, extend: Add, *, scan: int, groups: int = 1
) -> Collector:
    """The stepper of these envs: on the host, `groups` of them take turns, and every step is handed to `add`; on the
    device, U = `scan` steps are one call, handed to `extend`, and the policy of `compiled` is part of its program."""
    if envs.mode != "device":
        return HostCollector(envs, policy, add, groups)
    return DeviceCollector(compiled.rollout(envs, scan), extend)
