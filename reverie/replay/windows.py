"""Where the windows begin that can be drawn: in order of time, one ring per stream."""

from __future__ import annotations

import numpy as np


class Windows:
    """The beginnings of all complete windows of `length` (L) rows, by stream, each of which holds `ring` rows at most.
    "Inside one episode" or "not over a damaged row" only decides what is added here.

    New windows may be served once each, as soon as they are complete: those that do not overlap, the oldest first; the
    ones that are dropped before their turn come in vain.
    """

    def __init__(self, streams: int, ring: int, length: int) -> None:
        self._ring, self._length = ring, length
        self._span = np.arange(length)
        self._starts = np.zeros((streams, ring), np.int64)  # ascending
        self._head = np.zeros(streams, np.int64)  # of `_starts`: the oldest
        self._tail = np.zeros(streams, np.int64)  # of `_starts`: one past the newest
        self._cursor = np.zeros(streams, np.int64)  # of `_starts`: the next to serve
        self.next = np.zeros(streams, np.int64)  # the t before which everything was served

    def __len__(self) -> int:
        return int((self._tail - self._head).sum())

    def drop(self, streams: np.ndarray, oldest: np.ndarray, steps: int) -> tuple[np.ndarray, np.ndarray] | None:
        """Forgets the windows that began before `oldest` [n], which are among the `steps` oldest of each stream [n].

        Returns `(streams, starts)` of those; None if there are none.
        """
        tail = self._tail[streams]
        places = self._head[streams] + np.arange(steps)[:, None]  # [U, n]
        overwritten = (places < tail) & (self._starts[streams, places % self._ring] < oldest)
        if not overwritten.any():
            return None
        step, n = np.nonzero(overwritten)
        stale_windows = streams[n], self._starts[streams[n], places[step, n] % self._ring]
        self._head[streams] += overwritten.sum(0)
        while True:  # those that waited for their turn waited in vain
            cursor = self._cursor[streams]
            late = (cursor < tail) & (self._starts[streams, cursor % self._ring] < oldest)
            if not late.any():
                return stale_windows
            self._advance(streams[late])

    def add(self, streams: np.ndarray, start: np.ndarray, complete: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Those that begin at `start` [U, n] of streams [n], in order of time, where they are `complete`.

        Returns `(streams, starts)` of these.
        """
        tail = self._tail[streams]
        places = tail + np.cumsum(complete, 0)  # [U, n], one past
        step, n = np.nonzero(complete)
        added = streams[n], start[step, n]
        self._starts[streams[n], (places[step, n] - 1) % self._ring] = added[1]
        self._tail[streams] = places[-1]
        # What overlaps the last window served is no new window.
        overlap = (complete & (start < self.next[streams])).sum(0)
        self._cursor[streams] += np.where(self._cursor[streams] == tail, overlap, 0)
        return added

    def put(self, stream: int, starts: np.ndarray) -> None:
        """All of one stream anew."""
        self._head[stream], self._tail[stream] = 0, starts.size
        self._starts[stream, : starts.size] = starts
        self._cursor[stream] = np.searchsorted(starts, self.next[stream])

    def draw(self, count: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """`(streams, starts)` of `count` windows, uniform over all."""
        windows = self._tail - self._head
        ends = np.cumsum(windows)
        draw = rng.integers(ends[-1], size=count)
        stream = np.searchsorted(ends, draw, side="right")
        place = self._head[stream] + draw - (ends - windows)[stream]
        return stream, self._starts[stream, place % self._ring]

    def between(self, stream: int, first: int, last: int) -> np.ndarray:
        """The beginnings in `first..last` of a stream, ascending."""
        places = np.arange(self._head[stream], self._tail[stream])
        starts = self._starts[stream, places % self._ring]
        return starts[np.searchsorted(starts, first) : np.searchsorted(starts, last, side="right")]

    def serve(self, most: int) -> list[tuple[int, int]]:
        """(stream, start) of up to `most` windows whose turn it is."""
        picks: list[tuple[int, int]] = []
        while len(picks) < most:
            ready = np.flatnonzero(self._cursor < self._tail)
            if not ready.size:
                break
            start = self._starts[ready, self._cursor[ready] % self._ring]
            oldest = int(start.argmin())
            picks.append((int(ready[oldest]), int(start[oldest])))
            self._advance(ready[oldest : oldest + 1])
        return picks

    def _advance(self, streams: np.ndarray) -> None:
        """Moves the turn of streams [n] past the windows they stand on and any that overlap."""
        cursor = self._cursor[streams]
        after = self._starts[streams, cursor % self._ring] + self._length
        places = cursor + self._span[:, None]  # [L, n]: only so many can overlap
        overlap = (places < self._tail[streams]) & (self._starts[streams, places % self._ring] < after)
        self.next[streams] = after
        self._cursor[streams] = cursor + overlap.sum(0)
