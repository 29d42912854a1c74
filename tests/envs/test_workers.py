import logging
import os
import signal
import subprocess
import sys

import gymnasium
import numpy as np
import pytest
from faulty import FAULTS
from hangs import NEVER, hang_here, hang_there

from reverie.envs.spec import EnvSpec, UnusableEnv
from reverie.envs.toy import Counting
from reverie.envs.values import sample
from reverie.envs.workers import EnvError, Workers, episode_seed

FAULTY = "faulty:Faulty"
MODES = ("inline", "process")


@pytest.fixture(autouse=True)
def _hurry(monkeypatch):
    monkeypatch.setattr("reverie.envs.workers.FIRST_WAIT", 0.001)
    monkeypatch.setattr("reverie.envs.workers.LONGEST_WAIT", 0.01)


def faulty(script, **kwargs):
    return EnvSpec(FAULTY, kwargs={"script": script, **kwargs})


def actions(workers, n=None, seed=0):
    rng = np.random.default_rng(seed)
    drawn = [sample(workers.act_space, rng) for _ in range(workers.num if n is None else n)]
    return {key: np.stack([x[key] for x in drawn]) for key in workers.act_space}


def play(workers, steps, first_seed=0):
    """`steps` rows of every env, with actions that depend on the time only."""
    everyone = np.arange(workers.num)
    rows, cuts = [], []
    for t in range(steps):
        workers.send(everyone, actions(workers, seed=first_seed + t))
        row, cut = workers.recv(everyone)
        rows.append(row)
        cuts.append(cut)
    return {key: np.stack([r[key] for r in rows]) for key in rows[0]}, np.stack(cuts)


@pytest.mark.parametrize(
    "env",
    [
        "CartPole-v1",
        "Pendulum-v1",
        "reverie.envs.toy:Dummy",
        EnvSpec("reverie.envs.toy:Catch", action_repeat=2, image_size=32, gray=True),
    ],
    ids=["CartPole", "Pendulum", "Dummy", "Catch"],
)
def test_both_modes_give_the_same_rows_whatever_the_env(env):
    data = {}
    for mode in MODES:
        with Workers(env, 2, seed=3, mode=mode) as workers:
            assert workers.mode == mode
            data[mode], cuts = play(workers, 25)
            assert not cuts.any()
            for key, space in workers.obs_space.items():
                assert data[mode][f"obs/{key}"].shape == (25, 2, *space.shape)
                assert data[mode][f"obs/{key}"].dtype == space.dtype
            assert data[mode]["reward"].dtype == np.float32
    assert data["inline"].keys() == data["process"].keys()
    for key in data["inline"]:
        np.testing.assert_array_equal(data["inline"][key], data["process"][key], err_msg=key)


def test_rows_follow_the_convention():
    with Workers(
        EnvSpec("reverie.envs.toy:Counting", kwargs={"length": 3, "truncate": False}),
        1,
        seed=0,
        mode="inline",
    ) as workers:
        rows, _ = play(workers, 9)
    np.testing.assert_array_equal(rows["obs/step"][:, 0, 0], [0, 1, 2, 3, 0, 1, 2, 3, 0])
    np.testing.assert_array_equal(rows["obs/episode"][:, 0, 0], [0, 0, 0, 0, 1, 1, 1, 1, 2])
    np.testing.assert_array_equal(rows["reward"][:, 0], [0, 1, 2, 3, 0, 1, 2, 3, 0])
    np.testing.assert_array_equal(rows["is_first"][:, 0], [1, 0, 0, 0, 1, 0, 0, 0, 1])
    np.testing.assert_array_equal(rows["is_last"][:, 0], [0, 0, 0, 1, 0, 0, 0, 1, 0])
    np.testing.assert_array_equal(rows["is_terminal"], rows["is_last"])


class Telling(Counting):
    """Says how long its episodes were."""

    def step(self, action):
        *result, info = super().step(action)
        return *result, info | {"figures": {"length": self._step, "odd": bool(self._step % 2)}}


