"""Algorithms by name. A module here holds what one paper defines: `Config` and `make_agent`. Its presets are data,
`presets/<name>.toml`.
"""

from __future__ import annotations

import importlib
from typing import Any

from reverie.fields import meant

ALGORITHMS = {
    "dreamer_v1": "reverie.algos.dreamer_v1",
    "dreamer_v2": "reverie.algos.dreamer_v2",
    "dreamer_v3": "reverie.algos.dreamer_v3",
    "dream_ppo": "reverie.algos.dream_ppo",
    "muzero": "reverie.algos.muzero",
    "gumbel_muzero": "reverie.algos.gumbel_muzero",
    "efficientzero": "reverie.algos.efficientzero",
    "sampled_muzero": "reverie.algos.sampled_muzero",
    "stochastic_muzero": "reverie.algos.stochastic_muzero",
}


class UnknownAlgorithm(ValueError):
    """There is no algorithm of this name."""


class Unsuitable(ValueError):
    """An algorithm cannot see or act in these spaces with these values; says what to change."""


def module(name: str) -> str:
    """The module of an algorithm by name; raises UnknownAlgorithm, naming the nearest."""
    if name not in ALGORITHMS:
        known = ", ".join(ALGORITHMS)
        raise UnknownAlgorithm(f"no algorithm {name!r}: {meant(name, ALGORITHMS)}Expected one of {known}")
    return ALGORITHMS[name]


def load(name: str) -> Any:
    """The module of an algorithm; raises UnknownAlgorithm, naming the nearest."""
    return importlib.import_module(module(name))
