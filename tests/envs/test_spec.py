import importlib.util
import sys
import tomllib
import types
from pathlib import Path

import gymnasium
import numpy as np
import pytest

import reverie.envs.toy
from reverie.envs.gym import GymEnv
from reverie.envs.spec import EnvSpec, UnusableEnv, env_spec, families, make_env

MINE = """
import gymnasium
from gymnasium.spaces import Discrete
from dataclasses import dataclass

@dataclass
class Size:
    n: int

class Mine(gymnasium.Env):
    metadata = {"render_modes": ["rgb_array"]}
    def __init__(self, size=2, render_mode=None):
        self.observation_space = Discrete(Size(size).n)
        self.action_space = Discrete(2)
        self.render_mode = render_mode

def make(*, size=2):
    return Mine(size)

built = Mine()
number = lambda: 7
"""


@pytest.fixture
def mine(tmp_path, monkeypatch):
    (tmp_path / "my_own_module.py").write_text(MINE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p != ""])
    yield tmp_path
    sys.modules.pop("my_own_module", None)


@pytest.mark.parametrize("name", ["my_own_module:Mine", "my_own_module:make", "my_own_module.py:Mine"])
def test_own_envs_are_found_in_the_current_directory(name, mine):
    assert make_env(name).obs_space["discrete"].classes == (2,)
    env = make_env(EnvSpec(name, kwargs='{"size": 5}'))
    assert env.obs_space["discrete"].classes == (5,)


def test_a_file_is_found_by_its_path_and_loaded_once(mine, monkeypatch):
    monkeypatch.chdir("/")
    first, second = (make_env(f"{mine}/my_own_module.py:Mine") for _ in range(2))
    assert type(first.env) is type(second.env)


def test_drawing_is_asked_for_where_the_env_offers_it(mine):
    assert make_env("my_own_module:Mine").env.render_mode == "rgb_array"
    assert make_env("CartPole-v1").env.render_mode == "rgb_array"
    assert make_env("reverie.envs.toy:Counting").render() is None
    plain = EnvSpec("CartPole-v1", kwargs={"render_mode": None})
    assert make_env(plain).env.render_mode is None


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("CartPole-v11", "did you mean CartPole-v1"),
        ("no_such_module:Env", "no module 'no_such_module'"),
        ("no_such_file.py:Env", "no file"),
        ("my_own_module:Mime", "did you mean Mine"),
        ("my_own_module:built", "a Mine, expected a class or a function"),
        ("my_own_module:number", "built an object of type int, expected a gymnasium.Env"),
    ],
)
def test_a_wrong_name_says_what_to_type(name, told, mine):
    with pytest.raises(UnusableEnv, match=told):
        make_env(name)


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("my_own_module:Mine", "takes no argument 'sise': did you mean 'size'"),
        ("my_own_module:make", "takes no argument 'sise': did you mean 'size'"),
        ("MountainCar-v0", "takes no argument 'sise': It takes .*goal_velocity"),
        ("InvertedPendulum-v5", "takes no argument 'sise': It takes .*frame_skip"),  # passed on to a base class
    ],
)
def test_an_argument_that_an_env_does_not_take_is_named(name, told, mine):
    if name.startswith("Inverted"):
        pytest.importorskip("mujoco")
    with pytest.raises(UnusableEnv, match=told):
        make_env(EnvSpec(name, kwargs={"sise": 5}))


def test_an_error_of_the_envs_own_is_not_touched():
    def broken() -> None:
        raise TypeError("'NoneType' object is not iterable")

    with pytest.raises(TypeError, match="NoneType"):
        make_env(broken)


def test_the_old_gym_is_recognised():
    old = types.ModuleType("gym")
    exec("class Env: pass", old.__dict__)
    old.Env.__module__ = "gym.core"
    with pytest.raises(UnusableEnv, match="old `gym` package"):
        make_env(lambda: old.Env())


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"action_repeat": 0}, "action_repeat is 0, expected 1 or more"),
        ({"time_limit": -1}, "time_limit is -1"),
        ({"kwargs": "{size: 5}"}, "is not JSON"),
        ({"kwargs": "[5]"}, "expected a dict"),
    ],
)
def test_wrong_values_are_refused_before_anything_is_built(values, told):
    with pytest.raises(UnusableEnv, match=told):
        EnvSpec("CartPole-v1", **values)


def test_a_spec_survives_json():
    spec = EnvSpec("a:b", 2, 100, 64, True, "proprio", {"x": [1, "y"]})
    assert EnvSpec.from_json(spec.to_json()) == spec


def test_an_importable_callable_goes_by_its_name():
    assert env_spec(reverie.envs.toy.Catch) == EnvSpec("reverie.envs.toy:Catch")
    assert env_spec(reverie.envs.toy.Catch).factory is None


def test_any_other_callable_is_kept_and_cannot_be_sent():
    class Local(reverie.envs.toy.Catch):
        pass

    for make in (Local, lambda: reverie.envs.toy.Catch()):
        spec = env_spec(make)
        assert spec.factory is make
        assert make_env(spec).obs_space["image"].shape == (64, 64, 3)
        with pytest.raises(UnusableEnv, match="module of its own"):
            spec.to_json()
    with pytest.raises(UnusableEnv, match="already built"):
        env_spec(gymnasium.make("CartPole-v1"))


def test_an_env_of_ours_needs_no_adapter():
    made = make_env(lambda: GymEnv(gymnasium.make("CartPole-v1")))
    assert isinstance(made, GymEnv)
    assert made.reset(0).obs["vector"].dtype == np.float32


@pytest.mark.parametrize(
    ("name", "extra"),
    [
        ("ALE/Pong-v5", "atari"),
        ("dmc:walker_walk", "dmc"),
        ("crafter", "crafter"),
        ("MiniGrid-Empty-5x5-v0", "minigrid"),
        ("BabyAI-GoToObj-v0", "minigrid"),
        ("LunarLander-v3", "box2d"),
        ("HalfCheetah-v5", "mujoco"),
    ],
)
def test_a_family_without_its_package_names_the_extra(name, extra, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UnusableEnv, match=rf'pip install "reverie\[{extra}\]"'):
        make_env(name)
    (family,) = [x for x in families() if x.extra == f"reverie[{extra}]"]
    assert not family.installed


def test_families_are_listed_with_their_extras():
    declared = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    extras = declared["optional-dependencies"]
    listed = {family.extra.removeprefix("reverie[").removesuffix("]") for family in families()} - {""}
    assert listed == {"atari", "dmc", "crafter", "minigrid", "box2d", "mujoco", "pgx", "gymnax"} <= extras.keys()
    assert all(extra in extras["envs"][0] for extra in listed)
    assert all(family.installed for family in families() if not family.extra)
