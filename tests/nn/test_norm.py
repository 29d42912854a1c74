import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reverie.nn.norm import MANY, LayerNorm, RMSNorm, to_rows


def test_value_and_gradient_match_the_reference(golden):
    g = golden("rmsnorm")
    norm = eqx.tree_at(lambda n: n.scale, RMSNorm(8, g.spec["eps"]), g.inputs["w:n/scale"])
    y, pull = jax.vjp(norm, g.inputs["x"])
    g.check("y", y)
    g.check("grad_x", pull(g.inputs["cotangent"])[0])


def test_half_precision_is_normalised_in_full_precision():
    x = jnp.full((2, 8), 300.0, jnp.float16)  # 300^2 is beyond float16
    y = RMSNorm(8)(x)
    assert y.dtype == jnp.float16
    np.testing.assert_allclose(y.astype(jnp.float32), 1.0, rtol=1e-3)


def test_layer_norm_is_its_formula_and_keeps_the_dtype():
    x = np.random.default_rng(0).normal(3, 2, (4, 8)).astype(np.float32)
    scale, offset = np.arange(8, dtype=np.float32), np.linspace(-1, 1, 8, dtype=np.float32)
    norm = eqx.tree_at(lambda n: (n.scale, n.offset), LayerNorm(8), (jnp.asarray(scale), jnp.asarray(offset)))
    centred = x - x.mean(-1, keepdims=True)
    expected = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-3) * scale + offset
    np.testing.assert_allclose(norm(jnp.asarray(x)), expected, rtol=1e-5, atol=1e-5)
    assert LayerNorm(8)(jnp.full((2, 8), 300.0, jnp.float16)).dtype == jnp.float16
    np.testing.assert_allclose(LayerNorm(8)(jnp.full((2, 8), 300.0)), 0.0, atol=1e-4)


@pytest.mark.parametrize("shape", [(5,), (3, 5), (7, 64, 5), (0, 5), (2, 3, 4, 8, 5), (300, 300, 5), (MANY + 1, 5)])
def test_the_gradient_of_a_row_is_the_sum_of_all_rows(shape):
    vector, x = jax.random.normal(jax.random.key(0), 5), jax.random.normal(jax.random.key(1), shape)
    y, pull = jax.vjp(lambda v: to_rows(v, shape), vector)
    np.testing.assert_array_equal(y, np.broadcast_to(vector, shape))
    rows = np.asarray(x, np.float64).reshape(-1, 5)  # a sum of many is off by more
    np.testing.assert_allclose(pull(x)[0], rows.sum(0), rtol=1e-5, atol=1e-5 + 5e-8 * len(rows))
