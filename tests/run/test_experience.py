from __future__ import annotations

import itertools
from fractions import Fraction

import fakes
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from reverie.config import RunConfig
from reverie.envs.base import Space, action_vector
from reverie.replay.rows import Field
from reverie.replay.sequences import Replay
from reverie.run import experience
from reverie.run.experience import Ratio, WriteBack


@pytest.mark.parametrize("priorities", [False, True])
def test_what_a_batch_will_be_is_known_while_replay_is_empty(priorities: bool) -> None:
    run = RunConfig(env="x", envs=2, batch=5, length=3)
    agent = fakes.Fake(
        fakes.Config(priorities=priorities), {"vector": Space("vector", (3,))}, {"action": action_vector((2,))}
    )
    replay, promised = experience.replay_of(run, agent), experience.shapes(run, agent)
    for _ in range(4):
        replay.add(np.arange(2), {k: np.zeros((2, *x.shape), x.dtype) for k, x in replay.fields.items()})
    batch = replay.sample(run.batch)
    del batch["id"]
    assert promised == {key: jax.ShapeDtypeStruct(x.shape, x.dtype) for key, x in batch.items()}
    assert ("weight" in batch) == priorities
    batch = experience.draw(run, replay, 0, count=3)
    assert batch.pop("id").shape == (3, 5, 4)
    assert experience.shapes(run, agent, 3) == {k: jax.ShapeDtypeStruct(x.shape, x.dtype) for k, x in batch.items()}


@given(
    ratio=st.decimals(min_value=0, max_value=2000, places=3),
    batch=st.integers(1, 5000),
    start=st.integers(0, 3000),
    steps=st.integers(0, 30_000),
)
def test_updates_are_exact_at_any_time(ratio: float, batch: int, start: int, steps: int) -> None:
    ratio = float(ratio)
    assert Ratio(ratio, batch, start).total(steps) == int(Fraction(str(ratio)) * max(0, steps - start) / batch)


def test_a_tenth_is_a_tenth() -> None:
    # With binary floats, 0.1 * 3 steps and the like drift over a long run.
    counter = Ratio(0.1, batch_steps=1, start=0)
    assert [counter.total(10 * step) for step in range(10_001)] == list(range(10_001))
    assert counter.total(10**12) == 10**11


def test_nothing_is_due_before_the_start_and_nothing_is_caught_up() -> None:
    counter = Ratio(32, batch_steps=16, start=100)
    assert [counter.total(s) for s in (50, 100, 101, 102)] == [0, 0, 2, 4]


def test_no_steps_ask_for_more_than_the_most() -> None:
    counter = Ratio(3.7, 16, 10)
    found = {counter.total(step + 8) - counter.total(step) for step in range(10, 2000)}
    assert found == {1, 2}
    assert counter.most(8) == 2


def test_there_is_no_burst() -> None:
    counter = Ratio(3.7, 1024, 10)
    totals = [counter.total(s) for s in range(0, 20_000, 7)]
    assert {after - before for before, after in itertools.pairwise(totals)} == {0, 1}


def test_results_are_written_back_one_update_late_also_after_a_resume() -> None:
    names = {"is_first": bool, "is_last": bool, "is_terminal": bool, "out/value": np.float32}
    replay = Replay({k: Field((), np.dtype(x)) for k, x in names.items()}, streams=1, length=2, capacity=8, seed=0)
    for _ in range(4):
        replay.add(np.arange(1), {k: np.zeros(1, x) for k, x in names.items()})
    ids = np.arange(4).reshape(2, 2)
    out = lambda value: {"out/value": jnp.full((1, 2), value, jnp.float32)}
    held = lambda: replay.arrays["out/value"][:4].tolist()
    late = WriteBack(replay)
    assert late.arrays() == {}
    late.follow(ids[:1], out(1))
    assert held() == [0, 0, 0, 0]
    late.follow(ids[1:], out(2))
    assert held() == [1, 1, 0, 0]
    resumed = WriteBack(replay)
    resumed.restore({k: np.array(x) for k, x in late.arrays().items()})
    resumed.follow(ids[:1], {})
    assert held() == [1, 1, 2, 2]
    assert resumed.arrays() == {}, "an update that recomputes nothing"
