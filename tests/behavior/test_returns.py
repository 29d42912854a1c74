from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from reverie.behavior.returns import ReturnScale, lambda_return, n_step_return


def test_imagined_returns_match_the_reference(golden):
    g = golden("lambda_return_imagination")
    x = g.inputs
    # The discount is inside the continue probability, term = 1 - con; no imagined episode is cut.
    np.testing.assert_array_equal(x["last"], 0)
    carry_on = jnp.full_like(x["rew"], g.spec["lam"])
    g.check("ret", lambda_return(x["rew"], g.spec["disc"] * (1 - x["term"]), carry_on, x["boot"]))


def test_replayed_returns_match_the_reference(golden):
    g = golden("lambda_return_replay")
    x = g.inputs
    last, term = x["last"].astype(jnp.float32), x["term"].astype(jnp.float32)
    assert (last > term).any()  # a truncation
    g.check(
        "ret",
        lambda_return(x["rew"], g.spec["disc"] * (1 - term), g.spec["lam"] * (1 - last), x["boot"]),
    )


def test_returns_by_hand():
    def row(*xs):
        return jnp.array([xs], jnp.float32)

    reward, value = row(9, 1, 2, 4), row(9, 10, 20, 30)
    everywhere = jnp.full((1, 4), 0.5)
    # R2 = 4 + 1/2 * 30 = 19;  R1 = 2 + 1/2 (1/2 * 20 + 1/2 * 19) = 11.75
    # R0 = 1 + 1/2 (1/2 * 10 + 1/2 * 11.75) = 6.4375
    np.testing.assert_allclose(lambda_return(reward, everywhere, everywhere, value), row(6.4375, 11.75, 19.0))
    # The world ends at 2: nothing after it counts.
    ended = lambda_return(reward, row(0.5, 0.5, 0, 0.5), row(0.5, 0.5, 0, 0.5), value)
    np.testing.assert_allclose(ended[:, :2], row(1 + 0.5 * (5 + 1), 2.0))
    # The episode is only cut at 2: its value stands for what would have come.
    cut = lambda_return(reward, everywhere, row(0.5, 0.5, 0, 0.5), value)
    np.testing.assert_allclose(cut[:, :2], row(1 + 0.5 * (5 + 6), 2 + 0.5 * 20))


@given(st.integers(0, 2**31 - 1), st.floats(0, 1, width=32), st.floats(0, 1, width=32))
def test_returns_obey_the_recursion(seed, gamma, lam):
    rng = np.random.default_rng(seed)
    reward, value = rng.normal(size=(2, 2, 5)).astype(np.float32)
    discount = gamma * (rng.random((2, 5)) > 0.2).astype(np.float32)
    carry_on = lam * (rng.random((2, 5)) > 0.2).astype(np.float32)
    found = jax.jit(lambda_return)(*map(jnp.asarray, (reward, discount, carry_on, value)))
    later, expected = value[:, -1], []
    for t in (4, 3, 2, 1):
        later = reward[:, t] + discount[:, t] * ((1 - carry_on[:, t]) * value[:, t] + carry_on[:, t] * later)
        expected.append(later)
    np.testing.assert_allclose(found, np.stack(expected[::-1], 1), rtol=1e-4, atol=1e-5)


def generalized_advantage(reward, discount, carry_on, value):
    """What `dream_ppo` learns from: the lambda-return less the value."""
    return lambda_return(reward, discount, carry_on, value) - value[:, :-1]


def test_advantages_by_hand():
    def row(*xs):
        return jnp.array([xs], jnp.float32)

    def advantage(discount, carry_on):
        return generalized_advantage(row(9, 1, 2, 4), discount, carry_on, row(5, 10, 20, 30))

    half = row(0.5, 0.5, 0.5, 0.5)
    # Errors of one step: 1 + 5 - 5 = 1;  2 + 10 - 10 = 2;  4 + 15 - 20 = -1.
    np.testing.assert_allclose(advantage(half, row(0, 0, 0, 0)), row(1, 2, -1))
    # Lambda 1: what was gained until the bootstrap, less the value. 4 + 15 = 19;  2 + 9.5 = 11.5;  1 + 5.75 = 6.75.
    np.testing.assert_allclose(advantage(half, row(1, 1, 1, 1)), row(6.75 - 5, 11.5 - 10, 19 - 20))
    # Lambda 1/2: A2 = -1;  A1 = 2 + 1/4 (-1) = 1.75;  A0 = 1 + 1/4 (1.75) = 1.4375.
    np.testing.assert_allclose(advantage(half, half), row(1.4375, 1.75, -1))
    # The world ends at 2: nothing after it counts. 2 - 10 = -8;  1 + 5 - 5 + 1/4 (-8) = -1.
    np.testing.assert_allclose(advantage(row(0.5, 0.5, 0, 0.5), half)[:, :2], row(-1, -8))


