"""Every algorithm through the loop of the house: exact resume with one trace per function, debug mode, presets."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import planners
import pytest
from rich.console import Console
from runs import Killed, assert_same, kill_at, state

from reverie import api, config
from reverie.run.loop import Result

QUICK: dict[str, Any] = {
    "steps": 96,
    "envs": 2,
    "scan": 4,
    "batch": 4,
    "replay_ratio": 1.0,
    "replay_size": 60,
    "log_every": 16,
    "eval_every": 48,
    "eval_episodes": 2,
    "eval_envs": 2,
    "time_limit": 12,
    "report_every": 0,
    "video_every": 0,
    "checkpoint_every": 24,
}
HELD = {"hold": 8, "random_moves": 0.3}  # what is being repeated is remembered, too
DREAMER: dict[str, Any] = {"imagination": 2, "length": 8, "replay_ratio": 8.0, "warmup": 20} | HELD
OWN: dict[str, dict[str, Any]] = {
    "dreamer_v1": DREAMER
    | {"deter": 8, "stoch": 4, "hidden": 8, "units": 8, "vector_layers": 1, "continue_scale": 1.0}
    | {"planner": "gumbel", "simulations": 2, "improve": 0.5},
    "dreamer_v2": DREAMER | {"deter": 8, "classes": 2, "hidden": 8, "units": 8, "layers": 1, "slow_every": 3},
    "dreamer_v3": DREAMER | {"size": "200k", "observe": "fused"},
    "dream_ppo": DREAMER
    | {"size": "200k", "model_minibatches": 2, "minibatch": 8, "ppo_updates": 2, "epochs": 2}
    | {"choices": '{"vector_layers": 1, "prior_layers": 1}'},
    **{name: planners.SMALL | own for name, own in planners.OWN.items()},
    "gumbel_muzero": planners.SMALL | planners.OWN["gumbel_muzero"] | HELD,
    "muzero": planners.SMALL | {"behavior": "actor-critic", "imagination": 2},
}
# What each of them is asked to live in: on the host, on the device, with one player and with two.
CASES = [
    pytest.param("dreamer_v1", "CartPole-v1", marks=pytest.mark.slow),
    pytest.param("dreamer_v2", "Pendulum-v1", marks=pytest.mark.slow),
    pytest.param("dreamer_v3", "CartPole-v1", marks=pytest.mark.slow),
    pytest.param("dream_ppo", "Pendulum-v1", marks=pytest.mark.slow),
    ("gumbel_muzero", "CartPole-v1"),
    pytest.param("gumbel_muzero", "pgx:tic_tac_toe", marks=pytest.mark.slow),
    pytest.param("muzero", "device:CartPole", marks=pytest.mark.slow),
    pytest.param("efficientzero", "CartPole-v1", marks=pytest.mark.slow),
    pytest.param("sampled_muzero", "Pendulum-v1", marks=pytest.mark.slow),
    pytest.param("stochastic_muzero", "device:Catch", marks=pytest.mark.slow),
]


def values(algorithm: str, env: str, **others: Any) -> dict[str, Any]:
    own = {**QUICK, **OWN[algorithm], **others}
    if ":" in env:
        own |= {"network": "mlp"}
    if env.startswith("pgx:"):
        del own["time_limit"]
    return own


def train(algorithm: str, env: str, path: Path, **others: Any) -> Result:
    conf = config.override(config.default(algorithm), env=env, **values(algorithm, env, **others))
    return api.run_training(conf, path, Console(quiet=True))


@pytest.mark.parametrize(("algorithm", "env"), CASES)
def test_a_killed_run_goes_on_as_if_nothing_had_happened(
    algorithm: str, env: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    own = {"reanalyse": 0.25} if algorithm in planners.FAMILY and not env.startswith("pgx:") else {}
    result = train(algorithm, env, whole, **own)
    assert result.updates > 10
    assert result.traces["train"] == 1
    assert {name: n for name, n in result.traces.items() if n > 1} == {}
    with monkeypatch.context() as patch:
        kill_at(patch, 8 if ":" in env else 30)  # between two checkpoints
        with pytest.raises(Killed):
            train(algorithm, env, killed, **own)
    train(algorithm, env, killed, **own)
    assert_same(whole, killed)
    if algorithm not in planners.FAMILY:
        return
    saved = state(whole)
    assert len(np.unique(saved["replay/out/priority"])) > 2, "training wrote back more than zeros and the first ones"
    assert (saved["replay/out/policy"].sum(-1) > 0.99).all()


@pytest.mark.slow  # tests/test_cli.py does it in every run of the suite, with the fake
@pytest.mark.parametrize(
    ("algorithm", "own"),
    [
        ("gumbel_muzero", {"simulations": 2}),
        ("dreamer_v1", {}),
        ("dreamer_v2", {}),
        ("dream_ppo", {"model_minibatches": 1, "ppo_updates": 1, "epochs": 1, "length": 4}),
    ],
)
def test_debug_runs_without_jit(algorithm: str, own: dict[str, Any], tmp_path: Path) -> None:
    others = {"debug": True, "steps": 30, "eval_episodes": 0, "report_every": 0, **own}
    assert train(algorithm, "CartPole-v1", tmp_path, **others).updates > 0


def test_an_env_that_has_a_preset_of_its_own_gets_it() -> None:
    assert config.preset_for("gumbel_muzero", "CartPole-v1") == "cartpole"
    assert config.preset_for("gumbel_muzero", "Acrobot-v1") == ""
    plain = config.default("gumbel_muzero", config.PLAIN)
    assert plain == config.default("gumbel_muzero")
    assert config.lookup("gumbel_muzero:cartpole") == config.default("gumbel_muzero", "cartpole")
    assert config.lookup("cartpole").algorithm == "dreamer_v3"
