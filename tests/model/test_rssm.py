import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reverie.model.dynamics import Design, Latent, features
from reverie.model.rssm import RSSM, PlainGRU
from reverie.model.stoch import Categorical
from reverie.nn.dists import unimix
from reverie.nn.layers import Style

KEY = jax.random.key(0)
FLOAT32 = jnp.dtype("float32")
DESIGN = Design(action=3, tokens=5, deter=16, stoch=3, kind=Categorical(classes=4, unimix=0.01), hidden=4)


def reference_model(w):
    """Our RSSM with the reference's weights; `dynin0..2` read deter, stoch and action."""

    def weights(name):
        return [w[f"w:dyn/{name}/kernel"], w[f"w:dyn/{name}/bias"]]

    def scale(name):
        return w[f"w:dyn/{name}/scale"]

    def linear(layer):
        return [layer.weight, layer.bias]

    def places(m):
        core = m.core
        return [
            *linear(core.from_deter),
            *linear(core.from_stoch),
            *linear(core.from_action),
            *(core.deter_norm.scale, core.stoch_norm.scale, core.action_norm.scale),
            *linear(core.hidden),
            core.hidden_norm.scale,
            *linear(core.gates),
            *[x for layer in m.prior_mlp.linears for x in linear(layer)],
            *[norm.scale for norm in m.prior_mlp.norms],
            *linear(m.prior_out),
            *linear(m.post_hidden),
            m.post_norm.scale,
            *linear(m.post_out),
        ]

    values = [
        *(weights("dynin0") + weights("dynin1") + weights("dynin2")),
        *(scale("dynin0norm"), scale("dynin1norm"), scale("dynin2norm")),
        *weights("dynhid0"),
        scale("dynhid0norm"),
        *weights("dyngru"),
        *(weights("prior0") + weights("prior1")),
        *(scale("prior0norm"), scale("prior1norm")),
        *weights("priorlogit"),
        *weights("obs0"),
        scale("obs0norm"),
        *weights("obslogit"),
    ]
    model = eqx.filter_eval_shape(RSSM, DESIGN, recurrence="block", blocks=4, key=KEY)
    assert [x.shape for x in places(model)] == [x.shape for x in values]
    assert len(values) == len(jax.tree.leaves(model)) == sum(name.startswith("w:") for name in w)
    return eqx.tree_at(places, model, values)


def log_probabilities(logits):
    return unimix(jnp.asarray(logits, jnp.float32), 0.01)


@pytest.fixture(scope="module")
def model():
    return eqx.filter_jit(RSSM)(DESIGN, recurrence="block", blocks=4, key=KEY)


def random_sequence(batch, length):
    keys = jax.random.split(jax.random.key(1), 3)
    tokens = jax.random.normal(keys[0], (batch, length, 5))
    actions = jax.random.normal(keys[1], (batch, length, 3))
    codes = jax.random.randint(keys[2], (batch, 3), 0, 4)
    start = Latent(jnp.tanh(jax.random.normal(keys[2], (batch, 16))), jax.nn.one_hot(codes, 4))
    return start, tokens, actions


def test_a_block_gru_step_matches_the_reference(golden):
    g = golden("block_gru_step")
    model = reference_model(g.inputs)
    x = g.inputs

    @jax.jit
    def step():
        drive = model.core.drive(x["action"], FLOAT32)
        deter = model.core(x["deter"], x["stoch"].reshape(3, -1), drive)
        return deter, model.prior(Latent(deter, x["stoch"]))

    deter, prior = step()
    g.check("core_deter", deter)
    expected = log_probabilities(g.outputs["prior_logits_of_core"])
    np.testing.assert_allclose(prior, expected, rtol=1e-5, atol=1e-5)


def test_an_observed_step_with_resets_matches_the_reference(golden):
    g = golden("block_gru_step")
    x = g.inputs
    assert x["reset"].any()
    assert not x["reset"].all()
    latents, logp = eqx.filter_jit(reference_model(x).observe)(
        Latent(x["deter"], x["stoch"]),
        x["tokens"][:, None],
        x["action"][:, None],
        x["reset"][:, None],
        KEY,
    )
    g.check("observe_deter", latents.deter[:, 0])
    expected = log_probabilities(g.outputs["observe_post_logits"])
    np.testing.assert_allclose(logp[:, 0], expected, rtol=1e-5, atol=1e-5)


