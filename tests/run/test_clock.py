from __future__ import annotations

import time

from reverie.run.clock import Clock


def test_clock_counts_the_innermost() -> None:
    clock = Clock()
    with clock.spent("outer"):
        time.sleep(0.01)
        with clock.spent("inner"):
            time.sleep(0.03)
    spent = clock.read()
    assert 0.01 <= spent["outer"] < 0.03 <= spent["inner"]
