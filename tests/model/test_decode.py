import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from reverie.envs.base import Space
from reverie.model.decode import Decoder, paint
from reverie.model.encode import Coding
from reverie.nn.dists import Gaussian, SquaredError
from reverie.nn.layers import Conv, Style

KEY = jax.random.key(0)


def test_images_and_vectors_match_the_reference(golden):
    g = golden("decoder_image_vector")
    s, w = g.spec, g.inputs
    decoder = eqx.filter_eval_shape(
        Decoder,
        {"image": Space("image", (16, 16, 3)), "vec": Space("vector", (4,))},
        Coding(s["units"], s["layers"], tuple(s["depth"] * m for m in s["mults"]), s["kernel"]),
        deter=8,
        stoch=6,
        blocks=s["bspace"],
        key=KEY,
    )

    def places(d):
        image = d.image
        linears = [
            *d.mlp.linears,
            d.heads["vec"],
            image.from_deter,
            image.from_stoch,
            image.to_map,
            *image.convs,
        ]
        norms = [*d.mlp.norms, image.stoch_norm, image.map_norm, *image.norms]
        return [x for layer in linears for x in (layer.weight, layer.bias)] + [n.scale for n in norms]

    linears = ("mlp/linear0", "mlp/linear1", "vec/vec/pred", "sp0", "sp1", "sp2", "conv0", "imgout")
    norms = ("mlp/norm0", "mlp/norm1", "sp1norm", "spnorm", "conv0norm")
    values = [w[f"w:dec/{name}/{part}"] for name in linears for part in ("kernel", "bias")]
    values += [w[f"w:dec/{name}/scale"] for name in norms]
    assert len(values) == len(jax.tree.leaves(decoder))
    decoder = eqx.tree_at(places, decoder, values)

    @jax.jit
    def run():
        dists = decoder(w["deter"], w["stoch"].reshape(1, 2, 6))
        return {
            "image_pred": dists["image"].mean,
            "image_loss": dists["image"].loss(w["image_target"]),
            "vec_pred_symlog": dists["vec"].mean,
            "vec_loss": dists["vec"].loss(w["vec_target"]),
        }

    for name, value in run().items():
        g.check(name, value)


def test_every_kind_of_observation_gets_its_loss():
    spaces = {
        "b_image": Space("image", (24, 24, 3)),
        "a_gray": Space("image", (24, 24, 1)),
        "count": Space("vector", ()),
        "grid": Space("vector", (4, 5)),
        "token": Space("discrete", (), (7,)),
        "multi": Space("discrete", (2, 2), (2, 3, 4, 5)),
    }
    decoder = eqx.filter_jit(Decoder)(
        spaces, Coding(8, 1, depths=(2, 4), kernel=3), deter=16, stoch=12, blocks=2, key=KEY
    )

    @jax.jit
    def losses(deter, stoch, targets):
        dists = decoder(deter, stoch)
        pictures = {k: d.mean for k, d in dists.items() if spaces[k].kind == "image"}
        return (
            {k: d.loss(targets[k]) for k, d in dists.items()},
            pictures,
            decoder.image(deter, stoch),
        )

    targets = {
        k: jnp.zeros((2, 3, *s.shape), jnp.int32 if s.kind == "discrete" else jnp.float32) for k, s in spaces.items()
    }
    found, pictures, stacked = losses(jnp.ones((2, 3, 16)), jnp.ones((2, 3, 12)), targets)
    assert found.keys() == spaces.keys()
    for key, value in found.items():
        assert value.shape == (2, 3), key
        assert (value > 0).all(), key
    assert {k: v.shape for k, v in pictures.items()} == {k: (2, 3, *spaces[k].shape) for k in ("a_gray", "b_image")}
    assert all(((p >= 0) & (p <= 1)).all() for p in pictures.values())
    # The decoder's channels belong to the keys in sorted order.
    np.testing.assert_array_equal(jnp.concatenate([pictures["a_gray"], pictures["b_image"]], -1), stacked)


def test_transposed_convolutions_mirror_a_strided_encoder():
    decoder = eqx.filter_eval_shape(
        Decoder,
        {"image": Space("image", (32, 48, 3)), "x": Space("vector", (2,))},
        Coding(
            8, 1, depths=(2, 4, 8), kernel=4, convolutions="stride", style=Style("layer", "average"), pixels="shift"
        ),
        deter=16,
        stoch=12,
        blocks=2,
        key=KEY,
    )
    image = decoder.image
    assert image.to_map.weight.shape == (28, 4 * 6 * 8)
    assert [conv.weight.shape for conv in image.convs] == [(4, 4, 8, 4), (4, 4, 4, 2), (4, 4, 2, 3)]
    # A norm follows all but the last: that one alone has a bias.
    assert [conv.bias is None for conv in image.convs] == [True, True, False]
    assert [norm.scale.shape for norm in image.norms] == [(4,), (2,)]
    out = jax.eval_shape(lambda d: d.image(jnp.zeros((5, 16)), jnp.zeros((5, 12))), decoder)
    assert out.shape == (5, 32, 48, 3)


def test_brightness_is_bounded_by_a_sigmoid_or_begins_at_middle_gray():
    x, coding = jnp.array([-9.0, 0.0, 9.0]).reshape(1, 3, 1), Coding(4, 1, depths=(1,), kernel=1)
    copy = eqx.tree_at(lambda conv: conv.weight, Conv(1, 1, 1, key=KEY), jnp.ones((1, 1, 1, 1)))
    bounded, shifted = (paint(x, (copy,), (), coding._replace(pixels=kind)) for kind in ("sigmoid", "shift"))
    np.testing.assert_allclose(bounded[0, ::2].ravel(), [1.234e-4, 0.5, 0.9998766], rtol=1e-3)
    np.testing.assert_allclose(shifted[0, ::2].ravel(), [-8.5, 0.5, 9.5])


def test_targets_are_squashed_and_weighed_as_told():
    spaces = {"image": Space("image", (8, 8, 1)), "x": Space("vector", (1,))}
    shape = {"deter": 4, "stoch": 4, "blocks": 2, "key": KEY}
    make, coding = eqx.filter_jit(Decoder), Coding(4, 1, depths=(2,), kernel=3)
    plain = make(spaces, coding, **shape)
    squashes = coding._replace(symlog_images=True, symlog_vectors=False, image_loss="gaussian")
    other = make(spaces, squashes, **shape)
    a, b = (decoder(jnp.ones((2, 4)), jnp.ones((2, 4))) for decoder in (plain, other))
    np.testing.assert_array_equal(a["image"].mean, b["image"].mean)
    assert type(a["image"]) is SquaredError
    assert type(b["image"]) is Gaussian
    gray = jnp.full((2, 8, 8, 1), 15 / 255)
    np.testing.assert_allclose(a["image"].error(gray), (a["image"].mean - 15 / 255) ** 2, rtol=1e-5)
    np.testing.assert_allclose(b["image"].error(gray), (b["image"].mean - 0.5) ** 2, rtol=1e-4, atol=1e-7)
    nine = jnp.full((2, 1), 9.0)
    np.testing.assert_allclose(a["x"].loss(nine), (a["x"].mean[:, 0] - np.log(10)) ** 2, rtol=1e-4)
    np.testing.assert_allclose(b["x"].loss(nine), (b["x"].mean[:, 0] - 9) ** 2, rtol=1e-4)
