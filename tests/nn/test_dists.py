import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reverie.nn.dists import (
    Binary,
    BoundedNormal,
    Gaussian,
    OneHot,
    SquaredError,
    TanhNormal,
    TruncatedNormal,
    TwoHot,
    categorical_kl,
    randomness,
    sample_one_hot,
    straight_through,
    unimix,
)
from reverie.nn.transforms import SYMLOG, even_bins, symexp_bins, symlog, two_hot

# ------------------------------------------------------------------------- two-hot


@pytest.mark.parametrize("bins", [255, 41, 8])
def test_two_hot_matches_the_reference(golden, bins):
    g = golden(f"twohot_symexp_{bins}")
    logits, target = g.inputs["logits"], g.inputs["target"]
    g.check("loss", TwoHot(logits, symexp_bins(bins)).loss(target))
    g.check("pred", TwoHot(logits, symexp_bins(bins)).pred())


@pytest.mark.parametrize("bins", [41, 8])
def test_two_hot_gradients_match_the_reference(golden, bins):
    g = golden(f"twohot_symexp_{bins}")
    target = g.inputs["target"]

    def loss(logits):
        return TwoHot(logits, symexp_bins(bins)).loss(target).sum()

    def pred(logits):
        return TwoHot(logits, symexp_bins(bins)).pred()[3:].sum()

    g.check("grad_loss_logits", jax.grad(loss)(g.inputs["logits"]))
    # The widest bins meet at 5e8: here float32 itself is 2e-5 to 3e-5 away, as the file says.
    g.check("grad_sum_pred_rows3plus_logits", jax.grad(pred)(g.inputs["logits"]))


@pytest.mark.parametrize("bins", [255, 41, 8])
@pytest.mark.parametrize("shape", [(), (7,), (2, 3)])
def test_equal_logits_predict_exactly_zero(bins, shape):
    def pred(logits):
        return TwoHot(logits, symexp_bins(bins)).pred()

    for value in (0.0, 1.7):
        logits = jnp.full((*shape, bins), value)
        np.testing.assert_array_equal(pred(logits), 0)
        np.testing.assert_array_equal(jax.jit(pred)(logits), 0)


def test_no_gradient_reaches_the_target():
    def dist(target):
        return TwoHot(jnp.ones(41), symexp_bins(41)).loss(target)

    assert jax.grad(dist)(jnp.array(0.3)) == 0


# -------------------------------------------------------------------- categoricals


def test_unimix_categorical_matches_the_reference(golden):
    g = golden("unimix_categorical")
    mix, logits, event = g.spec["unimix"], g.inputs["logits"], g.inputs["event"]
    mixed, plain = OneHot(logits, (6,), (), mix), OneHot(logits, (6,), ())
    other = OneHot(g.inputs["other_logits"], (6,), (), mix)
    g.check("logits_mixed", unimix(logits, mix))
    g.check("logp", mixed.logp_of(event))
    g.check("logp_nomix", plain.logp_of(event))
    g.check("entropy", mixed.entropy())
    g.check("entropy_nomix", plain.entropy())
    g.check("pred", mixed.pred())
    g.check("kl", categorical_kl(mixed.logp, other.logp))
    np.testing.assert_array_equal(mixed.loss(event), -mixed.logp_of(event))


def test_straight_through_matches_the_reference(golden):
    g = golden("onehot_straight_through")
    index = g.inputs["index"]

    def value(logits):
        return straight_through(jax.nn.one_hot(index, 6), jnp.exp(unimix(logits, g.spec["unimix"])))

    y, pull = jax.vjp(value, g.inputs["logits"])
    g.check("value", y)
    g.check("grad_logits", pull(g.inputs["cotangent"])[0])
    g.check("logp", OneHot(g.inputs["logits"], (6,), (), g.spec["unimix"]).logp_of(index))


