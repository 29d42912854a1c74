"""The real agent learns in the real envs: collects, trains, evaluates, and goes on where it stopped.

Compiling costs more than all the rest, so the runs are processes, two at a time, in which XLA optimises nothing,
and what they compiled is kept from one test run to the next.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

RUN = """
import json, sys
import reverie

path, env, kwargs, *sessions = sys.argv[1:]
for steps in map(int, sessions):
    run = reverie.train(
        "dreamer_v3", env=env, env_kwargs=kwargs, run=path, size="200k", steps=steps, envs=2, warmup=60, batch=2,
        length=8, replay_ratio=1.0, replay_size=1000, time_limit=30, eval_episodes=1, eval_envs=1, report_every=0,
        eval_every=0, log_every=20, device="cpu",
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
Runs = dict[str, Future[subprocess.CompletedProcess[str]]]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Runs:
    folder = tmp_path_factory.mktemp("families")
    (folder / "mine.py").write_text(MINE)
    environment = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": str(Path(__file__).parents[2]),
    }
    if request.config.pluginmanager.hasplugin("cacheprovider"):
        environment["JAX_COMPILATION_CACHE_DIR"] = str(request.config.cache.mkdir("jax-families"))
        environment["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.2"

    def train(name: str) -> subprocess.CompletedProcess[str]:
        _, env, kwargs, sessions = FAMILIES[name]
        command = [sys.executable, "-c", RUN, str(folder / name), env, json.dumps(kwargs), *map(str, sessions)]
        return subprocess.run(command, capture_output=True, text=True, timeout=840, env=environment, cwd=folder)

    pool = ThreadPoolExecutor(2)
    chosen = {item.callspec.params["family"] for item in request.session.items if item.path == Path(__file__)}
    return {
        name: pool.submit(train, name)
        for name in FAMILIES
        if name in chosen and importlib.util.find_spec(FAMILIES[name][0])
    }


@pytest.mark.parametrize("family", FAMILIES)
def test_the_agent_trains_evaluates_and_goes_on(family: str, runs: Runs) -> None:
    if family not in runs:
        pytest.skip(f"without {FAMILIES[family][0]}")
    done = runs[family].result()
    assert done.returncode == 0, done.stderr[-4000:]
    updates, lengths = json.loads(done.stdout.splitlines()[-1])
    assert updates == (200 - 60) // 16
    assert 0 < lengths[0] <= 30
