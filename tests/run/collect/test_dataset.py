"""Recorded episodes as replay: what is taken, what is refused, and that a run learns from it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from test_actor import Rich

import reverie
from reverie import algos
from reverie.config import ConfigError
from reverie.envs.spec import EnvSpec, env_spec
from reverie.run import experience
from reverie.run.collect import offline
from reverie.run.collect.dataset import Dataset

LEARN: dict[str, Any] = {
    "preset": "quick",
    "workers": "inline",
    "model_updates": 6,
    "envs": 2,
    "eval_episodes": 0,
    "video_every": 0,
    "warmup": 4,
}


@pytest.fixture(autouse=True)
def fake(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(algos.ALGORITHMS, "fake", "fakes")


def play(env: gymnasium.Env, steps: int, seed: int) -> dict[str, Any]:
    """An episode of random actions of at most so many steps, as a file has it."""
    env.action_space.seed(seed)
    obs, _ = env.reset(seed=seed)
    seen, taken, rewards, ends = [obs], [], [], [(False, False)]
    while len(taken) < steps and not any(ends[-1]):
        taken.append(env.action_space.sample())
        obs, reward, *flags, _ = env.step(taken[-1])
        seen.append(obs)
        rewards.append(reward)
        ends.append((bool(flags[0]), bool(flags[1])))
    terminated, truncated = np.array(ends[1:]).T
    return {
        "obs": np.stack(seen), "action": np.stack(taken), "reward": np.array(rewards),
        "terminated": terminated, "truncated": truncated,
    }  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Five episodes of Pendulum, cut after 7 steps."""
    (tmp_path / "data").mkdir()
    for seed in range(5):
        np.savez(tmp_path / "data" / f"{seed}.npz", **play(gymnasium.make("Pendulum-v1"), 7, seed))
    return tmp_path / "data"


def test_rows_are_those_of_an_env(folder: Path) -> None:
    data = Dataset(str(folder), EnvSpec("Pendulum-v1"), 2)
    assert data.rows == 5 * 8
    file, rows = np.load(folder / "0.npz"), data.episodes[0]
    np.testing.assert_array_equal(rows["obs/vector"], file["obs"])
    np.testing.assert_allclose(rows["reward"], [0, *file["reward"]], rtol=1e-6)
    np.testing.assert_allclose(2 * rows["action/action"][:7], file["action"], rtol=1e-5)
    assert not rows["action/action"][7].any()
    assert rows["is_first"].tolist() == [True] + 7 * [False]
    assert rows["is_last"].tolist() == 7 * [False] + [True]
    assert not rows["is_terminal"].any(), "the recording ended, not the world"


def test_an_end_of_the_world_is_one(tmp_path: Path) -> None:
    whole = play(gymnasium.make("CartPole-v1"), 500, 0)
    assert whole["terminated"][-1]
    np.savez(tmp_path / "a.npz", **whole)
    (rows,) = Dataset(str(tmp_path), EnvSpec("CartPole-v1"), 1).episodes
    assert rows["is_terminal"].tolist() == len(whole["action"]) * [False] + [True]
    np.testing.assert_array_equal(rows["action/action"][:-1], whole["action"])


def test_a_run_learns_from_files_and_from_what_import_made_of_them(folder: Path, tmp_path: Path) -> None:
    made = tmp_path / "made"
    assert reverie.import_episodes(str(folder), "Pendulum-v1", made, envs=2) == 40
    direct = reverie.train("fake", env="Pendulum-v1", run=tmp_path / "a", offline=str(folder), **LEARN)
    again = reverie.train("fake", env="Pendulum-v1", run=tmp_path / "b", offline=str(made), **LEARN)
    assert direct.updates == again.updates == 6
    assert direct.steps == 0
    states = [run.load().state["weights"] for run in (direct, again)]
    np.testing.assert_array_equal(*states)
    with pytest.raises(ConfigError, match="type --envs 2"):
        reverie.train("fake", env="Pendulum-v1", run=tmp_path / "c", offline=str(made), **LEARN | {"envs": 4})
    with pytest.raises(ConfigError, match="lived in another env"):
        reverie.train("fake", env="CartPole-v1", run=tmp_path / "c", offline=str(made), **LEARN)
    with pytest.raises(ConfigError, match="is there already"):
        reverie.import_episodes(str(folder), "Pendulum-v1", made)


def test_dicts_and_tuples_have_an_array_for_every_leaf(tmp_path: Path) -> None:
    spec = env_spec(Nested)
    steps = 4
    np.savez(
        tmp_path / "a.npz",
        **{"obs/arm/angle": np.zeros((steps + 1, 3), np.float32), "obs/arm/grip": np.full(steps + 1, 2)},
        **{"action/move": np.full((steps, 2), 4.0), "action/say": np.full(steps, 6)},
        reward=np.ones(steps), terminated=np.zeros(steps, bool), truncated=np.arange(steps) == steps - 1,
    )  # fmt: skip
    (rows,) = Dataset(str(tmp_path), spec, 1).episodes
    assert (rows["obs/arm/grip"] == 1).all(), "counted from 0"
    assert (rows["action/move"][:steps] == 1).all(), "the upper bound"
    assert rows["action/say"][:steps].tolist() == steps * [1]


