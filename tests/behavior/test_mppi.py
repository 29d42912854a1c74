"""Planning by sequences: on a line that can be worked out by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reverie.behavior.mppi import mppi

KEY = jax.random.key(0)
TARGET = jnp.array([0.6, -0.4])


def imagine(latent, action, key):
    """A point that moves by half of what is done."""
    return latent + 0.5 * action


def predict(latent):
    return -jnp.square(latent - TARGET[None]).sum(-1), jnp.full(len(latent), 0.9)


def still(latent, key):
    return jnp.zeros_like(latent)


def nothing(latent):
    return jnp.zeros(len(latent))


@pytest.fixture
def plan():
    def plan(latent, steps=4, samples=64, policy=still, value=nothing, mean=None, key=KEY):
        mean = jnp.zeros((len(latent), steps, 2)) if mean is None else mean
        run = jax.jit(lambda latent, mean: mppi(imagine, predict, policy, value, latent, mean, key, samples=samples))
        return run(latent, mean)

    return plan


def test_it_goes_straight_to_where_the_reward_is(plan):
    found = plan(jnp.zeros((3, 2)), samples=256)
    # Half of 1.0 and of -0.8 are not all of the way: full speed in one direction, nearly so in the other.
    np.testing.assert_allclose(found.mean[:, 0], np.tile([1.0, -0.8], (3, 1)), atol=0.15)
    assert (jnp.abs(found.mean[:, 0].mean(0)) > jnp.abs(found.mean[:, 3].mean(0))).all()
    assert (found.std < 0.6).all()


def test_envs_are_planned_for_apart(plan):
    found = plan(jnp.array([[0.0, 0.0], [1.2, -0.8]]), samples=256)
    assert (found.mean[0, 0] * found.mean[1, 0] < 0).all()


def test_a_plan_that_goes_on_is_better_than_one_that_begins(plan):
    latent, few = jnp.zeros((1, 2)), 16
    first = plan(latent, samples=few)
    again = plan(latent, samples=few, mean=first.mean, key=jax.random.key(1))
    assert again.value[0] > first.value[0]
    moved = first.moved_on()
    np.testing.assert_array_equal(moved[:, :-1], first.mean[:, 1:])
    np.testing.assert_array_equal(moved[:, -1], 0)


def test_the_policy_is_among_the_candidates(plan):
    """With one step of noise that hardly ever hits, who knows the way is followed."""

    def guide(latent, key):
        return jnp.clip(2 * (TARGET[None] - latent), -1, 1)

    latent = jnp.zeros((1, 2))
    assert plan(latent, samples=16, policy=guide).value[0] > plan(latent, samples=16).value[0]


def test_the_value_at_the_end_counts(plan):
    def far(latent):
        return 100 * latent[:, 0]

    found = plan(jnp.zeros((1, 2)), steps=1, samples=256, value=far)
    assert found.mean[0, 0, 0] > 0.8
    found = plan(jnp.zeros((1, 2)), steps=1, samples=256, value=lambda latent: -far(latent))
    assert found.mean[0, 0, 0] < -0.8
