"""The model first, then the policy in its imagination: what is done when, and that the envs rest meanwhile."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from runs import Killed, assert_same, kill_at, metrics, state
from test_loop import run_quietly

import reverie
from reverie import algos, config
from reverie.agent import TwoPhaseAgent
from reverie.config import ConfigError
from reverie.envs.base import Space
from reverie.envs.spec import UnusableEnv
from reverie.envs.toy import Counting
from reverie.health import Symptom, Watch
from reverie.run import loop
from reverie.run.checkpoint import Checkpoints
from reverie.run.phases import phase

QUICK: dict[str, Any] = {
    "env": "reverie.envs.toy:Counting",
    "env_kwargs": '{"episodes": false}',
    "workers": "inline",
    "schedule": "model-then-policy",
    "steps": 40,
    "model_updates": 25,
    "policy_updates": 18,
    "envs": 3,
    "batch": 2,
    "length": 4,
    "log_every": 10,
    "eval_every": 0,
    "eval_episodes": 3,
    "eval_envs": 2,
    "report_every": 30,
    "video_every": 0,
    "checkpoint_every": 15,
}


@pytest.fixture(autouse=True)
def fake(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(algos.ALGORITHMS, "fake", "fakes")


def train(path: Path, **values: Any) -> reverie.Run:
    return reverie.train("fake", run=path, **{**QUICK, **values})


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A run that nothing interrupted."""
    path = tmp_path_factory.mktemp("whole")
    algos.ALGORITHMS["fake"] = "fakes"
    train(path)
    yield path
    del algos.ALGORITHMS["fake"]


def test_phases_follow_from_the_counts() -> None:
    run = config.RunConfig(schedule="model-then-policy", steps=10, model_updates=2, policy_updates=1)
    assert [phase(run, step, 0) for step in (0, 9, 10, 12)] == ["collect", "collect", "model", "model"]
    assert [phase(run, 10, updates) for updates in (0, 1, 2, 3)] == ["model", "model", "policy", "done"]
    offline = config.RunConfig(schedule="model-then-policy", offline="runs/x", model_updates=1, policy_updates=1)
    assert [phase(offline, 0, updates) for updates in (0, 1, 2)] == ["model", "policy", "done"]
    alone = config.RunConfig(offline="runs/x", model_updates=2, policy_updates=9)
    assert [phase(alone, 0, updates) for updates in (0, 1, 2)] == ["learn", "learn", "done"]
    together = config.RunConfig(steps=10)
    assert [phase(together, step, 99) for step in (0, 9, 10)] == ["together", "together", "done"]


def test_the_env_steps_stand_still_while_model_and_policy_learn(whole: Path) -> None:
    records = metrics(whole)
    told = [(r["phase"], r["step"], r["updates"]) for r in records if "nonfinite/total" in r or r["phase"] == 0]
    assert told == [
        (0, 12, 0), (0, 21, 0), (0, 30, 0), (0, 42, 0),
        (1, 42, 8), (1, 42, 18), (1, 42, 25),
        (2, 42, 28), (2, 42, 38), (2, 42, 43),
    ]  # fmt: skip
    for record in records:
        assert ("a/wish" in record) == (record["phase"] == 2), "metrics of one part do not slip into those of another"
    assert records[-1]["eval/steps"] > 0
    assert "eval/steps" not in records[-2]
    assert [m["step"] for m in Checkpoints(whole / "checkpoints").manifests()] == [85, 75]


class Counted(Counting):
    """Counts the steps and resets of all envs of its kind."""

    calls = 0

    def step(self, action: Any) -> Any:
        Counted.calls += 1
        return super().step(action)

    def reset(self, **options: Any) -> Any:
        Counted.calls += 1
        return super().reset(**options)


