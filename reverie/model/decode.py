"""From latents back to observations."""

from __future__ import annotations

import math
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from reverie.envs.base import Space, Spaces
from reverie.model.encode import image_resolution, images, vectors
from reverie.nn.dists import OneHot, Squared
from reverie.nn.layers import MLP, BlockLinear, Conv, Linear
from reverie.nn.norm import RMSNorm


class ImageDecoder(eqx.Module):
    """A coarse map from `deter` (block-linear) and `stoch` (MLP), then nearest upsampling and 5x5 convolutions."""

    from_deter: BlockLinear
    from_stoch: Linear
    stoch_norm: RMSNorm
    to_map: Linear
    map_norm: RMSNorm
    convs: tuple[Conv, ...]
    norms: tuple[RMSNorm, ...]
    map_shape: tuple[int, int, int] = eqx.field(static=True)

    def __init__(
        self,
        channels: int,
        resolution: tuple[int, int],
        *,
        deter: int,
        stoch: int,
        units: int,
        depths: tuple[int, ...],
        kernel: int,
        blocks: int,
        key: PRNGKeyArray,
    ):
        keys = jax.random.split(key, 3 + len(depths))
        height, wide = (side >> len(depths) for side in resolution)
        self.map_shape = (height, wide, depths[-1])
        size = math.prod(self.map_shape)
        self.from_deter = BlockLinear(deter, size, blocks, key=keys[0])
        self.from_stoch = Linear(stoch, 2 * units, key=keys[1])
        self.stoch_norm = RMSNorm(2 * units)
        self.to_map = Linear(2 * units, size, key=keys[2])
        self.map_norm = RMSNorm(depths[-1])
        widths = (*reversed(depths), channels)
        self.convs = tuple(Conv(widths[i], widths[i + 1], kernel, key=k) for i, k in enumerate(keys[3:]))
        self.norms = tuple(RMSNorm(d) for d in widths[1:-1])

    def __call__(self, deter: Float[Array, "*B d"], stoch: Float[Array, "*B sz"]) -> Float[Array, "*B h w c"]:
        """Pixels in [0, 1]."""
        batch = deter.shape[:-1]
        height, wide, depth = self.map_shape
        blocks = self.from_deter.weight.shape[0]
        # Every block of deter paints its own channels of the whole map.
        x = self.from_deter(deter).reshape(*batch, blocks, height, wide, depth // blocks)
        x = jnp.moveaxis(x, -4, -2).reshape(*batch, *self.map_shape)
        y = self.to_map(jax.nn.silu(self.stoch_norm(self.from_stoch(stoch))))
        x = jax.nn.silu(self.map_norm(x + y.reshape(*batch, *self.map_shape)))
        for conv, norm in zip(self.convs, self.norms, strict=False):
            x = jax.nn.silu(norm(conv.upsampled(x)))
        return jax.nn.sigmoid(self.convs[-1].upsampled(x).astype(jnp.float32))


class Decoder(eqx.Module):
    """One distribution per observation key: squared error of images and symlog vectors, categoricals of the rest."""

    mlp: MLP | None
    heads: dict[str, Linear]
    image: ImageDecoder | None
    spaces: tuple[tuple[str, Space], ...] = eqx.field(static=True)

    def __init__(
        self,
        spaces: Spaces,
        *,
        deter: int,
        stoch: int,
        units: int,
        layers: int,
        depths: tuple[int, ...],
        kernel: int,
        blocks: int,
        key: PRNGKeyArray,
    ):
        mlp_key, head_key, image_key = jax.random.split(key, 3)
        vector_spaces, image_spaces = vectors(spaces), images(spaces)
        self.spaces = tuple(sorted(spaces.items()))
        self.mlp, self.heads, self.image = None, {}, None
        if vector_spaces:
            self.mlp = MLP(deter + stoch, units, layers, key=mlp_key)
            keys = jax.random.split(head_key, len(vector_spaces))
            self.heads = {
                name: Linear(units, space.width, key=k)
                for (name, space), k in zip(vector_spaces.items(), keys, strict=True)
            }
        if image_spaces:
            self.image = ImageDecoder(
                sum(s.shape[2] for s in image_spaces.values()),
                image_resolution(image_spaces, len(depths)),
                deter=deter,
                stoch=stoch,
                units=units,
                depths=depths,
                kernel=kernel,
                blocks=blocks,
                key=image_key,
            )

    def __call__(self, deter: Float[Array, "*B d"], stoch: Float[Array, "*B sz"]) -> dict[str, Any]:
        """A distribution with `.loss(target) -> [*B]` for every observation key; images want targets in [0, 1]."""
        spaces = dict(self.spaces)
        out: dict[str, Any] = {}
        if self.mlp is not None:
            x = self.mlp(jnp.concatenate([stoch, deter], -1))
            for name, space in vectors(spaces).items():
                y = self.heads[name](x)
                if space.kind == "discrete":
                    out[name] = OneHot(y, space.classes, space.shape)
                else:
                    out[name] = Squared(y.reshape(*y.shape[:-1], *space.shape), len(space.shape), squash=True)
        if self.image is not None:
            pixels, start = self.image(deter, stoch), 0
            for name, space in images(spaces).items():
                out[name] = Squared(pixels[..., start : start + space.shape[2]], 3)
                start += space.shape[2]
        return out
