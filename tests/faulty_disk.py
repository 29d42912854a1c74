"""A stand-in for the `os` of `reverie.files`: it counts operations and can fail at any of them."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

from reverie import files


class Killed(BaseException):
    """The process died here: no handler of ours may run on it."""


class FaultyDisk:
    """Fails at operation `at` (counting from 0) of those that change the disk.

    Modes: `kill` dies before the operation, a write having written half; `power` also loses all
    content that was not flushed; `full` raises ENOSPC at every write from there on.
    """

    COUNTED = ("mkdir", "open", "pwrite", "fsync", "truncate", "rename", "rmdir", "unlink")

    def __init__(self, at: int | None = None, mode: str = "kill") -> None:
        self.at, self.mode = at, mode
        self.operations: list[str] = []
        self._paths: dict[int, str] = {}
        self._flushed: dict[str, int] = {}  # length that survives a power cut, of files written to

    def __getattr__(self, name: str) -> Any:
        call = getattr(os, name)
        if name not in self.COUNTED:
            return call

        def counted(*args: Any, **kwargs: Any) -> Any:
            self._meet(name, args)
            result = call(*args, **kwargs)
            self._follow(name, args, result)
            return result

        return counted

    def _meet(self, name: str, args: tuple[Any, ...]) -> None:
        here = len(self.operations)
        self.operations.append(name)
        if self.at is None or here < self.at:
            return
        if self.mode == "full":
            if name == "pwrite":
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return
        if name == "pwrite":
            handle, view, at = args
            os.pwrite(handle, view[: len(view) // 2], at)
        if self.mode == "power":
            for path, length in self._flushed.items():
                if os.path.exists(path):
                    os.truncate(path, length)
        raise Killed

    def _follow(self, name: str, args: tuple[Any, ...], result: Any) -> None:
        if name == "open":
            self._paths[result] = os.fspath(args[0])
            if args[1] & os.O_WRONLY:
                self._flushed[self._paths[result]] = os.path.getsize(args[0])
        elif name == "fsync" and os.path.isfile(self._paths[args[0]]):
            self._flushed[self._paths[args[0]]] = os.path.getsize(self._paths[args[0]])
        elif name == "rename":
            source, target = (os.fspath(a) for a in args)
            for path in [p for p in self._flushed if p.startswith(source)]:
                self._flushed[target + path[len(source) :]] = self._flushed.pop(path)

    @contextmanager
    def __call__(self) -> Iterator[FaultyDisk]:
        with mock.patch.object(files, "os", self):
            yield self


def tree(path: Path) -> dict[str, bytes]:
    """Every file below `path` with its content."""
    return {str(p.relative_to(path)): p.read_bytes() for p in path.rglob("*") if p.is_file()}
