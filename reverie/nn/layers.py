"""Layers: a few lines each, any leading batch shape, float32 parameters cast to the dtype of their input."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, PRNGKeyArray

from reverie.nn.init import Hidden, Output, drawn, truncated_normal
from reverie.nn.norm import LayerNorm, Norm, RMSNorm, to_rows

Act = Literal["silu", "elu", "relu", "linear"]
ACTIVATIONS: dict[Act, Callable[[Array], Array]] = {
    "silu": jax.nn.silu,
    "elu": jax.nn.elu,
    "relu": jax.nn.relu,
    "linear": lambda x: x,
}
# One over the root mean square of an activation whose input is a unit normal: what its weights are scaled by, so that
# the next layer gets a unit normal again. For ReLU the usual square root of two; for ELU it is
# (1/2 + e^2 Phi(-2) - 2 sqrt(e) Phi(-1) + 1/2)^(-1/2), the square of e^x - 1 integrated over the negative half.
GAINS: dict[Act, float] = {"silu": 1.676532, "elu": 1.245198, "relu": math.sqrt(2), "linear": 1.0}


class Style(NamedTuple):
    """The style of all layers of a network. The defaults are DreamerV3's, final version."""

    norm: Literal["rms", "layer", "none"] = "rms"  # of hidden units
    fan: Literal["in", "average"] = "in"  # initial variance: one over the inputs, or the mean of inputs and outputs
    act: Act = "silu"  # of hidden units, behind the norm
    init: Hidden = "paper"  # what initial weights are drawn from, where it is not what the paper says
    scale: float = 1.0  # of initial weights

    @property
    def bias(self) -> bool:
        """Whether layers that a norm follows have a bias. A LayerNorm has an offset of its own."""
        return self.norm != "layer"

    def norm_of(self, size: int) -> Norm:
        return {"none": eqx.nn.Identity, "rms": RMSNorm, "layer": LayerNorm}[self.norm](size)

    def weights(self, key: PRNGKeyArray, shape: tuple[int, ...], fans: tuple[int, int]) -> Array:
        """Initial weights of units with these numbers of inputs and outputs."""
        if self.init != "paper" and self.scale:
            return self.scale * drawn(self.init, key, shape, fans[0], GAINS[self.act])
        return truncated_normal(key, shape, fans[0] if self.fan == "in" else sum(fans) / 2, self.scale)

    @property
    def out(self) -> Style:
        """Gain of a layer that no activation follows."""
        return self._replace(act="linear")

    def output(self, scale: float, init: Output = "paper") -> Style:
        """The style of a last layer, with this scale, or with what `init` says instead."""
        if init == "paper":
            return self.out._replace(scale=scale)
        return self.out._replace(init="orthogonal" if init == "orthogonal" else "paper", scale=_SCALES[init])


_SCALES: dict[Output, float] = {"small": 0.01, "orthogonal": 1.0, "zero": 0.0}
FINAL = Style()
LANES = 16  # numbers of a CPU's vector unit
HALF = "BF16_BF16_F32"  # JAX's name of a product whose operands are bfloat16, and whose sums are float32


def add_bias(y: Float[Array, "*B o"], bias: Float[Array, " o"] | None) -> Float[Array, "*B o"]:
    """`y + bias` in the dtype of `y`, if there is one."""
    return y if bias is None else y + to_rows(bias.astype(y.dtype), y.shape)


def product(x: Float[Array, "*B i"], weight: Float[Array, "i o"]) -> Float[Array, "*B o"]:
    """`x W` in the dtype of `x`. On a CPU float32 operands are rounded where `jax.default_matmul_precision` says so by
    `HALF`, which XLA does not heed there."""
    weight = weight.astype(x.dtype)
    if jax.default_backend() != "cpu":
        return x @ weight
    asked = jax.config.jax_default_matmul_precision  # type: ignore[attr-defined]  # JAX does not declare its options
    half = asked == HALF and x.dtype == jnp.float32
    if x.ndim < 3 and not half:
        return x @ weight
    # XLA's gradient of a product with several leading axes transposes the larger operand on a CPU: five times the time.
    rows = x.reshape(-1, x.shape[-1])
    return (_half_product(rows, weight) if half else rows @ weight).reshape(*x.shape[:-1], -1)


@jax.custom_vjp
def _half_product(x: Float[Array, "n i"], weight: Float[Array, "i o"]) -> Float[Array, "n o"]:
    return _multiply(x.astype(jnp.bfloat16), weight.astype(jnp.bfloat16), (1, 0))


