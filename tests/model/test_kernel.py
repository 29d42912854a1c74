import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reverie.model import kernel
from reverie.model.dynamics import Design, Latent
from reverie.model.rssm import RSSM, scan
from reverie.model.stoch import Categorical

KEY = jax.random.key(0)
FLOAT32, BFLOAT16 = jnp.dtype("float32"), jnp.dtype("bfloat16")
DESIGN = Design(action=3, tokens=5, deter=16, stoch=3, kind=Categorical(classes=4, unimix=0.01), hidden=4)
B, T = 3, 6


def model(loop, design=DESIGN, first="learned"):
    """An RSSM whose biases, scales and first state are not what they begin as."""
    build = lambda: RSSM(design, recurrence="block", blocks=2, first=first, loop=loop, key=KEY)
    shapes, rng = eqx.filter_eval_shape(build), np.random.default_rng(0)
    return jax.tree.map(lambda x: jnp.asarray(rng.normal(x.ndim == 1, 0.4, x.shape), x.dtype), shapes)


def sequences(dtype=FLOAT32, length=T):
    """Start, tokens, actions and resets; episodes begin in the middle, one with the sequence."""
    rng = np.random.default_rng(1)
    start = Latent(
        jnp.asarray(rng.uniform(-1, 1, (B, 16)), dtype), jax.nn.one_hot(rng.integers(0, 4, (B, 3)), 4, dtype=dtype)
    )
    tokens = jnp.asarray(rng.normal(size=(B, length, 5)), dtype)
    actions = jnp.asarray(rng.normal(size=(B, length, 3)), jnp.float32)
    resets = jnp.zeros((B, length), bool).at[0, 2].set(True).at[1, 0].set(True).at[2, length - 1].set(True)
    return start, tokens, actions, resets


def weigh(model, start, tokens, actions, resets):
    """A sum over all that is observed, every number of it with a weight of its own; and what is observed."""
    found = model.observe(start, tokens, actions, resets, KEY)
    weights = np.random.default_rng(2)
    return sum((x * jnp.asarray(weights.normal(size=x.shape))).sum() for x in jax.tree.leaves(found)), found


@pytest.fixture(scope="module")
def both():
    """Results and gradients of the scan and of the kernel."""
    differentiate = jax.jit(jax.value_and_grad(weigh, argnums=(0, 1, 2, 3), has_aux=True))
    return [differentiate(model(loop), *sequences()) for loop in (scan, kernel.fused)]


def test_the_kernel_observes_what_the_scan_does(both):
    ((_, (expected, belief)), _), ((_, (found, same)), _) = both
    assert found.deter.shape == (B, T, 16)
    np.testing.assert_array_equal(found.stoch.argmax(-1), expected.stoch.argmax(-1))
    np.testing.assert_allclose(found.stoch, expected.stoch, atol=1e-6)
    np.testing.assert_allclose(found.deter, expected.deter, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(same, belief, rtol=1e-5, atol=1e-5)


def test_its_gradients_by_all_weights_and_inputs_are_those_of_the_scan(both):
    (_, expected), (_, found) = both
    for (path, x), y in zip(jax.tree_util.tree_leaves_with_path(expected), jax.tree.leaves(found), strict=True):
        name = jax.tree_util.keystr(path)
        assert np.any(y) != name.startswith("[0].prior"), name  # the prior is not asked here
        np.testing.assert_allclose(y, x, rtol=1e-5, atol=1e-5 * np.abs(x).max(), err_msg=name)


def test_half_precision_rounds_the_operands_of_products_alone():
    """So the kernel is about as far from float32 as a scan of bfloat16."""
    exact, _ = eqx.filter_jit(model(scan).observe)(*sequences(length=2), KEY)
    for loop in (scan, kernel.fused):
        found, _ = eqx.filter_jit(model(loop).observe)(*sequences(BFLOAT16, length=2), KEY)
        assert found.deter.dtype == found.stoch.dtype == BFLOAT16
        np.testing.assert_array_equal(found.stoch.argmax(-1), exact.stoch.argmax(-1))
        np.testing.assert_allclose(found.deter.astype(FLOAT32), exact.deter, atol=0.05)


def test_a_single_step_is_no_loop():
    """A decision is the same program in both runs, on any device."""
    decide = lambda loop: str(jax.make_jaxpr(model(loop).observe)(*sequences(length=1), KEY))
    assert decide(kernel.fused) == decide(scan)


@pytest.mark.parametrize("dtype", [FLOAT32, BFLOAT16])
def test_it_can_be_lowered_for_cuda_both_ways(dtype, monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    design = Design(action=6, tokens=64, deter=512, stoch=32, kind=Categorical(classes=4), hidden=64)  # size 1m
    dyn = jax.eval_shape(lambda: RSSM(design, recurrence="block", loop=kernel.fused, key=KEY))
    shape = jax.ShapeDtypeStruct
    start = Latent(shape((16, 512), dtype), shape((16, 32, 4), dtype))
    rows = (shape((16, 64, 64), dtype), shape((16, 64, 6), FLOAT32), shape((16, 64), bool))
    gradient = jax.jit(jax.grad(lambda *args: weigh(*args)[0].astype(FLOAT32)))
    text = gradient.trace(dyn, start, *rows).lower(lowering_platforms=("cuda",)).as_text()
    assert text.count("__gpu$xla.gpu.triton") == 2


def test_the_faster_loop_is_measured(monkeypatch):
    def loop(turns):
        def work(dyn, start, first, inputs):
            x = jax.lax.fori_loop(0, turns, lambda _, x: jnp.sin(x @ x), jnp.full((200, 200), dyn.post_out.bias[0]))
            return start, x

        return work

    def refuse(*_):
        raise jax.errors.JaxRuntimeError("no such instruction")

    dyn = model(scan)
    for fused, other, faster in ((loop(1), loop(40), True), (loop(40), loop(1), False), (refuse, scan, False)):
        monkeypatch.setattr(kernel, "fused", fused)
        monkeypatch.setattr(kernel, "scan", other)
        assert kernel.is_faster(dyn, B, T, FLOAT32) is faster