def test_samples_are_one_hot_and_carry_the_gradient_of_the_posterior(model):
    start, tokens, actions = random_sequence(2, 5)
    resets = jnp.zeros((2, 5), bool)

    @jax.jit
    def observe(tokens):
        return model.observe(start, tokens, actions, resets, KEY)

    latents, logp = observe(tokens)
    assert latents.deter.shape == (2, 5, 16)
    assert latents.stoch.shape == logp.shape == (2, 5, 3, 4)
    np.testing.assert_allclose(latents.stoch.sum(-1), 1, atol=1e-6)
    np.testing.assert_allclose(latents.stoch.max(-1), 1, atol=1e-6)
    np.testing.assert_allclose(jnp.exp(logp).sum(-1), 1, atol=1e-5)
    assert (jnp.exp(logp) >= 0.01 / 4 - 1e-6).all()
    # The last deter depends on earlier tokens only through samples.
    gradient = jax.grad(lambda tokens: observe(tokens)[0].deter[:, -1].sum())(tokens)
    assert (np.abs(gradient[:, :-1]).sum(-1) > 0).all()
    np.testing.assert_array_equal(gradient[:, -1], 0)


def test_a_reset_forgets_the_state_and_the_action_before(model):
    start, tokens, actions = random_sequence(2, 4)
    resets = jnp.zeros((2, 4), bool).at[0, 2].set(True)
    observe = eqx.filter_jit(model.observe)
    latents, _ = observe(start, tokens, actions, resets, KEY)
    other = jax.tree.map(lambda x: 0.5 * x, start)
    changed, _ = observe(other, tokens.at[:, :2].add(1.0), actions.at[:, :3].add(1.0), resets, KEY)
    for new, old in zip(changed[:2], latents[:2], strict=True):
        np.testing.assert_array_equal(new[0, 2:], old[0, 2:])
    assert np.abs(changed.deter[0, :2] - latents.deter[0, :2]).max() > 0
    assert np.abs(changed.deter[1, 2:] - latents.deter[1, 2:]).max() > 0


def test_a_reset_state_is_the_zero_state(model):
    start, tokens, actions = random_sequence(2, 1)
    observe = eqx.filter_jit(model.observe)
    reset, _ = observe(start, tokens, actions, jnp.ones((2, 1), bool), KEY)
    zeros = model.zeros((2,), FLOAT32)
    fresh, _ = observe(zeros, tokens, jnp.zeros_like(actions), jnp.zeros((2, 1), bool), KEY)
    jax.tree.map(np.testing.assert_array_equal, reset, fresh)


def test_imagining_follows_the_prior_and_the_transition(model):
    start, tokens, actions = random_sequence(2, 1)
    observed, _ = eqx.filter_jit(model.observe)(start, tokens, actions, jnp.zeros((2, 1), bool), KEY)
    many = jax.tree.map(lambda x: jnp.broadcast_to(x[0], (4000, *x.shape[1:])), start)
    imagined = eqx.filter_jit(model.imagine)(many, jnp.broadcast_to(actions[0], (4000, 3)), KEY)
    np.testing.assert_allclose(imagined.deter[0], observed.deter[0, 0], rtol=1e-5, atol=1e-6)
    probs = jnp.exp(model.prior(Latent(observed.deter[0, 0], observed.stoch[0, 0])))
    np.testing.assert_allclose(imagined.stoch.mean(0), probs, atol=4 * 0.5 / np.sqrt(4000))


def test_large_actions_are_scaled_to_one(model):
    action = jnp.array([3.0, -0.5, -7.0])
    np.testing.assert_allclose(
        model.core.drive(action, FLOAT32), model.core.drive(jnp.array([1.0, -0.5, -1.0]), FLOAT32)
    )


def test_features_are_stoch_then_deter():
    latent = Latent(jnp.full((2, 5), 7.0), jnp.arange(12.0).reshape(2, 2, 3))
    feat = features(latent)
    np.testing.assert_array_equal(feat[:, :6], np.arange(12.0).reshape(2, 6))
    np.testing.assert_array_equal(feat[:, 6:], 7)


# ------------------------------------------------------------------------------ the version of 2023

DENSE = DESIGN._replace(prior_layers=1, style=Style("layer", "average"))


@pytest.fixture(scope="module")
def dense():
    model = eqx.filter_jit(RSSM)(DENSE, recurrence="dense", first="learned", key=KEY)
    # Norms and the first state that are not what they begin as.
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda x: x + jnp.asarray(rng.normal(0, 0.1, x.shape), jnp.float32), model)


def other(model, **values):
    """The weights of `model` in an RSSM made with other values."""
    like = eqx.filter_eval_shape(RSSM, DENSE._replace(**values), recurrence="dense", first="learned", key=KEY)
    return jax.tree.unflatten(jax.tree.structure(like), jax.tree.leaves(model))


