"""Where the time went."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager


class Clock:
    """Wall time by what it was spent on; inside nested blocks, the innermost counts."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {"rest": 0.0}
        self._name, self._since = "rest", time.perf_counter()

    @contextmanager
    def measure_time(self, name: str) -> Iterator[None]:
        outer = self._switch(name)
        try:
            yield
        finally:
            self._switch(outer)

    def read(self) -> dict[str, float]:
        """Seconds so far."""
        self._switch(self._name)
        return dict(self.seconds)

    def _switch(self, name: str) -> str:
        now, outer = time.perf_counter(), self._name
        self.seconds[outer] = self.seconds.get(outer, 0.0) + now - self._since
        self._name, self._since = name, now
        return outer
