"""Envs that hang, without a clock: their deadline passes when they say so, and never before."""

from __future__ import annotations

import math
import os
import signal
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from reverie.envs import guard
from reverie.envs.process import Child, Hung

NEVER = 1e6  # seconds: a deadline that no busy machine misses


def late() -> None:
    """The deadline of the env in this process passes this very moment."""
    guard._watchdog.until = -math.inf
    signal.raise_signal(signal.SIGURG)


def hang_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where `Faulty` hangs in this process, its deadline comes at once."""
    monkeypatch.setattr("faulty.time", SimpleNamespace(sleep=lambda seconds: late()))


def hang_there(monkeypatch: pytest.MonkeyPatch, file: Path) -> None:
    """The deadline of the env in the only process there is passes whenever it makes `file`, or adds to it."""
    read, seen = Child.read, 0

    def until_struck(child: Child, size: int, until: float) -> bytes:
        nonlocal seen
        while True:
            strikes = 1 + os.stat(file).st_size if file.exists() else 0
            try:
                return read(child, size, time.monotonic() + 0.05)
            except Hung:  # so before the strike nothing was said either
                if strikes > seen:
                    seen = strikes
                    raise

    monkeypatch.setattr(Child, "read", until_struck)
