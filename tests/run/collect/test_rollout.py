"""Device envs through the loop of the house, with a fake agent: rows, exact resume, same seed, evaluation."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import fakes
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from runs import Killed, assert_same, kill_at, state

import reverie
from reverie import algos, api, config
from reverie.envs.base import Space
from reverie.envs.device import DeviceEnvs
from reverie.envs.spec import EnvSpec, UnusableEnv
from reverie.envs.workers import EnvError
from reverie.replay.sequences import Replay
from reverie.run import experience
from reverie.run.collect.base import Tally, step
from reverie.run.collect.rollout import DeviceCollector, Rollout, count

QUICK: dict[str, Any] = {
    "steps": 240,
    "envs": 3,
    "scan": 5,
    "batch": 2,
    "length": 4,
    "warmup": 30,
    "replay_ratio": 2.0,
    "replay_size": 150,
    "log_every": 20,
    "eval_every": 70,
    "eval_episodes": 3,
    "eval_envs": 2,
    "report_every": 50,
    "video_every": 0,
    "checkpoint_every": 40,
}


@pytest.fixture(autouse=True)
def fake(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(algos.ALGORITHMS, "fake", "fakes")


def train(path: Path, env: str, **values: Any) -> reverie.Run:
    return reverie.train("fake", env, run=path, **{**QUICK, **values})


def test_the_first_turn_that_fills_a_sequence_learns(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Its rows are committed with the second half of its step."""
    run = train(tmp_path, "device:CartPole", warmup=0, length=7, replay_ratio=14.0)  # an update for every step
    assert run.updates == 240 - 3 * 8, "with a row of context, an env has shown a sequence after eight steps"
    assert "left out" not in caplog.text


def agent_of(envs: DeviceEnvs) -> fakes.Fake:
    return fakes.make_agent(fakes.Config(), envs.obs_space, envs.act_space, precision="float32")


def rolled(name: str, num: int, steps: int, calls: int = 1, seed: int = 0) -> tuple[Replay, list[Any]]:
    """A replay that holds everything, and the episodes that were told."""
    envs = DeviceEnvs(EnvSpec(name), num, seed=seed)
    agent = agent_of(envs)
    replay = Replay(experience.fields(agent), streams=num, length=2, capacity=num * steps * calls, seed=0, online=False)
    collector = DeviceCollector(Rollout(envs, agent, steps), replay.extend)
    collector.carry = [agent.init_carry(num, jax.random.key(1))]
    weights = agent.init(jax.random.key(2))
    assert [step(collector, weights, "train") for _ in range(calls)] == [num * steps] * calls
    return replay, collector.tally.take()


def test_rows_are_those_of_every_env() -> None:
    replay, episodes = rolled("device:Catch", 4, 40)
    rows = {k: x.reshape(4, 40, *x.shape[1:]) for k, x in replay.arrays.items()}
    assert rows["is_first"][:, ::8].all()
    assert rows["is_first"].sum() == rows["is_last"].sum() == 4 * 5
    np.testing.assert_array_equal(rows["is_last"][:, :-1], rows["is_first"][:, 1:])
    np.testing.assert_array_equal(rows["is_terminal"], rows["is_last"])
    assert set(rows["reward"][rows["is_last"]].tolist()) == {1.0, -1.0}
    assert not rows["reward"][~rows["is_last"]].any()
    # The action of a row leads to the next one, but for that of the last row of an episode.
    paddle = rows["obs/cells"][:, :, -1, :, 0].argmax(-1)
    moved = np.clip(paddle[:, :-1] + rows["action/action"][:, :-1] - 1, 0, 7)
    on = ~rows["is_last"][:, :-1]
    np.testing.assert_array_equal(paddle[:, 1:][on], moved[on])
    assert (paddle[:, 1:][~on] == 4).all()
    assert [e.length for e in episodes] == [7] * 20
    assert sum(e.episode_return for e in episodes) == rows["reward"].sum()


