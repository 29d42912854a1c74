"""Frames to video files."""

from __future__ import annotations

import importlib.util
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from reverie import files
from reverie.errors import PlainError

SUFFIXES = (".mp4", ".gif", ".webp")
# PyAV has wheels for most machines; where there is none, Pillow's GIFs are always there.
BEST = ".mp4" if importlib.util.find_spec("av") else ".gif"


class NoVideo(PlainError, ValueError):
    """These frames, or this name, make no video."""


def check_suffix(path: Path) -> None:
    """Raises NoVideo unless a video can be written under this name."""
    if path.suffix.lower() not in SUFFIXES:
        raise NoVideo(
            f"cannot write a video called {path.name!r}: expected a name that ends in "
            f"{', '.join(SUFFIXES)}, for example {path.with_suffix('.mp4').name}"
        )


def write(path: Path, frames: Sequence[np.ndarray], fps: float = 30.0) -> None:
    """Writes frames (uint8 `[H, W, 3]`, all of one size) as the suffix of `path` says; see `encode`."""
    check_suffix(path)
    files.replace(path, encode(path.suffix, frames, fps))


def encode(suffix: str, frames: Sequence[np.ndarray], fps: float = 30.0) -> bytes:
    """A video as bytes; `suffix` is one of `SUFFIXES`.

    `.mp4` is H.264 in yuv420p, which every browser plays; odd sizes lose a line. `.gif` and `.webp`
    loop.

    Raises:
      NoVideo: no frames, frames that are no pictures, or `.mp4` without PyAV.
    """
    if not frames:
        raise NoVideo("no frames for a video: the env drew nothing (does it have render()?)")
    for frame in frames:
        if frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape != (*frames[0].shape[:2], 3):
            raise NoVideo(f"frames must be uint8 [H, W, 3] of one size, got {frame.dtype} {list(frame.shape)}")
    data = io.BytesIO()
    if suffix.lower() == ".mp4":
        _mp4(data, frames, fps)
    else:
        first, *rest = [Image.fromarray(frame) for frame in frames]
        kind = suffix[1:].upper()
        first.save(data, kind, save_all=True, append_images=rest, duration=1000 / fps, loop=0)
    return data.getvalue()


def _mp4(data: io.BytesIO, frames: Sequence[np.ndarray], fps: float) -> None:
    if BEST != ".mp4":
        raise NoVideo("an .mp4 needs PyAV, which is not installed: `pip install av`, or a name that ends in .gif")
    import av

    height, width = (n - n % 2 for n in frames[0].shape[:2])  # yuv420p halves both
    with av.open(data, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=round(fps), options={"crf": "20"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for frame in frames:
            picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame[:height, :width]), format="rgb24")
            container.mux(stream.encode(picture))
        container.mux(stream.encode())
