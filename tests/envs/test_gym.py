import gymnasium
import numpy as np
import pytest
from gymnasium import spaces

from reverie.envs.base import Env
from reverie.envs.build import make_env
from reverie.envs.gym import GymEnv
from reverie.envs.spaces import observation_spaces, observer
from reverie.envs.spec import EnvSpec
from reverie.envs.values import Gate, Malformed


class Scripted(gymnasium.Env):
    """Returns what it is told to."""

    def __init__(self, observation_space, action_space=None, *, reset=None, step=None):
        self.observation_space = observation_space
        self.action_space = action_space or spaces.Discrete(2)
        self._reset, self._step = reset, step
        self.taken = None

    def reset(self, *, seed=None, options=None):
        return self._reset

    def step(self, action):
        self.taken = action
        return self._step


SPACES = {
    "image": (spaces.Box(0, 255, (8, 6, 3), np.uint8), "image", (8, 6, 3), ()),
    "bytes": (spaces.Box(0, 255, (9,), np.uint8), "vector", (9,), ()),
    "float64": (spaces.Box(-1, 1, (2, 3), np.float64), "vector", (2, 3), ()),
    "scalar": (spaces.Box(-1, 1, (), np.float32), "vector", (), ()),
    "discrete": (spaces.Discrete(5, start=-2), "discrete", (), (5,)),
    "binary": (spaces.MultiBinary(3), "discrete", (3,), (2, 2, 2)),
    "binary2d": (spaces.MultiBinary((2, 2)), "discrete", (2, 2), (2, 2, 2, 2)),
    "multi": (spaces.MultiDiscrete([3, 4], start=[1, -5]), "discrete", (2,), (3, 4)),
    "multi2d": (spaces.MultiDiscrete([[3, 4], [5, 6]]), "discrete", (2, 2), (3, 4, 5, 6)),
}


@pytest.mark.parametrize("name", SPACES)
def test_every_observation_space_comes_through(name):
    space, kind, shape, classes = SPACES[name]
    (key,) = spaces_ = observation_spaces(space)
    assert key == kind
    assert (spaces_[key].shape, spaces_[key].classes) == (shape, classes)
    space.seed(0)
    gate, observe = Gate(spaces_), observer(space)
    env = Scripted(space)
    for _ in range(20):
        value = space.sample()
        env._reset = (value, {})
        step = GymEnv(env).reset()
        gate.check(step)
        start = getattr(space, "start", 0)
        np.testing.assert_allclose(step.obs[key], np.asarray(value) - start)
        np.testing.assert_array_equal(observe(value)[key], step.obs[key])


@pytest.mark.parametrize("terminated", [True, False])
@pytest.mark.parametrize("truncated", [True, False])
def test_termination_and_truncation_stay_apart(terminated, truncated):
    env = GymEnv(Scripted(spaces.Discrete(3), step=(1, 0.5, terminated, np.bool_(truncated), {})))
    step = env.step({"action": np.array(1, np.int32)})
    assert step.is_last == (terminated or truncated)
    assert step.is_terminal == terminated
    assert (step.is_first, step.reward) == (False, 0.5)
    assert isinstance(env, Env)


def test_what_info_may_add():
    info = {"is_terminal": True, "figures": {"goals": np.int64(3), "won": True}}
    env = GymEnv(Scripted(spaces.Discrete(3), step=(1, 0.0, False, False, info)))
    step = env.step({"action": np.array(1, np.int32)})
    assert (step.is_last, step.is_terminal) == (False, True)  # a lost life
    assert step.figures == {"goals": 3.0, "won": 1.0}


@pytest.mark.parametrize(
    ("result", "told"),
    [
        ((0, 0.0, False, {}), "step\\(\\) returned 4 values, expected five"),
        (None, "returned NoneType"),
        ((0, None, False, False, {}), "reward is None"),
        ((0, np.zeros(1), False, False, {}), "expected one number"),
        ((0, "1", False, False, {}), "reward is '1'"),
        ((0, 0.0, "no", False, {}), "terminated is 'no'"),
        ((0, 0.0, False, np.zeros(2, bool), {}), "truncated is"),
        ((0, 0.0, False, False, None), "info of type NoneType"),
        ((0, 0.0, False, False, {"is_terminal": "life"}), "is_terminal.* is 'life'"),
        ((0, 0.0, False, False, {"figures": [3]}), "figures.* is \\[3\\], expected a dict of numbers"),
        ((0, 0.0, False, False, {"figures": {"a": "b"}}), "expected a dict of numbers"),
    ],
)
def test_a_step_of_another_form_is_named(result, told):
    env = GymEnv(Scripted(spaces.Discrete(3), step=result))
    with pytest.raises(Malformed, match=told):
        env.step({"action": np.array(1, np.int32)})