@pytest.mark.slow
def test_what_a_scan_does_depends_on_the_seed_alone_and_not_on_its_length() -> None:
    (whole, told), (pieces, told_too) = rolled("pgx:tic_tac_toe", 3, 30), rolled("pgx:tic_tac_toe", 3, 5, calls=6)
    for key, x in whole.arrays.items():
        np.testing.assert_array_equal(x, pieces.arrays[key], key)
    assert told == told_too
    other, _ = rolled("pgx:tic_tac_toe", 3, 30, seed=1)
    assert (other.arrays["action/action"] == whole.arrays["action/action"]).all(), "the policy's key is the same"
    shown = [rolled("pgx:2048", 3, 5, seed=seed)[0].arrays["obs/board"] for seed in (0, 1)]
    assert (shown[0] != shown[1]).any()


@pytest.mark.parametrize("env", ["device:CartPole", pytest.param("pgx:tic_tac_toe", marks=pytest.mark.slow)])
def test_a_killed_run_goes_on_as_if_nothing_had_happened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, env: str
) -> None:
    whole, killed, again = tmp_path / "whole", tmp_path / "killed", tmp_path / "again"
    run = train(whole, env)
    assert run.steps == 240
    assert run.updates == 2 * (240 - 30) // 8
    for _ in range(2):  # after its first checkpoint, and once more
        with monkeypatch.context() as patch:
            kill_at(patch, 8)
            with pytest.raises(Killed):
                train(killed, env)
    train(killed, env)
    assert_same(whole, killed)
    train(again, env)
    assert_same(whole, again)
    names = state(whole).keys()
    assert any(name.startswith("collector/world/state/") for name in names), "the env itself is saved"
    assert "collector/world/key" in names


def test_another_seed_is_another_run(tmp_path: Path) -> None:
    for seed in (0, 1):
        train(tmp_path / str(seed), "device:Catch", seed=seed, eval_episodes=0)
    one, other = (state(tmp_path / str(seed))["replay/obs/cells"] for seed in (0, 1))
    assert (one != other).any()


def test_everything_is_traced_once(tmp_path: Path) -> None:
    conf = config.override(config.default("fake"), env="device:CartPole", **QUICK)
    from rich.console import Console

    result = api.run_training(conf, tmp_path, Console(quiet=True))
    assert {name: n for name, n in result.traces.items() if n > 1} == {}
    assert result.traces["rollout/train/3x5"] == result.traces["rollout/random/3x5"] == 1
    assert result.traces["rollout/eval/2x64"] == 1


def test_greedy_episodes_are_evaluated_in_a_scan_and_again_by_hand(tmp_path: Path) -> None:
    run = train(tmp_path, "device:CartPole", steps=60)
    assert run.evaluation is not None
    assert len(run.evaluation.returns) == 3
    assert run.evaluation.returns == run.evaluation.lengths
    assert reverie.evaluate(tmp_path, episodes=3).returns == run.evaluation.returns
    # Always to the left, the pole falls after about nine steps.
    assert set(run.evaluation.lengths) <= {8, 9, 10, 11}
    with pytest.raises(config.ConfigError, match="game of two players"):
        reverie.evaluate(tmp_path, episodes=3, opponent="mcts:5")


def test_a_device_run_can_be_loaded_dreamt_of_and_evaluated_with_another_limit(tmp_path: Path) -> None:
    train(tmp_path, "device:CartPole", steps=60, time_limit=6)
    agent = reverie.load(tmp_path)
    assert reverie.evaluate(agent, episodes=2).lengths == [6, 6]
    rows = agent.rows(2, 12, fresh=True)
    assert rows["is_last"].sum() > 0
    assert not rows["is_terminal"].any(), "a time limit is no end of the world"
    assert agent.dream(rows=rows, seen=5).valid.shape == (2, 12)
    action, _ = agent.act({"obs": np.zeros(4, np.float32)})
    assert int(action["action"]) == 0


def test_what_has_no_meaning_on_the_device_is_refused(tmp_path: Path) -> None:
    for flags, message in (
        ({"workers": "process"}, "--workers process"),
        ({"groups": 3}, "--groups"),
        ({"action_repeat": 2}, "--action-repeat"),
        ({"gray": True}, "--gray"),
    ):
        with pytest.raises(UnusableEnv, match=message):
            train(tmp_path / message, "device:CartPole", **flags)


