"""Compiled programs that outlive the process that compiled them.

JAX keeps them in a directory if told to, but writes them in place: a reader may meet half of one, and what a killed
process leaves behind stays broken for good. So every process gets a directory of its own, filled with links to all that
is known to be whole, and hands on what it has added when it ends:

    ~/.cache/reverie/programs/<machine>/jit_train-<key>-cache.<sha256>    whole, or not there; never changed
                                        own-<random>/                     what JAX sees; locked while its process lives
"""

from __future__ import annotations

import atexit
import fcntl
import hashlib
import os
import platform
import tempfile
from contextlib import suppress
from pathlib import Path

from reverie import files

LIMIT = 256 << 20  # bytes of all programs; the oldest go first. One of Dreamer's has 0.1 to 1 MB on a CPU
_OWN = "own-"


def keep_programs() -> None:
    """Lets JAX, not yet imported, load what was compiled before, and keeps what this process compiles.

    JAX knows a program by its code, the options and versions of the compiler and the kind of device: the bits of a run
    do not change. Who has set `JAX_COMPILATION_CACHE_DIR` or `JAX_ENABLE_COMPILATION_CACHE` decides alone. Where
    nothing can be written, everything is compiled as ever.
    """
    if {"JAX_COMPILATION_CACHE_DIR", "JAX_ENABLE_COMPILATION_CACHE"} & os.environ.keys():
        return
    try:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        shelf = base / "reverie" / "programs" / _machine()
        own = borrow(shelf)
    except (OSError, RuntimeError):  # no room, no permission, no links on this disk, no home
        return
    os.environ["JAX_COMPILATION_CACHE_DIR"] = str(own)
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")
    # Further caches of the GPU compiler would put the directory's name, new every time, into every program's key.
    os.environ.setdefault("JAX_PERSISTENT_CACHE_ENABLE_XLA_CACHES", "none")
    atexit.register(hand_on, own, shelf)


def borrow(shelf: Path) -> Path:
    """A new directory with all programs of the shelf, locked by this process until it ends.

    Removed from the shelf are programs without the checksum of their names, and what killed processes left.

    Raises:
      OSError: the shelf cannot be written to.
    """
    files.make_dir(shelf)
    for stale in shelf.glob(f"{_OWN}*"):
        with suppress(OSError):  # it is locked, or another process is faster
            os.close(_lock(stale))
            files.Folder(shelf).remove(stale.name)
    own = Path(tempfile.mkdtemp(prefix=_OWN, dir=shelf))
    _lock(own)  # open, and with it locked, as long as the process lives
    for kept in shelf.glob("*-cache.*"):
        name, _, digest = kept.name.rpartition(".")
        with suppress(FileNotFoundError, FileExistsError):  # too old by now; or compiled by two at the same time
            if _digest(kept) == digest:
                os.link(kept, own / name)
            else:
                files.Folder(shelf).remove(kept.name)
    return own


def hand_on(own: Path, shelf: Path) -> None:
    """Moves what JAX has added to a directory of `borrow` to the shelf, and removes the directory."""
    with suppress(OSError):
        for added in own.glob("*-cache"):
            if added.stat().st_nlink == 1:
                os.rename(added, shelf / f"{added.name}.{_digest(added)}")
    with suppress(OSError):
        files.Folder(shelf).remove(own.name)
    with suppress(OSError):
        found = sorted(((s.st_mtime, s.st_size, p) for p in shelf.glob("*-cache.*") for s in [p.stat()]), reverse=True)
        total = 0
        for _, size, path in found:
            total += size
            if total > LIMIT:
                path.unlink(missing_ok=True)


def _lock(directory: Path) -> int:
    """An open handle with the directory's lock; raises BlockingIOError if a living process has it."""
    handle = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(handle)
        raise
    return handle


def _digest(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _machine() -> str:
    """A name for processors with the same instructions: one home directory may serve many machines."""
    kind = platform.machine()
    with suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        flags = next((line for line in lines if line.lower().startswith(("flags", "features"))), "")
        kind += "-" + hashlib.sha256(flags.encode()).hexdigest()[:8]
    return kind