def test_kl_with_free_bits_matches_the_reference(golden):
    g = golden("kl_free_bits")
    free, mix = g.spec["free_nats"], g.spec["unimix"]
    sg = jax.lax.stop_gradient

    def terms(post, prior):
        post, prior = unimix(post, mix), unimix(prior, mix)
        dynamics, representation = categorical_kl(sg(post), prior), categorical_kl(post, sg(prior))
        return dynamics, jnp.maximum(dynamics, free), jnp.maximum(representation, free)

    inputs = g.inputs["post_logits"], g.inputs["prior_logits"]
    raw, dynamics, representation = terms(*inputs)
    g.check("kl_raw", raw)
    g.check("dyn", dynamics)
    g.check("rep", representation)
    clipped = np.asarray(raw) < free
    assert clipped.any()
    assert not clipped.all()
    for i, name in ((1, "dyn"), (2, "rep")):
        post, prior = jax.grad(lambda *x, i=i: terms(*x)[i].sum(), (0, 1))(*inputs)
        g.check(f"{name}_grad_post", post)
        g.check(f"{name}_grad_prior", prior)
        np.testing.assert_array_equal(post[clipped], 0)
        np.testing.assert_array_equal(prior[clipped], 0)


def test_samples_follow_the_probabilities():
    logp = unimix(jnp.array([2.0, 0.0, -1.0, -30.0]), 0.0)
    uniform = jax.random.uniform(jax.random.key(0), (20_000,))
    hot = sample_one_hot(jnp.broadcast_to(jnp.exp(logp), (20_000, 4)), uniform)
    np.testing.assert_array_equal(hot.sum(-1), 1)
    assert set(np.unique(hot)) == {0.0, 1.0}
    probs = np.exp(np.asarray(logp))
    expected = 20_000 * probs
    assert (np.abs(hot.sum(0) - expected) < 4 * np.sqrt(expected * (1 - probs)) + 1).all()


@pytest.mark.parametrize("uniform", [0.0, 0.5, float(np.nextafter(np.float32(1), np.float32(0)))])
def test_extreme_uniform_numbers_pick_one_possible_class(uniform):
    logp = unimix(jax.random.normal(jax.random.key(1), (50, 96)), 0.01)
    hot = sample_one_hot(jnp.exp(logp), jnp.full(50, uniform))
    np.testing.assert_array_equal(hot.sum(-1), 1)


def test_elements_with_unequal_classes_are_independent_categoricals():
    classes, mix = (2, 5, 3), 0.1
    logits = jax.random.normal(jax.random.key(0), (4, 10))
    value = jnp.array([[0, 4, 2], [1, 0, 0], [1, 3, 1], [0, 2, 2]], jnp.int32)
    dist = OneHot(logits, classes, (3,), mix)
    parts = [OneHot(logits[:, a:b], (b - a,), (), mix) for a, b in ((0, 2), (2, 7), (7, 10))]
    np.testing.assert_allclose(dist.logp_of(value), sum(p.logp_of(value[:, i]) for i, p in enumerate(parts)), rtol=1e-5)
    np.testing.assert_allclose(dist.entropy(), sum(p.entropy() for p in parts), rtol=1e-5)
    np.testing.assert_array_equal(dist.pred(), np.stack([p.pred() for p in parts], -1))
    least, most = dist.entropy_range()
    np.testing.assert_allclose(most, np.log(2 * 5 * 3), rtol=1e-6)
    np.testing.assert_allclose(OneHot(jnp.zeros(10), classes, (3,), mix).entropy(), most, rtol=1e-6)
    sure = jnp.zeros(10).at[jnp.array([0, 4, 9])].set(50.0)
    np.testing.assert_allclose(OneHot(sure, classes, (3,), mix).entropy(), least, rtol=1e-5)
    assert OneHot(sure, classes, (3,)).entropy_range()[0] == 0


