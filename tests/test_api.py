"""The Python names: train, load, act, evaluate."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path
from typing import Any

import fakes
import gymnasium
import numpy as np
import pytest

import reverie
from reverie import algos, api, config, resolve
from reverie.config import ConfigError
from reverie.run import experience
from reverie.run.trust import NeedsTrust

QUICK: dict[str, Any] = {
    "steps": 40,
    "warmup": 20,
    "envs": 2,
    "workers": "inline",
    "eval_episodes": 1,
    "preset": "quick",
}


@pytest.fixture(autouse=True)
def here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setitem(algos.ALGORITHMS, "fake", "fakes")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_train_load_act_in_the_envs_own_words() -> None:
    run = reverie.train("fake", env="Pendulum-v1", run="x", **QUICK)
    assert (run.path, run.steps, run.updates) == (Path("x"), 40, 80)
    agent = run.load()
    assert agent.step == 40
    env = gymnasium.make("Pendulum-v1")
    obs, _ = env.reset(seed=0)
    carry = None
    for _ in range(3):
        action, carry = agent.act(obs, carry, mode="train")
        assert env.action_space.contains(action), action
        obs, *_ = env.step(action)
    assert carry is not None
    assert agent.act(obs)[0] == pytest.approx(0.0), "the fake's greedy action is the middle"
    env.close()


def test_a_replay_larger_than_memory_is_refused_before_anything_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("reverie.memory.limit", lambda: 2**20)
    with pytest.raises(ConfigError, match=r"this process may take 0\.0 GB .* lower --replay-gb or --replay-size"):
        reverie.train("fake", env="CartPole-v1", run="x", **{**QUICK, "steps": 10**6})
    assert not Path("x").exists()
    large = config.override(config.default("fake"), env="CartPole-v1", steps=10**6)
    with pytest.raises(ConfigError, match="lower --replay-gb"):
        api.dry_run(large)
    there = config.override(large, steps=100, replay_on="device")
    with pytest.raises(ConfigError, match=r"take 0\.1 GB, and cpu has 0\.0 GB: lower .* or type --replay-on host"):
        api.dry_run(there)  # a device gives all of it at once


def test_a_carry_begins_an_episode_only_once() -> None:
    agent = reverie.train("fake", env="CartPole-v1", run="x", **QUICK).load()
    obs = np.full(4, 0.1, np.float32)
    _, first = agent.act(obs)
    _, second = agent.act(obs, first)
    _, again = agent.act(obs, None)
    np.testing.assert_array_equal(first.inner["memory"], again.inner["memory"])
    assert not np.array_equal(first.inner["memory"], second.inner["memory"])


def test_continue_and_contradict() -> None:
    reverie.train("fake", env="CartPole-v1", run="x", **QUICK)
    assert reverie.train("fake", run="x", steps=50).steps == 50
    with pytest.raises(ConfigError, match=r"--env +saved 'CartPole-v1', given 'Pendulum-v1'"):
        reverie.train("fake", env="Pendulum-v1", run="x")
    with pytest.raises(ConfigError, match="begun with fake, and dreamer_v3 cannot continue it"):
        reverie.train("dreamer_v3", env="CartPole-v1", run="x")
    with pytest.raises(ConfigError, match="did you mean 'steps'"):
        reverie.train("fake", env="CartPole-v1", stpes=3)
    with pytest.raises(ConfigError, match="which env"):
        reverie.train("fake")


def test_an_env_from_a_function_of_this_process() -> None:
    def make() -> gymnasium.Env:
        return gymnasium.make("CartPole-v1")

    run = reverie.train("fake", env=make, run="x", **{**QUICK, "workers": "auto"})
    agent = reverie.load(run.path, env=make)
    assert agent.act(np.zeros(4, np.float32))[0] in (0, 1)


def test_an_env_spec_brings_its_own_values() -> None:
    spec = reverie.EnvSpec("reverie.envs.toy:Catch", image_size=16, gray=True)
    agent = reverie.train("fake", env=spec, run="x", **QUICK).load()
    assert agent.config.run.image_size == 16
    assert agent.agent.obs_space["image"].shape == (16, 16, 1)
    action, _ = agent.act(np.zeros((64, 64, 3), np.uint8))
    assert action in (0, 1, 2)
    with pytest.raises(ConfigError, match="image_size is 32, but the env given says 16"):
        reverie.train("fake", env=spec, image_size=32)


def test_evaluate_repeats_itself() -> None:
    run = reverie.train("fake", env="reverie.envs.toy:Catch", run="x", **QUICK)
    one, other = reverie.evaluate("x", 3), reverie.evaluate(run.load(), 3)
    assert one == other
    assert reverie.evaluate("x", 3, seed=1).lengths == one.lengths
    with pytest.raises(ConfigError, match="--episodes must be 1"):
        reverie.evaluate("x", 0)


@pytest.mark.parametrize("env", ["reverie.envs.toy:Catch", "device:Catch", "pgx:tic_tac_toe"])
def test_evaluations_are_greedy_or_drawn_from_the_policy(env: str) -> None:
    """The fake's greedy action is always the first one that may be taken, and otherwise any."""
    if env.startswith("pgx"):
        pytest.importorskip("pgx")
    quick = QUICK | {"video_every": 0, "report_every": 0}
    run = reverie.train("fake", env=env, run="x", eval_mode="sample", **quick)
    drawn = reverie.evaluate("x", 40)
    assert drawn == reverie.evaluate(run.load(), 40, eval_mode="sample")
    greedy = reverie.evaluate("x", 40, eval_mode="greedy")
    assert (drawn.returns, drawn.lengths) != (greedy.returns, greedy.lengths)
    with pytest.raises(ConfigError, match="--eval-mode must be one of greedy, sample, got 'best'"):
        reverie.evaluate("x", 8, eval_mode="best")
    more = quick | {"steps": 60}
    assert reverie.train("fake", env=env, run="x", eval_mode="greedy", **more).evaluation is not None, "it may change"


