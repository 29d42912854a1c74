"""Algorithms by name. A module here holds what one paper defines: `Config` and `make_agent`. Its presets are data,
`presets/<name>.toml`.
"""

from __future__ import annotations

import importlib
from typing import Any

from reverie.envs.base import Spaces
from reverie.errors import PlainError
from reverie.fields import did_you_mean

ALGORITHMS = {
    "dreamer_v1": "reverie.algos.dreamer.v1",
    "dreamer_v2": "reverie.algos.dreamer.v2",
    "dreamer_v3": "reverie.algos.dreamer.v3",
    "dreamer_v3_2023": "reverie.algos.dreamer.v3_2023",
    "dream_ppo": "reverie.algos.dreamer.ppo",
    "muzero": "reverie.algos.muzero.muzero",
    "gumbel_muzero": "reverie.algos.muzero.gumbel",
    "efficientzero": "reverie.algos.muzero.efficientzero",
    "sampled_muzero": "reverie.algos.muzero.sampled",
    "stochastic_muzero": "reverie.algos.muzero.stochastic",
}


class UnknownAlgorithm(PlainError, ValueError):
    """There is no algorithm of this name."""


class Unsuitable(PlainError, ValueError):
    """An algorithm cannot see or act in these spaces with these values; says what to change."""


def module(name: str) -> str:
    """The module of an algorithm by name; raises UnknownAlgorithm, naming the nearest."""
    if name not in ALGORITHMS:
        known = ", ".join(ALGORITHMS)
        raise UnknownAlgorithm(f"no algorithm {name!r}: {did_you_mean(name, ALGORITHMS)}Expected one of {known}")
    return ALGORITHMS[name]


def load(name: str) -> Any:
    """The module of an algorithm; raises UnknownAlgorithm, naming the nearest."""
    return importlib.import_module(module(name))


def check_choice(act_space: Spaces, instead: str) -> None:
    """Raises Unsuitable, with the advice `instead`, unless the actions are one discrete choice."""
    if len(act_space) != 1 or any(s.kind != "discrete" or len(s.classes) != 1 for s in act_space.values()):
        kinds = {k: s.describe() for k, s in act_space.items()}
        raise Unsuitable(
            f"this search tries every action, so there must be one discrete one; the env has {kinds}. {instead}"
        )
