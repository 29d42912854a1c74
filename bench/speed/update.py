"""Milliseconds per update, and its share of what this machine's matrix product could do in the same time.

    python -m bench.speed.update                          # sizes 1m and 12m, vector and image
    python -m bench.speed.update --sizes 200k --inputs vector --batch 16 --length 32
    python -m bench.speed.update --sizes 1m --dynamics rssm transformer none
    python -m bench.speed.update --sizes 200k 1m --inputs vector --observe scan fused --precision bfloat16   # on a GPU
    python -m bench.speed.update --parts                  # and where the time goes

The vector input is 24 numbers with 6 continuous actions, the image 64 x 64 x 3 with 6 discrete ones: those of
every published comparison. Prints one JSON line per figure.

Parts are compiled by themselves: `world_forward` and `world` are the world model's loss and its gradient, `imagination`
the trajectories with the rewards, discounts and values of their states, `behavior` the gradient of the losses of actor
and critic with that imagination in it, `optimizer` the step. Together they take longer than the update, which the
compiler sees as a whole.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro
from jax.extend.core import ClosedJaxpr, Jaxpr

from bench.common import origin, tell
from reverie.agent import Row
from reverie.algos.dreamer import v3 as dreamer_v3
from reverie.envs.base import Space, Spaces
from reverie.memory import use_huge_pages
from reverie.run.counted_jit import gradient_options
from reverie.run.jitted import compute_dtype, precise

INPUTS: dict[str, tuple[Spaces, Spaces]] = {
    "vector": ({"vector": Space("vector", (24,))}, {"action": Space("vector", (6,))}),
    "image": ({"image": Space("image", (64, 64, 3))}, {"action": Space("discrete", (), (6,))}),
}


@dataclass(frozen=True)
class Args:
    sizes: tuple[str, ...] = ("1m", "12m")
    inputs: tuple[str, ...] = ("vector", "image")
    dynamics: tuple[str, ...] = ("rssm",)
    observe: tuple[Literal["scan", "fused"], ...] = ("scan",)
    """As of `reverie train --observe`; fused is for sizes 200k and 1m, and on a CPU it is interpreted."""
    batch: int = 16
    length: int = 64
    imagination: int = 15
    precision: Literal["float32", "bfloat16"] = "float32"
    """As of `reverie train --precision`: on a CPU, bfloat16 is for the operands of an update's products."""
    repeats: int = 10
    """Timed updates; the image of size 12m takes a third of them."""
    parts: bool = False
    """Times the parts of an update too."""


def random_batch(agent: Any, batch: int, length: int, seed: int = 0) -> Row:
    """A batch of noise with the agent's own shapes; an episode ends every fifty steps."""
    rng = np.random.default_rng(seed)
    shape = (batch, agent.context + length)
    rows: dict[str, Any] = {}
    for prefix, spaces in (("obs/", agent.obs_space), ("action/", agent.act_space)):
        for key, space in spaces.items():
            value: np.ndarray
            if space.kind == "vector":
                value = rng.uniform(-1, 1, (*shape, *space.shape))
            else:
                value = rng.integers(0, 255 if space.kind == "image" else min(space.classes), (*shape, *space.shape))
            rows[prefix + key] = value.astype(space.dtype)
    for key, out in agent.out_space.items():
        rows["out/" + key] = np.zeros((*shape, *out.shape), out.dtype)
    last = rng.random(shape) < 0.02
    first = np.concatenate([np.zeros_like(last[:, :1]), last[:, :-1]], 1)
    rows |= {
        "reward": rng.normal(size=shape).astype(np.float32),
        "is_first": first,
        "is_last": last,
    }
    return rows | {"is_terminal": last & (rng.random(shape) < 0.5)}


def products(jaxpr: Jaxpr) -> float:
    """Floating-point operations of all matrix products and convolutions, loops multiplied out."""
    total = 0.0
    shape = lambda var: cast(Any, var.aval).shape
    for eqn in jaxpr.eqns:
        if eqn.primitive.name == "dot_general":
            (contract, _), _ = eqn.params["dimension_numbers"]
            depth = np.prod([shape(eqn.invars[0])[i] for i in contract])
            total += 2.0 * np.prod(shape(eqn.outvars[0])) * depth
        elif eqn.primitive.name == "conv_general_dilated":
            kernel = shape(eqn.invars[1])
            spec = eqn.params["dimension_numbers"].rhs_spec
            outputs = np.prod(shape(eqn.outvars[0]))
            total += 2.0 * outputs * np.prod(kernel) / kernel[spec[0]]
        times = eqn.params.get("length", 1) if eqn.primitive.name == "scan" else 1
        for value in eqn.params.values():
            for inner in value if isinstance(value, tuple) else (value,):
                if isinstance(inner, ClosedJaxpr):
                    inner = inner.jaxpr
                if isinstance(inner, Jaxpr):
                    total += times * products(inner)
    return total


