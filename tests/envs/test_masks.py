"""Action masks of Gymnasium envs, whichever way they are told."""

import functools

import masked
import numpy as np
import pytest
from gymnasium import spaces

from reverie.envs.base import Space, Step
from reverie.envs.build import make_env
from reverie.envs.check import check_env
from reverie.envs.gym import GymEnv
from reverie.envs.spec import EnvSpec, UnusableEnv
from reverie.envs.values import Gate, Malformed, legally, may_act, sample
from reverie.envs.workers import Workers
from reverie.envs.wrappers import ActionRepeat, observe

TOLD = ["Masked", "InObservation", "ByMethod", "Several"]
HERE = "masked:"


def env_of(name, **kwargs):
    return make_env(EnvSpec(HERE + name, kwargs=kwargs))


@pytest.mark.parametrize("name", [*TOLD, "Taxi"])
def test_a_mask_becomes_legal_whichever_way_it_is_told(name):
    env = make_env("Taxi-v4") if name == "Taxi" else env_of(name)
    assert env.obs_space["legal"] == Space("legal", (sum(env.act_space["action"].classes),))
    assert "action_mask" not in env.obs_space
    gate, rng, step = Gate(env.obs_space), np.random.default_rng(0), env.reset(0)
    for _ in range(100):
        gate.check(step)
        if step.is_last:
            assert step.obs["legal"].all() or name == "Taxi"
            step = env.reset(1)
            continue
        if name != "Taxi":
            np.testing.assert_array_equal(step.obs["legal"], env.env.mask)
        action = legally(sample(env.act_space, rng), step.obs["legal"], env.act_space, rng)
        assert may_act(action, step.obs["legal"], env.act_space)
        step = env.step(action)


def test_a_random_action_is_left_alone_where_it_is_legal():
    rng, act = np.random.default_rng(0), {"action": Space("discrete", (2,), (2, 3))}
    legal = np.array([True, False, False, True, True])
    for _ in range(50):
        action = sample(act, rng)
        moved = legally(action, legal, act, rng)["action"]
        assert moved[0] == 0
        assert moved[1] == action["action"][1] if action["action"][1] else moved[1] in (1, 2)


WRONG = {
    "zeros": (np.zeros(5, np.int8), "allows no action, expected one at least"),
    "length": (np.ones(4, np.int8), "int8 [4], expected bool [5]"),
    "dtype": (np.ones(5), "float64 [1.0, 1.0, 1.0, 1.0, 1.0], expected bool [5]"),
    "numbers": (np.arange(5), "int64 [0, 1, 2, 3, 4], expected bool [5]"),
    "words": ("all", "expected bool [5]"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_mask_that_is_none_is_refused_and_named(case):
    wrong, told = WRONG[case]
    with pytest.raises(UnusableEnv, match="action_mask"):
        make_env(lambda: masked.Lazy(wrong, at_once=True))
    late = make_env(lambda: masked.Lazy(wrong))
    step = late.reset(0)
    first = lambda step: {"action": np.array(step.obs["legal"].argmax(), np.int32)}
    step = late.step(first(step))
    with pytest.raises(Malformed) as error:
        late.step(first(step))
    assert told in str(error.value)
    for at_once in (True, False):
        found = check_env(functools.partial(masked.Lazy, wrong, at_once), steps=20)
        assert [f for f in found if f.severity == "error" and told in f.what], found


def test_a_mask_that_comes_and_goes_is_missed():
    found = check_env(lambda: masked.Lazy(None), steps=20)
    assert any('info["action_mask"] is missing' in f.what for f in found if f.severity == "error")


@pytest.mark.parametrize("name", TOLD)
def test_check_env_takes_legal_actions_only(name):
    assert not [f for f in check_env(HERE + name, steps=200) if f.severity == "error"]


def test_masks_of_what_is_no_single_choice_are_refused():
    class Pair(masked.Masked):
        action_space = spaces.Dict({"a": spaces.Discrete(5), "b": spaces.Discrete(2)})

    with pytest.raises(UnusableEnv, match="one MultiDiscrete space"):
        make_env(Pair)

    class Short(masked.InObservation):
        observation_space = spaces.Dict(
            {"seen": spaces.Box(-1, 1, (8,), np.float32), "action_mask": spaces.Box(0, 1, (4,), np.int8)}
        )

    with pytest.raises(UnusableEnv, match=r"expected MultiBinary\(5\)"):
        make_env(Short)


def test_a_continuous_env_may_show_what_it_likes():
    class Torque(masked.InObservation):
        action_space = spaces.Box(-1, 1, (2,), np.float32)

    assert set(GymEnv(Torque()).obs_space) == {"seen", "action_mask"}


def test_the_names_of_rules_are_kept_for_them():
    class Named(masked.Masked):
        observation_space = spaces.Dict({"legal": spaces.Box(0, 1, (5,), np.float32)})

    with pytest.raises(UnusableEnv, match="call it 'action_mask' if"):
        make_env(Named)


def test_a_fault_of_the_first_reset_is_left_to_the_reset():
    class Broken(masked.Masked):
        def reset(self, *, seed=None, options=None):
            raise OSError("no board")

    env = make_env(Broken)
    with pytest.raises(OSError, match="no board"):
        env.reset(0)


def test_an_action_is_not_repeated_where_it_is_no_longer_legal():
    class Halves:
        """Legal is action 0 alone at first, and after two steps action 1 alone."""

        obs_space, act_space = {"legal": Space("legal", (2,))}, {"action": Space("discrete", (), (2,))}

        def reset(self, seed=None):
            self.t = 0
            return self.shown(True)

        def shown(self, first=False):
            return Step({"legal": np.array([self.t < 2, self.t >= 2])}, 1.0, first, False, False)

        def step(self, action):
            assert action["action"] == (self.t >= 2)
            self.t += 1
            return self.shown()

        def render(self):
            return None

        def close(self):
            pass

    env = ActionRepeat(Halves(), 5)
    env.reset()
    assert env.step({"action": np.array(0, np.int32)}).reward == 2


def test_workers_let_no_illegal_action_through():
    with Workers(HERE + "Masked", 2, seed=0, mode="inline") as workers:
        both, nothing = np.arange(2), {"action": np.zeros(2, np.int32)}
        workers.send(both, nothing)
        rows, _ = workers.recv(both)
        legal = rows["obs/legal"]
        good = legal.argmax(1).astype(np.int32)
        bad = np.array([good[0], legal[1].argmin()], np.int32)
        assert not legal[1].all()
        with pytest.raises(ValueError, match=r"env 1: action .* expected one that is legal"):
            workers.send(both, {"action": bad})
        workers.send(both, {"action": good})
        workers.recv(both)


def test_what_is_seen_outside_of_an_episode_takes_the_mask_beside_it():
    env = env_of("Masked")
    obs, info = env.env.reset(seed=3)
    np.testing.assert_array_equal(observe(env, obs, info["action_mask"])["legal"], info["action_mask"] == 1)
    with pytest.raises(Malformed, match="is missing"):
        observe(env, obs)