def test_a_dense_gru_is_its_formula(dense):
    start, _, actions = random_sequence(2, 1)
    core, stoch, action = dense.core, np.asarray(start.stoch).reshape(2, -1), 3 * np.asarray(actions[:, 0])

    def layer_norm(norm, x):
        x = x - x.mean(-1, keepdims=True)
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-3) * np.asarray(norm.scale) + np.asarray(norm.offset)

    def sigmoid(x):
        return 1 / (1 + np.exp(-x))

    h = np.asarray(start.deter)
    x = np.concatenate([stoch, action / np.maximum(1, np.abs(action))], -1) @ np.asarray(core.hidden.weight)
    x = layer_norm(core.hidden_norm, x)
    x = x * sigmoid(x)
    gates = layer_norm(core.gates_norm, np.concatenate([h, x], -1) @ np.asarray(core.gates.weight))
    reset, candidate, update = np.split(gates, 3, -1)
    update = sigmoid(update - 1)
    expected = update * np.tanh(sigmoid(reset) * candidate) + (1 - update) * h
    found = core(start.deter, jnp.asarray(stoch), core.drive(jnp.asarray(action), FLOAT32))
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    assert core.hidden.bias is core.gates.bias is None


def test_an_episode_begins_with_the_learned_state(dense):
    begun = jax.jit(lambda m: m.begin(FLOAT32))(dense)
    np.testing.assert_allclose(begun.deter, np.tanh(dense.first), rtol=1e-6)
    best = jnp.argmax(dense.prior(begun), -1)
    np.testing.assert_array_equal(begun.stoch, jax.nn.one_hot(best, 4))

    start, tokens, actions = random_sequence(2, 3)
    resets = jnp.array([[False, True, False], [False, False, False]])
    observe = jax.jit(lambda m, start, actions, resets: m.observe(start, tokens, actions, resets, KEY)[0].deter)
    found = observe(dense, start, actions, resets)
    fresh = Latent(*(jnp.broadcast_to(x[None], (2, *x.shape)) for x in begun[:2]))
    by_hand = observe(dense, fresh, jnp.zeros_like(actions), jnp.zeros_like(resets))[:, 0]
    np.testing.assert_allclose(found[0, 1], by_hand[0], rtol=1e-5, atol=1e-6)
    assert (found[1, 1] != by_hand[1]).all()

    gradient = jax.jit(jax.grad(lambda m, resets: observe(m, start, actions, resets).sum()))
    assert (gradient(dense, resets).first != 0).all()
    assert (gradient(dense, jnp.zeros_like(resets)).first == 0).all()


def test_without_straight_through_gradients_samples_teach_nothing(dense):
    start, tokens, actions = random_sequence(2, 2)

    def loss(tokens, model):
        latents, _ = model.observe(start, tokens, actions, jnp.zeros((2, 2), bool), KEY)
        return (latents.stoch * jnp.arange(4.0).reshape(1, 1, 1, 4)).sum(), latents

    run = eqx.filter_jit(jax.grad(loss, has_aux=True))
    seen, latents = run(tokens, dense)
    unseen, same = run(tokens, other(dense, kind=Categorical(4, straight_through=False)))
    assert (seen != 0).any()
    assert (unseen == 0).all()
    np.testing.assert_array_equal(latents.stoch, same.stoch)


def test_unimix_keeps_every_class_possible_or_not(dense):
    sure = eqx.tree_at(lambda m: m.prior_out.bias, dense, 1000.0 * jnp.tile(jnp.eye(4)[0], 3))
    least = jax.jit(lambda m: jnp.exp(m.prior(Latent(jnp.zeros((1, 16)), jnp.zeros((1, 3, 4))))).min())
    np.testing.assert_allclose(least(sure), 0.01 / 4, rtol=1e-4)
    assert least(other(sure, kind=Categorical(4, unimix=0.0))) == 0


def test_a_plain_gru_is_its_formula():
    core = eqx.filter_jit(PlainGRU)(5, 3, 2, 4, key=KEY, style=Style("none", "average", "elu"))
    rng = np.random.default_rng(0)
    core = jax.tree.map(lambda x: x + jnp.asarray(rng.normal(0, 0.3, x.shape), jnp.float32), core)
    h, z, a = (rng.uniform(-1, 1, (2, n)).astype(np.float32) for n in (5, 3, 2))

    def product(layer, x):
        return x @ np.asarray(layer.weight) + np.asarray(layer.bias)

    def sigmoid(x):
        return 1 / (1 + np.exp(-x))

    x = product(core.hidden, np.concatenate([z, a], -1))
    x = np.where(x > 0, x, np.expm1(x))
    keep, reset, candidate = np.split(product(core.from_input, x), 3, -1)
    old_keep, old_reset, old = np.split(product(core.from_state, h), 3, -1)
    keep = sigmoid(keep + old_keep)
    expected = keep * h + (1 - keep) * np.tanh(candidate + sigmoid(reset + old_reset) * old)
    found = core(jnp.asarray(h), jnp.asarray(z), core.drive(jnp.asarray(a), FLOAT32))
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
