"""Replay: the streams of rows as they happened, and windows of them: all equally likely, or by priority.

    stream 0   . . . r r r r r r r r r|          |: the newest row
    stream 1         r r r r r|                  r: held,  .: overwritten by the ring
                       [-----]                   a window: L rows that follow each other

Rows lie in rings (`rows`), and training writes back to those it was given by their ids: what was overwritten in the
meantime is skipped and counted. The beginnings of all complete windows are kept (`windows`): a uniform draw is one
look-up.

If the rows have the key `out/priority` (float32, one number), a window is drawn in proportion to a power of the
priority of its **root**: the first row after the context, the one that training begins with.

    [ c r t t t ]        C = 1 row of context, r: the root, t: the rows after it
        |
        p^alpha          a row has the largest priority known until training writes another by id

Every row is the root of at most one window, so the tree of sums (`priorities`) has one leaf per slot, zero where no
window has its root. The leaves follow from the rows and the windows: `reindex` brings back the same draws.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from reverie.replay.priorities import Priorities, check
from reverie.replay.rows import ID_BITS, PRIORITY, Batch, Field, MakeStore, Rings, Row
from reverie.replay.windows import Windows

RARE = 0.01  # of all rows: what happens more often is met often enough


class Replay(Rings):
    """The newest `capacity` rows of `streams` streams; hands out windows of `length` rows.

    Args:
      fields: key -> shape and dtype, of every key a row has.
      streams: number of env instances. Each keeps its newest `capacity // streams` rows.
      length: rows of a window, `L = C + T`.
      capacity: rows held in all.
      seed: of the sampler.
      online: serve every new window once, as soon as it is complete, before uniform draws. Those windows follow each
        other without overlap, the oldest comes first, and the ones overwritten before their turn are dropped. Not with
        priorities: there the new ones are the likeliest anyway, and a window that was not drawn would have no weight.
      within_episodes: only windows that lie inside one episode (`is_first` at position 0 at most).
        Otherwise every window of a stream counts, whatever begins or ends in it.
      rare_share: share of the windows of a draw that hold a rare event among the rows after the context (see
        `events`), as long as replay has any. Not with priorities.
      context: C, the position of the root; only priorities and rare events care.
      alpha: power of the priorities by which windows are drawn.
      store: makes the place of what windows are not drawn by, see `Rings`; without it, that is the host's memory.

    Raises ValueError if a stream cannot hold one window.
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
        rare_share: float = 0.0,
        context: int = 0,
        alpha: float = 1.0,
        store: MakeStore | None = None,
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
            raise ValueError(f"{PRIORITY} is {priority}, expected float32 []")
        super().__init__(fields, streams, ring, store)
        self.length, self.online, self.within_episodes = length, online and not priority, within_episodes
        self.rare_share = rare_share
        self.skipped = 0  # ids of `update` that were overwritten before their values came
        self._rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence(seed)))
        self._span = np.arange(length)
        self._run = np.zeros(streams, np.int64)  # t since when rows follow each other unbroken
        self._windows = Windows(streams, ring, length)
        self._context = context
        self._priorities = Priorities(self.capacity, alpha) if priority else None

    @property
    def windows(self) -> int:
        """Windows that can be drawn now."""
        return len(self._windows)

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
        streams = np.asarray(streams)
        self.check(streams, rows)
        self._append(streams, {key: value[None] for key, value in rows.items()})

    def extend(self, streams: np.ndarray, rows: Row) -> None:
        """Appends U rows [U, n, ...] that follow each other to each of `streams`: what U calls of `add` do, at once."""
        streams = np.asarray(streams)
        steps = next((len(x) for x in rows.values() if x.ndim), 0)
        self.check(streams, rows, (steps,))
        # So few that no window is completed and overwritten by the same call.
        most = self.ring - self.length + 1
        for u in range(0, steps, most):
            self._append(streams, {key: value[u : u + most] for key, value in rows.items()})

    def _append(self, streams: np.ndarray, rows: Row) -> None:
        """Rows [U, n, ...] to streams [n], U <= ring - length + 1."""
        t, slots = self._put(streams, rows)
        if self._priorities:
            self.arrays[PRIORITY][slots] = self._priorities.highest
        stale_windows = self._windows.drop(streams, self._count[streams] - self.ring, len(t))
        if self._priorities and stale_windows:
            self._priorities.drop(self._roots(*stale_windows))
        run = self._run[streams]
        if self.within_episodes:
            run = np.maximum.accumulate(np.where(rows["is_first"], t, run))
            self._run[streams] = run[-1]
        start = t - (self.length - 1)
        added = self._windows.add(streams, start, run <= start)
        if self._priorities:
            roots = self._roots(*added)
            self._priorities.set(roots, self.arrays[PRIORITY][roots])

    def _roots(self, streams: np.ndarray, start: np.ndarray) -> np.ndarray:
        """The slots of the roots of the windows that begin at `start` [n]."""
        return streams * self.ring + (start + self._context) % self.ring

    def take(self, other: Replay) -> None:
        """Holds what `other` holds, of as many streams, under the same ids; the oldest rows are left out if there is no
        room. A key that is not the same there stays zero. Only for a replay that is empty."""
        assert not self._count.any(), "there are rows already"
        assert other.streams == self.streams, (other.streams, self.streams)
        self._count[:] = other._count
        theirs = np.flatnonzero(other.held)
        slots, live = self.slots(other.ids(theirs))
        for key, field in self.fields.items():
            if other.fields.get(key) == field:
                self.write(slots, other.read(theirs[live], [key]))
        if self._priorities:
            self.arrays[PRIORITY][slots] = self._priorities.highest
        self.held[slots] = self.unsaved[slots] = True
        self.reindex()

    # --- sampling ---------------------------------------------------------------------------------

    def sample(self, batch: int, beta: float = 1.0) -> Batch:
        """`batch` windows: new ones in their turn (see `online`), then uniform over all windows held. With priorities,
        all are drawn by these. The windows come in random order: who takes a part of a batch takes no part of replay
        more often than another.

        Returns key -> [B, L, ...] with the dtypes of `fields`, and `id` int64 [B, L]; with priorities also `weight`
        float32 [B], importance weights with the power `beta`, see `priorities`. The arrays are fresh; what lies in a
        `store` stays there. Raises ValueError while no window is complete (`can_sample`).
        """
        first, weight = self._draw(batch, beta)
        return self._rows(first, self._span) | weight

    def samples(self, batch: int, betas: Sequence[float]) -> Batch:
        """The batches of that many `sample`s, one after the other with these powers: key -> [K, B, L, ...]."""
        first, weights = zip(*(self._draw(batch, beta) for beta in betas), strict=True)
        return self._rows(np.stack(first), self._span) | {k: np.stack([x[k] for x in weights]) for k in weights[0]}

    def _draw(self, batch: int, beta: float) -> tuple[np.ndarray, Row]:
        """The ids [B] where the windows of a sample begin, and their `weight` if there are priorities."""
        if not self.can_sample():
            raise ValueError(
                f"no window of {self.length} rows is complete yet: {len(self)} rows in "
                f"{self.streams} streams. Ask can_sample() first, or raise the warm-up"
            )
        if self._priorities:
            roots, weight = self._priorities.draw(batch, self._rng, beta)
            return self.ids(roots) - self._context, {"weight": weight}
        picks = self._windows.serve(batch) if self.online else []
        window_ids = np.array([(stream << ID_BITS) | start for stream, start in picks], np.int64)
        rare = self._draw_rare(min(round(self.rare_share * batch), batch - len(picks)))
        stream, start = self._windows.draw(batch - len(picks) - len(rare), self._rng)
        first = np.concatenate([window_ids, rare, (stream << ID_BITS) | start])
        return self._rng.permutation(first) if len(picks) + len(rare) else first, {}

    def events(self) -> np.ndarray:
        """The slots of the rows that are rare and say what a task is about: ends of episodes by themselves, rewards of
        half the largest or more, and those of half the lowest or less, each if fewer than one row in a hundred is so.

        Looked for anew at every draw, so that nothing has to be saved: 6 ms for a million rows, on one core.
        """
        reward = np.where(self.held, self.arrays["reward"], 0)
        high, low = reward.max(), reward.min()
        kinds = [self.arrays["is_terminal"], (reward >= high / 2) & (high > 0), (reward <= low / 2) & (low < 0)]
        rare = [kind & self.held for kind in kinds if np.count_nonzero(kind & self.held) < RARE * len(self)]
        return np.flatnonzero(np.logical_or.reduce(rare)) if rare else np.zeros(0, np.int64)

    def _draw_rare(self, count: int) -> np.ndarray:
        """The ids where up to `count` windows begin that hold an event, each event equally likely.

        start ... start + C | ............ event ............ | start + L - 1
                  context   |        anywhere in these        |
        """
        events = self.events() if count else np.zeros(0, np.int64)
        if not events.size:
            return np.zeros(0, np.int64)
        ids = self.ids(self._rng.choice(events, count))
        first: list[int] = []
        for event in ids.tolist():
            stream, t = divmod(event, 1 << ID_BITS)
            starts = self._windows.between(stream, t - self.length + 1, t - self._context)
            if starts.size:
                first.append(stream << ID_BITS | int(self._rng.choice(starts)))
        return np.array(first, np.int64)

    # --- write-back -------------------------------------------------------------------------------

    def update(self, ids: np.ndarray, values: Mapping[str, Any]) -> int:
        """Writes what training recomputed to the rows it was given.

        Args:
          ids: int64 [..., T], as `sample` gave them.
          values: `out/<key>` -> [..., t, ...], dtypes of `fields`, for the first t <= T rows of each window: a key
            need not be known of all. Where an id stands twice, the last counts. Arrays of the host, or of the `store`
            for what lies there.

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

    def _write(self, ids: np.ndarray, values: Mapping[str, Any]) -> int:
        """Values [*, ...] to the rows `ids` [n] that are still there; returns how many are not."""
        slots, live = self.slots(ids)
        skipped = ids.size - int(np.count_nonzero(live))
        far = {key: value for key, value in values.items() if key not in self.arrays}
        for key in values.keys() - far.keys():
            array = self.arrays[key]
            flat = values[key].view(array.dtype).reshape(-1, *self.fields[key].shape)
            array[slots] = flat[live] if skipped else flat
        if far and self.store:
            places = np.full(ids.size, self.capacity)
            places[live] = slots
            self.store.set(places, far)
        self.dirty[slots] = True
        if self._priorities and PRIORITY in values and slots.size:
            self.dirty[self._priorities.learn(self.arrays[PRIORITY], slots, self.held)] = True
        return skipped

    # --- state -----------------------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        """JSON-able: everything but the rows themselves."""
        return {
            "count": self._count.tolist(),
            "next": self._windows.next.tolist(),
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
        self._windows.next[:] = state["next"]
        self.skipped = int(state["skipped"])
        self._rng = rng
        self.held[:] = self.unsaved[:] = self.dirty[:] = False
        if self._priorities:
            self._priorities.highest = highest
        self.reindex()

    def reindex(self) -> None:
        """Finds all windows anew from `held` and `is_first`; a row that is not held is in none of them."""
        starts = []
        for s in range(self.streams):
            t, run = self._unbroken(s, self.within_episodes)
            start = t - (self.length - 1)
            starts.append(start[run <= start])
            self._run[s] = run[-1] if t.size else 0
            self._windows.put(s, starts[s])
        if self._priorities:
            stream = np.repeat(np.arange(self.streams), [x.size for x in starts])
            roots = self._roots(stream, np.concatenate(starts))
            self._priorities.reset(roots, self.arrays[PRIORITY][roots])
