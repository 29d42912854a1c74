"""Craftax beside itself: our rows are what the package says, and the clock truncates."""

from __future__ import annotations

from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reverie.envs.base import Space
from reverie.envs.build import device_env, make_env
from reverie.envs.device_wrappers import TimeLimit, check
from reverie.envs.spec import UnusableEnv

pytest.importorskip("craftax", reason="pip install reverie[craftax]")

from reverie.envs import craftax


@pytest.fixture(autouse=True)
def promotion() -> Iterator[None]:
    """The package adds arrays of different ranks, which our own code may not."""
    with jax.numpy_rank_promotion("allow"):
        yield


CLASSIC = "craftax:Craftax-Classic-Symbolic-v1"


def test_classic_is_a_sound_device_env_with_a_clock_of_our_own() -> None:
    env = device_env(CLASSIC)
    check(env, CLASSIC)
    assert isinstance(env, TimeLimit)
    assert env.limit == 10_000
    assert env.obs_space == {"obs": Space("vector", (1345,))}
    assert env.act_space == {"action": Space("discrete", (), (17,))}


@pytest.mark.parametrize("name", ["Craftax-Clasic-Symbolic-v1", "Craftax-Classic-Symbolic-AutoReset-v1", "classic"])
def test_a_wrong_id_names_the_nearest(name: str) -> None:
    with pytest.raises(UnusableEnv, match=r"did you mean .*craftax:Craftax-Classic-Symbolic-v1"):
        make_env(f"craftax:{name}")


@pytest.mark.slow
def test_the_rows_are_those_of_the_package() -> None:
    env = device_env(CLASSIC)
    theirs = craftax.make_craftax_env_from_name("Craftax-Classic-Symbolic-v1", auto_reset=False)
    params = theirs.default_params
    state, (obs, inner) = jax.jit(env.init)(jax.random.key(3)), jax.jit(theirs.reset_env)(jax.random.key(3), params)
    np.testing.assert_allclose(env.row(state)["obs/obs"], obs, atol=1e-6)
    step, their_step, rng = jax.jit(env.step), jax.jit(theirs.step_env), np.random.default_rng(0)
    rewards = []
    for t in range(300):
        key, action = jax.random.key(t), jnp.int32(rng.integers(17))
        state = step(state, {"action": action}, key)
        obs, inner, reward, done, _ = their_step(key, inner, action, params)
        row = env.row(state)
        np.testing.assert_allclose(row["obs/obs"], obs, atol=1e-6)
        np.testing.assert_allclose(row["reward"], reward, atol=1e-6)
        assert (row["is_last"], row["is_terminal"]) == (done, done)
        rewards.append(float(reward))
        if done:
            break
    assert len(set(rewards)) > 1, "something was achieved"

    # Both at the last step of the clock, alive: the package says done, ours says only that time is up.
    old = inner.replace(timestep=jnp.int32(params.max_timesteps - 1), player_health=jnp.int32(9))
    *_, done, _ = their_step(jax.random.key(0), old, jnp.int32(0), params)
    task, _ = state
    late = env.row(step((task._replace(inner=old), jnp.int32(9_999)), {"action": jnp.int32(0)}, jax.random.key(0)))
    assert (bool(done), bool(late["is_last"]), bool(late["is_terminal"])) == (True, True, False)
    dead = old.replace(player_health=jnp.int32(0), player_food=jnp.int32(0))
    last = env.row(step((task._replace(inner=dead), jnp.int32(5)), {"action": jnp.int32(0)}, jax.random.key(0)))
    assert last["is_terminal"]


@pytest.mark.slow
def test_pixels_are_images() -> None:
    """The first time after it was installed, the package draws its textures for a minute."""
    env = device_env("craftax:Craftax-Classic-Pixels-v1")
    assert env.obs_space == {"image": Space("image", (63, 63, 3))}
    row = env.row(jax.jit(env.init)(jax.random.key(0)))
    assert row["obs/image"].dtype == np.uint8
    assert row["obs/image"].max() > 100
