"""Whether a machine can bear a model: told before a run begins, with the size that would do."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from reverie import algos, memory
from reverie.agent import Agent
from reverie.config import Config, ConfigError, RunConfig
from reverie.fields import flag
from reverie.nn import layers
from reverie.run import experience
from reverie.run.clock import duration
from reverie.run.cost import Cost, of_update
from reverie.run.jitted import precise

SHARE = 0.9  # of the memory that a process may take
LARGE = 1e10  # parameters times rows of a batch from which on an update is looked at: seconds of a CPU
SLOW = 20.0  # seconds of an update after which a person is warned
WIDTHS = ("deter", "hidden", "units", "depth", "blocks", "layers")  # flags of models without sizes

Make = Callable[[Config], Agent]


def warnings(
    conf: Config, agent: Agent, devices: Sequence[jax.Device], updates: int, make: Make, reserve: int = 0
) -> list[str]:
    """A warning about the cost of an update of this model on these devices; empty if it is bearable or small.

    Args:
      updates: of the whole run.
      make: builds the agent of another config in the same env.
      reserve: bytes of the first device that replay takes.

    Raises:
      ConfigError: parameters and optimizer alone do not fit.
    """
    run, state = conf.run, jax.eval_shape(agent.init, jax.random.key(0))
    room, number = limit(devices[0]) - reserve, sum(agent.parameters(state).values())
    has = f"this process may take {room / 1e9:.1f} GB"
    if reserve:
        has = f"replay leaves {room / 1e9:.1f} GB of the device, and more with --replay-on host"
    held = sum(x.size * getattr(x.dtype, "itemsize", 4) for x in jax.tree.leaves(state)) + 4 * number
    if held > SHARE * room:
        raise ConfigError(
            f"parameters, optimizer and gradients would take {held / 1e9:.1f} GB, and {has}: "
            f"{_smaller(conf, make, lambda cost: cost.bytes <= SHARE * room)}"
        )
    if number * run.batch * experience.window(run, agent) < LARGE or not updates:
        return []
    cost, found = _cost(run, agent), []
    if cost.bytes > SHARE * room:
        found.append(
            f"An update may take about {cost.bytes / 1e9:.1f} GB (parameters, optimizer, gradients and activations), "
            f"and {has}: it would be killed. "
            f"Instead: {_smaller(conf, make, lambda less: less.bytes <= SHARE * room)}"
        )
    if devices[0].platform == "cpu":
        speed = products_per_second(run.precision)
        seconds = cost.flops / speed
        if seconds > SLOW:
            found.append(
                f"An update takes {duration(seconds)} here at best ({cost.flops / 1e9:,.0f} GFLOP at "
                f"{speed / 1e9:,.0f} GFLOP/s), all {updates:,} of them {duration(updates * seconds)}. "
                f"Instead: {_smaller(conf, make, lambda less: less.flops / speed <= SLOW / 10)}"
            )
    return found


def limit(device: jax.Device) -> int:
    """Bytes that may be computed in: the machine's, or those of a GPU."""
    stats = device.memory_stats() or {}
    return int(stats["bytes_limit"]) if device.platform == "gpu" and "bytes_limit" in stats else memory.limit()


def products_per_second(precision: str, side: int = 768) -> float:
    """Floating point operations per second of a CPU's matrix products, measured for a moment: the most an update can
    have."""
    product = jax.jit(precise(layers.product, precision))
    x = jnp.asarray(np.random.default_rng(0).normal(size=(side, side)), jnp.float32)
    jax.block_until_ready(product(x, x))
    best = 0.0
    for _ in range(5):
        before = time.perf_counter()
        jax.block_until_ready(product(x, x))
        best = max(best, 2 * side**3 / (time.perf_counter() - before))
    return best


def _cost(run: RunConfig, agent: Agent) -> Cost:
    return of_update(agent, experience.shapes(run, agent))


def _parameters(agent: Agent) -> int:
    return sum(agent.parameters(jax.eval_shape(agent.init, jax.random.key(0))).values())


def _smaller(conf: Config, make: Make, will_do: Callable[[Cost], bool]) -> str:
    """The flags for the largest smaller model that will do, or for a smaller one."""
    agents = {
        size: make(dataclasses.replace(conf, agent=dataclasses.replace(conf.agent, size=size)))
        for size in getattr(algos.load(conf.algorithm), "SIZES", ())
    }
    counts, own = {size: _parameters(agent) for size, agent in agents.items()}, _parameters(make(conf))
    for size in sorted(counts, key=lambda size: -counts[size]):
        if counts[size] < own and will_do(_cost(conf.run, agents[size])):
            return f"type --size {size}"
    widths = [flag(name) for name in WIDTHS if hasattr(conf.agent, name)]
    return f"lower {', '.join(['--batch', '--length', *widths])}"
