import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reverie.envs.base import Space
from reverie.model.canvas import Canvas, back, canvas, halvings, onto, resized
from reverie.model.decode import Decoder
from reverie.model.encode import Coding, Encoder
from reverie.model.unroll import Towers, tower_canvas

KEY = jax.random.key(0)
F32 = jnp.dtype("float32")


def pictures(*sizes):
    return {f"image{i}": Space("image", (*size, 3)) for i, size in enumerate(sizes)}


@pytest.mark.parametrize("side", [48, 64, 80, 96, 112, 128, 256])
def test_what_the_convolutions_take_is_seen_as_it_is(side):
    assert canvas(pictures((side, 64)), 4) == (side, 64)
    assert resized(pictures((side, 64)), (side, 64)) == {}
    spaces = pictures((side, side))
    assert canvas(spaces, halvings(spaces)) == (side, side)


def test_the_number_of_halvings_leaves_at_least_four_pixels():
    assert [halvings(pictures((side, side))) for side in (7, 8, 10, 64, 96, 128)] == [1, 1, 1, 4, 4, 5]
    assert halvings({"x": Space("vector", (3,))}) == 0


def test_other_sizes_are_grown_to_the_next_that_fits_and_shrunk_above_64():
    fixed = {(7, 7): (48, 48), (84, 84): (64, 64), (210, 160): (64, 64), (37, 91): (48, 64), (256, 7): (64, 48)}
    free = {(7, 7): (8, 8), (84, 84): (64, 64), (210, 160): (64, 64), (37, 91): (40, 64), (9, 9): (10, 10)}
    for size, expected in fixed.items():
        assert canvas(pictures(size), 4) == expected
        assert canvas(pictures(size), 4, "inside") == (64, 64)
    for size, expected in free.items():
        assert canvas(pictures(size), halvings(pictures(size))) == expected
    assert canvas(pictures((64, 64), (7, 7)), 4) == (64, 64)
    assert canvas(pictures((128, 128), (64, 64)), 4) == (64, 64)
    assert resized(pictures((64, 64), (7, 7)), (64, 64)) == {"image1": (64, 64)}


def test_every_size_up_to_256_has_a_canvas_that_can_be_halved():
    for high in range(1, 257):
        for wide in (1, 2, 7, 31, 64, 65, high, 210, 256):
            spaces = pictures((high, wide))
            free = halvings(spaces)
            assert free
            for stages in (4, free):
                size = canvas(spaces, stages)
                assert all(side % 2**stages == 0 and 3 <= side >> stages <= 16 for side in size), (high, wide, stages)
                assert canvas(pictures(size), stages) == size


def test_what_grows_comes_back_to_the_bit_and_what_shrinks_nearly():
    x = jax.random.uniform(KEY, (2, 3, 7, 37, 3))
    np.testing.assert_array_equal(back(onto(x, (48, 48)), (7, 37)), x)
    assert set(np.unique(onto(x, (48, 48)))) == set(np.unique(x))
    smooth = jnp.broadcast_to(jnp.linspace(0, 1, 210)[:, None, None], (210, 160, 1))
    there = onto(smooth, (64, 64))
    assert there.shape == (64, 64, 1)
    np.testing.assert_allclose(back(there, (210, 160)), smooth, atol=0.01)
    np.testing.assert_allclose(there.mean(), smooth.mean(), atol=1e-3)
    mixed = jnp.broadcast_to(x[:1, :1, :, :1], (1, 1, 7, 91, 3))  # grows in height, shrinks in width
    np.testing.assert_allclose(back(onto(mixed, (48, 64)), (7, 91)), mixed, rtol=1e-5)


@pytest.mark.parametrize("convolutions", ["pool", "stride", "inside"])
def test_images_of_several_sizes_are_encoded_and_painted_together(convolutions):
    spaces = pictures((7, 7), (37, 91)) | {"same": Space("image", (64, 64, 1))}
    kernel, pixels = 4 if convolutions == "inside" else 3, "sigmoid" if convolutions == "pool" else "shift"
    coding = Coding(4, 1, (2, 2, 2, 2), kernel, convolutions=convolutions, pixels=pixels)
    encoder = eqx.filter_jit(Encoder)(spaces, coding, key=KEY)
    decoder = eqx.filter_jit(Decoder)(spaces, coding, deter=8, stoch=4, blocks=2, key=KEY)
    obs = {k: jnp.full((2, *s.shape), 51, jnp.uint8) for k, s in spaces.items()}

    @jax.jit
    def run(obs):
        dists = decoder(jnp.ones((2, 8)), jnp.ones((2, 4)))
        target = {k: v.astype(F32) / 255 for k, v in obs.items()}
        return (
            encoder(obs, F32),
            {k: d.pred() for k, d in dists.items()},
            {k: d.loss(target[k]) for k, d in dists.items()},
            dists["image0"].canvas_dist.mean,
        )

    tokens, painted, losses, whole = run(obs)
    assert tokens.shape == (2, encoder.outputs)
    assert {k: v.shape[1:] for k, v in painted.items()} == {k: s.shape for k, s in spaces.items()}
    assert whole.shape == (2, 64, 64, 3)
    # A picture weighs what its pixels on the canvas do, and its own pixels are all that counts.
    np.testing.assert_allclose(losses["image0"], ((whole - 0.2) ** 2).sum((1, 2, 3)), rtol=1e-4)
    assert not isinstance(decoder(jnp.ones((2, 8)), jnp.ones((2, 4)))["same"], Canvas)


def test_towers_see_pictures_and_boards_of_several_sizes_on_one_canvas():
    boards = {"a": Space("planes", (3, 3, 2)), "b": Space("planes", (6, 7, 1))}
    assert tower_canvas(boards) == (6, 7)
    spaces = boards | pictures((9, 9))
    assert tower_canvas(spaces) == (10, 10)
    make = {"blocks": 1, "channels": 4, "read_channels": 2, "key": KEY}
    for seen in (boards, spaces, pictures((210, 160), (7, 7))):
        tower = eqx.filter_eval_shape(Towers, seen, 5, **make)
        obs = {k: jnp.zeros((2, *s.shape), jnp.uint8) for k, s in seen.items()}
        state = jax.eval_shape(lambda t, o: t.represent(o, F32), tower, obs)
        assert state.shape[1] * state.shape[2] * 2 == tower.outputs
