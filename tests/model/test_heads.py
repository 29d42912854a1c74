import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from reverie.envs.base import Space
from reverie.model.heads import FlagHead, PolicyHead, ScalarHead, sample

KEY = jax.random.key(0)


def test_a_value_head_matches_the_reference(golden):
    g = golden("value_head")
    s, w = g.spec, g.inputs
    head = ScalarHead(7, s["units"], s["layers"], s["bins"], key=KEY)

    def places(h):
        linears, norms = [*h.mlp.linears, h.out], h.mlp.norms
        return [x for layer in linears for x in (layer.weight, layer.bias)] + [n.scale for n in norms]

    linears = ("mlp/linear0", "mlp/linear1", "head/logits")
    values = [w[f"w:val/{name}/{part}"] for name in linears for part in ("kernel", "bias")]
    values += [w[f"w:val/mlp/norm{i}/scale"] for i in range(2)]
    assert len(values) == len(jax.tree.leaves(head))
    dist = eqx.tree_at(places, head, values)(w["x"])
    g.check("logits", dist.logits)
    g.check("pred", dist.pred())
    g.check("loss", dist.loss(w["target"]))


def test_a_scalar_head_starts_at_exactly_zero():
    head = ScalarHead(5, 8, 2, key=KEY)
    feat = jax.random.normal(KEY, (3, 4, 5))
    np.testing.assert_array_equal(jax.jit(lambda f: head(f).pred())(feat), np.zeros((3, 4)))


def test_a_flag_head_gives_probabilities():
    prob = FlagHead(5, 8, 1, key=KEY)(jax.random.normal(KEY, (3, 4, 5))).prob()
    assert prob.shape == (3, 4)
    assert ((0 < prob) & (prob < 1)).all()


def test_a_policy_head_has_one_distribution_per_action():
    spaces = {
        "steer": Space("vector", (2, 1), low=(-1.0,) * 2, high=(1.0,) * 2),
        "gear": Space("discrete", (), (5,)),
        "lights": Space("discrete", (3,), (2, 2, 2)),
        "radio": Space("discrete", (2,), (2, 9)),
    }
    head = PolicyHead(spaces, 6, 8, 2, key=KEY, unimix=0.01)
    dists = head(jax.random.normal(KEY, (4, 6)))
    assert dists.keys() == spaces.keys()
    actions = sample(dists, KEY)
    for key, space in spaces.items():
        assert actions[key].shape == (4, *space.shape)
        assert actions[key].dtype == space.dtype
        assert dists[key].pred().shape == (4, *space.shape)
        assert dists[key].logp_of(actions[key]).shape == dists[key].entropy().shape == (4,)
    # Small output weights: at first every action is about as likely as any other.
    for key in ("gear", "lights", "radio"):
        np.testing.assert_allclose(dists[key].entropy(), dists[key].max_entropy(), rtol=0.01)
    # 1 % of uniform is mixed in, as the papers say: no class falls below it.
    far = PolicyHead({"gear": spaces["gear"]}, 6, 8, 2, key=KEY, unimix=0.01, scale=1e4)
    assert (jnp.exp(far(jnp.ones((4, 6)))["gear"].logp) >= 0.01 / 5 - 1e-7).all()
