"""The loop, with a fake agent: exact resume, signals, schedule, poison, and evaluation."""

from __future__ import annotations

import errno
import itertools
import json
import logging
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import runs
from runs import (
    QUICK,
    SEVERAL,
    Killed,
    assert_same,
    assert_same_state,
    kill_at,
    metrics,
    state,
    train,
    wait_for_metrics,
)

import reverie
from reverie import algos, api, config
from reverie.config import Config
from reverie.files import DiskError, Folder
from reverie.health import NonFinite
from reverie.replay.sequences import Replay
from reverie.run import experience, log, loop, measures
from reverie.run.checkpoint import Checkpoints, Mismatch
from reverie.run.directory import RunDirectory, RunInUse
from reverie.run.recent import Recent
from reverie.run.stop import Stop


@pytest.fixture(autouse=True)
def fake(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(algos.ALGORITHMS, "fake", "fakes")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A run that nothing interrupted."""
    path = tmp_path_factory.mktemp("whole")
    algos.ALGORITHMS["fake"] = "fakes"
    train(path)
    yield path
    del algos.ALGORITHMS["fake"]


def test_a_run_leaves_what_it_did(whole: Path) -> None:
    run = train(whole)  # finished: nothing more to do
    assert run.steps == 240
    assert run.updates == 2 * (240 - 30) // 8
    assert run.evaluation is not None
    assert len(run.evaluation.returns) == 3
    records = metrics(whole)
    steps = [r["step"] for r in records]
    assert steps == sorted(set(steps)), "one line per step"
    assert [r["step"] for r in records if "updates" in r] == [
        21, 42, 60, 81, 102, 120, 141, 162, 180, 201, 222, 240,
    ]  # fmt: skip
    assert [r["step"] for r in records if "eval/mean_return" in r] == [72, 141, 210, 240]
    assert [r["step"] for r in records if "report/reward" in r] == [51, 102, 150, 201]
    assert [c["step"] for c in Checkpoints(whole / "checkpoints").manifests()] == [240, 201]


@pytest.mark.parametrize("call", [1, 11, 30, 47, 71])
def test_a_killed_run_goes_on_as_if_nothing_had_happened(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: int
) -> None:
    with monkeypatch.context() as patch:
        kill_at(patch, call)
        with pytest.raises(Killed):
            train(tmp_path)
    train(tmp_path)
    assert_same(whole, tmp_path)


def test_a_killed_run_with_priorities_draws_as_if_nothing_had_happened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, killed, uniform = tmp_path / "whole", tmp_path / "killed", tmp_path / "uniform"
    train(whole, priorities=True)
    for call in (20, 30):  # rows are overwritten from step 150 on
        with monkeypatch.context() as patch:
            kill_at(patch, call)
            with pytest.raises(Killed):
                train(killed, priorities=True)
    train(killed, priorities=True)
    assert_same(whole, killed)
    priorities = state(whole)["replay/out/priority"]
    assert (priorities >= 0).all(), "what the policy said never got in"
    assert len(np.unique(priorities)) > 10, "training wrote back"
    train(uniform, priorities=True, priority_alpha=0.0)
    assert metrics(uniform) != metrics(whole), "priorities change what is learned from"


def test_the_power_of_the_importance_weights_rises_with_the_updates(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    powers, sample = [], Replay.sample
    monkeypatch.setattr(Replay, "sample", lambda self, batch, beta: powers.append(beta) or sample(self, batch))
    train(tmp_path / "a", priorities=True, priority_beta=0.4, priority_anneal=20, steps=150)
    assert len(powers) == 2 * (150 - 30) // 8
    np.testing.assert_allclose(powers[:25], [0.4 + 0.6 * min(1, update / 20) for update in range(25)])
    assert experience.beta(config.default("fake").run, 10**6) == 1


def test_stopped_at_every_checkpoint(whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for _ in range(5):
        with monkeypatch.context() as patch:
            kill_at(patch, 17)
            with pytest.raises(Killed):
                train(tmp_path)
    train(tmp_path)
    assert_same(whole, tmp_path)


@pytest.mark.slow
def test_stopped_at_every_one_of_fifty_steps(whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = loop.Training.collect

    def last(self: loop.Training) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        original(self)

    with monkeypatch.context() as patch:
        patch.setattr(loop.Training, "collect", last)
        for step in range(1, 51):
            assert train(tmp_path).steps == 3 * (step - 1)
    train(tmp_path)
    assert_same(whole, tmp_path)


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
@pytest.mark.parametrize("call", [1, 40])
def test_a_signal_saves_and_the_resume_is_exact(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, call: int
) -> None:
    original, calls = loop.Training.collect, iter(range(1, 10**6))

    def signalled(self: loop.Training) -> None:
        if next(calls) == call:
            os.kill(os.getpid(), signal.Signals[name])
        original(self)

    with monkeypatch.context() as patch:
        patch.setattr(loop.Training, "collect", signalled)
        if name == "SIGINT":
            with pytest.raises(KeyboardInterrupt):
                train(tmp_path)
        else:
            assert train(tmp_path).steps == 3 * (call - 1)
    train(tmp_path)
    assert_same(whole, tmp_path)


@pytest.mark.parametrize(
    ("several", "update", "updates"), [(1, 1, 1), (1, 2, 2), (1, 17, 17), (4, 1, 4), (4, 2, 8), (4, 3, 9), (4, 5, 17)]
)
def test_a_signal_between_two_updates_is_heeded_and_the_resume_is_exact(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, several: int, update: int, updates: int
) -> None:
    many = SEVERAL | {"updates_per_dispatch": several}
    train(tmp_path / "whole", **many)
    original, calls = Recent.streak, iter(range(1, 10**6))

    def signalled(self: Recent) -> int:
        if next(calls) == update:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(self)

    with monkeypatch.context() as patch:
        patch.setattr(Recent, "streak", signalled)
        assert train(tmp_path / "cut", **many).updates == updates
    train(tmp_path / "cut", **many)
    assert_same(tmp_path / "whole", tmp_path / "cut")


@pytest.fixture
def terminal() -> Iterator[None]:
    """One whose end would be told, also where these tests run under `nohup`."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.mark.usefixtures("terminal")
def test_the_end_of_the_terminal_is_a_wish_but_under_nohup() -> None:
    with Stop() as stop:
        os.kill(os.getpid(), signal.SIGHUP)
    assert stop.signal == "SIGHUP"
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with Stop() as stop:
        os.kill(os.getpid(), signal.SIGHUP)
    assert stop.signal is None


def test_a_signal_during_an_evaluation_gives_it_up_until_the_resume(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = measures.evaluate

    def signalled(*args: Any) -> Any:
        os.kill(os.getpid(), signal.SIGTERM)
        return original(*args)

    with monkeypatch.context() as patch:
        patch.setattr(measures, "evaluate", signalled)
        assert train(tmp_path).steps == 72
    assert metrics(tmp_path)[-1]["step"] < 72
    train(tmp_path)
    assert_same(whole, tmp_path)


def test_the_same_seed_gives_the_same_run_and_another_seed_does_not(whole: Path, tmp_path: Path) -> None:
    train(tmp_path / "same")
    assert_same(whole, tmp_path / "same")
    train(tmp_path / "other", seed=1)
    assert metrics(tmp_path / "other") != metrics(whole)
    one, other = state(whole), state(tmp_path / "other")
    for name in ("agent/weights", "agent/key", "collector/carry/0/key", "collector/workers/crcs"):
        assert one[name].tobytes() != other[name].tobytes(), name


def test_groups_and_processes(tmp_path: Path) -> None:
    values = {"envs": 4, "groups": 2, "steps": 120}
    train(tmp_path / "inline", **values)
    train(tmp_path / "process", **values, workers="process")
    assert_same(tmp_path / "inline", tmp_path / "process")


def test_a_run_made_longer_is_the_long_run(whole: Path, tmp_path: Path) -> None:
    assert train(tmp_path, steps=60).steps == 60  # it ends with a line of metrics, an evaluation and a checkpoint
    assert train(tmp_path, steps=QUICK["steps"]).steps == metrics(tmp_path)[-1]["step"] == QUICK["steps"]
    assert_same_state(tmp_path, whole)


def test_a_run_ends_when_an_evaluation_is_good_enough(whole: Path, tmp_path: Path) -> None:
    goal = next(m["eval/mean_return"] for m in metrics(whole) if "eval/mean_return" in m)
    run = train(tmp_path, stop_return=goal)
    assert run.steps < QUICK["steps"]
    assert run.evaluation is not None
    assert run.evaluation.mean_return == goal
    again = train(tmp_path, stop_return=goal)  # there is nothing left to do
    assert (again.steps, again.updates) == (run.steps, run.updates)
    assert train(tmp_path, stop_return=None).steps >= QUICK["steps"]
    assert_same(whole, tmp_path)


def test_each_function_is_traced_once(tmp_path: Path) -> None:
    given = config.override(config.default("fake"), **QUICK | {"video_every": 100})
    result = run_quietly(given, tmp_path)
    once = ["policy/train", "policy/eval", "policy/random", "train", "report", "dream"]
    assert result.traces == {**dict.fromkeys(once, 1), "policy/sample": 0}
    assert {"rest", "envs", "policy", "train", "replay"} <= result.seconds.keys()


def run_quietly(given: Config, path: Path) -> loop.Result:
    from rich.console import Console

    return api.run_training(given, path, Console(quiet=True))


def test_dreams_are_drawn_when_due_and_at_the_end_and_change_nothing(whole: Path, tmp_path: Path) -> None:
    train(tmp_path, video_every=100)
    assert sorted(path.name for path in (tmp_path / "videos").iterdir()) == [
        f"dream-{step:09d}.png" for step in (102, 201, 240)
    ]
    (events,) = (tmp_path / "tensorboard").iterdir()
    assert events.read_bytes().count(b"\x89PNG") == 3
    assert_same(whole, tmp_path)
    assert train(tmp_path, video_every=0).steps == 240, "it may change within a run"
    assert not (whole / "videos").exists(), "nothing was drawn"


@pytest.mark.slow
def test_images_are_dreamt_as_videos(tmp_path: Path) -> None:
    values: dict[str, Any] = {"env": "reverie.envs.toy:Dummy", "env_kwargs": "{}", "steps": 90, "eval_episodes": 0}
    train(tmp_path, **values, video_every=60, report_every=0)
    names = sorted(path.name for path in (tmp_path / "videos").iterdir())
    assert names == [f"dream-{step:09d}.png" for step in (60, 90)] + [
        f"dream-image-{step:09d}.mp4" for step in (60, 90)
    ]
    (events,) = (tmp_path / "tensorboard").iterdir()
    assert events.read_bytes().count(b"GIF89a") == 2


def test_a_full_disk_costs_a_picture_and_not_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    original = Folder.replace

    def full(self: Folder, *args: Any) -> None:
        if self.parts == ("videos",):
            raise DiskError(errno.ENOSPC, "no space for 123 bytes")
        original(self, *args)

    monkeypatch.setattr(Folder, "replace", full)
    with caplog.at_level(logging.WARNING, "reverie"):
        assert train(tmp_path, steps=120, video_every=100).steps == 120
    assert caplog.text.count("no picture of a dream: no space") == 2


# --------------------------------------------------------------------------------------- faults


def test_a_poisoned_update_is_counted_and_survived(tmp_path: Path) -> None:
    run = train(tmp_path, poison_from=5, poison_to=8)
    assert run.steps == 240
    assert metrics(tmp_path)[-1]["nonfinite/total"] == 3
    assert metrics(tmp_path)[-1]["nonfinite/streak"] == 0
    poisoned = [r for r in metrics(tmp_path) if "loss/total" in r and r["loss/total"] is None]
    assert poisoned, "a mean over NaN stands as null"


def test_a_streak_of_poison_ends_the_run_and_keeps_the_last_good_checkpoint(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with (
        caplog.at_level(logging.WARNING, "reverie"),
        pytest.raises(NonFinite, match="7 updates in a row"),
    ):
        train(tmp_path, poison_from=11, max_nonfinite=7, checkpoint_every=6)
    assert "no checkpoint, the last update was not finite" in caplog.text
    checkpoint = Checkpoints(tmp_path / "checkpoints").load_latest()
    assert checkpoint is not None
    assert checkpoint.arrays["agent/updates"] == checkpoint.meta["progress"]["updates"] <= 11
    assert checkpoint.arrays["agent/bad"].tolist() == [0, 0]


def test_a_full_disk_costs_a_checkpoint_and_not_the_run(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    original, calls = Checkpoints.save, iter(range(10**6))

    def full(self: Checkpoints, *args: Any) -> Path:
        if next(calls) in (0, 2):
            raise DiskError(errno.ENOSPC, "no space for 123 bytes")
        return original(self, *args)

    monkeypatch.setattr(Checkpoints, "save", full)
    with caplog.at_level(logging.ERROR, "reverie"):
        train(tmp_path)
    assert caplog.text.count("training goes on") == 2
    assert_same(whole, tmp_path)


def test_a_clock_that_jumps_by_a_day_moves_nothing(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now, day = time.time, 86_400
    days = itertools.cycle([0, -day, day, day, -day, 0, -day])
    for name, unit in (("time", 1), ("time_ns", 10**9)):
        monkeypatch.setattr(time, name, lambda unit=unit: type(unit)(now() + next(days)) * unit)
    with monkeypatch.context() as patch:
        kill_at(patch, 60)
        with pytest.raises(Killed):
            train(tmp_path)
    saved = Checkpoints(tmp_path / "checkpoints").manifests()
    assert [c["step"] for c in saved] == [162, 120], "when it is time is a matter of steps"
    for age, path in enumerate(sorted(tmp_path.rglob("*"))):  # and so is what is newest
        os.utime(path, (1e9 - day * age, 1e9 - day * age))
    train(tmp_path)
    assert_same(whole, tmp_path)


def test_a_second_run_in_the_same_directory_is_refused(tmp_path: Path) -> None:
    with RunDirectory(tmp_path).with_lock(), pytest.raises(RunInUse, match=str(os.getpid())):
        train(tmp_path)


def test_a_checkpoint_of_another_size_is_refused_and_unharmed(tmp_path: Path) -> None:
    train(tmp_path, steps=60)
    before = state(tmp_path)
    file = tmp_path / "config.json"
    text = file.read_text()
    file.write_text(text.replace('"tiny"', '"small"'))
    with pytest.raises(Mismatch, match=r"weights: saved float32 \[3\], expected float32 \[5\]"):
        reverie.train("fake", run=tmp_path, steps=90)
    file.write_text(text)
    assert state(tmp_path).keys() == before.keys()


def test_a_failing_env_cuts_its_episode_and_is_counted(tmp_path: Path) -> None:
    script = json.dumps({"script": {"total:25": "raise"}})
    train(tmp_path, env="faulty:Faulty", env_kwargs=script, eval_every=0, steps=150)
    assert metrics(tmp_path)[-1]["env/failures"] > 0


def test_short_episodes_never_fill_a_window_within_episodes(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "reverie"):
        run = train(tmp_path, within_episodes=True, length=12, steps=60)
    assert run.updates == 0
    assert caplog.text.count("--no-within-episodes") == 1
    assert metrics(tmp_path)[-1]["updates/left_out"] == 2 * (60 - 39) // 24


# ------------------------------------------------------------------------------- real processes


def start(path: Path, algorithm: str = "fake", **values: Any) -> subprocess.Popen[str]:
    return runs.start(path, algorithm, **{**QUICK, **values})


LONG: dict[str, Any] = {
    "steps": 800,
    "replay_ratio": 0.5,
    "workers": "process",
    "envs": 2,
    "eval_every": 300,
}


def test_sigkill_then_the_same_command(tmp_path: Path) -> None:
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    train(straight, **LONG)
    victim = start(killed, **LONG)
    wait_for_metrics(killed, 20)
    victim.kill()
    victim.communicate()
    again = start(killed, **LONG)
    errors = again.communicate()[1]
    assert again.returncode == 0, errors
    assert_same(straight, killed)
    taken = [r["memory/worker_mb"] for r in log.read(straight / "metrics.jsonl") if "updates" in r]
    assert taken
    assert min(taken) > 10, "megabytes: there is no smaller Python"


@pytest.mark.usefixtures("terminal")
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 0), (signal.SIGINT, 130), (signal.SIGHUP, 0)])
def test_exit_codes_of_signals(tmp_path: Path, number: int, code: int) -> None:
    process = start(tmp_path, **{**LONG, "steps": 10**7})
    wait_for_metrics(tmp_path, 3)
    process.send_signal(number)
    errors = process.communicate(timeout=840)[1]
    assert process.returncode == code, errors
    checkpoint = Checkpoints(tmp_path / "checkpoints").load_latest()
    assert checkpoint is not None
    assert checkpoint.step >= metrics(tmp_path)[-1]["step"]
