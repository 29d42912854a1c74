"""Runs that earlier releases left behind: they load, act as they did then, and go on, for ever after.

`tests/golden/README.md` says how they were made.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

import reverie
from reverie import api, config
from reverie.agent import Mode
from reverie.replay.segments import Segments
from reverie.run import experience, log
from reverie.run.checkpoint import Checkpoints, flatten

RUNS = Path(__file__).parents[1] / "golden" / "runs"
EXPECTED = json.loads((RUNS / "expected.json").read_text())


@pytest.fixture(params=EXPECTED)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def run(name: str, tmp_path: Path) -> Path:
    """A copy of a golden run, which may be written to."""
    return Path(shutil.copytree(RUNS / name, tmp_path / "run"))


def digest(arrays: Mapping[str, np.ndarray]) -> str:
    """Of names, dtypes, shapes and bytes."""
    whole = hashlib.sha256()
    for name, array in sorted(arrays.items()):
        whole.update(f"{name} {array.dtype} {array.shape};".encode() + array.tobytes())
    return whole.hexdigest()


def actions(agent: api.LoadedAgent, mode: Mode) -> list[int]:
    """In 16 states of CartPole, one after the other: left and right, moving and falling to either side."""
    sides = np.array([-1, 1], np.float32)
    states = np.stack(np.meshgrid(sides, sides, sides / 10, sides), -1).reshape(16, 4)
    # An env on the device has no words of its own: what it takes and gives are named arrays.
    named = agent.spec.id.startswith("device:")
    chosen, carry = [], None
    for state in states:
        action, carry = agent.act({"obs": state} if named else state, carry, mode)
        chosen.append(int(action["action"] if named else action))
    return chosen


def test_it_loads_and_acts_as_it_did(name: str, run: Path) -> None:
    expected = EXPECTED[name]
    agent = reverie.load(run)
    assert agent.step == expected["steps"]
    assert digest(flatten(agent.state)) == expected["state"]
    assert actions(agent, expected["mode"]) == expected["actions"]

    checkpoint = Checkpoints(run / "checkpoints").load_latest()
    assert checkpoint is not None
    replay = experience.replay_of(agent.config.run, agent.agent)
    assert Segments(run / "replay").load(replay, checkpoint.meta["replay"]) == 0
    assert digest({k: x[replay.held] for k, x in replay.arrays.items()}) == expected["replay"]


def test_it_goes_on(name: str, run: Path) -> None:
    expected, before = EXPECTED[name], log.read(run / "metrics.jsonl")
    saved = config.saved(run)
    assert saved is not None
    steps = expected["steps"] + 2 * saved.run.log_every
    went = reverie.train(saved.algorithm, run=run, steps=steps)
    assert went.steps == steps
    checkpoint = Checkpoints(run / "checkpoints").load_latest()
    assert checkpoint is not None
    assert checkpoint.meta["progress"]["step"] == steps
    assert went.updates > expected["updates"]
    now = config.saved(run)
    assert now is not None
    assert len(now.id) == 32, "it had no id, or keeps the one it had"
    assert checkpoint.run == now.id
    records = log.read(run / "metrics.jsonl")
    assert records[: len(before)] == before
    assert [r["step"] for r in records[len(before) :]][-1] == steps
    assert records[-1]["replay/rows"] == before[-1]["replay/rows"], "nothing of a full replay was lost"
