"""Greedy episodes of the host's envs; those of the device are in test_rollout."""

from __future__ import annotations

import fakes
import jax
import numpy as np
import pytest

import reverie
from reverie.envs.workers import Workers
from reverie.run.evaluation import evaluate
from reverie.run.jitted import JittedAgent


@pytest.mark.parametrize(("envs", "episodes"), [(1, 3), (3, 2), (2, 5)])
def test_an_evaluation_plays_every_env_its_share(envs: int, episodes: int) -> None:
    spec = reverie.EnvSpec("reverie.envs.toy:Counting", kwargs={"episodes": False})
    with Workers(spec, envs, seed=5, mode="inline") as workers:
        agent = fakes.make_agent(fakes.Config(), workers.obs_space, workers.act_space, precision="float32")
        key = jax.random.key(0)
        played = evaluate(JittedAgent(agent), agent.init(key), workers, episodes, key)
    assert played is not None
    assert len(played.returns) == len(played.lengths) == episodes
    # Counting's reward is the step count.
    assert played.returns == [n * (n + 1) / 2 for n in played.lengths]
    assert played.mean_return == pytest.approx(np.mean(played.returns))