def _half_forward(x: Array, weight: Array) -> tuple[Array, tuple[Array, Array]]:
    half = weight.astype(jnp.bfloat16)
    return _multiply(x.astype(jnp.bfloat16), half, (1, 0)), (x, half)


def _half_backward(kept: tuple[Array, Array], gradient: Array) -> tuple[Array, Array]:
    """The gradient by the weight is no faster in bfloat16, so it is not rounded."""
    x, half = kept
    return _multiply(gradient.astype(jnp.bfloat16), half, (1, 1)), _multiply(x, gradient, (0, 0))


_half_product.defvjp(_half_forward, _half_backward)


def _multiply(a: Array, b: Array, axes: tuple[int, int]) -> Float[Array, "n o"]:
    """The product that sums over these axes, in float32."""
    return lax.dot_general(a, b, (((axes[0],), (axes[1],)), ((), ())), preferred_element_type=jnp.float32)


class Linear(eqx.Module):
    """`y = x W + b`."""

    weight: Float[Array, "i o"]
    bias: Float[Array, " o"] | None

    def __init__(self, inputs: int, outputs: int, *, key: PRNGKeyArray, bias: bool = True, style: Style = FINAL):
        self.weight = style.weights(key, (inputs, outputs), (inputs, outputs))
        self.bias = jnp.zeros(outputs, jnp.float32) if bias else None

    def __call__(self, x: Float[Array, "*B i"]) -> Float[Array, "*B o"]:
        return add_bias(product(x, self.weight), self.bias)