def seconds(call: Callable[[], Any], repeats: int) -> list[float]:
    out = []
    for _ in range(repeats):
        start = time.perf_counter()
        jax.block_until_ready(call())
        out.append(time.perf_counter() - start)
    return out


def part_calls(agent: Any, state: Any, batch: Row, precision: str) -> dict[str, Callable[[], Any]]:
    """Name -> a call of that part of an update, compiled. All that it reads is an argument: what a function closes over
    the compiler may compute beforehand."""

    def world(model: Any, batch: Row, key: jax.Array) -> tuple[jax.Array, Any]:
        losses, post, _ = agent.world_loss(model, batch, key)
        return agent.weigh(losses)[0], post

    def imagination(model: Any, post: Any, key: jax.Array) -> Any:
        return agent.imagine(model, model.val, post, None, key)

    def behavior(model: Any, post: Any, state: Any, key: jax.Array) -> jax.Array:
        return agent.weigh(agent.behavior_loss(model, state, post, key)[0])[0]

    def optimizer(grads: Any, model: Any, moments: Any) -> Any:
        changes, moments = agent.optimizer.update(grads, moments, model)
        return optax.apply_updates(model, changes), moments

    model, key = state.model, jax.random.key(0)
    post = jax.jit(world)(model, batch, key)[1]
    functions: dict[str, tuple[Callable[..., Any], tuple[Any, ...]]] = {
        "world_forward": (world, (model, batch, key)),
        "world": (jax.value_and_grad(world, has_aux=True), (model, batch, key)),
        "imagination": (imagination, (model, post, key)),
        "behavior": (jax.value_and_grad(behavior), (model, post, state, key)),
        "optimizer": (optimizer, (model, model, state.optimizer)),
    }
    compiled = {
        name: jax.jit(precise(function, precision), compiler_options=gradient_options()).lower(*args).compile()
        for name, (function, args) in functions.items()
    }
    return {name: partial(call, *functions[name][1]) for name, call in compiled.items()}


def ceiling(precision: str) -> float:
    """The best rate of a plain matrix product with operands of this precision, in operations per second."""
    n = 2048 if jax.default_backend() == "cpu" else 8192
    x = jnp.ones((n, n), precision)
    multiply = jax.jit(lambda x: jnp.matmul(x, x, preferred_element_type=jnp.float32))
    multiply(x).block_until_ready()
    return 2.0 * n**3 / min(seconds(lambda: multiply(x), 10))


def main(args: Args) -> None:
    for size, kind, dynamics, observe in itertools.product(args.sizes, args.inputs, args.dynamics, args.observe):
        own: dict[str, Any] = {"size": size, "dynamics": dynamics, "observe": observe}
        config = dreamer_v3.Config(**own, imagination=args.imagination)
        agent = dreamer_v3.make_agent(config, *INPUTS[kind], precision=compute_dtype(args.precision))
        state = jax.jit(agent.init)(jax.random.key(0))
        batch = jax.device_put(random_batch(agent, args.batch, args.length))
        heavy = kind == "image" and size != "1m"
        repeats = max(3, args.repeats // 3) if heavy else args.repeats
        calls = part_calls(agent, state, batch, args.precision) if args.parts else {}
        parts = {
            name: round(1000 * float(np.median(seconds(call, repeats + 1)[1:])), 1) for name, call in calls.items()
        }
        train = precise(agent.train, args.precision)
        work = products(jax.make_jaxpr(train)(state, batch).jaxpr)
        start = time.perf_counter()
        train = jax.jit(train, donate_argnums=0, compiler_options=gradient_options()).lower(state, batch).compile()
        compiling = time.perf_counter() - start
        box = [state]

        def update(train: Any = train, box: list[Any] = box, batch: Any = batch) -> Any:
            box[0], _, metrics = train(box[0], batch)
            return metrics

        rate = ceiling(args.precision)
        update()
        times = seconds(update, repeats)
        rate = max(rate, ceiling(args.precision))
        figure = {
            "bench": "update",
            "name": "/".join([size, kind, *({dynamics, observe} - {"rssm", "scan"})]),
            "value": round(1000 * float(np.median(times)), 2),
            "unit": "ms",
            "best_ms": round(1000 * min(times), 2),
            "gflop": round(work / 1e9, 2),
            "ceiling_gflops": round(rate / 1e9, 1),
            "share_of_ceiling": round(work / float(np.median(times)) / rate, 3),
            "compile_s": round(compiling, 1),
            **({"parts_ms": parts} if parts else {}),
            "batch": [args.batch, args.length],
            "horizon": args.imagination,
            "precision": args.precision,
            **origin(),
        }
        tell(figure)


if __name__ == "__main__":
    arguments = tyro.cli(Args)
    use_huge_pages()
    main(arguments)
