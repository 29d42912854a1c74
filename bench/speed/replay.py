"""What replay costs: drawing and writing back a batch of 16 x 65 rows, adding, saving; and what priorities add to it.

    python -m bench.speed.replay [--rows 100000] [--directory DIR]

Two kinds of row, as a small Dreamer stores them: with 24 numbers, and with a 64 x 64 image. One
JSON line per figure; `*_per_memcpy` is the time relative to copying the same number of bytes in one
piece. With priorities: batches of 256 windows of 16 rows from ten times as many rows, as a small MuZero draws them,
uniformly and by priority in turn.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import ml_dtypes
import numpy as np
import tyro

from bench.common import tell
from reverie.replay.rows import PRIORITY, Field, Row, bytes_per_row
from reverie.replay.segments import Segments
from reverie.replay.sequences import Replay

BATCH, CONTEXT, LENGTH, STREAMS = 16, 1, 65, 16
CHUNK = 64  # steps that an env on the device hands over at once

COMMON = {
    "reward": Field((), np.dtype(np.float32)),
    "is_first": Field((), np.dtype(bool)),
    "is_last": Field((), np.dtype(bool)),
    "is_terminal": Field((), np.dtype(bool)),
    "action/action": Field((), np.dtype(np.int32)),
    "out/deter": Field((512,), np.dtype(ml_dtypes.bfloat16)),
    "out/stoch": Field((32,), np.dtype(np.uint8)),
}
KINDS = {
    "vector": {"obs/vector": Field((24,), np.dtype(np.float32)), **COMMON},
    "image": {"obs/image": Field((64, 64, 3), np.dtype(np.uint8)), **COMMON},
}


def emit(name: str, value: float, unit: str) -> None:
    figure = {"bench": "replay", "name": name, "value": float(f"{value:.4g}"), "unit": unit}
    tell(figure)


def microseconds(call: Callable[[], object], times: int) -> float:
    """Median time of one call."""
    call()
    seconds = []
    for _ in range(times):
        begin = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - begin)
    return 1e6 * statistics.median(seconds)


def memcpy(nbytes: int) -> float:
    """Median microseconds to copy `nbytes` in one piece into fresh memory."""
    source = np.ones(nbytes, np.uint8)
    return microseconds(lambda: source.copy(), 50)


def some_rows(fields: dict[str, Field], *lead: int) -> Row:
    rng = np.random.default_rng(0)
    return {k: rng.integers(0, 2, (*lead, *f.shape)).astype(f.dtype) for k, f in fields.items()}


def measure(kind: str, capacity: int, directory: Path) -> None:
    fields = KINDS[kind]
    replay = Replay(fields, streams=STREAMS, length=LENGTH, capacity=capacity, seed=0)
    streams, row = np.arange(STREAMS), some_rows(fields, STREAMS)
    for _ in range(replay.ring):
        replay.add(streams, row)
    emit(f"{kind}_bytes_per_row", bytes_per_row(fields), "B")
    for _ in range(capacity // LENGTH // BATCH + 1):  # what waits in the online queue comes first
        replay.sample(BATCH)

    payload = BATCH * LENGTH * sum(f.nbytes for f in fields.values())
    sample = microseconds(lambda: replay.sample(BATCH), 300)
    emit(f"{kind}_sample", sample, "us")
    emit(f"{kind}_sample_per_memcpy", sample / memcpy(payload), "x")

    ids = [replay.sample(BATCH)["id"][:, CONTEXT:] for _ in range(8)]
    outs = {k: f for k, f in fields.items() if k.startswith("out/")}
    values = some_rows(outs, BATCH, LENGTH - CONTEXT)
    turn = iter(range(10**9))
    update = microseconds(lambda: replay.update(ids[next(turn) % len(ids)], values), 300)
    emit(f"{kind}_update", update, "us")
    emit(f"{kind}_update_per_memcpy", update / memcpy(sum(v.nbytes for v in values.values())), "x")
    add = microseconds(lambda: replay.add(streams, row), 300)
    emit(f"{kind}_add_16_streams", add, "us")
    chunk = some_rows(fields, CHUNK, STREAMS)
    extend = microseconds(lambda: replay.extend(streams, chunk), 50)
    emit(f"{kind}_extend_16_streams_{CHUNK}_steps", extend, "us")
    emit(f"{kind}_extend_per_add_of_the_same_rows", extend / CHUNK / add, "x")

    segments = Segments(directory / kind)
    begin = time.perf_counter()
    length = sum(s["length"] for s in segments.save(replay)["segments"])
    first = time.perf_counter() - begin
    emit(f"{kind}_first_save", 1e3 * first, "ms")
    emit(f"{kind}_first_save_rate", length / first / 1e6, "MB/s")
    for _ in range(1000 // STREAMS):
        replay.add(streams, row)
        replay.update(replay.sample(BATCH)["id"][:, CONTEXT:], values)
    begin = time.perf_counter()
    manifest = segments.save(replay)
    emit(f"{kind}_save_after_1000_rows", 1e3 * (time.perf_counter() - begin), "ms")
    begin = time.perf_counter()
    Segments(directory / kind).load(replay, manifest)
    emit(f"{kind}_load", 1e3 * (time.perf_counter() - begin), "ms")


def measure_priorities(capacity: int) -> None:
    batch, length = 256, 16
    fields = {
        "obs/vector": Field((24,), np.dtype(np.float32)),
        **{k: COMMON[k] for k in ("reward", "is_first", "is_last", "is_terminal", "action/action")},
        "out/policy": Field((4,), np.dtype(np.float32)),
        "out/value": Field((), np.dtype(np.float32)),
    }
    prioritised = fields | {PRIORITY: Field((), np.dtype(np.float32))}
    uniform, drawn = (
        Replay(f, streams=STREAMS, length=length, capacity=capacity, seed=0, online=False)
        for f in (fields, prioritised)
    )
    streams, rng = np.arange(STREAMS), np.random.default_rng(0)
    for replay in (uniform, drawn):
        chunk = some_rows(replay.fields, 1000, STREAMS)
        while len(replay) < replay.capacity:
            replay.extend(streams, chunk)
    for _ in range(capacity // 4 // batch):  # a quarter of all have a priority of their own
        ids = drawn.sample(batch)["id"][:, :1]
        drawn.update(ids, {PRIORITY: rng.lognormal(0, 1, ids.shape).astype(np.float32)})
    both = (uniform, drawn)
    turns = [[microseconds(partial(replay.sample, batch), 50) for replay in both] for _ in range(6)]
    plain, weighed = (statistics.median(turn) for turn in zip(*turns, strict=True))
    emit("uniform_sample_256x16", plain, "us")
    emit("priority_sample_256x16", weighed, "us")
    emit("priority_sample_per_uniform", weighed / plain, "x")
    values = {PRIORITY: np.ones((batch, 1), np.float32)}
    emit("priority_update_256", microseconds(lambda: drawn.update(ids, values), 300), "us")
    for name, replay in (("uniform", uniform), ("priority", drawn)):
        row = some_rows(replay.fields, STREAMS)
        emit(f"{name}_add_16_streams", microseconds(partial(replay.add, streams, row), 300), "us")


def main(rows: int = 100_000, directory: Path | None = None) -> None:
    """Measures replay.

    Args:
      rows: rows held.
      directory: where to save to (default: a temporary directory).
    """
    with tempfile.TemporaryDirectory(dir=directory) as temporary:
        for kind in KINDS:
            measure(kind, rows, Path(temporary))
    measure_priorities(10 * rows)


if __name__ == "__main__":
    tyro.cli(main)
