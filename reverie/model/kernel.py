"""The observed steps of an RSSM as one GPU kernel each way: `fused`, a `Loop` beside `rssm.scan`.

A scan makes 64 x (107 + 68) kernels of an update whose 16 rows give a GPU next to nothing to do: at 2 us each 22 ms,
whatever the arithmetic. Here a kernel takes all steps by itself. Its arithmetic, for size 1m (deter 512 in 8 blocks,
64 hidden units, 32 x 4 codes):

    weights of a step         276,000: 0.55 MB in bfloat16, 1.1 MB in float32; 72,000 for size 200k
    an SM has                 0.23 MB of shared memory and cache, as many registers, and about 110 GB/s from L2
    so a step's weights take  5 us in bfloat16, 10 us in float32, from L2, where they stay from step to step
    state and pre-activations 16 x (512 + 512 + 1536) numbers: 64 to 160 registers a thread

A program of the grid is `ROWS` sequences, the least that a tensor core's product has, from their first step to their
last: no step waits for another program, which Triton has no word for. The state stays in registers, as a tuple of the
GRU's blocks, since values cannot be cut there; weights are read block by block. Four times as fast at most would be a
cluster of 8 SMs, a block of the GRU in the shared memory of each, at three barriers a step. From size 12m on the state
alone does not fit (2,048 numbers a row), and a scan has enough to do: it is for 200k and 1m.

    forward    kernel, t = 1 .. T: the states and the posterior's outputs; nothing else is kept
    backward   kernel, t = T .. 1: every step is made again for its pullback; the gradient of every state
               then all T x B steps at once, with these: gradients by weights and inputs, one product for each layer

No GPU has run it yet. It becomes Triton's code (`tests/model/test_kernel.py` lowers it for CUDA); on a CPU Pallas
interprets it, for tests.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton
from jax.lax import stop_gradient
from jaxtyping import Array, Float

from reverie.model.dynamics import Latent, flat_stoch
from reverie.model.rssm import RSSM, BlockGRU, Inputs, blend, scan
from reverie.model.stoch import Categorical
from reverie.nn.dists import mixed, straight_through
from reverie.nn.layers import ACTIVATIONS
from reverie.nn.norm import RMSNorm

ROWS = 16  # sequences of a program
WARPS = 8
Blocks = tuple[Array, ...]  # float32 `[R, n]`, of the G blocks of deter
State = tuple[Blocks, Array]  # a deter in blocks and a flat stoch, `[R, SZ]`, or their gradients; float32


class Weights(NamedTuple):
    """All that every step reads: matrices in the compute dtype, the rest in float32; references in a kernel."""

    from_deter: Any  # [D, U]
    from_stoch: Any  # [SZ, U]
    shared: Any  # [2, U, D], from both to the hidden layer of all blocks
    own: Any  # [G, n, n], from a block of deter to its own
    gates: Any  # [G, n, 3n]
    post_hidden: Any  # [D, U]
    post_out: Any  # [U, SZ]
    deter_bias: Any  # [U]
    stoch_bias: Any  # [U]
    gates_bias: Any  # [G, 3n]
    out_bias: Any  # [SZ]
    deter_scale: Any  # [U]
    stoch_scale: Any  # [U]
    hidden_scale: Any  # [D]
    post_scale: Any  # [U]
    first_deter: Any  # [D], the state before an episode
    first_stoch: Any  # [SZ]


def fused(dyn: RSSM, start: Latent, first: Latent, inputs: Inputs) -> tuple[Latent, Float[Array, "T B s p"]]:
    """The `Loop` of one kernel. It computes in float32 but for the operands of products; samples are those of a scan
    with the same noise, but for rounding. A single step is no loop and stays a scan."""
    assert isinstance(dyn.core, BlockGRU) and isinstance(dyn.kind, Categorical), dyn
    steps, batch = inputs.reset.shape
    if steps == 1:
        return scan(dyn, start, first, inputs)
    more = -batch % ROWS
    fill = lambda axis, x: jnp.pad(x, [(0, more if i == axis else 0) for i in range(x.ndim)])
    start, inputs = jax.tree.map(partial(fill, 0), start), jax.tree.map(partial(fill, 1), inputs)
    return jax.tree.map(lambda x: x[:, :batch], _loop(dyn, start, first, inputs))


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
    has `ROWS` of the sequences."""

    def spec(x: Any) -> pl.BlockSpec:
        return pl.BlockSpec((x.shape[0], ROWS, *x.shape[2:]), lambda program: (0, program, *[0] * (x.ndim - 2)))

    weights = _weights(dyn, first)
    return pl.pallas_call(
        partial(kernel, dyn),
        out_shape=shapes,
        grid=(shapes[0].shape[1] // ROWS,),
        in_specs=(jax.tree.map(lambda _: pl.BlockSpec(), weights), *jax.tree.map(spec, known)),
        out_specs=jax.tree.map(spec, shapes),
        interpret=jax.default_backend() == "cpu",
        compiler_params=triton.CompilerParams(num_warps=WARPS, num_stages=1),
    )(weights, *known)


def _weights(dyn: RSSM, first: Latent) -> Weights:
    core, dtype = dyn.core, first.deter.dtype
    blocks, size, _ = core.gates.weight.shape
    from_deter, from_stoch, _ = core.shared_weights()
    matrices = (
        core.from_deter.weight,
        core.from_stoch.weight,
        jnp.stack([from_deter, from_stoch]),
        core.hidden.weight[:, :size],
        core.gates.weight,
        dyn.post_hidden.weight[: dyn.deter],
        dyn.post_out.weight,
    )
    biases = (core.from_deter.bias, core.from_stoch.bias, core.gates.bias.reshape(blocks, -1), dyn.post_out.bias)
    scales = (norm.scale for norm in (core.deter_norm, core.stoch_norm, core.hidden_norm, dyn.post_norm))
    return Weights(*(x.astype(dtype) for x in matrices), *biases, *scales, first.deter, flat_stoch(first.stoch))


# ------------------------------------------------------------------------------------------------------------- kernels


def _forward_kernel(dyn: RSSM, w: Weights, start: Any, inputs: Inputs, *out: Any) -> None:
    to_deter, to_stoch, to_out = out
    # As the scan and the other kernel have it: rounded to the dtype of states.
    rounded = lambda x: x.astype(to_deter.dtype).astype(jnp.float32)

    def turn(t: Array, state: State) -> State:
        (deter, stoch, logits), _ = _step(dyn, w, state, inputs, t)
        _write(to_deter, t, *deter)
        _write(to_stoch, t, stoch)
        _write(to_out, t, logits)
        return tuple(map(rounded, deter)), rounded(stoch)

    lax.fori_loop(0, to_deter.shape[0], turn, (_cut(w, start[0], 0), _read(start[1], 0)))


def _backward_kernel(dyn: RSSM, w: Weights, before: Any, inputs: Inputs, gradient: Any, *out: Any) -> None:
    to_deter, to_stoch = out
    steps, rows, codes = to_stoch.shape
    blocks, size, _ = w.own.shape

    def turn(i: Array, later: State) -> State:
        t = steps - 1 - i
        _, pull = _step(dyn, w, (_cut(w, before[0], t), _read(before[1], t)), inputs, t)
        deter, stoch = jax.tree.map(jnp.add, (_cut(w, gradient[0], t), _read(gradient[1], t)), later)
        _write(to_deter, t, *deter)
        _write(to_stoch, t, stoch)
        return pull(deter, stoch, _read(gradient[2], t))

    nothing = (jnp.zeros((rows, size), jnp.float32),) * blocks, jnp.zeros((rows, codes), jnp.float32)
    lax.fori_loop(0, steps, turn, nothing)


def _step(
    dyn: RSSM, w: Weights, state: State, inputs: Inputs, t: Array
) -> tuple[tuple[Blocks, Array, Array], Callable[[Blocks, Array, Array], State]]:
    """`RSSM.step`, and its pullback: the gradient of the state before by those of deter, stoch and output."""
    core, (blocks, size, _) = dyn.core, w.own.shape
    at = [slice(g * size, (g + 1) * size) for g in range(blocks)]
    units = lambda norm, scales, *xs: jax.vjp(partial(_units, ACTIVATIONS[dyn.act], norm.eps, scales), *xs)
    reset = inputs.reset[t][:, None]
    fresh = lambda x, first: jnp.where(reset, first[None], x)
    deter = tuple(map(fresh, state[0], _cut(w, w.first_deter)))
    stoch = fresh(state[1], _read(w.first_stoch))

    # Transition
    x0 = sum(_product(d, w.from_deter[c]) for d, c in zip(deter, at, strict=True)) + w.deter_bias[...][None]
    x1 = _product(stoch, w.from_stoch[...]) + w.stoch_bias[...][None]
    (x0,), pull_x0 = units(core.deter_norm, (w.deter_scale[...],), x0)
    (x1,), pull_x1 = units(core.stoch_norm, (w.stoch_scale[...],), x1)
    drive, scales = _cut(w, inputs.drive, t), _cut(w, w.hidden_scale)
    shared = lambda c: _product(x0, w.shared[0, :, c]) + _product(x1, w.shared[1, :, c])
    hidden = [shared(at[g]) + _product(deter[g], w.own[g]) + drive[g] for g in range(blocks)]
    hidden, pull_hidden = units(core.hidden_norm, scales, *hidden)
    gate = lambda g, c: _product(hidden[g], w.gates[g, :, c]) + w.gates_bias[g, c][None]
    gates = [[gate(g, c) for c in at[:3]] for g in range(blocks)]
    deter, pull_gates = jax.vjp(lambda gates, deter: tuple(map(lambda x, d: blend(*x, d), gates, deter)), gates, deter)

    # Posterior
    x2 = sum(_product(d, w.post_hidden[c]) for d, c in zip(deter, at, strict=True)) + _read(inputs.seen, t)
    (x2,), pull_x2 = units(dyn.post_norm, (w.post_scale[...],), x2)
    out = _product(x2, w.post_out[...]) + w.out_bias[...][None]
    stoch, pull_stoch = jax.vjp(lambda out: _sample(dyn, out, inputs.noise[t]), out)

    def pull(by_deter: Blocks, by_stoch: Array, by_out: Array) -> State:
        by_out = by_out + pull_stoch(by_stoch)[0]
        (by_seen,) = pull_x2((_transposed(by_out, w.post_out[...]),))
        by_deter = tuple(x + _transposed(by_seen, w.post_hidden[c]) for x, c in zip(by_deter, at, strict=True))
        by_gates, by_state = pull_gates(by_deter)
        gate = lambda g: sum(_transposed(x, w.gates[g, :, c]) for x, c in zip(by_gates[g], at, strict=False))
        by_hidden = pull_hidden(tuple(map(gate, range(blocks))))
        shared = lambda i: sum(_transposed(x, w.shared[i, :, c]) for x, c in zip(by_hidden, at, strict=True))
        (by_x0,), (by_x1,) = pull_x0((shared(0),)), pull_x1((shared(1),))
        own = lambda g: _transposed(by_hidden[g], w.own[g]) + _transposed(by_x0, w.from_deter[at[g]])
        keep = lambda x: jnp.where(reset, 0.0, x)
        by_state = tuple(keep(by_state[g] + own(g)) for g in range(blocks))
        return by_state, keep(_transposed(by_x1, w.from_stoch[...]))

    return (deter, stoch, out), pull


def _units(act: Callable[[Array], Array], eps: float, scales: Blocks, *xs: Array) -> Blocks:
    """`RMSNorm` of blocks side by side, and the activation."""
    square = sum(jnp.sum(x * x, -1, keepdims=True) for x in xs) / sum(x.shape[-1] for x in xs)
    inverse = lax.rsqrt(square + eps)
    return tuple(act(x * (inverse * scale[None])) for x, scale in zip(xs, scales, strict=True))


def _sample(dyn: RSSM, out: Float[Array, "R sz"], noise: Float[Array, "R s"]) -> Float[Array, "R sz"]:
    """`Categorical.sample`, without cutting arrays: the class is the number of those that lie below the noise."""
    probs = mixed(dyn.group(out), dyn.kind.unimix)
    cdf = jnp.cumsum(stop_gradient(probs), -1)
    place = lax.broadcasted_iota(jnp.int32, cdf.shape, 2)
    below = (cdf <= noise[..., None] * jnp.max(cdf, -1, keepdims=True)) & (place < dyn.kind.classes - 1)
    sample = (place == jnp.sum(below.astype(jnp.int32), -1, keepdims=True)).astype(jnp.float32)
    return flat_stoch(straight_through(sample, probs) if dyn.kind.straight_through else sample)


def _product(x: Float[Array, "R i"], weight: Float[Array, "i o"]) -> Float[Array, "R o"]:
    return jnp.dot(x.astype(weight.dtype), weight, preferred_element_type=jnp.float32)


def _transposed(x: Float[Array, "R o"], weight: Float[Array, "i o"]) -> Float[Array, "R i"]:
    x = x.astype(weight.dtype)
    return lax.dot_general(x, weight, (((1,), (1,)), ((), ())), preferred_element_type=jnp.float32)


def _read(ref: Any, *at: Any) -> Array:
    """What a reference holds there, in float32."""
    return ref[(*at, ...)].astype(jnp.float32)


def _cut(w: Weights, ref: Any, *at: Any) -> Blocks:
    """`_read`, block by block of the last axis."""
    blocks, size, _ = w.own.shape
    every = (slice(None),) * (len(ref.shape) - len(at) - 1)
    return tuple(_read(ref, *at, *every, slice(g * size, (g + 1) * size)) for g in range(blocks))


def _write(ref: Any, t: Array, *blocks: Array) -> None:
    size = blocks[0].shape[-1]
    for g, block in enumerate(blocks):
        ref[t, :, g * size : (g + 1) * size] = block.astype(ref.dtype)
