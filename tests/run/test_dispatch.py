"""What a device is given to do, and in which order: an update or several at once, and replay beside them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from runs import SEVERAL, Killed, assert_same, kill_at, metrics, train

from reverie import algos
from reverie.config import ConfigError
from reverie.replay.sequences import Replay
from reverie.run import experience
from reverie.run.collect.host import HostCollector
from reverie.run.jitted import JittedAgent


@pytest.fixture(autouse=True)
def fake(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(algos.ALGORITHMS, "fake", "fakes")


def test_a_device_never_waits_for_the_host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first batch of a turn is drawn before the policy is asked, which waits for the last update of the turn
    before; and the first update is handed out before that decision is waited for."""
    events: list[str] = []

    def watch(owner: type, name: str, event: str) -> None:
        call = getattr(owner, name)
        monkeypatch.setattr(owner, name, lambda *args, **kw: events.append(event) or call(*args, **kw))

    watch(Replay, "sample", "draw")
    watch(HostCollector, "decide", "decide")
    watch(JittedAgent, "update", "update")
    watch(HostCollector, "act", "act")
    watch(experience.WriteBack, "follow", "write")
    train(tmp_path, steps=60, replay_ratio=16 / 3)  # three envs, batches of eight rows: two updates a turn
    turn = ["draw", "decide", "update", "act", "write", "draw", "update", "write"]
    assert events[-5 * len(turn) :] == 5 * turn


def test_several_updates_are_one_dispatch_where_so_many_are_due(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Four batches are drawn, trained on and written back together, and what is left over of a turn one by one."""
    events: list[Any] = []
    draw, update, write = Replay._draw, JittedAgent.update, Replay.update
    monkeypatch.setattr(Replay, "_draw", lambda self, *args: events.append("draw") or draw(self, *args))
    monkeypatch.setattr(
        JittedAgent, "update", lambda self, part, count: events.append(count) or update(self, part, count)
    )
    monkeypatch.setattr(
        Replay, "update", lambda self, ids, values: events.append(ids.shape) or write(self, ids, values)
    )
    run = train(tmp_path, **SEVERAL, updates_per_dispatch=4)
    assert run.updates == 9 * (51 - 30) // 3
    four, one, batch = ["draw"] * 4, ["draw"], (2, 4)
    turn = [*four, 4, batch, *four, 4, (4, *batch), *one, 1, (4, *batch)]
    first = [*turn[:5], *turn[6:]]  # there is nothing to write back yet
    assert events == [4, *first, *6 * turn], "compiled ahead, and seven turns"
    assert metrics(tmp_path)[-1]["updates"] == run.updates


@pytest.mark.parametrize("priorities", [False, True])
def test_a_killed_run_of_several_updates_a_dispatch_goes_on_as_if_nothing_had_happened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, priorities: bool
) -> None:
    values = SEVERAL | {"updates_per_dispatch": 4, "priorities": priorities, "checkpoint_every": 9}
    train(tmp_path / "whole", **values)
    with monkeypatch.context() as patch:
        kill_at(patch, 16)
        with pytest.raises(Killed):
            train(tmp_path / "killed", **values)
    train(tmp_path / "killed", **values)
    assert_same(tmp_path / "whole", tmp_path / "killed")
    train(tmp_path / "single", **values | {"updates_per_dispatch": 1})
    assert metrics(tmp_path / "single") != metrics(tmp_path / "whole"), "what is replayed is older"
    assert metrics(tmp_path / "single")[-1]["updates"] == metrics(tmp_path / "whole")[-1]["updates"]


def test_more_updates_a_dispatch_than_are_ever_due_are_refused(tmp_path: Path) -> None:
    wording = (
        r"--updates-per-dispatch 10, .* 9 updates at most: type --updates-per-dispatch 9, or a higher --replay-ratio"
    )
    with pytest.raises(ConfigError, match=wording):
        train(tmp_path, **SEVERAL, updates_per_dispatch=10)
    with pytest.raises(ConfigError, match="with --offline there are none: leave it out"):
        train(tmp_path, offline=str(tmp_path), updates_per_dispatch=2)
    train(tmp_path / "a", **SEVERAL, updates_per_dispatch=9)
    with pytest.raises(ConfigError, match=r"--updates-per-dispatch +saved 9, given 3"):
        train(tmp_path / "a", **SEVERAL, updates_per_dispatch=3)


@pytest.mark.parametrize("priorities", [False, True])
def test_replay_on_the_device_changes_nothing_not_even_halfway(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, priorities: bool
) -> None:
    whole, path = tmp_path / "whole", tmp_path / "moved"
    train(whole, priorities=priorities)
    for replay_on, call in (("device", 30), ("host", 25), ("device", 20)):  # rows are overwritten from step 150 on
        with monkeypatch.context() as patch:
            kill_at(patch, call)
            with pytest.raises(Killed):
                train(path, priorities=priorities, replay_on=replay_on)
    train(path, priorities=priorities, replay_on="device")
    assert_same(whole, path)


def test_a_run_with_replay_and_several_updates_on_the_device(tmp_path: Path) -> None:
    values: dict[str, Any] = {"env": "CartPole-v1", "env_kwargs": "{}", "steps": 300, "replay_ratio": 16.0}
    plain = train(tmp_path / "plain", **values)
    run = train(tmp_path / "both", **values, replay_on="device", updates_per_dispatch=3)
    assert (run.steps, run.updates) == (plain.steps, plain.updates) == (300, 2 * (300 - 30))
    assert metrics(tmp_path / "both")[-1].keys() == metrics(tmp_path / "plain")[-1].keys()
