import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reverie.nn.init import truncated_normal
from reverie.nn.layers import HALF, LANES, MLP, BlockLinear, Conv, Linear, Style, convolve, product
from reverie.nn.norm import LayerNorm

KEY = jax.random.key(0)


def test_initial_weights_have_the_stated_variance_and_bounds():
    w = truncated_normal(KEY, (400, 300), 400, 0.5)
    np.testing.assert_allclose(w.std(), 0.5 / np.sqrt(400), rtol=0.02)
    np.testing.assert_allclose(w.mean(), 0, atol=2e-4)
    assert np.abs(w).max() <= 2 * 0.5 / np.sqrt(400) / 0.87962566
    np.testing.assert_array_equal(truncated_normal(KEY, (3, 2), 3, 0.0), np.zeros((3, 2)))


@pytest.mark.parametrize("backend", ["cpu", "gpu"])
def test_block_linear_is_a_block_diagonal_linear_layer(backend, monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: backend)  # the layer computes blocks differently on each
    layer = BlockLinear(6, 9, 3, key=KEY)
    dense = np.zeros((6, 9), np.float32)
    for g in range(3):
        dense[2 * g : 2 * g + 2, 3 * g : 3 * g + 3] = layer.weight[g]
    for shape in ((6,), (4, 6), (2, 4, 6)):
        x = np.asarray(jax.random.normal(KEY, shape))
        bias = np.arange(9, dtype=np.float32)
        biased = eqx.tree_at(lambda m: m.bias, layer, jnp.asarray(bias))
        np.testing.assert_allclose(biased(jnp.asarray(x)), x @ dense + bias, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("backend", ["cpu", "gpu"])
@pytest.mark.parametrize("batch", [(), (3,), (2, 3), (2, 3, 4)])
def test_a_product_over_any_axes_and_its_gradients_are_those_of_numpy(batch, backend, monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    x, weight, seen = (
        jax.random.normal(jax.random.key(i), s) for i, s in enumerate([(*batch, 5), (5, 7), (*batch, 7)])
    )
    out, pull = jax.vjp(product, x, weight)
    by_x, by_weight = pull(seen)
    np.testing.assert_allclose(out, np.asarray(x) @ np.asarray(weight), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(by_x, np.asarray(seen) @ np.asarray(weight).T, rtol=1e-5, atol=1e-5)
    rows, gradients = np.asarray(x).reshape(-1, 5), np.asarray(seen).reshape(-1, 7)
    np.testing.assert_allclose(by_weight, rows.T @ gradients, rtol=1e-5, atol=1e-5)
    assert product(x.astype(jnp.bfloat16), weight).dtype == jnp.bfloat16


@pytest.mark.parametrize("batch", [(), (3,), (2, 3)])
def test_half_products_round_what_they_multiply_and_nothing_else(batch):
    x, weight, seen = (
        jax.random.normal(jax.random.key(i), s) for i, s in enumerate([(*batch, 5), (5, 7), (*batch, 7)])
    )
    with jax.default_matmul_precision(HALF):
        out, pull = jax.vjp(product, x, weight)
        by_x, by_weight = pull(seen)
    half = lambda x: np.asarray(x.astype(jnp.bfloat16).astype(jnp.float32))
    assert {a.dtype for a in (out, by_x, by_weight)} == {np.dtype("float32")}
    np.testing.assert_allclose(out, half(x) @ half(weight), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(by_x, half(seen) @ half(weight).T, rtol=1e-5, atol=1e-5)
    rows, gradients = np.asarray(x).reshape(-1, 5), np.asarray(seen).reshape(-1, 7)
    np.testing.assert_allclose(by_weight, rows.T @ gradients, rtol=1e-5, atol=1e-5)
    assert np.abs(out - np.asarray(x) @ np.asarray(weight)).max() > 1e-4, "nothing was rounded"


def test_blocks_start_with_the_fan_in_of_the_whole_input():
    layer = BlockLinear(800, 800, 8, key=KEY)
    np.testing.assert_allclose(layer.weight.std(), 1 / np.sqrt(800), rtol=0.02)


def test_widths_that_blocks_do_not_divide_are_refused():
    with pytest.raises(ValueError, match=r"7 inputs and 9 outputs .* 3 blocks"):
        BlockLinear(7, 9, 3, key=KEY)


@pytest.mark.parametrize("backend", ["cpu", "gpu"])
@pytest.mark.parametrize(
    ("kernel", "inputs", "outputs"), [(3, 3, 4), (5, 3, 4), (5, 3, LANES + 1), (5, LANES, LANES), (5, LANES, LANES + 1)]
)
def test_shortcuts_through_convolutions_give_the_same_numbers(kernel, inputs, outputs, backend, monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    conv = eqx.filter_jit(Conv)(inputs, outputs, kernel, key=KEY)
    conv = eqx.tree_at(lambda c: c.bias, conv, jnp.arange(float(outputs)))
    x = jax.random.normal(KEY, (2, 6, 8, inputs))

    full = conv(x)
    pooled = full.reshape(2, 3, 2, 4, 2, outputs).max((2, 4))
    np.testing.assert_allclose(jax.jit(lambda x: conv.pooled(x))(x), pooled, rtol=1e-5, atol=1e-5)

    repeated = jnp.repeat(jnp.repeat(x, 2, 1), 2, 2)
    upsampled = jax.jit(lambda x: conv.upsampled(x))(x)
    np.testing.assert_allclose(upsampled, conv(repeated), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("batch", [(), (2,), (2, 3)])
def test_layers_take_any_batch_shape_and_keep_the_dtype_of_their_input(batch, dtype):
    for make, inputs, outputs in (
        (lambda: Linear(6, 4, key=KEY), (6,), (4,)),
        (lambda: BlockLinear(6, 4, 2, key=KEY), (6,), (4,)),
        (lambda: MLP(6, 4, 2, key=KEY), (6,), (4,)),
        (lambda: Conv(3, 4, 5, key=KEY), (8, 6, 3), (8, 6, 4)),
    ):
        layer = jax.eval_shape(make)
        out = jax.eval_shape(lambda m, x: m(x), layer, jax.ShapeDtypeStruct((*batch, *inputs), dtype))
        assert out.shape == (*batch, *outputs)
        assert out.dtype == dtype
        assert all(p.dtype == jnp.float32 for p in jax.tree.leaves(layer))


@pytest.mark.parametrize("kernel", [3, 4, 5])
def test_strides_and_their_mirror_are_what_jax_computes(kernel):
    conv = eqx.filter_jit(Conv)(3, 4, kernel, key=KEY)
    conv = eqx.tree_at(lambda c: c.bias, conv, jnp.arange(4.0))
    x = jax.random.normal(KEY, (2, 8, 6, 3))
    numbers = ("NHWC", "HWIO", "NHWC")
    down = jax.lax.conv_general_dilated(x, conv.weight, (2, 2), "SAME", dimension_numbers=numbers)
    up = jax.lax.conv_transpose(x, conv.weight, (2, 2), "SAME", dimension_numbers=numbers)
    bias = conv.bias.reshape(1, 1, 1, 4)
    np.testing.assert_allclose(jax.jit(lambda x: conv.strided(x))(x), down + bias, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(jax.jit(lambda x: conv.transposed(x))(x), up + bias, rtol=1e-5, atol=1e-5)
    assert (down.shape, up.shape) == ((2, 4, 3, 4), (2, 16, 12, 4))


def test_a_style_decides_on_norms_biases_and_initial_weights():
    style = Style("layer", "average")
    mlp = eqx.filter_jit(MLP)(100, 300, 2, key=KEY, style=style)
    assert [x.bias for x in mlp.linears] == [None, None]
    assert all(isinstance(norm, LayerNorm) for norm in mlp.norms)
    np.testing.assert_allclose(mlp.linears[0].weight.std(), 1 / np.sqrt(200), rtol=0.02)
    conv = Conv(10, 30, 4, key=KEY, bias=style.bias, style=style)
    assert conv.bias is None
    np.testing.assert_allclose(conv.weight.std(), 1 / np.sqrt(16 * 20), rtol=0.02)
    last = Linear(100, 300, key=KEY, style=style)  # no norm behind it: it keeps its bias
    assert last.bias.shape == (300,)


@pytest.mark.parametrize("kernel", [4, 5, 6])
def test_convolutions_without_padding_and_their_mirror(kernel):
    conv = Conv(2, 3, kernel, key=KEY)
    conv = eqx.tree_at(lambda c: c.bias, conv, jnp.arange(3.0))
    x, w = np.asarray(jax.random.normal(KEY, (1, 7, 8, 2))), np.asarray(conv.weight)
    found = conv.strided_inside(jnp.asarray(x))
    expected = np.zeros((1, (7 - kernel) // 2 + 1, (8 - kernel) // 2 + 1, 3))
    for i, j in np.ndindex(expected.shape[1:3]):
        patch = x[0, 2 * i : 2 * i + kernel, 2 * j : 2 * j + kernel]
        expected[0, i, j] = np.einsum("hwi,hwio->o", patch, w) + np.arange(3)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)

    spread = np.zeros((1, 2 * 6 + kernel, 2 * 7 + kernel, 3)) + np.arange(3)
    for i, j in np.ndindex(7, 8):
        spread[0, 2 * i : 2 * i + kernel, 2 * j : 2 * j + kernel] += np.einsum("i,hwio->hwo", x[0, i, j], w)
    np.testing.assert_allclose(conv.spread(jnp.asarray(x)), spread, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("backend", ["cpu", "gpu"])
def test_a_convolution_has_the_gradient_of_jax(backend, monkeypatch):
    """On the CPU its operands are computed before they are copied to other axes; without a gradient nothing is."""
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    x, kernel = jax.random.normal(KEY, (6, 8, 8, 3)), jax.random.normal(KEY, (5, 5, 3, 4))
    ours = lambda x, kernel: (convolve(jax.nn.silu(x), kernel) ** 2).sum()
    dimensions = ("NHWC", "HWIO", "NHWC")
    theirs = lambda x, kernel: (
        jax.lax.conv_general_dilated(jax.nn.silu(x), kernel, (1, 1), "SAME", dimension_numbers=dimensions) ** 2
    ).sum()
    for mine, other in zip(jax.grad(ours, (0, 1))(x, kernel), jax.grad(theirs, (0, 1))(x, kernel), strict=True):
        np.testing.assert_allclose(mine, other, rtol=1e-4, atol=1e-4)
    gradient = jax.jit(jax.grad(ours, (0, 1))).lower(x, kernel).compile().as_text()
    assert ("conditional" in gradient) == (backend == "cpu")
    assert "conditional" not in jax.jit(ours).lower(x, kernel).compile().as_text()
