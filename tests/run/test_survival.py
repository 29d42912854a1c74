"""What a run outlives besides a kill: full disks, want of memory, bad bytes, signals while it saves; and what it does
not: the end of its directory."""

from __future__ import annotations

import logging
import os
import resource
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import fakes
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import runs
import test_algorithms
import test_loop
from gymnasium.envs.classic_control import CartPoleEnv as CartPole
from runs import assert_same, assert_same_state, metrics, wait_for_metrics
from test_loop import LONG, QUICK

from reverie import files
from reverie.health import NonFinite
from reverie.run import loop, measures
from reverie.run.checkpoint import Checkpoints
from reverie.run.directory import RunGone

Train = Callable[[Path], Any]


fake, whole, train = test_loop.fake, test_loop.whole, test_loop.train


def at(patch: pytest.MonkeyPatch, happenings: dict[int, Callable[[], Any]], method: str = "collect") -> None:
    """Before its so-maniest call from now on of a method of the loop, something happens."""
    original, calls = getattr(loop.Training, method), iter(range(1, 10**6))

    def disturbed(self: loop.Training, *args: Any) -> Any:
        happenings.get(next(calls), int)()
        return original(self, *args)

    patch.setattr(loop.Training, method, disturbed)


# ------------------------------------------------------------------------------------ full disks


