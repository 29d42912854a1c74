import os
import time

import pytest

from reverie.envs.process import Child, Gone, Hung

# Entries of the children below: functions of this very module.


def echo(read, write, fds, values):
    os.write(write, values["greeting"].encode())
    while data := os.read(read, 100):
        os.write(write, data.upper())


def leave(read, write, fds, values):
    os._exit(values["status"])


def sleep(read, write, fds, values):
    time.sleep(99)


def count_descriptors(read, write, fds, values):
    known = {0, 1, 2, read, write, *fds}
    more = {int(fd) for fd in os.listdir("/proc/self/fd")} - known
    os.write(write, len(more).to_bytes(1, "little"))


def soon():
    return time.monotonic() + 20


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
    assert child.process.wait(20) == 0


@pytest.mark.parametrize(
    ("child", "told"),
    [(("leave", {"status": 3}), "exited with status 3"), (("leave", {"status": 0}), "status 0")],
    indirect=["child"],
)
def test_an_end_is_explained(child, told):
    with pytest.raises(Gone, match=told):
        child.read(1, soon())
    child.write(b"too late")


@pytest.mark.parametrize("child", [("sleep", {})], indirect=True)
def test_silence_ends_at_the_deadline_and_a_kill_is_quick(child):
    began = time.monotonic()
    with pytest.raises(Hung):
        child.read(1, began + 0.3)
    assert 0.3 <= time.monotonic() - began < 2
    child.end()
    child.end()
    assert time.monotonic() - began < 3


@pytest.mark.parametrize("child", [("count_descriptors", {})], indirect=True)
def test_a_child_inherits_nothing_but_its_pipes(child):
    # The lifeline, and the directory that is being listed.
    assert child.read(1, soon())[0] == 2
