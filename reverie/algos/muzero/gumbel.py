"""Gumbel MuZero (Danihelka et al., ICLR 2022): policy improvement by planning with few simulations.

What differs from MuZero: the root tries actions sampled without replacement and halves them; the target is not the
visits but the improved policy `softmax(logits + sigma(completed Q))`; no Dirichlet noise, no temperature.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

from reverie.algos.muzero.muzero import MuZero
from reverie.algos.muzero.values import Playable
from reverie.fields import Weight, Within


@dataclass(frozen=True, kw_only=True)
class Config(Playable):
    """The values of the algorithm."""

    search = "gumbel"

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

    def sigma(self) -> dict[str, Any]:
        own = {"considered": self.considered, "visit_scale": self.visit_scale, "value_scale": self.q_scale}
        return super().sigma() | own | {"rescale": self.q_rescale}


make_agent = MuZero
