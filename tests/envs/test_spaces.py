"""Gymnasium's spaces and their values, there and back."""

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces
from test_gym import SPACES

from reverie.envs import base
from reverie.envs.spaces import action_spaces, actor, left_out, observation_spaces, observer
from reverie.envs.values import Malformed, sample


@pytest.mark.parametrize("name", ["float64", "scalar", "discrete", "binary", "multi", "multi2d"])
def test_every_action_comes_back_in_the_words_of_the_env(name):
    space = SPACES[name][0]
    ours, act = action_spaces(space), actor(space)
    rng = np.random.default_rng(0)
    for _ in range(20):
        assert space.contains(act(sample(ours, rng)))


def test_box_actions_span_the_bounds_and_are_clipped():
    act = actor(spaces.Box(np.array([-2, 0], np.float32), np.array([4, 1], np.float32)))
    ends = [act({"action": np.full(2, x, np.float32)}).tolist() for x in (-1, 0, 1, 7)]
    assert ends == [[-2, 0], [1, 0.5], [4, 1], [4, 1]]
    whole = actor(spaces.Box(0, 10, (1,), np.int32))
    native = whole({"action": np.array([0.13], np.float32)})
    assert (native.dtype, native.tolist()) == (np.int32, [6])


def test_nested_spaces_are_named_by_their_path():
    space = spaces.Dict(
        {
            "camera": spaces.Tuple([SPACES["image"][0], SPACES["image"][0]]),
            "body": spaces.Dict({"speed": SPACES["float64"][0], "gear": SPACES["discrete"][0]}),
        }
    )
    assert set(observation_spaces(space)) == {"camera/0", "camera/1", "body/speed", "body/gear"}
    space.seed(0)
    value = space.sample()
    seen = observer(space)(value)
    np.testing.assert_array_equal(seen["camera/1"], value["camera"][1])
    assert seen["body/gear"] == value["body"]["gear"] + 2

    moves = spaces.Dict({"hand": spaces.Tuple([spaces.Discrete(3), spaces.Box(0, 2, (2,))])})
    assert list(action_spaces(moves)) == ["hand/0", "hand/1"]
    rng = np.random.default_rng(0)
    action = actor(moves)(sample(action_spaces(moves), rng))
    assert moves.contains(action)
    both = spaces.Tuple([spaces.Discrete(3), spaces.Discrete(2)])
    assert list(action_spaces(both)) == ["0", "1"]
    assert both.contains(actor(both)(sample(action_spaces(both), rng)))


@pytest.mark.parametrize(
    ("space", "told"),
    [
        (spaces.Text(5), "Text spaces are not supported, expected Box, Discrete"),
        (spaces.Sequence(spaces.Discrete(2)), "Sequence spaces are not supported"),
        (spaces.Dict({"x": spaces.Graph(spaces.Discrete(2), None)}), "x: Graph spaces"),
        (spaces.Dict({}), "nothing to see"),
    ],
)
def test_what_cannot_be_used_says_what_to_declare(space, told):
    for translate in (observation_spaces, action_spaces):
        with pytest.raises(ValueError, match=told):
            translate(space)


def test_unbounded_actions_are_refused():
    for high in (np.inf, float(np.finfo(np.float32).max)):
        with pytest.raises(ValueError, match=r"unbounded, expected finite low and high"):
            action_spaces(spaces.Box(-high, high, (2,)))


def test_two_leaves_of_one_name_are_refused():
    space = spaces.Dict({"a/b": spaces.Discrete(2), "a": spaces.Dict({"b": spaces.Discrete(2)})})
    with pytest.raises(ValueError, match="two spaces are called 'a/b'"):
        observation_spaces(space)


@pytest.mark.parametrize(
    ("shape", "seen"),
    [
        ((3, 64, 64), (64, 64, 3)),
        ((1, 7, 7), (7, 7, 1)),
        ((4, 84, 84), (84, 84, 4)),
        ((12, 84, 84), (84, 84, 12)),
        ((3, 210, 160), (210, 160, 3)),
        ((64, 64, 3), (64, 64, 3)),
        ((84, 84, 12), (84, 84, 12)),
        ((4, 4, 16), (4, 4, 16)),
        ((3, 3, 9), (3, 3, 9)),
        ((3, 64, 3), (3, 64, 3)),
        ((8, 8, 119), (8, 8, 119)),
    ],
)
def test_an_image_with_its_channels_first_is_turned_around(shape, seen):
    space = gymnasium.spaces.Box(0, 255, shape, np.uint8)
    (ours,) = observation_spaces(space).values()
    assert (ours.kind, ours.shape, ours.channels_first) == ("image", seen, shape != seen)
    assert base.from_json(base.to_json({"image": ours}))["image"] == ours
    value = space.sample()
    turned = observer(space)(value)["image"]
    assert turned.shape == seen
    np.testing.assert_array_equal(np.moveaxis(turned, -1, 0) if shape != seen else turned, value)


def test_an_image_that_is_not_as_declared_is_not_turned_around():
    space = gymnasium.spaces.Box(0, 255, (3, 64, 64), np.uint8)
    with pytest.raises(Malformed, match=r"\[64, 64, 3\], expected \[3, 64, 64\], channels first"):
        observer(space)(np.zeros((64, 64, 3), np.uint8))


WITH_TEXT = spaces.Dict({
    "x": spaces.Box(-1, 1, (2,), np.float32),
    "mission": spaces.Text(9),
    "seen": spaces.Tuple((spaces.Discrete(3), spaces.Sequence(spaces.Discrete(2)))),
})  # fmt: skip


def test_text_and_sequences_train_where_they_are_left_out():
    with pytest.raises(ValueError, match=r"Text spaces are not supported.*leave it out: --obs-keys '!mission'"):
        observation_spaces(WITH_TEXT)
    with pytest.raises(ValueError, match=r"Sequence spaces.*leave it out: --obs-keys '!seen/1'"):
        observation_spaces(WITH_TEXT, "!mission")
    for patterns in ("!mission,!seen/1", "x,seen/0"):
        assert set(observation_spaces(WITH_TEXT, patterns)) == {"x", "seen/0"}
        seen = observer(WITH_TEXT, patterns)(WITH_TEXT.sample())
        assert set(seen) == {"x", "seen/0"}
        assert left_out(WITH_TEXT, patterns) == ["mission", "seen/1"]
    extra = observer(WITH_TEXT, "x")(WITH_TEXT.sample() | {"more": 1})
    assert set(extra) == {"x", "more"}, "what is in no space is for the gate to name"


def test_a_single_observation_cannot_be_left_out():
    assert set(observation_spaces(spaces.Discrete(3), "discrete")) == {"discrete"}
    with pytest.raises(ValueError, match="leaves nothing to see"):
        observation_spaces(spaces.Discrete(3), "!discrete")


def test_the_spaces_of_the_old_package_are_called_by_their_name():
    old = type("Box", (spaces.Space,), {"__module__": "gym.spaces.box"})
    with pytest.raises(ValueError, match="a space of the old `gym` package: write `from gymnasium import spaces`"):
        observation_spaces(old())
