"""What `act` takes, what it refuses, and what differs between episodes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium
import jax
import numpy as np
import pytest
from gymnasium import spaces

import reverie
from reverie import algos
from reverie.trained import LoadedAgent

QUICK: dict[str, Any] = {
    "steps": 8,
    "warmup": 4,
    "workers": "inline",
    "eval_episodes": 0,
    "preset": "quick",
}


class Rich(gymnasium.Env):
    """Sees and does a bit of everything."""

    observation_space = spaces.Dict(
        {
            "eye": spaces.Box(0, 255, (8, 8, 3), np.uint8),
            "arm": spaces.Dict({"angle": spaces.Box(-1, 1, (3,)), "grip": spaces.Discrete(4, start=1)}),
            "pair": spaces.Tuple((spaces.MultiDiscrete([2, 3]), spaces.MultiBinary(2))),
        }
    )
    action_space = spaces.Dict({"move": spaces.Box(-2, 4, (2,)), "say": spaces.Discrete(3, start=5)})

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.observation_space.seed(seed)
        return self.observation_space.sample(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        return self.observation_space.sample(), 0.0, False, False, {}


@pytest.fixture(scope="module")
def agents(tmp_path_factory: pytest.TempPathFactory) -> dict[str, LoadedAgent]:
    """By env: trained for no time at all."""
    runs = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(algos.ALGORITHMS, "fake", "fakes")
        named: dict[str, Any] = {"vector": "CartPole-v1", "rich": Rich, "other": "CartPole-v1"}
        return {k: reverie.train("fake", env=env, run=runs / k, **QUICK).load() for k, env in named.items()}


def rich(**changed: Any) -> dict[str, Any]:
    """An observation of `Rich`, with other values at its top."""
    whole = {
        "eye": np.zeros((8, 8, 3), np.uint8),
        "arm": {"angle": np.zeros(3, np.float32), "grip": 1},
        "pair": (np.array([0, 2]), np.array([0, 1], np.int8)),
    }
    return {**whole, **changed}


CALM = np.zeros(4, np.float32)
NAN, INF = np.array([0, np.nan, 0, 0], np.float32), np.array([0, 0, np.inf, 0], np.float32)
ARM = {"angle": np.zeros(3, np.float32), "grip": 1}
PAIR = (np.array([0, 2]), np.array([0, 1], np.int8))

VECTORS: list[tuple[Any, str]] = [
    (NAN, r"obs/vector: element 1 is nan, expected finite values only"),
    (INF, r"element 2 is inf, expected finite"),
    (-INF, r"is -inf|is nan"),
    (np.full(4, np.nan), "element 0 is nan"),
    (np.array([9.0, 0, 0, 0]), r"element 0 is 9.0, out of bounds: expected -4.8"),
    (np.array([0, 0, -1.0, 0]), r"element 2 is -1.0, out of bounds"),
    (np.array([1e39, 0, 0, 0]), "element 0 is inf"),
    (np.zeros(3, np.float32), r"float32 \[3\], expected vector float32 \[4\]"),
    (np.zeros(5), r"float32 \[5\], expected"),
    (np.zeros(0), r"\[0\], expected"),
    (np.zeros((4, 1)), r"\[4, 1\], expected.* looks like a batch"),
    (np.zeros((1, 4)), r"\[1, 4\], expected.* looks like a batch: act takes one observation, act_batch"),
    (np.zeros((7, 4), np.float32), "looks like a batch"),
    (np.zeros((2, 2)), "looks like a batch"),
    (np.zeros((2, 3, 4)), r"\[2, 3, 4\], expected"),
    (0.0, r"float32 \[\], expected"),
    (3, r"\[\], expected"),
    (None, r"object \[\], expected vector"),
    ("0 0 0 0", r"<U7 \[\], expected"),
    (b"0000", r"\[\], expected"),
    (["a", "b", "c", "d"], r"<U1 \[4\], expected"),
    ([0, 0, 0, "x"], r"\[4\], expected"),
    ([0.0, [1.0], 0.0, 0.0], "is no observation"),
    ([[0.0], [0.0, 1.0]], "is no observation"),
    (np.zeros(4, bool), r"bool \[4\], expected"),
    (np.zeros(4, np.int64), r"int64 \[4\], expected"),
    (np.zeros(4, np.uint8), r"uint8 \[4\], expected"),
    (np.zeros(4, complex), r"complex128 \[4\], expected"),
    (np.zeros(4, object), r"object \[4\], expected"),
    (np.zeros(4, "M8[s]"), r"datetime64\[s\] \[4\], expected"),
    ({}, r"object \[\], expected"),
    ({"obs": CALM}, r"object \[\], expected"),
    ({"vector": CALM}, r"object \[\], expected"),
    ((CALM, {}), r"looks like \(obs, info\), as reset\(\) returns it: give obs alone"),
    ((CALM, {"lives": 3}), r"looks like \(obs, info\)"),
    ((CALM, 0.0, False, False, {}), "is no observation"),
    ((), r"\[0\], expected"),
    ({1.0, 2.0}, r"object \[\], expected"),
    (object(), r"object \[\], expected"),
    (lambda: CALM, r"object \[\], expected"),
    (range(5), r"\[5\], expected"),
    (CALM.tobytes(), r"\[\], expected"),
    (np.zeros((64, 64, 3), np.uint8), r"uint8 \[64, 64, 3\], expected"),
    (-np.float32(1e30) * np.ones(4, np.float32), "out of bounds"),
]
RICH: list[tuple[Any, str]] = [
    ({}, r"obs/arm/angle: missing, expected vector float32 \[3\].*obs/eye: missing"),
    ({"eye": rich()["eye"]}, "obs/arm/angle: missing"),
    ({k: x for k, x in rich().items() if k != "eye"}, r"obs/eye: missing, expected image uint8 \[8, 8, 3\]"),
    ({k: x for k, x in rich().items() if k != "pair"}, r"obs/pair/0: missing"),
    (rich(more=1), "obs/more: not in the space"),
    (rich(Eye=rich()["eye"]), "obs/Eye: not in the space"),
    (rich(arm={**ARM, "wrist": 0.0}), "obs/arm/wrist: not in the space"),
    (rich(arm={"angle": ARM["angle"]}), "obs/arm/grip: missing"),
    (rich(arm=ARM["angle"]), r"obs/arm: a ndarray, expected a dict with the keys \['angle', 'grip'\]"),
    (rich(arm=None), "obs/arm: a NoneType, expected a dict"),
    (rich(arm=[ARM]), "obs/arm: a list, expected a dict"),
    (rich(arm={**ARM, "angle": np.array([0, 0, np.nan])}), "obs/arm/angle: element 2 is nan"),
    (rich(arm={**ARM, "angle": np.array([0, 0, 1.5])}), "obs/arm/angle: element 2 is 1.5, out of bounds"),
    (rich(arm={**ARM, "angle": np.zeros(2)}), r"obs/arm/angle: float32 \[2\], expected"),
    (rich(arm={**ARM, "angle": "up"}), "obs/arm/angle: <U2"),
    (rich(arm={**ARM, "grip": 0}), "obs/arm/grip: element 0 is -1, out of bounds"),
    (rich(arm={**ARM, "grip": 5}), "obs/arm/grip: element 0 is 4, out of bounds"),
    (rich(arm={**ARM, "grip": 2.0}), r"obs/arm/grip: float64 \[\], expected discrete int32"),
    (rich(arm={**ARM, "grip": True}), "obs/arm/grip: bool"),
    (rich(arm={**ARM, "grip": None}), "obs/arm/grip: object"),
    (rich(arm={**ARM, "grip": np.array([1])}), r"obs/arm/grip: int64 \[1\], expected"),
    (rich(arm={**ARM, "grip": "1"}), "obs/arm/grip: <U1"),
    (rich(pair=PAIR[:1]), "obs/pair: a tuple, expected a tuple of 2"),
    (rich(pair=(*PAIR, 0)), "obs/pair: a tuple, expected a tuple of 2"),
    (rich(pair={"0": PAIR[0], "1": PAIR[1]}), "obs/pair: a dict, expected a tuple of 2"),
    (rich(pair=PAIR[::-1]), "obs/pair/0|obs/pair/1"),
    (rich(pair=(np.array([2, 0]), PAIR[1])), "obs/pair/0: element 0 is 2, out of bounds"),
    (rich(pair=(np.array([-1, 0]), PAIR[1])), "obs/pair/0: element 0 is -1"),
    (rich(pair=(np.array([0.0, 0.0]), PAIR[1])), "obs/pair/0: float64"),
    (rich(pair=(PAIR[0], np.array([0, 2]))), "obs/pair/1: element 1 is 2"),
    (rich(eye=np.zeros((8, 8), np.uint8)), r"obs/eye: uint8 \[8, 8\], expected image"),
    (rich(eye=np.zeros((3, 8, 8), np.uint8)), r"obs/eye: uint8 \[3, 8, 8\], expected"),
    (rich(eye=np.zeros((8, 8, 4), np.uint8)), r"obs/eye: uint8 \[8, 8, 4\], expected"),
    (rich(eye=np.zeros((8, 8, 3))), r"obs/eye: float64 \[8, 8, 3\], expected image uint8"),
    (rich(eye=np.zeros((8, 8, 3), np.int64)), "obs/eye: int64"),
    (rich(eye=np.zeros((1, 8, 8, 3), np.uint8)), r"obs/eye: uint8 \[1, 8, 8, 3\], expected"),
    (rich(eye="frame.png"), "obs/eye: <U9"),
    (rich(eye=None), "obs/eye: object"),
    (jax.tree.map(lambda x: np.stack([x, x]), rich()), "expected"),
    ((rich(), {}), r"looks like \(obs, info\)"),
    ([rich()], "a list, expected a dict"),
    (rich()["eye"], "a ndarray, expected a dict with the keys"),
    (None, "a NoneType, expected a dict"),
]
CALLS: list[tuple[dict[str, Any], str]] = [
    ({"mode": "greedy"}, "mode must be one of train, eval, sample, random, got 'greedy'"),
    ({"mode": "Eval"}, "mode must be one of"),
    ({"mode": None}, "mode must be one of .*, got None"),
    ({"mode": 1}, "mode must be one of"),
    ({"mode": ["eval"]}, "mode must be one of"),
    ({"seed": -1}, "seed must be a whole number, 0 or more, got -1"),
    ({"seed": 0.5}, "seed must be a whole number"),
    ({"seed": True}, "seed must be a whole number"),
    ({"seed": "7"}, "seed must be a whole number"),
    ({"seed": 2**63}, "seed must be a whole number"),
    ({"carry": {}}, "carry: a dict; expected what the last call returned, or None to begin an episode"),
    ({"carry": ()}, "carry: a tuple; expected"),
    ({"carry": False}, "carry: a bool; expected"),
    ({"carry": CALM}, "carry: a ndarray; expected"),
]


def test_a_hundred_malformed_calls_are_refused_with_a_sentence(agents: dict[str, LoadedAgent]) -> None:
    assert len(VECTORS) + len(RICH) + len(CALLS) >= 100
    for name, cases in (("vector", VECTORS), ("rich", RICH)):
        for obs, message in cases:
            with pytest.raises(ValueError, match=message) as refused:
                agents[name].act(obs)
            assert refused.type.__module__.startswith("reverie."), (obs, refused.value)
    for given, message in CALLS:
        with pytest.raises(ValueError, match=message):
            agents["vector"].act(CALM, **given)


def test_a_refused_observation_leaves_the_episode_as_it_was(agents: dict[str, LoadedAgent]) -> None:
    agent = agents["vector"]
    _, carry = agent.act(CALM)
    before = jax.device_get(carry.inner["memory"]).copy()
    with pytest.raises(ValueError, match="element 1 is nan"):
        agent.act(NAN, carry)
    np.testing.assert_array_equal(carry.inner["memory"], before)
    agent.act(CALM, carry)


def test_a_foreign_carry_is_refused(agents: dict[str, LoadedAgent]) -> None:
    agent = agents["vector"]
    _, own = agent.act(CALM)
    for carry, message in (
        (agents["other"].act(CALM)[1], r"of another agent \(.* after 8 steps\), and this is .* after 8 steps"),
        (agents["rich"].act(rich())[1], "of another agent"),
        (agent.act_batch(np.zeros((3, 4)))[1], "of 3 envs, and this is an observation of 1"),
        (jax.tree.map(lambda x: x[..., :1] if x.ndim else x, own), "it was changed"),
        (jax.tree.map(lambda x: x if x.dtype != np.float32 else x * np.nan, own), "values that are not finite"),
        (own.inner, "carry: a dict"),
    ):
        with pytest.raises(ValueError, match=message):
            agent.act(CALM, carry)
    with pytest.raises(ValueError, match="seed is of a whole episode: give it where one begins"):
        agent.act(CALM, own, seed=3)


def test_actions_come_in_the_envs_own_words(agents: dict[str, LoadedAgent]) -> None:
    action, carry = agents["rich"].act(rich(), mode="random")
    assert Rich.action_space.contains(action), action
    assert Rich.action_space.contains(agents["rich"].act(rich(arm={**ARM, "angle": [0.5, 0, 0]}), carry)[0])


@pytest.mark.parametrize("mode", ["train", "sample", "random"])
def test_episodes_differ_and_a_seed_repeats_one(agents: dict[str, LoadedAgent], mode: Any) -> None:
    agent = agents["rich"]

    def episode(seed: int | None) -> list[float]:
        moves, carry = [], None
        for _ in range(4):
            action, carry = agent.act(rich(), carry, mode, seed if carry is None else None)
            moves += action["move"].tolist()
        return moves

    played = [episode(seed) for seed in (None, None, 5, 5, 6)]
    assert played[2] == played[3]
    assert len({tuple(moves) for moves in played}) == 4


def test_a_vector_env_is_acted_in_at_once(agents: dict[str, LoadedAgent]) -> None:
    agent = agents["rich"]
    envs = gymnasium.vector.SyncVectorEnv([Rich] * 3)
    obs, _ = envs.reset(seed=0)
    carry, first = None, None
    for _ in range(3):
        actions, carry = agent.act_batch(obs, carry, first, mode="train")
        assert envs.action_space.contains(actions), actions
        obs, _, terminated, truncated, _ = envs.step(actions)
        first = terminated | truncated
    assert len({tuple(move) for move in actions["move"].tolist()}) == 3, "the envs draw independently"


def test_each_env_of_a_batch_is_remembered_by_itself(agents: dict[str, LoadedAgent]) -> None:
    agent = agents["vector"]
    seen = np.random.default_rng(0).uniform(-0.2, 0.2, (3, 2, 4)).astype(np.float32)  # [T, N, ...]
    carry, alone = None, [None, None]
    for t, obs in enumerate(seen):
        _, carry = agent.act_batch(obs if t else list(obs), carry, np.array([False, t == 2]))
        for env in range(2):
            _, alone[env] = agent.act(obs[env], None if t == 2 and env == 1 else alone[env])
    for env in range(2):
        np.testing.assert_allclose(carry.inner["memory"][env], alone[env].inner["memory"][0], rtol=1e-6)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"obs": CALM[0]}, "every array has an axis"),
        ({"obs": np.zeros((0, 4))}, "every array has an axis"),
        ({"obs": []}, "an empty list"),
        ({"obs": np.stack([CALM, NAN])}, "env 1: obs/vector: element 1 is nan"),
        ({"obs": np.zeros((2, 5))}, r"env 0: obs/vector: float32 \[5\]"),
        ({"obs": np.zeros((2, 4)), "first": [True]}, r"first is bool \[1\], expected bool \[2\]"),
        ({"obs": np.zeros((2, 4)), "first": [0, 1]}, r"first is int64 \[2\], expected bool"),
        ({"obs": np.zeros((2, 4)), "mode": "best"}, "mode must be one of"),
    ],
)
def test_a_malformed_batch_is_refused(agents: dict[str, LoadedAgent], given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        agents["vector"].act_batch(**given)


def test_a_batch_of_dicts_must_be_of_one_size(agents: dict[str, LoadedAgent]) -> None:
    batch = jax.tree.map(lambda x: np.stack([x, x]), rich())
    agents["rich"].act_batch(batch)
    with pytest.raises(ValueError, match="every array has an axis"):
        agents["rich"].act_batch({**batch, "eye": batch["eye"][:1]})


def test_what_was_trained_with_reads_the_same(agents: dict[str, LoadedAgent], tmp_path: Path) -> None:
    """float64 and int64 are cast as in training, lists become arrays."""
    a, _ = agents["vector"].act(CALM.astype(np.float64))
    b, _ = agents["vector"].act(CALM.tolist())
    assert a == b == agents["vector"].act(CALM)[0]
