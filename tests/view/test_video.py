"""Frames become files that a player can read."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from reverie.view import video


def frames(count: int = 5, height: int = 48, width: int = 64) -> list[np.ndarray]:
    """Grey pictures that get brighter."""
    return [np.full((height, width, 3), 40 * i, np.uint8) for i in range(count)]


@pytest.mark.parametrize(("height", "width"), [(48, 64), (49, 65)])
def test_mp4_reads_back(tmp_path: Path, height: int, width: int) -> None:
    path = tmp_path / "new" / "v.mp4"
    video.write(path, frames(height=height, width=width))
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.codec_context.pix_fmt) == ("h264", "yuv420p")
        shown = [frame.to_ndarray(format="rgb24") for frame in container.decode(stream)]
    assert len(shown) == 5
    assert shown[0].shape == (48, 64, 3)
    for i, picture in enumerate(shown):
        assert abs(float(picture.mean()) - 40 * i) < 6


@pytest.mark.parametrize("suffix", [".gif", ".webp", ".GIF"])
def test_animations_read_back(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"v{suffix}"
    video.write(path, frames())
    with Image.open(path) as image:
        assert image.n_frames == 5
        assert image.size == (64, 48)


@pytest.mark.parametrize("name", ["v.avi", "v", "v.mp4.txt"])
def test_other_suffixes_are_refused_before_anything(tmp_path: Path, name: str) -> None:
    with pytest.raises(video.NoVideo, match=r"ends in \.mp4, \.gif, \.webp"):
        video.write(tmp_path / name, frames())
    assert not list(tmp_path.iterdir())


def test_frames_that_are_no_pictures_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "v.mp4"
    with pytest.raises(video.NoVideo, match="no frames"):
        video.write(path, [])
    flat, floats, tall = np.zeros((48, 64), "u1"), np.zeros((48, 64, 3)), frames(1, height=50)[0]
    for bad in (flat, floats, tall):
        with pytest.raises(video.NoVideo, match=r"uint8 \[H, W, 3\]"):
            video.write(path, [*frames(), bad])
