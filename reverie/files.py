"""The few durable file operations that everything on disk goes through.

Whoever was handed a run directory does not know who filled it. A `Folder` therefore opens nothing through a link below
its root, waits for nothing, and takes nothing for a file that is none (`NotPlain`).

Each operation calls `os.*` of this module and nothing else, so that a test can put a recording stand-in for `os` here,
stop after any operation, and look at what a crash would have left behind.

A failed operation raises `DiskError` (an `OSError` with the same `errno`), naming the path and, for writes, the bytes
that did not fit.
"""

from __future__ import annotations

import errno
import os
import shlex
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from reverie.errors import PlainError

_WRITE = 1 << 26  # bytes handed to one os.write; Linux takes at most 2 GiB
_HINTS = {
    errno.ENOSPC: "free some space; what was saved before is intact",
    errno.EDQUOT: "the quota is used up; what was saved before is intact",
    errno.EIO: "the disk reports a fault; what was saved before is intact if it can still be read",
    errno.EROFS: "the file system is read-only; choose another directory",
    errno.EACCES: "no permission; choose another directory or change its owner",
    errno.EXDEV: "what looks like one directory spans two devices; choose one that lies on one device",
    errno.ESTALE: "the server of this disk lost it; mount it again",
}
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY
_KINDS = {
    stat.S_IFDIR: "a directory",
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFREG: "a file",
}


class DiskError(PlainError, OSError):
    """An operating-system error with the path and the operation that met it."""

    exit_code = 1

    def __str__(self) -> str:
        return self.strerror or super().__str__()


class Missing(DiskError, FileNotFoundError):
    """There is no such file or directory."""


class NotPlain(DiskError):
    """Something in a run directory is no plain file, or no plain directory; says what it is, and what to do."""


