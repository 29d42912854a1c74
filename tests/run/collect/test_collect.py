import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reverie.envs.spec import EnvSpec
from reverie.envs.toy import Counting
from reverie.envs.workers import Workers
from reverie.run.collect.base import Episode, mean_figures, pack, step, unpack
from reverie.run.collect.host import HostCollector


def counting(**kwargs):
    return EnvSpec("reverie.envs.toy:Counting", kwargs=kwargs)


class Store:
    """Keeps what is committed."""

    def __init__(self):
        self.added = []

    def __call__(self, envs, rows):
        self.added.append((envs.copy(), {key: np.array(x) for key, x in rows.items()}))

    def stream(self, env):
        """All rows of one env, `[time, ...]`."""
        rows = [{key: x[list(envs).index(env)] for key, x in rows.items()} for envs, rows in self.added if env in envs]
        return {key: np.stack([row[key] for row in rows]) for key in rows[0]}


def parity(state, mode, carry, rows):
    """Acts on what it sees, and stores it: a row whose parts come from different steps is found."""
    seen = rows["obs/step"][:, 0]
    return carry, {"action/action": (seen % 2).astype(np.int32)}, {"out/seen": seen}


def collect(spec, steps, *, envs=3, groups=1, policy=parity, seed=0, **kwargs):
    store = Store()
    with Workers(spec, envs, seed=seed, mode="inline", **kwargs) as workers:
        collector = HostCollector(workers, policy, store, groups)
        counts = [step(collector, None, "train") for _ in range(steps)]
        return store, collector.tally.take(), counts


def test_a_row_holds_what_belongs_together():
    store, _, counts = collect(counting(), 50)
    assert counts == [0] + [3] * 49
    for env in range(3):
        rows = store.stream(env)
        step = rows["obs/step"][:, 0]
        np.testing.assert_array_equal(rows["out/seen"], step)
        np.testing.assert_array_equal(rows["action/action"], step % 2)
        np.testing.assert_array_equal(rows["reward"], step)
        np.testing.assert_array_equal(rows["is_first"], step == 0)
        np.testing.assert_array_equal(rows["is_last"][:-1], rows["is_first"][1:])
        assert (rows["is_last"] >= rows["is_terminal"]).all()
        assert 0 < rows["is_terminal"].sum() < rows["is_last"].sum()


def test_groups_take_turns_and_change_nothing_else():
    one, _, _ = collect(counting(), 20, envs=4)
    two, _, counts = collect(counting(), 40, envs=4, groups=2)
    assert counts == [0, 0] + [2] * 38
    assert [envs.tolist() for envs, _ in two.added[:3]] == [[0, 1], [2, 3], [0, 1]]
    for env in range(4):
        expected, found = one.stream(env), two.stream(env)
        for key in expected:
            np.testing.assert_array_equal(found[key], expected[key])


def test_each_group_keeps_its_carry():
    def policy(state, mode, carry, rows):
        return carry + len(rows["reward"]), *parity(state, mode, None, rows)[1:]

    with Workers(counting(), 3, seed=0, mode="inline") as workers:
        collector = HostCollector(workers, policy, Store(), 2)
        collector.carry = [0, 100]
        for _ in range(5):
            step(collector, None, "train")
        assert collector.carry == [6, 102]


def test_finished_episodes_are_counted_once():
    _, episodes, _ = collect(counting(length=4, truncate=True), 11, envs=2)
    assert episodes == [Episode(e, 1.0 + 2 + 3 + 4, 4) for _ in range(2) for e in range(2)]


class Boastful(Counting):
    """Says of every episode how long it was."""

    def step(self, action):
        *row, info = super().step(action)
        return *row, info | {"figures": {"length": self._step / 3}}


def test_what_an_env_says_of_an_episode_is_kept_to_the_last_bit():
    _, episodes, _ = collect(EnvSpec("boastful", factory=lambda: Boastful(length=4)), 6, envs=2)
    assert episodes == [Episode(e, 10.0, 4, {"length": 4 / 3}) for e in range(2)]
    assert unpack(pack(episodes)) == episodes
    assert unpack(pack([])) == []


def test_figures_are_averaged_over_the_episodes_that_have_them():
    assert mean_figures("CartPole-v1", [{"a": 1.0}, {"a": 2.0, "b": 3.0}, {}]) == {"a": 1.5, "b": 3.0}
    assert mean_figures("CartPole-v1", []) == {}


def test_crafter_turns_success_rates_into_its_score():
    crafter = pytest.importorskip("reverie.envs.crafter")
    names = [f"achievement/{name}" for name in crafter.ACHIEVEMENTS]
    figures = [dict.fromkeys(names, 1.0), dict.fromkeys(names, 0.0)]
    found = mean_figures("crafter", figures)
    assert found.keys() == {*names, "score"}
    assert found["score"] == pytest.approx(50)


