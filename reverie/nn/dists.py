"""The distributions of the heads: parameters in, float32 losses and predictions out.

Every one takes its parameters with any leading batch shape `*B` and reduces its own event axes, so that `loss`,
`logp` and `entropy` are `[*B]`.
"""

from __future__ import annotations

import copy
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.lax import stop_gradient
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from reverie.nn.transforms import Squash, two_hot


def mixed(logits: Float[Array, "*B z"], amount: float) -> Float[Array, "*B z"]:
    """Probabilities of `softmax(logits)` mixed with `amount` of a uniform distribution, float32.

    Keeps every class possible, so that no KL or log-probability can become infinite (DreamerV3, section
    "Robust predictions").
    """
    probs = jax.nn.softmax(logits.astype(jnp.float32), -1)
    return (1 - amount) * probs + amount / logits.shape[-1] if amount else probs


def unimix(logits: Float[Array, "*B z"], amount: float) -> Float[Array, "*B z"]:
    """Logarithms of `mixed`; `amount` 0 only normalises."""
    if amount == 0.0:
        return jax.nn.log_softmax(logits.astype(jnp.float32), -1)
    return jnp.log(mixed(logits, amount))


def sample_one_hot(probs: Float[Array, "*B z"], uniform: Float[Array, "*B"]) -> Float[Array, "*B z"]:
    """Samples by the inverse of the cumulative distribution: one uniform number in [0, 1) per variable.

    The Gumbel trick needs one per class; random bits are a visible part of an update on a CPU.
    """
    cdf = jnp.cumsum(probs, -1)
    # Scaled by the total, which rounding leaves a little off one: the last class is always reachable.
    above = (cdf[..., :-1] <= uniform[..., None] * cdf[..., -1:]).astype(jnp.float32)
    ones = jnp.ones((*above.shape[:-1], 1), jnp.float32)
    steps = jnp.concatenate([ones, above, 0 * ones], -1)
    return steps[..., :-1] - steps[..., 1:]


def straight_through(sample: Float[Array, "*B z"], probs: Float[Array, "*B z"]) -> Float[Array, "*B z"]:
    """The value of `sample` with the gradient of `probs` (Bengio et al. 2013; DreamerV2, algorithm 1)."""
    return sample + (probs - stop_gradient(probs))


def categorical_kl(p: Float[Array, "*B s z"], q: Float[Array, "*B s z"]) -> Float[Array, "*B"]:
    """KL(p || q) of log-probabilities in nats, summed over the `s` variables."""
    return jnp.sum(jnp.exp(p) * (p - q), (-2, -1))


def normal_kl(p: Float[Array, "*B s 2"], q: Float[Array, "*B s 2"]) -> Float[Array, "*B"]:
    """KL(p || q) of normals given by mean and standard deviation, in nats, summed over the `s` variables."""
    (p_mean, p_std), (q_mean, q_std) = (jnp.moveaxis(x, -1, 0) for x in (p, q))
    ratio, off = p_std / q_std, (p_mean - q_mean) / q_std
    return jnp.sum(0.5 * (ratio * ratio + off * off - 1) - jnp.log(ratio), -1)


def randomness(dist: Action) -> Float[Array, "*B"]:
    """The entropy between the least (0) and the most (1) that this distribution can have."""
    least, most = dist.entropy_range()
    return (dist.entropy() - least) / jnp.maximum(most - least, jnp.finfo(jnp.float32).tiny)


