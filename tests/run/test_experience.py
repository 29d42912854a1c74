from __future__ import annotations

import json
from fractions import Fraction

import jax.numpy as jnp
import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from reverie.replay.rows import Field
from reverie.replay.sequences import Replay
from reverie.run.experience import Ratio, WriteBack


@given(
    ratio=st.decimals(min_value=0, max_value=2000, places=3),
    batch=st.integers(1, 5000),
    start=st.integers(0, 3000),
    jumps=st.lists(st.integers(0, 700), max_size=40),
)
def test_updates_done_are_exact_at_any_time(ratio: float, batch: int, start: int, jumps: list[int]) -> None:
    ratio = float(ratio)
    counter, done, steps = Ratio(ratio, batch, start), 0, 0
    for jump in jumps:
        steps += jump
        done += counter.due(steps)
        assert done == int(Fraction(str(ratio)) * max(0, steps - start) / batch) == counter.done
    assert counter.total(steps) == done


def test_a_tenth_is_a_tenth() -> None:
    # With binary floats, 0.1 * 3 steps and the like drift over a long run.
    counter = Ratio(0.1, batch_steps=1, start=0)
    assert sum(counter.due(step) for step in range(1, 100_001)) == 10_000
    assert counter.total(10**12) == 10**11


def test_nothing_is_due_before_the_start_and_nothing_is_caught_up() -> None:
    counter = Ratio(32, batch_steps=16, start=100)
    assert [counter.due(s) for s in (50, 100, 101, 102)] == [0, 0, 2, 2]


def test_no_burst_after_a_resume() -> None:
    through, halted = Ratio(3.7, 1024, 10), Ratio(3.7, 1024, 10)
    expected = [through.due(s) for s in range(0, 20_000, 7)]
    actual = []
    for steps in range(0, 20_000, 7):
        actual.append(halted.due(steps))
        state = json.loads(json.dumps(halted.state()))
        halted = Ratio(3.7, 1024, 10)
        halted.restore(state)
    assert actual == expected
    assert max(actual) == 1


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
