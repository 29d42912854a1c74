"""Observations and actions as vectors: the flat code of a dict of spaces, and the encoder networks."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from reverie.envs.base import UNSEEN, Space, Spaces
from reverie.nn.layers import ACTIVATIONS, FINAL, MLP, Act, Conv, Style
from reverie.nn.norm import Norm
from reverie.nn.transforms import SYMLOG_PIXELS, symlog

Convolutions = Literal["pool", "stride", "inside"]
INSIDE = 64  # side of the images that four strides without padding, and their mirror, fit


def images(spaces: Spaces) -> Spaces:
    return {k: s for k, s in sorted(spaces.items()) if s.kind == "image"}


def planar(spaces: Spaces) -> Spaces:
    """What lies on a grid: images, and the planes of a board."""
    return {k: s for k, s in sorted(spaces.items()) if s.kind in ("image", "planes") and len(s.shape) == 3}


def boards(spaces: Spaces) -> Spaces:
    """What lies on a grid and is no image."""
    return {k: s for k, s in planar(spaces).items() if s.kind == "planes"}


def vectors(spaces: Spaces) -> Spaces:
    """Everything that is seen and is no image: float vectors, discrete values and planes, of any shape."""
    return {k: s for k, s in sorted(spaces.items()) if s.kind != "image" and s.kind not in UNSEEN}


def written(spaces: Spaces) -> Spaces:
    """What a decoder predicts through an MLP: `vectors`, and targets that are not seen."""
    return {k: s for k, s in sorted(spaces.items()) if s.kind == "target"} | vectors(spaces)


def width(spaces: Spaces) -> int:
    """Length of `flat` of these spaces."""
    return sum(s.width for s in spaces.values())


def one_hots(space: Space, value: Array) -> Float[Array, "*B width"]:
    """The one-hot codes of all elements of a discrete value, side by side."""
    batch = value.shape[: value.ndim - len(space.shape)]
    value = value.reshape(*batch, len(space.classes))
    if len(set(space.classes)) == 1:
        hot = jax.nn.one_hot(value, space.classes[0], dtype=jnp.float32)
        return hot.reshape(*batch, space.width)
    parts = [jax.nn.one_hot(value[..., i], n, dtype=jnp.float32) for i, n in enumerate(space.classes)]
    return jnp.concatenate(parts, -1)


def flat(spaces: Spaces, values: Mapping[str, Array], squash: bool = False) -> Float[Array, "*B width"]:
    """A dict of vectors, discrete values and planes as one float32 vector, keys in sorted order.

    Args:
      spaces: neither images nor rules.
      values: arrays `[*B, *shape]` for every key of `spaces`; a discrete one may also be its own code, float
        `[*B, width]`, which can have a gradient.
      squash: apply symlog to the float vectors; planes are 0 and 1 already.
    """
    parts = []
    for key, space in sorted(spaces.items()):
        value = values[key]
        if space.kind == "discrete":
            coded = jnp.issubdtype(value.dtype, jnp.floating)
            parts.append(value.astype(jnp.float32) if coded else one_hots(space, value))
        else:
            batch = value.shape[: value.ndim - len(space.shape)]
            value = value.astype(jnp.float32).reshape(*batch, space.width)
            parts.append(symlog(value) if squash and space.kind == "vector" else value)
    return jnp.concatenate(parts, -1)


def unflat(spaces: Spaces, code: Float[Array, "*B width"]) -> dict[str, Array]:
    """The dict of vectors and discrete values whose `flat` (not squashed) is `code`."""
    values, at = {}, 0
    for key, space in sorted(spaces.items()):
        part = code[..., at : at + space.width]
        at += space.width
        batch = part.shape[:-1]
        if space.kind == "discrete":
            ends = np.cumsum(space.classes)
            chosen = [jnp.argmax(x, -1) for x in jnp.split(part, ends[:-1], -1)]
            values[key] = jnp.stack(chosen, -1).reshape(*batch, *space.shape).astype(jnp.int32)
        else:
            values[key] = part.reshape(*batch, *space.shape)
    return values


def image_resolution(spaces: Spaces, stages: int, convolutions: Convolutions = "pool") -> tuple[int, int]:
    """The common height and width of the images, checked against what `stages` halvings can take."""
    found = {s.shape[:2] for s in spaces.values()}
    if len(found) > 1:
        sizes = {k: s.shape for k, s in spaces.items()}
        raise ValueError(f"images must share height and width, got {sizes}; resize them, e.g. --image-size 64")
    height, wide = found.pop()
    if not stages:
        raise ValueError(f"images of {height} x {wide} are too small to be halved; enlarge them, e.g. --image-size 64")
    if convolutions == "inside":
        if (height, wide) != (INSIDE, INSIDE):
            raise ValueError(
                f"images must be {INSIDE} x {INSIDE} for convolutions without padding, got {height} x {wide};"
                f" resize them: --image-size {INSIDE}"
            )
        return height, wide
    factor = 2**stages
    if any(side % factor or not 3 <= side // factor <= 16 for side in (height, wide)):
        raise ValueError(
            f"images of {height} x {wide} cannot be halved {stages} times down to 3..16 pixels a side;"
            f" resize them, e.g. --image-size 64 (sides must be multiples of {factor}, {3 * factor} to {16 * factor})"
        )
    return height, wide


def halvings(spaces: Spaces, least: int = 4) -> int:
    """How often the images of these spaces can be halved before a side falls below `least`; 0 without images."""
    sides = [side for space in images(spaces).values() for side in space.shape[:2]]
    return max(0, int(math.log2(min(sides) / least))) if sides else 0


class Encoder(eqx.Module):
    """Vectors through an MLP, images through convolutions; the tokens are both, side by side.

    Images are scaled to [-0.5, 0.5] and concatenated on channels; every stage is a convolution, a norm over channels
    and an activation, and halves the resolution: by 2x2 max-pooling in the final DreamerV3, by a stride of two in that
    of 2023, by a stride without padding in V1 and V2.

    Args:
      units, layers: of the MLP.
      depths: channels after each stage.
      convolutions: how a stage halves.
      symlog_vectors: whether vectors are squashed first.
      symlog_images: whether brightness is (see `SYMLOG_PIXELS`).
      style: of the MLP, and of the convolutions unless `image_act` says otherwise (V1: ReLU).
    """

    mlp: MLP | None
    convs: tuple[Conv, ...]
    norms: tuple[Norm, ...]
    spaces: tuple[tuple[str, Space], ...] = eqx.field(static=True)
    outputs: int = eqx.field(static=True)
    convolutions: Convolutions = eqx.field(static=True)
    symlog_vectors: bool = eqx.field(static=True)
    symlog_images: bool = eqx.field(static=True)
    act: Act = eqx.field(static=True)

    def __init__(
        self,
        spaces: Spaces,
        *,
        units: int,
        layers: int,
        depths: tuple[int, ...],
        kernel: int,
        key: PRNGKeyArray,
        convolutions: Convolutions = "pool",
        symlog_vectors: bool = True,
        symlog_images: bool = False,
        style: Style = FINAL,
        image_act: Act | None = None,
    ):
        mlp_key, *conv_keys = jax.random.split(key, 1 + len(depths))
        vector_spaces, image_spaces = vectors(spaces), images(spaces)
        self.spaces = tuple(sorted(spaces.items()))
        self.outputs, self.convolutions = 0, convolutions
        self.symlog_vectors, self.symlog_images = symlog_vectors, symlog_images
        self.act = image_act or style.act
        self.mlp, self.convs, self.norms = None, (), ()
        if vector_spaces:
            self.mlp = MLP(width(vector_spaces), units, layers, key=mlp_key, style=style)
            self.outputs += units
        if image_spaces:
            height, wide = image_resolution(image_spaces, len(depths), convolutions)
            channels = (sum(s.shape[2] for s in image_spaces.values()), *depths)
            self.convs = tuple(
                Conv(channels[i], channels[i + 1], kernel, key=k, bias=style.bias, style=style)
                for i, k in enumerate(conv_keys)
            )
            self.norms = tuple(style.norm_of(d) for d in depths)
            for _ in depths:
                height, wide = (n // 2 if convolutions != "inside" else (n - kernel) // 2 + 1 for n in (height, wide))
            self.outputs += height * wide * depths[-1]

    def __call__(self, obs: Mapping[str, Array], dtype: jnp.dtype) -> Float[Array, "*B e"]:
        """Tokens of observations `{key: [*B, *shape]}`, in the compute dtype."""
        spaces = dict(self.spaces)
        tokens = []
        if self.mlp is not None:
            tokens.append(self.mlp(flat(vectors(spaces), obs, squash=self.symlog_vectors).astype(dtype)))
        if self.convs:
            x = jnp.concatenate([obs[k] for k in images(spaces)], -1)
            if self.symlog_images:
                x = SYMLOG_PIXELS.to(x.astype(jnp.float32) / 255).astype(dtype) - 0.5
            else:
                x = x.astype(dtype) / 255 - 0.5
            for conv, norm in zip(self.convs, self.norms, strict=True):
                halve = {"pool": conv.pooled, "stride": conv.strided, "inside": conv.strided_inside}
                x = ACTIVATIONS[self.act](norm(halve[self.convolutions](x)))
            tokens.append(x.reshape(*x.shape[:-3], -1))
        return jnp.concatenate(tokens, -1)