@pytest.mark.parametrize("mode", MODES)
def test_an_episode_may_end_with_figures(mode):
    env = EnvSpec(f"{__file__}:Telling", kwargs={"length": 3})
    with Workers(env, 2, seed=0, mode=mode) as workers:
        play(workers, 3)
        assert workers.figures == [{}, {}]  # nothing is told before the end
        play(workers, 1)
        assert workers.figures == [{"length": 3.0, "odd": 1.0}] * 2
        play(workers, 2)
        assert workers.figures == [{"length": 3.0, "odd": 1.0}] * 2  # of the last one finished


def test_episode_seeds_differ_in_every_argument():
    seeds = {episode_seed(s, i, e) for s in range(3) for i in range(3) for e in range(3)}
    assert len(seeds) == 27
    assert max(seeds) < 2**31
    assert episode_seed(1, 2, 3) == episode_seed(1, 2, 3)


def test_envs_begin_differently_and_another_seed_is_another_run():
    first = []
    for seed in (0, 1):
        with Workers("CartPole-v1", 3, seed=seed, mode="inline") as workers:
            first += list(play(workers, 1)[0]["obs/vector"][0])
    assert len({x.tobytes() for x in first}) == 6


# --------------------------------------------------------------------------------------- faults

# One gate serves both modes: in processes, one malformed value stands for all.
CASES = [(fault, "inline") for fault in FAULTS if fault not in ("exit", "sigkill")]
CASES += [(fault, "process") for fault in ("raise", "nan_obs", "exit", "sigkill")]


@pytest.mark.parametrize(("fault", "mode"), CASES)
def test_a_fault_cuts_the_episode_and_nothing_else(fault, mode, tmp_path, caplog, monkeypatch):
    hang_here(monkeypatch)
    spec = faulty({"3": fault}, length=5, once=str(tmp_path / "struck"))
    with (
        caplog.at_level(logging.WARNING, "reverie"),
        Workers(spec, 2, seed=0, mode=mode, deadline=NEVER) as workers,
    ):
        rows, cuts = play(workers, 8)
        assert workers.failures == 1
        # One of the two struck (the file is theirs together); after rows 0 1 2 it begins anew.
        (env,) = np.flatnonzero(cuts.any(0))
        assert cuts[:, env].tolist() == [False] * 3 + [True] + [False] * 4
        np.testing.assert_array_equal(rows["obs/step"][:, env, 0], [0, 1, 2, 0, 1, 2, 3, 4])
        np.testing.assert_array_equal(rows["is_first"][:, env], [1, 0, 0, 1, 0, 0, 0, 0])
        np.testing.assert_array_equal(rows["obs/step"][:, 1 - env, 0], [0, 1, 2, 3, 4, 5, 0, 1])
        np.testing.assert_array_equal(rows["obs/pair"], rows["obs/step"].repeat(2, -1))
        assert np.isfinite(rows["reward"]).all()
    assert f"env {env} of {FAULTY} failed in episode 0 after 2 steps" in caplog.text


def test_a_process_that_hangs_is_replaced(tmp_path, monkeypatch):
    hang_there(monkeypatch, tmp_path / "struck")
    spec = faulty({"3": "hang"}, length=5, once=str(tmp_path / "struck"))
    with Workers(spec, 1, seed=0, mode="process") as workers:
        rows, cuts = play(workers, 8)
        assert workers.failures == 1
    assert cuts[:, 0].tolist() == [False] * 3 + [True] + [False] * 4
    np.testing.assert_array_equal(rows["obs/step"][:, 0, 0], [0, 1, 2, 0, 1, 2, 3, 4])


def test_an_env_that_fails_and_cannot_be_built_at_once_is_replaced(tmp_path):
    spec = faulty({"2": "raise"}, once=str(tmp_path / "struck"))
    with Workers(spec, 1, seed=0, mode="process", deadline=NEVER) as workers:
        play(workers, 2)
        # The first time that it is built from now on, it cannot be.
        workers._specs[0] = faulty({"build": "raise"}, once=str(tmp_path / "build"))
        _, cuts = play(workers, 2)
        assert cuts[0, 0]
        assert workers.failures == 2


