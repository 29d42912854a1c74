"""Returns, and the running scale that makes advantages comparable between tasks."""

from __future__ import annotations

import equinox as eqx
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float


def lambda_return(
    reward: Float[Array, "B T"],
    discount: Float[Array, "B T"],
    carry_on: Float[Array, "B T"],
    bootstrap: Float[Array, "B T"],
) -> Float[Array, "B T-1"]:
    """TD(lambda) targets (DreamerV3, eq. 4), of the first T - 1 states.

        t          0     1     2     3
        reward     .     r1    r2    r3       r_t arrived with state t: the first is not used
        discount   .     d1    d2    d3       0 where the world ended at t
        carry_on   .     c1    c2    c3       lambda; 0 where the episode was cut at t: bootstrap there
        bootstrap  .     v1    v2    v3       value of state t
        return     R0    R1    R2             R_t = r_{t+1} + d_{t+1} ((1 - c_{t+1}) v_{t+1} + c_{t+1} R_{t+1})

    All float32 `[B, T]`.
    """
    discount, carry_on = discount[:, 1:], carry_on[:, 1:]
    known = reward[:, 1:] + discount * (1 - carry_on) * bootstrap[:, 1:]

    def step(later: Array, xs: tuple[Array, Array]) -> tuple[Array, Array]:
        known, factor = xs
        now = known + factor * later
        return now, now

    xs = (known.T, (discount * carry_on).T)
    _, returns = lax.scan(step, bootstrap[:, -1], xs, reverse=True)
    return returns.T


class ReturnScale(eqx.Module):
    """Running range of returns between two percentiles (DreamerV3, eq. 7): large returns are scaled down, small ones
    left alone, so that one entropy weight serves sparse and dense rewards.

    `rate` 0.01, percentiles 5 and 95, no bias correction: the range grows from zero while `limit` keeps it above one.
    """

    low: Float[Array, ""]
    high: Float[Array, ""]

    def __init__(self, low: float | Array = 0.0, high: float | Array = 0.0):
        self.low = jnp.asarray(low, jnp.float32)
        self.high = jnp.asarray(high, jnp.float32)

    def update(
        self,
        returns: Float[Array, "..."],
        rate: float = 0.01,
        percentiles: tuple[float, float] = (5.0, 95.0),
    ) -> ReturnScale:
        """Moves the range towards that of `returns`."""
        low, high = jnp.percentile(lax.stop_gradient(returns).ravel(), jnp.array(percentiles))
        return ReturnScale(self.low + rate * (low - self.low), self.high + rate * (high - self.high))

    def scale(self, limit: float = 1.0) -> Float[Array, ""]:
        """The divisor of advantages, at least `limit`."""
        return jnp.maximum(limit, self.high - self.low)