@pytest.mark.parametrize("mix", [0.0, 0.3])
def test_of_a_masked_choice_only_what_is_legal_is_left(mix):
    """The same as a choice among the legal classes alone."""
    logits = jax.random.normal(jax.random.key(0), (3, 5))
    legal = jnp.array([[True, False, True, True, False], [False, False, False, True, False], [True] * 5])
    dist = OneHot(logits, (2, 3), (2,), mix, legal)
    few = OneHot(jnp.array([[logits[0, 2], logits[0, 3]]]), (2,), (), mix)
    np.testing.assert_allclose(dist.logp[0, 1, :2], few.logp[0, 0], rtol=1e-5)
    np.testing.assert_allclose(dist.logp[0, 0, 0], 0, atol=1e-6)  # the only one
    np.testing.assert_allclose(dist.entropy()[0], few.entropy()[0], rtol=1e-5)
    free = OneHot(logits, (2, 3), (2,), mix)
    np.testing.assert_allclose(dist.logp[2], free.logp[2], rtol=1e-5)
    # Of row 1, nothing of the first element is legal (then all is), and one class of the second.
    np.testing.assert_allclose(dist.logp[1, 0, :2], free.logp[1, 0, :2], rtol=1e-5)
    assert (dist.pred()[1, 1], jnp.exp(dist.logp[1, 1]).tolist()) == (1, [0, 1, 0])


def test_what_is_not_legal_is_never_drawn_and_has_no_gradient():
    legal = jnp.array([True, False, True, False, False])
    wide = jnp.broadcast_to(legal, (2000, 5))
    dist = OneHot(jnp.broadcast_to(jnp.array([0.0, 9, 1, 2, 3]), (2000, 5)), (5,), (), 0.01, wide)
    for one in (dist, dist.broader(3.0)):
        assert set(np.unique(one.sample(jax.random.key(0)))) == {0, 2}
        assert set(np.unique(one.code(jax.random.key(0)).argmax(-1))) == {0, 2}

    def loss(logits):
        dist = OneHot(logits, (5,), (), 0.01, legal)
        return dist.logp_of(jnp.int32(2)) + dist.entropy()

    gradient = jax.grad(loss)(jnp.array([0.0, 50, 1, -50, 3]))
    assert np.isfinite(gradient).all()
    np.testing.assert_array_equal(gradient != 0, legal)


def test_how_random_a_masked_choice_is_counts_the_legal_ones():
    legal = jnp.array([[True, True, False], [True, False, False]])
    even, sure = (
        OneHot(jnp.zeros((2, 3)), (3,), (), legal=legal),
        OneHot(jnp.array([[50.0, 0, 0]] * 2), (3,), (), 0.0, legal),
    )
    np.testing.assert_allclose(randomness(even).mean(), 1, rtol=1e-5)
    np.testing.assert_allclose(randomness(sure).mean(), 0, atol=1e-6)
    forced = OneHot(jnp.zeros((1, 3)), (3,), (), 0.01, legal[1:])
    np.testing.assert_allclose(randomness(forced), 0, atol=1e-6)


@pytest.mark.parametrize(("out", "end"), [(-50.0, 0), (50.0, 1)])
def test_a_bounded_normal_knows_the_range_of_its_entropy(out, end):
    dist = BoundedNormal(jnp.zeros(3), jnp.full(3, out), (3,))
    np.testing.assert_allclose(dist.entropy(), dist.entropy_range()[end], rtol=1e-5)


@pytest.mark.parametrize("mix", [0.0, 0.01])
@pytest.mark.parametrize("classes", [(2, 5, 3), (4, 4, 4)])
def test_samples_stay_within_their_classes(classes, mix):
    dist = OneHot(jnp.zeros((3000, sum(classes))), classes, (3,), mix)
    sample = np.asarray(dist.sample(jax.random.key(0)))
    assert sample.dtype == np.int32
    assert sample.shape == (3000, 3)
    for column, count in zip(sample.T, classes, strict=True):
        seen = np.bincount(column, minlength=count)
        assert len(seen) == count
        assert (np.abs(seen - 3000 / count) < 4 * np.sqrt(3000 / count)).all()


