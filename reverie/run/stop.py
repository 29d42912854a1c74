"""Signals as wishes."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any


class Stop:
    """Turns SIGTERM, SIGINT and SIGHUP into a wish that the loop grants at its next step boundary.

    A second Ctrl-C raises KeyboardInterrupt at once: nothing more is saved, and what is being saved
    does not count. The end of a terminal (SIGHUP) stays ignored where it was, as under `nohup`. Works in the main
    thread only; elsewhere signals are not ours to take.

    Attributes:
      signal: the name of the first signal, None while there is none.
    """

    def __init__(self) -> None:
        self.signal: str | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Stop:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
                if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
                    self._before[number] = signal.signal(number, self._wish)
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _wish(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self.signal == "SIGINT":
            raise KeyboardInterrupt
        self.signal = self.signal or signal.Signals(number).name
