"""MuZero's model: what is needed to plan, and nothing else.

state_0 = representation(observation)      hidden, scaled to [0, 1]
state_k = dynamics(state_{k-1}, action)    reward_k is read from state_k
policy_k, value_k = prediction(state_k)

Two bodies for the first two: an MLP over any observation, and a residual tower for boards and pictures.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax
from jax.lax import stop_gradient
from jaxtyping import Array, Float, PRNGKeyArray

from reverie.envs.base import Spaces
from reverie.model.canvas import Size, canvas, extent, halve, halvings, images, onto
from reverie.model.encode import Coding, Encoder, flat, planar, vectors, width
from reverie.nn.layers import MLP, Conv, Linear
from reverie.nn.norm import RMSNorm

ROUGH = 1e-5  # least range of a hidden state, so that a constant one is no division by zero


class Hidden(NamedTuple):
    """A state of the model."""

    state: Array  # compute dtype, `[*B, D]` of an MLP or `[*B, H, W, C]` of a tower
    reward: Float[Array, "*B"]  # float32, of the step that led here; 0 for one that comes from an observation
    memory: Any = ()  # what else an algorithm carries along a path, leading axes `[*B]`; often nothing


def unit_range(x: Array, axes: int) -> Array:
    """`x` scaled to [0, 1] over its last `axes` axes (MuZero, App. G): every state has the same range as an action."""
    dims = tuple(range(-axes, 0))
    x32 = x.astype(jnp.float32)
    low, high = x32.min(dims, keepdims=True), x32.max(dims, keepdims=True)
    return ((x32 - low) / jnp.maximum(high - low, ROUGH)).astype(x.dtype)


def unit_normal(x: Array, axes: int) -> Array:
    """`x` moved and scaled to mean 0 and variance 1 over its last `axes` axes. In [0, 1] most numbers lie close
    together around some offset, and what tells two states apart is a small part of what the next layer reads."""
    dims = tuple(range(-axes, 0))
    x32 = x.astype(jnp.float32)
    off = x32 - x32.mean(dims, keepdims=True)
    return (off * lax.rsqrt(jnp.square(off).mean(dims, keepdims=True) + ROUGH)).astype(x.dtype)


Scaling = Literal["range", "normal"]
SCALINGS: dict[Scaling, Callable[[Array, int], Array]] = {"range": unit_range, "normal": unit_normal}


def halve_gradient(x: Array) -> Array:
    """`x` with half its gradient: at the start of every dynamics step, so that what arrives at the root does not grow
    with the unroll (MuZero, App. G)."""
    return 0.5 * x + 0.5 * stop_gradient(x)


class Vectors(eqx.Module):
    """States are vectors. Any observation: vectors through an MLP, pictures through convolutions (`Encoder`)."""

    enc: Encoder
    out: Linear
    trunk: MLP
    change: Linear
    axes: int = eqx.field(static=True)
    outputs: int = eqx.field(static=True)
    scaling: Scaling = eqx.field(static=True)

    def __init__(
        self, spaces: Spaces, actions: int, width: int, coding: Coding, *, scaling: Scaling, key: PRNGKeyArray
    ):
        keys = jax.random.split(key, 4)
        self.enc = Encoder(spaces, coding, key=keys[0])
        self.out = Linear(self.enc.outputs, width, key=keys[1])
        self.trunk = MLP(width + actions, coding.units, coding.layers, key=keys[2])
        self.change = Linear(coding.units, width, key=keys[3])
        self.axes, self.outputs, self.scaling = 1, width, scaling

    def represent(self, obs: Mapping[str, Array], dtype: jnp.dtype) -> Float[Array, "*B d"]:
        return SCALINGS[self.scaling](self.out(self.enc(obs, dtype)), 1)

    def advance(self, state: Float[Array, "*B d"], action: Float[Array, "*B a"]) -> Float[Array, "*B d"]:
        x = jnp.concatenate([state, action.astype(state.dtype)], -1)
        return SCALINGS[self.scaling](state + self.change(self.trunk(x)), 1)

    def read(self, state: Float[Array, "*B d"]) -> Float[Array, "*B f"]:
        """The input of the heads at a state."""
        return state


class LSTM(eqx.Module):
    """One step of a long short-term memory (Hochreiter & Schmidhuber 1997) over any leading batch shape."""

    gates: Linear

    def __init__(self, inputs: int, units: int, *, key: PRNGKeyArray):
        self.gates = Linear(inputs + units, 4 * units, key=key)

    def __call__(
        self, x: Float[Array, "*B i"], hidden: Float[Array, "*B u"], cell: Float[Array, "*B u"]
    ) -> tuple[Float[Array, "*B u"], Float[Array, "*B u"]]:
        """The next hidden state and cell."""
        forget, write, show, new = jnp.split(self.gates(jnp.concatenate([x, hidden], -1)), 4, -1)
        cell = jax.nn.sigmoid(forget + 1) * cell + jax.nn.sigmoid(write) * jnp.tanh(new)
        return jax.nn.sigmoid(show) * jnp.tanh(cell), cell


class Block(eqx.Module):
    """`x + conv(norm, ReLU, conv(norm, ReLU))`: a residual block before whose convolutions stands a norm."""

    convs: tuple[Conv, Conv]
    norms: tuple[RMSNorm, RMSNorm]

    def __init__(self, channels: int, *, key: PRNGKeyArray):
        keys = jax.random.split(key)
        self.convs = (Conv(channels, channels, 3, key=keys[0]), Conv(channels, channels, 3, key=keys[1]))
        self.norms = (RMSNorm(channels), RMSNorm(channels))

    def __call__(self, x: Float[Array, "*B h w c"]) -> Float[Array, "*B h w c"]:
        y = x
        for conv, norm in zip(self.convs, self.norms, strict=True):
            y = conv(jax.nn.relu(norm(y)))
        return x + y


class Towers(eqx.Module):
    """States are planes. Boards keep their height and width; pictures are resized where they must be (`canvas`), and
    halved on the way until a side would fall below 6.

    Vectors and discrete values become constant planes beside the pictures. An action is constant one-hot planes;
    where there are as many as the board has columns or cells, also a plane with that column or cell set.

    Args:
      blocks, channels: of each of the two towers.
      read_channels: what is left for the heads, by a 1x1 convolution.
    """

    first: Conv
    downs: tuple[Block, ...]
    blocks: tuple[Block, ...]
    action: Conv
    moves: tuple[Block, ...]
    squeeze: Conv
    squeeze_norm: RMSNorm
    spaces: tuple[tuple[str, Any], ...] = eqx.field(static=True)
    canvas: Size = eqx.field(static=True)
    axes: int = eqx.field(static=True)
    outputs: int = eqx.field(static=True)
    scaling: Scaling = eqx.field(static=True)
    places: tuple[int, ...] = eqx.field(static=True)  # of the actions on the board, () if they have none

    def __init__(
        self,
        spaces: Spaces,
        actions: int,
        *,
        blocks: int,
        channels: int,
        read_channels: int,
        scaling: Scaling = "range",
        key: PRNGKeyArray,
    ):
        pictures = planar(spaces)
        self.canvas = height, wide = tower_canvas(spaces)
        down = halve(min(height, wide), 6) if images(spaces) else 0
        inputs = sum(s.shape[2] for s in pictures.values()) + width(beside(spaces))
        keys = iter(jax.random.split(key, 3 + down + 2 * blocks))
        self.first = Conv(inputs, channels, 3, key=next(keys))
        self.downs = tuple(Block(channels, key=next(keys)) for _ in range(down))
        self.blocks = tuple(Block(channels, key=next(keys)) for _ in range(blocks))
        self.places = {wide: (1, wide), height * wide: (height, wide)}.get(actions, ()) if not images(spaces) else ()
        self.action = Conv(channels + actions + bool(self.places), channels, 3, key=next(keys))
        self.moves = tuple(Block(channels, key=next(keys)) for _ in range(blocks))
        self.squeeze = Conv(channels, read_channels, 1, key=next(keys))
        self.squeeze_norm = RMSNorm(read_channels)
        self.spaces, self.axes, self.scaling = tuple(sorted(spaces.items())), 3, scaling
        self.outputs = (height >> down) * (wide >> down) * read_channels

    def represent(self, obs: Mapping[str, Array], dtype: jnp.dtype) -> Float[Array, "*B h w c"]:
        spaces = dict(self.spaces)
        parts = []
        for key, space in planar(spaces).items():
            x = onto(obs[key].astype(dtype), self.canvas)
            parts.append(x / 255 - 0.5 if space.kind == "image" else x)
        if rest := beside(spaces):
            x = flat(rest, obs, squash=True).astype(dtype)
            shape = (*x.shape[:-1], *parts[0].shape[-3:-1], x.shape[-1])
            parts.append(jnp.broadcast_to(x[..., None, None, :], shape))
        x = self.first(jnp.concatenate(parts, -1))
        for block in self.downs:
            x = block(_pool(x))
        for block in self.blocks:
            x = block(x)
        return SCALINGS[self.scaling](x, 3)

    def advance(self, state: Float[Array, "*B h w c"], action: Float[Array, "*B a"]) -> Float[Array, "*B h w c"]:
        action = action.astype(state.dtype)
        planes = [action[..., None, None, :]]
        if self.places:
            planes.append(action.reshape(*action.shape[:-1], *self.places, 1))
        planes = [jnp.broadcast_to(x, (*state.shape[:-1], x.shape[-1])) for x in planes]
        x = state + self.action(jnp.concatenate([state, *planes], -1))
        for block in self.moves:
            x = block(x)
        return SCALINGS[self.scaling](x, 3)

    def read(self, state: Float[Array, "*B h w c"]) -> Float[Array, "*B f"]:
        x = jax.nn.relu(self.squeeze_norm(self.squeeze(state)))
        return x.reshape(*x.shape[:-3], -1)


def tower_canvas(spaces: Spaces) -> Size:
    """Height and width of a tower's planes before they are halved."""
    return canvas(planar(spaces), halvings(spaces)) if images(spaces) else extent(planar(spaces))


def beside(spaces: Spaces) -> Spaces:
    """The observations that do not lie on the grid."""
    return {k: s for k, s in vectors(spaces).items() if k not in planar(spaces)}


def _pool(x: Float[Array, "*B h w c"]) -> Float[Array, "*B h2 w2 c"]:
    """Means of 2x2 blocks."""
    *batch, high, wide, c = x.shape
    return x.reshape(*batch, high // 2, 2, wide // 2, 2, c).mean((-4, -2))
