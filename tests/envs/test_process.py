import json
import os
import re
import signal
import subprocess
import sys
import threading
import time

import pytest

from reverie.envs.process import Child, ChildGone, Hung

# Entries of the children below: functions of this very module.


def echo(read, write, fds, values):
    os.write(write, values["greeting"].encode())
    while data := os.read(read, 100):
        os.write(write, data.upper())


def leave(read, write, fds, values):
    os._exit(values["status"])


def sleep(read, write, fds, values):
    time.sleep(9999)


def stay(read, write, fds, values):
    """Does not end by itself, and has started somebody who does not either. Both hold stderr."""
    subprocess.Popen([sys.executable, "-c", "import time; time.sleep(9999)"])
    os.write(write, b"!")
    if values["how"] == "stopped":
        os.kill(os.getpid(), signal.SIGSTOP)
    re.match("(a+)+$", "a" * 99 + "b")  # centuries, and no other thread runs meanwhile


def accelerator(read, write, fds, values):
    names = ("jax", "JAX_PLATFORMS")
    os.write(write, f"{names[0] in sys.modules} {os.environ[names[1]]} {threading.active_count()}".encode())


def count_descriptors(read, write, fds, values):
    known = {0, 1, 2, read, write, *fds}
    more = {int(fd) for fd in os.listdir("/proc/self/fd")} - known
    os.write(write, len(more).to_bytes(1, "little"))


def soon():
    return time.monotonic() + 840  # only a safety net


@pytest.fixture
def child(request):
    name, values = request.param
    child = Child(f"{__name__}:{name}", values)
    yield child
    child.end()
    assert child.process.returncode is not None


@pytest.mark.parametrize("child", [("echo", {"greeting": "hello"})], indirect=True)
def test_what_is_written_comes_back(child):
    assert child.read(5, soon()) == b"hello"
    child.write(b"abc")
    assert child.read(3, soon()) == b"ABC"
    child.hang_up()
    assert child.process.wait(840) == 0


@pytest.mark.parametrize(
    ("child", "told"),
    [(("leave", {"status": 3}), "exited with status 3"), (("leave", {"status": 0}), "status 0")],
    indirect=["child"],
)
def test_an_end_is_explained(child, told):
    with pytest.raises(ChildGone, match=told):
        child.read(1, soon())
    child.write(b"too late")


@pytest.mark.parametrize("child", [("sleep", {})], indirect=True)
def test_silence_ends_at_the_deadline_and_a_kill_waits_for_nothing(child):
    began = time.monotonic()
    with pytest.raises(Hung):
        child.read(1, began + 0.1)
    assert time.monotonic() >= began + 0.1
    child.end()
    child.end()
    assert child.process.returncode == -signal.SIGKILL


@pytest.mark.parametrize("child", [("count_descriptors", {})], indirect=True)
def test_a_child_inherits_nothing_but_its_pipes(child):
    # The lifeline, and the directory that is being listed.
    assert child.read(1, soon())[0] == 2


# A learner: it makes a child, waits until that is where it should be, and is killed.
LEARNER = """
import os, sys, time
from pathlib import Path
from reverie.envs.process import Child

def state():
    return Path(f"/proc/{child.process.pid}/stat").read_text().rpartition(")")[2].split()

child = Child("test_process:stay", {"how": sys.argv[1]})
print(child.process.pid, flush=True)
child.read(1, time.monotonic() + 840)
used = int(state()[11])  # hundredths of a second of the processor
while state()[0] != "T" if sys.argv[1] == "stopped" else int(state()[11]) < used + 20:
    time.sleep(0.01)
os.kill(os.getpid(), 9)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere only a thread of the child notices")
@pytest.mark.parametrize("how", ["holding the GIL", "stopped"])
def test_who_is_left_by_a_killed_learner_is_killed_with_all_it_started(how):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([os.path.dirname(__file__), *sys.path])}
    with subprocess.Popen(
        [sys.executable, "-c", LEARNER, how], stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment
    ) as learner:
        pid = int(learner.stdout.readline())
        try:
            errors = learner.communicate(timeout=840)[1]  # ends when nobody is left who holds stderr
        except subprocess.TimeoutExpired:
            os.killpg(pid, signal.SIGKILL)
            raise
    assert learner.returncode == -signal.SIGKILL, errors


def test_where_the_kernel_does_not_help_a_thread_does():
    program = (
        "import fcntl, sys, json\n"
        "if hasattr(fcntl, 'F_SETSIG'): del fcntl.F_SETSIG\n"
        "from reverie.envs.process import run\n"
        "run(json.loads(sys.argv[1]))\n"
    )
    lifeline, ours = os.pipe()
    read, write = os.pipe()
    given = {"entry": f"{__name__}:sleep", "pipes": (read, write, lifeline), "fds": (), "values": {}}
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([os.path.dirname(__file__), *sys.path])}
    child = subprocess.Popen(
        [sys.executable, "-c", program, json.dumps(given)],
        pass_fds=given["pipes"],
        start_new_session=True,
        env=environment,
    )
    os.close(ours)
    assert child.wait(840) == -signal.SIGKILL
    for fd in given["pipes"]:
        os.close(fd)


def test_a_child_outlives_the_thread_that_made_it():
    made = []
    thread = threading.Thread(target=lambda: made.append(Child(f"{__name__}:echo", {"greeting": "hello"})))
    thread.start()
    thread.join()
    (child,) = made
    assert child.read(5, soon()) == b"hello"
    child.write(b"still there")
    assert child.read(11, soon()) == b"STILL THERE"
    child.end()


@pytest.mark.parametrize("child", [("accelerator", {})], indirect=True)
def test_a_child_is_a_new_program_and_leaves_the_accelerator_alone(child):
    """Not a fork: nothing of the learner's threads, of JAX or of CUDA is in it."""
    import jax  # noqa: F401

    # Its own threads: the main one, and the one that watches the learner.
    assert child.read(10, soon()) == b"False cpu "
    assert child.read(1, soon()) == b"2"
