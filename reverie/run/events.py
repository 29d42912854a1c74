"""TensorBoard's event files."""

from __future__ import annotations

import logging
import os
import re
import socket
import struct
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.proto.summary_pb2 import Summary
from tensorboardX.record_writer import masked_crc32c

logger = logging.getLogger("reverie")

_NAME = re.compile(r"events\.out\.tfevents\.(\d{10})\..*")


class Events:
    """One new event file in a directory, begun with the first event.

    Everything is written by the caller's own thread, so that a fault of the disk is met where it happens: it is told
    once, what did not fit is left out, and the next event is tried again. tensorboardX's writer has a thread of its
    own, which a full disk ends, and whoever fills its queue then waits for ever.

    Args:
      folder: made if missing; its parent is not.
      start: the step at which a run goes on. TensorBoard hides what older files say of later ones. 0: nothing.
    """

    def __init__(self, folder: Path, start: int = 0) -> None:
        self._folder, self._start = folder, start
        self._handle: int | None = None
        self._offset = 0
        self._reported = False

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Adds the newest value of every curve."""
        self._write([_event(step, Summary.Value(tag=name, simple_value=x)) for name, x in values.items()])

    def picture(self, step: int, name: str, encoded: bytes, size: tuple[int, int]) -> None:
        """Adds a PNG, or a GIF that moves, of `(height, width)`."""
        image = Summary.Image(height=size[0], width=size[1], colorspace=3, encoded_image_string=encoded)
        self._write([_event(step, Summary.Value(tag=name, image=image))])

    def close(self) -> None:
        if self._handle is not None:
            with suppress(OSError):  # what a network file system did not take is lost either way
                os.close(self._handle)
        self._handle = None

    def _write(self, events: list[Event]) -> None:
        """All of them or none."""
        try:
            if self._handle is None:
                self._handle = _create(self._folder)
            data = b"".join(_record(event) for event in (events if self._offset else [*self._first(), *events]))
            append(self._handle, data, self._offset)
            self._offset += len(data)
        except OSError as error:
            if not self._reported:
                logger.warning(
                    f"cannot write to {self._folder}: {error.strerror}. The run goes on; TensorBoard shows nothing "
                    "more until that works again, and metrics.jsonl has all numbers"
                )
            self._reported = True

    def _first(self) -> list[Event]:
        """The first record of a file."""
        begun = [Event(wall_time=time.time(), file_version="brain.Event:2")]
        if self._start:
            began = SessionLog(status=SessionLog.START)
            begun.append(Event(wall_time=time.time(), step=self._start, session_log=began))
        return begun


def append(handle: int, data: bytes, end: int) -> None:
    """Writes `data` behind the first `end` bytes of an open file. OSError if it cannot; no half of it stays there."""
    written = 0
    try:
        while written < len(data):
            written += os.pwrite(handle, data[written:], end + written)
    except OSError:
        with suppress(OSError):
            os.ftruncate(handle, end)
        raise


def _event(step: int, value: Summary.Value) -> Event:
    return Event(wall_time=time.time(), step=step, summary=Summary(value=[value]))


def _record(event: Event) -> bytes:
    """An event as TensorFlow frames it: length and content, each with its checksum."""
    content = event.SerializeToString()
    length = struct.pack("<Q", len(content))
    checksums = (struct.pack("<I", masked_crc32c(part)) for part in (length, content))
    return length + next(checksums) + content + next(checksums)


def _create(folder: Path) -> int:
    """Opens a new event file, which stands behind those that are there, whatever the clock did: TensorBoard reads them
    in the order of their names. No link is followed."""
    with suppress(FileExistsError):
        os.mkdir(folder)
    directory = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        numbers = [int(name[1]) for name in map(_NAME.fullmatch, os.listdir(directory)) if name]
        number = max([int(time.time()), *(n + 1 for n in numbers)])
        name = f"events.out.tfevents.{number:010d}.{socket.gethostname()}"
        return os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o644, dir_fd=directory)
    finally:
        os.close(directory)