def test_a_fault_in_every_reset_ends_the_run_with_its_story():
    spec = faulty({"reset": "raise"})
    with Workers(spec, 1, seed=0, mode="inline", max_failures=3) as workers:
        workers.send(np.arange(1), actions(workers))
        with pytest.raises(EnvError) as error:
            workers.recv(np.arange(1))
        assert workers.failures == 4
    text = str(error.value)
    assert "4 failures within 1,000 steps, 3 are allowed" in text
    assert f"env 0 of {FAULTY}" in text
    assert "a fault on purpose at reset" in text
    assert "Traceback" in text


@pytest.mark.parametrize(
    ("fault", "told"),
    [("sigkill", "killed by signal SIGKILL"), ("exit", "status 3"), ("hang", "hung: no answer")],
)
def test_the_last_words_name_the_step_the_action_and_the_death(fault, told, tmp_path, monkeypatch):
    # Deaths are noticed as such, whatever the deadline.
    spec = faulty({"2": fault}, once=str(tmp_path / "struck"))
    if fault == "hang":
        hang_there(monkeypatch, tmp_path / "struck")
    with Workers(spec, 1, seed=0, mode="process", max_failures=0, deadline=NEVER) as workers:
        play(workers, 2)
        workers.send(np.arange(1), {"action": np.array([1], np.int32)})
        with pytest.raises(EnvError, match=told) as error:
            workers.recv(np.arange(1))
    assert "after 1 step of it" in str(error.value)
    assert "last action {'action': 1}" in str(error.value)


