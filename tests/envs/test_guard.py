"""Deadlines of envs in this process, and alarms of somebody else. No test here depends on how fast the clock goes."""

import math
import signal
import threading
import time

import pytest
from hangs import NEVER, late

from reverie.envs import guard
from reverie.envs.guard import Fault, Late, guarded, handlers


@pytest.fixture
def alarms():
    """How often somebody else's alarm rang: one entry each."""
    rang = []
    handler = lambda *_: rang.append(True)
    before, clock = signal.signal(signal.SIGALRM, handler), signal.setitimer(signal.ITIMER_REAL, 0)  # pytest-timeout's
    yield rang
    assert signal.getsignal(signal.SIGALRM) is handler
    signal.signal(signal.SIGALRM, before)
    signal.setitimer(signal.ITIMER_REAL, *clock)


@pytest.fixture
def watchdog(monkeypatch):
    """A fresh one."""
    before = signal.getsignal(signal.SIGURG)
    monkeypatch.setattr(guard, "_watchdog", guard._Watchdog())
    yield guard._watchdog
    signal.signal(signal.SIGURG, before)


def hang():
    while True:
        time.sleep(NEVER)


def hang_in_a_lock():
    """An interruption inside of `wait` leaves the lock such that its own clean-up fails."""
    threading.Event().wait()


@pytest.mark.parametrize("how", [hang, hang_in_a_lock])
def test_what_hangs_is_interrupted(how, watchdog):
    for _ in range(3):
        with pytest.raises(Late, match="no answer within 1e-06 s"), guarded(1e-6):
            how()


def test_an_earlier_deadline_wakes_who_waits_for_a_later_one(watchdog):
    with guarded(NEVER):
        pass
    with guarded(NEVER), pytest.raises(Late), guarded(1e-6):
        hang()
    with guarded(NEVER):
        outer = watchdog.until
        with guarded(2 * NEVER):
            assert watchdog.until > outer
        assert watchdog.until == outer
    assert watchdog.until == math.inf


def test_an_env_that_catches_exceptions_does_not_catch_the_deadline(watchdog):
    def careless():
        try:
            late()
        except Exception:
            pytest.fail("swallowed")

    def wrapping():
        try:
            late()
        except BaseException:
            raise ValueError("something else")  # noqa: B904

    for step in (careless, wrapping):
        with pytest.raises(Late), guarded(NEVER):
            step()


@pytest.mark.parametrize("when", ["before", "within", "after"])
def test_an_alarm_of_somebody_else_rings_there_and_nowhere_else(when, alarms):
    for now in ("before", "within", "after"):
        if now == "within":
            with guarded(NEVER):
                if when == now:
                    signal.raise_signal(signal.SIGALRM)
                    assert alarms == [True]
        elif when == now:
            signal.raise_signal(signal.SIGALRM)
    assert alarms == [True]


def test_their_alarm_and_our_deadline_in_either_order(alarms, watchdog):
    def both():
        signal.raise_signal(signal.SIGALRM)
        late()

    with pytest.raises(Late), guarded(NEVER):
        both()
    assert alarms == [True]
    with pytest.raises(Late), guarded(NEVER):
        late()
    signal.raise_signal(signal.SIGALRM)
    assert alarms == [True, True]
    with guarded(NEVER):
        signal.raise_signal(signal.SIGALRM)  # nothing of the deadline before is left


def test_the_clock_of_somebody_else_goes_on(alarms):
    signal.setitimer(signal.ITIMER_REAL, 1e5, 7.0)
    with guarded(NEVER):
        left, every = signal.getitimer(signal.ITIMER_REAL)
        assert 0 < left <= 1e5
        assert every == 7.0
    with pytest.raises(Fault), guarded(NEVER):
        raise ValueError
    after, every = signal.getitimer(signal.ITIMER_REAL)
    assert 0 < after <= left
    assert every == 7.0


def test_our_own_signal_is_no_hang_before_the_deadline_and_goes_to_who_had_it(monkeypatch, watchdog):
    heard = []
    signal.signal(signal.SIGURG, lambda *_: heard.append(True))
    with guarded(NEVER):
        signal.raise_signal(signal.SIGURG)
    signal.raise_signal(signal.SIGURG)  # too late for a deadline that was kept
    assert heard == [True, True]
    with pytest.raises(Late), guarded(NEVER):
        late()
    assert heard == [True, True]


def test_what_their_alarm_raises_is_no_fault_of_the_env(alarms):
    def theirs(*_):
        raise TimeoutError("the whole program takes too long")

    mine = signal.signal(signal.SIGALRM, theirs)
    with pytest.raises(TimeoutError, match="whole program"), guarded(NEVER):
        signal.raise_signal(signal.SIGALRM)
    signal.signal(signal.SIGALRM, mine)


def test_what_an_alarm_of_the_env_raises_is_its_fault(alarms):
    def its_own(*_):
        raise TimeoutError("a move takes too long")

    known = handlers()
    before = signal.signal(signal.SIGALRM, its_own)
    with pytest.raises(Fault, match="a move takes"), guarded(NEVER, known):
        signal.raise_signal(signal.SIGALRM)
    signal.signal(signal.SIGALRM, before)


def test_outside_the_main_thread_there_is_no_deadline(watchdog):
    told = []

    def work():
        with guarded(0.0):
            told.append("through")
        with pytest.raises(Fault, match="ValueError"), guarded(0.0):
            raise ValueError
        told.append("and a fault is a fault")

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert len(told) == 2
    assert watchdog.until == math.inf
