"""Returns, and the running scale that makes advantages comparable between tasks."""

from __future__ import annotations

from typing import NamedTuple

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int

LARGEST = float(np.finfo(np.float32).max)


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


class Window(NamedTuple):
    """The targets at the first `K + 1` positions of a window of rows. Position k is row k; all are `[B, K + 1]`."""

    value: Float[Array, "B k"]  # the return, in the view of whom it is to move there; 0 from the end of the world on
    reward: Float[Array, "B k"]  # that arrived with the row; 0 beyond the end of the world
    known: Bool[Array, "B k"]  # whether `value` and `reward` can be known: not beyond a truncation
    # Whether the row belongs to the episode and is not its end by termination: it has a search and a successor (or, at
    # a truncation, would have had one).
    real: Bool[Array, "B k"]
    player_changes: Bool[Array, "B k"]  # whether it is another player's turn than at the row before; False at 0

    @property
    def same_episode(self) -> Bool[Array, "B u"]:
        """At positions 0 to K - 1, whether the next row came of this one. After a cut it is another episode's."""
        return self.real[:, :-1] & self.known[:, 1:]


def n_step_return(
    reward: Float[Array, "B W"],
    last: Bool[Array, "B W"],
    terminal: Bool[Array, "B W"],
    value: Float[Array, "B W"],
    *,
    unroll: int,
    steps: int,
    discount: float,
    player: Int[Array, "B W"] | None = None,
    lam: float = 1.0,
    fewer: Int[Array, " B"] | None = None,
) -> Window:
    """n-step targets of positions 0 to K = `unroll` (MuZero, App. G; two players as in its pseudocode).

        row        0     1     2     ...   n           W >= K + n + 1
        reward           r1    r2          rn          r_t arrived with row t, for whom moved at t - 1
        value                              v_n         of a search at that row, in the view of whom it was to move
        target     z0 = s0 r1 + g s1 r2 + ... + g^n s_n v_n        s_t: 1 where player t is player 0, else -1

    Rewards after the world's end are 0 and so is the value (an absorbing state); an episode that was only cut
    bootstraps from the value of its last row. `lam` below 1 mixes the returns of 1 to n steps (TD(lambda)); `fewer`, 1
    to n, makes the returns of a sequence shorter. A sum that float32 cannot say is its largest number.
    """
    width = unroll + 1
    rows = lambda x, at: lax.dynamic_slice_in_dim(x, at, width, 1)
    over = last | terminal
    mover = jnp.zeros(reward.shape, jnp.int8) if player is None else player
    first = mover[:, :width]

    def step(carry: tuple[Array, Array, Array], at: Array) -> tuple[tuple[Array, Array, Array], None]:
        total, weight, going = carry  # weight: discount and lambda so far
        done = (at == steps) if fewer is None else (at == fewer)[:, None]
        side = lambda t: jnp.where(rows(mover, t) == first, 1.0, -1.0)
        going = going & ~rows(over, at - 1)
        now = jnp.where(going, weight * side(at - 1) * rows(reward, at), 0.0)
        # Here a return may end: by lambda, because n steps are done, or because the episode is cut.
        ends = jnp.where(done | rows(last, at), 1.0, 1 - lam)
        alive = going & ~rows(terminal, at)
        ahead = jnp.where(alive, weight * discount * ends * side(at) * rows(value, at), 0.0)
        return (total + now + ahead, weight * discount * lam, going & ~done), None

    # Before the first step: nothing is over yet but what ended at the row itself.
    here_last, here_end = last[:, :width], terminal[:, :width]
    start = (jnp.zeros_like(reward[:, :width]), jnp.ones_like(reward[:, :width]), jnp.ones_like(here_last))
    (total, _, _), _ = lax.scan(step, start, jnp.arange(1, steps + 1))
    total = jnp.clip(total, -LARGEST, LARGEST)  # rewards may be finite and their sum not
    total = jnp.where(here_last & ~here_end, value[:, :width], total)  # cut right here: all there is to know

    # The first end among the positions decides what lies at and beyond it: nothing more, or nobody knows.
    ends = here_last | here_end
    beyond = jnp.cumsum(ends, 1) - ends > 0
    in_absorbing = jnp.cumsum(ends & ~beyond & here_end, 1) > 0
    return Window(
        value=jnp.where(in_absorbing, 0.0, total),
        reward=jnp.where(beyond, 0.0, reward[:, :width]),
        known=in_absorbing | ~beyond,
        real=~in_absorbing & ~beyond,
        player_changes=jnp.diff(first, axis=1, prepend=first[:, :1]) != 0,
    )


class ReturnScale(eqx.Module):
    """Running range of returns between two percentiles (DreamerV3, eq. 7): large returns are scaled down, small ones
    left alone, so that one entropy weight serves sparse and dense rewards.

    `rate` 0.01, percentiles 5 and 95, no bias correction: the range grows from zero while `limit` keeps it above one.
    """

    low: Float[Array, ""] = eqx.field(default=0.0, converter=jnp.float32)
    high: Float[Array, ""] = eqx.field(default=0.0, converter=jnp.float32)

    def update(
        self, returns: Float[Array, "..."], rate: float = 0.01, percentiles: tuple[float, float] = (5.0, 95.0)
    ) -> ReturnScale:
        """Moves the range towards that of `returns`."""
        low, high = jnp.percentile(lax.stop_gradient(returns).ravel(), jnp.array(percentiles))
        return ReturnScale(self.low + rate * (low - self.low), self.high + rate * (high - self.high))

    def scale(self, limit: float = 1.0) -> Float[Array, ""]:
        """The divisor of advantages, at least `limit`."""
        return jnp.maximum(limit, self.high - self.low)
