"""Four ways to keep what MuZero trains on: bytes per env step, and the time to put one batch together.

    python -m bench.speed.layouts [--gigabytes 0.1] [--batch 256] [--out results/layouts.jsonl]

      rows       ours: each step once, in rings; windows are cut when they are drawn, all in one look-up per key
      games      a dict of arrays per game, of its own length (the paper's pseudocode)
      slices     the same, cut after 200 steps, with what the steps near a cut need of their neighbours stored twice
      examples   one record per step, with all that is needed to train on it, targets computed when it was stored

What a batch must hold is asked in two ways. `root`: the stacked observation of the root, with actions, rewards, values
and policies as far as the targets reach. `window`: the observations of all these steps too, for fresh targets
(Reanalyse) or a consistency loss. `rows` always hands out the whole window.

    stack - 1 rows   |   root   |   K = 5 unrolled   |   n more, for the last value target
    [------------------------------- L rows: a window -------------------------------]

All are filled up to the same number of bytes, as `tracemalloc` counts them, so that caches help none. One JSON line per
figure.
"""

from __future__ import annotations

import statistics
import time
import tracemalloc
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tyro

from bench.common import origin, tell
from reverie.replay.rows import Field, Row, bytes_per_row
from reverie.replay.sequences import Replay

UNROLL, STREAMS, SLICE = 5, 16, 200


@dataclass(frozen=True)
class Kind:
    """What a step looks like, and how many of them a target needs."""

    image: tuple[int, ...]
    stack: int
    actions: int
    bootstrap: int  # n of the value target
    games: tuple[int, int]  # steps of the shortest and the longest game

    @property
    def context(self) -> int:
        return self.stack - 1

    @property
    def window(self) -> int:
        return self.context + 1 + UNROLL + self.bootstrap

    @property
    def fields(self) -> dict[str, Field]:
        return {
            "obs/image": Field(self.image, np.dtype(np.uint8)),
            "reward": Field((), np.dtype(np.float32)),
            **{flag: Field((), np.dtype(bool)) for flag in ("is_first", "is_last", "is_terminal")},
            "action/action": Field((), np.dtype(np.int32)),
            "out/policy": Field((self.actions,), np.dtype(np.float32)),
            "out/value": Field((), np.dtype(np.float32)),
        }

    def rows(self, rng: np.random.Generator, *lead: int) -> Row:
        return {
            k: rng.integers(0, 256, (*lead, f.nbytes), np.uint8).view(f.dtype).reshape(*lead, *f.shape)
            if f.dtype != bool
            else np.zeros((*lead, *f.shape), bool)
            for k, f in self.fields.items()
        }


KINDS = {
    "atari": Kind((96, 96, 1), stack=4, actions=18, bootstrap=10, games=(600, 1400)),
    "board": Kind((6, 7, 2), stack=1, actions=7, bootstrap=36, games=(7, 42)),  # to the end of any game
}


class Rows:
    """Ours."""

    def __init__(self, kind: Kind, nbytes: int, whole: bool) -> None:
        fields = kind.fields
        capacity = nbytes // bytes_per_row(fields)
        self.replay = Replay(
            fields, streams=STREAMS, length=kind.window, capacity=capacity, seed=0, online=False, context=kind.context
        )
        chunk = kind.rows(np.random.default_rng(0), 64, STREAMS)
        while len(self.replay) < self.replay.capacity:
            self.replay.extend(np.arange(STREAMS), chunk)
        self.steps = len(self.replay)

    def sample(self, batch: int) -> Row:
        return self.replay.sample(batch)


