from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reverie.replay.sequences import ID_BITS, Field, Replay, Row, bytes_per_row

FIELDS = {
    "obs/t": Field((), np.dtype(np.int32)),  # the row's own t
    "obs/stream": Field((), np.dtype(np.int32)),
    "is_first": Field((), np.dtype(bool)),
    "out/h": Field((2,), np.dtype(ml_dtypes.bfloat16)),
}


class Feed:
    """Adds rows that say where they belong, and remembers all of them."""

    def __init__(self, replay: Replay) -> None:
        self.replay = replay
        self.first: list[list[bool]] = [[] for _ in range(replay.streams)]

    def add(self, streams: list[int], first: list[bool] | None = None) -> None:
        first = [not self.first[s] for s in streams] if first is None else first
        t = np.array([len(self.first[s]) for s in streams])
        rows = {
            "obs/t": t.astype(np.int32),
            "obs/stream": np.array(streams, np.int32),
            "is_first": np.array(first, bool),
            "out/h": np.stack([t, t], -1).astype(ml_dtypes.bfloat16).reshape(-1, 2),
        }
        self.replay.add(np.array(streams, np.int64), rows)
        for s, f in zip(streams, first, strict=True):
            self.first[s].append(f)

    def windows(self) -> set[tuple[int, int]]:
        """(stream, start) of every window that may be drawn, by definition."""
        length, found = self.replay.length, set()
        for s, first in enumerate(self.first):
            for start in range(max(0, len(first) - self.replay.ring), len(first) - length + 1):
                inside = not any(first[start + 1 : start + length])
                if inside or not self.replay.within_episodes:
                    found.add((s, start))
        return found


def make(**changes: Any) -> Replay:
    values = {"streams": 2, "length": 3, "capacity": 20, "seed": 0, "online": False}
    return Replay(FIELDS, **{**values, **changes})


def drawn(batch: Row) -> list[tuple[int, int]]:
    """(stream, start) of the windows of a batch, having checked that its rows follow each other."""
    t, stream = batch["obs/t"], batch["obs/stream"]
    np.testing.assert_array_equal(t, t[:, :1] + np.arange(t.shape[1], dtype=np.int32))
    np.testing.assert_array_equal(stream, np.broadcast_to(stream[:, :1], stream.shape))
    np.testing.assert_array_equal(batch["id"], (stream.astype(np.int64) << ID_BITS) | t)
    return list(zip(stream[:, 0].tolist(), t[:, 0].tolist(), strict=True))


@settings(max_examples=200)
@given(
    pieces=st.lists(st.tuples(st.integers(0, 12), st.integers(0, 2**12)), min_size=1, max_size=8),
    length=st.integers(1, 5),
    ring=st.integers(0, 6),
    within=st.booleans(),
    online=st.booleans(),
)
def test_rows_at_once_are_rows_one_by_one(
    pieces: list[tuple[int, int]], length: int, ring: int, within: bool, online: bool
) -> None:
    made = {
        "streams": 2,
        "length": length,
        "capacity": 2 * (length + ring),
        "within_episodes": within,
        "online": online,
    }
    one, many, t = make(**made), make(**made), 0
    streams = np.array([1, 0])
    for steps, coins in pieces:
        at = np.arange(t, t + steps).repeat(2).reshape(steps, 2)
        rows = {
            "obs/t": at.astype(np.int32),
            "obs/stream": np.broadcast_to(streams, (steps, 2)).astype(np.int32),
            "is_first": ((coins >> at % 13) & 1).astype(bool),
            "out/h": np.stack([at, at], -1).astype(ml_dtypes.bfloat16),
        }
        many.extend(streams, rows)
        for u in range(steps):
            one.add(streams, {key: x[u] for key, x in rows.items()})
        t += steps
        assert one.state() == many.state()
        assert one.windows == many.windows
        for name in ("held", "unsaved", "dirty"):
            np.testing.assert_array_equal(getattr(one, name), getattr(many, name))
        for key, array in one.arrays.items():
            np.testing.assert_array_equal(array, many.arrays[key])
        if one.can_sample():
            a, b = one.sample(3), many.sample(3)
            for key in a:
                np.testing.assert_array_equal(a[key], b[key])


STREAMS = st.lists(st.dictionaries(st.integers(0, 2), st.booleans(), min_size=1), min_size=1, max_size=60)


@settings(max_examples=300)
@given(adds=STREAMS, length=st.integers(1, 6), ring=st.integers(0, 9), within=st.booleans())
def test_exactly_the_windows_that_exist_are_drawn(
    adds: list[dict[int, bool]], length: int, ring: int, within: bool
) -> None:
    replay = make(streams=3, length=length, capacity=3 * (length + ring), within_episodes=within)
    feed = Feed(replay)
    for add in adds:
        feed.add(list(add), list(add.values()))
        expected = feed.windows()
        assert replay.windows == len(expected)
        assert replay.can_sample() == bool(expected)
    if expected:
        assert set(drawn(replay.sample(40 * len(expected)))) == expected
    assert len(replay) == sum(min(len(f), replay.ring) for f in feed.first)
    assert replay.added == sum(len(f) for f in feed.first)
    kept = (replay.state(), replay.windows)
    replay.reindex()
    assert (replay.state(), replay.windows) == kept
    if expected:
        assert set(drawn(replay.sample(40 * len(expected)))) == expected


