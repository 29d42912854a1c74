from __future__ import annotations

import errno
import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
from faulty_disk import FaultyDisk

from reverie import files
from reverie.files import DiskError, Folder, Missing, NotPlain


def test_create_then_append_then_truncate(tmp_path: Path) -> None:
    folder = Folder(tmp_path)
    assert folder.create("a", [b"one", memoryview(b"two")]) == 6
    assert folder.append("a", 6, [b"!"]) == 7
    assert folder.read("a") == b"onetwo!"
    folder.truncate("a", 3)
    assert folder.read("a") == b"one"
    assert folder.read("a", 2) == b"on"
    assert folder.size("a") == 3


def test_writes_larger_than_one_call_are_continued(tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files, "_WRITE", 4)
        Folder(tmp_path).create("a", [b"0123456789", b"ab"])
    assert (tmp_path / "a").read_bytes() == b"0123456789ab"


def test_everything_written_is_flushed_before_it_counts(tmp_path: Path) -> None:
    with FaultyDisk()() as disk:
        folder = Folder(tmp_path) / "x" / "y"
        folder.make()
        folder.create("a", [b"1"])
        folder.sync()
    assert disk.operations == ["mkdir", "fsync", "mkdir", "fsync", "open", "pwrite", "fsync", "fsync"]


def test_create_refuses_an_existing_file_and_a_link(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"mine")
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(DiskError, match=r"cannot open .*a: File exists"):
        Folder(tmp_path).create("a", [b"x"])
    with pytest.raises(NotPlain, match=r"link is a link to .*elsewhere"):
        Folder(tmp_path).create("link", [b"x"])
    assert (tmp_path / "a").read_bytes() == b"mine"
    assert not (tmp_path / "elsewhere").exists()


def test_a_full_disk_names_the_path_and_the_bytes(tmp_path: Path) -> None:
    with FaultyDisk(at=0, mode="full")(), pytest.raises(DiskError) as caught:
        Folder(tmp_path).create("weights", [b"x" * 1000])
    assert caught.value.errno == errno.ENOSPC
    text = str(caught.value)
    for part in ("1000 bytes", "weights", "free some space"):
        assert part in text


def test_remove_takes_a_directory_but_never_follows_a_link(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "precious").write_bytes(b"1")
    inside = tmp_path / "inside"
    (inside / "deep").mkdir(parents=True)
    (inside / "deep" / "file").write_bytes(b"2")
    (inside / "link").symlink_to(outside)
    Folder(tmp_path).remove("inside")
    assert not inside.exists()
    assert (outside / "precious").read_bytes() == b"1"


def test_replace_and_set_aside_keep_what_a_link_leads_to(tmp_path: Path) -> None:
    (tmp_path / "precious").write_bytes(b"1")
    for name in ("a", "b"):
        (tmp_path / name).symlink_to(tmp_path / "precious")
    folder = Folder(tmp_path)
    folder.replace("a", b"2")
    assert folder.read("a") == b"2"
    assert folder.set_aside("b") == "damaged-b"
    (tmp_path / "b").write_bytes(b"3")
    assert folder.set_aside("b") == "damaged-b-1"
    assert (tmp_path / "precious").read_bytes() == b"1"


def test_what_is_missing_is_told_from_what_fails(tmp_path: Path) -> None:
    with pytest.raises(Missing, match=r"cannot open .*x"):
        Folder(tmp_path).read("x")
    with pytest.raises(Missing, match=r"cannot open the directory .*no"):
        (Folder(tmp_path) / "no").read("x")
    assert (Folder(tmp_path) / "no").names() == []


def fifo(path: Path) -> None:
    os.mkfifo(path)


def plug(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as one:
        one.bind(os.fspath(path))


def link(path: Path) -> None:
    path.symlink_to("/dev/zero")


def dead_link(path: Path) -> None:
    path.symlink_to(path.parent / "outside")


def directory(path: Path) -> None:
    path.mkdir()


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (fifo, "a FIFO"),
        (plug, "a socket"),
        (link, "a link to /dev/zero"),
        (dead_link, "a link to .*outside"),
        (directory, "a directory"),
    ],
)
def test_nothing_but_a_file_is_opened_as_one(make: Callable[[Path], None], told: str, tmp_path: Path) -> None:
    make(tmp_path / "x")
    folder = Folder(tmp_path)
    for attempt in (
        lambda: folder.read("x"),
        lambda: folder.append("x", 0, [b"1"]),
        lambda: folder.truncate("x", 0),
        lambda: folder.create("x", [b"1"]),
        lambda: folder.open("x", os.O_RDWR | os.O_CREAT),
    ):
        with pytest.raises((NotPlain, DiskError), match=f"x is {told}, expected a file|File exists|Is a directory"):
            attempt()
    with pytest.raises(NotPlain, match=f"x is {told}, expected a file"):
        folder.read("x")
    assert not (tmp_path / "outside").exists()


def test_no_directory_below_the_root_may_be_a_link(tmp_path: Path) -> None:
    (tmp_path / "outside" / "deep").mkdir(parents=True)
    (tmp_path / "outside" / "deep" / "a").write_bytes(b"1")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "x").symlink_to(tmp_path / "outside")
    folder = Folder(tmp_path / "run") / "x" / "deep"
    for attempt in (
        folder.names,
        folder.make,
        folder.sync,
        lambda: folder.read("a"),
        lambda: folder.remove("a"),
        lambda: folder.replace("a", b"2"),
        lambda: folder.rename("a", "b"),
    ):
        with pytest.raises(NotPlain, match=r"run/x is a link to .*outside, expected a directory"):
            attempt()
    assert (tmp_path / "outside" / "deep" / "a").read_bytes() == b"1"
    (tmp_path / "door").symlink_to(tmp_path / "outside")
    assert (Folder(tmp_path / "door") / "deep").read("a") == b"1", "the root itself may be one"


def test_a_file_with_two_names_is_not_written_to(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"precious")
    os.link(tmp_path / "a", tmp_path / "b")
    folder = Folder(tmp_path)
    assert folder.read("b") == b"precious"
    for attempt in (lambda: folder.append("b", 0, [b"1"]), lambda: folder.truncate("b", 0)):
        with pytest.raises(NotPlain, match="b is one of 2 names of the same file"):
            attempt()
    folder.replace("b", b"new")
    assert (tmp_path / "a").read_bytes() == b"precious"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_no_permission_is_explained(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(DiskError, match="choose another directory"):
        files.make_dir(tmp_path / "x")