class BlockLinear(eqx.Module):
    """A linear layer with a block-diagonal matrix: block `g` of the input feeds block `g` of the output."""

    weight: Float[Array, "g i o"]
    bias: Float[Array, " go"] | None

    def __init__(
        self, inputs: int, outputs: int, blocks: int, *, key: PRNGKeyArray, bias: bool = True, style: Style = FINAL
    ):
        if inputs % blocks or outputs % blocks:
            raise ValueError(f"{inputs} inputs and {outputs} outputs must both be multiples of {blocks} blocks")
        # The reference takes the fan-in of the whole input, not of one block.
        self.weight = style.weights(key, (blocks, inputs // blocks, outputs // blocks), (inputs, outputs))
        self.bias = jnp.zeros(outputs, jnp.float32) if bias else None

    def __call__(self, x: Float[Array, "*B gi"]) -> Float[Array, "*B go"]:
        return self.map(lambda y: y, x)

    def map(self, f: Callable[..., Array], x: Float[Array, "*B gi"], *others: Array) -> Float[Array, "*B out"]:
        """`f(block of the product, block of every other argument)` for every block, side by side again."""
        blocks, _, outputs = self.weight.shape
        bias = None if self.bias is None else self.bias.astype(x.dtype).reshape(blocks, outputs)

        def one(weights: tuple[Array, Array | None], x: Array, *others: Array) -> Array:
            return f(add_bias(product(x, weights[0]), weights[1]), *others)

        return per_block(one, (self.weight.astype(x.dtype), bias), x, *others)


def per_block(f: Callable[..., Array], weights: Any, *xs: Float[Array, "*B gi"]) -> Float[Array, "*B go"]:
    """Applies `f(weights of a block, blocks of xs)` to every block of the last axes, and joins the results.

    Args:
      weights: pytree with a leading axis `G`.
      xs: arrays whose last axis is `G` blocks side by side.
    """
    blocks = len(jax.tree.leaves(weights)[0])
    if jax.default_backend() == "cpu":
        # XLA's batched product on the CPU costs four times as much as one plain product per block.
        split = [jnp.split(x, blocks, -1) for x in xs]
        pick = lambda g: jax.tree.map(lambda w: w[g], weights)
        return jnp.concatenate([f(pick(g), *(x[g] for x in split)) for g in range(blocks)], -1)
    by_block = [x.reshape(*x.shape[:-1], blocks, -1) for x in xs]
    y = jax.vmap(f, in_axes=(0, *[-2] * len(xs)), out_axes=-2)(weights, *by_block)
    return y.reshape(*y.shape[:-2], -1)


class Conv(eqx.Module):
    """2-D convolution with a kernel of at most 5 and same padding over `[..., H, W, C]`, and six ways to change the
    resolution with it: `pooled` and `upsampled` (odd kernels), `strided` and `transposed`, or, without any padding,
    `strided_inside` and `spread` (kernels of at most 6)."""

    weight: Float[Array, "k k i o"]
    bias: Float[Array, " o"] | None

    def __init__(
        self, inputs: int, outputs: int, kernel: int, *, key: PRNGKeyArray, bias: bool = True, style: Style = FINAL
    ):
        shape, area = (kernel, kernel, inputs, outputs), kernel * kernel
        self.weight = style.weights(key, shape, (area * inputs, area * outputs))
        self.bias = jnp.zeros(outputs, jnp.float32) if bias else None

    def __call__(self, x: Float[Array, "*B h w i"]) -> Float[Array, "*B h w o"]:
        return add_bias(convolve(x, self.weight), self.bias)

    def pooled(self, x: Float[Array, "*B h w i"]) -> Float[Array, "*B h2 w2 o"]:
        """The largest of every 2x2 block of `self(x)`."""
        *batch, h, w, c = x.shape
        inputs, outputs = self.weight.shape[-2:]
        if jax.default_backend() != "cpu" or (inputs >= LANES and outputs > LANES):
            y = self(x)
            return jnp.max(y.reshape(*batch, h // 2, 2, w // 2, 2, y.shape[-1]), (-4, -2))
        # Few channels leave the CPU's vector units idle. Every 2x2 block becomes one pixel with four times the
        # channels, on both sides: the same numbers from a 3x3 kernel, 1.4 times the arithmetic in less time.
        blocks = jnp.moveaxis(x.reshape(*batch, h // 2, 2, w // 2, 2, c), -4, -3)
        code = _block_code(len(self.weight), len(self.weight) // 2)
        kernel = jnp.einsum("tapk,ubql,klio->tuabipqo", code, code, self.weight)
        y = convolve(blocks.reshape(*batch, h // 2, w // 2, 4 * c), kernel.reshape(3, 3, 4 * c, -1))
        return add_bias(jnp.max(y.reshape(*y.shape[:-1], 4, -1), -2), self.bias)

    def upsampled(self, x: Float[Array, "*B h w i"]) -> Float[Array, "*B 2*h 2*w o"]:
        """`self` of `x` with every pixel as a 2x2 block.

        The four outputs of a block see the same 3x3 pixels of `x`, each with its own sums of the kernel: 9 taps
        instead of 25, and four times the channels.
        """
        return self._by_phases(x, _upsample_code(len(self.weight)))

    def strided(self, x: Float[Array, "*B h w i"]) -> Float[Array, "*B h2 w2 o"]:
        """Every second pixel of the convolution, along both axes."""
        return add_bias(convolve(x, self.weight, stride=2), self.bias)

    def transposed(self, x: Float[Array, "*B h w i"]) -> Float[Array, "*B 2*h 2*w o"]:
        """Mirrors `strided`: the convolution of `x` with zeros between its pixels, computed without the zeros."""
        return self._by_phases(x, _transpose_code(len(self.weight)))

    def strided_inside(self, x: Float[Array, "*B h w i"]) -> Float[Array, "*B h2 w2 o"]:
        """Every second pixel of the convolution, where the whole kernel lies in the image: n to (n - k) // 2 + 1."""
        return add_bias(convolve(x, self.weight, stride=2, padding="VALID"), self.bias)

    def spread(self, x: Float[Array, "*B h w i"]) -> Float[Array, "*B h2 w2 o"]:
        """Mirrors `strided_inside`: every pixel of `x` adds a whole kernel, two pixels from its neighbour's: n to
        2 (n - 1) + k."""
        size, (height, wide) = len(self.weight), x.shape[-3:-1]
        y = self._by_phases(x, _spread_code(size), padding=[(2, 2), (2, 2)])
        return y[..., : 2 * (height - 1) + size, : 2 * (wide - 1) + size, :]

    def _by_phases(
        self, x: Float[Array, "*B h w i"], code: np.ndarray, padding: Padding = "SAME"
    ) -> Float[Array, "*B h2 w2 o"]:
        """The four outputs of every pixel of `x` as channels of one 3x3 convolution, put in their places."""
        *batch, _, _, c = x.shape
        kernel = jnp.einsum("pkt,qlu,klio->tuipqo", code, code, self.weight)
        y = convolve(x, kernel.reshape(3, 3, c, -1), padding=padding)
        h, w = y.shape[-3:-1]
        y = jnp.moveaxis(y.reshape(*batch, h, w, 2, 2, -1), -3, -4)
        return add_bias(y.reshape(*batch, 2 * h, 2 * w, -1), self.bias)


Padding = str | list[tuple[int, int]]


def convolve(
    x: Float[Array, "*B h w i"], kernel: Float[Array, "k k i o"], stride: int = 1, padding: Padding = "SAME"
) -> Float[Array, "*B h2 w2 o"]:
    """Cross-correlation with zero padding in the dtype of `x`."""
    batch = x.shape[:-3]
    y = _convolve(x.reshape(math.prod(batch), *x.shape[-3:]), kernel.astype(x.dtype), stride, padding)
    return y.reshape(*batch, *y.shape[1:])


def _correlation(x: Array, kernel: Array, stride: int, padding: Padding) -> Array:
    return lax.conv_general_dilated(x, kernel, (stride, stride), padding, dimension_numbers=("NHWC", "HWIO", "NHWC"))


def _forward(x: Array, kernel: Array, stride: int, padding: Padding) -> tuple[Array, Callable[[Array], Any]]:
    return jax.vjp(lambda x, kernel: _correlation(x, kernel, stride, padding), _barrier(x), kernel)


def _backward(stride: int, padding: Padding, pullback: Callable[[Array], Any], gradient: Array) -> Any:
    return pullback(_barrier(gradient))


_convolve = jax.custom_vjp(_correlation, nondiff_argnums=(2, 3))
_convolve.defvjp(_forward, _backward)


def _barrier(x: Array) -> Array:
    """`x`, computed as a whole before XLA's CPU compiler goes on.

    The gradient of a convolution by its kernel needs copies of both operands with other axes last. The compiler fuses
    elementwise work into such copies, and then does it in their order, which misses the cache at every number: four
    times the time (docs/notebook.md). It fuses nothing through a conditional, whose condition holds for all that is
    finite.
    """
    if jax.default_backend() != "cpu":
        return x
    return lax.cond(x.ravel()[0] < jnp.inf, lambda x: x, lambda x: x * jnp.nan, x)


def _block_code(kernel: int, before: int) -> np.ndarray:
    """`[t, a, p, k]`: 1 where tap `k` of an output of phase `p` reads phase `a` of block `t - 1`, along one axis.
    `before`: pixels of padding."""
    code = np.zeros((3, 2, 2, kernel), np.float32)
    for phase, tap in np.ndindex(2, kernel):
        block, inner = divmod(phase + tap - before, 2)
        if block >= -1:
            code[block + 1, inner, phase, tap] = 1
    return code


def _upsample_code(kernel: int) -> np.ndarray:
    """`[p, k, t]`: 1 where tap `k` of an output of phase `p` falls on pixel `t - 1` of the small image."""
    return np.moveaxis(_block_code(kernel, kernel // 2).sum(1), 0, -1)


def _transpose_code(kernel: int) -> np.ndarray:
    """`[p, k, t]`: 1 where tap `k` of an output of phase `p` falls on pixel `t - 1`, and not on a zero between."""
    return np.moveaxis(_block_code(kernel, (kernel + 1) // 2)[:, 0], 0, -1)  # as `lax.conv_transpose` pads


def _spread_code(kernel: int) -> np.ndarray:
    """`[p, k, t]`: 1 where tap `k` of the kernel of pixel `t - 2`, seen from output block 0, falls on phase `p`."""
    return np.moveaxis(_block_code(kernel, kernel - 3)[:, 0, :, ::-1], 0, -1)


class MLP(eqx.Module):
    """`layers` times linear, norm, activation."""

    linears: tuple[Linear, ...]
    norms: tuple[Norm, ...]
    act: Act = eqx.field(static=True)

    def __init__(self, inputs: int, units: int, layers: int, *, key: PRNGKeyArray, style: Style = FINAL):
        widths = [inputs] + [units] * layers
        keys = jax.random.split(key, layers)
        self.linears = tuple(
            Linear(widths[i], widths[i + 1], key=keys[i], bias=style.bias, style=style) for i in range(layers)
        )
        self.norms = tuple(style.norm_of(units) for _ in range(layers))
        self.act = style.act

    def __call__(self, x: Float[Array, "*B i"]) -> Float[Array, "*B o"]:
        for linear, norm in zip(self.linears, self.norms, strict=True):
            x = ACTIVATIONS[self.act](norm(linear(x)))
        return x
