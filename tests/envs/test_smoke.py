"""An agent learns in the real envs: collects, trains, evaluates, and goes on where it stopped.

Each run is a process, as a person would start it. Compiling costs more than all the rest: what one of them compiled
serves the next. `make test` has three of the families, two of them with the fake.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

RUN = """
import json, sys
import reverie
from reverie import algos

algos.ALGORITHMS["fake"] = "fakes"
path, algorithm, own, env, kwargs, *sessions = sys.argv[1:]
for steps in map(int, sessions):
    run = reverie.train(
        algorithm, env=env, env_kwargs=kwargs, run=path, steps=steps, envs=2, warmup=60, batch=2, length=8,
        replay_ratio=1.0, replay_size=1000, time_limit=30, eval_episodes=1, eval_envs=1, report_every=0, eval_every=0,
        log_every=20, device="cpu", preset="paper", **json.loads(own),
    )
    assert run.steps == steps, run
print(json.dumps([run.updates, run.evaluation.lengths]))
"""
MINE = """
import gymnasium
from gymnasium import spaces

class Mine(gymnasium.Env):
    observation_space = spaces.Box(0, 1, (8,))
    action_space = spaces.Box(-2, 2, (2,))

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self.seen(), {}

    def seen(self):
        return self.np_random.random(8, "float32")

    def step(self, action):
        return self.seen(), float(action[0]), False, False, {}
"""
# Lander, swimmer and the one of our own have the same spaces on purpose: what the first compiled serves the others.
FAMILIES = {
    "atari": ("ale_py", "ALE/MsPacman-v5", {"lives": "discount"}, (200,)),
    "box2d": ("Box2D", "LunarLander-v3", {"continuous": True}, (200,)),
    "crafter": ("crafter", "crafter", {}, (200,)),
    "dmc": ("dm_control", "dmc:walker_walk", {}, (200,)),
    "minigrid": ("minigrid", "MiniGrid-MemoryS7-v0", {"actions": "move"}, (200,)),
    "mujoco": ("mujoco", "Swimmer-v5", {}, (200,)),
    "file": ("gymnasium", "mine.py:Mine", {}, (120, 200)),
}
AGENTS = {
    "fake": {},
    "dreamer_v3": {"size": "200k", "choices": '{"recurrence": "dense", "prior_layers": 1, "vector_layers": 1}'},
}
# One of one's own, Atari and one with MuJoCo; in `make slow` DreamerV3 learns in all of them.
QUICK = [("file", "dreamer_v3"), ("atari", "fake"), ("dmc", "fake")]
CASES = QUICK + [
    pytest.param(family, "dreamer_v3", marks=pytest.mark.slow)
    for family in FAMILIES
    if (family, "dreamer_v3") not in QUICK
]


@pytest.fixture
def environment(request: pytest.FixtureRequest) -> dict[str, str]:
    tests = Path(__file__).parents[1]
    found = {**os.environ, "PYTHONPATH": f"{tests.parent}:{tests}"}
    if request.config.pluginmanager.hasplugin("cacheprovider"):
        found["JAX_COMPILATION_CACHE_DIR"] = str(request.config.cache.mkdir("jax-families"))
        found["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.2"
    return found


@pytest.mark.parametrize(("family", "algorithm"), CASES)
def test_the_agent_trains_evaluates_and_goes_on(
    family: str, algorithm: str, environment: dict[str, str], tmp_path: Path
) -> None:
    module, env, kwargs, sessions = FAMILIES[family]
    if not importlib.util.find_spec(module):
        pytest.skip(f"without {module}")
    (tmp_path / "mine.py").write_text(MINE)
    given = [str(tmp_path / "run"), algorithm, json.dumps(AGENTS[algorithm]), env, json.dumps(kwargs)]
    command = [sys.executable, "-c", RUN, *given, *map(str, sessions)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=840, env=environment, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-4000:]
    updates, lengths = json.loads(done.stdout.splitlines()[-1])
    assert updates == (200 - 60) // 16
    assert 0 < lengths[0] <= 30
