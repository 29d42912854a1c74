"""A stand-in for the `os` of `reverie.files`: it counts operations and can fail at any of them."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

from reverie import files


class Killed(BaseException):
    """The process died here: no handler of ours may run on it."""


FAILS = {"full": ("pwrite", errno.ENOSPC), "crossing": ("rename", errno.EXDEV)}  # mode -> what, and how


class FaultyDisk:
    """Fails at operation `at` (counting from 0) of those that change the disk; `None`: never.

    Modes:
      kill: dies before the operation, a write having written half.
      power: as `kill`, and all that was not flushed is gone: content since the last fsync of its
        file; new names and renames since the last fsync of their directory.
      full: raises ENOSPC at every write from there on.
      crossing: raises EXDEV at every rename from there on, as if a directory lay on two devices.
      refused: raises `code` instead of this one operation.
      unheard: does this one operation, and raises `code` all the same: a server whose answer got lost.

    No fsync reaches the real disk: what one is worth is modelled here, and a real one takes long.
    """

    COUNTED = ("mkdir", "open", "pwrite", "fsync", "ftruncate", "rename", "rmdir", "unlink")

    def __init__(self, at: int | None = None, mode: str = "kill", code: int = errno.ESTALE) -> None:
        self.at, self.mode, self.code = at, mode, code
        self.operations: list[str] = []
        self.written = 0  # bytes
        self._paths: dict[int, str] = {}  # open handles
        self._flushed: dict[str, int] = {}  # file -> length that survives a power cut
        self._names: list[tuple[str | None, str]] = []  # (old, new) not yet flushed; old None: made

    def __getattr__(self, name: str) -> Any:
        call = getattr(os, name)
        if name not in self.COUNTED:
            return call

        def counted(*args: Any, **kwargs: Any) -> Any:
            if name == "open" and not args[1] & (os.O_WRONLY | os.O_RDWR):  # to look: nothing changes
                result = call(*args, **kwargs)
                self._paths[result] = os.path.realpath(f"/proc/self/fd/{result}")
                return result
            self._meet(name, args)
            folders = [kwargs[k] for k in ("dir_fd", "src_dir_fd", "dst_dir_fd") if k in kwargs]
            paths = [os.path.join(self._paths[f], args[i]) for i, f in enumerate(folders)]
            result = None if name == "fsync" else call(*args, **kwargs)
            self._follow(name, (*paths, *args[len(paths) :]), result)
            if self.mode == "unheard" and len(self.operations) - 1 == self.at:
                if name == "open":
                    os.close(result)
                raise _error(self.code)
            return result

        return counted

    def _meet(self, name: str, args: tuple[Any, ...]) -> None:
        here = len(self.operations)
        self.operations.append(name)
        if self.at is None or here < self.at or self.mode == "unheard":
            return
        if self.mode in FAILS:
            if name == FAILS[self.mode][0]:
                raise _error(FAILS[self.mode][1])
            return
        if self.mode == "refused":
            if here == self.at:
                raise _error(self.code)
            return
        if name == "pwrite":
            handle, view, at = args
            os.pwrite(handle, view[: len(view) // 2], at)
        if self.mode == "power":
            self._cut_power()
        raise Killed

    def _follow(self, name: str, args: tuple[Any, ...], result: Any) -> None:
        if name == "open":
            path = self._paths[result] = os.fspath(args[0])
            if args[1] & os.O_CREAT:
                self._names.append((None, path))
            if args[1] & os.O_WRONLY:
                self._flushed[path] = os.path.getsize(path)
        elif name == "pwrite":
            self.written += result
        elif name == "mkdir":
            self._names.append((None, os.fspath(args[0])))
        elif name == "rename":
            source, target = (os.fspath(a) for a in args)
            self._flushed = {_moved(p, source, target): n for p, n in self._flushed.items()}
            self._names = [(old, _moved(new, source, target)) for old, new in self._names]
            self._names.append((source, target))
        elif name == "fsync":
            path = self._paths[args[0]]
            if os.path.isdir(path):
                self._names = [n for n in self._names if os.path.dirname(n[1]) != path]
            else:
                self._flushed[path] = os.path.getsize(path)

    def _cut_power(self) -> None:
        for path, length in self._flushed.items():
            if os.path.exists(path):
                os.truncate(path, length)
        for old, new in reversed(self._names):
            if old is not None:
                os.rename(new, old)
            elif os.path.isdir(new):
                shutil.rmtree(new)
            elif os.path.exists(new):
                os.unlink(new)

    @contextmanager
    def __call__(self) -> Iterator[FaultyDisk]:
        with mock.patch.object(files, "os", self):
            yield self


def _error(code: int) -> OSError:
    return OSError(code, os.strerror(code))


def _moved(path: str, source: str, target: str) -> str:
    return target + path[len(source) :] if path.startswith(source) else path


def tree(path: Path) -> dict[str, bytes]:
    """Every file below `path` with its content."""
    return {str(p.relative_to(path)): p.read_bytes() for p in path.rglob("*") if p.is_file()}