def test_no_env_is_touched_while_model_and_policy_learn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even by a resume, which re-enacts open episodes as long as there is something to collect."""
    seen: dict[str, list[int]] = {"collect": [], "model": [], "policy": []}
    turn = loop.Training.turn

    def watched(self: loop.Training) -> Any:
        phase = self.phase(self.moment)
        before = Counted.calls
        following = turn(self)
        seen[phase].append(Counted.calls - before)
        return following

    monkeypatch.setattr(loop.Training, "turn", watched)
    values = QUICK | {"env": Counted, "eval_episodes": 0}
    with monkeypatch.context() as patch:
        kill_at(patch, 50, "turn")
        with pytest.raises(Killed):
            reverie.train("fake", run=tmp_path, **values)
    before = Counted.calls
    assert reverie.train("fake", run=tmp_path, **values).steps == 42
    assert Counted.calls == before + 3  # each is reset once as it is built, to see whether it masks its actions
    assert len(seen["collect"]) == 15, "14 rows of every env: the last is committed when its successor is known"
    assert seen["collect"][0] == 0  # their first resets, too, were made as they were built
    assert min(seen["collect"][1:]) >= 3
    assert len(seen["model"]) >= 25
    assert len(seen["policy"]) >= 18
    assert set(seen["model"] + seen["policy"]) == {0}


@pytest.mark.parametrize("call", [9, 16, 30, 41, 50, 58])
def test_a_killed_run_goes_on_as_if_nothing_had_happened(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: int
) -> None:
    with monkeypatch.context() as patch:
        kill_at(patch, call, "turn")
        with pytest.raises(Killed):
            train(tmp_path)
    train(tmp_path)
    assert_same(whole, tmp_path)


def test_symptoms_are_counted_the_same_after_a_kill(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Here lines that hold nothing but an evaluation know the updates, too."""
    always = Symptom("always", lambda values: None if values.get("loss/total") is None else True, "it is so", "nothing")
    monkeypatch.setattr("fakes.Fake.symptoms", (always,))
    monkeypatch.setattr(loop, "Watch", partial(Watch, grace=5, patience=20))
    values = {"eval_every": 4}
    train(tmp_path / "whole", **values)
    with monkeypatch.context() as patch:
        kill_at(patch, 50, "turn")
        with pytest.raises(Killed):
            train(tmp_path / "killed", **values)
    train(tmp_path / "killed", **values)
    assert_same(tmp_path / "whole", tmp_path / "killed")
    told = [r["updates"] for r in metrics(tmp_path / "whole") if r.get("health/always")]
    assert told, "or nothing was compared"
    assert told[0] > 20


def test_each_part_moves_alone_and_is_traced_once(tmp_path: Path) -> None:
    given = config.override(config.default("fake"), **QUICK | {"policy_updates": 0})
    result = run_quietly(given, tmp_path)
    model = state(tmp_path)
    assert model["agent/wish"] == 0
    assert {k: n for k, n in result.traces.items() if k.startswith("train")} == {"train/model": 1}
    result = run_quietly(config.override(given, policy_updates=18), tmp_path)  # a longer run continues a shorter one
    assert (result.steps, result.updates) == (42, 43)
    assert {k: n for k, n in result.traces.items() if k.startswith("train")} == {"train/behavior": 1}
    after = state(tmp_path)
    assert after["agent/wish"] != 0
    assert after["agent/key"].tolist() != model["agent/key"].tolist(), "renewed"
    np.testing.assert_array_equal(after["agent/weights"], model["agent/weights"])


def test_more_env_steps_would_come_too_late(whole: Path) -> None:
    with pytest.raises(ConfigError, match="--steps  saved 40, given 50"):
        train(whole, steps=50)


# ------------------------------------------------------------------------------- whose rows they are

SCRIPT = """
def alternate(obs, rng):
    return int(obs["step"][0]) % 2

def wild(obs, rng):
    return int(rng.integers(2))

def wrong(obs, rng):
    return 2
"""


def rows(path: Path) -> dict[str, np.ndarray]:
    return {k.removeprefix("replay/"): x for k, x in state(path).items() if k.startswith("replay/")}