def test_episodes_are_not_taken_apart_where_their_ends_would_be_lost() -> None:
    with pytest.raises(ConfigError, match=r"--within-episodes, but gumbel_muzero .* the last ones of an episode would"):
        reverie.train("gumbel_muzero", env="CartPole-v1", run="x", within_episodes=True)
    old = config.override(config.default("gumbel_muzero"), env="CartPole-v1", within_episodes=True)
    assert resolve.settle(old, old) == old, "what was begun so goes on"


def test_film_draws_and_says_when_it_cannot() -> None:
    agent = reverie.train("fake", env="reverie.envs.toy:Catch", run="x", **QUICK).load()
    frames = agent.film()
    assert len(frames) >= 300
    assert frames[0].dtype == np.uint8
    blind = reverie.train("fake", env="reverie.envs.toy:Counting", run="y", **QUICK).load()
    with pytest.raises(ConfigError, match="draws no pictures"):
        blind.film()


def test_dream_gives_arrays_of_truth_and_dream() -> None:
    agent = reverie.train("fake", env="reverie.envs.toy:Dummy", run="x", **QUICK, env_kwargs='{"length": 7}').load()
    dream = agent.dream(sequences=3, length=12, seen=2)
    shapes = {
        "obs/image": (3, 12, 64, 64, 3), "obs/vector": (3, 12, 7), "obs/token": (3, 12), "obs/count": (3, 12),
        "obs/float2d": (3, 12, 4, 5), "obs/int2d": (3, 12, 2, 3), "reward": (3, 12),
    }  # fmt: skip
    for part in (dream.truth, dream.dream):
        assert {k: x.shape for k, x in part.items()} == shapes
        assert {type(x) for x in part.values()} == {np.ndarray}
    count = dream.truth["obs/count"]  # of an episode's steps: the dream ends where it starts again
    for b in range(3):
        begun = [t for t in range(2, 12) if count[b, t] == 0]
        assert dream.valid[b].sum() == (begun[0] if begun else 12)
    assert (dream.dream["obs/count"][:, 1:] == count[:, 1:2]).all(), "the fake repeats what it saw last"
    for wrong in ({"seen": 0}, {"seen": 12}, {"sequences": 0}, {"length": 0}):
        with pytest.raises(ConfigError, match=f"{next(iter(wrong))}"):
            agent.dream(**{"length": 12, **wrong})


