"""What is compiled computes what `--debug` computes, one operation after another."""

from __future__ import annotations

from typing import Any

import dreamer
import fakes
import jax
import numpy as np
import planners
import pytest

from reverie.algos.dreamer import v2 as dreamer_v2
from reverie.run.checkpoint import flatten
from reverie.run.jitted import JittedAgent

# Of the largest element of each array, plus what stands for zero. The rounding of one update is 3e-7, and updates build
# on each other: 2e-5 was measured after fifty.
TOLERANCE, NOTHING = 2e-4, 1e-6


def tiny(algorithm: str) -> Any:
    if algorithm == "dreamer_v3":
        return dreamer.small_agent(vector_layers=1, imagination=2)
    if algorithm == "dreamer_v2":
        config = dreamer_v2.Config(deter=8, classes=2, hidden=8, units=8, layers=1, slow_every=3, imagination=3)
        return dreamer_v2.make_agent(config, dreamer.OBS, dreamer.ACT, precision="float32")
    return planners.small_agent(algorithm)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize(
    ("algorithm", "updates"),
    # A fresh two-hot value of DreamerV3 is a sum of terms of 1e6 that cancel, in which rounding is a tenth: from the
    # second update on the numbers are others.
    [("dreamer_v2", 50), ("gumbel_muzero", 50), ("dreamer_v3", 1)],
)
def test_compiled_updates_are_those_of_debug_mode(algorithm: str, updates: int) -> None:
    agent = tiny(algorithm)
    compiled, eager = JittedAgent(agent), JittedAgent(agent)
    state, debugged = (jax.jit(agent.init)(jax.random.key(0)) for _ in range(2))
    for update in range(updates):
        planned = algorithm in planners.FAMILY
        batch = planners.random_batch(agent, update) if planned else dreamer.random_batch(agent, 2, 4, update)
        state, out, figures = compiled.update()(state, batch)
        with jax.disable_jit():
            debugged, expected, told = eager.update()(debugged, batch)
        assert compiled.names == eager.names
        np.testing.assert_allclose(figures, told, TOLERANCE, TOLERANCE, err_msg=f"metrics of update {update}")
        same(flatten(out), flatten(expected), f"what update {update} writes back")
    same(flatten(state), flatten(debugged), "the state in the end")


def same(one: dict[str, np.ndarray], other: dict[str, np.ndarray], what: str) -> None:
    assert one.keys() == other.keys()
    for name, array in one.items():
        if array.dtype.kind in "iub":
            np.testing.assert_array_equal(array, other[name], err_msg=f"{what}: {name}")
        elif array.size:
            wanted = other[name].astype(np.float64)
            error = np.abs(array.astype(np.float64) - wanted).max()
            allowed = (2**-8 if array.dtype == "bfloat16" else TOLERANCE) * np.abs(wanted).max() + NOTHING
            assert error <= allowed, f"{what}: {name} is off by {error:.3g}"


@pytest.mark.parametrize("algorithm", ["fake", "dreamer_v2"])
def test_several_updates_at_once_are_those_one_after_the_other(algorithm: str) -> None:
    space = {"action": dreamer.ACT["action"]} if algorithm == "fake" else {}
    agent = fakes.Fake(fakes.Config(), dreamer.OBS, space) if algorithm == "fake" else tiny(algorithm)
    compiled, batches = JittedAgent(agent), [dreamer.random_batch(agent, 2, 4, seed) for seed in range(3)]
    state, again = (jax.jit(agent.init)(jax.random.key(0)) for _ in range(2))
    outs, figures = [], []
    for batch in batches:
        state, out, metrics = compiled.update()(state, batch)
        outs.append(out)
        figures.append(metrics)
    stack = lambda trees: jax.tree.map(lambda *x: np.stack(x), *trees)
    again, out, metrics = compiled.update(count=3)(again, stack(batches))
    same(flatten(again), flatten(state), "the state in the end")
    same(flatten(out), flatten(stack(outs)), "what is written back")
    np.testing.assert_allclose(metrics, np.stack(figures), TOLERANCE, TOLERANCE)
    assert compiled.traces["train"] == compiled.traces["train x 3"] == 1
