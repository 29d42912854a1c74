import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from reverie.behavior.returns import ReturnScale, lambda_return


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