@settings(max_examples=300)
@given(
    adds=STREAMS,
    length=st.integers(1, 6),
    ring=st.integers(0, 9),
    within=st.booleans(),
    every=st.integers(1, 7),
)
def test_online_windows_come_once_in_order_without_overlap(
    adds: list[dict[int, bool]], length: int, ring: int, within: bool, every: int
) -> None:
    replay = make(
        streams=3,
        length=length,
        capacity=3 * (length + ring),
        within_episodes=within,
        online=True,
    )
    feed, served = Feed(replay), []
    for i, add in enumerate(adds):
        feed.add(list(add), list(add.values()))
        if i % every == 0:
            picks = replay._serve(1)
            assert set(picks) <= feed.windows()
            served += picks
    served += replay._serve(10**6)
    for s in range(3):
        starts = [start for stream, start in served if stream == s]
        assert (np.diff(starts) >= length).all()
    if replay.ring > len(adds):  # nothing was overwritten: what was served covers all that is new
        for s, start in feed.windows():
            assert any(s == stream and abs(start - t) < length for stream, t in served)
        if not within:
            for s, first in enumerate(feed.first):
                whole = range(0, len(first) - length + 1, length)
                assert [t for stream, t in served if stream == s] == list(whole)


def test_a_complete_window_is_served_at_once_and_once() -> None:
    replay = make(streams=1, length=4, capacity=100, online=True)
    feed, served = Feed(replay), []
    for t in range(40):
        feed.add([0])
        if replay.can_sample():
            first = drawn(replay.sample(1))[0][1]
            if t % 4 == 3:
                assert first == t - 3
                served.append(first)
    assert served == list(range(0, 40, 4))


def test_online_windows_overwritten_before_their_turn_are_dropped() -> None:
    replay = make(streams=1, length=4, capacity=10, online=True)
    feed = Feed(replay)
    for _ in range(25):  # rows 15..24 are held: the windows at 16 and 20 are whole
        feed.add([0])
    assert replay._serve(10) == [(0, 16), (0, 20)]


def chi_square(counts: np.ndarray) -> float:
    """The statistic of "all equal", in standard deviations from its expectation."""
    expected = counts.sum() / counts.size
    statistic = ((counts - expected) ** 2 / expected).sum()
    freedom = counts.size - 1
    return float((statistic - freedom) / np.sqrt(2 * freedom))


@pytest.mark.parametrize("within", [False, True])
def test_every_window_is_equally_likely(within: bool) -> None:
    # Streams of different age, one of them wrapped, episodes of many lengths.
    replay = make(streams=3, length=5, capacity=180, within_episodes=within, seed=3)
    feed, rng = Feed(replay), np.random.default_rng(0)
    for i in range(150):
        streams = [0] + [1] * (i < 50) + [2] * (i < 12)
        feed.add(streams, [bool(s < 2 and rng.random() < 0.08) for s in streams])
    windows = sorted(feed.windows())
    picks = drawn(replay.sample(200 * len(windows)))
    index = {window: i for i, window in enumerate(windows)}
    counts = np.bincount([index[p] for p in picks], minlength=len(windows))
    assert abs(chi_square(counts)) < 4
    # The test can fail: a sampler that picks the stream first is far from it.
    lengths = np.bincount([s for s, _ in windows])
    biased = np.concatenate([np.full(n, 200 * len(windows) / lengths.size / n) for n in lengths])
    assert chi_square(biased) > 40


def test_different_seeds_draw_differently() -> None:
    batches = []
    for seed in (0, 0, 1):
        replay = make(seed=seed)
        feed = Feed(replay)
        for _ in range(10):
            feed.add([0, 1])
        batches.append(replay.sample(50)["id"])
    np.testing.assert_array_equal(batches[0], batches[1])
    assert not np.array_equal(batches[0], batches[2])


def test_write_back_reaches_the_rows_and_counts_the_overwritten() -> None:
    replay = make(streams=1, length=2, capacity=5)
    feed = Feed(replay)
    for _ in range(5):
        feed.add([0])
    ids = np.array([[0, 1], [3, 4]])
    for _ in range(2):  # rows 0 and 1 are overwritten by 5 and 6
        feed.add([0])
    values = {"out/h": np.full((2, 2, 2), 9, ml_dtypes.bfloat16)}
    assert replay.update(ids, values) == 2 == replay.skipped
    batch = replay.sample(100)
    nine = batch["out/h"][..., 0] == ml_dtypes.bfloat16(9)
    np.testing.assert_array_equal(nine, np.isin(batch["obs/t"], [3, 4]))
    np.testing.assert_array_equal(replay.ids(np.flatnonzero(replay.dirty)), [3, 4])


