"""Observations and actions as vectors: the flat code of a dict of spaces, and the encoder networks."""

from __future__ import annotations

from collections.abc import Mapping

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from reverie.envs.base import Space, Spaces
from reverie.nn.layers import MLP, Conv
from reverie.nn.norm import RMSNorm
from reverie.nn.transforms import symlog


def images(spaces: Spaces) -> Spaces:
    return {k: s for k, s in sorted(spaces.items()) if s.kind == "image"}


def vectors(spaces: Spaces) -> Spaces:
    """Everything that is not an image: float vectors and discrete values, of any shape."""
    return {k: s for k, s in sorted(spaces.items()) if s.kind != "image"}


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
    """A dict of vectors and discrete values as one float32 vector, keys in sorted order.

    Args:
      spaces: no images.
      values: arrays `[*B, *shape]` for every key of `spaces`.
      squash: apply symlog to the float vectors.
    """
    parts = []
    for key, space in sorted(spaces.items()):
        value = values[key]
        if space.kind == "discrete":
            parts.append(one_hots(space, value))
        else:
            batch = value.shape[: value.ndim - len(space.shape)]
            value = value.astype(jnp.float32).reshape(*batch, space.width)
            parts.append(symlog(value) if squash else value)
    return jnp.concatenate(parts, -1)


def image_resolution(spaces: Spaces, stages: int) -> tuple[int, int]:
    """The common height and width of the images, checked against what `stages` halvings can take."""
    found = {s.shape[:2] for s in spaces.values()}
    if len(found) > 1:
        sizes = {k: s.shape for k, s in spaces.items()}
        raise ValueError(f"images must share height and width, got {sizes}; resize them, e.g. --image-size 64")
    height, wide = found.pop()
    factor = 2**stages
    if any(side % factor or not 3 <= side // factor <= 16 for side in (height, wide)):
        raise ValueError(
            f"images of {height} x {wide} cannot be halved {stages} times down to 3..16 pixels a side;"
            f" resize them, e.g. --image-size 64 (sides must be multiples of {factor}, {3 * factor} to {16 * factor})"
        )
    return height, wide


class Encoder(eqx.Module):
    """Vectors through an MLP, images through convolutions; the tokens are both, side by side.

    DreamerV3 (reference `rssm.py`): vectors symlog-squashed; images scaled to [-0.5, 0.5], concatenated on channels,
    then per stage a 5x5 convolution, 2x2 max-pooling, RMSNorm over channels and SiLU.
    """

    mlp: MLP | None
    convs: tuple[Conv, ...]
    norms: tuple[RMSNorm, ...]
    spaces: tuple[tuple[str, Space], ...] = eqx.field(static=True)
    outputs: int = eqx.field(static=True)

    def __init__(
        self,
        spaces: Spaces,
        *,
        units: int,
        layers: int,
        depths: tuple[int, ...],
        kernel: int,
        key: PRNGKeyArray,
    ):
        mlp_key, *conv_keys = jax.random.split(key, 1 + len(depths))
        vector_spaces, image_spaces = vectors(spaces), images(spaces)
        self.spaces = tuple(sorted(spaces.items()))
        self.outputs = 0
        self.mlp, self.convs, self.norms = None, (), ()
        if vector_spaces:
            self.mlp = MLP(width(vector_spaces), units, layers, key=mlp_key)
            self.outputs += units
        if image_spaces:
            height, wide = image_resolution(image_spaces, len(depths))
            channels = (sum(s.shape[2] for s in image_spaces.values()), *depths)
            self.convs = tuple(Conv(channels[i], channels[i + 1], kernel, key=k) for i, k in enumerate(conv_keys))
            self.norms = tuple(RMSNorm(d) for d in depths)
            self.outputs += (height >> len(depths)) * (wide >> len(depths)) * depths[-1]

    def __call__(self, obs: Mapping[str, Array], dtype: jnp.dtype) -> Float[Array, "*B e"]:
        """Tokens of observations `{key: [*B, *shape]}`, in the compute dtype."""
        spaces = dict(self.spaces)
        tokens = []
        if self.mlp is not None:
            tokens.append(self.mlp(flat(vectors(spaces), obs, squash=True).astype(dtype)))
        if self.convs:
            x = jnp.concatenate([obs[k] for k in images(spaces)], -1)
            x = x.astype(dtype) / 255 - 0.5
            for conv, norm in zip(self.convs, self.norms, strict=True):
                x = jax.nn.silu(norm(conv.pooled(x)))
            tokens.append(x.reshape(*x.shape[:-3], -1))
        return jnp.concatenate(tokens, -1)
