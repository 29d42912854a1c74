"""What a save of replay costs at equal write-backs, whatever replay holds.

    python -m bench.speed.saves [--rows 10000 100000 1000000] [--saves 200] [--directory DIR] >> results/saves.jsonl

Between two saves, 256 rows come and the `out/` of 8,192 different ones is written back. Replay is full, and so much was
written before that segments are cleaned. One JSON line per size: bytes and milliseconds of one save, the median and the
most of all; bytes on the disk for every byte of a live row.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any
from unittest import mock

import ml_dtypes
import numpy as np
import tyro

from bench.common import tell
from reverie import files
from reverie.replay.rows import Field
from reverie.replay.segments import Segments
from reverie.replay.sequences import Replay

STREAMS, LENGTH, ADDED, WRITTEN = 16, 16, 256, 8192
FIELDS = {
    "obs/vector": Field((24,), np.dtype(np.float32)),
    "reward": Field((), np.dtype(np.float32)),
    "is_first": Field((), np.dtype(bool)),
    "out/deter": Field((64,), np.dtype(ml_dtypes.bfloat16)),
}


class Counting:
    """The `os` of `reverie.files`, which counts the bytes that are written."""

    written = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(os, name)

    def pwrite(self, *args: Any) -> int:
        done = os.pwrite(*args)
        self.written += done
        return done


def measure(capacity: int, saves: int, directory: Path) -> None:
    replay = Replay(FIELDS, streams=STREAMS, length=LENGTH, capacity=capacity, seed=0, online=False)
    rng, streams, segments = np.random.default_rng(0), np.arange(STREAMS), Segments(directory)
    steps = ADDED // STREAMS
    chunk = {k: np.ones((steps, STREAMS, *f.shape), f.dtype) for k, f in FIELDS.items()}
    out = {"out/deter": np.ones((WRITTEN, 64), ml_dtypes.bfloat16)}
    while len(replay) < replay.capacity:
        replay.extend(streams, chunk)
    manifests = [segments.save(replay)]
    length = sum(s["length"] for s in manifests[0]["segments"])
    patches = WRITTEN * (8 + 128)
    before = int(3 * length / patches) + 1  # dead bytes exceed live ones by then, and have been cleaned away
    figures = []
    for save in range(before + saves):
        replay.extend(streams, chunk)
        replay.update(replay.ids(rng.choice(replay.capacity, WRITTEN, replace=False)), out)
        with mock.patch.object(files, "os", Counting()) as counting:
            begin = time.perf_counter()
            manifests = [*manifests[-1:], segments.save(replay)]
            seconds = time.perf_counter() - begin
        segments.collect_garbage(manifests)
        if save >= before:
            figures.append((counting.written, seconds))
    written, took = [x for x, _ in figures], [1e3 * x for _, x in figures]
    disk = sum(path.stat().st_size for path in directory.iterdir())
    record = {
        "bench": "saves",
        "name": f"{capacity} rows",
        "bytes": int(statistics.median(written)),
        "most_bytes": max(written),
        "ms": round(statistics.median(took), 2),
        "most_ms": round(max(took), 2),
        "new_bytes": patches + ADDED * (8 + sum(f.nbytes for f in FIELDS.values())),
        "disk_per_live_row": round(disk / length, 3),
    }
    tell(record)


def main(rows: tuple[int, ...] = (10_000, 100_000, 1_000_000), saves: int = 200, directory: Path | None = None) -> None:
    for capacity in rows:
        with tempfile.TemporaryDirectory(dir=directory) as temporary:
            measure(capacity, saves, Path(temporary) / "replay")


if __name__ == "__main__":
    tyro.cli(main)
