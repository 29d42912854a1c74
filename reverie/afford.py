"""Whether a machine can bear a model: told before a run begins, with the size that would do."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from reverie import algos, memory
from reverie.agent import Agent
from reverie.config import Config, ConfigError, flag
from reverie.run import experience
from reverie.run.clock import duration
from reverie.run.cost import Cost, of_update

SHARE = 0.9  # of the memory that a process may take
LARGE = 1e10  # parameters times rows of a batch from which on an update is looked at: seconds of a CPU
SLOW = 20.0  # seconds of an update after which a person is warned
WIDTHS = ("deter", "hidden", "units", "depth", "blocks", "layers")  # flags of models without sizes

Make = Callable[[Config], Agent]


def warnings(conf: Config, agent: Agent, devices: Sequence[jax.Device], updates: int, make: Make) -> list[str]:
    """A warning about the cost of an update of this model on these devices; empty if it is bearable or small.

    Args:
      updates: of the whole run.
      make: builds the agent of another config in the same env.

    Raises:
      ConfigError: parameters and optimizer alone do not fit.
    """
    run, state = conf.run, jax.eval_shape(agent.init, jax.random.key(0))
    room, number = limit(devices[0]), sum(agent.parameters(state).values())
    held = sum(x.size * getattr(x.dtype, "itemsize", 4) for x in jax.tree.leaves(state)) + 4 * number
    if held > SHARE * room:
        raise ConfigError(
            f"parameters, optimizer and gradients would take {held / 1e9:.1f} GB, and this process may take "
            f"{room / 1e9:.1f} GB: {_smaller(conf, make, lambda cost: cost.bytes <= SHARE * room)}"
        )
    if number * run.batch * experience.window(run, agent) < LARGE or not updates:
        return []
    cost, wording = _cost(conf, agent), []
    if cost.bytes > SHARE * room:
        wording.append(
            f"An update may take about {cost.bytes / 1e9:.1f} GB (parameters, optimizer, gradients and activations), "
            f"and this process may take {room / 1e9:.1f} GB: it would be killed. "
            f"Instead: {_smaller(conf, make, lambda less: less.bytes <= SHARE * room)}"
        )
    if devices[0].platform == "cpu":
        speed = products_per_second()
        seconds = cost.flops / speed
        if seconds > SLOW:
            wording.append(
                f"An update takes {duration(seconds)} here at best ({cost.flops / 1e9:,.0f} GFLOP at "
                f"{speed / 1e9:,.0f} GFLOP/s), all {updates:,} of them {duration(updates * seconds)}. "
                f"Instead: {_smaller(conf, make, lambda less: less.flops / speed <= SLOW / 10)}"
            )
    return wording


def limit(device: jax.Device) -> int:
    """Bytes that may be computed in: the machine's, or those of a GPU."""
    wording = device.memory_stats() or {}
    return int(wording["bytes_limit"]) if device.platform == "gpu" and "bytes_limit" in wording else memory.limit()


def products_per_second(side: int = 768) -> float:
    """Floating point operations per second of matrix products, measured for a moment: the most an update can have."""
    product = jax.jit(jnp.matmul)
    x = jnp.asarray(np.random.default_rng(0).normal(size=(side, side)), jnp.float32)
    jax.block_until_ready(product(x, x))
    best = 0.0
    for _ in range(5):
        before = time.perf_counter()
        jax.block_until_ready(product(x, x))
        best = max(best, 2 * side**3 / (time.perf_counter() - before))
    return best


def _cost(conf: Config, agent: Agent) -> Cost:
    return of_update(agent, experience.fields(agent), conf.run.batch, experience.window(conf.run, agent))


def _smaller(conf: Config, make: Make, will_do: Callable[[Cost], bool]) -> str:
    """The flags for a model that will do, or for a smaller one."""
    for size, smaller in _sizes(conf, make):
        if will_do(_cost(smaller, make(smaller))):
            return f"type --size {size}"
    widths = [flag(name) for name in WIDTHS if hasattr(conf.agent, name)]
    return f"lower {', '.join(['--batch', '--length', *widths])}"


def _sizes(conf: Config, make: Make) -> Iterator[tuple[str, Config]]:
    """The sizes of the algorithm that are smaller than the one chosen, the largest first."""
    count = lambda one: sum(make(one).parameters(jax.eval_shape(make(one).init, jax.random.key(0))).values())
    sizes = getattr(algos.load(conf.algorithm), "SIZES", ())
    every = {size: dataclasses.replace(conf, agent=dataclasses.replace(conf.agent, size=size)) for size in sizes}
    counts = {size: count(one) for size, one in every.items()}
    own = count(conf)
    for size in sorted(counts, key=lambda size: -counts[size]):
        if counts[size] < own:
            yield size, every[size]
