"""Where the time went, and how long a run still takes."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

LEARNING = ("train", "replay")  # what grows with the updates; all else grows with the env steps


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


@dataclass(frozen=True)
class Pace:
    """The work done in a session, and what its run has still to do."""

    steps: int  # done in this session
    updates: int  # as well
    steps_left: int  # of the whole run
    updates_left: int  # as well
    seconds: Mapping[str, float]  # of this session, by what they were spent on (`Clock`)
    compiling: float = 0.0  # seconds of these that the compilation of updates took, which happens once
    earlier: int = 0  # updates of the sessions before

    @property
    def seconds_left(self) -> float | None:
        """None while it is unknown: before the first update, or the first step, of this session."""
        if (self.updates_left and not self.updates) or (self.steps_left and not self.steps):
            return None
        learning = sum(self.seconds.get(name, 0.0) for name in LEARNING)
        rest = sum(self.seconds.values()) - learning
        update = max(0.0, learning - self.compiling) / max(1, self.updates)
        return self.updates_left * update + self.steps_left * rest / max(1, self.steps)


def duration(seconds: float) -> str:
    """A time as a person tells it: 40 s, 12 min, 3.4 h, 5 days."""
    for unit, size, until in (("s", 1, 120), ("min", 60, 7200), ("h", 3600, 48 * 3600)):
        if seconds < until:
            number = seconds / size
            return f"{number:.1f} {unit}" if unit == "h" and number < 10 else f"{number:.0f} {unit}"
    return f"{seconds / 86400:,.0f} days"