class OneHot:
    """Independent categorical variables of one action or observation, with `classes` that may differ.

    `logits` hold the classes of all elements side by side; elements with fewer classes are padded with a mask,
    so that one code path serves Discrete, MultiDiscrete and MultiBinary. Values are int32 `[*B, *shape]`.

    `legal` masks classes in the same layout: what is not legal has no probability, also not by `mix`, and does not
    count for the entropy. Of an element without any legal class (the end of an episode) all are.
    """

    logp: Float[Array, "*B n z"]
    mask: Bool[Array, "*B n z"] | np.ndarray  # valid and legal; without the batch axes where nothing is said to be

    def __init__(
        self,
        logits: Float[Array, "*B width"],
        classes: tuple[int, ...],
        shape: tuple[int, ...],
        mix: float = 0.0,
        legal: Bool[Array, "*B width"] | None = None,
    ):
        counts: Any = np.array(classes)
        most = counts.max()
        self.valid = self.mask = np.arange(most)[None, :] < counts[:, None]
        self.shape, self.mix = shape, mix
        batch = logits.shape[:-1]
        if (counts == most).all() and legal is None:
            self.logp = unimix(logits.reshape(*batch, len(classes), most), mix)
            return
        starts = np.cumsum(counts) - counts
        index = np.where(self.valid, starts[:, None] + np.arange(most)[None, :], 0)
        wide = logits.astype(jnp.float32)[..., index]
        if legal is not None:
            valid = np.broadcast_to(self.valid, wide.shape)
            given = legal[..., index] & valid
            self.mask = given | (valid & ~given.any(-1, keepdims=True))
            counts = self.mask.sum(-1)
        # The smallest finite number, not minus infinity: 0 * -inf in an entropy is NaN.
        mask = jnp.broadcast_to(self.mask, wide.shape)
        logp = jax.nn.log_softmax(jnp.where(mask, wide, jnp.finfo(jnp.float32).min), -1)
        floor = jnp.broadcast_to(mix / counts[..., None], wide.shape)
        mixed = jnp.log(jnp.where(mask, (1 - mix) * jnp.exp(logp) + floor, 1.0))
        self.logp = jnp.where(mask, mixed if mix else logp, jnp.finfo(jnp.float32).min)

    def pred(self) -> Int[Array, "..."]:
        """The most probable classes."""
        return self._value(jnp.argmax(self.logp, -1))

    def sample(self, key: PRNGKeyArray) -> Int[Array, "..."]:
        uniform = jax.random.uniform(key, self.logp.shape[:-1])
        return self._value(jnp.argmax(sample_one_hot(jnp.exp(self.logp), uniform), -1))

    def _value(self, index: Int[Array, "*B n"]) -> Int[Array, "..."]:
        return index.reshape(*index.shape[:-1], *self.shape).astype(jnp.int32)

    def code(self, key: PRNGKeyArray) -> Float[Array, "*B width"]:
        """A sample as its one-hot codes side by side, with the gradient of their probabilities."""
        probs = jnp.exp(self.logp)
        hot = sample_one_hot(stop_gradient(probs), jax.random.uniform(key, self.logp.shape[:-1]))
        return self._side_by_side(straight_through(hot, probs))

    def _side_by_side(self, x: Float[Array, "*B n z"]) -> Float[Array, "*B width"]:
        return x.reshape(*x.shape[:-2], -1)[..., np.flatnonzero(self.valid)]

    def logp_of(self, value: Array) -> Float[Array, "*B"]:
        """Log-probability of classes, int `[*B, *shape]`, or of what `code` gave."""
        if jnp.issubdtype(value.dtype, jnp.floating):
            return jnp.sum(value * self._side_by_side(self.logp), -1)
        value = value.reshape(self.logp.shape[:-1])
        hot = jax.nn.one_hot(value, self.logp.shape[-1], dtype=bool)
        return jnp.where(hot, self.logp, 0.0).sum(-1).sum(-1)

    def loss(self, target: Int[Array, "..."]) -> Float[Array, "*B"]:
        return -self.logp_of(target)

    def broader(self, spread: float) -> OneHot:
        """The same at `spread` times the temperature."""
        other = copy.copy(self)
        mask = jnp.broadcast_to(self.mask, self.logp.shape)
        scaled_logits = jax.nn.log_softmax(jnp.where(mask, self.logp / spread, jnp.finfo(jnp.float32).min), -1)
        other.logp = jnp.where(mask, scaled_logits, jnp.finfo(jnp.float32).min)
        return other

    def entropy(self) -> Float[Array, "*B"]:
        mask = jnp.broadcast_to(self.mask, self.logp.shape)
        return jnp.sum(-jnp.sum(jnp.where(mask, jnp.exp(self.logp) * self.logp, 0.0), -1), -1)

    def entropy_range(self) -> tuple[Any, Any]:
        """The least and the most that `entropy` can be: as sure as `mix` allows, and uniform. Where not all is legal,
        the means of both over the batch: where one class alone is legal, they are the same."""
        number = np if self.mask is self.valid else jnp
        counts = self.mask.sum(-1)
        rare = self.mix / counts
        sure = 1 - self.mix + rare
        tiny = np.finfo(np.float32).tiny
        least = -sure * number.log(sure) - (counts - 1) * rare * number.log(number.maximum(rare, tiny))
        low, high = least.sum(-1), number.log(counts).sum(-1)
        return (float(low), float(high)) if number is np else (low.mean(), high.mean())


