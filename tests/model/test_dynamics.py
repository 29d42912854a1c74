"""What every kind of dynamics answers for, and what each of them remembers."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reverie.model import transformer
from reverie.model.dynamics import Design, features
from reverie.model.memoryless import Memoryless
from reverie.model.rssm import RSSM
from reverie.model.stoch import Categorical, Gaussian
from reverie.model.transformer import WINDOW, Transformer

KEY = jax.random.key(0)
B, T, TOKENS, ACTION = 2, 6, 5, 3
FLOAT = jnp.dtype("float32")


class Still(Gaussian):
    """Whose samples are the means."""

    def noise(self, key, shape):
        return jnp.zeros(shape)


def make(dynamics, **values):
    design = Design(action=ACTION, tokens=TOKENS, deter=16, stoch=3, kind=Still(), hidden=8)._replace(**values)
    return dynamics(design, recurrence="dense", key=KEY)


@pytest.fixture(params=[RSSM, Transformer, Memoryless], ids=lambda kind: kind.__name__)
def model(request):
    return make(request.param)


def sequence(steps=T):
    rng = np.random.default_rng(0)
    draw = lambda width: jnp.asarray(rng.normal(size=(B, steps, width)), jnp.float32)
    return draw(TOKENS), draw(ACTION), jnp.zeros((B, steps), bool)


@eqx.filter_jit
def observe(model, start, tokens, actions, resets):
    return model.observe(start, tokens, actions, resets, KEY)


def at(latents, t):
    return jax.tree.map(lambda x: x[:, t], latents)


def test_to_observe_in_two_parts_is_to_observe_the_whole(model):
    tokens, actions, resets = sequence()
    resets = resets.at[0, 4].set(True)
    start = model.zeros((B,), FLOAT)
    whole, _ = observe(model, start, tokens, actions, resets)
    first, _ = observe(model, start, tokens[:, :3], actions[:, :3], resets[:, :3])
    second, _ = observe(model, at(first, -1), tokens[:, 3:], actions[:, 3:], resets[:, 3:])
    np.testing.assert_allclose(features(second), features(whole)[:, 3:], rtol=1e-4, atol=1e-5)


def test_what_is_imagined_is_the_prior_of_what_is_observed_next(model):
    tokens, actions, resets = sequence()
    latents, _ = observe(model, model.zeros((B,), FLOAT), tokens, actions, resets)
    prior = model.prior(latents)
    for t in range(1, T):
        ahead = eqx.filter_jit(model.imagine)(at(latents, t - 1), actions[:, t], KEY)
        np.testing.assert_allclose(ahead.stoch, prior[:, t, :, :1], rtol=1e-4, atol=1e-5)
        assert jax.tree.structure(ahead) == jax.tree.structure(latents)


def test_nothing_from_before_an_episode_or_from_later_is_seen(model):
    tokens, actions, resets = sequence()
    resets = resets.at[:, 3].set(True)
    start = model.zeros((B,), FLOAT)
    latents, _ = observe(model, start, tokens, actions, resets)
    other = jax.tree.map(lambda x: x + jnp.ones_like(x), start)
    changed, _ = observe(model, other, tokens.at[:, :3].add(1), actions.at[:, :4].add(1), resets)
    np.testing.assert_array_equal(features(changed)[:, 3:], features(latents)[:, 3:])
    np.testing.assert_array_equal(model.prior(changed)[:, 3:], model.prior(latents)[:, 3:])
    assert (features(changed)[:, 0] != features(latents)[:, 0]).any()
    later, _ = observe(model, start, tokens.at[:, 4:].add(1), actions.at[:, 5:].add(1), resets)
    np.testing.assert_array_equal(features(later)[:, :4], features(latents)[:, :4])
    assert (features(later)[:, 4] != features(latents)[:, 4]).any()


@pytest.mark.parametrize(("kind", "remembers"), [(RSSM, True), (Transformer, True), (Memoryless, False)])
def test_who_remembers(kind, remembers):
    model, (tokens, actions, resets) = make(kind), sequence()
    start = model.zeros((B,), FLOAT)

    def last(tokens):
        return features(model.observe(start, tokens, actions, resets, KEY)[0])[:, -1].sum()

    gradient = np.abs(jax.jit(jax.grad(last))(tokens)).sum((0, 2))
    assert (gradient[:-1] > 0).all() == remembers
    assert (gradient[:-1] == 0).all() != remembers
    assert gradient[-1] > 0


def test_a_memory_that_moves_on_is_what_attention_over_everything_sees():
    steps = WINDOW + 5
    model, (tokens, actions, resets) = make(Transformer), sequence(steps)
    resets = resets.at[1, 7].set(True)
    distance = jax.random.normal(KEY, model.blocks[0].distance.shape)  # how far back an entry lies must matter
    model = eqx.tree_at(lambda m: [b.distance for b in m.blocks], model, [distance, -distance])
    latent = model.zeros((B,), FLOAT)
    whole, _ = observe(model, latent, tokens, actions, resets)
    for t in range(steps):
        one = slice(t, t + 1)
        latents, _ = observe(model, latent, tokens[:, one], actions[:, one], resets[:, one])
        latent = at(latents, 0)
        np.testing.assert_allclose(features(latent), features(whole)[:, t], rtol=1e-3, atol=1e-4)
    assert latent.memory.there[0].all()
    assert not make(Transformer).zeros((B,), FLOAT).memory.there.any()


def test_a_transformer_forgets_what_is_older_than_its_memory(monkeypatch):
    monkeypatch.setattr(transformer, "BLOCKS", 1)  # every block looks back as far again
    model, (tokens, actions, resets) = make(Transformer), sequence(WINDOW + 3)
    start = model.zeros((B,), FLOAT)

    def last(tokens):
        return model.observe(start, tokens, actions, resets, KEY)[0].deter[:, -1].sum()

    gradient = np.abs(jax.jit(jax.grad(last))(tokens)).sum((0, 2))
    # The entry of step t holds its own latent, so W + 1 entries hold those of the last W + 1 steps.
    assert (gradient > 0).tolist() == [False, False, *[True] * (WINDOW + 1)]


@pytest.mark.parametrize("kind", [RSSM, Transformer, Memoryless])
def test_what_replay_keeps_comes_back(kind):
    model, (tokens, actions, resets) = make(kind, kind=Categorical(4)), sequence()
    latents, _ = observe(model, model.zeros((B,), FLOAT), tokens, actions, resets)
    latent = at(latents, -1)
    row = model.to_replay(latent)
    assert {k: jax.ShapeDtypeStruct(x.shape[1:], x.dtype) for k, x in row.items()} == model.stored()
    again = model.from_replay(row, B, FLOAT)
    assert jax.tree.structure(again) == jax.tree.structure(latent)
    if row:
        np.testing.assert_array_equal(again.stoch.argmax(-1), latent.stoch.argmax(-1))
        np.testing.assert_allclose(again.deter, latent.deter, atol=1e-2)
    else:
        np.testing.assert_array_equal(again.deter, model.zeros((B,), FLOAT).deter)
