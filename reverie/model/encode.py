"""Observations and actions as vectors: the flat code of a dict of spaces, and the encoder networks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, PRNGKeyArray, UInt8

from reverie.envs.base import UNSEEN, Space, Spaces
from reverie.model.canvas import Convolutions, Size, canvas, images, onto
from reverie.nn.layers import ACTIVATIONS, FINAL, MLP, Act, Conv, Style
from reverie.nn.norm import Norm
from reverie.nn.transforms import PLAIN, SYMLOG, SYMLOG_PIXELS, Squash, at_scale


def planar(spaces: Spaces) -> Spaces:
    """The observations on a grid: images, and the planes of a board."""
    return {k: s for k, s in sorted(spaces.items()) if s.kind in ("image", "planes") and len(s.shape) == 3}


def boards(spaces: Spaces) -> Spaces:
    """The observations on a grid that are no images."""
    return {k: s for k, s in planar(spaces).items() if s.kind == "planes"}


def vectors(spaces: Spaces) -> Spaces:
    """Everything that is seen and is no image: float vectors, discrete values and planes, of any shape."""
    return {k: s for k, s in sorted(spaces.items()) if s.kind != "image" and s.kind not in UNSEEN}


def written(spaces: Spaces) -> Spaces:
    """The observations that a decoder predicts through an MLP: `vectors`, and targets that are not seen."""
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


def squash_of(space: Space, symlog_vectors: bool) -> Squash | None:
    """The transform of a float vector `[*B, *shape]` on its way into networks; None: it stays as it is."""
    squash = SYMLOG if symlog_vectors else None
    if not space.spread:
        return squash
    center, spread = (np.array(x, np.float32).reshape(space.shape) for x in (space.center, space.spread))
    return at_scale(center, spread, squash or PLAIN)


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
            is_code = jnp.issubdtype(value.dtype, jnp.floating)
            parts.append(value.astype(jnp.float32) if is_code else one_hots(space, value))
        else:
            batch = value.shape[: value.ndim - len(space.shape)]
            value = value.astype(jnp.float32)
            if space.kind == "vector" and (seen := squash_of(space, squash)):
                value = seen.to(value)
            parts.append(value.reshape(*batch, space.width))
    return jnp.concatenate(parts, -1)


def unflat(spaces: Spaces, code: Float[Array, "*B width"]) -> dict[str, Array]:
    """The dict of vectors and discrete values whose `flat` (not squashed) is `code`."""
    values, at = {}, 0
    for key, space in sorted(spaces.items()):
        value = code[..., at : at + space.width]
        at += space.width
        if space.kind == "discrete":
            parts = jnp.split(value, np.cumsum(space.classes)[:-1], -1)
            value = jnp.stack([jnp.argmax(x, -1) for x in parts], -1).astype(jnp.int32)
        values[key] = value.reshape(*code.shape[:-1], *space.shape)
    return values


def legal_actions(
    legal: Bool[Array, "*B width"] | None, spaces: Spaces, action: Mapping[str, Array]
) -> Bool[Array, "*B"] | None:
    """Whether the classes of an action are all `legal`; None: everything is."""
    return None if legal is None else (legal | (flat(spaces, action) < 0.5)).all(-1)


class Coding(NamedTuple):
    """How observations become numbers, and numbers observations: an encoder, and the decoder that is its mirror.

    Images are seen and painted by convolutions, everything else by an MLP of `layers` layers of `units`.
    """

    units: int
    layers: int
    depths: tuple[int, ...]  # channels after each stage of the convolutions
    kernel: int
    convolutions: Convolutions = "pool"  # how a stage halves
    symlog_vectors: bool = True  # whether vectors are squashed
    symlog_images: bool = False  # whether brightness is (see `SYMLOG_PIXELS`)
    style: Style = FINAL
    image_act: Act | None = None  # of the convolutions, if not that of `style` (V1: ReLU)
    pixels: Literal["sigmoid", "shift"] = "sigmoid"  # brightness of a painted image: bounded, or 0 for middle gray
    image_loss: Literal["squared", "gaussian"] = "squared"  # squared error, or the likelihood of a `Gaussian`

    @property
    def painter(self) -> Style:
        """The style of the convolutions."""
        return self.style._replace(act=self.image_act or self.style.act)


class Encoder(eqx.Module):
    """Vectors through an MLP, images through convolutions; the tokens are both, side by side.

    Images are scaled to [-0.5, 0.5], resized where they must be (`canvas`), and concatenated on channels; every stage
    is a convolution, a norm over channels and an activation, and halves the resolution: by 2x2 max-pooling in the final
    DreamerV3, by a stride of two in that of 2023, by a stride without padding in V1 and V2.
    """

    mlp: MLP | None
    convs: tuple[Conv, ...]
    norms: tuple[Norm, ...]
    spaces: tuple[tuple[str, Space], ...] = eqx.field(static=True)
    outputs: int = eqx.field(static=True)
    coding: Coding = eqx.field(static=True)
    canvas: Size = eqx.field(static=True)  # at which images are seen; (0, 0) without any

    def __init__(self, spaces: Spaces, coding: Coding, *, key: PRNGKeyArray):
        depths, kernel, style = coding.depths, coding.kernel, coding.style
        mlp_key, *conv_keys = jax.random.split(key, 1 + len(depths))
        vector_spaces, image_spaces = vectors(spaces), images(spaces)
        self.spaces, self.coding, self.outputs = tuple(sorted(spaces.items())), coding, 0
        self.mlp, self.convs, self.norms, self.canvas = None, (), (), (0, 0)
        if vector_spaces:
            self.mlp = MLP(width(vector_spaces), coding.units, coding.layers, key=mlp_key, style=style)
            self.outputs += coding.units
        if image_spaces:
            self.canvas = height, wide = canvas(image_spaces, len(depths), coding.convolutions)
            channels = (sum(s.shape[2] for s in image_spaces.values()), *depths)
            self.convs = tuple(
                Conv(channels[i], channels[i + 1], kernel, key=k, bias=style.bias, style=style)
                for i, k in enumerate(conv_keys)
            )
            self.norms = tuple(style.norm_of(d) for d in depths)
            inside = coding.convolutions == "inside"
            for _ in depths:
                height, wide = ((n - kernel) // 2 + 1 if inside else n // 2 for n in (height, wide))
            self.outputs += height * wide * depths[-1]

    def __call__(self, obs: Mapping[str, Array], dtype: jnp.dtype) -> Float[Array, "*B e"]:
        """Tokens of observations `{key: [*B, *shape]}`, in the compute dtype."""
        spaces = dict(self.spaces)
        tokens = []
        if self.mlp is not None:
            tokens.append(self.mlp(flat(vectors(spaces), obs, squash=self.coding.symlog_vectors).astype(dtype)))
        if self.convs:
            x = jnp.concatenate([self._bright(obs[key], dtype) for key in images(spaces)], -1)
            halves = {"pool": Conv.pooled, "stride": Conv.strided, "inside": Conv.strided_inside}
            halve = halves[self.coding.convolutions]
            for conv, norm in zip(self.convs, self.norms, strict=True):
                x = ACTIVATIONS[self.coding.painter.act](norm(halve(conv, x)))
            tokens.append(x.reshape(*x.shape[:-3], -1))
        return jnp.concatenate(tokens, -1)

    def _bright(self, x: UInt8[Array, "*B h w c"], dtype: jnp.dtype) -> Float[Array, "*B H W c"]:
        """An image on the canvas, as brightness around 0."""
        if not self.coding.symlog_images and x.shape[-3:-1] == self.canvas:
            return x.astype(dtype) / 255 - 0.5
        bright = onto(x.astype(jnp.float32) / 255, self.canvas)  # as the target of a decoder: computed once
        return (SYMLOG_PIXELS.to(bright) if self.coding.symlog_images else bright).astype(dtype) - 0.5