def test_a_script_collects_and_repeats_itself_after_a_kill(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "script.py"
    file.write_text(SCRIPT)
    train(tmp_path / "plain", collector=f"{file}:alternate", policy_updates=0, model_updates=0)
    held = rows(tmp_path / "plain")
    np.testing.assert_array_equal(held["action/action"], held["obs/step"][:, 0].astype(int) % 2)
    train(tmp_path / "whole", collector=f"{file}:wild")
    with monkeypatch.context() as patch:
        kill_at(patch, 13, "turn")
        with pytest.raises(Killed):
            train(tmp_path / "killed", collector=f"{file}:wild")
    train(tmp_path / "killed", collector=f"{file}:wild")
    assert_same(tmp_path / "whole", tmp_path / "killed")
    assert set(rows(tmp_path / "whole")["action/action"].tolist()) == {0, 1}
    with pytest.raises(UnusableEnv, match="wrong gave for action: element 0 is 2, out of bounds: expected 0 to 1"):
        train(tmp_path / "wrong", collector=f"{file}:wrong")


def test_offline_a_run_learns_from_another_ones_replay(whole: Path, tmp_path: Path) -> None:
    run = train(tmp_path / "offline", offline=str(whole), eval_episodes=0)
    assert (run.steps, run.updates) == (0, 43)
    assert {(r["step"], r["replay/rows"]) for r in metrics(tmp_path / "offline") if "replay/rows" in r} == {(0, 42)}
    theirs, ours = rows(whole), rows(tmp_path / "offline")
    for key in theirs:
        if not key.startswith("out/"):
            np.testing.assert_array_equal(ours[key], theirs[key], key)
    # Of another size, what the policy remembered means nothing: it begins with zeros.
    train(tmp_path / "small", offline=str(whole), size="small", model_updates=0, policy_updates=0, eval_episodes=0)
    assert not rows(tmp_path / "small")["out/memory"].any()


def test_what_cannot_be_says_what_to_type(whole: Path, tmp_path: Path) -> None:
    def refused(match: str, error: type[Exception] = ConfigError, **values: Any) -> None:
        with pytest.raises(error, match=match):
            train(tmp_path / "refused", **values)

    refused("type --envs 3", offline=str(whole), envs=2)
    refused("no config.json", offline=str(tmp_path / "nothing"))
    refused("lived in another env", offline=str(whole), env_kwargs="{}")
    refused("leave one of them out", offline=str(whole), collector="a:b")
    refused("needs --schedule model-then-policy", schedule="together", collector="a:b")
    refused("expected module:function", UnusableEnv, collector="drive")
    with pytest.raises(ConfigError, match="in gumbel_muzero one loss trains model and policy"):
        reverie.train("gumbel_muzero", run=tmp_path / "muzero", **QUICK)
    assert not (tmp_path / "refused" / "config.json").exists(), "nothing was begun"
    refused("raise --steps, or lower --length", steps=3)


def test_offline_a_run_finds_its_replay_from_another_directory(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    values = {"schedule": "together", "eval_episodes": 0}
    monkeypatch.chdir(whole.parent)
    train(tmp_path / "offline", offline=whole.name, **values)
    saved = config.saved(tmp_path / "offline")
    assert saved is not None
    assert (saved.run.offline, saved.files) == (whole.name, {"offline": str(whole.resolve())})
    monkeypatch.chdir(tmp_path)
    longer = reverie.train("fake", run=tmp_path / "offline", model_updates=30)
    assert longer.updates == 30
    assert f"{whole.name} is not in {tmp_path.resolve()}; the run had it from {whole.resolve()}" in caplog.text
    again = config.saved(tmp_path / "offline")
    assert again is not None
    assert (again.run.offline, again.files) == (whole.name, {"offline": str(whole.resolve())}), "as it was typed"


def test_offline_everything_can_learn_at_once(whole: Path, tmp_path: Path) -> None:
    run = train(tmp_path / "offline", schedule="together", offline=str(whole), eval_episodes=0)
    assert (run.steps, run.updates) == (0, 25)
    assert [r["updates"] for r in metrics(tmp_path / "offline") if "loss/total" in r] == [10, 20, 25]
    longer = train(tmp_path / "offline", schedule="together", offline=str(whole), eval_episodes=0, model_updates=30)
    assert longer.updates == 30
    with pytest.raises(ConfigError, match="stored nothing of a search"):
        reverie.train("gumbel_muzero", run=tmp_path / "none", **QUICK | {"schedule": "together", "offline": str(whole)})


@pytest.mark.slow
def test_a_muzero_learns_from_a_finished_run_alone(tmp_path: Path) -> None:
    small = {"env": "CartPole-v1", "envs": 2, "batch": 4, "eval_episodes": 0, "report_every": 0, "simulations": 4}
    first = reverie.train("gumbel_muzero", run=tmp_path / "first", preset="paper", steps=200, warmup=20, **small)
    second = reverie.train(
        "muzero", run=tmp_path / "second", offline=str(first.path), model_updates=30, log_every=10, **small
    )
    assert (second.steps, second.updates) == (0, 30)
    told = [r["loss/total"] for r in metrics(second.path) if "loss/total" in r]
    assert len(told) == 3
    assert told[-1] < told[0]


# ---------------------------------------------------------------------------------- real Dreamers

SMALL: dict[str, dict[str, Any]] = {
    "dreamer_v1": {"deter": 8, "stoch": 4, "hidden": 8, "units": 8, "depth": 1, "vector_layers": 1},
    "dreamer_v2": {"deter": 8, "classes": 2, "hidden": 8, "units": 8, "depth": 1, "layers": 1},
    "dreamer_v3": {"size": "200k"},
    "dream_ppo": {"size": "200k", "model_minibatches": 1, "minibatch": 8, "ppo_updates": 2, "epochs": 1},
}


@pytest.mark.parametrize("algorithm", SMALL)
def test_a_renewed_state_can_be_donated(algorithm: str) -> None:
    """An array that stands twice in a state is refused by the first update that donates it."""
    given = config.override(config.default(algorithm), **SMALL[algorithm])
    spaces = {"obs": Space("vector", (3,))}, {"action": Space("vector", (1,))}
    agent = algos.load(algorithm).make_agent(given.agent, *spaces, precision="float32")
    assert isinstance(agent, TwoPhaseAgent)
    leaves = jax.tree.leaves(agent.renew(jax.jit(agent.init)(jax.random.key(0))))
    places = [x.unsafe_buffer_pointer() for x in leaves if not jnp.issubdtype(x.dtype, jax.dtypes.prng_key)]
    assert len(places) == len(set(places)) > 50


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", SMALL)
def test_a_real_dreamer_learns_in_phases_and_survives_a_kill_in_each(
    algorithm: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = QUICK | SMALL[algorithm] | {"imagination": 3, "eval_episodes": 0, "report_every": 0}
    run = reverie.train(algorithm, run=tmp_path / "whole", **values)
    assert (run.steps, run.updates) == (42, 43)
    for call in (9, 30, 15):  # counted from where the run goes on: while collecting, learning a model, and a policy
        with monkeypatch.context() as patch:
            kill_at(patch, call, "turn")
            with pytest.raises(Killed):
                reverie.train(algorithm, run=tmp_path / "killed", **values)
    reverie.train(algorithm, run=tmp_path / "killed", **values)
    assert_same(tmp_path / "whole", tmp_path / "killed")
    model, policy = ([r for r in metrics(tmp_path / "whole") if r["phase"] == phase] for phase in (1, 2))
    assert all("loss/dynamics" in r and "loss/policy" not in r for r in model)
    assert all("loss/policy" in r and "loss/dynamics" not in r for r in policy)
