import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from reverie.envs.base import Space
from reverie.model.encode import Coding, Encoder, flat, squash_of, width
from reverie.nn.transforms import symlog

KEY = jax.random.key(0)


def IMAGE(side, channels=3):
    return Space("image", (side, side, channels))


def test_tokens_match_the_reference(golden):
    g = golden("encoder_image_vector")
    s, w = g.spec, g.inputs
    encoder = eqx.filter_eval_shape(
        Encoder,
        {"image": IMAGE(16), "vec": Space("vector", (4,))},
        Coding(s["units"], s["layers"], tuple(s["depth"] * m for m in s["mults"]), s["kernel"]),
        key=KEY,
    )

    def places(e):
        layers = [*e.mlp.linears, *e.convs]
        norms = [*e.mlp.norms, *e.norms]
        return [x for a, b in zip(layers, norms, strict=True) for x in (a.weight, a.bias, b.scale)]

    values = [
        w[f"w:enc/{path}"]
        for name in ("mlp0", "mlp1", "cnn0", "cnn1")
        for path in (f"{name}/kernel", f"{name}/bias", f"{name}norm/scale")
    ]
    assert len(values) == len(jax.tree.leaves(encoder))
    encoder = eqx.tree_at(places, encoder, values)
    obs = {"image": w["image"].astype(jnp.uint8), "vec": w["vec"]}
    tokens = jax.jit(lambda obs: encoder(obs, jnp.dtype("float32")))(obs)
    g.check("tokens", tokens)
    assert encoder.outputs == tokens.shape[-1]


def test_flat_codes_sort_keys_and_one_hot_discrete_values():
    spaces = {
        "b": Space("vector", (2, 2)),
        "a": Space("discrete", (2,), (2, 3)),
        "c": Space("discrete", (), (4,)),
        "d": Space("vector", ()),
    }
    values = {
        "a": jnp.array([[1, 2], [0, 0]], jnp.int32),
        "b": jnp.array([[[1.0, 2.0], [3.0, -4.0]]] * 2),
        "c": jnp.array([3, 0], jnp.int32),
        "d": jnp.array([9.0, 8.0]),
    }
    code = flat(spaces, values)
    np.testing.assert_array_equal(code[0], [0, 1, 0, 0, 1, 1, 2, 3, -4, 0, 0, 0, 1, 9])
    np.testing.assert_array_equal(code[1], [1, 0, 1, 0, 0, 1, 2, 3, -4, 1, 0, 0, 0, 8])
    assert code.shape[-1] == width(spaces)
    squashed = flat(spaces, values, squash=True)
    np.testing.assert_allclose(squashed[0, 5:9], symlog(code[0, 5:9]), rtol=1e-6)
    np.testing.assert_array_equal(squashed[0, :5], code[0, :5])
    one = flat({"c": spaces["c"]}, {"c": jnp.full((5, 7), 2, jnp.int32)})
    assert one.shape == (5, 7, 4)


def test_several_images_are_stacked_and_every_space_has_a_say():
    spaces = {
        "left": IMAGE(24),
        "right": IMAGE(24, 1),
        "speed": Space("vector", ()),
        "map": Space("vector", (2, 3)),
        "mode": Space("discrete", (2,), (2, 3)),
    }
    encoder = eqx.filter_jit(Encoder)(spaces, Coding(8, 1, depths=(2, 4), kernel=5), key=KEY)
    obs = {
        "left": jnp.zeros((2, 24, 24, 3), jnp.uint8),
        "right": jnp.zeros((2, 24, 24, 1), jnp.uint8),
        "speed": jnp.zeros(2),
        "map": jnp.zeros((2, 2, 3)),
        "mode": jnp.zeros((2, 2), jnp.int32),
    }
    run = jax.jit(lambda obs: encoder(obs, jnp.dtype("float32")))
    tokens = run(obs)
    assert tokens.shape == (2, 8 + 6 * 6 * 4) == (2, encoder.outputs)
    for key, value in obs.items():
        moved = run(obs | {key: value.at[0].add(1)})
        assert np.abs(moved[0] - tokens[0]).max() > 0, key
        np.testing.assert_array_equal(moved[1], tokens[1])


def test_tokens_have_the_compute_dtype():
    spaces = {"image": IMAGE(24), "x": Space("vector", (3,))}
    obs = {"image": jnp.zeros((2, 24, 24, 3), jnp.uint8), "x": jnp.zeros((2, 3))}

    def run(obs):
        encoder = Encoder(spaces, Coding(8, 1, depths=(2, 4), kernel=5), key=KEY)
        return encoder(obs, jnp.dtype("bfloat16"))

    assert jax.eval_shape(run, obs).dtype == jnp.bfloat16


def test_strides_halve_an_image_until_it_is_four_pixels_wide():
    spaces = {"image": IMAGE(32)}
    encoder = eqx.filter_eval_shape(
        Encoder, spaces, Coding(8, 1, depths=(2, 4, 8), kernel=4, convolutions="stride"), key=KEY
    )
    obs = {"image": jnp.zeros((2, 32, 32, 3), jnp.uint8)}
    tokens = jax.eval_shape(lambda e: e(obs, jnp.dtype("float32")), encoder)
    assert tokens.shape == (2, 4 * 4 * 8) == (2, encoder.outputs)


def test_networks_see_vectors_at_the_scale_of_their_space_and_decode_them_in_its_units():
    space = Space("vector", (2,), center=(5000.0, 0.0), spread=(0.5, 0.07))
    value = jnp.array([[5001.0, 0.14], [4999.5, -0.07]])
    expected = np.array([[2, 2], [-1, -1]])
    np.testing.assert_allclose(flat({"x": space}, {"x": value}), expected, rtol=1e-4)
    squashed = flat({"x": space}, {"x": value}, squash=True)
    np.testing.assert_allclose(squashed, np.sign(expected) * np.log1p(abs(expected)), rtol=1e-4)
    for symlog_vectors in (False, True):
        squash = squash_of(space, symlog_vectors)
        np.testing.assert_allclose(squash.back(squash.to(value)), value, rtol=1e-5)
    assert squash_of(Space("vector", (2,)), symlog_vectors=False) is None


def test_vectors_and_brightness_are_squashed_or_not():
    spaces = {"image": IMAGE(12), "x": Space("vector", (1,))}
    make, coding = eqx.filter_jit(Encoder), Coding(4, 1, depths=(2, 2), kernel=3)
    plain = make(spaces, coding, key=KEY)
    squashed = make(spaces, coding._replace(symlog_images=True, symlog_vectors=False), key=KEY)

    @jax.jit
    def run(encoder, gray, x):
        obs = {"image": jnp.full((1, 12, 12, 3), gray).astype(jnp.uint8), "x": jnp.full((1, 1), x)}
        tokens = encoder(obs, jnp.dtype("float32"))[0]
        return tokens[:4], tokens[4:]

    for gray, same in ((0, True), (15, False), (255, True)):
        a, b = run(plain, gray, 0.0)[1], run(squashed, gray, 0.0)[1]
        assert np.allclose(a, b, atol=1e-5) == same, gray
    np.testing.assert_allclose(run(plain, 0, 9.0)[0], run(squashed, 0, np.log(10.0))[0], rtol=1e-4)
