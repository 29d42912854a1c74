"""The random half of a latent: `S` independent variables, categorical (DreamerV2 and V3) or Gaussian (V1).

Both answer the same questions. A network gives `parameters` numbers per variable, `[*B, S, P]`; a sample of a variable
is `width` numbers, `[*B, S, Z]`; a belief is what a KL is computed from.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp
from jax.lax import stop_gradient
from jaxtyping import Array, Float, PRNGKeyArray

from reverie.nn.dists import categorical_kl, mixed, normal_kl, sample_one_hot, straight_through, unimix


@dataclass(frozen=True)
class Categorical:
    """One-hot variables of `classes`."""

    classes: int
    unimix: float = 0.01  # share of uniform distribution in every belief
    # Whether samples carry the gradient of their probabilities. If not, the encoder learns from the KL alone, and no
    # gradient reaches an earlier sample.
    straight_through: bool = True
    mean_kl: bool = False  # whether a KL is the mean over the variables instead of their sum

    @property
    def parameters(self) -> int:
        return self.classes

    width = parameters

    def belief(self, out: Float[Array, "*B s p"]) -> Float[Array, "*B s z"]:
        """Log-probabilities."""
        return unimix(out, self.unimix)

    def noise(self, key: PRNGKeyArray, shape: tuple[int, ...]) -> Float[Array, "*B s"]:
        """The random numbers that decide a sample."""
        return jax.random.uniform(key, shape)

    def sample(self, out: Float[Array, "*B s p"], noise: Float[Array, "*B s"]) -> Float[Array, "*B s z"]:
        probs = mixed(out, self.unimix)
        sample = sample_one_hot(stop_gradient(probs), noise)
        return straight_through(sample, probs) if self.straight_through else sample

    def best(self, out: Float[Array, "*B s p"]) -> Float[Array, "*B s z"]:
        """The most probable sample."""
        return jax.nn.one_hot(jnp.argmax(out, -1), self.classes)

    def kl(self, p: Float[Array, "*B s z"], q: Float[Array, "*B s z"]) -> Float[Array, "*B"]:
        kl = categorical_kl(p, q)
        return kl / p.shape[-2] if self.mean_kl else kl

    def entropy(self, belief: Float[Array, "*B s z"]) -> Float[Array, "*B"]:
        return -jnp.sum(jnp.exp(belief) * belief, (-2, -1))


@dataclass(frozen=True)
class Gaussian:
    """Real variables with a standard deviation of at least `least` (DreamerV1: softplus plus 0.1)."""

    least: float = 0.1
    parameters: ClassVar[int] = 2
    width: ClassVar[int] = 1

    def belief(self, out: Float[Array, "*B s 2"]) -> Float[Array, "*B s 2"]:
        """Mean and standard deviation."""
        mean, std = jnp.split(out.astype(jnp.float32), 2, -1)
        return jnp.concatenate([mean, jax.nn.softplus(std) + self.least], -1)

    def noise(self, key: PRNGKeyArray, shape: tuple[int, ...]) -> Float[Array, "*B s"]:
        return jax.random.normal(key, shape)

    def sample(self, out: Float[Array, "*B s 2"], noise: Float[Array, "*B s"]) -> Float[Array, "*B s 1"]:
        belief = self.belief(out)
        return belief[..., :1] + belief[..., 1:] * noise[..., None]

    def best(self, out: Float[Array, "*B s 2"]) -> Float[Array, "*B s 1"]:
        return out[..., :1]

    def kl(self, p: Float[Array, "*B s 2"], q: Float[Array, "*B s 2"]) -> Float[Array, "*B"]:
        return normal_kl(p, q)

    def entropy(self, belief: Float[Array, "*B s 2"]) -> Float[Array, "*B"]:
        return jnp.sum(0.5 * jnp.log(2 * jnp.pi * jnp.e * jnp.square(belief[..., 1])), -1)


Stoch = Categorical | Gaussian
