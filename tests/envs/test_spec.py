import importlib.util
import re
import sys
import tomllib
import types
from pathlib import Path

import gymnasium
import numpy as np
import pytest

import reverie.envs.toy
from reverie.envs.build import make_env
from reverie.envs.gym import GymEnv
from reverie.envs.spaces import observation_spaces
from reverie.envs.spec import EnvSpec, UnusableEnv, env_spec, families

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

class Empty(Mine):
    def __init__(self):
        super().__init__()
        self.observation_space = gymnasium.spaces.Dict({"x": Discrete(2), "none": gymnasium.spaces.Box(0, 1, (0,))})

class Needs(Mine):
    def __init__(self, size, *, depth, far=1):
        super().__init__(size)

class Wrapped(gymnasium.Wrapper):
    def __init__(self, size=2):
        super().__init__(Mine(size))

def broken():
    return Needs(2)

def many():
    return gymnasium.make_vec("CartPole-v1", 3)

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


@pytest.mark.parametrize(
    "name", ["my_own_module:Mine", "my_own_module:make", "my_own_module.py:Mine", "my_own_module:Wrapped"]
)
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
        ("my_own_module:many", "is a vector env, a .*VectorEnv of 3 envs.*type --envs 3"),
        ("my_own_module:Needs", "needs the arguments? .*--env-kwargs '{.*: ...}'"),
        ("my_own_module:Empty", "observation 'none' holds no number.*--obs-keys '!none'"),
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
        ("jumanji:Snake-v1", "jumanji"),
        ("brax:ant", "brax"),
        ("craftax:Craftax-Symbolic-v1", "craftax"),
    ],
)
def test_a_family_without_its_package_names_the_extra(name, extra, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UnusableEnv, match=rf'pip install "reverie\[{extra}\]"'):
        make_env(name)
    (family,) = [x for x in families() if x.extra == f"reverie[{extra}]"]
    assert not family.is_installed


def test_families_are_listed_with_their_extras():
    declared = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    extras = declared["optional-dependencies"]
    listed = {family.extra.removeprefix("reverie[").removesuffix("]") for family in families()} - {""}
    assert (
        listed
        == {"atari", "dmc", "crafter", "minigrid", "box2d", "mujoco", "pettingzoo", "robotics", "pgx", "gymnax"}
        | {"jumanji", "brax", "craftax"}
        <= extras.keys()
    )
    together = set(re.findall(r"\w+", extras["envs"][0])) - {"reverie"}
    assert together == listed - {"craftax"}, "whose pygame and the pygame-ce of others are the same folder"
    assert all(family.is_installed for family in families() if not family.extra)


def test_only_what_the_env_itself_needs_is_asked_for(mine):
    with pytest.raises(UnusableEnv, match=r"needs the argument 'depth': type --env-kwargs '{\"depth\": ...}'"):
        make_env(EnvSpec("my_own_module:Needs", kwargs={"size": 3}))
    assert make_env(EnvSpec("my_own_module:Needs", kwargs={"size": 3, "depth": 1}))
    with pytest.raises(TypeError, match="missing 1 required keyword-only argument"):
        make_env("my_own_module:broken")  # its own mistake


def test_a_module_that_wants_the_old_package_is_told_what_to_write(mine):
    if importlib.util.find_spec("gym"):
        pytest.skip("it is installed")
    (mine / "old_env.py").write_text("import gym\n")
    for name in ("old_env:Env", "old_env.py:Env"):
        with pytest.raises(UnusableEnv, match=r"imports the old `gym` package.*write `import gymnasium as gym`"):
            make_env(name)


@pytest.mark.skipif(not importlib.util.find_spec("minigrid"), reason="without minigrid")
@pytest.mark.parametrize(
    ("name", "keys"),
    [
        ("MiniGrid-Fetch-5x5-N2-v0", {"direction", "image", "mission"}),
        ("MiniGrid-Empty-5x5-v0", {"direction", "image"}),  # where the mission is always the same
    ],
)
def test_a_minigrid_in_a_function_of_ones_own_shows_its_mission_as_words(name, keys):
    env = make_env(EnvSpec("own", factory=lambda: gymnasium.make(f"minigrid:{name}")))
    step = env.reset(0)
    assert set(env.obs_space) == set(step.obs) == keys
    assert "mission" not in keys or step.obs["mission"][:3].min() > 0


@pytest.mark.skipif(not importlib.util.find_spec("minigrid"), reason="without minigrid")
def test_a_mission_in_words_that_nobody_knows_is_left_out():
    from minigrid.core.mission import MissionSpace

    space = gymnasium.spaces.Dict({
        "x": gymnasium.spaces.Discrete(2),
        "mission": MissionSpace(lambda what: f"slay the {what}", ordered_placeholders=[["dragon", "troll"]]),
    })  # fmt: skip
    assert set(observation_spaces(space)) == {"x"}


def test_robots_are_registered_when_somebody_asks_for_one():
    pytest.importorskip("gymnasium_robotics", reason="pip install reverie[robotics]")
    env = make_env("PointMaze_UMaze-v3")
    assert set(env.obs_space) == {"observation", "achieved_goal", "desired_goal"}
    assert env.reset(0).is_first
