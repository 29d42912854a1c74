"""The long sweep of kills, in every family and kind of env; short ones are in the tests of the loop."""

from __future__ import annotations

from pathlib import Path

import kills
import pytest

EACH = 25  # of 8 combinations: 200


@pytest.mark.slow
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("name", kills.COMBINATIONS)
def test_sigkill_at_random_moments_never_changes_a_bit(name: str, tmp_path: Path) -> None:
    whole = kills.Whole(tmp_path / "whole", *kills.COMBINATIONS[name])
    whole.run()
    figures = kills.kill(whole, EACH, tmp_path)
    assert (figures["identical"], figures["kills"]) == (EACH, EACH), figures