@pytest.mark.parametrize("mix", [0.0, 0.01])
def test_gradients_of_padded_categoricals_are_finite(mix):
    def loss(logits):
        dist = OneHot(logits, (2, 5, 3), (3,), mix)
        return dist.entropy().sum() + dist.logp_of(jnp.zeros((4, 3), jnp.int32)).sum()

    logits = jnp.zeros((4, 10)).at[0, 0].set(-200.0)
    assert np.isfinite(jax.grad(loss)(logits)).all()


def test_shapes_of_discrete_values():
    dist = OneHot(jnp.zeros((2, 7, 24)), (4,) * 6, (2, 3))
    assert dist.pred().shape == (2, 7, 2, 3)
    assert dist.sample(jax.random.key(0)).shape == (2, 7, 2, 3)
    assert dist.loss(jnp.zeros((2, 7, 2, 3), jnp.int32)).shape == (2, 7)
    np.testing.assert_allclose(dist.loss(jnp.ones((2, 7, 2, 3), jnp.int32)), 6 * np.log(4), rtol=1e-6)


# ------------------------------------------------------------------- the other ones


def test_binary_matches_the_reference(golden):
    g = golden("binary_continue")
    g.check("loss", Binary(g.inputs["logit"]).loss(g.inputs["target"]))
    g.check("prob1", Binary(g.inputs["logit"]).prob())


def test_binary_is_finite_far_from_zero():
    logit = jnp.array([-1e4, 1e4])
    loss = Binary(logit).loss(jnp.array([1.0, 0.0]))
    np.testing.assert_allclose(loss, 1e4)
    assert np.isfinite(jax.grad(lambda x: Binary(x).loss(jnp.array([1.0, 0.0])).sum())(logit)).all()


def test_bounded_normal_matches_the_reference(golden):
    g = golden("bounded_normal_head")

    def linear(name):
        return g.inputs["x"] @ g.inputs[f"w:h/{name}/kernel"] + g.inputs[f"w:h/{name}/bias"][None]

    dist = BoundedNormal(linear("mean"), linear("stddev"), (3,), g.spec["minstd"], g.spec["maxstd"])
    g.check("mean", dist.pred())
    g.check("std", dist.std)
    g.check("logp", dist.logp_of(g.inputs["action"]))
    g.check("entropy", dist.entropy())


def test_bounded_normal_samples_have_its_moments():
    dist = BoundedNormal(jnp.full((20_000, 2), 0.5), jnp.full((20_000, 2), -1.0), (2, 1))
    x = np.asarray(dist.sample(jax.random.key(0)))
    assert x.shape == (20_000, 2, 1)
    std = 0.1 + 0.9 / (1 + np.exp(-1.0))
    np.testing.assert_allclose(x.mean(0), np.tanh(0.5), atol=4 * std / np.sqrt(20_000))
    np.testing.assert_allclose(x.std(0), std, rtol=0.03)


def test_squared_error_has_no_half_and_squashes_only_when_told():
    mean, target = jnp.zeros((2, 3)), jnp.full((2, 3), 2.0)
    np.testing.assert_allclose(SquaredError(mean, 1).loss(target), 12.0)
    np.testing.assert_allclose(
        SquaredError(mean, 1, squash=SYMLOG).loss(target), 3 * symlog(jnp.array(2.0)) ** 2, rtol=1e-6
    )
    assert SquaredError(jnp.zeros((2, 4, 5, 3)), 3).loss(jnp.zeros((2, 4, 5, 3))).shape == (2,)
    assert SquaredError(jnp.zeros((2,)), 0).loss(jnp.ones((2,))).shape == (2,)  # a scalar observation


