import numpy as np
import pytest
from faulty import Faulty
from gymnasium.utils.env_checker import check_env as gymnasium_check

from reverie.envs.toy import Catch, Counting, Dummy, Recall


@pytest.mark.filterwarnings("ignore::UserWarning")  # advice on spaces, wanted here as they are
@pytest.mark.parametrize("make", [Catch, Counting, Dummy, Faulty, Recall])
def test_gymnasium_accepts_them(make):
    # A count of episodes is not reproducible, and Gymnasium mistrusts episodes of one step.
    env = make(length=5, episodes=False) if make is Counting else make()
    gymnasium_check(env, skip_render_check=True)


def play(env, choose, episodes):
    total = 0.0
    for seed in range(episodes):
        image, _ = env.reset(seed=seed)
        over = False
        while not over:
            image, reward, over, cut, _ = env.step(choose(image))
            assert not cut
            total += reward
    return total / episodes


def test_catch_can_be_solved_from_the_pixels_and_not_by_chance():
    def follow(image):
        cells = image[4::8, 4::8]
        ball = int(np.argmax((cells == (255, 220, 80)).all(-1).any(0)))
        paddle = int(np.argmax((cells == (80, 160, 255)).all(-1).any(0)))
        return 1 + int(np.sign(ball - paddle))

    rng = np.random.default_rng(0)
    assert play(Catch(), follow, 30) == 1.0
    assert play(Catch(), lambda _: rng.integers(3), 100) < 0


def test_catch_lasts_one_fall_and_can_be_drawn():
    env = Catch(cells=16, render_mode="rgb_array")
    env.reset(seed=0)
    steps = [env.step(1)[2] for _ in range(15)]
    assert steps == [False] * 14 + [True]
    assert env.render().shape == (64, 64, 3)
    with pytest.raises(ValueError, match="divisor of 64"):
        Catch(cells=7)


@pytest.mark.parametrize("delay", [0, 1, 10])
def test_recall_asks_for_what_it_showed_first(delay):
    env, rewards = Recall(cues=3, delay=delay), set()
    for seed in range(20):
        first, _ = env.reset(seed=seed)
        assert first.sum() == 1
        assert first[3] == 0
        for _ in range(delay):
            blank, reward, *flags = env.step(2)
            assert not blank.any()
            assert (reward, *flags[:2]) == (0, False, False)
        query, reward, *flags = env.step(1)
        assert query.tolist() == [0, 0, 0, 1]
        assert (reward, *flags[:2]) == (0, False, False)
        answer, reward, over, cut, _ = env.step(0)
        assert (over, cut) == (True, False)
        assert reward == (1 if first[0] else -1)
        assert answer.tolist() == first.tolist()
        rewards.add(reward)
    assert rewards == {1, -1}
    with pytest.raises(ValueError, match="cues is 1"):
        Recall(cues=1)
    with pytest.raises(ValueError, match="shortest is 11"):
        Recall(shortest=11)


def test_recall_draws_delays():
    env, lengths = Recall(delay=3, shortest=1), set()
    for seed in range(30):
        env.reset(seed=seed)
        lengths.add(next(n for n in range(1, 9) if env.step(0)[2]))
    assert lengths == {3, 4, 5}


def test_recall_cannot_be_solved_from_what_is_shown_now():
    """Whatever the cue was, from the second step until the answer was given the observations are the same."""
    env, seen = Recall(), {}
    for seed in range(40):
        first, _ = env.reset(seed=seed)
        seen.setdefault(int(first.argmax()), set()).add(tuple(env.step(0)[0].tobytes() for _ in range(11)))
    assert len(seen) == 4
    assert len(set.union(*seen.values())) == 1


def test_counting_ends_both_ways():
    env = Counting()
    ends = set()
    for seed in range(40):
        env.reset(seed=seed)
        length, terminated, truncated = 0, False, False
        while not (terminated or truncated):
            _, _, terminated, truncated, _ = env.step(0)
            length += 1
        ends.add((length, terminated))
    assert {length for length, _ in ends} == set(range(1, 10))
    assert {terminated for _, terminated in ends} == {True, False}


def test_faulty_refuses_a_misspelt_script():
    with pytest.raises(ValueError, match="unknown faults \\['rise'\\]"):
        Faulty({"3": "rise"})
