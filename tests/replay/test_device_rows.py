"""Rows on a device are the rows of the host: the same draws, the same write-back, the same files."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from reverie.replay import device_rows
from reverie.replay.device_rows import DeviceRows
from reverie.replay.rows import ID_BITS, PRIORITY, Field
from reverie.replay.segments import Segments
from reverie.replay.sequences import Replay

FIELDS = {
    "obs/image": Field((4, 3), np.dtype(np.uint8)),
    "obs/x": Field((), np.dtype(np.float32)),
    "action/a": Field((), np.dtype(np.int32)),
    "reward": Field((), np.dtype(np.float32)),
    **{name: Field((), np.dtype(bool)) for name in ("is_first", "is_last", "is_terminal")},
    "out/h": Field((2,), np.dtype(ml_dtypes.bfloat16)),
    "out/code": Field((), np.dtype(np.uint8)),
}
PRIORITISED = FIELDS | {PRIORITY: Field((), np.dtype(np.float32))}
Z = np.random.default_rng(0)


def make(on_device: bool, fields: dict[str, Field] = FIELDS, **changes: Any) -> Replay:
    values = {"streams": 3, "length": 4, "capacity": 60, "seed": 0, "context": 1}
    return Replay(fields, store=DeviceRows if on_device else None, **{**values, **changes})


def rows(fields: dict[str, Field], *lead: int) -> dict[str, np.ndarray]:
    return {key: Z.normal(size=(*lead, *f.shape), scale=50).astype(f.dtype) for key, f in fields.items()}


def learn(replays: list[Replay], fields: dict[str, Field], updates: int) -> None:
    """Some turns: rows come, batches are drawn, and a device writes back what it found."""
    for update in range(updates):
        row, several = rows(fields, 3), rows(fields, 2, 3)
        found = {"out/h": rows(fields, 5, 3)["out/h"], "out/code": rows(fields, 5, 2)["out/code"]}
        if PRIORITY in fields:
            found[PRIORITY] = np.abs(rows(fields, 5, 1)[PRIORITY])
        batches = []
        for replay in replays:
            replay.add(np.arange(3), row)
            replay.extend(np.arange(3), several)
            if replay.can_sample():
                batch = replay.sample(5)
                there = {k: jax.numpy.asarray(x) if replay.store and k != PRIORITY else x for k, x in found.items()}
                ids, age = batch["id"][:, 1:], 9 * (update % 2)  # of which some were overwritten
                replay.update(np.where(ids % (1 << ID_BITS) >= age, ids - age, ids), there)
                batches.append(batch)
        for one, other in itertools.pairwise(batches):
            same(one, other)


def same(one: dict[str, Any], other: dict[str, Any]) -> None:
    assert one.keys() == other.keys()
    for key, x in one.items():
        assert (x.dtype, x.shape) == (other[key].dtype, other[key].shape), key
        assert x.tobytes() == np.asarray(other[key]).tobytes(), key


def content(replay: Replay) -> dict[str, np.ndarray]:
    found = replay.read(np.flatnonzero(replay.held), list(replay.fields))
    return {key: x.view(replay.fields[key].stored) for key, x in found.items()}


@pytest.mark.parametrize("fields", [FIELDS, PRIORITISED])
def test_draws_and_write_back_are_those_of_the_host_to_the_bit(fields: dict[str, Field]) -> None:
    host, there = make(False, fields), make(True, fields)
    learn([host, there], fields, 30)
    assert host.skipped > 0
    assert host.state() == there.state()
    same(content(host), content(there))
    same(host.samples(4, [0.0, 1.0]), there.samples(4, [0.0, 1.0]))
    look = lambda replay: replay.look(4, 6, np.random.default_rng(1))
    same(look(host), look(there))


def test_what_is_only_learned_from_lies_on_the_device() -> None:
    there = make(True, PRIORITISED)
    assert there.arrays.keys() == {"reward", "is_first", "is_last", "is_terminal", PRIORITY}
    learn([there], PRIORITISED, 3)
    batch = there.sample(2)
    assert {key for key, x in batch.items() if isinstance(x, jax.Array)} == PRIORITISED.keys() - there.arrays.keys()


@pytest.mark.parametrize("first", [False, True])
def test_what_one_saves_the_other_goes_on_with(tmp_path: Path, first: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device_rows, "BLOCK", 8)
    host, there = make(False), make(True)
    learn([host, there], FIELDS, 12)
    segments = [Segments(tmp_path / name) for name in ("host", "there")]
    manifests = [each.save(replay) for each, replay in zip(segments, (host, there), strict=True)]
    learn([host, there], FIELDS, 2)
    manifests = [each.save(replay) for each, replay in zip(segments, (host, there), strict=True)]
    assert manifests[0] == manifests[1]
    files = [{path.name: path.read_bytes() for path in (tmp_path / x).iterdir()} for x in ("host", "there")]
    assert files[0] == files[1]
    again = make(first)
    assert Segments(tmp_path / "host").load(again, manifests[0]) == 0
    same(content(host), content(again))
    other = make(not first)
    other.take(again)
    same(content(host), content(other))


def test_of_equal_slots_the_last_counts_and_beyond_the_end_nothing_is_written() -> None:
    store = DeviceRows({"out/x": Field((2,), np.dtype(np.float32))}, 5)
    values = np.arange(12, dtype=np.float32).reshape(2, 3, 2)
    store.set(np.array([4, 1, 4, 5, 1, 9]), {"out/x": values})
    expected = np.zeros((5, 2))
    expected[4], expected[1] = values[0, 2], values[1, 1]
    np.testing.assert_array_equal(store.read(np.arange(5), ["out/x"])["out/x"], expected)


def test_no_column_is_written_anew_for_a_few_rows() -> None:
    """A CPU's compiler scatters bfloat16 as float32 of the whole array."""
    fields = {"out/x": Field((64,), np.dtype(jnp.bfloat16)), "obs/y": Field((64,), np.dtype(np.float32))}
    store = DeviceRows(fields, 10_000)
    rows = {key: jnp.ones((4, 64), field.dtype) for key, field in fields.items()}
    program = device_rows._set.lower(store._columns, np.arange(4, dtype=np.int32), rows).compile()
    assert program.memory_analysis().temp_size_in_bytes < 10_000
    store.set(np.arange(4), rows)
    assert store.gather(np.arange(5))["out/x"].dtype == jnp.bfloat16
    np.testing.assert_array_equal(store.gather(np.arange(5))["out/x"].astype(float).sum(-1), [64, 64, 64, 64, 0])


def test_rows_in_any_number_are_compiled_for_a_few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device_rows, "BLOCK", 64)
    store, expected = DeviceRows({"obs/x": Field((), np.dtype(np.int32))}, 300), np.zeros(300, np.int32)
    before = device_rows._set._cache_size()
    for count in range(1, 150, 7):
        slots, values = Z.permutation(300)[:count], Z.integers(0, 99, count, np.int32)
        expected[slots] = values
        store.fill(slots, {"obs/x": values})
        np.testing.assert_array_equal(store.read(slots, ["obs/x"])["obs/x"], values)
    np.testing.assert_array_equal(store.read(np.arange(300), ["obs/x"])["obs/x"], expected)
    assert device_rows._set._cache_size() - before <= 7
