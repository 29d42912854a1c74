import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reverie.envs.base import Space
from reverie.model.heads import FlagHead, PolicyHead, ScalarHead, sample
from reverie.nn.dists import randomness
from reverie.nn.layers import Style

KEY = jax.random.key(0)


def test_a_value_head_matches_the_reference(golden):
    g = golden("value_head")
    s, w = g.spec, g.inputs
    head = eqx.filter_eval_shape(ScalarHead, 7, s["units"], s["layers"], s["bins"], key=KEY)

    def places(h):
        linears, norms = [*h.mlp.linears, h.out], h.mlp.norms
        return [x for layer in linears for x in (layer.weight, layer.bias)] + [n.scale for n in norms]

    linears = ("mlp/linear0", "mlp/linear1", "head/logits")
    values = [w[f"w:val/{name}/{part}"] for name in linears for part in ("kernel", "bias")]
    values += [w[f"w:val/mlp/norm{i}/scale"] for i in range(2)]
    assert len(values) == len(jax.tree.leaves(head))
    head = eqx.tree_at(places, head, values)

    @jax.jit
    def run():
        dist = head(w["x"])
        return {"logits": dist.logits, "pred": dist.pred(), "loss": dist.loss(w["target"])}

    for name, value in run().items():
        g.check(name, value)


def test_a_scalar_head_starts_at_exactly_zero():
    head = eqx.filter_jit(ScalarHead)(5, 8, 2, key=KEY)
    feat = jax.random.normal(KEY, (3, 4, 5))
    np.testing.assert_array_equal(jax.jit(lambda f: head(f).pred())(feat), np.zeros((3, 4)))


def test_a_flag_head_gives_probabilities():
    prob = jax.jit(lambda x: FlagHead(5, 8, 1, key=KEY)(x).prob())(jax.random.normal(KEY, (3, 4, 5)))
    assert prob.shape == (3, 4)
    assert ((prob > 0) & (prob < 1)).all()


def test_a_policy_head_has_one_distribution_per_action():
    spaces = {
        "steer": Space("vector", (2, 1), low=(-1.0,) * 2, high=(1.0,) * 2),
        "gear": Space("discrete", (), (5,)),
        "lights": Space("discrete", (3,), (2, 2, 2)),
        "radio": Space("discrete", (2,), (2, 9)),
    }

    @jax.jit
    def run(feat):
        dists = PolicyHead(spaces, 6, 8, 2, key=KEY, unimix=0.01)(feat)
        actions = sample(dists, KEY)
        logp = {k: d.logp_of(actions[k]) for k, d in dists.items()}
        shares = {k: randomness(d) for k, d in dists.items()}
        return actions, {k: d.pred() for k, d in dists.items()}, logp, shares

    sampled, greedy, logp, shares = run(jax.random.normal(KEY, (4, 6)))
    for actions in (sampled, greedy):
        assert actions.keys() == spaces.keys()
        for key, space in spaces.items():
            assert actions[key].shape == (4, *space.shape)
            assert actions[key].dtype == space.dtype
    assert all(x.shape == (4,) for x in (*logp.values(), *shares.values()))
    # Small output weights: at first every class is about as likely as any other.
    for key in ("gear", "lights", "radio"):
        np.testing.assert_allclose(shares[key], 1, rtol=0.01)


def test_no_class_falls_below_its_share_of_the_uniform_mix():
    @jax.jit
    def logp(feat):
        spaces = {"gear": Space("discrete", (), (5,))}
        return PolicyHead(spaces, 6, 8, 2, key=KEY, unimix=0.01, scale=1e4)(feat)["gear"].logp

    least = jnp.exp(logp(jnp.ones((4, 6)))).min()
    np.testing.assert_allclose(least, 0.01 / 5, rtol=1e-4)


@pytest.mark.parametrize("kind", ["symlog_two_hot", "symlog_squared"])
def test_scalar_heads_of_every_kind_begin_at_zero(kind):
    head = eqx.filter_jit(ScalarHead)(5, 8, 2, key=KEY, kind=kind, style=Style("layer", "average"))
    feat = jax.random.normal(KEY, (3, 4, 5))
    pred, loss = jax.jit(lambda h: (h(feat).pred(), h(feat).loss(jnp.ones((3, 4)))))(head)
    assert (pred == 0).all()
    assert loss.shape == (3, 4)
    assert head.out.weight.shape[1] == (1 if kind == "symlog_squared" else 255)
