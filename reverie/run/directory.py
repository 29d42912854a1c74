"""One run is one directory; whoever holds its lock may write there."""

from __future__ import annotations

import fcntl
import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

from reverie.errors import PlainError
from reverie.files import Folder, Missing

_PROBE = ".probe"


class RunInUse(PlainError, RuntimeError):
    """Another process is writing to the run directory."""


class RunGone(PlainError, RuntimeError):
    """The run directory was deleted, or moved to another place, while a process held it."""

    exit_code = 1


class RunDirectory:
    """Where the parts of a run lie."""

    def __init__(self, path: Path, handle: int | None = None) -> None:
        self.handle = handle  # of the directory itself, wherever it may be, while it is locked
        self.folder = Folder(path)  # the way to everything that is read or written here
        self.path = path  # this and the others are names, for people and for looking
        self.config = path / "config.json"  # the configuration, as text
        self.metrics = path / "metrics.jsonl"  # one JSON object per line
        self.checkpoints = path / "checkpoints"  # step-%012d/
        self.replay = path / "replay"  # append-only segments
        self.videos = path / "videos"
        self.lock = path / "run.lock"  # who holds the run: pid, host, start time

    def write_config(self, text: str) -> None:
        """Puts the config there, whole or not at all."""
        self.folder.replace(self.config.name, text.encode())
        self.folder.sync()

    @contextmanager
    def with_lock(self) -> Iterator[RunDirectory]:
        """Makes the directories and holds the exclusive lock until the block ends or the process
        dies. Yields this directory with its `handle`.

        The lock is the kernel's (`flock`), the file only says whose it is: a file left by a killed
        process is taken over. A run that fails before it has a config never was: what was made for it goes.

        Raises:
          RunInUse: another process (or this one) holds the run; names its pid and host.
          files.DiskError: the directory cannot be written to.
        """
        new = not self.path.exists()
        self.folder.make()
        try:
            with self._hold_lock() as held:
                made = [x for x in (self.checkpoints, self.replay) if not x.exists()]
                try:
                    self._probe()
                    for path in (self.checkpoints, self.replay):
                        (self.folder / path.name).make()
                    if os.path.lexists(self.videos):  # made with the first of them; a link is told of now
                        (self.folder / self.videos.name).make()
                    yield held
                except BaseException:
                    if held.there and not self.config.exists():
                        for path in made:
                            _remove_if_empty(path)
                        self.lock.unlink(missing_ok=True)
                    raise
        except BaseException:
            if new:
                _remove_if_empty(self.path)
            raise

    @property
    def there(self) -> bool:
        """Whether the directory that was locked still lies where it did."""
        assert self.handle is not None, "only a locked directory is known apart from another of its name"
        try:
            return os.path.samestat(os.fstat(self.handle), os.stat(self.path))
        except (FileNotFoundError, NotADirectoryError):
            return False

    def check(self) -> None:
        """Raises RunGone if the locked directory does not lie where it did: a new one would be half a run."""
        if not self.there:
            raise RunGone(
                f"{self.path} was deleted or moved while this run wrote to it, and nothing more is saved. If it was "
                "moved, give its new place with --run, and the run goes on from the last checkpoint there"
            )

    @contextmanager
    def _hold_lock(self) -> Iterator[RunDirectory]:
        # Workers do not inherit these: they end with this process.
        handle = self.folder.open(self.lock.name, os.O_RDWR | os.O_CREAT)
        directory = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY)  # held open, so that no other has its number
        try:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise RunInUse(self._holder(handle)) from None
            if not os.fstat(handle).st_nlink:
                raise RunInUse(f"{self.path} was given up by another process just now. Try again")
            owner = {
                "pid": os.getpid(),
                "host": socket.gethostname(),
                "start": datetime.now(UTC).isoformat(timespec="seconds"),
            }
            os.ftruncate(handle, 0)
            os.pwrite(handle, json.dumps(owner).encode(), 0)
            yield RunDirectory(self.path, directory)
        finally:
            os.close(handle)
            os.close(directory)

    def _holder(self, handle: int) -> str:
        text = os.pread(handle, 4096, 0)
        try:
            owner = json.loads(text)
            who = f"process {owner['pid']} on {owner['host']} (since {owner['start']})"
        except (ValueError, KeyError, TypeError):  # caught between its flock and its first write
            who = "another process"
        return f"{self.path} is in use by {who}. Wait for it, stop it, or give another directory with --run"

    def _probe(self) -> None:
        """Does once what a save does, so that a full, read-only or foreign directory, or one that cannot rename what is
        in it, is found now instead of at the first checkpoint."""
        self._remove_probes()  # of a process that was killed in here: whoever holds the lock is alone
        with suppress(Missing):
            os.close(self.folder.open(self.metrics.name, os.O_WRONLY))  # a link or a second name is told of now
        try:
            probe = self.folder / _PROBE
            probe.make()
            probe.create("probe", [b"reverie"])
            self.folder.rename(_PROBE, f"{_PROBE}-renamed")
            self.folder.sync()
        finally:
            self._remove_probes()

    def _remove_probes(self) -> None:
        for name in self.folder.names():
            if name.startswith(_PROBE):
                self.folder.remove(name)


def _remove_if_empty(folder: Path) -> None:
    with suppress(OSError):
        folder.rmdir()
