"""Rows in memory: preallocated rings, one array per key, so that memory is known before the first row and never grows.

A row is named by its **id**, `stream << 40 | t`, with `t` counting from the first row of its stream.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np

from reverie.replay import priorities

Row = dict[str, np.ndarray]
Batch = dict[str, Any]  # the same, some of it on a device

ID_BITS = 40  # of an id, for t: 10^12 rows per stream
_T = (1 << ID_BITS) - 1
PRIORITY = "out/priority"
# Bytes per row: held, unsaved, dirty; the begin of a window; two segment numbers in `segments`.
_BOOKKEEPING = 3 + 8 + 2 * 4


@dataclass(frozen=True)
class Field:
    """Shape and dtype of one key of a row, without leading axes. bfloat16 is allowed."""

    shape: tuple[int, ...]
    dtype: np.dtype

    @property
    def stored(self) -> np.dtype:
        """The dtype in memory. numpy copies the types it does not know (bfloat16) one by one: as
        integers of the same width they are fast."""
        dtype = np.dtype(self.dtype)
        return dtype if dtype.isbuiltin == 1 else np.dtype(f"u{dtype.itemsize}")

    def __str__(self) -> str:
        return f"{self.dtype} {list(self.shape)}"

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * np.dtype(self.dtype).itemsize


def bytes_per_row(fields: Mapping[str, Field]) -> int:
    """Memory of one row, bookkeeping included: known before anything is allocated."""
    tree = priorities.BYTES if PRIORITY in fields else 0
    return sum(f.nbytes for f in fields.values()) + _BOOKKEEPING + tree


@runtime_checkable
class Store(Protocol):
    """Some keys of all rows by their slots, in another place than the host's memory; see `device_rows`."""

    def gather(self, slots: np.ndarray) -> Mapping[str, Any]:
        """The rows in `slots` [...], where they are: key -> [..., *shape]."""

    def read(self, slots: np.ndarray, keys: list[str]) -> Row:
        """These keys of the rows in `slots` [n], on the host, in the dtypes that they are stored as."""

    def set(self, slots: np.ndarray, rows: Mapping[str, Any]) -> None:
        """Writes rows [..., *shape] to `slots` [n], where they are below the capacity; of equal slots, the last."""

    def fill(self, slots: np.ndarray, rows: Row) -> None:
        """The same for rows [n, *shape] of the host, of any number."""


MakeStore = Callable[[Mapping[str, Field], int], Store]  # takes fields and capacity


