"""From latents back to observations."""

from __future__ import annotations

import math
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from reverie.envs.base import Space, Spaces
from reverie.model.canvas import Canvas, Size, canvas, images
from reverie.model.encode import Coding, squash_of, written
from reverie.nn.dists import Gaussian, OneHot, SquaredError
from reverie.nn.layers import ACTIVATIONS, MLP, BlockLinear, Conv, Linear, Style
from reverie.nn.norm import Norm
from reverie.nn.transforms import SYMLOG_PIXELS

Shape = tuple[int, int, int]  # height, width and channels
KERNELS = (5, 5, 6, 6)  # of the transposed convolutions from one pixel to 64 x 64


class ImageDecoder(eqx.Module):
    """A coarse map from `deter` (block-linear) and `stoch` (MLP), then nearest upsampling and convolutions."""

    from_deter: BlockLinear
    from_stoch: Linear
    stoch_norm: Norm
    to_map: Linear
    map_norm: Norm
    convs: tuple[Conv, ...]
    norms: tuple[Norm, ...]
    map_shape: Shape = eqx.field(static=True)
    coding: Coding = eqx.field(static=True)

    def __init__(
        self, shape: Shape, coding: Coding, *, deter: int, stoch: int, units: int, blocks: int, key: PRNGKeyArray
    ):
        depths, style = coding.depths, coding.painter
        keys, bias = jax.random.split(key, 3 + len(depths)), style.bias
        self.map_shape, self.coding = coarse(shape, depths), coding
        size = math.prod(self.map_shape)
        self.from_deter = BlockLinear(deter, size, blocks, key=keys[0], bias=bias, style=style)
        self.from_stoch = Linear(stoch, 2 * units, key=keys[1], bias=bias, style=style)
        self.stoch_norm = style.norm_of(2 * units)
        self.to_map = Linear(2 * units, size, key=keys[2], bias=bias, style=style)
        self.map_norm = style.norm_of(depths[-1])
        widths, kernels = (*reversed(depths), shape[-1]), (coding.kernel,) * len(depths)
        self.convs, self.norms = mirror(widths, kernels, list(keys[3:]), style, bias)

    def __call__(self, deter: Float[Array, "*B d"], stoch: Float[Array, "*B sz"]) -> Float[Array, "*B h w c"]:
        """Brightness of pixels."""
        batch, act = deter.shape[:-1], ACTIVATIONS[self.coding.painter.act]
        height, wide, depth = self.map_shape
        blocks = self.from_deter.weight.shape[0]
        # Every block of deter paints its own channels of the whole map.
        x = self.from_deter(deter).reshape(*batch, blocks, height, wide, depth // blocks)
        x = jnp.moveaxis(x, -4, -2).reshape(*batch, *self.map_shape)
        y = self.to_map(act(self.stoch_norm(self.from_stoch(stoch))))
        x = act(self.map_norm(x + y.reshape(*batch, *self.map_shape)))
        return paint(x, self.convs, self.norms, self.coding)


class TransposedDecoder(eqx.Module):
    """A coarse map from the whole latent by one linear layer, then transposed convolutions: the mirror of an encoder
    with strides (reference `nets.py@8fa35f8: ImageDecoderResnet` without residual blocks). The mirror of strides
    `inside` the image has no padding, and begins with a single pixel: 1, 5, 13, 30, 64 (DreamerV1 and V2)."""

    to_map: Linear
    convs: tuple[Conv, ...]
    norms: tuple[Norm, ...]
    map_shape: Shape = eqx.field(static=True)
    coding: Coding = eqx.field(static=True)

    def __init__(self, shape: Shape, coding: Coding, *, features: int, key: PRNGKeyArray):
        depths, style, inside = coding.depths, coding.painter, coding.convolutions == "inside"
        map_key, *keys = jax.random.split(key, 1 + len(depths))
        self.coding, self.map_shape = coding, (1, 1, 4 * depths[-1]) if inside else coarse(shape, depths)
        self.to_map = Linear(features, math.prod(self.map_shape), key=map_key, style=style)
        widths = (self.map_shape[-1], *depths[-2::-1], shape[-1])
        kernels = KERNELS if inside else (coding.kernel,) * len(depths)
        self.convs, self.norms = mirror(widths, kernels, keys, style, bias=inside or style.bias)

    def __call__(self, deter: Float[Array, "*B d"], stoch: Float[Array, "*B sz"]) -> Float[Array, "*B h w c"]:
        """Brightness of pixels."""
        x = self.to_map(jnp.concatenate([stoch, deter], -1))
        return paint(x.reshape(*x.shape[:-1], *self.map_shape), self.convs, self.norms, self.coding)


def paint(
    x: Float[Array, "*B h w c"], convs: tuple[Conv, ...], norms: tuple[Norm, ...], coding: Coding
) -> Float[Array, "*B H W o"]:
    """Brightness of pixels, float32, from a coarse map that every convolution enlarges."""
    enlarge = {"pool": Conv.upsampled, "stride": Conv.transposed, "inside": Conv.spread}[coding.convolutions]
    for conv, norm in zip(convs, norms, strict=False):
        x = ACTIVATIONS[coding.painter.act](norm(enlarge(conv, x)))
    x = enlarge(convs[-1], x).astype(jnp.float32)
    return jax.nn.sigmoid(x) if coding.pixels == "sigmoid" else x + 0.5


def coarse(shape: Shape, depths: tuple[int, ...]) -> Shape:
    """Shape of the smallest map of an image: after as many halvings as there are depths."""
    return shape[0] >> len(depths), shape[1] >> len(depths), depths[-1]


def mirror(
    widths: tuple[int, ...], kernels: tuple[int, ...], keys: list[PRNGKeyArray], style: Style, bias: bool
) -> tuple[tuple[Conv, ...], tuple[Norm, ...]]:
    """Convolutions from each of these numbers of channels to the next, and the norms behind all of them but the last,
    which always has a `bias`."""
    last = len(kernels) - 1
    convs = tuple(
        Conv(widths[i], widths[i + 1], kernel, key=key, bias=bias or i == last, style=style)
        for i, (kernel, key) in enumerate(zip(kernels, keys, strict=True))
    )
    return convs, tuple(style.norm_of(d) for d in widths[1:-1])


class Decoder(eqx.Module):
    """One distribution per observation key: squared error of images and symlog vectors, categoricals of the rest.
    Planes are vectors that are not squashed, targets are vectors; the rules of a game are not decoded.

    Args:
      coding: of the encoder, of which this is the mirror; targets are squashed as its inputs are.
      map_units: of the layer from stoch to the coarse map of an image, before it is doubled.
      blocks: of the layer from deter to the coarse map.
    """

    mlp: MLP | None
    heads: dict[str, Linear]
    image: ImageDecoder | TransposedDecoder | None
    spaces: tuple[tuple[str, Space], ...] = eqx.field(static=True)
    coding: Coding = eqx.field(static=True)
    canvas: Size = eqx.field(static=True)  # that images are painted on; (0, 0) without any

    def __init__(
        self,
        spaces: Spaces,
        coding: Coding,
        *,
        deter: int,
        stoch: int,
        blocks: int,
        key: PRNGKeyArray,
        map_units: int | None = None,
    ):
        units, style = coding.units, coding.style
        mlp_key, head_key, image_key = jax.random.split(key, 3)
        vector_spaces, image_spaces = written(spaces), images(spaces)
        self.spaces, self.coding = tuple(sorted(spaces.items())), coding
        self.mlp, self.heads, self.image, self.canvas = None, {}, None, (0, 0)
        if vector_spaces:
            self.mlp = MLP(deter + stoch, units, coding.layers, key=mlp_key, style=style)
            keys = jax.random.split(head_key, len(vector_spaces))
            self.heads = {
                name: Linear(units, space.width, key=k, style=style.out)
                for (name, space), k in zip(vector_spaces.items(), keys, strict=True)
            }
        if image_spaces:
            self.canvas = canvas(image_spaces, len(coding.depths), coding.convolutions)
            shape = (*self.canvas, sum(s.shape[2] for s in image_spaces.values()))
            if coding.convolutions == "pool":
                widths: dict[str, Any] = {"deter": deter, "stoch": stoch, "units": map_units or units, "blocks": blocks}
                self.image = ImageDecoder(shape, coding, **widths, key=image_key)
            else:
                self.image = TransposedDecoder(shape, coding, features=deter + stoch, key=image_key)

    def __call__(self, deter: Float[Array, "*B d"], stoch: Float[Array, "*B sz"]) -> dict[str, Any]:
        """A distribution with `.loss(target) -> [*B]` for every observation key; images want targets in [0, 1]."""
        spaces = dict(self.spaces)
        out: dict[str, Any] = {}
        if self.mlp is not None:
            x = self.mlp(jnp.concatenate([stoch, deter], -1))
            for name, space in written(spaces).items():
                y = self.heads[name](x)
                if space.kind == "discrete":
                    out[name] = OneHot(y, space.classes, space.shape)
                else:
                    squash = None if space.kind == "planes" else squash_of(space, self.coding.symlog_vectors)
                    out[name] = SquaredError(y.reshape(*y.shape[:-1], *space.shape), len(space.shape), squash)
        if self.image is not None:
            pixels, start = self.image(deter, stoch), 0
            picture = SquaredError if self.coding.image_loss == "squared" else Gaussian
            for name, space in images(spaces).items():
                part = pixels[..., start : start + space.shape[2]]
                canvas_dist = picture(part, 3, SYMLOG_PIXELS if self.coding.symlog_images else None)
                height, wide, _ = space.shape
                fits = (height, wide) == self.canvas
                out[name] = canvas_dist if fits else Canvas(canvas_dist, self.canvas, (height, wide))
                start += space.shape[2]
        return out