def test_a_reset_of_the_old_interface_is_named():
    for result in (0, {"obs": 0, "info": {}}, (0,)):
        with pytest.raises(Malformed, match="expected two values: obs, info"):
            GymEnv(Scripted(spaces.Discrete(3), reset=result)).reset()


BOX = spaces.Box(-1, 1, (2,), np.float32)


@pytest.mark.parametrize(
    ("space", "value", "told"),
    [
        (BOX, np.zeros(3, np.float32), r"obs/vector: float32 \[3\], expected vector float32 \[2\]"),
        (BOX, np.zeros(2, np.int64), r"obs/vector: int64 \[2\], expected vector float32"),
        (BOX, ["a", "b"], "obs/vector: <U1"),
        (BOX, np.array([0, np.nan]), "element 1 is nan"),
        (BOX, np.array([0, -np.inf]), "element 1 is -inf"),
        (BOX, np.array([0, 1.01]), "element 1 is 1.0099.*, out of bounds"),
        (SPACES["image"][0], np.zeros((8, 6, 3), np.float32), r"float32 \[8, 6, 3\]"),
        (spaces.Discrete(3), 3, "element 0 is 3, out of bounds: expected 0 to 2"),
        (spaces.Discrete(3, start=1), 0, "element 0 is -1"),
        (spaces.Discrete(3, start=1), 1.5, "float64"),
        (spaces.MultiBinary(2), np.array([0, 2]), "element 1 is 2"),
        (spaces.Dict({"a": BOX}), {}, "obs/a: missing"),
        (spaces.Dict({"a": BOX}), {"a": np.zeros(2), "b": 1}, "obs/b: not in the space"),
        (spaces.Dict({"a": BOX}), np.zeros(2), "expected a dict with the keys"),
        (spaces.Tuple([BOX, BOX]), (np.zeros(2),), "expected a tuple of 2"),
    ],
)
def test_a_malformed_observation_never_passes_the_gate(space, value, told):
    env = GymEnv(Scripted(space, reset=(value, {})))

    def enter():
        Gate(env.obs_space).check(env.reset())

    with pytest.raises(Malformed, match=told):
        enter()


def test_harmless_differences_are_cast():
    for value in ([0.5, 0], np.array([0.5, 0]), np.array([0.5, 0], np.float16)):
        step = GymEnv(Scripted(BOX, reset=(value, {}))).reset()
        Gate(observation_spaces(BOX)).check(step)
        assert step.obs["vector"].tolist() == [0.5, 0]
    step = GymEnv(Scripted(BOX, reset=(np.array([0, 1.00001]), {}))).reset()
    Gate(observation_spaces(BOX)).check(step)  # rounding is no fault


def test_pictures_with_their_channels_first_are_resized_and_drawn_upright():
    class First(gymnasium.Env):
        observation_space = gymnasium.spaces.Box(0, 255, (3, 40, 20), np.uint8)
        action_space = gymnasium.spaces.Discrete(2)
        metadata = {"render_modes": ["rgb_array"]}  # noqa: RUF012
        render_mode = "rgb_array"

        def reset(self, *, seed=None, options=None):
            return self.render(), {}

        def render(self):
            picture = np.zeros((3, 40, 20), np.uint8)
            picture[1] = 200
            return picture

    env = make_env(EnvSpec("first", image_size=16, factory=First))
    assert env.obs_space["image"].shape == (16, 16, 3)
    assert env.obs_space["image"].channels_first
    assert env.reset(0).obs["image"][5, 5].tolist() == [0, 200, 0]
    frame = env.render()
    assert frame is not None
    assert frame.shape == (40, 20, 3)
    assert frame[5, 5].tolist() == [0, 200, 0]
