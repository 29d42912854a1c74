"""The cost of an update, read off its jaxpr: nothing is compiled and nothing runs.

Floating point operations are those of matrix products and convolutions; a loop counts as often as it turns, one of
unknown length once. Memory is what is alive at once when the equations run one after the other; what is cheap to make
again (`FUSED_OPS`) counts for nothing, as the compiler makes it where it is read.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
from jax.extend.core import Var

from reverie.agent import Agent

FUSED_OPS = frozenset({
    "abs", "add", "and", "broadcast_in_dim", "convert_element_type", "div", "eq", "exp", "ge", "gt", "integer_pow",
    "iota", "le", "log", "logistic", "lt", "max", "min", "mul", "ne", "neg", "not", "or", "pow", "reshape", "rsqrt",
    "select_n", "sign", "sqrt", "squeeze", "stop_gradient", "sub", "tanh", "transpose", "xor", "shift_left",
    "shift_right_logical", "copy", "expand_dims", "square", "is_finite", "clamp", "floor", "round",
})  # fmt: skip


@dataclass(frozen=True)
class Cost:
    """The cost of one update."""

    flops: float  # floating point operations
    bytes: int  # memory at its fullest: the state (parameters and optimizer), gradients and activations


def of_update(agent: Agent, batch: Mapping[str, jax.ShapeDtypeStruct]) -> Cost:
    """The cost of `agent.train` on a batch of these shapes."""
    state = jax.eval_shape(agent.init, jax.random.key(0))
    traced: Any = jax.make_jaxpr(agent.train)(state, batch).jaxpr
    return Cost(_flops(traced), sum(_bytes(x) for x in traced.invars) + _alive(traced))


def _flops(jaxpr: Any) -> float:
    total = 0.0
    for eqn in jaxpr.eqns:
        name, inner = eqn.primitive.name, [_flops(x) for x in _inside(eqn)]
        if name == "dot_general":
            (contract_dims, _), _ = eqn.params["dimension_numbers"]
            depth = math.prod(eqn.invars[0].aval.shape[axis] for axis in contract_dims)
            total += 2 * math.prod(eqn.outvars[0].aval.shape) * depth
        elif name == "conv_general_dilated":
            kernel, spec = eqn.invars[1].aval.shape, eqn.params["dimension_numbers"].rhs_spec
            total += 2 * math.prod(eqn.outvars[0].aval.shape) * math.prod(kernel) / kernel[spec[0]]
        elif inner:
            total += eqn.params.get("length", 1) * sum(inner) if name == "scan" else max(inner)
    return total


def _alive(jaxpr: Any) -> int:
    """Bytes at its fullest, beside its inputs."""
    last: dict[Any, int] = {x: len(jaxpr.eqns) for x in jaxpr.outvars if isinstance(x, Var)}
    for at, eqn in reversed(list(enumerate(jaxpr.eqns))):
        # What is made again where it is read keeps that alive which it is made of.
        until = max([at, *(last.get(x, at) for x in eqn.outvars)]) if eqn.primitive.name in FUSED_OPS else at
        last |= {x: max(until, last.get(x, 0)) for x in eqn.invars if isinstance(x, Var)}
    ends: dict[int, int] = {}  # equation -> bytes that nobody reads after it
    live = most = 0
    for at, eqn in enumerate(jaxpr.eqns):
        inside = max((_alive(x) for x in _inside(eqn)), default=0)
        for x in eqn.outvars if eqn.primitive.name not in FUSED_OPS else ():
            live += _bytes(x)
            ends[last.get(x, at)] = ends.get(last.get(x, at), 0) + _bytes(x)
        most = max(most, live + inside)
        live -= ends.pop(at, 0)
    return most


def _inside(eqn: Any) -> list[Any]:
    """The jaxprs that an equation runs."""
    found: list[Any] = []
    for value in eqn.params.values():
        for each in value if isinstance(value, tuple | list) else (value,):
            inner = getattr(each, "jaxpr", each)
            if hasattr(inner, "eqns"):
                found.append(inner)
    return found


def _bytes(variable: Any) -> int:
    aval = variable.aval
    return math.prod(aval.shape) * getattr(aval.dtype, "itemsize", 4) if hasattr(aval, "shape") else 0
