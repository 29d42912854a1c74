"""Signals as wishes."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Collection
from contextlib import suppress
from types import FrameType
from typing import Any

_FAREWELL = (
    b"\nreverie: given up at once, by a third signal. What was saved before is intact: the same command continues\n"
)
_ACKNOWLEDGE = (
    b"\nreverie: Ctrl-C: the run ends after the update at hand and saves everything. A second Ctrl-C does not wait, "
    b"and saves nothing more\n"
)
# First word of the names of threads for which the end of the program does not wait, as Python would.
UNAWAITED = "unawaited"
_OVER = b"\0"  # no signal has this number


class Stop:
    """Turns SIGTERM, SIGINT and SIGHUP into a wish that the loop grants at its next step boundary.

        first signal     the wish; where it is a Ctrl-C, stderr has an answer at once
        second Ctrl-C    KeyboardInterrupt at once, whatever came before it: nothing more is saved, and what is being
                         saved does not count
        any third        the process ends at once, with 128 plus the signal's number as exit code, even where the main
                         thread does not return from a call into a library; its workers end with it

    A second Ctrl-C that is the third signal is the KeyboardInterrupt. The end of a terminal (SIGHUP) stays ignored
    where it was, as under `nohup`. Works in the main thread only; elsewhere signals are not ours to take.
    """

    def __init__(self) -> None:
        self.signal: str | None = None  # the name of the first one, if any came
        self._interrupts = 0
        self._before: dict[int, Any] = {}
        # Who reads the signals, and where they are written: by us, and before.
        self._wakeup_pipe: tuple[threading.Thread, int, int] | None = None

    def __enter__(self) -> Stop:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
                if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
                    self._before[number] = signal.signal(number, self._wish)
            # A handler of Python's runs when the main thread returns to it, if ever. The byte comes at once.
            read, write = os.pipe()
            os.set_blocking(write, False)
            watcher = threading.Thread(target=_watch, args=(read, frozenset(self._before)), daemon=True)
            watcher.start()
            self._wakeup_pipe = watcher, write, signal.set_wakeup_fd(write, warn_on_full_buffer=False)
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        if self._wakeup_pipe:
            watcher, write, before = self._wakeup_pipe
            signal.set_wakeup_fd(before)
            os.write(write, _OVER)  # no end of file: a child of an env may hold a copy
            watcher.join()
            os.close(write)

    def _wish(self, number: int, frame: FrameType | None) -> None:
        self.signal = self.signal or signal.Signals(number).name
        if number == signal.SIGINT:
            self._interrupts += 1
            if self._interrupts > 1:
                raise KeyboardInterrupt


def _watch(read: int, numbers: Collection[int]) -> None:
    """Ends the process at the third of these signals."""
    came: list[int] = []
    while (byte := os.read(read, 1)) != _OVER:
        if byte[0] not in numbers:  # an alarm: not of the person
            continue
        came.append(byte[0])
        if came == [signal.SIGINT]:
            with suppress(OSError):
                os.write(2, _ACKNOWLEDGE)
        if len(came) > 2 and not (byte[0] == signal.SIGINT and came.count(signal.SIGINT) == 2):
            with suppress(OSError):
                os.write(2, _FAREWELL)
            os._exit(128 + byte[0])
    os.close(read)


def _alone() -> None:
    """A fork of this process ignores the signals that are meant for us."""
    with suppress(ValueError):
        signal.set_wakeup_fd(-1)


os.register_at_fork(after_in_child=_alone)
