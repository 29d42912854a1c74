"""The envs of a run: opened, and collected from, wherever they live."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import jax

from reverie.config import RunConfig
from reverie.envs.base import Spaces
from reverie.envs.build import device_env
from reverie.envs.device import DeviceEnvs
from reverie.envs.seats import Mode
from reverie.envs.spec import EnvSpec, UnusableEnv
from reverie.envs.workers import Workers
from reverie.replay.sequences import Replay
from reverie.run.clock import Clock
from reverie.run.collect.base import Add, Collector, Fetch, Policy
from reverie.run.collect.host import HostCollector
from reverie.run.collect.rollout import DeviceCollector
from reverie.run.collect.script import Script
from reverie.run.jitted import JittedAgent
from reverie.run.seeds import keys, seeds

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
    envs: Envs,
    compiled: JittedAgent,
    policy: Policy,
    add: Add,
    extend: Add,
    *,
    scan: int,
    groups: int = 1,
    fetch: Fetch = jax.device_get,
) -> Collector:
    """The stepper of these envs: on the host, `groups` of them take turns, and every step is handed to `add`, every
    decision to `fetch`; on the device, U = `scan` steps are one call, handed to `extend`, and the policy of `compiled`
    is part of its program."""
    if envs.mode != "device":
        return HostCollector(envs, policy, add, groups, fetch)
    return DeviceCollector(compiled.rollout(envs, scan), extend)


def training_collector(
    run: RunConfig, envs: Envs, compiled: JittedAgent, replay: Replay, clock: Clock, steps: Callable[[], int]
) -> Collector:
    """The collector of a run that learns in these envs, with its first carry. `steps` gives the env steps so far.

    Raises:
      UnusableEnv: what was asked for cannot be done in this env.
    """
    if envs.mode == "device":
        if run.groups > 1:
            raise UnusableEnv(f"{envs.spec.id} lives on the device: all envs step together, leave --groups out")
        if run.collector:
            raise UnusableEnv(f"{envs.spec.id} lives on the device, where no --collector reaches: leave it out")
    agent = compiled.agent
    policy: Policy = compiled.decide
    if run.collector:
        policy = Script(run.collector, agent.act_space, seeds(run.seed).envs).instead_of(policy, steps)
    add, extend = clock.measure_time("replay")(replay.add), clock.measure_time("replay")(replay.extend)
    policy, fetch = clock.measure_time("policy")(policy), clock.measure_time("policy")(jax.device_get)
    made = collector(envs, compiled, policy, add, extend, scan=run.scan, groups=run.groups, fetch=fetch)
    key = keys(run.seed).policy
    made.carry = [agent.init_carry(len(group), jax.random.fold_in(key, g)) for g, group in enumerate(made.groups)]
    return made