HALF_LOG_TAU = 0.5 * math.log(2 * math.pi)
UNIT_ENTROPY = 0.5 * math.log(2 * math.pi * math.e)  # of a normal with a standard deviation of one


class Normal:
    """The parameters of the normals below, `[*B, n]`. Values are `[*B, *shape]`; losses sum over the last axis."""

    def __init__(self, mean: Float[Array, "*B n"], std: Float[Array, "*B n"], shape: tuple[int, ...]):
        self.mean, self.std, self.shape = mean, std, shape

    def pred(self) -> Float[Array, "..."]:
        return self._value(self.mean)

    def _value(self, x: Float[Array, "*B n"]) -> Float[Array, "..."]:
        return x.reshape(*x.shape[:-1], *self.shape)

    def _density(self, x: Float[Array, "*B n"]) -> Float[Array, "*B n"]:
        """Logarithm of the normal's density."""
        z = (x - self.mean) / self.std
        return -0.5 * z * z - jnp.log(self.std) - HALF_LOG_TAU


class BoundedNormal(Normal):
    """Normal(tanh(mean), std) with std in [low, high]: the continuous policy of DreamerV3.

    Samples are not clipped here: a score-function gradient needs the log-probability of what was sampled.
    """

    def __init__(
        self,
        mean: Float[Array, "*B n"],
        std: Float[Array, "*B n"],
        shape: tuple[int, ...],
        low: float = 0.1,
        high: float = 1.0,
    ):
        mean = jnp.tanh(mean.astype(jnp.float32))
        super().__init__(mean, (high - low) * jax.nn.sigmoid(std.astype(jnp.float32) + 2.0) + low, shape)
        self.bounds = (low, high)

    def sample(self, key: PRNGKeyArray) -> Float[Array, "..."]:
        return self._value(self.mean + self.std * jax.random.normal(key, self.mean.shape))

    def logp_of(self, value: Float[Array, "..."]) -> Float[Array, "*B"]:
        return jnp.sum(self._density(value.reshape(self.mean.shape)), -1)

    def entropy(self) -> Float[Array, "*B"]:
        return jnp.sum(jnp.log(self.std) + UNIT_ENTROPY, -1)

    def broader(self, spread: float) -> BoundedNormal:
        """The same with `spread` times the standard deviation."""
        other = copy.copy(self)
        other.std = self.std * spread
        return other

    def entropy_range(self) -> tuple[float, float]:
        """The least and the most that `entropy` can be: at the smallest and the largest std."""
        least, most = (self.mean.shape[-1] * (math.log(x) + UNIT_ENTROPY) for x in self.bounds)
        return least, most