def test_losses_are_float32_whatever_the_parameters_are():
    def half(*shape):
        return jnp.zeros(shape, jnp.bfloat16)

    assert TwoHot(half(2, 41), symexp_bins(41)).loss(jnp.zeros(2)).dtype == jnp.float32
    assert OneHot(half(2, 4), (4,), ()).loss(jnp.zeros(2, jnp.int32)).dtype == jnp.float32
    assert Binary(half(2)).loss(jnp.ones(2)).dtype == jnp.float32
    assert BoundedNormal(half(2, 3), half(2, 3), (3,)).logp_of(jnp.zeros((2, 3))).dtype == jnp.float32
    assert SquaredError(half(2, 3), 1).loss(jnp.zeros((2, 3))).dtype == jnp.float32


def test_a_two_hot_code_of_the_symlog_predicts_in_raw_space():
    bins, target = even_bins(255), jnp.array([0.0, 5.0, -300.0])
    code = two_hot(symlog(target), bins)
    dist = TwoHot(jnp.log(code + 1e-30), bins, SYMLOG)
    np.testing.assert_allclose(dist.pred(), target, rtol=1e-4, atol=1e-5)
    entropy = -jnp.sum(code * jnp.log(code + 1e-30), -1)
    np.testing.assert_allclose(dist.loss(target), entropy, rtol=1e-4, atol=1e-5)  # nothing predicts it better
    assert (TwoHot(jnp.zeros((2, 255)), bins, SYMLOG).pred() == 0).all()


def test_squared_error_of_the_symlog_predicts_in_raw_space():
    dist = SquaredError(symlog(jnp.array([0.0, 5.0, -300.0])), 0, SYMLOG)
    np.testing.assert_allclose(dist.pred(), [0, 5, -300], rtol=1e-4)
    np.testing.assert_allclose(dist.loss(jnp.array([0.0, 5.0, -300.0])), 0, atol=1e-9)


def test_a_gaussian_has_the_likelihood_and_the_gradient_of_its_best_variance():
    target = jnp.asarray(np.random.default_rng(0).uniform(0, 1, (5, 4, 4, 3)), jnp.float32)
    mean = jnp.full(target.shape, 0.3)
    error = np.asarray((mean - target) ** 2, np.float64)
    for other in (0.5, 2.0):  # no other variance makes the same images more likely
        variance = other * error.mean()
        worse = 0.5 * (error / variance + np.log(2 * np.pi * variance)).sum((1, 2, 3)).sum()
        assert Gaussian(mean, 3).loss(target).sum() < worse
    n = error.size
    np.testing.assert_allclose(
        Gaussian(mean, 3).loss(target).sum(), 0.5 * n * (1 + np.log(2 * np.pi * error.mean())), rtol=1e-5
    )
    gradient = jax.grad(lambda m: Gaussian(m, 3).loss(target).sum())(mean)
    np.testing.assert_allclose(gradient, (mean - target) / error.mean(), rtol=1e-4)
    exact = Gaussian(target, 3).loss(target)  # as sure as the rounding of a byte allows, and no surer
    np.testing.assert_allclose(exact, 48 * 0.5 * np.log(2 * np.pi / 12 / 255**2), rtol=1e-5)


def test_the_more_probable_flag_carries_no_gradient():
    flags = Binary(jnp.array([-3.0, 0.1, 2.0]))
    np.testing.assert_array_equal(flags.mode(), [0, 1, 1])
    assert (jax.grad(lambda x: Binary(x).mode().sum())(jnp.ones(3)) == 0).all()


# ------------------------------------------------------------------------- policies of V1 and V2

BOUNDED = [TruncatedNormal, TanhNormal]


def on_a_grid(kind, mean, std):
    """One distribution per row of `mean` and `std`, `[N]`, and a fine grid of actions with its step."""
    dist = kind(jnp.asarray(mean)[:, None], jnp.asarray(std)[:, None], (1,))
    x = np.linspace(-1, 1, 200_001)[1:-1]
    full = lambda value: jnp.full((len(x), 1), value)
    values = [kind(full(m), full(s), (1,)).logp_of(jnp.float32(x)[:, None]) for m, s in zip(mean, std, strict=True)]
    return dist, np.stack(values).astype(float), x[1] - x[0]


