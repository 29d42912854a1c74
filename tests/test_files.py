from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
from faulty_disk import FaultyDisk

from reverie import files


def test_create_then_append_then_truncate(tmp_path: Path) -> None:
    path = tmp_path / "a"
    assert files.create(path, [b"one", memoryview(b"two")]) == 6
    assert files.append(path, 6, [b"!"]) == 7
    assert path.read_bytes() == b"onetwo!"
    files.truncate(path, 3)
    assert path.read_bytes() == b"one"


def test_writes_larger_than_one_call_are_continued(tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files, "_WRITE", 4)
        files.create(tmp_path / "a", [b"0123456789", b"ab"])
    assert (tmp_path / "a").read_bytes() == b"0123456789ab"


def test_everything_written_is_flushed_before_it_counts(tmp_path: Path) -> None:
    with FaultyDisk()() as disk:
        files.make_dir(tmp_path / "x" / "y")
        files.create(tmp_path / "x" / "y" / "a", [b"1"])
        files.sync_dir(tmp_path / "x" / "y")
    expected = ["mkdir", "open", "fsync"] * 2 + ["open", "pwrite", "fsync", "open", "fsync"]
    assert disk.operations == expected


def test_create_refuses_an_existing_file_and_a_link(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"mine")
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    for name in ("a", "link"):
        with pytest.raises(files.DiskError, match=f"cannot open .*{name}"):
            files.create(tmp_path / name, [b"x"])
    assert (tmp_path / "a").read_bytes() == b"mine"
    assert not (tmp_path / "elsewhere").exists()


def test_a_full_disk_names_the_path_and_the_bytes(tmp_path: Path) -> None:
    with FaultyDisk(at=0, mode="full")(), pytest.raises(files.DiskError) as caught:
        files.create(tmp_path / "weights", [b"x" * 1000])
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
    files.remove(inside)
    assert not inside.exists()
    assert (outside / "precious").read_bytes() == b"1"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_no_permission_is_explained(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(files.DiskError, match="choose another directory"):
        files.make_dir(tmp_path / "x")