def test_dreams_come_from_the_runs_replay_or_from_fresh_episodes(caplog: pytest.LogCaptureFixture) -> None:
    agent = reverie.train("fake", env="reverie.envs.toy:Counting", run="x", **QUICK).load()
    episodes = agent.rows(8, 10)["obs/episode"]
    assert episodes.max() > 0
    np.testing.assert_array_equal(agent.rows(8, 10)["obs/episode"], episodes)
    assert not np.array_equal(agent.rows(8, 10, seed=1)["obs/episode"], episodes)
    fresh = agent.rows(2, 10, fresh=True)
    assert fresh["reward"].shape == (2, 11)
    assert fresh["is_first"][:, 0].all(), "an episode from its beginning"
    assert not fresh["obs/episode"][:, 0].any(), "the first of its env"
    assert (fresh["action/action"] == 0).all(), "the fake's greedy action"
    # 40 steps of two envs are 20 rows each: the rest is filled up, and no dream goes there.
    assert not agent.dream(length=50).valid[:, 20:].any()
    assert agent.dream(length=50, fresh=True).valid.shape == (4, 50)
    for file in Path("x/replay").iterdir():
        file.unlink()
    caplog.clear()
    with caplog.at_level("WARNING", "reverie"):
        gone = agent.rows(2, 10)
    assert "fresh episodes are played instead" in caplog.text
    np.testing.assert_array_equal(gone["obs/step"], fresh["obs/step"])


def test_replay_of_a_run_is_looked_at_on_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wherever the run had it: a device would give the memory of all that may come."""
    agent = reverie.train("fake", env="reverie.envs.toy:Counting", run="x", **QUICK, replay_on="device").load()
    monkeypatch.setattr(experience, "DeviceRows", pytest.fail)
    assert agent.rows(8, 10)["obs/episode"].max() > 0


def test_a_plan_knows_how_many_updates_are_due_at_once() -> None:
    conf = config.override(config.default("dreamer_v3"), env="CartPole-v1", updates_per_dispatch=50)
    with pytest.raises(ConfigError, match="--updates-per-dispatch 50, but between two env steps"):
        api.dry_run(conf)


@pytest.mark.slow
def test_think_of_an_observation_or_of_a_step() -> None:
    small = {"steps": 4, "warmup": 100, "envs": 1, "workers": "inline", "eval_every": 0, "eval_episodes": 1}
    small |= {"hidden": 8, "units": 8, "support": 5, "simulations": 3, "preset": "paper"}
    agent = reverie.train("muzero", env="CartPole-v1", run="x", **small).load()
    obs, _ = gymnasium.make("CartPole-v1").reset(seed=0)
    thought = agent.think(obs=obs)
    assert thought.visits.sum() == 3
    np.testing.assert_allclose(thought.policy, thought.visits / 3, rtol=1e-6)
    action, carry = agent.act(obs)
    assert thought.chosen == action
    assert agent.think(obs=obs, carry=carry, simulations=7).visits.sum() == 7
    steps = [agent.think(step).prior[0] for step in (0, 4, 0)]
    assert steps[0] == steps[2] not in (steps[1], agent.think(0, seed=1).prior[0])
    dreamer = reverie.train("fake", env="CartPole-v1", run="y", **QUICK).load()
    with pytest.raises(ConfigError, match="fake does not search"):
        dreamer.think()


@pytest.mark.slow
def test_a_dreamer_can_search_whatever_it_was_trained_with() -> None:
    small = {"steps": 4, "warmup": 100, "envs": 1, "workers": "inline", "eval_every": 0, "eval_episodes": 0}
    small |= {"size": "200k", "preset": "paper", "time_limit": 6}
    path = reverie.train("dreamer_v3", env="CartPole-v1", run="x", **small).path
    obs, _ = gymnasium.make("CartPole-v1").reset(seed=0)
    alone = reverie.load(path)
    with pytest.raises(ConfigError, match=r"does not search.*--planner gumbel has a Dreamer search"):
        alone.think(obs=obs)
    agent = reverie.load(path, planner="gumbel", simulations=3)
    thought = agent.think(obs=obs)
    assert thought.visits.sum() == 3
    assert thought.chosen == agent.act(obs)[0]
    assert reverie.evaluate(agent, episodes=1).lengths == [6]


def test_a_planner_of_a_run_can_be_left_out() -> None:
    saved = config.override(config.default("dreamer_v3"), planner="puct", simulations=7, improve=0.5)
    assert resolve.searching(saved, None, None) == saved
    assert resolve.searching(saved, "none", None).agent.planner == "none"
    assert resolve.searching(saved, None, 9).agent.simulations == 9
    assert resolve.searching(saved, "gumbel", None, 0.02).agent.planner_scale == 0.02
    assert resolve.searching(config.default("muzero"), None, 9).agent.simulations == 9
    for algorithm, planner, simulations, message in (
        ("muzero", "puct", None, "muzero has no planner: it searches in its own way, and --simulations N"),
        ("dreamer_v3", None, 3, "nothing searches: add --planner gumbel"),
        ("dreamer_v3", "gumbel", 0, "--simulations must be 1 or more"),
        ("dreamer_v3", "astar", None, "planner is 'astar'"),
    ):
        with pytest.raises(ConfigError, match=message):
            resolve.searching(config.default(algorithm), planner, simulations)


def test_names_come_on_demand_and_without_jax() -> None:
    code = "import sys, reverie.envs.workers; assert 'jax' not in sys.modules; reverie.EnvSpec"
    root = str(Path(reverie.__file__).parents[1])
    subprocess.run([sys.executable, "-c", code], check=True, env={"PYTHONPATH": root})
    assert set(dir(reverie)) == set(reverie.__all__)
    for name in reverie.__all__:
        assert getattr(reverie, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        reverie.trian  # noqa: B018
    assert reverie.list_presets()["fake"] == ["quick"]


def test_check_env_asks_what_training_asks(here: Path) -> None:
    env = reverie.EnvSpec("Pendulum-v1", action_repeat=4)
    (refused,) = [f for f in reverie.check_env(env, "gumbel_muzero", steps=20) if f.severity == "error"]
    assert refused.algorithms == ("gumbel_muzero",)
    with pytest.raises(algos.Unsuitable) as told:
        reverie.train("gumbel_muzero", env=env, workers="inline", preset="none", run=here / "a")
    assert str(told.value) == refused.what
    assert not [f for f in reverie.check_env(env, "sampled_muzero", steps=20) if f.severity == "error"]
    with pytest.raises(algos.UnknownAlgorithm):
        reverie.check_env(env, "gumbel")


def test_spaces_without_a_number_are_refused_in_the_same_sentence(here: Path) -> None:
    class Empty(gymnasium.Env):
        observation_space = gymnasium.spaces.Box(0, 1, (2,))
        action_space = gymnasium.spaces.MultiDiscrete([])

    (found,) = reverie.check_env(Empty, steps=20)
    with pytest.raises(ValueError, match="action 'action' holds no number") as told:
        reverie.train("fake", env=Empty, run=here / "a", **QUICK)
    assert str(told.value) == found.what


MAZE = """
import gymnasium
from gymnasium.spaces import Discrete

