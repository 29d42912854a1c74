"""Signals: a wish first, then a demand, then the end of a process that hangs."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import reverie
from reverie.run.stop import Stop

TERM, INT, HUP = signal.SIGTERM, signal.SIGINT, signal.SIGHUP

PROGRAM = """
import ctypes, os, signal, sys, threading, time
from reverie.run.stop import Stop

def library():  # Python's own handlers never get a turn
    mutex = ctypes.create_string_buffer(128)
    lock = ctypes.CDLL(None).pthread_mutex_lock
    lock(mutex), lock(mutex)

def deaf():
    while True:
        try:
            time.sleep(1000)
        except KeyboardInterrupt:
            pass

def child():  # a fork inherits the handlers
    pid = os.fork()
    if not pid:
        for _ in range(5):
            os.kill(os.getpid(), signal.SIGTERM)
        os._exit(0)
    os.waitpid(pid, 0)
    time.sleep(1000)

signal.signal(signal.SIGHUP, signal.SIG_DFL)  # also where these tests run under `nohup`
with Stop() as stop:
    print("ready", flush=True)
    globals()[sys.argv[1]]()
"""


def killed(what: str, *numbers: int) -> tuple[int, str]:
    """Exit code and last words of a program that hangs in `what` and gets these signals, one after the other."""
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, what],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(reverie.__file__).parents[1])},
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    while not hangs(process.pid):
        pass
    for number in numbers:
        assert process.poll() is None, f"it ended before {signal.Signals(number).name}"
        process.send_signal(number)
        while process.poll() is None and pending(process.pid):
            pass
    return process.wait(60), process.communicate()[1]


def hangs(pid: int, seconds: float = 0.05) -> bool:
    """Whether the main thread sleeps, and is not woken for a while."""
    status = Path(f"/proc/{pid}/task/{pid}/status")
    before = status.read_text()
    time.sleep(seconds)
    counts = lambda text: [line for line in text.splitlines() if "ctxt_switches" in line]
    return "State:\tS" in before and counts(before) == counts(status.read_text())


def pending(pid: int) -> bool:
    """Whether a signal was sent and not delivered: another of the same kind would be lost."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return any(int(line.split()[1], 16) for line in lines if line.startswith(("SigPnd", "ShdPnd")))


@pytest.mark.parametrize(
    ("what", "numbers", "code"),
    [
        ("library", (INT, INT, INT), 130),
        ("library", (TERM, INT, INT, INT), 130),
        ("library", (HUP, TERM, HUP), 129),
        ("deaf", (TERM, TERM, TERM), 143),
        ("deaf", (HUP, INT, INT, INT), 130),
    ],
)
def test_a_process_that_hangs_ends_at_the_third_signal(what: str, numbers: tuple[int, ...], code: int) -> None:
    ended, errors = killed(what, *numbers)
    assert ended == code, errors
    assert "given up at once, by a third signal. What was saved before is intact" in errors


def test_signals_to_a_child_are_not_for_us() -> None:
    ended, errors = killed("child", TERM, INT, INT)
    assert ended == -INT, errors
    assert "KeyboardInterrupt" in errors


@pytest.mark.parametrize("first", [INT, TERM, HUP])
def test_the_second_ctrl_c_is_an_interrupt_whatever_came_before(first: int) -> None:
    before = signal.signal(HUP, signal.SIG_DFL)
    try:
        with Stop() as stop:
            os.kill(os.getpid(), first)
            if first != INT:
                os.kill(os.getpid(), INT)
            with pytest.raises(KeyboardInterrupt):
                os.kill(os.getpid(), INT)
        assert stop.signal == signal.Signals(first).name
    finally:
        signal.signal(HUP, before)


def test_alarms_are_no_signals_of_a_person() -> None:
    before = signal.signal(signal.SIGALRM, lambda *args: None)
    try:
        with Stop() as stop:
            for _ in range(5):
                os.kill(os.getpid(), signal.SIGALRM)
        assert stop.signal is None
    finally:
        signal.signal(signal.SIGALRM, before)


def test_what_was_there_before_is_there_again() -> None:
    read, write = os.pipe()
    os.set_blocking(write, False)
    outer = signal.set_wakeup_fd(write)
    handlers = [signal.getsignal(number) for number in (TERM, INT, HUP)]
    with Stop():
        pass
    assert [signal.getsignal(number) for number in (TERM, INT, HUP)] == handlers
    assert signal.set_wakeup_fd(outer) == write
    os.close(read)
    os.close(write)


def test_the_first_ctrl_c_is_answered_at_once_even_from_a_library() -> None:
    _, words = killed("library", INT, INT, INT)
    assert words.count("the run ends after the update at hand") == 1
    assert "A second Ctrl-C does not wait" in words
    assert "Ctrl-C" not in killed("library", TERM, HUP, TERM)[1]
