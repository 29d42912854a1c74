"""Runs in envs that raise where an illegal action is taken: no algorithm with discrete actions takes one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import masked
import planners
import pytest
from rich.console import Console
from test_algorithms import DREAMER, OWN

from reverie import api, config, load

IMAGINED = {"behavior": "actor-critic", "imagination": 2}
# Name -> algorithm, its values, and what its masks are told by.
RUNS: dict[str, tuple[str, dict[str, Any], str]] = {
    "dreamer_v1": ("dreamer_v1", OWN["dreamer_v1"] | {"planner": "none", "improve": 0.0}, "Masked"),
    "dreamer_v1 several": ("dreamer_v1", OWN["dreamer_v1"] | {"planner": "none", "improve": 0.0}, "Several"),
    "dreamer_v2": ("dreamer_v2", OWN["dreamer_v2"], "InObservation"),
    "dreamer_v3": ("dreamer_v3", DREAMER | {"size": "200k", "choices": '{"vector_layers": 1}'}, "Masked"),
    "dreamer_v3 several": ("dreamer_v3", DREAMER | {"size": "200k", "choices": '{"vector_layers": 1}'}, "Several"),
    "dream_ppo": ("dream_ppo", OWN["dream_ppo"], "ByMethod"),
    "dreamer_v1 planner": ("dreamer_v1", OWN["dreamer_v1"], "Masked"),
    "muzero": ("muzero", planners.SMALL | {"random_moves": 0.1}, "Masked"),
    "gumbel_muzero": ("gumbel_muzero", planners.SMALL, "InObservation"),
    "efficientzero": ("efficientzero", planners.SMALL | planners.OWN["efficientzero"], "ByMethod"),
    "sampled_muzero": ("sampled_muzero", planners.SMALL | planners.OWN["sampled_muzero"], "Masked"),
    "sampled_muzero several": ("sampled_muzero", planners.SMALL | planners.OWN["sampled_muzero"], "Several"),
    "stochastic_muzero": ("stochastic_muzero", planners.SMALL | planners.OWN["stochastic_muzero"], "Masked"),
    "muzero imagined": ("muzero", planners.SMALL | IMAGINED, "Masked"),
    "gumbel_muzero imagined": ("gumbel_muzero", planners.SMALL | IMAGINED, "Masked"),
    "efficientzero imagined": ("efficientzero", planners.SMALL | planners.OWN["efficientzero"] | IMAGINED, "Masked"),
}


def train(name: str, path: Path, steps: int, **more: Any) -> api.Result:
    """A run with evaluations in between, whose first failure of an env would end it."""
    algorithm, own, env = RUNS[name]
    rare = {"report_every": 0, "video_every": 0, "checkpoint_every": 0, "log_every": steps, "eval_every": steps // 2}
    quick = {"batch": 4, "envs": 4, "warmup": steps // 10, "replay_ratio": 1.0, "eval_episodes": 4, "eval_envs": 4}
    values = quick | own | rare | {"env": f"masked:{env}", "steps": steps, "workers": "inline"} | more
    conf = config.override(config.default(algorithm), **values)
    result = api.run_training(conf, path, Console(quiet=True))
    assert result.updates > 0
    return result


QUICK = ("gumbel_muzero",)
CASES = [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in RUNS]


@pytest.mark.parametrize("name", CASES)
def test_no_illegal_action_ever_reaches_an_env(name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The envs are told of by a warning, and rebuilt; so there must be none."""
    train(name, tmp_path, 300)
    assert masked.FORBIDDEN not in caplog.text
    assert "failed in episode" not in caplog.text
    agent = load(tmp_path, f"masked:{RUNS[name][2]}")
    for mode in ("eval", "train"):
        plays(agent, mode)


def plays(agent: Any, mode: Any) -> None:
    """An episode with `act`, in the words of the env itself."""
    env = {"masked:Masked": masked.Masked, "masked:Several": masked.Several, "masked:ByMethod": masked.ByMethod}.get(
        agent.spec.id, masked.InObservation
    )()
    (obs, _), over, carry = env.reset(seed=1), False, None
    while not over:
        action, carry = agent.act(
            obs, carry, mode, action_mask=None if isinstance(env, masked.InObservation) else env.mask
        )
        obs, _, over, _, _ = env.step(action)


def test_acting_without_the_mask_is_refused(tmp_path: Path) -> None:
    train("gumbel_muzero", tmp_path / "seen", 60, log_every=60)
    agent = load(tmp_path / "seen", "masked:InObservation")
    obs, _ = masked.InObservation().reset(seed=0)
    with pytest.raises(config.ConfigError, match="a part of the observation"):
        agent.act(obs, action_mask=obs["action_mask"])
    agent.act(obs)
    agent.env.env, agent.env.masks = masked.Masked(), 'info["action_mask"]'
    with pytest.raises(config.ConfigError, match=r'action_mask=info\["action_mask"\]'):
        agent.act(obs)


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
def test_twenty_thousand_steps_without_an_illegal_one(
    name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    result = train(name, tmp_path, 20_000, replay_ratio=0.05, envs=32, eval_every=10_000)
    assert result.steps >= 20_000
    assert "failed in episode" not in caplog.text