@given(st.integers(0, 2**31 - 1), st.floats(0, 1, width=32), st.floats(0, 1, width=32))
def test_advantages_are_the_sum_of_all_later_errors(seed, gamma, lam):
    rng = np.random.default_rng(seed)
    reward, value = rng.normal(size=(2, 2, 5)).astype(np.float32)
    discount = gamma * (rng.random((2, 5)) > 0.2).astype(np.float32)
    carry_on = lam * (rng.random((2, 5)) > 0.2).astype(np.float32)
    found = jax.jit(generalized_advantage)(*map(jnp.asarray, (reward, discount, carry_on, value)))
    expected = np.zeros((2, 4))
    for t in range(4):
        weight = np.ones(2)
        for later in range(t, 4):
            error = reward[:, later + 1] + discount[:, later + 1] * value[:, later + 1] - value[:, later]
            expected[:, t] += weight * error
            weight = weight * discount[:, later + 1] * carry_on[:, later + 1]
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_the_return_scale_matches_the_reference(golden):
    g = golden("retnorm_default")
    s = g.spec
    scale, seen = ReturnScale(), []
    update = jax.jit(lambda scale, x: scale.update(x, s["rate"], (s["perclo"], s["perchi"])))
    for x in g.inputs["x"]:
        scale = update(scale, x)
        seen.append((scale.low, scale.scale(s["limit"])))
    offsets, scales = zip(*seen, strict=True)
    g.check("offset", np.stack(offsets))
    g.check("scale", np.stack(scales))
    assert (np.stack(scales) > s["limit"]).any()


def test_the_default_return_scale_is_the_reference_default(golden):
    g = golden("retnorm_default")
    scale = ReturnScale()
    for x in g.inputs["x"]:
        scale = scale.update(x)
    np.testing.assert_allclose(scale.scale(), g.outputs["scale"][-1], rtol=1e-5)


EPISODES = sorted(path.stem for path in (Path(__file__).parents[1] / "golden/muzero").glob("nstep_*.json"))


def windows(g, value="root_values", beyond=7.0):
    """Every position of a recorded episode as the first of a window; rows beyond its end are of another."""
    x, spec = g.inputs, g.spec
    length, more = len(x["reward_history"]), spec["num_unroll_steps"] + spec["td_steps"] + 1
    rows = {
        "reward": jnp.concatenate([x["reward_history"], jnp.full(more, beyond)]),
        "value": jnp.concatenate([x[value], jnp.full(more + 1, beyond)]),
        "player": jnp.concatenate([x["to_play_history"], jnp.zeros(more, jnp.int32)]).astype(jnp.int8),
        "last": jnp.arange(length + more) == length - 1,
    }
    return {k: jnp.stack([v[t : t + more] for t in range(length - 1)]) for k, v in rows.items()}


@pytest.mark.parametrize("name", EPISODES)
def test_n_step_targets_match_the_reference(golden, name):
    g = golden(name)
    reanalysed = "reanalysed_root_values"
    rows = windows(g, reanalysed if reanalysed in g.inputs else "root_values")
    found = n_step_return(
        rows["reward"],
        rows["last"],
        rows["last"],
        rows["value"],
        unroll=g.spec["num_unroll_steps"],
        steps=g.spec["td_steps"],
        discount=g.spec["discount"],
        player=rows["player"],
    )
    g.check("unroll_target_value", found.value)
    g.check("unroll_target_reward", found.reward)
    assert found.known.all()
    ended = jnp.cumsum(rows["last"], 1)[:, : found.real.shape[1]] > 0
    np.testing.assert_array_equal(found.real, ~ended)
    turned = np.diff(rows["player"], axis=1)[:, : found.real.shape[1] - 1] != 0
    np.testing.assert_array_equal(found.player_changes, np.pad(turned, ((0, 0), (1, 0))))


def test_an_episode_that_is_only_cut_bootstraps_from_its_last_row():
    def row(*xs):
        return jnp.array([xs])

    reward, value = row(9.0, 1, 2, 4, 8, 16, 32), row(1.0, 10, 20, 30, 40, 50, 60)
    last = row(False, False, True, False, False, False, False)
    found = n_step_return(reward, last, last & False, value, unroll=3, steps=3, discount=0.5)
    #  row 0: 1 + 2/2 + 20/4    row 1: 2 + 20/2    row 2: its own value    row 3: of another episode
    np.testing.assert_allclose(found.value[0, :3], [7.0, 12.0, 20.0])
    np.testing.assert_array_equal(found.known, row(True, True, True, False))
    np.testing.assert_array_equal(found.real, row(True, True, True, False))
    np.testing.assert_array_equal(found.same_episode, row(True, True, False))
    # A life is lost at row 2 and the env plays on: the value ends, and what follows is absorbed.
    ended = n_step_return(reward, last & False, last, value, unroll=3, steps=3, discount=0.5)
    np.testing.assert_allclose(ended.value, row(2.0, 2.0, 0.0, 0.0))
    np.testing.assert_allclose(ended.reward, row(9.0, 1.0, 2.0, 0.0))
    assert ended.known.all()
    np.testing.assert_array_equal(ended.real, row(True, True, False, False))
    np.testing.assert_array_equal(ended.same_episode, row(True, True, False))


def test_returns_can_be_mixed_and_shortened():
    rng = np.random.default_rng(0)
    reward, value = rng.normal(size=(2, 2, 6)).astype(np.float32)
    none = jnp.zeros((2, 6), bool)
    plain = {
        n: n_step_return(jnp.asarray(reward), none, none, jnp.asarray(value), unroll=0, steps=n, discount=0.9).value
        for n in (1, 2, 3)
    }
    mixed = n_step_return(jnp.asarray(reward), none, none, jnp.asarray(value), unroll=0, steps=3, discount=0.9, lam=0.5)
    np.testing.assert_allclose(mixed.value, 0.5 * plain[1] + 0.25 * plain[2] + 0.25 * plain[3], rtol=1e-5)
    fewer = n_step_return(
        jnp.asarray(reward), none, none, jnp.asarray(value), unroll=0, steps=3, discount=0.9, fewer=jnp.array([1, 3])
    )
    np.testing.assert_allclose(fewer.value[:, 0], [plain[1][0, 0], plain[3][1, 0]], rtol=1e-6)