def test_the_episode_of_a_failed_env_ends_as_a_truncation(monkeypatch):
    monkeypatch.setattr("reverie.envs.workers.FIRST_WAIT", 0.001)
    spec = EnvSpec("faulty:Faulty", kwargs={"script": {"total:7": "raise"}, "length": 4})
    store, episodes, _ = collect(spec, 10, envs=1, max_failures=10)
    rows = store.stream(0)
    # Rows 0-4 are an episode; the seventh step fails after rows 0 1 2, which are the next.
    assert rows["obs/step"][:, 0].tolist() == [0, 1, 2, 3, 4, 0, 1, 2, 0]
    assert np.flatnonzero(rows["is_last"]).tolist() == [4, 7]
    assert np.flatnonzero(rows["is_first"]).tolist() == [0, 5, 8]
    assert not rows["is_terminal"].any()
    assert [e.length for e in episodes] == [4]


# -------------------------------------------------------------------------------------- resume


def begin(workers, store):
    collector = HostCollector(workers, random_policy, store, 2)
    collector.carry = [(jax.random.key(g), jnp.zeros((2,))) for g in range(2)]
    return collector


def random_policy(state, mode, carry, rows):
    key, total = carry
    key, draw = jax.random.split(key)
    total = jnp.where(rows["is_first"], 0.0, total + rows["reward"])
    action = jax.random.randint(draw, total.shape, 0, 2, jnp.int32)
    return (key, total), {"action/action": action}, {"out/total": total.astype(jnp.bfloat16)}


@pytest.mark.parametrize("mode", ["inline", "process"])
def test_a_resumed_collector_commits_the_same_rows(mode):
    for stop in (0, 1, 2, 33) if mode == "inline" else (34,):
        expected, found = Store(), Store()
        with Workers("CartPole-v1", 4, seed=1, mode=mode) as workers:
            collector = begin(workers, expected)
            for _ in range(stop):
                step(collector, None, "train")
            state = collector.state()
            expected.added.clear()
            for _ in range(70):
                step(collector, None, "train")
            episodes = collector.tally.take()
        assert all(isinstance(x, np.ndarray) for x in state.values())
        with Workers("CartPole-v1", 4, seed=1, mode=mode) as workers:
            collector = begin(workers, found)
            assert not collector.restore(state).any()
            for _ in range(70):
                step(collector, None, "train")
            assert collector.tally.take() == episodes
        assert len(found.added) == len(expected.added)
        for (envs, rows), (envs_, rows_) in zip(expected.added, found.added, strict=True):
            np.testing.assert_array_equal(envs, envs_)
            assert rows.keys() == rows_.keys()
            for key in rows:
                assert rows[key].dtype == rows_[key].dtype
                np.testing.assert_array_equal(rows[key], rows_[key], err_msg=key)


def test_an_env_that_cannot_be_brought_back_ends_its_episode():
    spec, store = counting(length=5, truncate=False), Store()
    with Workers(spec, 2, seed=0, mode="inline") as workers:
        collector = HostCollector(workers, parity, store)
        for _ in range(15):
            step(collector, None, "train")
        state = collector.state()
    with Workers(spec, 2, seed=0, mode="inline") as workers:
        collector = HostCollector(workers, parity, store)
        assert collector.restore(state).all()
        for _ in range(3):
            step(collector, None, "train")
    rows = store.stream(0)
    assert rows["obs/step"][:, 0].tolist() == [*range(6), *range(6), 0, 1, 2, 0, 1]
    assert np.flatnonzero(rows["is_last"]).tolist() == [5, 11, 14]
    assert np.flatnonzero(rows["is_terminal"]).tolist() == [5, 11]


def test_a_state_of_other_groups_is_refused():
    with Workers("CartPole-v1", 4, seed=0, mode="inline") as workers:
        state = HostCollector(workers, parity, Store(), 2).state()
        with pytest.raises(ValueError, match="of 2 groups of envs, expected 4"):
            HostCollector(workers, parity, Store(), 4).restore(state)


@pytest.mark.parametrize("change", ["missing", "type", "shape", "text"])
def test_a_state_that_says_what_cannot_be_is_refused(change):
    with Workers("CartPole-v1", 4, seed=1, mode="inline") as workers:
        collector = begin(workers, Store())
        for _ in range(5):
            step(collector, None, "train")
        state = collector.state()
    names = [name for name in state if not name.startswith("pending/")]  # which only replay knows the form of
    assert len(names) > 15
    with Workers("CartPole-v1", 4, seed=1, mode="inline") as workers:
        collector = begin(workers, Store())
        for name in names:
            forged = dict(state)
            array = forged.pop(name)
            if change == "type":
                forged[name] = array.astype(np.complex64)
            elif change == "shape":
                forged[name] = np.stack([array, array])
            elif change == "text":
                forged[name] = np.frombuffer(b'{"a": [1, null]}', np.uint8)
            with pytest.raises((ValueError, KeyError, TypeError)):  # the loop makes one sentence of them
                collector.restore(forged)
        assert not collector.restore(state).any(), "nothing was changed"
