"""Gumbel MuZero (Danihelka et al., ICLR 2022): policy improvement by planning with few simulations.

What differs from MuZero: the root tries actions sampled without replacement and halves them; the target is not the
visits but the improved policy `softmax(logits + sigma(completed Q))`; no Dirichlet noise, no temperature.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from reverie.algos.muzero import muzero
from reverie.algos.muzero.model import Model
from reverie.algos.muzero.state import Carry, Legal, State
from reverie.algos.muzero.values import Playable
from reverie.behavior.search import SearchResult, gumbel
from reverie.fields import Weight, Within
from reverie.model.unroll import Hidden


@dataclass(frozen=True, kw_only=True)
class Config(Playable):
    """The values of the algorithm."""

    simulations: Annotated[int, Within(1, 2**16)] = 16
    """Network calls of each search; 2 to 16 are enough."""
    considered: Annotated[int, Within(1, 2**16)] = 16
    """Actions at most that the root tries."""
    visit_scale: Weight = 50.0
    """c_visit of sigma(q) = (c_visit + most visits) c_scale q."""
    q_scale: Weight = 0.1
    """c_scale (0.1 for values rescaled to the range seen in the tree, 1 for Go without that)."""
    q_rescale: bool = True
    """Rescale values to the range seen in the tree."""


class GumbelMuZero(muzero.MuZero):
    """The `Agent`."""

    def temperature(self, state: State, carry: Carry) -> Float[Array, " N"]:
        """The noise at the root explores, not the draw of an action."""
        return jnp.zeros(carry.moves.shape)

    def search(
        self, model: Model, root: Hidden, key: PRNGKeyArray, legal: Legal, temperature: Float[Array, " B"] | None
    ) -> SearchResult:
        config = self.config
        return gumbel(
            model,
            root,
            key,
            simulations=config.simulations,
            legal=legal,
            considered=config.considered,
            scale=0.0 if temperature is None else 1.0,
            visit_scale=config.visit_scale,
            value_scale=config.q_scale,
            rescale=config.q_rescale,
            least_range=config.least_range,
        )


make_agent = GumbelMuZero
