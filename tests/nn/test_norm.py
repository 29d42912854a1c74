import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from reverie.nn.norm import RMSNorm


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