class Broken:
    """Shows a NaN after some steps."""

    players = 1
    obs_space = {"x": Space("vector", ())}  # noqa: RUF012
    act_space = {"action": Space("discrete", (), classes=(2,))}  # noqa: RUF012

    def init(self, key: Any) -> Any:
        return jnp.float32(3)

    def step(self, state: Any, action: Any, key: Any) -> Any:
        return state - 1

    def row(self, state: Any) -> dict[str, Any]:
        no = jnp.bool_(False)
        seen = jnp.sqrt(state)
        flags = {"is_first": state == 3, "is_last": no, "is_terminal": no}
        return {"obs/x": seen, "reward": jnp.float32(0), **flags}


def test_what_is_not_finite_never_reaches_replay() -> None:
    envs = DeviceEnvs(EnvSpec("device:test_rollout:Broken"), 2, seed=0)
    agent = agent_of(envs)
    kept: list[Any] = []
    collector = DeviceCollector(Rollout(envs, agent, 3), lambda envs, rows: kept.append(rows))
    collector.carry = [agent.init_carry(2, jax.random.key(1))]
    weights = agent.init(jax.random.key(2))
    step(collector, weights, "train")
    with pytest.raises(EnvError, match="obs/x"):
        step(collector, weights, "train")
    assert len(kept) == 1


def test_the_return_of_a_game_is_that_of_the_player_who_moved_first() -> None:
    """X wins on its own move, then O does: one row at a time, as a scan gives them."""
    player = np.array([0, 1, 0, 1, 0, 1, 0])
    first, last = np.array([1, 0, 0, 0, 1, 0, 0], bool), np.array([0, 0, 0, 1, 0, 0, 1], bool)
    rows = {
        "reward": np.array([0, 0, 0, 1, 0, 0, 1], np.float32)[:, None],
        "is_first": first[:, None],
        "is_last": last[:, None],
        "obs/player": player.astype(np.int8)[:, None],
    }
    tally = Tally(1)
    count(tally, {key: x[:5] for key, x in rows.items()})
    continued = Tally(1)
    continued.restore(tally.state())
    count(continued, {key: x[5:] for key, x in rows.items()})
    told = [(e.episode_return, e.length) for e in continued.take()]
    assert told == [(1.0, 3), (-1.0, 2)]


def test_a_player_may_move_twice_in_a_row() -> None:
    """What the last move earned is its player's: the second one's in the first game, the first one's in the second."""
    rows = {
        "reward": np.array([0, 0, 0, 0, 3, 0, 0, 0, 2], np.float32)[:, None],
        "is_first": np.array([1, 0, 0, 0, 0, 1, 0, 0, 0], bool)[:, None],
        "is_last": np.array([0, 0, 0, 0, 1, 0, 0, 0, 1], bool)[:, None],
        "obs/player": np.array([0, 0, 1, 1, 1, 0, 1, 0, 1], np.int8)[:, None],
    }
    tally = Tally(1)
    count(tally, rows)
    assert [(e.episode_return, e.length) for e in tally.take()] == [(-3.0, 4), (2.0, 3)]


def test_the_outcomes_of_both_seats_are_told(tmp_path: Path) -> None:
    run = train(tmp_path, "pgx:tic_tac_toe", steps=60, eval_episodes=21)
    assert run.evaluation is not None
    told = json.loads(json.dumps(run.evaluation.to_json()))
    assert told["opponent"] == "random"
    assert {seat: sum(counts.values()) for seat, counts in told["seats"].items()} == {"first": 11, "second": 10}
    balance = sum(counts["wins"] - counts["losses"] for counts in told["seats"].values())
    assert told["mean_return"] == pytest.approx(balance / 21)
    for opponent in ("grandmaster", "mcts:0"):
        with pytest.raises(UnusableEnv, match="mcts:N"):
            reverie.evaluate(tmp_path, episodes=2, opponent=opponent)
        with pytest.raises(UnusableEnv, match="mcts:N"):
            train(tmp_path / opponent, "pgx:tic_tac_toe", opponent=opponent)
