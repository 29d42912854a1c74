"""Where the time goes, and the time left, from what steps and updates took."""

from __future__ import annotations

import time

import pytest

from reverie.run.clock import Clock, Pace, duration


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


def test_steps_and_updates_have_paces_of_their_own() -> None:
    seconds = {"train": 30.0, "replay": 2.0, "envs": 5.0, "rest": 5.0}
    pace = Pace(steps=100, updates=4, steps_left=900, updates_left=96, seconds=seconds, compiling=12.0)
    assert pace.seconds_left == pytest.approx(96 * 20 / 4 + 900 * 10 / 100)


def test_before_the_first_update_nothing_is_known() -> None:
    assert Pace(100, 0, 900, 96, {"envs": 5.0}).seconds_left is None
    assert Pace(0, 3, 900, 96, {"train": 5.0}).seconds_left is None
    assert Pace(100, 0, 900, 0, {"envs": 5.0}).seconds_left == pytest.approx(45), "a run that learns nothing"
    assert Pace(0, 10, 0, 90, {"train": 5.0}).seconds_left == pytest.approx(45), "a run that steps no more"


@pytest.mark.parametrize(
    ("seconds", "told"), [(0, "0 s"), (40, "40 s"), (720, "12 min"), (12240, "3.4 h"), (1e5, "28 h"), (5e5, "6 days")]
)
def test_a_time_is_told_in_words(seconds: float, told: str) -> None:
    assert duration(seconds) == told