class Games:
    """Pieces of games, each a dict of arrays: whole games, or cut after `most` steps.

    A piece has the rows that a window may reach beyond its own: before a game there is nothing to see, after it nothing
    happens. That of a whole game is filled in when a window is cut.
    """

    def __init__(self, kind: Kind, nbytes: int, whole: bool, most: int = 1 << 30) -> None:
        self.kind, self.whole = kind, whole
        self.rng = np.random.default_rng(0)
        self.pieces: list[Row] = []
        self.begin: list[int] = []  # of the first root in each piece
        roots: list[int] = []
        reach = kind.window - kind.context - 1
        while tracemalloc.get_traced_memory()[0] < nbytes:
            game = kind.rows(self.rng, int(self.rng.integers(kind.games[0], kind.games[1] + 1)))
            length = len(game["reward"])
            for first in range(0, length, most):
                last = min(first + most, length)
                low, high = max(0, first - kind.context), min(last + reach, length)
                self.pieces.append({k: x[low:high].copy() for k, x in game.items()})
                self.begin.append(first - low)
                roots.append(last - first)
        self.ends = np.cumsum(roots)
        self.steps = int(self.ends[-1])

    def sample(self, batch: int) -> Row:
        found: dict[str, list[np.ndarray]] = {k: [] for k in self.kind.fields}
        draws = self.rng.integers(self.steps, size=batch)
        for piece, draw in zip(np.searchsorted(self.ends, draws, side="right").tolist(), draws.tolist(), strict=True):
            first = draw - (int(self.ends[piece - 1]) if piece else 0) + self.begin[piece] - self.kind.context
            for key, array in self.pieces[piece].items():
                last = first + (self.kind.window if self.whole or key != "obs/image" else self.kind.stack)
                part = array[max(0, first) : last]
                if len(part) < last - first:  # beyond an end of the game
                    padded = np.zeros((last - first, *array.shape[1:]), array.dtype)
                    padded[max(0, -first) : max(0, -first) + len(part)] = part
                    part = padded
                found[key].append(part)
        return {k: np.stack(x) for k, x in found.items()}


class Slices(Games):
    def __init__(self, kind: Kind, nbytes: int, whole: bool) -> None:
        super().__init__(kind, nbytes, whole, SLICE)


class Examples:
    """One record per step. Targets are computed, so that nothing beyond the unrolled steps is kept but observations."""

    def __init__(self, kind: Kind, nbytes: int, whole: bool) -> None:
        self.rng = np.random.default_rng(0)
        steps = UNROLL + 1
        record = {
            "obs/image": Field((kind.window if whole else kind.stack, *kind.image), np.dtype(np.uint8)),
            "action/action": Field((UNROLL,), np.dtype(np.int32)),
            "reward": Field((steps,), np.dtype(np.float32)),
            "value": Field((steps,), np.dtype(np.float32)),
            "policy": Field((steps, kind.actions), np.dtype(np.float32)),
        }
        self.steps = nbytes // sum(f.nbytes for f in record.values())
        self.arrays = {k: np.empty((self.steps, *f.shape), f.dtype) for k, f in record.items()}
        for array in self.arrays.values():
            array.reshape(-1).view(np.uint8)[:] = 1  # the pages are there

    def sample(self, batch: int) -> Row:
        draws = self.rng.integers(self.steps, size=batch)
        return {k: x.take(draws, axis=0) for k, x in self.arrays.items()}


LAYOUTS: dict[str, Callable[[Kind, int, bool], Rows | Games | Examples]] = {
    "rows": Rows,
    "games": Games,
    "slices": Slices,
    "examples": Examples,
}


def measure(kind: str, whole: bool, nbytes: int, batch: int) -> dict[str, dict[str, object]]:
    """The figures of every layout."""
    layouts: dict[str, Any] = {}
    figures: dict[str, dict[str, object]] = {}
    for name, make in LAYOUTS.items():
        tracemalloc.start()
        layout = layouts[name] = make(KINDS[kind], nbytes, whole)
        taken = tracemalloc.get_traced_memory()[0]
        tracemalloc.stop()  # it would slow down what is timed
        handed = sum(x.nbytes for x in layout.sample(batch).values())
        figures[name] = {
            "bytes_per_step": round(taken / layout.steps, 1),
            "steps": layout.steps,
            "batch_mb": round(handed / 1e6, 2),
        }
    seconds: dict[str, list[float]] = {name: [] for name in layouts}
    for _ in range(40):  # in turns, so that other work on the machine hits all alike
        for name, layout in layouts.items():
            begin = time.perf_counter()
            layout.sample(batch)
            seconds[name].append(time.perf_counter() - begin)
    for name, spent in seconds.items():
        figures[name] |= {"sample_ms": float(f"{1e3 * statistics.median(spent):.4g}")}
        figures[name] |= {"best_ms": float(f"{1e3 * min(spent):.4g}")}
    return figures


def main(gigabytes: float = 0.1, batch: int = 256, out: Path | None = None) -> None:
    """Measures all layouts.

    Args:
      gigabytes: of each.
      batch: windows drawn at once.
      out: file to append the lines to.
    """
    for kind in KINDS:
        for whole in (False, True):
            for name, figures in measure(kind, whole, int(gigabytes * 1e9), batch).items():
                line = {"bench": "layouts", "name": f"{kind}/{name}", "need": "window" if whole else "root", **figures}
                tell(line | {"batch": batch, "gigabytes": gigabytes} | origin(), out)


if __name__ == "__main__":
    tyro.cli(main)
