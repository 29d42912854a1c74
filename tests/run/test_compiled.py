"""What is compiled computes what `--debug` computes, one operation after another."""

from __future__ import annotations

from typing import Any

import dreamer
import jax
import numpy as np
import planners
import pytest

from reverie.run.checkpoint import flatten
from reverie.run.compiled import Compiled

UPDATES = 50
# Of the largest element of each array; the errors of single sums are 1e-7, and updates build on each other.
TOLERANCE, NOTHING = 1e-3, 1e-6
FIGURES = 1e-4  # of each metric


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("algorithm", ["dreamer_v3", "gumbel_muzero"])
def test_compiled_updates_are_those_of_debug_mode(algorithm: str) -> None:
    agent: Any
    if algorithm == "dreamer_v3":
        agent = dreamer.small_agent(vector_layers=1, imagination=2)
        batches = [dreamer.random_batch(agent, length=3, seed=seed) for seed in range(UPDATES)]
    else:
        agent = planners.small_agent(algorithm)
        batches = [planners.random_batch(agent, seed) for seed in range(UPDATES)]
    compiled, eager = Compiled(agent), Compiled(agent)
    state, debugged = (jax.jit(agent.init)(jax.random.key(0)) for _ in range(2))
    for update, batch in enumerate(batches):
        state, out, figures = compiled.train(state, batch)
        with jax.disable_jit():
            debugged, expected, told = eager.train(debugged, batch)
        np.testing.assert_allclose(figures, told, FIGURES, FIGURES, err_msg=f"metrics of update {update}")
        same(flatten(out), flatten(expected), f"what update {update} writes back")
    same(flatten(state), flatten(debugged), "the state in the end")


def same(one: dict[str, np.ndarray], other: dict[str, np.ndarray], what: str) -> None:
    assert one.keys() == other.keys()
    for name, array in one.items():
        if array.dtype.kind in "iub":
            np.testing.assert_array_equal(array, other[name], err_msg=f"{what}: {name}")
        else:
            wanted = other[name].astype(np.float64)
            error = np.abs(array.astype(np.float64) - wanted).max(initial=0.0)
            assert error <= TOLERANCE * np.abs(wanted).max(initial=0.0) + NOTHING, (
                f"{what}: {name} is off by {error:.3g}"
            )
