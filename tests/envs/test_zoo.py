"""`check-env` against training: the same verdict on every env of the zoo, by every family of algorithms."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from zoo import IMAGES, ZOO

import reverie
from reverie.envs.check import check_env
from reverie.envs.spec import EnvSpec
from reverie.envs.values import sample
from reverie.envs.workers import EnvError, Workers

HUNG = 2.0  # seconds
SHORT: dict[str, Any] = {
    "preset": "paper", "workers": "inline", "envs": 2, "steps": 200, "warmup": 100, "batch": 2, "replay_size": 1000,
    "eval_every": 0, "eval_episodes": 0, "report_every": 0, "video_every": 0, "log_every": 50, "checkpoint_every": 0,
    "deadline": HUNG, "device": "cpu",
}  # fmt: skip
WIDTHS = {"deter": 8, "hidden": 8, "units": 8, "depth": 2}
DREAMER = {"length": 8, "replay_ratio": 1.0, "imagination": 3}
MUZERO = {"simulations": 2, "hidden": 8, "units": 8, "support": 3, "unroll": 2, "n_step": 3, "replay_ratio": 0.2}
FAMILIES: dict[str, dict[str, Any]] = {
    "dreamer_v1": DREAMER | WIDTHS | {"stoch": 4},
    "dreamer_v2": DREAMER | WIDTHS | {"classes": 4},
    "dreamer_v3": DREAMER | {"size": "200k"},
    "dreamer_v3_2023": DREAMER | {"size": "200k"},
    "dream_ppo": DREAMER | {"size": "200k", "batch": 4, "minibatch": 16, "ppo_updates": 4},
    "muzero": MUZERO,
    "gumbel_muzero": MUZERO,
    "tower": MUZERO | {"network": "tower", "blocks": 1, "channels": 4},
    "efficientzero": MUZERO | {"choices": '{"projection": 8, "predictor": 8, "prefix_units": 8}'},
    "sampled_muzero": MUZERO,
    "stochastic_muzero": MUZERO | {"codes": 4},
}
NAMES = {"tower": "gumbel_muzero"}  # of the algorithm, where a family is not called by it


def steps(name: str, count: int = 40) -> bool:
    """Whether an env is stepped without a failure as training steps it."""
    rng = np.random.default_rng(0)
    one = np.arange(1)
    try:
        workers = Workers(EnvSpec(name, factory=ZOO[name]), 1, seed=0, mode="inline", deadline=HUNG, max_failures=0)
        try:
            for _ in range(count):
                workers.send(one, {key: x[None] for key, x in sample(workers.act_space, rng).items()})
                workers.recv(one)
        finally:
            workers.close()
    except (ValueError, EnvError):
        return False
    return True


def passes(name: str, algorithm: str | None = None, steps: int = 40) -> bool:
    """The verdict of `check-env`."""
    check = (lambda *args, **kwargs: reverie.check_env(*args, algorithm, **kwargs)) if algorithm else check_env
    return all(finding.severity != "error" for finding in check(ZOO[name], steps=steps, deadline=HUNG))


def train(name: str, family: str, path: Path, **values: Any) -> list[dict[str, Any]]:
    """Lines of metrics of a training of 200 steps."""
    run = reverie.train(NAMES.get(family, family), env=ZOO[name], run=path, **SHORT | FAMILIES[family] | values)
    assert run.updates > 1
    return [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]


def trains(name: str, family: str, path: Path) -> bool:
    """The verdict of a training of 200 steps: it ends, and no episode was cut because of the env."""
    try:
        lines = train(name, family, path)
    except (ValueError, EnvError):
        return False
    return not any(line.get("env/failures") for line in lines)


@pytest.mark.parametrize("name", [name for name in ZOO if name != "hangs"])
def test_check_env_passes_what_can_be_stepped(name: str) -> None:
    assert passes(name) == steps(name)


def test_the_zoo_has_sound_and_unsound_envs() -> None:
    assert len(ZOO) >= 60
    verdicts = {name: passes(name, steps=10) for name in ("image: 7x7", "sees: nothing", "nan", "never ends")}
    assert verdicts == {"image: 7x7": True, "sees: nothing": False, "nan": False, "never ends": True}


@pytest.mark.slow
@pytest.mark.parametrize("family", ["dreamer_v1", "gumbel_muzero", "sampled_muzero"])
@pytest.mark.parametrize("name", ZOO)
def test_check_env_and_training_agree(name: str, family: str, tmp_path: Path) -> None:
    assert passes(name, family) == trains(name, family, tmp_path / "run")


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("size", IMAGES)
def test_images_of_any_size_are_learned_by_every_algorithm(size: str, family: str, tmp_path: Path) -> None:
    """The loss of what is learned falls: of the pictures in a Dreamer, in all in the others."""
    ratio = 8 * FAMILIES[family]["replay_ratio"]
    lines = train(f"image: {size}", family, tmp_path / "run", steps=300, replay_ratio=ratio, learning_rate=3e-3)
    named = [key for key in lines[-1] if key.startswith("loss/decode/")] or ["loss/total"]
    for key in named:
        told = [line[key] for line in lines if key in line]
        print(size, family, key, *(f"{x:.4g}" for x in told))
        assert told[-1] < 0.9 * told[0], (key, told)
