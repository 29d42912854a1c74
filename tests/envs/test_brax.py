"""brax beside itself: our rows are what the package says, and only a fall is terminal."""

from __future__ import annotations

from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reverie.envs.base import Space
from reverie.envs.build import device_env, make_env
from reverie.envs.device_wrappers import TimeLimit, check, strong
from reverie.envs.spec import EnvSpec, UnusableEnv

pytest.importorskip("brax", reason="pip install reverie[brax]")

from reverie.envs import brax  # it quiets what brax brings

# brax asks MuJoCo's package for fields that have moved.
pytestmark = pytest.mark.filterwarnings("ignore:Accessing:DeprecationWarning")


@pytest.fixture(autouse=True)
def promotion() -> Iterator[None]:
    """The package adds arrays of different ranks, which our own code may not."""
    with jax.numpy_rank_promotion("allow"):
        yield


def test_only_a_fall_is_terminal() -> None:
    env = device_env("brax:inverted_pendulum")
    check(env, "brax:inverted_pendulum")
    assert isinstance(env, TimeLimit)
    assert env.obs_space == {"obs": Space("vector", (4,))}
    assert env.act_space == {"action": Space("vector", (1,), (), (-1.0,), (1.0,))}
    shapes = jax.eval_shape(lambda key: strong(env.init(key)), jax.random.key(0))
    task, _ = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    for done, taken, flags in ((0, 999, (False, False)), (0, 1000, (True, False)), (1, 5, (True, True))):
        row = env.row((task._replace(inner=task.inner.replace(done=jnp.float32(done))), jnp.int32(taken)))
        assert (row["is_last"], row["is_terminal"]) == flags


@pytest.mark.slow
def test_the_rows_are_those_of_the_package() -> None:
    """One compiled function takes every step twice, so that what is compared is not how it was compiled."""
    env = device_env(EnvSpec("brax:inverted_pendulum", kwargs={"backend": "positional"}))
    theirs = env.env._env

    def step(state, other, key):
        state, other = env.step(state, {"action": jnp.ones(1)}, key), theirs.step(other, jnp.ones(1))
        return state, other, env.row(state), (other.obs, other.reward, other.done)

    state, other = jax.jit(lambda key: (strong(env.init(key)), strong(theirs.reset(key))))(jax.random.key(0))
    first = env.row(state)
    np.testing.assert_array_equal(first["obs/obs"], other.obs)
    assert (first["is_first"], first["is_last"], first["reward"]) == (True, False, 0)
    step = jax.jit(step)
    for t in range(100):
        state, other, row, (obs, reward, done) = step(state, other, jax.random.key(t))
        np.testing.assert_array_equal(row["obs/obs"], obs)
        assert row["reward"] == reward
        assert row["is_last"] == row["is_terminal"] == (done == 1)
        if done:
            break
    assert 2 < t < 99, "pushed to one side, the pole falls"


def test_what_is_given_to_a_step_stays_as_it_was() -> None:
    """brax writes the numbers of the log into a dict of the state that it is given."""
    env = device_env("brax:ant")
    seen = []

    def one(key):
        state = env.init(key)
        before = dict(state[0].inner.metrics)
        env.step(state, {"action": jnp.zeros(8)}, key)
        seen.append(all(state[0].inner.metrics[name] is value for name, value in before.items()))
        return before

    jax.eval_shape(one, jax.random.key(0))
    assert seen == [True]


@pytest.mark.parametrize(
    ("name", "kwargs", "told"),
    [
        ("brax:ants", {}, "did you mean brax:ant"),
        ("brax:fast", {}, "no such env"),
        ("brax:swimmer", {}, "fluids does not work with JAX"),
        ("brax:ant", {"backend": "mujoco"}, "option backend is 'mujoco'"),
        ("brax:ant", {"backends": "mjx"}, "no option 'backends'.*backend"),
    ],
)
def test_what_cannot_be_used_says_why(name: str, kwargs: dict[str, str], told: str) -> None:
    with pytest.raises(UnusableEnv, match=told):
        make_env(EnvSpec(name, kwargs=kwargs))


@pytest.mark.slow
@pytest.mark.parametrize("name", brax.NAMES)
def test_every_env_is_a_sound_device_env(name: str) -> None:
    env = device_env(f"brax:{name}")
    check(env, name)
    assert isinstance(env, TimeLimit)


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["positional", "spring", "mjx"])
def test_every_backend_is_a_sound_device_env(backend: str) -> None:
    check(device_env(EnvSpec("brax:inverted_pendulum", kwargs={"backend": backend})), backend)
