"""Recall, where only memory knows the answer: who has one learns it, who has none cannot."""

from __future__ import annotations

from pathlib import Path

import pytest

import reverie


@pytest.mark.slow
@pytest.mark.timeout(7200)
@pytest.mark.parametrize(("dynamics", "remembers"), [("rssm", True), ("transformer", True), ("none", False)])
def test_memory_is_what_recall_needs(tmp_path: Path, dynamics: str, remembers: bool) -> None:
    """A guess is right once in four: -0.5. Three to ten minutes of a core each."""
    run = reverie.train(
        "dreamer_v3", run=tmp_path, preset="recall", dynamics=dynamics, steps=24_000, workers="inline", report_every=0
    )
    score = reverie.evaluate(run.path, 100, seed=1_000_000).mean_return
    assert score >= 0.9 if remembers else score <= -0.2
