"""A sound run, for tests to forge copies of."""

from __future__ import annotations

from pathlib import Path

import pytest

import reverie
from reverie import algos


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of the fake algorithm, in a toy. It is only to be copied."""
    path = tmp_path_factory.mktemp("trained") / "x"
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(algos.ALGORITHMS, "fake", "fakes")
        values = {"preset": "quick", "steps": 40, "warmup": 20, "envs": 2, "workers": "inline", "eval_episodes": 1}
        reverie.train("fake", env="reverie.envs.toy:Counting", run=path, **values)
    return path
