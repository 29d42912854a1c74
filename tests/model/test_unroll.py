import jax
import jax.numpy as jnp
import numpy as np
from planners import BOARD, VECTOR, small_agent

from reverie.model.unroll import unit_normal, unit_range

KEY = jax.random.key(0)


def test_hidden_states_have_the_scale_that_was_asked_for():
    x = 5 + jax.random.normal(KEY, (4, 3, 3, 2))
    ranged, normal = unit_range(x, 3), unit_normal(x, 3)
    np.testing.assert_allclose([ranged.min((1, 2, 3)), ranged.max((1, 2, 3))], [[0] * 4, [1] * 4], atol=1e-6)
    np.testing.assert_allclose(normal.mean((1, 2, 3)), 0, atol=1e-5)
    np.testing.assert_allclose(normal.std((1, 2, 3)), 1, rtol=1e-4)
    for network, seen in (("mlp", VECTOR), ("tower", BOARD)):
        model = small_agent("muzero", seen, network=network, scaling="normal").make_model(KEY)
        rows = {k: jnp.ones((2, *s.shape), s.dtype) for k, s in seen.items() if k in ("vector", "board")}
        root = model.represent(rows)
        axes = tuple(range(1, root.state.ndim))
        for state in (root.state, model.advance(root, jnp.array([0, 1])).state):
            np.testing.assert_allclose(state.std(axes), 1, rtol=1e-3)
