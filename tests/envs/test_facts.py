"""What an env shows a random player."""

from __future__ import annotations

import contextlib

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces

from reverie.envs import facts
from reverie.envs.spec import EnvSpec


class Valley(gymnasium.Env):
    """Ten steps in one direction find the only reward; an episode has 40."""

    observation_space = spaces.Box(-10, 10, (1,), np.float32)
    action_space = spaces.Discrete(2)

    def __init__(self, paid: float = 1.0):
        self.paid = paid

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.at, self.time = 0, 0
        return np.zeros(1, np.float32), {}

    def step(self, action):
        self.at, self.time = self.at + 2 * int(action) - 1, self.time + 1
        there = abs(self.at) == 10
        return np.full(1, self.at, np.float32), self.paid * there, there, self.time == 40, {}


class Broken(Valley):
    def step(self, action):
        raise RuntimeError("no")


class Blank(Valley):
    """Shows one colour."""

    observation_space = spaces.Box(0, 255, (64, 64, 3), np.uint8)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return np.zeros((64, 64, 3), np.uint8), {}

    def step(self, action):
        _, *rest = super().step(action)
        return np.zeros((64, 64, 3), np.uint8), *rest


def test_repeated_actions_find_what_fresh_ones_do_not() -> None:
    found = facts.look(EnvSpec("valley", factory=Valley))
    assert found is not None
    assert found.held.terminated > 3 * max(found.plain.terminated, 1)
    assert found.plain.steps == found.held.steps == facts.STEPS
    assert (found.largest, found.scale) == (1.0, 1.0)
    assert 0.9 < found.zeros < 1


def test_without_reward_all_episodes_are_alike() -> None:
    found = facts.look(EnvSpec("valley", factory=Valley, kwargs={"paid": 0.0}))
    assert found is not None
    assert found.monotonous
    assert not found.repeating_finds


def test_an_env_of_a_name_is_played_in_a_process_and_one_that_breaks_has_no_facts(
    capfd: pytest.CaptureFixture[str],
) -> None:
    found = facts.look(EnvSpec("CartPole-v1"))
    assert found is not None
    assert not found.monotonous
    assert not found.repeating_finds
    assert 10 < found.plain.length < 40
    seen = found.variation["vector"]
    assert (seen.levels > 1000).all()
    assert (abs(seen.mean) < 0.3).all()
    assert (seen.std < seen.reach).all()
    assert seen.symlog_std[0] < 0.15 < 0.3 < seen.symlog_std[1], "places vary by less than speeds"
    assert facts.look(EnvSpec("valley", factory=Broken)) is None
    assert facts.look(EnvSpec("faulty:Faulty", kwargs={"fault": "nonsense"})) is None
    assert facts.look(EnvSpec("CartPole-v9")) is None
    assert "Traceback" not in capfd.readouterr().err


def test_a_look_that_began_early_is_worth_what_it_was_told(looks: None) -> None:
    """It is asked for the env that was named, for another one, and for one that nobody named."""
    named, other = EnvSpec("reverie.envs.toy:Catch"), EnvSpec("reverie.envs.toy:Catch", time_limit=3)
    for begun, asked, longest in ((named, named, 7), (named, other, 3), (None, other, 3)):
        with contextlib.closing(facts.EarlyLook(begun)) as early:
            found = early.facts(asked)
            assert found is not None
            assert max(found.plain.lengths) == longest
            assert early.facts(asked) is found, "it is not looked at again"


def test_an_env_that_cannot_be_played_is_tried_once(monkeypatch: pytest.MonkeyPatch) -> None:
    tried, child = list[str](), facts.Child
    monkeypatch.setattr(facts, "Child", lambda name, values: tried.append(name) or child(name, values))
    spec = EnvSpec("CartPole-v9")
    with contextlib.closing(facts.EarlyLook(spec)) as early:
        assert early.facts(spec) is None
        assert early.facts(spec) is None
    assert len(tried) == 1


def test_the_same_env_gives_the_same_facts(looks: None) -> None:
    first, second = (facts.look(EnvSpec("valley", factory=Valley)) for _ in range(2))
    assert first is not None
    assert second is not None
    assert (first.plain, first.held) == (second.plain, second.held)


def test_the_squares_of_a_picture_are_found(looks: None) -> None:
    small = np.random.default_rng(0).integers(0, 256, (4, 6, 3)).astype(np.uint8)
    large = small.repeat(8, 0).repeat(8, 1)
    assert facts.block_of(large) == facts.block_of(large, 16) == 8
    assert facts.block_of(large, 12) == 4
    assert facts.block_of(np.zeros((32, 48, 3), np.uint8)) == 0
    assert facts.block_of(np.zeros((32, 48, 3), np.uint8), 8) == 8
    large[9, 9, 1] ^= 1
    assert facts.block_of(large) == 1
    found = facts.look(EnvSpec("reverie.envs.toy:Catch"))
    assert found is not None
    assert found.blocks == {"image": 8}
    found = facts.look(EnvSpec("blank", factory=Blank))
    assert found is not None
    assert found.blocks == {}, "what is never seen may be small"


def test_pictures_that_cannot_be_resized_have_no_squares(looks: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(facts, "block_of", lambda image, before: 8)
    found = facts.look(EnvSpec("blank", factory=Blank))
    assert found is not None
    assert found.blocks == {"image": 8}
    sized = EnvSpec("MiniGrid-Empty-5x5-v0", kwargs={"view": "rgb"})  # its family has a size of its own
    assert facts._play(sized)["blocks"] == {}
    assert not facts._resizes(EnvSpec("device:CartPole"))


@pytest.mark.parametrize("returns", [((), (1.0,)), ((0.0, 0.0), (0.0, 5.0))])
def test_the_best_episode_decides(returns: tuple[tuple[float, ...], tuple[float, ...]]) -> None:
    plain, held = (facts.Play(100, x, (10,) * len(x), 0) for x in returns)
    assert facts.Facts({}, {}, plain, held, 1.0, {}, 1e-3).repeating_finds
    assert not facts.Facts({}, {}, held, plain, 1.0, {}, 1e-3).repeating_finds