@contextmanager
def tmpfs(path: Path, size: str) -> Iterator[None]:
    """A small disk."""
    path.mkdir(parents=True)
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(path)], capture_output=True)
    if mounted.returncode:
        pytest.skip(f"no tmpfs can be mounted here: {mounted.stderr.decode().strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(path)], check=True)


def fill(folder: Path) -> None:
    """Leaves no byte free, in the files that are there neither."""
    handle = os.open(folder / "ballast", os.O_WRONLY | os.O_CREAT)
    with suppress(OSError):
        while True:
            os.write(handle, bytes(4096))
    os.close(handle)


def fake_run(path: Path) -> None:
    train(path)


def search_run(path: Path) -> None:
    test_algorithms.train("gumbel_muzero", "device:CartPole", path, checkpoint_every=16)


ALGORITHMS = pytest.mark.parametrize(
    ("run", "calls"), [(fake_run, 80), pytest.param(search_run, 12, marks=pytest.mark.slow)], ids=["fake", "search"]
)


@ALGORITHMS
@pytest.mark.parametrize("where", ["", "tensorboard"])
def test_a_disk_that_is_full_for_a_while_changes_nothing(
    run: Train,
    calls: int,
    where: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    straight, short = tmp_path / "straight", tmp_path / "short"
    run(straight)
    disk = short / where
    with tmpfs(disk, "16m"), caplog.at_level(logging.WARNING, "reverie"):
        with monkeypatch.context() as patch:
            happenings = {calls // 4: lambda: fill(disk), 3 * calls // 4: (disk / "ballast").unlink}
            at(patch, happenings)
            run(short)
        assert_same(straight, short)
        assert caplog.text.count("TensorBoard shows nothing more until that works again") == 1
        if not where:
            assert caplog.text.count("Metrics wait in memory") == 1
            assert "no checkpoint, training goes on: cannot write" in caplog.text
        (events,) = (short / "tensorboard").glob("events*")
        assert events.stat().st_size > 0


def test_a_file_that_may_not_grow_any_more_costs_no_step(tmp_path: Path) -> None:
    straight, short, most = tmp_path / "straight", tmp_path / "short", 24_000
    values = {**QUICK, "log_every": 5}
    train(straight, **values)
    process = runs.start(short, "fake", **values)
    wait_for_metrics(short, 1)
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (most, most))
    errors = process.communicate(timeout=840)[1]
    assert process.returncode == 0, errors
    assert_same_state(straight, short)
    told = metrics(short)
    assert 1 < len(told) < len(metrics(straight))
    assert told == metrics(straight)[: len(told)]
    (events,) = (short / "tensorboard").iterdir()
    assert most - 3000 < events.stat().st_size <= most


@pytest.mark.parametrize("obstacle", [Path.touch, lambda path: path.symlink_to("nothing")], ids=["file", "link"])
def test_no_place_for_tensorboard(obstacle: Callable[[Path], None], whole: Path, tmp_path: Path) -> None:
    obstacle(tmp_path / "tensorboard")
    train(tmp_path)
    assert_same(whole, tmp_path)


# ------------------------------------------------------------------------------------- bad bytes


def test_a_bad_byte_in_the_metrics_is_no_end_of_a_run(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with monkeypatch.context() as patch:
        at(patch, {60: lambda: os.kill(os.getpid(), signal.SIGTERM)})
        train(tmp_path)
    file = tmp_path / "metrics.jsonl"
    data = bytearray(file.read_bytes())
    data[data.index(b"updates")] = 0xFF
    file.write_bytes(data)
    with caplog.at_level(logging.WARNING, "reverie"):
        train(tmp_path)
        assert f"{file}: line 1 ('utf-8' codec can't decode" in caplog.text
        assert metrics(tmp_path) == metrics(whole)[1:]
    assert_same_state(whole, tmp_path)


# ---------------------------------------------------------------------------------------- memory


def impossible(*args: Any, **kwargs: Any) -> Any:
    """More than any address space holds: the error of the device itself."""
    return {"sorted": jnp.sort(jnp.arange(2**46, dtype=jnp.float32))[0]}


def exhausted(*args: Any, **kwargs: Any) -> Any:
    raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 12 bytes.\nbuffers: ...")


def no_memory(*args: Any, **kwargs: Any) -> Any:
    raise MemoryError


@pytest.mark.parametrize(
    ("where", "name", "fault", "told"),
    [
        (fakes.Fake, "report", impossible, "no report, training goes on: "),
        (fakes.Fake, "report", no_memory, "no report, training goes on: MemoryError. --report-every 0 leaves"),
        (fakes.Fake, "dream", exhausted, "no picture of a dream, training goes on: RESOURCE_EXHAUSTED: Out of memory"),
        (measures.dreams, "film", no_memory, "no picture of a dream, training goes on: MemoryError. --video-every 0"),
        (measures, "evaluate", exhausted, "no evaluation, training goes on: RESOURCE_EXHAUSTED: Out of memory"),
    ],
    ids=["report", "report on the host", "dream", "drawing", "evaluation"],
)
def test_no_memory_to_look_at_a_run_costs_a_look(
    where: Any,
    name: str,
    fault: Any,
    told: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    straight, short = tmp_path / "straight", tmp_path / "short"
    values = {"video_every": 100, "steps": 120}
    train(straight, **values, **({"eval_episodes": 0} if name == "evaluate" else {}))
    monkeypatch.setattr(where, name, fault)
    with caplog.at_level(logging.WARNING, "reverie"):
        train(short, **values)
    assert caplog.text.count(told) >= 2
    assert "buffers" not in caplog.text, "one line of what may be many"
    missing = ("report/",) if name == "report" else ()
    expected = [{k: v for k, v in record.items() if not k.startswith(missing)} for record in metrics(straight)]
    assert metrics(short) == [record for record in expected if record.keys() != {"step"}]
    assert_same_state(straight, short)


# --------------------------------------------------------------------------------------- rewards


class Colossal(CartPole):
    """Rewards at the end of what float32 can say: finite, and their sums are not."""

    def __init__(self) -> None:
        super().__init__()
        self._rng = np.random.default_rng(0)

    def step(self, action: Any) -> Any:
        obs, _, *flags = super().step(action)
        return obs, float(self._rng.choice([1e38, -1e38, 3e38])), *flags


@pytest.mark.slow  # the updates of every family meet such rewards in tests of their own
@pytest.mark.filterwarnings("ignore:.*encountered in reduce:RuntimeWarning")  # of sums that are told as null
def test_colossal_rewards_do_not_end_a_run(tmp_path: Path) -> None:
    result = test_algorithms.train("gumbel_muzero", f"{__name__}:Colossal", tmp_path, reanalyse=0.25)
    assert result.updates > 10
    records = [record for record in metrics(tmp_path) if "updates" in record]
    assert records[-1]["nonfinite/total"] == 0
    assert all(np.isfinite(x).all() for x in runs.state(tmp_path).values() if x.dtype == np.float32)


def test_a_state_that_is_not_finite_is_never_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train(tmp_path, steps=60)
    original = loop.Training.turn

    def poisoned(self: loop.Training) -> Any:
        following = original(self)
        self.state["wish"] += jnp.inf
        return following

    monkeypatch.setattr(loop.Training, "turn", poisoned)
    with pytest.raises(NonFinite, match="agent/wish is not finite any more"):
        train(tmp_path, steps=120)
    checkpoint = Checkpoints(tmp_path / "checkpoints").load_latest()
    assert checkpoint is not None
    assert checkpoint.step == 60
    assert np.isfinite(checkpoint.arrays["agent/wish"])


# --------------------------------------------------------------------------------------- signals


def test_a_second_sigterm_while_it_saves_does_no_harm(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = Checkpoints.save

    def signalled(self: Checkpoints, *args: Any) -> Path:
        os.kill(os.getpid(), signal.SIGTERM)
        return original(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "save", signalled)
        at(patch, {10: lambda: os.kill(os.getpid(), signal.SIGTERM)})
        assert train(tmp_path).steps == 27
    train(tmp_path)
    assert_same(whole, tmp_path)


@pytest.mark.parametrize("operation", ["make", "create", "rename", "sync"])
def test_ctrl_c_twice_in_the_middle_of_a_save_costs_only_that(
    operation: str, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = getattr(files.Folder, operation)

    def signalled(self: files.Folder, *args: Any) -> Any:
        if "tmp-" in str((self.path, *args)) or operation == "sync":
            os.kill(os.getpid(), signal.SIGINT)
        return original(self, *args)

    with monkeypatch.context() as patch:
        at(
            patch,
            {50: lambda: (os.kill(os.getpid(), signal.SIGINT), patch.setattr(files.Folder, operation, signalled))},
        )
        with pytest.raises(KeyboardInterrupt):
            train(tmp_path)
    train(tmp_path)
    assert_same(whole, tmp_path)
    assert not list((tmp_path / "checkpoints").glob("tmp-*"))


def test_ctrl_c_takes_the_workers_along(tmp_path: Path) -> None:
    process = runs.start(tmp_path, "fake", **{**QUICK, **LONG, "steps": 10**7})
    wait_for_metrics(tmp_path, 1)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    assert len(children) >= 2
    process.send_signal(signal.SIGINT)
    errors = process.communicate(timeout=840)[1]
    assert process.returncode == 130, errors
    assert not any(Path(f"/proc/{child}/cmdline").exists() for child in children)


# --------------------------------------------------------------------------------- the directory


def test_a_run_that_is_moved_stops_and_goes_on_where_it_is_now(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, new = tmp_path / "run", tmp_path / "new"
    with monkeypatch.context() as patch:
        at(patch, {40: lambda: path.rename(new)})
        with pytest.raises(RunGone, match="was deleted or moved"):
            train(path)
    assert not path.exists()
    train(new)
    assert_same(whole, new)


def test_a_run_whose_directory_is_another_now_leaves_that_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "run"

    def exchange() -> None:
        shutil.rmtree(path)
        path.mkdir()
        (path / "run.lock").write_text("of somebody else")

    at(monkeypatch, {40: exchange})
    with pytest.raises(RunGone):
        train(path)
    assert [file.name for file in path.iterdir()] == ["run.lock"]


def test_a_run_that_is_deleted_says_so_in_a_sentence(tmp_path: Path) -> None:
    path = tmp_path / "run"
    process = runs.start(path, "fake", **{**QUICK, **LONG, "workers": "inline", "steps": 10**7})
    wait_for_metrics(path, 3)
    path.rename(tmp_path / "gone")
    shutil.rmtree(tmp_path / "gone")
    errors = process.communicate(timeout=840)[1]
    assert process.returncode == 1, errors
    assert f"reverie: {path} was deleted or moved while this run wrote to it" in errors
    assert "Traceback" not in errors
    assert not path.exists()
