"""The observed steps of an RSSM as one GPU kernel each way: `fused`, a `Loop` beside `rssm.scan`.

A scan makes 64 x (107 + 68) kernels of an update whose 16 rows give a GPU next to nothing to do: at 2 us each 22 ms,
whatever the arithmetic. Here a kernel takes all steps by itself. Its arithmetic, for size 1m (deter 512 in 8 blocks,
64 hidden units, 32 x 4 codes):

    weights of a step         276,000: 0.55 MB in bfloat16, 1.1 MB in float32; 72,000 for size 200k
    an SM has                 0.23 MB of shared memory and cache, as many registers, and about 110 GB/s from L2
    so a step's weights take  5 us in bfloat16, 10 us in float32, from L2, where they stay from step to step
    its 66 products           40 us if each waits for its own weights, 0.6 us; a scan's step takes 214 us forward
    state and pre-activations 16 x (512 + 512 + 1536) numbers: 64 to 160 registers a thread

A program of the grid is `ROWS` sequences, the least that a tensor core's product has, from their first step to their
last: no step waits for another program, which Triton has no word for. The state stays in registers, as a tuple of the
GRU's blocks, since values cannot be cut there; weights are read block by block. A cluster of 8 SMs, with a block of
the GRU in the shared memory of each, would read none of them twice, at three barriers a step: another program, for a
few microseconds. At size 12m the state and what is made of it no longer fit in registers (2,048 numbers a row), and a
scan has more to do: the kernel is for 200k and 1m.

    forward    kernel, t = 1 .. T: the states and the posterior's outputs; nothing else is kept
    backward   kernel, t = T .. 1: every step is made again for its pullback; the gradient of every state
               then all T x B steps at once, with these: gradients by weights and inputs, one product for each layer

No GPU has run it yet. It becomes Triton's code (`tests/model/test_kernel.py` lowers it for CUDA); on a CPU Pallas
interprets it, for tests.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from functools import partial, reduce
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton
from jax.lax import stop_gradient
from jaxtyping import Array, Float

from reverie.model.dynamics import Latent, flat_stoch
from reverie.model.rssm import RSSM, BlockGRU, Inputs, Loop, blend, scan
from reverie.nn.dists import mixed, straight_through
from reverie.nn.layers import ACTIVATIONS

ROWS = 16  # sequences of a program
WARPS = 8
Blocks = tuple[Array, ...]  # float32 `[R, n]`, of the G blocks of deter
State = tuple[Blocks, Array]  # a deter in blocks and a flat stoch, `[R, SZ]`, or their gradients; float32


def fused(dyn: RSSM, start: Latent, first: Latent, inputs: Inputs) -> tuple[Latent, Float[Array, "T B s p"]]:
    """The `Loop` of one kernel. It computes in float32 but for the operands of products; samples are those of a scan
    with the same noise, but for rounding. A single step is no loop and stays a scan."""
    assert isinstance(dyn.core, BlockGRU), dyn.core
    steps, batch = inputs.reset.shape
    if steps == 1:
        return scan(dyn, start, first, inputs)
    more = -batch % ROWS
    fill = lambda axis, x: jnp.pad(x, [(0, more if i == axis else 0) for i in range(x.ndim)])
    start, inputs = jax.tree.map(partial(fill, 0), start), jax.tree.map(partial(fill, 1), inputs)
    return jax.tree.map(lambda x: x[:, :batch], _loop(dyn, start, first, inputs))


def is_faster(dyn: RSSM, batch: int, length: int, dtype: jnp.dtype) -> bool:
    """Whether `fused` takes less time than `scan` on the default device for an update's sequences, gradient included:
    the shortest of five calls each. A device that cannot compile the kernel says no."""
    lead, units = (length, batch), dyn.post_hidden.weight.shape[1]
    zeros = lambda *shape: jnp.zeros((*lead, *shape), dtype)
    inputs = Inputs(zeros(dyn.deter), zeros(units), jnp.zeros(lead, bool), jnp.full((*lead, dyn.stoch), 0.5))
    start, first = dyn.zeros((batch,), dtype), dyn.zeros((), dtype)

    def seconds(loop: Loop) -> float:
        total = lambda dyn: sum(x.astype(jnp.float32).sum() for x in jax.tree.leaves(loop(dyn, start, first, inputs)))
        gradient, times = jax.jit(jax.grad(total)), []
        for _ in range(6):
            before = time.perf_counter()
            jax.block_until_ready(gradient(dyn))
            times.append(time.perf_counter() - before)
        return min(times[1:])

    try:
        return seconds(fused) < seconds(scan)
    except (jax.errors.JaxRuntimeError, ValueError, NotImplementedError):
        return False


@jax.custom_vjp
def _loop(dyn: RSSM, start: Latent, first: Latent, inputs: Inputs) -> tuple[Latent, Array]:
    dtype, lead = start.deter.dtype, inputs.reset.shape
    codes = jax.ShapeDtypeStruct((*lead, dyn.stoch * dyn.kind.width), dtype)
    shapes = (jax.ShapeDtypeStruct((*lead, dyn.deter), dtype), codes, codes)
    begun = (start.deter[None], flat_stoch(start.stoch)[None])
    deter, stoch, out = _call(_forward_kernel, dyn, first, (begun, inputs), shapes)
    return Latent(deter, dyn.group(stoch)), dyn.group(out)


def _forward(dyn: RSSM, start: Latent, first: Latent, inputs: Inputs) -> tuple[Any, Any]:
    found = _loop(dyn, start, first, inputs)
    return found, (dyn, start, first, inputs, found[0])


def _backward(kept: Any, gradient: tuple[Latent, Array]) -> Any:
    """The gradient of one state after the other, and from these all others at once."""
    dyn, start, first, inputs, latents = kept
    before = jax.tree.map(lambda begun, x: jnp.concatenate([begun[None], x[:-1]]), start, latents)
    flat = lambda latent: (latent.deter, flat_stoch(latent.stoch))
    known = (flat(before), inputs, (*flat(gradient[0]), flat_stoch(gradient[1])))
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), flat(latents))
    by_deter, by_stoch = _call(_backward_kernel, dyn, first, known, shapes)

    rows = lambda tree: jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), tree)
    step = lambda dyn, before, first, inputs: dyn.step(first, before, inputs)[1]
    _, pull = jax.vjp(step, dyn, rows(before), first, rows(inputs))
    by_dyn, by_before, by_first, by_inputs = pull(rows((Latent(by_deter, dyn.group(by_stoch)), gradient[1])))
    by_start = jax.tree.map(lambda x: x[: inputs.reset.shape[1]], by_before)
    return by_dyn, by_start, by_first, jax.tree.map(lambda x, like: x.reshape(like.shape), by_inputs, inputs)


_loop.defvjp(_forward, _backward)


def _call(kernel: Callable[..., None], dyn: RSSM, first: Latent, known: Any, shapes: Any) -> Any:
    """The arrays of these shapes that a kernel makes of what is known of sequences, both `[T, B, ...]`; every program
    has `ROWS` of the sequences, and reads all weights: matrices in the dtype of states, the rest in float32."""

    def spec(x: Any) -> pl.BlockSpec:
        return pl.BlockSpec((x.shape[0], ROWS, *x.shape[2:]), lambda program: (0, program, *[0] * (x.ndim - 2)))

    weights = jax.tree.map(lambda x: x.astype(first.deter.dtype) if x.ndim > 1 else x, dyn)
    whole = (weights, (first.deter, flat_stoch(first.stoch)))
    return pl.pallas_call(
        kernel,
        out_shape=shapes,
        grid=(shapes[0].shape[1] // ROWS,),
        in_specs=(*jax.tree.map(lambda _: pl.BlockSpec(), whole), *jax.tree.map(spec, known)),
        out_specs=jax.tree.map(spec, shapes),
        interpret=jax.default_backend() == "cpu",
        compiler_params=triton.CompilerParams(num_warps=WARPS, num_stages=1),
    )(*whole, *known)


# ------------------------------------------------------------------------------------------------------------- kernels
# Their arguments are references to arrays; `dyn` is the RSSM with references in place of its weights.


def _forward_kernel(dyn: Any, first: Any, start: Any, inputs: Inputs, *out: Any) -> None:
    to_deter, to_stoch, to_out = out
    # The next step reads what is written, as it does in the scan and in the other kernel.
    to_dtype = lambda x: x.astype(to_deter.dtype).astype(jnp.float32)

    def turn(t: Array, state: State) -> State:
        (deter, stoch, logits), _ = _step(dyn, first, state, inputs, t)
        _write(to_deter, t, *deter)
        _write(to_stoch, t, stoch)
        _write(to_out, t, logits)
        return tuple(map(to_dtype, deter)), to_dtype(stoch)

    lax.fori_loop(0, to_deter.shape[0], turn, (_cut(dyn, start[0], 0), _read(start[1], 0)))


def _backward_kernel(dyn: Any, first: Any, before: Any, inputs: Inputs, gradient: Any, *out: Any) -> None:
    to_deter, to_stoch = out
    steps, rows, codes = to_stoch.shape

    def turn(i: Array, later: State) -> State:
        t = steps - 1 - i
        _, pull = _step(dyn, first, (_cut(dyn, before[0], t), _read(before[1], t)), inputs, t)
        deter, stoch = jax.tree.map(jnp.add, (_cut(dyn, gradient[0], t), _read(gradient[1], t)), later)
        _write(to_deter, t, *deter)
        _write(to_stoch, t, stoch)
        return pull(deter, stoch, _read(gradient[2], t))

    blocks, size, _ = dyn.core.gates.weight.shape
    nothing = (jnp.zeros((rows, size), jnp.float32),) * blocks, jnp.zeros((rows, codes), jnp.float32)
    lax.fori_loop(0, steps, turn, nothing)


def _step(
    dyn: Any, first: Any, state: State, inputs: Inputs, t: Array
) -> tuple[tuple[Blocks, Array, Array], Callable[[Blocks, Array, Array], State]]:
    """`RSSM.step`, and its pullback: the gradient of the state before by those of deter, stoch and output."""
    core, units = dyn.core, partial(_units, ACTIVATIONS[dyn.act])
    (blocks, size, _), width = core.gates.weight.shape, dyn.post_out.weight.shape[0]
    part = lambda i: slice(i * size, (i + 1) * size)
    of_deter = lambda layer, g: layer.weight[part(g)]
    own = lambda g: core.hidden.weight[g, :size]
    from_x = lambda g, i: core.hidden.weight[g, size + i * width : size + (i + 1) * width]
    gate = lambda g, i: core.gates.weight[g, :, part(i)]
    each = range(blocks)

    reset = inputs.reset[t][:, None]
    fresh = lambda x, begun: jnp.where(reset, begun[None], x)
    deter, stoch = tuple(map(fresh, state[0], _cut(dyn, first[0]))), fresh(state[1], _read(first[1]))

    # Transition
    x0 = _sum(_product(deter[g], of_deter(core.from_deter, g)) for g in each) + core.from_deter.bias[...][None]
    x1 = _product(stoch, core.from_stoch.weight[...]) + core.from_stoch.bias[...][None]
    (x0,), pull_x0 = units(core.deter_norm, x0)
    (x1,), pull_x1 = units(core.stoch_norm, x1)
    drive = _cut(dyn, inputs.drive, t)
    common = lambda g: _product(x0, from_x(g, 0)) + _product(x1, from_x(g, 1))
    hidden, pull_units = units(core.hidden_norm, *(common(g) + _product(deter[g], own(g)) + drive[g] for g in each))
    bias = lambda g, i: core.gates.bias[part(3 * g + i)][None]
    gates = [[_product(hidden[g], gate(g, i)) + bias(g, i) for g in each] for i in range(3)]
    deter, pull_gates = jax.vjp(lambda gates, deter: tuple(map(blend, *gates, deter)), gates, deter)

    # Posterior
    x2 = _sum(_product(deter[g], of_deter(dyn.post_hidden, g)) for g in each) + _read(inputs.seen, t)
    (x2,), pull_x2 = units(dyn.post_norm, x2)
    out = _product(x2, dyn.post_out.weight[...]) + dyn.post_out.bias[...][None]
    stoch, pull_stoch = jax.vjp(lambda out: _sample(dyn, out, inputs.noise[t]), out)

    def pull(by_deter: Blocks, by_stoch: Array, by_out: Array) -> State:
        by_out = by_out + pull_stoch(by_stoch)[0]
        (by_x2,) = pull_x2((_pull(by_out, dyn.post_out.weight[...]),))
        by_gates, by_state = pull_gates(tuple(by_deter[g] + _pull(by_x2, of_deter(dyn.post_hidden, g)) for g in each))
        by_units = pull_units(tuple(_sum(_pull(by_gates[i][g], gate(g, i)) for i in range(3)) for g in each))
        by_common = [_sum(_pull(by_units[g], from_x(g, i)) for g in each) for i in range(2)]
        (by_x0,), (by_x1,) = pull_x0((by_common[0],)), pull_x1((by_common[1],))
        products = lambda g: _pull(by_units[g], own(g)) + _pull(by_x0, of_deter(core.from_deter, g))
        keep = lambda x: jnp.where(reset, 0.0, x)
        by_deter = tuple(keep(by_state[g] + products(g)) for g in each)
        return by_deter, keep(_pull(by_x1, core.from_stoch.weight[...]))

    return (deter, stoch, out), pull


def _units(act: Callable[[Array], Array], norm: Any, *xs: Array) -> tuple[Blocks, Callable[[Blocks], Blocks]]:
    """A norm over blocks side by side and the activation, as `RMSNorm`, and its pullback."""
    size = xs[0].shape[-1]
    scales = [norm.scale[i * size : (i + 1) * size][None] for i in range(len(xs))]

    def function(*xs: Array) -> Blocks:
        square = _sum(jnp.sum(x * x, -1, keepdims=True) for x in xs) / (len(xs) * size)
        inverse = lax.rsqrt(square + norm.eps)
        return tuple(act(x * (inverse * scale)) for x, scale in zip(xs, scales, strict=True))

    return jax.vjp(function, *xs)


def _sample(dyn: Any, out: Float[Array, "R sz"], noise: Float[Array, "R s"]) -> Float[Array, "R sz"]:
    """`Categorical.sample`, without cutting arrays: the class is the number of those that lie below the noise."""
    probs = mixed(dyn.group(out), dyn.kind.unimix)
    cdf = jnp.cumsum(stop_gradient(probs), -1)
    place = lax.broadcasted_iota(jnp.int32, cdf.shape, 2)
    below = (cdf <= noise[..., None] * jnp.max(cdf, -1, keepdims=True)) & (place < dyn.kind.classes - 1)
    sample = (place == jnp.sum(below.astype(jnp.int32), -1, keepdims=True)).astype(jnp.float32)
    return flat_stoch(straight_through(sample, probs) if dyn.kind.straight_through else sample)


def _sum(xs: Iterable[Array]) -> Array:
    return reduce(jnp.add, xs)


def _product(x: Float[Array, "R i"], weight: Float[Array, "i o"]) -> Float[Array, "R o"]:
    return jnp.dot(x.astype(weight.dtype), weight, preferred_element_type=jnp.float32)


def _pull(x: Float[Array, "R o"], weight: Float[Array, "i o"]) -> Float[Array, "R i"]:
    """The gradient of `_product` by its first factor."""
    x = x.astype(weight.dtype)
    return lax.dot_general(x, weight, (((1,), (1,)), ((), ())), preferred_element_type=jnp.float32)


def _read(ref: Any, *at: Any) -> Array:
    """The array that a reference holds there, in float32."""
    return ref[(*at, ...)].astype(jnp.float32)


def _cut(dyn: Any, ref: Any, *at: Any) -> Blocks:
    """`_read`, block by block of the last axis."""
    blocks, size, _ = dyn.core.gates.weight.shape
    every = (slice(None),) * (len(ref.shape) - len(at) - 1)
    return tuple(_read(ref, *at, *every, slice(g * size, (g + 1) * size)) for g in range(blocks))


def _write(ref: Any, t: Array, *blocks: Array) -> None:
    size = blocks[0].shape[-1]
    for g, block in enumerate(blocks):
        ref[t, :, g * size : (g + 1) * size] = block.astype(ref.dtype)
