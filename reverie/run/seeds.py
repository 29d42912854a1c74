"""All randomness of a run, from its one seed."""

from __future__ import annotations

from typing import NamedTuple

import jax
import numpy as np


class Seeds(NamedTuple):
    """Independent seeds of the parts that draw numbers on the host."""

    envs: int
    evaluation: int
    replay: int


def seeds(seed: int) -> Seeds:
    return Seeds(*(int(x) for x in np.random.SeedSequence(seed).generate_state(3)))


class Keys(NamedTuple):
    """Independent keys of the parts that draw numbers on the device."""

    init: jax.Array
    policy: jax.Array
    evaluation: jax.Array


def keys(seed: int) -> Keys:
    return Keys(*jax.random.split(jax.random.key(seed), 3))


def evaluation_key(seed: int, moment: int) -> jax.Array:
    """The policy's key in an evaluation at this moment of a run: whenever it is played, it is the same."""
    return jax.random.fold_in(keys(seed).evaluation, moment)