@pytest.mark.parametrize("kind", BOUNDED)
def test_densities_within_bounds_integrate_to_one_and_give_the_entropy(kind):
    mean, std = np.float32([0.0, 0.5, -1.0]), np.float32([-5.0, -4.0, -4.5])
    dist, logp, step = on_a_grid(kind, mean, std)
    density = np.exp(logp)
    np.testing.assert_allclose(density.sum(-1) * step, 1, rtol=2e-3)
    np.testing.assert_allclose(dist.entropy(), -(density * logp).sum(-1) * step, rtol=1e-2, atol=5e-3)
    least, most = dist.entropy_range()
    assert (least <= dist.entropy()).all()
    assert (dist.entropy() <= most).all()


@pytest.mark.parametrize("kind", BOUNDED)
def test_samples_within_bounds_follow_the_density_and_carry_its_gradient(kind):
    mean, std = np.float32([0.5]), np.float32([-4.0])
    _, logp, step = on_a_grid(kind, mean, std)
    x = np.linspace(-1, 1, 200_001)[1:-1]

    def mean_of(raw):
        dist = kind(jnp.broadcast_to(raw[None], (40_000, 1)), jnp.full((40_000, 1), std[0]), (1,))
        return dist.sample(jax.random.key(1)).mean()

    value, slope = jax.value_and_grad(mean_of)(jnp.asarray(mean))
    np.testing.assert_allclose(value, (np.exp(logp[0]) * x).sum() * step, atol=5e-3)
    _, moved, _ = on_a_grid(kind, mean + 0.01, std)
    np.testing.assert_allclose(slope, ((np.exp(moved) - np.exp(logp)) * x).sum() * step / 0.01, rtol=0.05)


def test_the_median_of_a_tanh_normal_and_where_it_starts():
    dist = TanhNormal(jnp.array([[10.0]]), jnp.zeros((1, 1)), (1,))
    np.testing.assert_allclose(dist.std, 5 + 1e-4, rtol=1e-6)
    np.testing.assert_allclose(dist.pred(), np.tanh(5 * np.tanh([[2.0]])), rtol=1e-6)
    assert np.isfinite(dist.logp_of(jnp.ones((1, 1)))).all()
    truncated = TruncatedNormal(jnp.zeros((1, 1)), jnp.zeros((1, 1)), (1,))
    np.testing.assert_allclose(truncated.std, 1.1, rtol=1e-6)


def test_codes_of_samples_have_the_log_probability_and_the_gradient_of_their_classes():
    logits = jnp.array([[0.3, -0.2, 1.0, 0.1, 0.5]])
    dist = OneHot(logits, (2, 3), (2,))
    code = dist.code(jax.random.key(0))
    assert code.shape == (1, 5)
    np.testing.assert_allclose(jnp.stack([code[0, :2].sum(), code[0, 2:].sum()]), 1, rtol=1e-6)
    classes = jnp.stack([code[:, :2].argmax(-1), code[:, 2:].argmax(-1)], -1)
    np.testing.assert_allclose(dist.logp_of(code), dist.logp_of(classes), rtol=1e-5)
    weight = jnp.arange(5.0)
    by_code = jax.grad(lambda x: (OneHot(x, (2, 3), (2,)).code(jax.random.key(0)) * weight[None]).sum())(logits)
    by_probs = jax.grad(
        lambda x: (jnp.concatenate([jax.nn.softmax(x[:, :2]), jax.nn.softmax(x[:, 2:])], -1) * weight[None]).sum()
    )(logits)
    np.testing.assert_allclose(by_code, by_probs, rtol=1e-4, atol=1e-6)
