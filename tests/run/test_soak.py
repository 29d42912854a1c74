"""Some minutes of what `make soak` does for half an hour."""

from __future__ import annotations

from pathlib import Path

import pytest
import soak


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_some_minutes_of_random_faults(tmp_path: Path) -> None:
    figures = soak.soak(tmp_path, minutes=4, seconds=15, seed=1, tell=print)
    assert figures["compared"], figures
    assert sum(figures["faults"].values()) > 3, figures