def test_samples_are_fresh_and_keep_their_dtypes() -> None:
    replay = make()
    feed = Feed(replay)
    for _ in range(10):
        feed.add([0, 1])
    batch = replay.sample(4)
    assert {k: v.dtype for k, v in batch.items()} == {
        **{k: f.dtype for k, f in FIELDS.items()},
        "id": np.dtype(np.int64),
    }
    assert all(batch[k].shape == (4, 3, *f.shape) for k, f in FIELDS.items())
    before = {k: a.copy() for k, a in replay.arrays.items()}
    for key in FIELDS:
        batch[key][:] = 1
    for key, array in replay.arrays.items():
        np.testing.assert_array_equal(array, before[key])


def test_memory_is_known_before_anything_is_allocated() -> None:
    huge = {"obs/image": Field((64, 64, 3), np.dtype(np.uint8)), **FIELDS}
    row = bytes_per_row(huge)
    assert row >= 64 * 64 * 3 + 4 + 4 + 1 + 4
    replay = make()
    own = sum(a.nbytes for a in replay.arrays.values()) + replay.held.nbytes * 3
    assert replay.nbytes == 20 * bytes_per_row(FIELDS) == own + replay._starts.nbytes + 20 * 8


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"obs/t": None}, "obs/t: missing, expected int32"),
        ({"obs/x": np.zeros(1, np.int32)}, "obs/x: not a key"),
        ({"obs/t": np.zeros(1, np.int64)}, "obs/t: given int64"),
        ({"out/h": np.zeros((1, 3), ml_dtypes.bfloat16)}, r"out/h: given bfloat16 \[1, 3\]"),
    ],
)
def test_rows_that_do_not_fit_are_refused(change: dict[str, Any], message: str) -> None:
    replay = make()
    feed = Feed(replay)
    feed.add([0])
    rows: dict[str, Any] = {
        "obs/t": np.zeros(1, np.int32),
        "obs/stream": np.zeros(1, np.int32),
        "is_first": np.zeros(1, bool),
        "out/h": np.zeros((1, 2), ml_dtypes.bfloat16),
        **change,
    }
    with pytest.raises(ValueError, match=message):
        replay.add(np.array([0]), {k: v for k, v in rows.items() if v is not None})
    assert replay.added == 1


def test_misuse_is_explained() -> None:
    replay = make()
    feed = Feed(replay)
    with pytest.raises(ValueError, match="can_sample"):
        replay.sample(1)
    feed.add([0, 1])
    rows = {k: np.zeros((2, *f.shape), f.dtype) for k, f in FIELDS.items()}
    for streams in ([0, 0], [0, 2]):
        with pytest.raises(ValueError, match="streams must differ and be below 2"):
            replay.add(np.array(streams), rows)
    with pytest.raises(ValueError, match="raise the capacity to 6"):
        make(capacity=5)
    with pytest.raises(ValueError, match="needs the key is_first"):
        Replay({"reward": Field((), np.dtype(np.float32))}, streams=1, length=1, capacity=9, seed=0,
               within_episodes=True)  # fmt: skip
    ids = np.array([0])
    with pytest.raises(ValueError, match=r"the rows have \['out/h'\]"):
        replay.update(ids, {"obs/t": np.zeros(1, np.int32)})
    with pytest.raises(ValueError, match=r"given float32 \[1, 2\]"):
        replay.update(ids, {"out/h": np.zeros((1, 2), np.float32)})
    with pytest.raises(ValueError, match="never added"):
        replay.update(np.array([1]), {"out/h": np.zeros((1, 2), ml_dtypes.bfloat16)})
    with pytest.raises(ValueError, match=r"outside 0\.\.1"):
        replay.update(np.array([2 << ID_BITS]), {"out/h": np.zeros((1, 2), ml_dtypes.bfloat16)})


# ------------------------------------------------------------------------------------ looking


@pytest.mark.parametrize("within_episodes", [False, True])
def test_a_look_finds_every_longer_window_and_changes_nothing(within_episodes: bool) -> None:
    replay = make(online=True, within_episodes=within_episodes)
    feed = Feed(replay)
    for t in range(17):  # stream 0 wraps around its ring of 10
        feed.add([0, 1] if t < 6 else [0], [t % 4 == 0] * (2 if t < 6 else 1))
    before = replay.state()
    rng = np.random.default_rng(0)
    expected = {(0, t) for t in range(7, 13)} | {(1, 0), (1, 1)}  # 5 rows: whatever begins inside
    assert set(drawn(replay.look(500, 5, rng))) == expected
    assert replay.look(3, 5, rng)["out/h"].dtype == ml_dtypes.bfloat16
    assert replay.state() == before
    assert len(set(drawn(replay.look(8, 5, rng)))) == 8, "none twice"
    assert replay.longest == 10
    with pytest.raises(ValueError, match="no 11 rows follow each other"):
        replay.look(1, 11, rng)


def test_a_look_passes_over_lost_rows() -> None:
    replay = make()
    feed = Feed(replay)
    for _ in range(8):
        feed.add([0])
    replay.held[3] = False
    assert set(drawn(replay.look(200, 3, np.random.default_rng(0)))) == {(0, 0), (0, 4), (0, 5)}
    assert replay.longest == 4
    assert make().longest == 0