class Maze(gymnasium.Env):
    observation_space = action_space = Discrete(2)
    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed); return 0, {}
    def step(self, action):
        return 0, 1.0, bool(self.np_random.random() < 0.2), False, {}
"""


def test_a_run_in_a_file_of_ones_own_goes_on_from_anywhere(
    here: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (here / "maze.py").write_text(MAZE)
    path = reverie.train("fake", env="maze.py:Maze", **QUICK).path.resolve()
    where = here.resolve() / "maze.py"
    saved = config.saved(path)
    assert saved is not None
    assert (saved.run.env, saved.files) == ("maze.py:Maze", {"env": str(where)})
    assert reverie.load(path, env=f"{where}:Maze").config.run.env == "maze.py:Maze", "two names of one file"

    elsewhere = here / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    # The path is of a file that came with the run, so a person has to type it, or to trust it.
    with pytest.raises(NeedsTrust, match=f"would run the file '{where}'") as refused:
        reverie.load(path)
    assert refused.value.missing == {"env": f"{where}:Maze"}
    assert f"maze.py is not in {elsewhere.resolve()}; the run had it from {where}" in caplog.text
    with pytest.raises(ConfigError, match=f"but this run was trained in {where}:Maze"):
        reverie.load(path, env="maze.py:Maze")
    assert reverie.load(path, trust=True).act(0)
    assert reverie.load(path, env=f"{where}:Maze").act(0)
    more = reverie.train("fake", env=f"{where}:Maze", run=path, **QUICK | {"steps": 60})
    assert more.steps == 60
    assert config.saved(path) == dataclasses.replace(saved, run=dataclasses.replace(saved.run, steps=60))

    command = [sys.executable, fakes.__file__, "eval", str(path), "--episodes", "1"]
    told = " ".join(subprocess.run(command, capture_output=True, text=True).stdout.split())
    assert told.count("the run had it from") == 1

    # One of that name in the current directory comes first.
    (elsewhere / "maze.py").write_text(MAZE)
    assert config.here(saved) == saved
    (elsewhere / "maze.py").unlink()
    where.unlink()
    with pytest.raises(ValueError, match=f"no file {where}"):
        reverie.load(path, trust=True)
    assert "is not there any more" in caplog.text
