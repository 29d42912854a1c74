import dataclasses

import numpy as np
import pytest

from reverie.envs.base import Env, Space, Step
from reverie.envs.build import make_env
from reverie.envs.spec import EnvSpec, UnusableEnv
from reverie.envs.values import Gate
from reverie.envs.wrappers import ActionRepeat, GrayImages, ObsKeys, ResizeImages, native_action, observe

NOTHING = {"action": np.array(0, np.int32)}


class Picture:
    """An `Env` of one image."""

    act_space: dict = {"action": Space("discrete", (), (2,))}  # noqa: RUF012

    def __init__(self, image):
        self.image = image
        self.obs_space = {"image": Space("image", image.shape), "x": Space("vector", (1,))}

    def reset(self, seed=None):
        return Step({"image": self.image, "x": np.ones(1, np.float32)}, 0.0, True, False, False)

    def step(self, action):
        return Step({"image": self.image, "x": np.ones(1, np.float32)}, 1.0, False, False, False)

    def render(self):
        return None

    def close(self):
        pass


def counting(**kwargs):
    return EnvSpec("reverie.envs.toy:Counting", kwargs={"length": 10, "truncate": False}, **kwargs)


def play(env, steps):
    shown = [env.reset(0)]
    while len(shown) <= steps and not shown[-1].is_last:
        shown.append(env.step(NOTHING))
    return shown


def test_action_repeat_sums_rewards_and_stops_at_the_end():
    shown = play(make_env(counting(action_repeat=4)), 9)
    assert [s.obs["step"][0] for s in shown] == [0, 4, 8, 10]
    assert [s.reward for s in shown] == [0, 1 + 2 + 3 + 4, 5 + 6 + 7 + 8, 9 + 10]
    assert shown[-1].is_terminal


def test_action_repeat_keeps_a_life_lost_on_the_way():
    class Lives(Picture):
        steps = 0

        def step(self, action):
            self.steps += 1
            return dataclasses.replace(super().step(action), is_terminal=self.steps == 2)

    env = ActionRepeat(Lives(np.zeros((8, 8, 3), np.uint8)), 3)
    assert [env.step(NOTHING).is_terminal for _ in range(3)] == [True, False, False]


def test_time_limit_truncates():
    env = make_env(counting(time_limit=3))
    for _ in range(2):
        shown = play(env, 9)
        assert [s.is_last for s in shown] == [False, False, False, True]
        assert not shown[-1].is_terminal


def test_an_end_at_the_time_limit_stays_a_termination():
    assert play(make_env(counting(time_limit=10)), 20)[-1].is_terminal


def test_the_time_limit_counts_the_steps_of_the_env():
    shown = play(make_env(counting(time_limit=6, action_repeat=2)), 20)
    assert [s.obs["step"][0] for s in shown] == [0, 2, 4, 6]


@pytest.mark.parametrize("channels", [1, 3, 4, 9])
def test_resize_keeps_the_channels(channels):
    image = np.zeros((40, 20, channels), np.uint8)
    image[:20] = 200
    image[..., 0] = 100
    env = ResizeImages(Picture(image), 10)
    step = env.reset(0)
    Gate(env.obs_space).check(step)
    small = step.obs["image"]
    assert small.shape == (10, 10, channels)
    assert (small[..., 0] == 100).all()
    if channels > 1:
        assert (small[:4, :, -1] == 200).all()
        assert (small[6:, :, -1] == 0).all()
    assert isinstance(env, Env)


def test_resize_to_a_height_and_a_width():
    image = np.zeros((40, 20, 3), np.uint8)
    image[:, :10] = 200
    step = ResizeImages(Picture(image), (8, 16)).reset(0)
    assert step.obs["image"].shape == (8, 16, 3)
    assert (step.obs["image"][:, :7] == 200).all()
    env = make_env(EnvSpec("reverie.envs.toy:Catch", image_size=(8, 16)))
    assert env.obs_space["image"].shape == (8, 16, 3)
    assert EnvSpec.from_json(EnvSpec("x", image_size=(8, 16)).to_json()).image_size == (8, 16)
    assert EnvSpec("x", image_size=(8, 8)).image_size == 8
    with pytest.raises(UnusableEnv, match="--image-size must be a height and a width of 1 or more, got 8 0"):
        EnvSpec("x", image_size=(8, 0))


def test_gray_is_luma():
    image = np.zeros((2, 2, 3), np.uint8)
    image[0, 0] = 255
    image[0, 1] = (255, 0, 0)
    image[1, 0] = (0, 100, 0)
    env = GrayImages(Picture(image))
    step = env.reset(0)
    Gate(env.obs_space).check(step)
    assert step.obs["image"][..., 0].tolist() == [[255, 76], [59, 0]]
    assert step.obs["x"].tolist() == [1]


def test_a_malformed_image_is_not_repaired():
    for wrong in (np.zeros((7, 7, 3), np.uint8), np.zeros((40, 20, 3))):
        env = Picture(np.zeros((40, 20, 3), np.uint8))
        env.image = wrong
        for wrapped in (ResizeImages(env, 10), GrayImages(env)):
            assert Gate(wrapped.obs_space).problems(wrapped.reset(0))


def test_image_flags_without_images_say_so():
    for flags in ({"image_size": 32}, {"gray": True}):
        with pytest.raises(UnusableEnv, match="needs an image"):
            make_env(counting(**flags))
    with pytest.raises(ValueError, match="expected 1 channel, 3"):
        GrayImages(Picture(np.zeros((4, 4, 2), np.uint8)))


def test_raw_observations_and_actions_pass_through_all_wrappers():
    env = make_env(EnvSpec("reverie.envs.toy:Catch", action_repeat=2, image_size=16, gray=True))
    raw = np.zeros((64, 64, 3), np.uint8)
    assert observe(env, raw)["image"].shape == (16, 16, 1)
    assert native_action(env, {"action": np.array(2, np.int32)}) == 2
    assert type(native_action(env, {"action": np.array(2, np.int32)})) is int


def test_observations_of_any_env_are_left_out_but_never_the_rules_of_a_game():
    env = make_env(EnvSpec("picture", factory=lambda: Picture(np.zeros((8, 8, 3), np.uint8)), obs_keys="!image"))
    assert set(env.obs_space) == set(env.reset(0).obs) == {"x"}

    game = Picture(np.zeros((8, 8, 3), np.uint8))
    game.obs_space["legal"] = Space("legal", (2,))
    assert set(ObsKeys(game, "x").obs_space) == {"x", "legal"}


@pytest.mark.parametrize("limit", [100, 700])
def test_the_time_limit_of_an_env_can_be_raised(limit):
    env = make_env(EnvSpec("MountainCar-v0", time_limit=limit))  # which has one of 200
    env.reset(0)
    lengths = next(t for t in range(1, 1000) if env.step({"action": np.array(1, np.int32)}).is_last)
    assert lengths == limit
