import numpy as np
import pytest

from reverie.envs.base import Space, Step
from reverie.envs.values import Gate, Malformed, sample

SPACES = {
    "image": Space("image", (4, 4, 3)),
    "vector": Space("vector", (2,), (), (-1.0, -np.inf), (1.0, np.inf)),
    "free": Space("vector", (2, 2)),
    "token": Space("discrete", (2,), (3, 4)),
}


def step(reward=0.0, is_last=False, is_terminal=False, **obs):
    return Step(sample(SPACES, np.random.default_rng(0)) | obs, reward, False, is_last, is_terminal)


def test_samples_pass_and_cover_their_space():
    rng = np.random.default_rng(0)
    drawn = [sample(SPACES, rng) for _ in range(200)]
    for obs in drawn:
        Gate(SPACES).check(Step(obs, 1.0, True, False, False))
    assert {tuple(d["token"]) for d in drawn} == {(i, j) for i in range(3) for j in range(4)}
    assert min(d["vector"].min() for d in drawn) < -0.9


@pytest.mark.parametrize(
    "broken",
    [
        step(vector=np.array([0, np.nan], np.float32)),
        step(free=np.full((2, 2), np.inf, np.float32)),
        step(vector=np.array([1.1, 0], np.float32)),
        step(vector=np.zeros(2)),
        step(token=np.array([0, 4], np.int32)),
        step(token=np.array([-1, 0], np.int32)),
        step(image=np.zeros((4, 4), np.uint8)),
        step(more=np.zeros(1)),
        step(reward=float("nan")),
        step(reward=float("-inf")),
        step(reward=1e39),
        Step({}, 0.0, False, False, False),
    ],
)
def test_every_fault_is_stopped_and_described(broken):
    gate = Gate(SPACES)
    with pytest.raises(Malformed, match="expected"):
        gate.check(broken)
    assert gate.problems(broken)


def test_all_faults_of_a_step_are_told_together():
    obs = {"vector": np.zeros(3, np.float32), "more": np.zeros(1)}
    problems = Gate(SPACES).problems(Step(obs, float("nan"), False, False, True))
    named = [problem.partition(":")[0] for problem in problems]
    assert named[:5] == ["obs/free", "obs/image", "obs/token", "obs/more", "obs/vector"]
    assert named[5] == "reward"


def test_a_list_is_no_array():
    broken = step()
    broken.obs["image"] = [[0]]
    with pytest.raises(Malformed, match="obs/image: a list, expected a numpy array"):
        Gate(SPACES).check(broken)


def test_a_sound_step_has_no_problems():
    assert Gate(SPACES).problems(step(is_last=True, is_terminal=True)) == []
    assert Gate(SPACES).problems(step(is_terminal=True)) == []  # a lost life
