"""jumanji beside itself: what our rows say is what the package says, and what is legal is what it masks."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
import pytest

from reverie.envs.base import Space
from reverie.envs.build import device_env, make_env
from reverie.envs.check import check_env
from reverie.envs.device_wrappers import TimeLimit
from reverie.envs.spec import EnvSpec, UnusableEnv
from reverie.envs.values import Gate, legally, sample

jumanji = pytest.importorskip("jumanji", reason="pip install reverie[jumanji]")

FETCHED = "Sokoban-v0"  # its levels are not in the package
REFUSED = "MultiCVRP-v0"
ALL = sorted(jumanji.registered_environments() - {FETCHED, REFUSED})
# What is compiled there warns of a cast.
CASTS = pytest.mark.filterwarnings("ignore:scatter inputs have incompatible types:FutureWarning")


@pytest.fixture(autouse=True)
def promotion() -> Iterator[None]:
    """The package adds arrays of different ranks, which our own code may not."""
    with jax.numpy_rank_promotion("allow"):
        yield


def beside(name: str, steps: int, careful: bool = True) -> Iterator[tuple[dict[str, Any], Any]]:
    """Our rows of one episode of random play, legal if it is `careful`, and the package's time steps under the same
    keys and actions."""
    ours, theirs = device_env(f"jumanji:{name}"), jumanji.make(name)
    rng, key = np.random.default_rng(0), jax.random.key(0)
    begin, step, their_step = (jax.jit(f) for f in (ours.init, ours.step, theirs.step))
    state, (inner, seen) = begin(key), jax.jit(theirs.reset)(key)
    counts = getattr(theirs.action_spec, "num_values", None)
    for t in range(steps):
        row = {k: np.asarray(x) for k, x in ours.row(state).items()}
        yield row, seen
        if row["is_last"]:
            return
        action = sample(ours.act_space, rng)
        action = legally(action, row.get("obs/legal") if careful else None, ours.act_space, rng)
        key = jax.random.key(t)
        state, native = step(state, action, key), action["action"]
        if native.shape != theirs.action_spec.shape:
            native = np.stack(np.unravel_index(native, counts)).astype(np.int32)
        inner, seen = their_step(inner.replace(key=key), native)


def test_snake_shows_its_vectors_and_dies_as_in_the_package() -> None:
    rows = list(beside("Snake-v1", 300, careful=False))
    for row, seen in rows:
        np.testing.assert_array_equal(row["obs/grid"], seen.observation.grid)
        assert row["obs/step_count"] == seen.observation.step_count
        assert row["reward"] == seen.reward
        assert row["is_last"] == row["is_terminal"] == seen.last()
        if not row["is_last"]:
            np.testing.assert_array_equal(row["obs/legal"], seen.observation.action_mask)
    last, _ = rows[-1]
    assert last["is_terminal"]
    assert last["obs/legal"].any()
    assert [row["is_first"] for row, _ in rows] == [True] + [False] * (len(rows) - 1)


def test_combinations_are_one_action_and_boards_are_planes() -> None:
    env = device_env("jumanji:Minesweeper-v0")
    assert env.act_space == {"action": Space("discrete", (), (100,))}
    assert env.obs_space["board"] == Space("planes", (10, 10, 10))
    rewards = []
    for row, seen in beside("Minesweeper-v0", 100):
        np.testing.assert_array_equal(row["obs/board"].sum(-1), 1)
        np.testing.assert_array_equal(row["obs/board"].argmax(-1) - 1, seen.observation.board)
        np.testing.assert_array_equal(row["obs/legal"], np.ravel(seen.observation.action_mask))
        assert (row["is_last"], row["is_terminal"]) == (seen.last(), seen.last() and seen.discount == 0)
        assert row["reward"] == seen.reward
        rewards.append(float(row["reward"]))
    assert len(rewards) > 3
    assert row["is_terminal"], "a mine"


def test_agents_are_masked_side_by_side_paid_together_and_cut_off_by_the_clock() -> None:
    env = device_env("jumanji:LevelBasedForaging-v0")
    assert env.act_space == {"action": Space("discrete", (2,), (6, 6))}
    assert env.obs_space["agents_view"] == Space("discrete", (2, 12), (10,) * 24)
    steps = list(beside("LevelBasedForaging-v0", 200))
    for row, seen in steps:
        np.testing.assert_array_equal(row["obs/agents_view"] - 1, seen.observation.agents_view)
        np.testing.assert_array_equal(row["obs/legal"], np.ravel(seen.observation.action_mask))
        np.testing.assert_allclose(row["reward"], np.sum(seen.reward), rtol=1e-6)
    assert len(steps) == 101
    row, seen = steps[-1]
    assert (row["is_last"], row["is_terminal"]) == (True, False), "a discount of 1 on the last step"
    assert seen.discount.min() == 1


def test_where_nothing_can_be_done_everything_may_be() -> None:
    from reverie.envs.jumanji import _legal

    mask = np.array([[False, False], [True, False]])
    assert _legal(mask, Space("discrete", (2,), (2, 2))).tolist() == [True, True, True, False]


def test_chance_takes_the_key() -> None:
    env = device_env("jumanji:Game2048-v1")
    state = env.init(jax.random.key(0))
    action = {"action": np.int32(np.flatnonzero(env.row(state)["obs/legal"])[0])}
    after = jax.jit(jax.vmap(lambda key: env.row(env.step(state, action, key))["obs/board"]))
    boards = after(jax.random.split(jax.random.key(1), 32))
    assert len(np.unique(boards, axis=0)) > 4


def test_values_are_counted_by_their_meaning() -> None:
    maze = device_env("jumanji:Maze-v0").obs_space
    assert maze["agent_position/row"] == Space("discrete", (), (10,))
    assert maze["walls"] == Space("planes", (10, 10, 1))
    assert maze["step_count"] == Space("vector", ())
    assert device_env("jumanji:Game2048-v1").obs_space["board"] == Space("planes", (4, 4, 18))
    tour = make_env("jumanji:TSP-v1")
    assert tour.obs_space["position"] == Space("discrete", (), (21,))
    assert tour.reset(0).obs["position"] == 0, "nowhere, which jumanji calls -1"
    cube = device_env("jumanji:RubiksCube-v0")
    assert cube.act_space == {"action": Space("discrete", (), (18,))}
    assert "legal" not in cube.obs_space


def test_a_shorter_time_limit_truncates() -> None:
    env = device_env(EnvSpec("jumanji:Snake-v1", time_limit=7))
    assert isinstance(env, TimeLimit)
    assert env.limit == 7


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("Snak-v1", "did you mean jumanji:Snake-v1"),
        ("Snake", "did you mean jumanji:Snake-v1"),
        (REFUSED, "its actions are int16"),
    ],
)
def test_what_cannot_be_used_says_why(name: str, told: str) -> None:
    with pytest.raises(UnusableEnv, match=told):
        make_env(f"jumanji:{name}")


def test_levels_that_cannot_be_fetched_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(name: str) -> None:
        raise FileNotFoundError("the hub is not there")

    monkeypatch.setattr(jumanji, "make", offline)
    with pytest.raises(UnusableEnv, match=r"from the web.*the hub is not there"):
        make_env(f"jumanji:{FETCHED}")


@pytest.mark.slow
@CASTS
@pytest.mark.parametrize("name", ALL)
def test_every_env_keeps_to_its_spaces(name: str) -> None:
    """Several episodes of legal play: no class is out of range, and something is always legal."""
    view = make_env(f"jumanji:{name}")
    gate, rng = Gate(view.obs_space), np.random.default_rng(0)
    step = view.reset(0)
    for _ in range(400):
        gate.check(step)
        if step.is_last:
            step = view.reset()
            continue
        step = view.step(legally(sample(view.act_space, rng), step.obs.get("legal"), view.act_space, rng))


@pytest.mark.slow
def test_check_env_finds_nothing_wrong() -> None:
    assert not any(finding.severity == "error" for finding in check_env("jumanji:Snake-v1", steps=50))