class TruncatedNormal(Normal):
    """A normal with mean tanh(mean) and std in [0.1, 2.1], confined to [-1, 1]: the continuous policy of DreamerV2.
    Samples have a gradient."""

    def __init__(self, mean: Float[Array, "*B n"], std: Float[Array, "*B n"], shape: tuple[int, ...]):
        mean = jnp.tanh(mean.astype(jnp.float32))
        super().__init__(mean, 2 * jax.nn.sigmoid(std.astype(jnp.float32) / 2) + 0.1, shape)

    @property
    def _ends(self) -> tuple[Array, Array, Array]:
        """The ends in standard deviations from the mean, and the logarithm of the probability between them."""
        low, high = (-1 - self.mean) / self.std, (1 - self.mean) / self.std
        return low, high, jnp.log(jax.scipy.stats.norm.cdf(high) - jax.scipy.stats.norm.cdf(low))

    def sample(self, key: PRNGKeyArray) -> Float[Array, "..."]:
        low, high, _ = self._ends
        return self._value(self.mean + self.std * jax.random.truncated_normal(key, low, high, self.mean.shape))

    def logp_of(self, value: Float[Array, "..."]) -> Float[Array, "*B"]:
        z = (value.reshape(self.mean.shape) - self.mean) / self.std
        return jnp.sum(-0.5 * z * z - HALF_LOG_TAU - jnp.log(self.std) - self._ends[2], -1)

    def entropy(self) -> Float[Array, "*B"]:
        low, high, inside = self._ends
        pdf = jax.scipy.stats.norm.pdf
        bent = (low * pdf(low) - high * pdf(high)) / (2 * jnp.exp(inside))
        return jnp.sum(UNIT_ENTROPY + jnp.log(self.std) + inside + bent, -1)

    def entropy_range(self) -> tuple[float, float]:
        """The least and the most that `entropy` can be: half of the narrowest normal, and nearly uniform."""
        n = self.mean.shape[-1]
        return n * (UNIT_ENTROPY + math.log(0.1 / 2)), n * math.log(2)


class TanhNormal(Normal):
    """The tanh of a normal: the continuous policy of DreamerV1. Means lie in [-5, 5], the std is 5 at first and at
    least 1e-4. Samples have a gradient."""

    # Where the mean of a function of a normal is evaluated, in standard deviations, and what each place counts.
    places, weights = np.polynomial.hermite_e.hermegauss(24)

    def __init__(self, mean: Float[Array, "*B n"], std: Float[Array, "*B n"], shape: tuple[int, ...]):
        mean = 5 * jnp.tanh(mean.astype(jnp.float32) / 5)
        super().__init__(mean, jax.nn.softplus(std.astype(jnp.float32) + math.log(math.expm1(5))) + 1e-4, shape)

    def pred(self) -> Float[Array, "..."]:
        """The median. (The reference takes the likeliest of 100 samples.)"""
        return self._value(jnp.tanh(self.mean))

    def sample(self, key: PRNGKeyArray) -> Float[Array, "..."]:
        return self._value(jnp.tanh(self.mean + self.std * jax.random.normal(key, self.mean.shape)))

    def logp_of(self, value: Float[Array, "..."]) -> Float[Array, "*B"]:
        """Values at the very ends, where the density has no limit, count as the number next to them."""
        end = 1 - 2.0**-24
        raw = jnp.arctanh(jnp.clip(value.reshape(self.mean.shape), -end, end))
        return jnp.sum(self._density(raw) - self._stretch(raw), -1)

    def entropy(self) -> Float[Array, "*B"]:
        """By Gauss-Hermite quadrature: there is no closed form."""
        shape = (-1,) + (1,) * self.mean.ndim
        raw = self.mean[None] + self.std[None] * np.float32(self.places).reshape(shape)
        weights = np.float32(self.weights / self.weights.sum()).reshape(shape)
        raw_mean = jnp.sum(weights * self._stretch(raw), 0)
        return jnp.sum(UNIT_ENTROPY + jnp.log(self.std) + raw_mean, -1)

    def entropy_range(self) -> tuple[float, float]:
        """The least that `entropy` can be around zero, and that of a uniform distribution."""
        n = self.mean.shape[-1]
        return n * (UNIT_ENTROPY + math.log(1e-4)), n * math.log(2)

    @staticmethod
    def _stretch(raw: Float[Array, "..."]) -> Float[Array, "..."]:
        """Logarithm of the slope of tanh."""
        return 2 * (math.log(2) - raw - jax.nn.softplus(-2 * raw))


Continuous = BoundedNormal | TruncatedNormal | TanhNormal
Action = OneHot | Continuous  # the distribution of an action


