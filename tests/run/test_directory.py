from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from faulty_disk import FaultyDisk, Killed

from reverie.files import DiskError
from reverie.run.directory import RunDirectory, RunInUse

HOLD = """
import signal, sys
from pathlib import Path
from reverie.run.directory import RunDirectory
with RunDirectory(Path(sys.argv[1])).with_lock():
    print("locked", flush=True)
    signal.pause()
"""


def test_the_directories_are_there_while_locked(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "runs" / "x")
    with run.with_lock():
        assert all(folder.is_dir() for folder in (run.checkpoints, run.replay))
        assert not run.videos.exists(), "nothing is drawn yet"
        owner = json.loads(run.lock.read_text())
    assert (owner["pid"], owner["host"]) == (os.getpid(), socket.gethostname())
    assert not list(run.path.glob(".probe*"))


def test_a_second_opener_learns_who_is_first(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    with run.with_lock(), pytest.raises(RunInUse) as caught, run.with_lock():
        pass
    assert f"process {os.getpid()} on {socket.gethostname()}" in str(caught.value)
    with run.with_lock():  # released
        pass


def test_the_lock_of_a_killed_process_is_taken_over(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    root = Path(__file__).parents[2]
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)],
        stdout=subprocess.PIPE,
        cwd=root,
        env={**os.environ, "PYTHONPATH": str(root)},
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"locked\n"
        with pytest.raises(RunInUse, match=f"process {holder.pid} "), run.with_lock():
            pass
        holder.send_signal(signal.SIGKILL)
        holder.wait()
    assert json.loads(run.lock.read_text())["pid"] == holder.pid  # a stale file
    with run.with_lock():
        assert json.loads(run.lock.read_text())["pid"] == os.getpid()


def test_a_directory_that_cannot_be_written_is_found_at_once(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    disk = FaultyDisk(at=0, mode="full")
    with disk(), pytest.raises(DiskError, match="free some space"), run.with_lock():
        pytest.fail("went on with a full disk")


def test_a_directory_on_two_devices_is_refused_at_once(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    with FaultyDisk(at=0, mode="crossing")(), pytest.raises(DiskError, match="lies on one device"), run.with_lock():
        pytest.fail("went on where nothing can be renamed")
    assert list(tmp_path.iterdir()) == []
    with run.with_lock():
        pass


def test_a_file_in_the_way_is_explained(tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("not a directory")
    run = RunDirectory(tmp_path / "runs" / "x")
    with pytest.raises(DiskError, match="cannot make the directory"), run.with_lock():
        pytest.fail("went on without a directory")


def test_a_run_that_never_began_leaves_nothing(tmp_path: Path) -> None:
    def stopped(path: Path, *there: str) -> None:
        for name in there:
            (path / name).write_text("")
        raise KeyboardInterrupt

    def fail(path: Path, *there: str) -> None:
        with pytest.raises(KeyboardInterrupt), RunDirectory(path).with_lock():
            stopped(path, *there)

    fail(tmp_path / "new")
    assert not (tmp_path / "new").exists()
    (tmp_path / "mine").mkdir()
    fail(tmp_path / "mine")
    assert list((tmp_path / "mine").iterdir()) == [], "a directory that was there stays"
    fail(tmp_path / "begun", "config.json")
    assert {x.name for x in (tmp_path / "begun").iterdir()} >= {"config.json", "checkpoints", "run.lock"}
    fail(tmp_path / "other", "notes.txt")
    assert [x.name for x in (tmp_path / "other").iterdir()] == ["notes.txt"]


def test_a_probe_that_was_killed_leaves_nothing_for_long(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    with run.with_lock():
        run.config.write_text("")
    for old in (".probe-77", ".probe"):  # of 0.1.0, and of now
        (tmp_path / old).write_bytes(b"rev")
    with run.with_lock():
        assert not list(tmp_path.glob(".probe*"))
    killed = 0
    for at in range(20):
        try:
            with FaultyDisk(at)(), run.with_lock():
                pass
        except Killed:
            killed += bool(list(tmp_path.glob(".probe*")))
    with run.with_lock():
        assert not list(tmp_path.glob(".probe*"))
    assert killed, "it was killed between making the probe and removing it"
