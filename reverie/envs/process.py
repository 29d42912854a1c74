"""Processes that may hang or die without harm: own session, two pipes, a deadline, and a lifeline.

Nothing is inherited but what is named here, so there is nothing to clean up after a crash: pipes
close with their owner, and a process whose parent is gone is killed with all that it has started,
whatever it is busy with.
"""

from __future__ import annotations

import contextlib
import fcntl
import importlib
import json
import os
import select
import signal
import subprocess
import sys
import threading
import time
from typing import Any

_BOOT = (
    "import json, sys\n"
    "given = json.loads(sys.argv[1])\n"
    "sys.path[:] = given['path']\n"
    "from reverie.envs.process import run\n"
    "run(given)\n"
)
_PAGE = os.sysconf("SC_PAGE_SIZE")


class Hung(RuntimeError):
    """The process did not answer before its deadline."""


class ChildGone(RuntimeError):
    """The process ended; the message says how."""


class Child:
    """A Python process that runs `entry(read_fd, write_fd, fds, values)`.

    Args:
      entry: `module:function`, run in the process.
      values: JSON values handed to it.
      fds: more file descriptors that it may use (the same numbers there as here).
    """

    def __init__(self, entry: str, values: dict[str, Any], fds: tuple[int, ...] = ()) -> None:
        read_there, self._write = os.pipe()
        self._read, write_there = os.pipe()
        lifeline, self._lifeline = os.pipe()
        there = (read_there, write_there, lifeline)
        given = {"path": sys.path, "entry": entry, "pipes": there, "fds": fds, "values": values}
        # One thread each: N envs already fill the cores. An env that uses JAX must not take the
        # accelerator away from the learner.
        environment = {"OMP_NUM_THREADS": "1", **os.environ, "JAX_PLATFORMS": "cpu"}
        try:
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-c", _BOOT, json.dumps(given)],
                stdin=subprocess.DEVNULL,
                stdout=2,  # what an env prints must not mix with what the program prints
                pass_fds=(*there, *fds),
                start_new_session=True,  # Ctrl-C is ours alone, and a whole group can be killed
                env=environment,
            )
        except BaseException:
            for fd in (self._write, self._read, self._lifeline):
                os.close(fd)
            raise
        finally:
            for fd in there:
                os.close(fd)
        self._poll = select.poll()
        self._poll.register(self._read, select.POLLIN)

    def write(self, data: bytes) -> None:
        """Sends a few bytes. That the process is dead is noticed on reading."""
        with contextlib.suppress(BrokenPipeError):
            os.write(self._write, data)

    def read(self, size: int, until: float) -> bytes:
        """Exactly `size` bytes.

        Raises:
          Hung: `time.monotonic()` reached `until` and they were not there.
          ChildGone: the process ended before.
        """
        data = b""
        while len(data) < size:
            left = until - time.monotonic()
            # Short waits, so that a death is seen even if a grandchild keeps the pipe open.
            if self._poll.poll(max(0.0, min(left, 0.25)) * 1000):
                part = os.read(self._read, size - len(data))
                if not part:
                    raise ChildGone(self._fate())
                data += part
            elif self.process.poll() is not None:
                raise ChildGone(self._fate())
            elif left <= 0:
                raise Hung("no answer")
        return data

    def read_json(self, until: float) -> Any:
        """The next value of `send_json`; raises as `read` does."""
        size = int.from_bytes(self.read(4, until), "little")
        return json.loads(self.read(size, until))

    def memory(self) -> int:
        """Bytes that the process has in RAM, what it shares with others included; 0 if it is gone, or not on Linux."""
        try:
            with open(f"/proc/{self.process.pid}/statm", "rb") as file:
                return int(file.read().split()[1]) * _PAGE
        except OSError:
            return 0

    def hang_up(self) -> None:
        """Tells the process that no more will come: it should end by itself."""
        if self._write >= 0:
            os.close(self._write)
            self._write = -1

    def end(self, patience: float = 0.0) -> None:
        """Waits `patience` seconds for the process to end, then kills its group. Idempotent."""
        if self._read < 0:
            return
        self.hang_up()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(patience)
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)  # also whatever the env itself has started
        self.process.wait()
        for fd in (self._read, self._lifeline):
            os.close(fd)
        self._read = -1

    def _fate(self) -> str:
        try:
            status = self.process.wait(5.0)  # a pipe closes just before its process ends
        except subprocess.TimeoutExpired:
            return "its process closed its pipe"
        if status >= 0:
            return f"its process exited with status {status}"
        hint = " (out of memory?)" if status == -signal.SIGKILL else ""
        return f"its process was killed by signal {signal.Signals(-status).name}{hint}"


def send(fd: int, data: bytes) -> None:
    """Writes all of `data`, however little of it the pipe takes at once."""
    while data:
        data = data[os.write(fd, data) :]


def send_json(fd: int, value: Any) -> None:
    """Writes a JSON value, for `Child.read_json`."""
    text = json.dumps(value).encode()
    send(fd, len(text).to_bytes(4, "little") + text)


def run(given: dict[str, Any]) -> None:
    """The main loop of a `Child` in its process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    read, write, lifeline = given["pipes"]
    for fd in (read, write, lifeline, *given["fds"]):
        os.set_inheritable(fd, False)
    _hang_on(lifeline)
    module, _, name = given["entry"].partition(":")
    getattr(importlib.import_module(module), name)(read, write, given["fds"], given["values"])


def _hang_on(lifeline: int) -> None:
    """From now on this process, and all that it starts in its group, dies when the parent's end of the pipe closes.

    Linux kills the group itself: the closing end counts as input, the signal that tells of input may be SIGKILL, and it
    may go to a group. So it also reaches a process that is stopped, or that holds the GIL in a loop of C. The death
    signal of `prctl` would kill this process alone, also when the thread that made it ends while the parent lives on,
    and leave what it has started. Elsewhere, and as a second line, a thread does the same as soon as it gets the GIL.
    """
    threading.Thread(target=_die_with_parent, args=(lifeline,), daemon=True).start()
    if hasattr(fcntl, "F_SETSIG"):
        with contextlib.suppress(OSError):  # a kernel that only looks like Linux
            fcntl.fcntl(lifeline, fcntl.F_SETOWN, -os.getpgrp())
            fcntl.fcntl(lifeline, fcntl.F_SETSIG, signal.SIGKILL)
            fcntl.fcntl(lifeline, fcntl.F_SETFL, fcntl.fcntl(lifeline, fcntl.F_GETFL) | os.O_ASYNC)


def _die_with_parent(lifeline: int) -> None:
    os.read(lifeline, 1)  # nobody writes: it returns when the parent's end is closed, also if it was before
    os.killpg(os.getpgrp(), signal.SIGKILL)