class Rings:
    """The newest `ring` rows of each stream; `fields` has the shape and dtype of every key of a row.

    There are flat arrays of `capacity` slots: `arrays` (the rows), `held` (the slot has a row), `unsaved` (the row came
    since the last save), `dirty` (its `out/` did). With a `store`, observations, actions and outs lie in that; `arrays`
    has the flags, rewards and priorities.
    """

    def __init__(self, fields: Mapping[str, Field], streams: int, ring: int, store: MakeStore | None = None) -> None:
        self.fields = dict(fields)
        self.streams, self.ring, self.capacity = streams, ring, streams * ring
        far = {k: f for k, f in fields.items() if store and k.startswith(("obs/", "action/", "out/")) and k != PRIORITY}
        self.store = store(far, self.capacity) if store else None
        # Zeros cost nothing until they are written to: the pages come as the rings fill.
        self.arrays = {k: np.zeros((self.capacity, *f.shape), f.stored) for k, f in fields.items() if k not in far}
        self.held, self.unsaved, self.dirty = np.zeros((3, self.capacity), bool)
        self._count = np.zeros(streams, np.int64)  # rows ever added

    def __len__(self) -> int:
        """Rows held now."""
        return int(np.count_nonzero(self.held))

    def check(self, streams: np.ndarray, rows: Row, lead: tuple[int, ...] = ()) -> None:
        """Raises what adding `rows` [*lead, n, ...] to `streams` [n] would raise, and adds nothing."""
        if np.bincount(streams, minlength=self.streams).max(initial=0) > 1 or (
            streams.size and streams.max() >= self.streams
        ):
            raise ValueError(f"streams must differ and be below {self.streams}; given {streams}")
        faults = [f"{key}: not a key of the rows" for key in rows.keys() - self.fields.keys()]
        for key, field in self.fields.items():
            want = (*lead, streams.size, *field.shape)
            if key not in rows:
                faults.append(f"{key}: missing, expected {field.dtype} {list(want)}")
            elif rows[key].dtype != field.dtype or rows[key].shape != want:
                column = rows[key]
                faults.append(f"{key}: given {column.dtype} {list(column.shape)}, expected {field.dtype} {list(want)}")
        if faults:
            raise ValueError("rows do not fit the replay:\n  " + "\n  ".join(sorted(faults)))

    def _put(self, streams: np.ndarray, rows: Row) -> tuple[np.ndarray, np.ndarray]:
        """Rows [U, n, ...] to streams [n], U at most the ring; returns their t [U, n] and their slots [U * n]."""
        steps = len(next(iter(rows.values())))
        t = self._count[streams] + np.arange(steps)[:, None]
        slots = (streams * self.ring + t % self.ring).reshape(-1)  # numpy is fastest with one flat index
        self.write(slots, {key: rows[key].reshape(-1, *field.shape) for key, field in self.fields.items()})
        self.held[slots] = True
        self.unsaved[slots] = True
        self.dirty[slots] = False
        self._count[streams] += steps
        return t, slots

    def write(self, slots: np.ndarray, rows: Row) -> None:
        """Puts some keys of rows, [n, ...], into `slots` [n]; `held`, `unsaved` and `dirty` are left to the caller."""
        for key, value in rows.items():
            if key in self.arrays:
                self.arrays[key][slots] = value.view(self.arrays[key].dtype)
        far = {key: value.view(self.fields[key].dtype) for key, value in rows.items() if key not in self.arrays}
        if self.store and far:
            self.store.fill(slots, far)

    def read(self, slots: np.ndarray, keys: list[str]) -> Row:
        """Some keys of the rows in `slots` [n], on the host: key -> [n, ...], in the dtypes that they are stored as."""
        far = self.store.read(slots, [key for key in keys if key not in self.arrays]) if self.store else {}
        return {key: far[key] if key in far else self.arrays[key].take(slots, axis=0) for key in keys}

    def _rows(self, first: np.ndarray, span: np.ndarray) -> Batch:
        """The rows held `span` [L] after the ids `first` [..., B]: key -> [..., B, L, ...]."""
        ids = first[..., None] + span
        slots = (ids >> ID_BITS) * self.ring + (ids & _T) % self.ring
        rows = {k: a.take(slots, axis=0).view(self.fields[k].dtype) for k, a in self.arrays.items()}
        return {**rows, **(self.store.gather(slots) if self.store else {}), "id": ids}

    def look(self, batch: int, length: int, rng: np.random.Generator) -> Batch:
        """`batch` windows of `length` rows that follow each other in one stream, uniform over all there are; `length`
        need not be the replay's own, and episodes may begin anywhere inside.

        Nothing of the replay changes, its random state included: whoever only looks takes nothing from training.

        Returns key -> [batch, length, ...] as `sample` does; a window comes twice only if there are fewer than
        `batch`. Raises ValueError while there is no window that long (`longest`).
        """
        found = []
        for stream in range(self.streams):
            t, run = self._unbroken(stream, within_episodes=False)
            start = t - (length - 1)
            found.append((stream << ID_BITS) | start[run <= start])
        starts = np.concatenate(found)
        if not starts.size:
            raise ValueError(f"no {length} rows follow each other: {len(self)} rows in {self.streams} streams")
        return self._rows(rng.choice(starts, batch, replace=starts.size < batch), np.arange(length))

    @property
    def longest(self) -> int:
        """Rows of the longest window that `look` finds."""
        runs = (self._unbroken(s, within_episodes=False) for s in range(self.streams))
        return max(int((t - run).max(initial=-1)) + 1 for t, run in runs)

    def slots(self, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Where the rows `ids` [n] lie: (slots [m] of those not overwritten, their mask [n])."""
        stream, t = ids >> ID_BITS, ids & _T
        if ids.size and (ids.min() < 0 or stream.max() >= self.streams):
            raise ValueError(f"ids name streams outside 0..{self.streams - 1}")
        age = self._count[stream] - t
        if ids.size and age.min() <= 0:
            raise ValueError("ids name rows that were never added")
        live = age <= self.ring
        slots = stream * self.ring + t % self.ring
        return (slots if live.all() else slots[live]), live

    def ids(self, slots: np.ndarray) -> np.ndarray:
        """The ids of the rows in `slots` [n]."""
        stream, place = np.divmod(slots, self.ring)
        newest = self._count[stream] - 1
        return (stream << ID_BITS) | (newest - (newest - place) % self.ring)

    def _unbroken(self, stream: int, within_episodes: bool) -> tuple[np.ndarray, np.ndarray]:
        """`t` of all rows of a stream, and for each the t since when rows follow each other up to it."""
        count = int(self._count[stream])
        t = np.arange(max(0, count - self.ring), count)
        slots = stream * self.ring + t % self.ring
        held = self.held[slots]
        seam = ~held
        seam[1:] |= ~held[:-1]
        seam[:1] = True
        if within_episodes:
            seam |= self.arrays["is_first"][slots]
        return t, np.maximum.accumulate(np.where(seam, t + ~held, 0))
