"""From a config to what runs it: an env by name, an agent, and the device that computes."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, Literal

import jax

from reverie import algos
from reverie.agent import Agent
from reverie.config import Config, ConfigError, RunConfig
from reverie.envs.base import Env, Spaces
from reverie.envs.build import make_env
from reverie.envs.spec import EnvSpec
from reverie.envs.workers import EnvError


def spec_of(run: RunConfig) -> EnvSpec:
    """The env of a run, by name."""
    return EnvSpec(
        run.env,
        action_repeat=run.action_repeat,
        time_limit=run.time_limit,
        image_size=run.image_size,
        gray=run.gray,
        obs_keys=run.obs_keys,
        targets=run.targets,
        kwargs=run.env_kwargs,
    )


def spec_values(spec: EnvSpec, values: dict[str, Any]) -> dict[str, Any]:
    """`values` with what an env says about itself."""
    names = ("action_repeat", "time_limit", "image_size", "gray", "obs_keys", "targets")
    own = {k: getattr(spec, k) for k in names}
    own = {k: v for k, v in own.items() if v != getattr(RunConfig(), k)}
    if spec.kwargs:
        own["env_kwargs"] = json.dumps(spec.kwargs, sort_keys=True)
    for key in sorted(own.keys() & values.keys()):
        if own[key] != values[key]:
            raise ConfigError(f"{key} is {values[key]!r}, but the env given says {own[key]!r}")
    return {**values, **own, "env": spec.id}


def make_agent(conf: Config, obs_space: Spaces, act_space: Spaces) -> Agent:
    """The agent of a config whose precision is settled."""
    algorithm = algos.load(conf.algorithm)
    agent: Agent = algorithm.make_agent(conf.agent, obs_space, act_space, precision=conf.run.precision)
    return agent


@contextmanager
def computing(run: RunConfig) -> Iterator[tuple[list[jax.Device], RunConfig]]:
    """Makes the chosen device JAX's default.

    Yields:
      the devices that share the batches, the default one first; and `run` with their number and with the precision
      that suits them.

    Raises:
      ConfigError: there is no such device, or not that many.
    """
    devices = jax.devices("cpu") if run.device == "cpu" else jax.devices()
    platform = devices[0].platform
    if run.device == "gpu" and platform != "gpu":
        raise ConfigError("--device gpu, but JAX sees none: install `reverie[cuda]`, or type --device cpu")
    if run.devices > len(devices):
        more = "; for more on a CPU, set XLA_FLAGS=--xla_force_host_platform_device_count" if platform == "cpu" else ""
        raise ConfigError(
            f"--devices {run.devices}, but JAX sees {len(devices)} ({platform}): type --devices 0 for all of them{more}"
        )
    run = dataclasses.replace(run, devices=run.devices or len(devices))
    devices = devices[: run.devices]
    if run.precision == "auto":
        precision: Literal["bfloat16", "float32"]
        precision = "bfloat16" if platform == "gpu" else "float32"
        run = dataclasses.replace(run, precision=precision)
    with jax.default_device(devices[0]), jax.disable_jit() if run.debug else nullcontext():
        yield devices, run


def describe_devices(devices: Sequence[jax.Device], batch: int) -> str:
    """The devices in words, and how they share a batch."""
    first, count = devices[0], len(devices)
    kind = f"gpu ({first.device_kind})" if first.platform == "gpu" else first.platform
    return f"{count} x {kind}, {batch // count} of {batch} sequences each" if count > 1 else kind


def env_here(spec: EnvSpec) -> Env:
    """The env in this process, to ask for its spaces or to play in.

    Raises:
      UnusableEnv: the env as named cannot be used.
      EnvError: its own code raised.
    """
    try:
        return make_env(spec)
    except Exception as error:  # the border of the user's code
        if type(error).__module__.startswith("reverie"):
            raise
        raise EnvError(f"{spec.id} could not be built: {type(error).__name__}: {error}") from error
