import jax
import jax.numpy as jnp
import numpy as np

from reverie.model.stoch import Categorical, Gaussian

KEY = jax.random.key(0)


def test_gaussian_beliefs_samples_and_the_best():
    kind, out = Gaussian(), jnp.array([[[0.5, 0.0], [-2.0, 3.0]]])
    belief = np.asarray(kind.belief(out))
    np.testing.assert_allclose(belief[..., 0], out[..., 0])
    np.testing.assert_allclose(belief[..., 1], np.log1p(np.exp([[0.0, 3.0]])) + 0.1, rtol=1e-6)
    noise = jnp.array([[1.0, -2.0]])
    np.testing.assert_allclose(kind.sample(out, noise)[..., 0], belief[..., 0] + belief[..., 1] * noise, rtol=1e-6)
    np.testing.assert_array_equal(kind.best(out), out[..., :1])
    drawn = kind.noise(KEY, (20_000, 1))
    assert abs(float(drawn.mean())) < 0.03
    assert abs(float(drawn.std()) - 1) < 0.03


def test_gaussian_kl_and_entropy_are_their_integrals():
    kind = Gaussian()
    p, q = jnp.array([[0.3, 0.7], [-1.0, 0.2]]), jnp.array([[0.0, 1.0], [-0.5, 0.4]])
    x = np.linspace(-8, 8, 40_001)
    step = float(x[1] - x[0])

    def density(belief, i):
        return np.exp(log_density(belief, i))

    def log_density(belief, i):
        mean, std = np.float64(belief[i])
        return -0.5 * ((x - mean) / std) ** 2 - np.log(std * np.sqrt(2 * np.pi))

    kl = sum(float((density(p, i) * (log_density(p, i) - log_density(q, i))).sum()) * step for i in range(2))
    entropy = sum(float(-(density(p, i) * log_density(p, i)).sum()) * step for i in range(2))
    np.testing.assert_allclose(kind.kl(p, q), kl, rtol=1e-4)
    np.testing.assert_allclose(kind.entropy(p), entropy, rtol=1e-4)
    assert kind.kl(p, p) == 0


def test_categoricals_are_one_hot_and_agree_with_their_sizes():
    kind, out = Categorical(3, unimix=0.0), jnp.array([[[0.0, 9.0, 0.0], [9.0, 0.0, 0.0]]])
    assert kind.parameters == kind.width == 3
    np.testing.assert_array_equal(kind.best(out), [[[0, 1, 0], [1, 0, 0]]])
    sample = kind.sample(out, jnp.full((1, 2), 0.5))
    np.testing.assert_array_equal(sample, kind.best(out))
    np.testing.assert_allclose(jnp.exp(kind.belief(out)).sum(-1), 1, rtol=1e-6)
    uniform = kind.belief(jnp.zeros((1, 2, 3)))
    np.testing.assert_allclose(kind.entropy(uniform), 2 * np.log(3), rtol=1e-6)
