import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from reverie.nn.dists import TwoHot
from reverie.nn.transforms import (
    SYMLOG_PIXELS,
    H,
    even_bins,
    h,
    h_inverse,
    symexp,
    symexp_bins,
    symlog,
    two_hot,
)


def test_symlog_and_symexp_match_the_reference(golden):
    g = golden("symlog_symexp")
    g.check("symlog_x", symlog(g.inputs["x"]))
    g.check("symexp_y", symexp(g.inputs["y"]))


def test_symexp_inverts_symlog():
    x = jnp.array([-1e4, -3.0, -1e-3, 0.0, 1e-3, 3.0, 1e4], jnp.float32)
    np.testing.assert_allclose(symexp(symlog(x)), x, rtol=1e-5)


@pytest.mark.parametrize("bins", [255, 41, 8])
def test_bins_match_the_reference(golden, bins):
    golden(f"twohot_symexp_{bins}").check("bins", symexp_bins(bins))


@pytest.mark.parametrize("bins", [255, 41, 8])
def test_two_hot_codes_match_the_reference(golden, bins):
    g = golden(f"twohot_symexp_{bins}")
    code = np.array(jax.jit(lambda x: two_hot(x, symexp_bins(bins)))(g.inputs["target"]))
    row, column = g.outputs["target_index"].T
    g.check("target_weight", code[row, column])
    code[row, column] = 0
    assert code.max() < 1e-5  # the reference keeps no smaller weights in its list


@pytest.mark.parametrize("bins", [255, 41, 8])
def test_bins_are_mirrored_to_the_last_bit(bins):
    values = symexp_bins(bins)
    np.testing.assert_array_equal(values, -values[::-1])


@given(st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=8), st.sampled_from([255, 41, 8]))
def test_two_hot_is_a_distribution_whose_mean_is_the_value(values, count):
    bins, x = symexp_bins(count), np.array(values, np.float32)
    code = np.asarray(two_hot(jnp.asarray(x), bins), np.float64)
    assert (code >= 0).all()
    assert ((code > 0).sum(-1) <= 2).all()
    np.testing.assert_allclose(code.sum(-1), 1, atol=1e-6)
    inside = np.abs(x) <= bins[-1]
    # Between two far bins a weight carries 24 bits of their distance.
    gap = np.diff(bins)[np.clip(np.searchsorted(bins, x) - 1, 0, count - 2)]
    assert (np.abs(code @ bins.astype(np.float64) - x)[inside] <= 1e-6 * (np.abs(x) + gap)[inside]).all()


def test_two_hot_saturates_beyond_the_last_bins():
    code = two_hot(jnp.array([-np.inf, -1e30, 1e30, np.inf], jnp.float32), symexp_bins(5))
    np.testing.assert_array_equal(code, np.eye(5, dtype=np.float32)[[0, 0, 4, 4]])


def test_squashed_pixels_stay_between_black_and_white():
    pixels = jnp.linspace(0, 1, 256)
    squashed = SYMLOG_PIXELS.to(pixels)
    np.testing.assert_allclose(squashed[jnp.array([0, 255])], [0.0, 1.0], atol=1e-6)
    np.testing.assert_allclose(squashed[15], np.log(16) / np.log(256), rtol=1e-5)  # dark shades get most of the room
    np.testing.assert_allclose(SYMLOG_PIXELS.back(squashed), pixels, atol=1e-5)


def test_even_bins_are_equally_spaced_around_zero():
    bins = even_bins(255)
    assert (bins[0], bins[127], bins[254]) == (-20, 0, 20)
    np.testing.assert_allclose(np.diff(bins), 40 / 254, rtol=1e-4)


def test_h_and_its_inverse_match_the_reference(golden):
    g = golden("value_transform_eps0.001")
    x, y = g.inputs["x"], g.inputs["y"]
    np.testing.assert_allclose(h(x), g.outputs["h_x"], rtol=1e-6, atol=1e-7)
    # The reference's own formula loses up to three digits in float32; ours may not.
    np.testing.assert_allclose(h_inverse(y), g.outputs["hinv_y"], rtol=2e-6, atol=1e-6)
    np.testing.assert_allclose(h_inverse(h(x)), x, rtol=5e-6, atol=1e-6)


@pytest.mark.parametrize("name", ["twohot_h_601bins_mg", "twohot_h_21bins_lz"])
def test_codes_of_h_match_the_reference(golden, name):
    g = golden(name)
    limit, count = g.spec["support_size"], g.spec["num_bins"]
    bins = even_bins(2 * limit + 1, limit)
    assert len(bins) == count
    code = np.asarray(two_hot(jnp.clip(H.to(g.inputs["x"]), -limit, limit), bins))
    expected = np.zeros_like(code)
    for row, index, prob in zip(expected, g.outputs["bin_index"], g.outputs["bin_prob"], strict=True):
        for i, p in zip(index, prob, strict=True):
            row[i] += p
    np.testing.assert_allclose(code, expected, atol=2e-5)
    np.testing.assert_allclose(H.back(jnp.asarray(code @ bins)), g.outputs["roundtrip"], rtol=1e-3, atol=1e-3)
    if "scalar_from_logits" in g.outputs:
        own = TwoHot(g.inputs["logits"], bins, H).pred()
        np.testing.assert_allclose(own, g.outputs["scalar_from_logits_float64_same_formula"], rtol=2e-5)
