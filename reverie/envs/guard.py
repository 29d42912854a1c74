"""The border between an env in this process and the run: whatever the env does wrong becomes a `Fault`.

What somebody else does is no fault of the env. A process has a single alarm clock (SIGALRM), and whoever called us, or
the env itself, may have set it. So a thread keeps the deadlines and interrupts the main thread with SIGURG, whose
handler looks at the time before it calls anything late. SIGURG is ignored where nobody handles it, so that one too many
does no harm; Go's scheduler uses it for these reasons (https://go.dev/design/24543-non-cooperative-preemption).
"""

from __future__ import annotations

import contextlib
import inspect
import math
import signal
import threading
import time
import traceback
from collections.abc import Iterator
from types import CodeType, FrameType
from typing import Any

from reverie.envs import host
from reverie.envs.spec import UnusableEnv

AGAIN = 0.1  # seconds: an interruption may come just before the main thread goes to sleep, and is repeated


class Fault(Exception):
    """One failure of one env; the message is its story."""


class Late(Fault):
    """An env that did not answer in time."""


class _Alarm(BaseException):
    """Not an Exception, so that an env's own `except Exception` does not swallow it."""


@contextlib.contextmanager
def guarded(deadline: float, passing: frozenset[CodeType] | None = None) -> Iterator[None]:
    """Turns what an env does wrong in this process into a `Fault`.

    Ctrl-C passes through, and so does what a signal handler of somebody else raises: it was not the env.

    Args:
      deadline: seconds. Kept in the main thread only, which is the one that signals interrupt.
      passing: the handlers of somebody else; those of this moment if left out.
    """
    passing = handlers() if passing is None else passing
    try:
        with _watchdog.watching(deadline):
            yield
    except UnusableEnv:
        raise
    except (Exception, SystemExit, _Alarm) as error:  # the border of the user's code
        if _alarm_is_ours(error):  # or what hung did not take the interruption well
            raise Late(f"it hung: no answer within {deadline:g} s") from error
        if any(frame.f_code in passing for frame, _ in traceback.walk_tb(error.__traceback__)):
            raise
        raise Fault(host.explain(error)) from error


def _alarm_is_ours(error: BaseException | None) -> bool:
    while error and not isinstance(error, _Alarm):
        error = error.__context__
    return error is not None


def handlers() -> frozenset[CodeType]:
    """The code of all signal handlers of this process that are functions or methods."""
    found = [inspect.unwrap(x) for n in signal.valid_signals() if callable(x := signal.getsignal(n))]
    return frozenset(x.__code__ for x in found if hasattr(x, "__code__"))


class _Watchdog:
    """Interrupts the main thread when it is late.

    A deadline costs two assignments. The thread sleeps until the last one that it has heard of, and is woken only for
    an earlier one.
    """

    def __init__(self) -> None:
        self.until = math.inf  # when the main thread is late, `time.monotonic()`; infinite while nothing is watched
        self._wakes = math.inf  # when the thread will look again by itself
        self._bell = threading.Lock()  # released to wake it
        self._thread: threading.Thread | None = None
        self._theirs: Any = None  # what handled SIGURG before us

    @contextlib.contextmanager
    def watching(self, seconds: float) -> Iterator[None]:
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        if self._thread is None or not self._thread.is_alive():  # the first time, and after a fork
            self._start()
        before = self.until
        self._set(time.monotonic() + seconds)
        try:
            yield
        finally:
            self._set(before)

    def _start(self) -> None:
        theirs = signal.signal(signal.SIGURG, self._ring)
        if theirs != self._ring:
            self._theirs = theirs
        self._wakes, self._bell = math.inf, threading.Lock()
        self._bell.acquire()
        self._thread = threading.Thread(target=self._watch, name="reverie-watchdog", daemon=True)
        self._thread.start()

    def _set(self, until: float) -> None:
        # Without a lock: the handler may interrupt this at any point, and must find nothing half done.
        self.until = until
        if until < self._wakes and self._bell.locked():
            self._bell.release()

    def _watch(self) -> None:
        main = threading.main_thread().ident
        assert main is not None
        while True:
            self._wakes = math.inf  # from here on an earlier deadline rings the bell
            until, now = self.until, time.monotonic()
            if now >= until:
                signal.pthread_kill(main, signal.SIGURG)
                until = now + AGAIN
            self._wakes = until
            self._bell.acquire(timeout=-1 if until == math.inf else min(max(until - now, 0.0), threading.TIMEOUT_MAX))

    def _ring(self, number: int, frame: FrameType | None) -> None:
        if time.monotonic() >= self.until:
            self.until = math.inf
            raise _Alarm
        if callable(self._theirs):
            self._theirs(number, frame)


_watchdog = _Watchdog()
