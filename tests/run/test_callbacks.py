"""Who hears of a run: functions of a caller, and trackers of experiments."""

from __future__ import annotations

import sys
import types
from pathlib import Path
from typing import Any

import pytest

import reverie
from reverie import algos
from reverie.config import ConfigError
from reverie.run.callbacks import Callbacks
from reverie.run.checkpoint import Checkpoints

QUICK: dict[str, Any] = {
    "env": "reverie.envs.toy:Counting",
    "preset": "quick",
    "steps": 40,
    "warmup": 10,
    "envs": 2,
    "workers": "inline",
    "log_every": 10,
    "eval_every": 20,
    "eval_episodes": 2,
    "checkpoint_every": 20,
    "video_every": 0,
}


@pytest.fixture(autouse=True)
def fake(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(algos.ALGORITHMS, "fake", "fakes")


class Ears:
    """Hears everything."""

    def __init__(self) -> None:
        self.callbacks: list[tuple[str, int, Any]] = []

    def functions(self) -> dict[str, Any]:
        names = ("on_log", "on_eval", "on_episode", "on_checkpoint")
        return {name: lambda step, what, name=name: self.callbacks.append((name, step, what)) for name in names}

    def of(self, name: str) -> list[tuple[int, Any]]:
        return [(step, what) for called, step, what in self.callbacks if called == name]


def test_callbacks_hear_of_a_run(tmp_path: Path) -> None:
    ears = Ears()
    run = reverie.train("fake", run=tmp_path, **QUICK, **ears.functions())
    assert [step for step, _ in ears.of("on_eval")] == [20, 40]
    assert ears.of("on_eval")[-1][1] == run.evaluation
    logged = ears.of("on_log")
    assert [step for step, _ in logged] == [10, 20, 30, 40]
    assert all(type(x) is float for _, values in logged for x in values.values())
    assert "loss/total" in logged[-1][1]
    assert ears.of("on_episode")
    assert all(episode.length > 0 for _, episode in ears.of("on_episode"))
    step, path = ears.of("on_checkpoint")[-1]
    assert step == 40
    assert path.parent == tmp_path / "checkpoints"
    assert Checkpoints(path.parent).load_latest() is not None


def test_one_that_raises_is_told_once_and_changes_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def broken(step: int, what: Any) -> None:
        raise RuntimeError("the server is away")

    ears = Ears()
    with caplog.at_level("WARNING", "reverie"):
        run = reverie.train("fake", run=tmp_path, **QUICK, **{**ears.functions(), "on_log": broken})
    assert run.steps == 40
    assert caplog.text.count("on_log raised RuntimeError: the server is away. Training goes on") == 1
    assert ears.of("on_eval"), "the others go on hearing"


def test_ctrl_c_in_a_callback_is_no_error_of_it() -> None:
    def interrupted(step: int, what: Any) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Callbacks(on_log=interrupted)("on_log", 1, {})


# ---------------------------------------------------------------------------------------- loggers


class Tracker(types.ModuleType):
    """As much of wandb and trackio as is called, in memory."""

    def __init__(self, name: str, fault: str = "") -> None:
        super().__init__(name)
        self.__spec__ = types.SimpleNamespace()  # type: ignore[assignment]  # it can be found
        self.begun: dict[str, Any] = {}
        self.lines: list[tuple[int, dict[str, Any]]] = []
        self.new_episodes = 0
        self.fault = fault

    def init(self, **given: Any) -> Tracker:
        if self.fault == "init":
            raise OSError("no route to host")
        self.begun = given
        return self

    def define_metric(self, name: str, step_metric: str) -> None:
        assert (name, step_metric) == ("*", "env_steps")

    def log(self, values: dict[str, Any], step: int = -1) -> None:
        if self.fault == "log":
            raise OSError("no route to host")
        self.lines.append((values.pop("env_steps", step), values))

    def finish(self) -> None:
        self.new_episodes += 1


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_a_logger_gets_the_config_and_every_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setitem(sys.modules, name, tracker := Tracker(name))
    reverie.train("fake", run=tmp_path / "mine", logger=name, **QUICK)
    assert tracker.begun["project"] == "reverie"
    assert tracker.begun["name"] == "mine"
    assert tracker.begun["config"]["algorithm"] == "fake"
    assert tracker.begun["config"]["rate"] == 0.5
    assert [step for step, _ in tracker.lines] == [10, 20, 30, 40]
    assert {"loss/total", "eval/mean_return"} <= tracker.lines[-1][1].keys()
    assert tracker.new_episodes == 1


@pytest.mark.parametrize("name", ["wandb", "trackio"])
@pytest.mark.parametrize("fault", ["init", "log"])
def test_a_logger_that_fails_warns_once_and_training_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, name: str, fault: str
) -> None:
    monkeypatch.setitem(sys.modules, name, Tracker(name, fault))
    with caplog.at_level("WARNING", "reverie"):
        assert reverie.train("fake", run=tmp_path, logger=name, **QUICK).steps == 40
    assert caplog.text.count("no route to host") == 1
    assert "Training goes on" in caplog.text


def test_a_logger_that_is_not_installed_is_told_before_anything_begins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r'--logger trackio needs .* `pip install "reverie\[trackio\]"`'):
        reverie.train("fake", run=tmp_path / "x", logger="trackio", **QUICK)
    assert not (tmp_path / "x").exists()


def test_a_resume_may_have_another_logger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", tracker := Tracker("wandb"))
    reverie.train("fake", run=tmp_path, **QUICK)
    reverie.train("fake", run=tmp_path, **{**QUICK, "steps": 50}, logger="wandb")
    assert [step for step, _ in tracker.lines] == [50]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_the_real_loggers_work_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))  # read when it is imported
    pytest.importorskip(name)
    ears = Ears()
    with pytest.WarningsRecorder(_ispytest=True):
        reverie.train("fake", run=tmp_path / "run", logger=name, **QUICK, **ears.functions())
    assert ears.of("on_log")
    left = {"wandb": tmp_path / "run" / "wandb", "trackio": tmp_path / "trackio"}[name]
    assert any(path.is_file() for path in left.rglob("*"))