class Leaking(Counting):
    """The first one that is built takes 300 MB more at step `at`, and keeps them."""

    def __init__(self, at, marker, **kwargs):
        super().__init__(**kwargs)
        self._at = at
        try:
            os.close(os.open(marker, os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            self._at = -1

    def step(self, action):
        result = super().step(action)
        if self._step == self._at:
            self._first_results = np.ones(300_000_000, np.uint8)
        return result


def leaking(tmp_path, at):
    return EnvSpec(f"{__file__}:Leaking", kwargs={"at": at, "marker": str(tmp_path / "built"), "length": 5})


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells how much memory a process has")
def test_an_env_that_takes_too_much_memory_is_rebuilt_and_no_other(tmp_path, caplog):
    with (
        caplog.at_level(logging.WARNING, "reverie"),
        Workers(leaking(tmp_path, 2), 2, seed=0, memory=0.35, deadline=NEVER) as workers,
    ):
        assert workers.mode == "process"
        rows, cuts = play(workers, 7)
        assert workers.failures == 1
        (env,) = np.flatnonzero(cuts.any(0))
        assert all(10e6 < taken < 350e6 for taken in workers.memory())
    assert cuts[:, env].tolist() == [False, False, True, False, False, False, False]
    np.testing.assert_array_equal(rows["obs/step"][:, env, 0], [0, 1, 0, 1, 2, 3, 4])
    np.testing.assert_array_equal(rows["obs/step"][:, 1 - env, 0], [0, 1, 2, 3, 4, 5, 0])
    assert f"env {env} of" in caplog.text
    assert "GB, --worker-memory is 0.35" in caplog.text


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells how much memory a process has")
def test_an_episode_that_is_over_is_not_lost_for_memory(tmp_path):
    with Workers(leaking(tmp_path, 5), 1, seed=0, memory=0.35, deadline=NEVER) as workers:
        rows, cuts = play(workers, 8)
        assert workers.failures == 1
    assert not cuts.any()
    np.testing.assert_array_equal(rows["obs/step"][:, 0, 0], [0, 1, 2, 3, 4, 5, 0, 1])


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells how much memory a process has")
def test_a_limit_that_no_env_keeps_ends_the_run_with_its_story():
    with Workers("CartPole-v1", 1, seed=0, memory=0.001, max_failures=1) as workers:
        workers.send(np.arange(1), actions(workers))
        with pytest.raises(EnvError, match=r"2 failures within 1,000 steps.*GB, --worker-memory is 0\.001"):
            workers.recv(np.arange(1))


def test_a_limit_of_processes_is_refused_where_there_are_none():
    with pytest.raises(UnusableEnv, match="leave one of them out"):
        Workers("CartPole-v1", 1, seed=0, mode="inline", memory=1.0)
    with Workers("CartPole-v1", 2, seed=0, mode="inline") as workers:
        assert workers.memory() == [0, 0]


def test_rare_faults_are_forgiven_for_ever():
    spec = faulty({"2": "raise"}, length=3)
    with Workers(spec, 1, seed=0, mode="inline", max_failures=1, window=2) as workers:
        play(workers, 40)
        assert workers.failures > 10


def test_a_hang_leaves_no_process_behind(tmp_path, monkeypatch):
    struck, alive = tmp_path / "struck", tmp_path / "alive"
    os.mkfifo(alive)
    (tmp_path / "nest.py").write_text(
        "import os, subprocess, sys, time, gymnasium\n"
        "from gymnasium.spaces import Discrete\n"
        "class Nest(gymnasium.Env):\n"
        "    observation_space = action_space = Discrete(2)\n"
        "    def reset(self, seed=None, options=None):\n"
        "        return 0, {}\n"
        "    def step(self, action):\n"
        f"        held = os.open({str(alive)!r}, os.O_WRONLY)\n"
        "        child = [sys.executable, '-c', 'import time; time.sleep(9999)']\n"
        "        subprocess.Popen(child, pass_fds=[held])\n"
        f"        open({str(struck)!r}, 'a').write('x')\n"
        "        time.sleep(9999)\n"
    )
    hang_there(monkeypatch, struck)
    with open(os.open(alive, os.O_RDONLY | os.O_NONBLOCK), "rb") as held:
        name = f"{tmp_path / 'nest.py'}:Nest"
        with Workers(name, 1, seed=0, max_failures=1) as workers:
            assert workers.mode == "process"
            play(workers, 2)  # the second step hangs, and the episode is cut
            workers.send(np.arange(1), actions(workers))
            with pytest.raises(EnvError, match="hung"):
                workers.recv(np.arange(1))
        assert struck.read_text() == "xx"
        os.set_blocking(held.fileno(), True)
        assert held.read() == b""  # ends when the last process is gone that could write


def test_an_env_that_hangs_in_its_first_reset_is_not_begun(tmp_path, monkeypatch):
    (tmp_path / "slow.py").write_text(
        "import time, gymnasium\n"
        "from gymnasium.spaces import Discrete\n"
        "class Slow(gymnasium.Env):\n"
        "    observation_space = action_space = Discrete(2)\n"
        "    def reset(self, seed=None, options=None):\n"
        f"        open({str(tmp_path / 'struck')!r}, 'a').write('x')\n"
        "        time.sleep(9999)\n"
    )
    hang_there(monkeypatch, tmp_path / "struck")
    with pytest.raises(EnvError, match="could not be built: it hung"):
        Workers(f"{tmp_path / 'slow.py'}:Slow", 1, seed=0)


def test_shared_memory_has_no_name_that_could_be_left_behind():
    with Workers("CartPole-v1", 2, seed=0, mode="process") as workers:
        assert os.fstat(workers._fd).st_nlink == 0
        play(workers, 2)


def test_what_an_env_prints_reaches_neither_the_protocol_nor_our_stdout(tmp_path, capfd):
    (tmp_path / "chatty.py").write_text(
        "import os, gymnasium\n"
        "from gymnasium.spaces import Discrete\n"
        "class Chatty(gymnasium.Env):\n"
        "    observation_space = action_space = Discrete(2)\n"
        "    def reset(self, seed=None, options=None):\n"
        "        print('hello', flush=True); os.write(1, b'again'); return 0, {}\n"
        "    def step(self, action):\n"
        "        print('step', flush=True); return 1, 0.0, False, False, {}\n"
    )
    with Workers(f"{tmp_path / 'chatty.py'}:Chatty", 1, seed=0) as workers:
        rows, _ = play(workers, 3)
    np.testing.assert_array_equal(rows["obs/discrete"][:, 0], [0, 1, 1])
    out, err = capfd.readouterr()
    assert out == ""
    assert "hello" in err


def test_an_env_that_cannot_be_built_is_told_at_once():
    with pytest.raises(EnvError, match="a fault on purpose at build"):
        Workers(faulty({"build": "raise"}), 1, seed=0, mode="process")
    with pytest.raises(EnvError, match="a fault on purpose at build"):
        Workers(faulty({"build": "raise"}), 1, seed=0, mode="inline")
    with pytest.raises(EnvError, match="no answer within 1 s"):
        Workers(faulty({"build": "hang"}), 1, seed=0, mode="process", deadline=1.0)
    with pytest.raises(UnusableEnv, match="did you mean CartPole"):
        Workers("CartPole-v123", 1, seed=0, mode="process")
    with pytest.raises(UnusableEnv, match="takes no argument 'wings'"):
        Workers(EnvSpec("CartPole-v1", kwargs={"wings": 2}), 1, seed=0)


def test_ctrl_c_passes_through_an_inline_env():
    def make():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Workers(make, 1, seed=0)


class Timed(Counting):
    """Keeps the time of its own steps with the alarm clock, and rings it in every one."""

    rang = 0

    def step(self, action):
        before = signal.signal(signal.SIGALRM, self._ring)
        signal.setitimer(signal.ITIMER_REAL, 1000)
        signal.raise_signal(signal.SIGALRM)
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        return super().step(action)

    def _ring(self, *_):
        Timed.rang += 1


def test_an_alarm_that_rings_inside_a_step_is_no_hang():
    rang = []
    before, clock = signal.signal(signal.SIGALRM, lambda *_: rang.append(True)), signal.getitimer(signal.ITIMER_REAL)
    try:
        with Workers(Timed, 2, seed=0, mode="inline") as workers:
            signal.raise_signal(signal.SIGALRM)
            _, cuts = play(workers, 3)
            assert not cuts.any()
            assert workers.failures == 0
        assert Timed.rang == 4
        assert len(rang) == 1
    finally:
        signal.signal(signal.SIGALRM, before)
        signal.setitimer(signal.ITIMER_REAL, *clock)  # pytest-timeout's


# ----------------------------------------------------------------------------------------- mode


def test_auto_runs_cheap_shipped_envs_here_and_all_others_in_processes(monkeypatch):
    monkeypatch.setattr("reverie.envs.seats.CHEAP", NEVER)  # however busy this machine is
    modes = {}
    for env in ("CartPole-v1", "reverie.envs.toy:Catch", FAULTY):
        with Workers(env, 1, seed=0) as workers:
            modes[env] = workers.mode
    assert modes == {"CartPole-v1": "inline", "reverie.envs.toy:Catch": "inline", FAULTY: "process"}


def test_auto_gives_a_slow_env_a_process(monkeypatch):
    monkeypatch.setattr("reverie.envs.seats.CHEAP", 0.0)
    with Workers("CartPole-v1", 1, seed=0) as workers:
        assert workers.mode == "process"


def test_a_callable_that_nobody_can_import_runs_inline_only():
    def make():
        return gymnasium.make("CartPole-v1")

    with Workers(make, 1, seed=0) as workers:
        assert workers.mode == "inline"
        play(workers, 3)
    with pytest.raises(UnusableEnv, match="module of its own"):
        Workers(make, 1, seed=0, mode="process")


# ---------------------------------------------------------------------------------- misuse, values


def test_a_broken_policy_is_not_blamed_on_the_env():
    with Workers("Pendulum-v1", 2, seed=0, mode="inline") as workers:
        everyone = np.arange(2)
        with pytest.raises(ValueError, match="not in vector"):
            workers.send(everyone, {"action": np.full((2, 1), np.nan, np.float32)})
        with pytest.raises(ValueError, match="expected float32"):
            workers.send(everyone, {"action": np.zeros((2, 1))})
        with pytest.raises(ValueError, match="expected \\['action'\\]"):
            workers.send(everyone, {"act": np.zeros((2, 1), np.float32)})
        with pytest.raises(RuntimeError, match="recv without send"):
            workers.recv(everyone)
        workers.send(everyone, actions(workers))
        with pytest.raises(RuntimeError, match="send without recv"):
            workers.send(everyone, actions(workers))
    with Workers("CartPole-v1", 1, seed=0, mode="inline") as workers:
        for wrong in (2, -1):
            with pytest.raises(ValueError, match="not in discrete"):
                workers.send(np.arange(1), {"action": np.array([wrong], np.int32)})


def test_groups_are_independent():
    with Workers("CartPole-v1", 4, seed=0, mode="process") as workers:
        whole, _ = play(workers, 12)
    with Workers("CartPole-v1", 4, seed=0, mode="process") as workers:
        halves = [np.array([0, 1]), np.array([2, 3])]
        rows = [[], []]
        for half in halves:
            workers.send(half, _some(actions(workers, seed=0), half))
        for t in range(12):
            for g, half in enumerate(halves):
                rows[g].append(workers.recv(half)[0]["obs/vector"])
                workers.send(half, _some(actions(workers, seed=t + 1), half))
    apart = np.concatenate([np.stack(r) for r in rows], 1)
    np.testing.assert_array_equal(apart, whole["obs/vector"])


def _some(arrays, indices):
    return {key: value[indices] for key, value in arrays.items()}


# --------------------------------------------------------------------------------------- resume


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("in_flight", [True, False])
@pytest.mark.parametrize("env", ["CartPole-v1", "reverie.envs.toy:Dummy"])
def test_a_restored_env_goes_on_as_if_nothing_had_been(mode, in_flight, env):
    everyone = np.arange(2)
    for stop in (0, 1, 17) if mode == "inline" else (30,):
        with Workers(env, 2, seed=5, mode=mode) as workers:
            if stop:
                play(workers, stop)
            if in_flight:
                workers.send(everyone, actions(workers, seed=99))
            state = workers.state()
            if in_flight:
                workers.recv(everyone)
            expected, _ = play(workers, 20, first_seed=100)
        with Workers(env, 2, seed=5, mode=mode) as again:
            assert not again.restore(state).any()
            if in_flight:
                again.recv(everyone)
            found, cuts = play(again, 20, first_seed=100)
        assert not cuts.any()
        for key in expected:
            np.testing.assert_array_equal(found[key], expected[key], err_msg=f"{key} {stop}")


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("in_flight", [True, False])
def test_an_env_that_does_not_repeat_itself_is_cut(mode, in_flight, caplog):
    # The episode count is part of what this env shows, and re-enactment begins with count 1: the first reset told
    # whether there are action masks, and had another seed.
    spec = EnvSpec("reverie.envs.toy:Counting", kwargs={"length": 6, "truncate": True})
    everyone = np.arange(2)
    with Workers(spec, 2, seed=0, mode=mode) as workers:
        play(workers, 16)  # row 2 of the third episode
        if in_flight:
            workers.send(everyone, actions(workers))
        state = workers.state()
    with Workers(spec, 2, seed=0, mode=mode) as workers:
        assert workers.restore(state).all()
        if not in_flight:
            workers.send(everyone, actions(workers))
        row, cut = workers.recv(everyone)
        assert cut.all()
        assert row["is_first"].all()
        _, cuts = play(workers, 3)
        assert not cuts.any()
    assert "did not repeat episode 2" in caplog.text


def test_an_env_that_fails_while_it_is_re_enacted_is_cut(tmp_path):
    with Workers(faulty({}), 1, seed=0, mode="inline") as workers:
        play(workers, 4)
        state = workers.state()
    with Workers(faulty({"2": "raise"}), 1, seed=0, mode="inline") as workers:
        assert workers.restore(state).all()
        assert workers.failures == 1
        rows, cuts = play(workers, 2)
    assert cuts[:, 0].tolist() == [True, False]
    assert rows["is_first"][:, 0].tolist() == [True, False]


def test_a_state_of_other_envs_is_refused():
    with Workers("CartPole-v1", 2, seed=0, mode="inline") as workers:
        state = workers.state()
    with (
        Workers("CartPole-v1", 3, seed=0, mode="inline") as workers,
        pytest.raises(ValueError, match="of 2 envs"),
    ):
        workers.restore(state)


def test_workers_do_not_import_jax():
    program = "import sys, reverie.envs.host, reverie.envs.process, reverie.envs.check\nassert 'jax' not in sys.modules"
    env = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, "-c", program], check=True, env=env)
