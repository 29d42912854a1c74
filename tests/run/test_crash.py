"""Killed, cut from power, or failed at every single operation of a save: what is found again is whole."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from faulty_disk import FaultyDisk, Killed

from reverie.files import DiskError
from reverie.replay import segments
from reverie.replay.rows import Field
from reverie.replay.segments import Segments
from reverie.replay.sequences import Replay
from reverie.run.checkpoint import Checkpoints

FIELDS = {
    "obs/x": Field((3,), np.dtype(np.float32)),
    "is_first": Field((), np.dtype(bool)),
    "out/h": Field((2,), np.dtype(np.float16)),
}


class Run:
    """What a training loop holds and saves: a step, weights, a replay."""

    def __init__(self, path: Path) -> None:
        self.replay = Replay(FIELDS, streams=2, length=3, capacity=24, seed=0)
        self.segments = Segments(path / "replay")
        self.checkpoints = Checkpoints(path / "checkpoints")
        self.step, self.weights = 0, np.zeros(4, np.float32)
        latest = self.checkpoints.load_latest()
        if latest:
            self.step, self.weights = latest.step, latest.arrays["weights"].copy()
            assert self.segments.load(self.replay, latest.meta["replay"]) == 0

    def train(self, steps: int) -> None:
        for _ in range(steps):
            rng = np.random.default_rng(self.step)
            rows = {
                "obs/x": rng.random((2, 3), np.float32),
                "is_first": rng.random(2) < 0.2,
                "out/h": rng.random((2, 2)).astype(np.float16),
            }
            self.replay.add(np.arange(2), rows)
            if self.replay.can_sample():
                batch = self.replay.sample(2)
                self.weights += batch["obs/x"].sum()
                self.replay.update(batch["id"], {"out/h": batch["out/h"] + np.float16(1)})
            self.step += 1

    def save(self) -> None:
        manifest = self.segments.save(self.replay)
        self.checkpoints.save(self.step, {"weights": self.weights}, {"replay": manifest})
        self.segments.collect_garbage([m["meta"]["replay"] for m in self.checkpoints.manifests()])

    def everything(self) -> dict[str, Any]:
        held = self.replay.held
        rows = {k: a[held].tobytes() for k, a in self.replay.arrays.items()}
        return {
            "step": self.step,
            "weights": self.weights.tobytes(),
            "held": held.tobytes(),
            "replay": self.replay.state(),
            **rows,
        }


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(segments, "RECORD_BYTES", 300)
    monkeypatch.setattr(segments, "SEGMENT_BYTES", 700)
    with FaultyDisk()():  # no fsync of the real disk, thousands of times
        yield


def prepare(path: Path, steps: list[int]) -> None:
    """A run directory after saves of so many steps each."""
    path.mkdir()
    for n in steps:
        run = Run(path)
        run.train(n)
        run.save()


@pytest.mark.parametrize("mode", ["kill", "power"])
@pytest.mark.parametrize("before", [[], [5], [8, 9, 9, 9]], ids=["the first save", "the second", "with cleaning"])
def test_a_crash_at_any_operation_leaves_the_old_or_the_new(before: list[int], mode: str, tmp_path: Path) -> None:
    prepare(tmp_path / "start", before)
    old = Run(tmp_path / "start").everything()
    whole = tmp_path / "whole"
    shutil.copytree(tmp_path / "start", whole)
    run = Run(whole)
    run.train(9)
    with FaultyDisk()() as disk:
        run.save()
    new = run.everything()
    assert Run(whole).everything() == new
    run.train(4)
    later = run.everything()
    expected = {"rename", "fsync", "pwrite", *(["unlink", "rmdir"] if len(before) > 1 else [])}
    assert expected <= set(disk.operations)

    outcomes = set()
    for at in range(len(disk.operations)):
        path = tmp_path / f"{at}"
        shutil.copytree(tmp_path / "start", path)
        run = Run(path)
        run.train(9)
        with FaultyDisk(at, mode)(), pytest.raises(Killed):
            run.save()
        found = Run(path)
        state = found.everything()
        assert state in (old, new), f"a {mode} at {at}, {disk.operations[at]}: a mixed state"
        outcomes.add(state == new)
        # The same command again: it catches up, saves, and leaves no litter.
        found.train(new["step"] + 4 - found.step)
        assert found.everything() == later
        found.save()
        assert Run(path).everything() == later
        assert not list((path / "checkpoints").glob("tmp-*"))
        named = {
            s["name"]: s["length"]
            for m in reversed(found.checkpoints.manifests())
            for s in m["meta"]["replay"]["segments"]
        }
        on_disk = {p.name: p.stat().st_size for p in (path / "replay").iterdir()}
        assert on_disk == named
        shutil.rmtree(path)
    # Without anything to clear away, the last operation is the flush that makes the new one count.
    assert outcomes == ({False} if mode == "power" and len(before) < 2 else {False, True})


def test_a_disk_full_at_any_write_is_an_error_and_the_next_save_succeeds(tmp_path: Path) -> None:
    prepare(tmp_path / "start", [8, 9, 9])
    old = Run(tmp_path / "start").everything()
    for at in range(1000):
        path = tmp_path / f"{at}"
        shutil.copytree(tmp_path / "start", path)
        run = Run(path)
        run.train(9)
        try:
            with FaultyDisk(at, "full")():
                run.save()
        except DiskError:
            assert Run(path).everything() == old
        else:
            break  # no write after this one
        run.train(2)  # it goes on, and the space comes back
        run.save()
        assert Run(path).everything() == run.everything()
    assert at > 20


@pytest.mark.parametrize("code", [errno.ESTALE, errno.EIO])
@pytest.mark.parametrize("mode", ["refused", "unheard"])
def test_an_operation_that_fails_once_loses_nothing(mode: str, code: int, tmp_path: Path) -> None:
    """Stale handles, lost answers, a disk that reports a fault: the save counts as a whole or not at all."""
    prepare(tmp_path / "start", [8, 9, 9, 9])
    old = Run(tmp_path / "start").everything()
    outcomes = set()
    for at in range(1000):
        path = tmp_path / f"{at}"
        shutil.copytree(tmp_path / "start", path)
        run = Run(path)
        run.train(9)
        new = run.everything()
        with FaultyDisk(at, mode, code)() as disk:
            try:
                run.save()
            except DiskError:
                outcomes.add("told")
        if len(disk.operations) <= at:
            break  # no operation after this one
        state = Run(path).everything()
        assert state in (old, new), f"{mode} at {at}, {disk.operations[at]}: a mixed state"
        outcomes.add("new" if state == new else "old")
        run.train(2)  # the same process goes on, whatever it was told
        run.save()
        assert Run(path).everything() == run.everything()
        run.train(2)
        run.save()
        assert not list((path / "checkpoints").glob("tmp-*"))
        shutil.rmtree(path)
    assert at > 20
    assert outcomes == {"told", "old", "new"}
