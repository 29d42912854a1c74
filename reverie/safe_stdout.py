"""Where the program speaks to a person, who may leave."""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from typing import Any, TextIO, cast


class Outlet:
    """A stream that falls silent where another one raises.

    `reverie train ... | tee log` outlives `tee`, and a run in the background its terminal: what is said to nobody is no
    reason to lose a run. Every other attribute is the stream's own.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        with suppress(OSError):
            return self._stream.write(text)
        return self._silent(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except OSError:
            self._silent("")

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def _silent(self, text: str) -> int:
        """From now on all goes to nowhere, what is still in the buffers included."""
        with suppress(OSError, ValueError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._stream.fileno())
            os.close(nowhere)
        return len(text)


def open_outlets() -> None:
    """Makes outlets of stdout and stderr, for all of this process."""
    sys.stdout = cast(TextIO, Outlet(sys.stdout))
    sys.stderr = cast(TextIO, Outlet(sys.stderr))
