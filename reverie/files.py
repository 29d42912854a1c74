"""The few durable file operations that everything on disk goes through.

Each function calls `os.*` of this module and nothing else, so that a test can put a recording
stand-in for `os` here, stop after any operation, and look at what a crash would have left behind.

A failed operation raises `DiskError` (an `OSError` with the same `errno`), naming the path and, for
writes, the bytes that did not fit.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

_WRITE = 1 << 26  # bytes handed to one os.write; Linux takes at most 2 GiB
_HINTS = {
    errno.ENOSPC: "free some space; what was saved before is intact",
    errno.EDQUOT: "the quota is used up; what was saved before is intact",
    errno.EIO: "the disk reports a fault; what was saved before is intact if it can still be read",
    errno.EROFS: "the file system is read-only; choose another directory",
    errno.EACCES: "no permission; choose another directory or change its owner",
}


class DiskError(OSError):
    """An operating-system error with the path and the operation that met it."""


@contextmanager
def _explained(action: str, path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if isinstance(error, DiskError):
            raise
        code = error.errno or 0
        hint = f" ({_HINTS[code]})" if code in _HINTS else ""
        raise DiskError(code, f"cannot {action} {path}: {os.strerror(code)}{hint}") from error


def make_dir(path: Path) -> None:
    """Makes `path` and its missing parents, each entered durably in the directory above it."""
    missing = [p for p in (path, *path.parents) if not p.is_dir()]
    for folder in reversed(missing):
        with _explained("make the directory", folder):
            os.mkdir(folder)
        sync_dir(folder.parent)


def read(path: Path, most: int) -> bytes:
    """The whole of a regular file, without following a link or waiting for anybody to write.

    Raises DiskError; also for what is no file or has more than `most` bytes.
    """
    if path.is_symlink():
        raise DiskError(errno.ELOOP, f"cannot read {path}: it is a link, expected a file")
    with _explained("read", path):
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        status = os.fstat(handle)
        if not stat.S_ISREG(status.st_mode):
            raise DiskError(errno.EINVAL, f"cannot read {path}: it is no regular file")
        if status.st_size > most:
            raise DiskError(
                errno.EFBIG, f"cannot read {path}: it has {status.st_size:,} bytes, expected at most {most:,}"
            )
        data = b""
        with _explained("read", path):
            while part := os.read(handle, most + 1 - len(data)):
                data += part
        return data
    finally:
        os.close(handle)


def create(path: Path, chunks: Iterable[bytes | memoryview]) -> int:
    """Writes a new file and its content to the disk; the name is durable after `sync_dir` of its
    parent.

    Returns the number of bytes. An existing file is an error.
    """
    return _write(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0, chunks)


def append(path: Path, at: int, chunks: Iterable[bytes | memoryview]) -> int:
    """Writes `chunks` to the disk from byte `at` of an existing file, its end. Returns the new
    length."""
    return _write(path, os.O_WRONLY | os.O_NOFOLLOW, at, chunks)


def _write(path: Path, flags: int, at: int, chunks: Iterable[bytes | memoryview]) -> int:
    with _explained("open", path):
        handle = os.open(path, flags, 0o644)
    try:
        for chunk in chunks:
            view = memoryview(chunk).cast("B")
            with _explained(f"write {view.nbytes} bytes at {at} of", path):
                while view.nbytes:
                    written = os.pwrite(handle, view[:_WRITE], at)
                    at += written
                    view = view[written:]
        with _explained("flush", path):
            os.fsync(handle)
    finally:
        os.close(handle)
    return at


def truncate(path: Path, length: int) -> None:
    """Cuts a file to `length` bytes."""
    with _explained(f"cut to {length} bytes", path):
        os.truncate(path, length)


def rename(source: Path, target: Path) -> None:
    """Gives a file or directory its name; durable after `sync_dir` of the parent."""
    with _explained(f"rename {source.name} to", target):
        os.rename(source, target)


def replace(path: Path, data: bytes) -> None:
    """Writes a file, whole or not at all; one of that name is replaced."""
    temporary = path.with_name(f"{path.name}.tmp")
    if temporary.exists():
        remove(temporary)
    create(temporary, [data])
    rename(temporary, path)


def remove(path: Path) -> None:
    """Removes a file, or a directory with the files in it (links are removed, never followed)."""
    with _explained("remove", path):
        if path.is_dir() and not path.is_symlink():
            for child in sorted(path.iterdir()):
                remove(child)
            os.rmdir(path)
        else:
            os.unlink(path)


def sync_dir(path: Path) -> None:
    """Makes the names in a directory durable."""
    with _explained("flush the directory", path):
        handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
