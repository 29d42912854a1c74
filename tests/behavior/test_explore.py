"""Random actions that go on: how long, how often, and when not."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reverie.behavior.explore import Exploration, RepeatedAction, explore, unheld

N = 512


def play(values: Exploration, share: float, steps: int, episode: int = 50) -> tuple[np.ndarray, np.ndarray]:
    """Actions `[steps, N]` of envs whose policy says 0 and whose random actions count up from 1; and the bounds."""

    def step(held: RepeatedAction, t: jax.Array) -> tuple[RepeatedAction, tuple[jax.Array, jax.Array]]:
        chosen, drawn = ({"a": jnp.full(N, x, jnp.int32)} for x in (0, t + 1))
        first = jnp.full(N, t % episode == 0)
        held, action = explore(values, held, chosen, drawn, first, jax.random.fold_in(jax.random.key(3), t), share)
        return held, (action["a"], held.bound)

    _, (actions, bounds) = jax.lax.scan(step, unheld({"a": jnp.zeros(N, jnp.int32)}), jnp.arange(steps))
    return np.asarray(actions), np.asarray(bounds)


@pytest.mark.parametrize("hold", [1, 32])
@pytest.mark.parametrize("share", [0.1, 0.5])
def test_random_actions_take_up_their_share_of_the_steps(hold: int, share: float) -> None:
    actions, _ = play(Exploration(hold=hold), share, 1000, episode=1000)
    assert np.mean(actions[100:] > 0) == pytest.approx(share, abs=0.02)


def test_in_warm_up_every_action_is_random_and_goes_on_for_as_long_as_its_episode_allows() -> None:
    actions, bounds = play(Exploration(hold=32), 1.0, 500)
    assert (actions > 0).all()
    assert set(np.unique(bounds)) == {1, 2, 4, 8, 16, 32}
    before = np.arange(1, 501)[:, None] - actions  # how often it was taken already: it says when it was drawn
    for bound in np.unique(bounds):
        assert before[bounds == bound].max() == bound - 1
    long = actions.reshape(10, 50, N).transpose(0, 2, 1)[bounds.reshape(10, 50, N)[:, 0] == 32]
    assert 0.05 < (np.diff(long, axis=1) > 0).mean() < 0.07  # one in 16.5


def test_an_episode_does_not_go_on_with_what_was_repeated_in_the_one_before() -> None:
    actions, _ = play(Exploration(hold=32), 1.0, 100, episode=10)
    starts = actions[::10]
    assert (starts == 1 + 10 * np.arange(10)[:, None]).all()


def test_what_may_not_be_done_is_not_repeated() -> None:
    held = RepeatedAction({"a": jnp.full(2, 7, jnp.int32)}, jnp.full(2, 5, jnp.int32), jnp.full(2, 8, jnp.int32))
    fresh, first = {"a": jnp.full(2, 3, jnp.int32)}, jnp.zeros(2, bool)
    key, values = jax.random.key(0), Exploration(hold=8)
    held, action = explore(values, held, fresh, fresh, first, key, 0.0, jnp.array([True, False]))
    assert action["a"].tolist() == [7, 3]
    assert held.left.tolist() == [4, 0]
