from __future__ import annotations

import time

import pytest

from reverie.run.clock import Clock


def test_clock_counts_the_innermost(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(time, "perf_counter", lambda: now)
    clock = Clock()
    now = 1.0
    with clock.measure_time("outer"):
        now = 3.0
        with clock.measure_time("inner"):
            now = 7.0
        now = 15.0
    now = 31.0
    assert clock.read() == {"rest": 1.0 + 16.0, "outer": 2.0 + 8.0, "inner": 4.0}