@contextmanager
def _explain_errors(action: str, path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if isinstance(error, DiskError):
            raise
        code = error.errno or 0
        hint = f" ({_HINTS[code]})" if code in _HINTS else ""
        kind = Missing if code in (errno.ENOENT, errno.ENOTDIR) else DiskError
        raise kind(code, f"cannot {action} {path}: {os.strerror(code)}{hint}") from error


def make_dir(path: Path) -> None:
    """Makes `path` and its missing parents, each entered durably in the directory above it."""
    missing = [p for p in (path, *path.parents) if not p.is_dir()]
    for folder in reversed(missing):
        with _explain_errors("make the directory", folder):
            os.mkdir(folder)
        Folder(folder.parent).sync()


def replace(path: Path, data: bytes) -> None:
    """Writes a file that a person named, whole or not at all; its directory is made if missing."""
    make_dir(path.parent)
    Folder(path.parent).replace(path.name, data)


class Folder:
    """A directory of a run, and what may be done in it. All names are of its own entries.

        Folder(run) / "checkpoints" / "step-000000001000"

    Args:
      root: the run's own directory, which may be a link (to a larger disk, say).
      parts: of the path below it, of which none may be a link.

    Every method raises DiskError, or NotPlain where something is not what it should be.
    """

    def __init__(self, root: Path, *parts: str) -> None:
        self.root, self.parts = root, parts

    def __truediv__(self, name: str) -> Folder:
        return Folder(self.root, *self.parts, name)

    @property
    def path(self) -> Path:
        """For people, and for names."""
        return self.root.joinpath(*self.parts)

    # --- reading ----------------------------------------------------------------------------------

    def names(self) -> list[str]:
        """Names of all entries, sorted; none if there is no such directory."""
        try:
            with self._enter() as handle, _explain_errors("read the directory", self.path):
                return sorted(os.listdir(handle))
        except Missing:
            return []

    def open(self, name: str, flags: int = os.O_RDONLY) -> int:
        """A handle of a plain file, for the caller to close. A file that is written to in place has only this one name,
        or the other would change with it."""
        path = self.path / name
        with self._enter() as folder, _explain_errors("open", path):
            try:
                handle = os.open(name, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o644, dir_fd=folder)
            except OSError:
                _refuse(path, folder)
                raise
        try:
            with _explain_errors("look at", path):
                found = os.fstat(handle)
            _require(path, found.st_mode, "a file")
            if flags & (os.O_WRONLY | os.O_RDWR) and found.st_nlink > 1:
                old, copy = shlex.quote(str(path)), shlex.quote(f"{path}.own")
                raise NotPlain(
                    errno.EMLINK,
                    f"{path} is one of {found.st_nlink} names of the same file (hard links), and what is written to "
                    f"one changes all: make it a file of its own with `cp {old} {copy} && mv {copy} {old}`",
                )
        except BaseException:
            os.close(handle)
            raise
        return handle

    def read(self, name: str, most: int | None = None) -> bytes:
        """The content of a file, or the first `most` bytes of it."""
        handle = self.open(name)
        with os.fdopen(handle, "rb") as file, _explain_errors("read", self.path / name):
            return file.read() if most is None else file.read(most)

    def size(self, name: str) -> int:
        """Bytes of a plain file."""
        with self._handle(name) as handle:
            return os.fstat(handle).st_size

    # --- writing ----------------------------------------------------------------------------------

    def make(self) -> None:
        """Makes the directory and those above it, where they are missing, durably."""
        make_dir(self.root)
        for depth, name in enumerate(self.parts):
            above = Folder(self.root, *self.parts[:depth])
            with above._enter() as handle, _explain_errors("make the directory", above.path / name):
                try:
                    os.mkdir(name, dir_fd=handle)
                except FileExistsError:
                    continue
            above.sync()
        with self._enter():
            pass  # what was there already is a directory, and no link to one

    def create(self, name: str, chunks: Iterable[bytes | memoryview]) -> int:
        """Writes a new file and its content to the disk; the name is durable after `sync`.

        Returns the number of bytes. An existing file is an error.
        """
        return self._write(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0, chunks)

    def append(self, name: str, at: int, chunks: Iterable[bytes | memoryview]) -> int:
        """Writes `chunks` to the disk from byte `at` of an existing file, its end. Returns the new length."""
        return self._write(name, os.O_WRONLY, at, chunks)

    def _write(self, name: str, flags: int, at: int, chunks: Iterable[bytes | memoryview]) -> int:
        with self._handle(name, flags) as handle:
            for chunk in chunks:
                view = memoryview(chunk).cast("B")
                with _explain_errors(f"write {view.nbytes} bytes at {at} of", self.path / name):
                    while view.nbytes:
                        written = os.pwrite(handle, view[:_WRITE], at)
                        at += written
                        view = view[written:]
            with _explain_errors("flush", self.path / name):
                os.fsync(handle)
        return at

    def truncate(self, name: str, length: int) -> None:
        """Cuts a file to `length` bytes."""
        action = f"cut to {length} bytes"
        with self._handle(name, os.O_WRONLY) as handle, _explain_errors(action, self.path / name):
            os.ftruncate(handle, length)

    def rename(self, source: str, target: str) -> None:
        """Gives an entry, whatever it is, another name; durable after `sync`."""
        with self._enter() as handle, _explain_errors(f"rename {source} to", self.path / target):
            os.rename(source, target, src_dir_fd=handle, dst_dir_fd=handle)

    def set_aside(self, name: str) -> str:
        """Gives an entry that cannot be used a name that nothing of ours looks for. Returns it."""
        taken = set(self.names())
        names = (f"damaged-{name}" + (f"-{number}" if number else "") for number in range(len(taken) + 1))
        free = next(each for each in names if each not in taken)
        self.rename(name, free)
        return free

    def replace(self, name: str, data: bytes) -> None:
        """Writes a file, whole or not at all; one of that name is replaced. Durable after `sync`."""
        temporary = f"{name}.tmp"
        if temporary in self.names():
            self.remove(temporary)
        self.create(temporary, [data])
        self.rename(temporary, name)

    def remove(self, name: str) -> None:
        """Removes an entry: of a directory all that is in it, of a link the link."""
        with self._enter() as handle, _explain_errors("remove", self.path / name):
            _remove(name, handle)

    def sync(self) -> None:
        """Makes the names in the directory durable."""
        with self._enter() as handle, _explain_errors("flush the directory", self.path):
            os.fsync(handle)

    # --- the way in -------------------------------------------------------------------------------

    @contextmanager
    def _handle(self, name: str, flags: int = os.O_RDONLY) -> Iterator[int]:
        """`open`, and closed in the end."""
        handle = self.open(name, flags)
        try:
            yield handle
        finally:
            os.close(handle)

    @contextmanager
    def _enter(self) -> Iterator[int]:
        """A handle of the directory, to which no link led."""
        with _explain_errors("open the directory", self.root):
            handle = os.open(self.root, _DIRECTORY | os.O_CLOEXEC)
        try:
            path = self.root
            for name in self.parts:
                path, above = path / name, handle
                with _explain_errors("open the directory", path):
                    try:
                        handle = os.open(name, _DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=above)
                    except OSError:
                        _refuse(path, above, "a directory")
                        raise
                os.close(above)
            yield handle
        finally:
            os.close(handle)


def _refuse(path: Path, folder: int, expected: str = "a file") -> None:
    """Raises NotPlain if an entry of a folder is there, and not what it should be."""
    try:
        mode = os.stat(path.name, dir_fd=folder, follow_symlinks=False).st_mode
        link = os.readlink(path.name, dir_fd=folder) if stat.S_ISLNK(mode) else ""
    except OSError:
        return
    _require(path, mode, expected, link)


def _require(path: Path, mode: int, expected: str, link: str = "") -> None:
    """Raises NotPlain unless something of this mode is as expected."""
    kind = f"a link to {link}" if link else _KINDS.get(stat.S_IFMT(mode), "something else")
    if kind != expected:
        advice = "put a copy of what it leads to in its place" if link else "move it away"
        raise NotPlain(errno.ELOOP, f"{path} is {kind}, expected {expected}; nothing was changed: {advice}")


def _remove(name: str, folder: int) -> None:
    if stat.S_ISDIR(os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode):
        inside = os.open(name, _DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)
        try:
            for child in sorted(os.listdir(inside)):
                _remove(child, inside)
        finally:
            os.close(inside)
        os.rmdir(name, dir_fd=folder)
    else:
        os.unlink(name, dir_fd=folder)
