"""From a config to what runs it: an env by name, an agent, and the device that computes."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import jax

from reverie import algos
from reverie.agent import Agent
from reverie.algos.dreamer import loops
from reverie.config import Config, ConfigError, RunConfig
from reverie.envs.base import Env, Space, Spaces
from reverie.envs.build import make_env
from reverie.envs.spec import EnvSpec
from reverie.envs.workers import EnvError
from reverie.fields import did_you_mean, parsed, short
from reverie.run.jitted import compute_dtype

# What a run and an `EnvSpec` say about an env in the same words.
WRAPPERS = ("action_repeat", "time_limit", "image_size", "gray", "obs_keys", "targets")


def spec_of(run: RunConfig) -> EnvSpec:
    """The env of a run, by name."""
    return EnvSpec(run.env, kwargs=run.env_kwargs, **{name: getattr(run, name) for name in WRAPPERS})


def spec_values(spec: EnvSpec, values: dict[str, Any]) -> dict[str, Any]:
    """`values` with what an env says about itself."""
    own = {k: getattr(spec, k) for k in WRAPPERS if getattr(spec, k) != getattr(RunConfig, k)}
    if spec.kwargs:
        own["env_kwargs"] = json.dumps(spec.kwargs, sort_keys=True)
    for key in sorted(own.keys() & values.keys()):
        if own[key] != values[key]:
            raise ConfigError(f"{key} is {values[key]!r}, but the env given says {own[key]!r}")
    return {**values, **own, "env": spec.id}


def make_agent(conf: Config, obs_space: Spaces, act_space: Spaces) -> Agent:
    """The agent of a config whose precision is settled.

    Raises:
      ConfigError: `obs_scale` does not fit what is seen.
    """
    algorithm = algos.load(conf.algorithm)
    seen = with_scale(obs_space, conf.run.obs_scale)
    dtype = compute_dtype(conf.run.precision)
    agent: Agent = algorithm.make_agent(conf.agent, seen, act_space, precision=dtype)
    return agent


def with_scale(obs_space: Spaces, text: str) -> Spaces:
    """The spaces with center and spread of the vectors that a text names, as `--obs-scale` takes it."""
    try:
        given = parsed(text)
        if not isinstance(given, dict):
            raise ValueError('expected an object, for example {"vector": [[0, 0], [1, 0.07]]}')
        return {**obs_space, **{key: _space_at_scale(obs_space, key, scale) for key, scale in given.items()}}
    except ValueError as error:
        raise ConfigError(f"obs_scale {short(text)}: {error}") from None


def _space_at_scale(obs_space: Spaces, key: str, scale: Any) -> Space:
    vectors = [name for name, space in obs_space.items() if space.kind == "vector"]
    if key not in vectors:
        seen = f"{did_you_mean(key, vectors)}There is {', '.join(vectors)}" if vectors else "leave it out"
        raise ValueError(f"no vector {key!r} is seen: {seen}")
    width = obs_space[key].width
    is_number = lambda x: type(x) in (int, float) and math.isfinite(x)
    is_row = lambda x: isinstance(x, list) and len(x) == width and all(map(is_number, x))
    if not (isinstance(scale, list) and len(scale) == 2 and all(map(is_row, scale))):
        raise ValueError(f"{key} has {width} elements: expected two lists of {width} numbers, centers and spreads")
    center, spread = (tuple(map(float, numbers)) for numbers in scale)
    if min(spread) <= 0:
        raise ValueError(f"{key}: a spread of {min(spread):g}, expected numbers above 0")
    return dataclasses.replace(obs_space[key], center=center, spread=spread)


@contextmanager
def computing(conf: Config) -> Iterator[tuple[list[jax.Device], Config]]:
    """Makes the chosen device JAX's default.

    Yields:
      the devices that share the batches, the default one first; and `conf` with their number, and with the precision
      and the loop over observed steps that suit them.

    Raises:
      ConfigError: there is no such device, or not that many; or they cannot compute as asked.
    """
    run = conf.run
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
        run = dataclasses.replace(run, precision="bfloat16" if platform == "gpu" else "float32")
    with jax.default_device(devices[0]), jax.disable_jit() if run.debug else nullcontext():
        yield devices, with_loop(dataclasses.replace(conf, run=run), platform)


def with_loop(conf: Config, platform: str) -> Config:
    """`conf`, with the loop over observed steps that its run has on this platform, if it has a choice.

    Raises:
      ConfigError: as `loops.settle`.
    """
    if not hasattr(conf.agent, "observe"):
        return conf
    number = {"number": Space("vector", (1,))}
    make = lambda own: make_agent(dataclasses.replace(conf, agent=own), number, number)
    values = {name: getattr(conf.run, name) for name in ("devices", "precision", "batch", "length")}
    observe = loops.settle(conf.agent, make, platform=platform, **values)
    return dataclasses.replace(conf, agent=dataclasses.replace(conf.agent, observe=observe))


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