class TwoHot:
    """A scalar as a categorical over fixed bins.

    Bins in raw space, exponentially spaced, are DreamerV3's "symexp twohot" (eqs. 9-11). With `squash`, the bins lie in
    the squashed space: the target is squashed, and the prediction is the inverse of the expected bin (arXiv v1).
    """

    def __init__(self, logits: Float[Array, "*B v"], bins: np.ndarray, squash: Squash | None = None):
        self.logits, self.bins, self.squash = logits.astype(jnp.float32), bins, squash

    def pred(self) -> Float[Array, "*B"]:
        """The expected bin; exactly 0 for equal probabilities, as at initialisation.

        Probabilities of mirrored bins are subtracted before they are multiplied: the bins reach 5e8, and neither
        the order of a plain sum nor a fused multiply-add would cancel to the last bit.
        """
        probs, half = jax.nn.softmax(self.logits, -1), len(self.bins) // 2
        surplus = probs[..., -half:] - probs[..., :half][..., ::-1]
        mean = jnp.sum(surplus * self.bins[-half:].reshape((1,) * (surplus.ndim - 1) + (-1,)), -1)
        return self.squash.back(mean) if self.squash else mean

    def loss(self, target: Float[Array, "*B"]) -> Float[Array, "*B"]:
        """Cross-entropy to the two-hot code of `target` (given in raw space; no gradient into it)."""
        code = two_hot(stop_gradient(self.squash.to(target) if self.squash else target), self.bins)
        return jax.nn.logsumexp(self.logits, -1) - jnp.sum(code * self.logits, -1)


class Binary:
    """Bernoulli with soft targets: the continue flag, which may carry the discount."""

    def __init__(self, logit: Float[Array, "*B"]):
        self.logit = logit.astype(jnp.float32)

    def prob(self) -> Float[Array, "*B"]:
        """The probability of 1."""
        return jax.nn.sigmoid(self.logit)

    def mode(self) -> Float[Array, "*B"]:
        """The more probable of 0 and 1; carries no gradient."""
        return (self.logit > 0).astype(jnp.float32)

    def loss(self, target: Float[Array, "*B"]) -> Float[Array, "*B"]:
        target = stop_gradient(target)
        return -(target * jax.nn.log_sigmoid(self.logit) + (1 - target) * jax.nn.log_sigmoid(-self.logit))


class SquaredError:
    """Sum of squared errors over the last `dims` axes: no half and no constant; `squash` is applied to the target."""

    def __init__(self, mean: Float[Array, "..."], dims: int, squash: Squash | None = None):
        self.mean, self.dims, self.squash = mean.astype(jnp.float32), dims, squash

    def pred(self) -> Float[Array, "..."]:
        return self.squash.back(self.mean) if self.squash else self.mean

    def error(self, target: Float[Array, "..."]) -> Float[Array, "..."]:
        """Squared error of every element."""
        return jnp.square(self.mean - stop_gradient(self.squash.to(target) if self.squash else target))

    def loss(self, target: Float[Array, "..."]) -> Float[Array, "*B"]:
        return jnp.sum(self.error(target), tuple(range(-self.dims, 0)))


class Gaussian(SquaredError):
    """Negative log-likelihood of a normal whose variance, one number for all elements of all examples, is the most
    likely one: their mean squared error (Rybkin et al. 2021, "optimal sigma"). Sums over the last `dims` axes.

    With a variance of one it is half of `SquaredError` and a constant. This changes the weight of the error:
    it grows as the error falls, instead of staying where the other losses were tuned for it.
    """

    # Of the rounding to 256 levels: no prediction of a byte can be more certain.
    least = 1 / (12 * 255**2)

    def loss(self, target: Float[Array, "..."]) -> Float[Array, "*B"]:
        error = self.error(target)
        variance = jnp.maximum(stop_gradient(error.mean()), self.least)
        return 0.5 * jnp.sum(error / variance + jnp.log(2 * math.pi * variance), tuple(range(-self.dims, 0)))