class Nested(Rich):
    observation_space = gymnasium.spaces.Dict({"arm": Rich.observation_space["arm"]})


def broken(**changed: Any) -> dict[str, Any]:
    whole = {
        "obs": np.zeros((4, 3)), "action": np.zeros((3, 1)), "reward": np.zeros(3),
        "terminated": np.zeros(3, bool), "truncated": np.zeros(3, bool),
    }  # fmt: skip
    return {key: x for key, x in {**whole, **changed}.items() if x is not None}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"reward": None}, "a.npz: reward missing, among"),
        ({"obs": None}, "obs missing"),
        ({"obs": np.zeros((3, 3))}, "obs has 3 rows and reward 3, expected 4 of obs"),
        ({"action": np.zeros((4, 1))}, "action has 4 rows and reward 3, expected 3"),
        ({"truncated": np.zeros(2, bool)}, "truncated has 2 rows"),
        ({"terminated": np.array([True, False, False])}, "a file is one episode"),
        ({"terminated": np.zeros(3)}, r"terminated is float64 \[3\], expected bool"),
        ({"obs": np.full((4, 3), np.nan)}, "a.npz, step 0: obs/vector: element 0 is nan, expected finite"),
        ({"obs": np.zeros((4, 2))}, r"step 0: obs/vector: float32 \[2\], expected vector float32 \[3\]"),
        ({"obs": np.arange(12.0).reshape(4, 3)}, "step 0: obs/vector: element 1 is 1.0|out of bounds"),
        ({"reward": np.array([0, np.inf, 0])}, "step 2: reward: inf, expected a finite float32"),
        ({"action": np.full((3, 1), 3.0)}, r"step 0: action/action, in \[-1, 1\] .*: element 0 is 1.5, out of bounds"),
        ({"action": np.zeros((3, 2))}, "action/action"),
        ({"obs": np.array([[{}] * 3] * 4)}, "no .npz of plain arrays"),
    ],
)
def test_what_is_malformed_is_named(tmp_path: Path, given: dict[str, Any], message: str) -> None:
    np.savez(tmp_path / "a.npz", **broken(**given))
    with pytest.raises((ConfigError, ValueError), match=message):
        Dataset(str(tmp_path), EnvSpec("Pendulum-v1"), 1)


def test_what_is_no_data(tmp_path: Path) -> None:
    (tmp_path / "a.npz").write_bytes(b"nonsense")
    with pytest.raises(ConfigError, match=r"no \.npz of plain arrays"):
        Dataset(str(tmp_path), EnvSpec("Pendulum-v1"), 1)
    with pytest.raises(ConfigError, match=r"nor are there episodes, \*.npz"):
        offline.source(str(tmp_path / "none"), EnvSpec("Pendulum-v1"), 1)
    with pytest.raises(ConfigError, match="no Gymnasium env"):
        Dataset(str(tmp_path), EnvSpec("device:Catch"), 1)
    with pytest.raises(ConfigError, match=r"expected a folder of \.npz files"):
        reverie.import_episodes(str(tmp_path / "none"), "Pendulum-v1", tmp_path / "x")


def test_what_replay_stores_of_a_step_is_told_without_an_agent(folder: Path, tmp_path: Path) -> None:
    reverie.train("fake", env="Pendulum-v1", run=tmp_path / "a", offline=str(folder), **LEARN)
    agent = reverie.load(tmp_path / "a").agent
    own = {key: field for key, field in experience.fields(agent).items() if not key.startswith("out/")}
    assert own == experience.row_fields(agent.obs_space, agent.act_space)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # it asks for authors and links
def test_a_data_set_of_minari(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    minari = pytest.importorskip("minari")
    env = minari.DataCollector(gymnasium.make("Pendulum-v1", max_episode_steps=5))
    for seed in range(3):
        env.reset(seed=seed)
        for _ in range(5):
            env.step(env.action_space.sample())
    env.create_dataset("mine/test-v0", algorithm_name="random")
    data = Dataset("minari:mine/test-v0", EnvSpec("Pendulum-v1"), 2)
    assert data.rows == 3 * 6
    assert reverie.import_episodes("minari:mine/test-v0", "Pendulum-v1", tmp_path / "made", envs=2) == 18
    with pytest.raises(ConfigError, match="minari:mine/none-v0"):
        Dataset("minari:mine/none-v0", EnvSpec("Pendulum-v1"), 2)
