"""Images of any size, for convolutions that take only some.

The images of an observation meet on one canvas. Where they all have one size that the convolutions take, that is the
canvas, and nothing is done to them. Otherwise every image is resized to it, inside the encoder: sides that grow repeat
pixels, so that nothing is lost and nothing is blurred; sides that shrink are interpolated, antialiased. The decoder
paints the canvas and is compared with the images as the encoder sees them: a picture weighs as much in the loss as it
has pixels there, whatever it had before. What a person looks at is resized back.

No side is made larger than 64 by this: the resolution at which the Dreamers were published, and on a CPU 96 costs twice
as much. Whoever wants more resizes in the env (`--image-size 96`).
"""

from __future__ import annotations

import math
from typing import Any, Literal, NamedTuple

import jax
from jaxtyping import Array, Float

from reverie.envs.base import Spaces

Convolutions = Literal["pool", "stride", "inside"]
Size = tuple[int, int]  # height and width

INSIDE = 64  # side of the images that four strides without padding, and their mirror, fit
LARGE = 64  # side to which larger images are shrunk
COARSE = (3, 16)  # least and largest side of the smallest map


def images(spaces: Spaces) -> Spaces:
    return {k: s for k, s in sorted(spaces.items()) if s.kind == "image"}


def extent(spaces: Spaces) -> Size:
    """The largest height and the largest width of what lies on a grid."""
    heights, widths = zip(*(s.shape[:2] for s in spaces.values()), strict=True)
    return max(heights), max(widths)


def canvas(spaces: Spaces, stages: int, convolutions: Convolutions = "pool") -> Size:
    """Height and width at which the networks see all images of `spaces`, for convolutions that halve `stages` times;
    0 without images."""
    if not spaces:
        return 0, 0
    if convolutions == "inside":
        return INSIDE, INSIDE
    size, factor = extent(spaces), 1 << stages
    if _alike(spaces) and _fits(size, stages):
        return size
    least = COARSE[0] * factor
    height, wide = (-(-min(max(side, least), max(LARGE, least)) // factor) * factor for side in size)
    return height, wide


def halvings(spaces: Spaces) -> int:
    """How often the images of these spaces can be halved before a side falls below 4; 0 without images.

    Images that would have to be resized count with the size that they can be given: sides of 8 to `LARGE`, none longer
    than twice the other.
    """
    pictures = images(spaces)
    if not pictures:
        return 0
    size = extent(pictures)
    stages = halve(min(size), 4)
    if _alike(pictures) and stages and _fits(size, stages):
        return stages
    bounded = [min(side, LARGE) for side in size]
    return halve(max(min(bounded), 8, max(bounded) // 2), 4)


def halve(side: int, least: int) -> int:
    """How often a side can be halved before it falls below `least`."""
    return max(0, int(math.log2(side / least)))


def resized(spaces: Spaces, size: Size) -> dict[str, Size]:
    """The images that are not of this size, and that size: what is done to them, for a person to know."""
    return {key: size for key, space in images(spaces).items() if space.shape[:2] != size}


def onto(x: Float[Array, "*B h w c"], size: Size) -> Float[Array, "*B H W c"]:
    """An image on a canvas of this size."""
    return _resample(x, size, "linear", "nearest")


def back(x: Float[Array, "*B h w c"], size: Size) -> Float[Array, "*B H W c"]:
    """A canvas as an image of this size. What `onto` did not shrink comes back as it was."""
    return _resample(x, size, "nearest", "linear")


class Canvas(NamedTuple):
    """The distribution of an image, as one of the canvas that it lies on."""

    canvas_dist: Any  # a distribution over the canvas
    canvas: Size
    size: Size  # of the image

    def pred(self) -> Float[Array, "*B H W c"]:
        return back(self.canvas_dist.pred(), self.size)

    def loss(self, target: Float[Array, "*B H W c"]) -> Float[Array, "*B"]:
        return self.canvas_dist.loss(onto(target, self.canvas))


def _alike(spaces: Spaces) -> bool:
    return len({s.shape[:2] for s in spaces.values()}) == 1


def _fits(size: Size, stages: int) -> bool:
    """Whether sides can be halved `stages` times, down to a map that is neither a dot nor a picture."""
    least, most = COARSE
    return all(side % (1 << stages) == 0 and least <= side >> stages <= most for side in size)


def _resample(x: Array, size: Size, shrink: str, grow: str) -> Array:
    small = min(x.shape[-3], size[0]), min(x.shape[-2], size[1])
    for method, sides in ((shrink, small), (grow, size)):
        if x.shape[-3:-1] != sides:
            x = jax.image.resize(x, (*x.shape[:-3], *sides, x.shape[-1]), method)
    return x
