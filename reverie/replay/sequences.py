"""Replay: the streams of rows as they happened, and windows of them: all equally likely, or by priority.

    stream 0   . . . r r r r r r r r r|          |: the newest row
    stream 1         r r r r r|                  r: held,  .: overwritten by the ring
                       [-----]                   a window: L rows that follow each other

A row is named by its **id**, `stream << 40 | t`, with `t` counting from the first row of its
stream. Ids are how training writes back to the rows it was given: those overwritten in the meantime
are skipped and counted.

Rows lie in preallocated rings, one array per key, so memory is known before the first row and never
grows. The beginnings of all complete windows are kept in order of time, one ring per stream: a
uniform draw is one look-up, and "inside one episode" or "not over a damaged row" only decides what
enters that ring.

If the rows have the key `out/priority` (float32, one number), a window is drawn in proportion to a power of the
priority of its **root**: the first row after the context, the one that training begins with.

    [ c r t t t ]        C = 1 row of context, r: the root, t: the rows after it
        |
        p^alpha          a new row has the largest priority known so far; training writes others by id

Every row is the root of at most one window, so the tree of sums (`priorities`) has one leaf per slot, zero where no
window has its root. The leaves follow from the rows and the windows: `reindex` brings back the same draws.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from reverie.replay import priorities
from reverie.replay.priorities import Priorities, check

Row = dict[str, np.ndarray]

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

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * np.dtype(self.dtype).itemsize


def bytes_per_row(fields: Mapping[str, Field]) -> int:
    """Memory of one row, bookkeeping included: known before anything is allocated."""
    tree = priorities.BYTES if PRIORITY in fields else 0
    return sum(f.nbytes for f in fields.values()) + _BOOKKEEPING + tree


class Replay:
    """The newest `capacity` rows of `streams` streams; hands out windows of `length` rows.

    Args:
      fields: key -> shape and dtype, of every key a row has.
      streams: number of env instances. Each keeps its newest `capacity // streams` rows.
      length: rows of a window, `L = C + T`.
      capacity: rows held in all.
      seed: of the sampler.
      online: serve every new window once, as soon as it is complete, before uniform draws. Those
        windows follow each other without overlap, the oldest comes first, and the ones overwritten
        before their turn are dropped. Not with priorities: there the new ones are the likeliest anyway, and a window
        that was not drawn would have no weight.
      within_episodes: only windows that lie inside one episode (`is_first` at position 0 at most).
        Otherwise every window of a stream counts, whatever begins or ends in it.
      context: C, the position of the root; only priorities care.
      alpha: power of the priorities by which windows are drawn.
      beta: power of the importance weights.

    Raises ValueError if a stream cannot hold one window.

    For `segments` there are also the flat arrays of `capacity` slots: `arrays` (the rows), `held`
    (the slot has a row), `unsaved` (the row came since the last save), `dirty` (its `out/` did).
    """

    def __init__(
        self,
        fields: dict[str, Field],
        *,
        streams: int,
        length: int,
        capacity: int,
        seed: int,
        online: bool = True,
        within_episodes: bool = False,
        context: int = 0,
        alpha: float = 1.0,
        beta: float = 1.0,
    ) -> None:
        ring = capacity // streams
        if length < 1 or ring < length:
            raise ValueError(
                f"a stream must hold one window of {length} rows, but {capacity} rows over "
                f"{streams} streams are {ring} each: raise the capacity to "
                f"{streams * max(1, length)} or more, or use fewer envs or shorter windows"
            )
        if within_episodes and "is_first" not in fields:
            raise ValueError("within_episodes=True needs the key is_first in the rows")
        if not 0 <= context < length:
            raise ValueError(f"context is {context}, expected 0 to {length - 1}: a window has {length} rows")
        priority = fields.get(PRIORITY)
        if priority and (priority.shape, priority.dtype) != ((), np.float32):
            raise ValueError(f"{PRIORITY} is {priority.dtype} {list(priority.shape)}, expected float32 []")
        self.fields = dict(fields)
        self.streams, self.length, self.ring = streams, length, ring
        self.online, self.within_episodes = online and not priority, within_episodes
        self.capacity = streams * ring
        # Zeros cost nothing until they are written to: the pages come as the rings fill.
        self.arrays = {k: np.zeros((self.capacity, *f.shape), f.stored) for k, f in fields.items()}
        self.held, self.unsaved, self.dirty = np.zeros((3, self.capacity), bool)
        self.skipped = 0  # ids of `update` that were overwritten before their values came
        self._rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence(seed)))
        self._span = np.arange(length)
        self._count = np.zeros(streams, np.int64)  # rows ever added
        self._run = np.zeros(streams, np.int64)  # t since when rows follow each other unbroken
        self._starts = np.zeros((streams, ring), np.int64)  # beginnings of complete windows, ascending
        self._head = np.zeros(streams, np.int64)  # of `_starts`: the oldest
        self._tail = np.zeros(streams, np.int64)  # of `_starts`: one past the newest
        self._cursor = np.zeros(streams, np.int64)  # of `_starts`: the next to serve online
        self._next = np.zeros(streams, np.int64)  # t before which everything was served online
        self._context = context
        self._priorities = Priorities(self.capacity, alpha, beta) if priority else None

    def __len__(self) -> int:
        """Rows held now."""
        return int(np.count_nonzero(self.held))

    @property
    def added(self) -> int:
        """Rows ever added."""
        return int(self._count.sum())

    @property
    def nbytes(self) -> int:
        """Memory when full."""
        return self.capacity * bytes_per_row(self.fields)

    @property
    def windows(self) -> int:
        """Windows that can be drawn now."""
        return int((self._tail - self._head).sum())

    def can_sample(self) -> bool:
        return self.windows > 0

    # --- adding -----------------------------------------------------------------------------------

    def add(self, streams: np.ndarray, rows: Row) -> None:
        """Appends one row to each of `streams`.

        Args:
          streams: [n] integers, all different.
          rows: key -> [n, ...], exactly the keys, shapes and dtypes of `fields`.

        Raises ValueError naming every key that differs; nothing is added then.
        """
        self.check(streams, rows)
        streams = np.asarray(streams)
        self._append(streams, {key: value[None] for key, value in rows.items()})

    def check(self, streams: np.ndarray, rows: Row) -> None:
        """Raises what `add` would raise, and adds nothing."""
        streams = np.asarray(streams)
        self._check(streams, rows, (streams.size,))

    def extend(self, streams: np.ndarray, rows: Row) -> None:
        """Appends U rows that follow each other to each of `streams`: what U calls of `add` do, at once.

        Args:
          streams: [n] integers, all different.
          rows: key -> [U, n, ...], exactly the keys, shapes and dtypes of `fields`.

        Raises ValueError naming every key that differs; nothing is added then.
        """
        streams = np.asarray(streams)
        steps = next((len(x) for x in rows.values() if x.ndim), 0)
        self._check(streams, rows, (steps, streams.size))
        # So few that no window is completed and overwritten by the same call.
        most = self.ring - self.length + 1
        for u in range(0, steps, most):
            self._append(streams, {key: value[u : u + most] for key, value in rows.items()})

    def _check(self, streams: np.ndarray, rows: Row, lead: tuple[int, ...]) -> None:
        if np.bincount(streams, minlength=self.streams).max(initial=0) > 1 or (
            streams.size and streams.max() >= self.streams
        ):
            raise ValueError(f"streams must differ and be below {self.streams}; given {streams}")
        faults = [f"{key}: not a key of the rows" for key in rows.keys() - self.fields.keys()]
        for key, field in self.fields.items():
            want = (*lead, *field.shape)
            if key not in rows:
                faults.append(f"{key}: missing, expected {field.dtype} {list(want)}")
            elif rows[key].dtype != field.dtype or rows[key].shape != want:
                got = rows[key]
                faults.append(f"{key}: given {got.dtype} {list(got.shape)}, expected {field.dtype} {list(want)}")
        if faults:
            raise ValueError("rows do not fit the replay:\n  " + "\n  ".join(sorted(faults)))

    def _append(self, streams: np.ndarray, rows: Row) -> None:
        """Rows [U, n, ...] to streams [n], U <= ring - length + 1."""
        steps = len(next(iter(rows.values())))
        t = self._count[streams] + np.arange(steps)[:, None]  # [U, n]
        slots = (streams * self.ring + t % self.ring).reshape(-1)  # numpy is fastest with one flat index
        for key, array in self.arrays.items():
            array[slots] = rows[key].view(array.dtype).reshape(-1, *array.shape[1:])
        if self._priorities:
            self.arrays[PRIORITY][slots] = self._priorities.highest
        self.held[slots] = True
        self.unsaved[slots] = True
        self.dirty[slots] = False
        self._count[streams] += steps
        self._drop_windows(streams, steps)
        run = self._run[streams]
        if self.within_episodes:
            run = np.maximum.accumulate(np.where(rows["is_first"], t, run))
            self._run[streams] = run[-1]
        start = t - (self.length - 1)
        self._add_windows(streams, start, run <= start)

    def _drop_windows(self, streams: np.ndarray, steps: int) -> None:
        """Forgets the windows that began at one of the `steps` rows just overwritten in each stream."""
        oldest, tail = self._count[streams] - self.ring, self._tail[streams]
        places = self._head[streams] + np.arange(steps)[:, None]  # [U, n]
        gone = (places < tail) & (self._starts[streams, places % self.ring] < oldest)
        if not gone.any():
            return
        if self._priorities:
            step, n = np.nonzero(gone)
            self._priorities.drop(self._roots(streams[n], self._starts[streams[n], places[step, n] % self.ring]))
        self._head[streams] += gone.sum(0)
        while True:  # those that waited for their online turn waited in vain
            cursor = self._cursor[streams]
            late = (cursor < tail) & (self._starts[streams, cursor % self.ring] < oldest)
            if not late.any():
                return
            self._advance(streams[late])

    def _add_windows(self, streams: np.ndarray, start: np.ndarray, complete: np.ndarray) -> None:
        """The windows that begin at `start` [U, n], in order of time, where they are `complete`."""
        tail = self._tail[streams]
        places = tail + np.cumsum(complete, 0)  # [U, n], one past
        step, n = np.nonzero(complete)
        self._starts[streams[n], (places[step, n] - 1) % self.ring] = start[step, n]
        if self._priorities:
            roots = self._roots(streams[n], start[step, n])
            self._priorities.set(roots, self.arrays[PRIORITY][roots])
        self._tail[streams] = places[-1]
        # What overlaps the last window served online is no new window for the online queue.
        overlap = (complete & (start < self._next[streams])).sum(0)
        self._cursor[streams] += np.where(self._cursor[streams] == tail, overlap, 0)

    def _roots(self, streams: np.ndarray, start: np.ndarray) -> np.ndarray:
        """The slots of the roots of the windows that begin at `start` [n]."""
        return streams * self.ring + (start + self._context) % self.ring

    def take(self, other: Replay) -> None:
        """Holds what `other` holds, of as many streams, under the same ids; the oldest rows are left out if there is no
        room. A key that is not the same there stays zero. Only for a replay that is empty."""
        assert not self.added, "there are rows already"
        assert other.streams == self.streams, (other.streams, self.streams)
        self._count[:] = other._count
        theirs = np.flatnonzero(other.held)
        slots, live = self.slots(other.ids(theirs))
        for key, array in self.arrays.items():
            if other.fields.get(key) == self.fields[key]:
                array[slots] = other.arrays[key][theirs[live]]
        if self._priorities:
            self.arrays[PRIORITY][slots] = self._priorities.highest
        self.held[slots] = self.unsaved[slots] = True
        self.reindex()

    # --- sampling ---------------------------------------------------------------------------------

    def sample(self, batch: int, online: bool = True, beta: float | None = None) -> Row:
        """`batch` windows: new ones in their turn (see `online`), then uniform over all windows
        held. `online=False` only looks: the new ones keep their turn. With priorities, all are drawn by these. The
        windows come in random order: who takes a part of a batch takes no part of replay more often than another.
        `beta`: power of these importance weights, if not the replay's own.

        Returns key -> [B, L, ...] with the dtypes of `fields`, and `id` int64 [B, L]; with priorities also `weight`
        float32 [B], see `priorities`. The arrays are fresh. Raises ValueError while no window is complete
        (`can_sample`).
        """
        if not self.can_sample():
            raise ValueError(
                f"no window of {self.length} rows is complete yet: {len(self)} rows in "
                f"{self.streams} streams. Ask can_sample() first, or raise the warm-up"
            )
        if self._priorities:
            roots, weight = self._priorities.draw(batch, self._rng, beta)
            return {**self._windows(self.ids(roots) - self._context, self._span), "weight": weight}
        picks = self._serve(batch) if self.online and online else []
        served = np.array([(stream << ID_BITS) | start for stream, start in picks], np.int64)
        first = np.concatenate([served, self._draw(batch - len(picks))])
        return self._windows(self._rng.permutation(first) if picks else first, self._span)

    def _draw(self, count: int) -> np.ndarray:
        """The ids at which `count` windows begin, uniform over all."""
        windows = self._tail - self._head
        ends = np.cumsum(windows)
        draw = self._rng.integers(ends[-1], size=count)
        stream = np.searchsorted(ends, draw, side="right")
        place = self._head[stream] + draw - (ends - windows)[stream]
        return (stream << ID_BITS) | self._starts[stream, place % self.ring]

    def _windows(self, first: np.ndarray, span: np.ndarray) -> Row:
        """The rows held `span` [L] after the ids `first` [B]: key -> [B, L, ...]."""
        ids = first[:, None] + span
        slots = (ids >> ID_BITS) * self.ring + (ids & _T) % self.ring
        rows = {k: a.take(slots, axis=0).view(self.fields[k].dtype) for k, a in self.arrays.items()}
        return {**rows, "id": ids}

    def _serve(self, most: int) -> list[tuple[int, int]]:
        """(stream, start) of up to `most` windows whose online turn it is; each is served once."""
        picks: list[tuple[int, int]] = []
        while len(picks) < most:
            ready = np.flatnonzero(self._cursor < self._tail)
            if not ready.size:
                break
            start = self._starts[ready, self._cursor[ready] % self.ring]
            oldest = int(start.argmin())
            picks.append((int(ready[oldest]), int(start[oldest])))
            self._advance(ready[oldest : oldest + 1])
        return picks

    def _advance(self, streams: np.ndarray) -> None:
        """Moves the online turn of streams [n] past the windows they stand on and any that overlap."""
        cursor = self._cursor[streams]
        after = self._starts[streams, cursor % self.ring] + self.length
        places = cursor + self._span[:, None]  # [L, n]: only so many can overlap
        overlap = (places < self._tail[streams]) & (self._starts[streams, places % self.ring] < after)
        self._next[streams] = after
        self._cursor[streams] = cursor + overlap.sum(0)

    # --- looking ----------------------------------------------------------------------------------

    def look(self, batch: int, length: int, rng: np.random.Generator) -> Row:
        """`batch` windows of `length` rows that follow each other in one stream, uniform over all there are; `length`
        need not be the replay's own, and episodes may begin anywhere inside.

        Nothing of the replay changes, its random state included: whoever only looks takes nothing from training.

        Returns key -> [batch, length, ...] as `sample` does; a window comes twice only if there are fewer than
        `batch`. Raises ValueError while there is no window that long (`longest`).
        """
        starts = self._beginnings(length)
        if not starts.size:
            raise ValueError(f"no {length} rows follow each other: {len(self)} rows in {self.streams} streams")
        return self._windows(rng.choice(starts, batch, replace=starts.size < batch), np.arange(length))

    @property
    def longest(self) -> int:
        """Rows of the longest window that `look` finds."""
        runs = (self._unbroken(s, within_episodes=False) for s in range(self.streams))
        return max(int((t - run).max(initial=-1)) + 1 for t, run in runs)

    def _beginnings(self, length: int) -> np.ndarray:
        """The ids of all rows that begin a window of `length`."""
        found = [np.zeros(0, np.int64)]
        for s in range(self.streams):
            t, run = self._unbroken(s, within_episodes=False)
            found.append((s << ID_BITS) | (t[run <= t - (length - 1)] - (length - 1)))
        return np.concatenate(found)

    # --- write-back -------------------------------------------------------------------------------

    def update(self, ids: np.ndarray, values: Row) -> int:
        """Writes what training recomputed to the rows it was given.

        Args:
          ids: int64 [..., T], as `sample` gave them.
          values: `out/<key>` -> [..., t, ...], dtypes of `fields`, for the first t <= T rows of each window: a key
            need not be known of all. Where an id stands twice, the last counts.

        Returns the number of ids whose row was overwritten in the meantime: they are skipped (and
        added to `skipped`). Raises ValueError for keys, shapes, dtypes or ids that do not fit, and for priorities
        that are negative or not finite; nothing is written then.
        """
        last = ids.ndim - 1
        for key, value in values.items():
            field = self.fields.get(key) if key.startswith("out/") else None
            if field is None:
                known = sorted(k for k in self.fields if k.startswith("out/"))
                raise ValueError(f"cannot write back {key!r}: the rows have {known}")
            few = min(value.shape[last], ids.shape[last]) if last < value.ndim else ids.shape[last]
            if value.shape != (*ids.shape[:last], few, *field.shape) or value.dtype != field.dtype:
                raise ValueError(
                    f"cannot write back {key}: given {value.dtype} {list(value.shape)}, expected "
                    f"{field.dtype} {[*ids.shape, *field.shape]}, or fewer rows of each window"
                )
            if key == PRIORITY:
                check(value)
        skipped = 0
        for few in sorted({value.shape[last] for value in values.values()}, reverse=True):
            same = {key: value for key, value in values.items() if value.shape[last] == few}
            skipped = max(skipped, self._write(ids[..., :few].reshape(-1), same))
        self.skipped += skipped
        return skipped

    def _write(self, ids: np.ndarray, values: Row) -> int:
        """Values [*, ...] to the rows `ids` [n] that are still there; returns how many are not."""
        slots, live = self.slots(ids)
        skipped = ids.size - int(np.count_nonzero(live))
        for key, value in values.items():
            array = self.arrays[key]
            flat = value.view(array.dtype).reshape(-1, *self.fields[key].shape)
            array[slots] = flat[live] if skipped else flat
        self.dirty[slots] = True
        if self._priorities and PRIORITY in values and slots.size:
            written = self.arrays[PRIORITY][slots]
            self._priorities.highest = max(self._priorities.highest, float(written.max()))
            self._priorities.change(slots, written)
        return skipped

    # --- for segments: names of slots, and state --------------------------------------------------

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

    def state(self) -> dict[str, Any]:
        """JSON-able: everything but the rows themselves."""
        return {
            "count": self._count.tolist(),
            "next": self._next.tolist(),
            "skipped": self.skipped,
            "rng": self._rng.bit_generator.state,
            **({"highest_priority": self._priorities.highest} if self._priorities else {}),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Sets the counters and the sampler. No row is held until `segments` puts them back
        (`reindex`). Raises ValueError, TypeError or KeyError, before anything changes, for a state that cannot be."""
        rng = np.random.Generator(np.random.PCG64())
        rng.bit_generator.state = state["rng"]  # numpy's own checks
        highest = state["highest_priority"] if self._priorities else 0.0
        if not (type(highest) in (int, float) and 0 <= highest < np.inf):
            raise ValueError(f"the highest priority is {highest!r}, expected a number from 0 up")
        self._count[:] = state["count"]
        self._next[:] = state["next"]
        self.skipped = int(state["skipped"])
        self._rng = rng
        self.held[:] = self.unsaved[:] = self.dirty[:] = False
        if self._priorities:
            self._priorities.highest = highest
        self.reindex()

    def reindex(self) -> None:
        """Finds all windows anew from `held` and `is_first`; a row that is not held is in none of
        them."""
        for s in range(self.streams):
            t, run = self._unbroken(s, self.within_episodes)
            starts = t[run <= t - (self.length - 1)] - (self.length - 1)
            self._run[s] = run[-1] if t.size else 0
            self._head[s], self._tail[s] = 0, starts.size
            self._starts[s, : starts.size] = starts
            self._cursor[s] = np.searchsorted(starts, self._next[s])
        if self._priorities:
            stream = np.repeat(np.arange(self.streams), self._tail)
            starts = np.concatenate([self._starts[s, : self._tail[s]] for s in range(self.streams)])
            roots = self._roots(stream, starts)
            self._priorities.reset(roots, self.arrays[PRIORITY][roots])

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
