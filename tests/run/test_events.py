"""Event files of TensorBoard, and what a disk may do to them."""

from __future__ import annotations

import errno
import logging
import os
import struct
from pathlib import Path
from typing import Any

import pytest
from tensorboardX import SummaryWriter
from tensorboardX.proto.event_pb2 import Event
from tensorboardX.record_writer import masked_crc32c

from reverie.run import events
from reverie.run.events import Events


def read(folder: Path) -> list[Event]:
    """All events of all files, in the order of TensorBoard, with their checksums looked at."""
    found = []
    for path in sorted(folder.iterdir()):
        data = path.read_bytes()
        while data:
            length, checksum = struct.unpack("<QI", data[:12])
            assert checksum == masked_crc32c(data[:8])
            content, data = data[12 : 12 + length], data[12 + length :]
            assert struct.unpack("<I", data[:4]) == (masked_crc32c(content),)
            data = data[4:]
            found.append(Event.FromString(content))
    return found


def without_time(found: list[Event]) -> list[Event]:
    for event in found:
        event.wall_time = 0
    return found


def curve(folder: Path) -> list[tuple[int, float]]:
    return [(event.step, value.simple_value) for event in read(folder) for value in event.summary.value]


def test_a_file_says_what_tensorboardx_would_have_said(tmp_path: Path) -> None:
    own, theirs = Events(tmp_path / "own", start=100), SummaryWriter(str(tmp_path / "theirs"), purge_step=100)
    for step in (101, 102):
        own.scalars(step, {"loss/total": 0.25 * step, "a": 1e40})
        theirs.add_scalar("loss/total", 0.25 * step, step)
        theirs.add_scalar("a", 1e40, step)
    own.close()
    theirs.close()
    expected = without_time(read(tmp_path / "theirs"))
    del expected[1]  # it names its version twice
    assert sorted(map(str, without_time(read(tmp_path / "own")))) == sorted(map(str, expected))
    assert read(tmp_path / "own")[0].file_version == "brain.Event:2"


def test_a_picture_comes_as_it_is(tmp_path: Path) -> None:
    own = Events(tmp_path)
    own.picture(3, "dream/image", b"GIF89a...", (4, 5))
    own.close()
    image = read(tmp_path)[-1].summary.value[0].image
    assert (image.height, image.width, image.encoded_image_string) == (4, 5, b"GIF89a...")


def test_sessions_stand_in_order_whatever_the_clock_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for step, now in enumerate((1_700_000_000, 1_700_000_000, 1_600_000_000, 1_800_000_000)):
        monkeypatch.setattr(events.time, "time", lambda now=now: float(now))
        session = Events(tmp_path)
        session.scalars(step, {"a": step})
        session.close()
    assert curve(tmp_path) == [(step, step) for step in range(4)]


def test_a_full_disk_is_told_once_and_tears_no_event(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    own, original = Events(tmp_path), os.pwrite
    own.scalars(1, {"a": 1})

    def full(handle: int, data: bytes, at: int) -> int:
        if len(data) > 5:
            return original(handle, data[:5], at)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch, caplog.at_level(logging.WARNING, "reverie"):
        patch.setattr(os, "pwrite", lambda handle, data, at: full(handle, data[:10], at))
        own.scalars(2, {"a": 2})
        own.scalars(3, {"a": 3})
    own.scalars(4, {"a": 4})
    own.close()
    assert curve(tmp_path) == [(1, 1), (4, 4)]
    (told,) = caplog.messages
    assert f"cannot write to {tmp_path}: No space left on device. The run goes on" in told


def a_file(path: Path) -> None:
    path.write_text("mine")


def a_dead_link(path: Path) -> None:
    path.symlink_to(path.with_name("nothing"))


def a_link(path: Path) -> None:
    path.with_name("elsewhere").mkdir()
    path.symlink_to(path.with_name("elsewhere"))


@pytest.mark.parametrize("obstacle", [a_file, a_dead_link, a_link])
def test_what_stands_in_the_way_is_told_once_and_left_alone(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, obstacle: Any
) -> None:
    folder = tmp_path / "tensorboard"
    obstacle(folder)
    own, before = Events(folder), os.lstat(folder)
    with caplog.at_level(logging.WARNING, "reverie"):
        own.scalars(1, {"a": 1})
        own.scalars(2, {"a": 2})
    assert len(caplog.messages) == 1
    assert os.lstat(folder) == before
    assert not list(tmp_path.glob("*/*"))
    folder.unlink()
    own.scalars(3, {"a": 3})
    own.close()
    assert curve(folder) == [(3, 3)]


def test_a_directory_that_may_not_be_written_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    original = os.open

    def refused(path: Any, flags: int, *args: Any, **kwargs: Any) -> int:
        if flags & os.O_CREAT:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        return original(path, flags, *args, **kwargs)

    monkeypatch.setattr(os, "open", refused)
    with caplog.at_level(logging.WARNING, "reverie"):
        Events(tmp_path).scalars(1, {"a": 1})
    assert "Permission denied" in caplog.text
