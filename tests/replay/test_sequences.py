from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reverie.replay.rows import ID_BITS, PRIORITY, Field, Row, bytes_per_row
from reverie.replay.sequences import Replay

FIELDS = {
    "obs/t": Field((), np.dtype(np.int32)),  # the row's own t
    "obs/stream": Field((), np.dtype(np.int32)),
    "is_first": Field((), np.dtype(bool)),
    "out/h": Field((2,), np.dtype(ml_dtypes.bfloat16)),
}
PRIORITISED = FIELDS | {PRIORITY: Field((), np.dtype(np.float32))}


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
        if PRIORITY in self.replay.fields:
            rows[PRIORITY] = np.full(t.shape, -1, np.float32)  # nobody asks the policy
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


def make(fields: dict[str, Field] = FIELDS, **changes: Any) -> Replay:
    values = {"streams": 2, "length": 3, "capacity": 20, "seed": 0, "online": False}
    return Replay(fields, **{**values, **changes})


def drawn(batch: Row) -> list[tuple[int, int]]:
    """(stream, start) of the windows of a batch, having checked that its rows follow each other."""
    t, stream = batch["obs/t"], batch["obs/stream"]
    np.testing.assert_array_equal(t, t[:, :1] + np.arange(t.shape[1], dtype=np.int32))
    np.testing.assert_array_equal(stream, np.broadcast_to(stream[:, :1], stream.shape))
    np.testing.assert_array_equal(batch["id"], (stream.astype(np.int64) << ID_BITS) | t)
    return list(zip(stream[:, 0].tolist(), t[:, 0].tolist(), strict=True))


STREAMS = st.lists(st.dictionaries(st.integers(0, 2), st.booleans(), min_size=1), min_size=1, max_size=60)


def check_windows(adds: list[dict[int, bool]], length: int, ring: int, within: bool) -> None:
    """Adds rows, `is_first` by stream, and compares what may be drawn with its definition all along."""
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
    assert replay._count.sum() == sum(len(f) for f in feed.first)
    kept = (replay.state(), replay.windows)
    replay.reindex()
    assert (replay.state(), replay.windows) == kept
    if expected:
        assert set(drawn(replay.sample(40 * len(expected)))) == expected


@settings(max_examples=300)
@given(adds=STREAMS, length=st.integers(1, 6), ring=st.integers(0, 9), within=st.booleans())
def test_exactly_the_windows_that_exist_are_drawn(
    adds: list[dict[int, bool]], length: int, ring: int, within: bool
) -> None:
    check_windows(adds, length, ring, within)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_hundred_thousand_random_streams() -> None:
    rng = np.random.default_rng(0)
    for _ in range(33_334):  # of three streams each
        ends = rng.random() ** 3  # from episodes that never end to those of one step
        adds = [
            {int(s): bool(rng.random() < ends) for s in rng.permutation(3)[: rng.integers(1, 4)]}
            for _ in range(int(rng.integers(1, 40)))
        ]
        check_windows(adds, int(rng.integers(1, 7)), int(rng.integers(10)), bool(rng.integers(2)))


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
            picks = replay._windows.serve(1)
            assert set(picks) <= feed.windows()
            served += picks
    served += replay._windows.serve(10**6)
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
    assert replay._windows.serve(10) == [(0, 16), (0, 20)]


@settings(max_examples=300)
@given(
    chunks=st.lists(
        st.tuples(st.sets(st.integers(0, 2), min_size=1), st.integers(0, 25), st.integers(0, 3)),
        min_size=1,
        max_size=8,
    ),
    length=st.integers(1, 6),
    ring=st.integers(0, 9),
    within=st.booleans(),
    fields=st.sampled_from([FIELDS, PRIORITISED]),
    seed=st.integers(0, 99),
)
def test_extend_is_that_many_calls_of_add(
    chunks: list[tuple[set[int], int, int]],
    length: int,
    ring: int,
    within: bool,
    fields: dict[str, Field],
    seed: int,
) -> None:
    values = {"streams": 3, "length": length, "capacity": 3 * (length + ring), "context": length // 2}
    one, other = (make(fields, **values, within_episodes=within, online=True) for _ in range(2))
    rng = np.random.default_rng(seed)
    for chosen, steps, served in chunks:
        streams = rng.permutation(sorted(chosen))
        rows = {
            "obs/t": rng.integers(0, 99, (steps, streams.size), np.int32),
            "obs/stream": rng.integers(0, 99, (steps, streams.size), np.int32),
            "is_first": rng.random((steps, streams.size)) < 0.2,
            "out/h": rng.random((steps, streams.size, 2)).astype(ml_dtypes.bfloat16),
            PRIORITY: rng.random((steps, streams.size), np.float32),
        }
        rows = {k: rows[k] for k in fields}
        one.extend(streams, rows)
        for u in range(steps):
            other.add(streams, {k: x[u] for k, x in rows.items()})
        for name in ("_run", "held", "unsaved", "dirty"):
            np.testing.assert_array_equal(getattr(one, name), getattr(other, name), name)
        for name in ("_head", "_tail", "_cursor"):
            np.testing.assert_array_equal(getattr(one._windows, name), getattr(other._windows, name), name)
        for key in fields:
            np.testing.assert_array_equal(one.arrays[key], other.arrays[key], key)
        assert one.state() == other.state()
        assert one._windows.serve(served) == other._windows.serve(served)
        if one.can_sample():
            expected, actual = other.sample(30), one.sample(30)
            for key in expected:
                np.testing.assert_array_equal(actual[key], expected[key], key)
            back = {"out/h": actual["out/h"] + 1, PRIORITY: rng.random(actual["id"].shape, np.float32)}
            back = {k: back[k] for k in fields if k in back}
            assert one.update(actual["id"], back) == other.update(actual["id"], back)


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


@pytest.mark.parametrize("online", [False, True])
@pytest.mark.parametrize("fields", [FIELDS, PRIORITISED])
def test_a_part_of_a_batch_has_every_window_as_often_as_the_whole(fields: dict[str, Field], online: bool) -> None:
    """Reanalysis renews the first rows of a batch: of its draws, every root must have the same share among them."""
    replay, share = make(fields, capacity=400, online=online, context=1, seed=1), 5
    feed, often, renewed = Feed(replay), np.zeros(400), np.zeros(400)
    rng = np.random.default_rng(0)
    for step in range(3000):
        if step < 150 or not step % 20:
            feed.add([0, 1])
        if replay.can_sample():
            batch = replay.sample(20)
            roots = batch["id"][:, 1]
            if PRIORITY in fields and step < 1000:  # new ones would be the largest for ever
                replay.update(batch["id"][:, 1:], {PRIORITY: rng.uniform(0.2, 5, (20, 1)).astype(np.float32)})
            places = replay.slots(roots)[0]
            np.add.at(often, places, 1)
            np.add.at(renewed, places[:share], 1)
    seen = often > 20
    expected = often[seen] * share / 20
    spread = (renewed[seen] - expected) / np.sqrt(expected * (1 - share / 20))
    assert seen.sum() > 300
    assert abs(spread.mean()) < 0.25
    assert 0.8 < spread.std() < 1.2, "binomial"


def test_a_window_served_in_its_turn_comes_at_any_place_of_the_batch() -> None:
    replay = make(online=True)
    feed, places = Feed(replay), []
    for _ in range(100):
        for _ in range(3):
            feed.add([0])
        newest = len(feed.first[0]) - 3
        found = [place for place, (_, t) in enumerate(drawn(replay.sample(10))) if t == newest]
        places.append(found[0] if len(found) == 1 else -1)
    assert set(range(10)) <= set(places)


@pytest.mark.parametrize("fields", [FIELDS, PRIORITISED])
def test_several_samples_at_once_are_those_one_after_the_other(fields: dict[str, Field]) -> None:
    one, other = make(fields, online=True), make(fields, online=True)
    for replay in (one, other):
        feed = Feed(replay)
        for _ in range(9):
            feed.add([0, 1])
    powers = [0.0, 0.5, 1.0]
    batches, together = [one.sample(3, power) for power in powers], other.samples(3, powers)
    assert together.keys() == batches[0].keys()
    for key, x in together.items():
        np.testing.assert_array_equal(x, np.stack([batch[key] for batch in batches]), err_msg=key)
    assert one.state() == other.state()


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
    assert 20 * bytes_per_row(FIELDS) == own + replay._windows._starts.nbytes + 20 * 8


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
    assert replay._count.sum() == 1


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
    with pytest.raises(ValueError, match=r"obs/t: given int32 \[2\], expected int32 \[2, 2\]"):
        replay.extend(np.array([0, 1]), rows)
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


# --------------------------------------------------------------------------------- priorities


@settings(max_examples=200)
@given(
    adds=STREAMS,
    length=st.integers(1, 5),
    ring=st.integers(0, 6),
    within=st.booleans(),
    seed=st.integers(0, 10**6),
)
def test_windows_are_drawn_by_the_priority_of_their_root(
    adds: list[dict[int, bool]], length: int, ring: int, within: bool, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    context = int(rng.integers(length))
    replay = make(
        PRIORITISED, streams=3, length=length, capacity=3 * (length + ring), within_episodes=within, context=context
    )
    feed, known = Feed(replay), {}  # (stream, t) -> priority, of every row ever added
    highest = 1.0

    def expected() -> dict[tuple[int, int], float]:
        """Window -> probability, by definition."""
        powers = {(s, start): known[s, start + context] for s, start in feed.windows()}
        return {window: power / sum(powers.values()) for window, power in powers.items()}

    for add in adds:
        known |= {(s, len(feed.first[s])): highest for s in add}
        feed.add(list(add), list(add.values()))
        assert replay.can_sample() == bool(expected())
        if replay.can_sample():
            ids = replay.sample(2)["id"][:, context:]
            if rng.random() < 0.5:
                values = rng.lognormal(0, 1.5, (2, rng.integers(1, ids.shape[1] + 1))).astype(np.float32)
                replay.update(ids, {PRIORITY: values})
                names = [(i >> ID_BITS, i & ((1 << ID_BITS) - 1)) for i in ids[:, : values.shape[1]].ravel().tolist()]
                written = dict(zip(names, values.ravel().tolist(), strict=True))
                before, highest = highest, max(highest, *written.values())
                known = {row: highest if value == before else value for row, value in known.items()} | written
    for _ in range(2):
        if not replay.can_sample():
            continue
        probability = expected()
        picks = drawn(replay.sample(2000))  # stratified: each comes as often as it should, but for the ends of its part
        assert set(picks) <= probability.keys()
        for window, share in probability.items():
            assert abs(picks.count(window) - 2000 * share) < 2.01
        replay.reindex()


def test_priorities_change_what_is_sampled() -> None:
    replay = make(PRIORITISED, streams=2, length=4, capacity=200, context=1)
    feed = Feed(replay)
    for _ in range(60):
        feed.add([0, 1])
    before = np.array([t == 20 for _, t in drawn(replay.sample(2000))])
    assert before.mean() < 0.05  # 2 of 114 windows
    ids = (np.arange(2)[:, None] << ID_BITS) | np.arange(1, 58)  # the roots of all windows
    replay.update(ids.reshape(-1, 1), {PRIORITY: np.where(ids == ids[:, [20]], 300, 1).reshape(-1, 1).astype("f4")})
    batch = replay.sample(2000)
    after = np.array([t == 20 for _, t in drawn(batch)])
    assert abs(after.mean() - 600 / (600 + 112)) < 0.01
    np.testing.assert_allclose(batch["weight"], np.where(after, 1 / 300, 1), rtol=1e-6)
    for _ in range(3):  # row 60 is new and as likely as the likeliest: the root of the windows at 59
        feed.add([0, 1])
    t = np.array([t for _, t in drawn(replay.sample(2000))])
    assert abs(np.mean(t == 59) - 600 / (2400 + 112)) < 0.01
    assert abs(np.mean(t == 57) - 600 / (2400 + 112)) < 0.01, "so are the windows whose roots had no priority yet"


def test_rows_that_were_never_trained_on_are_the_likeliest_whenever_they_came() -> None:
    """A warm-up is over before any priority is known. Its rows must not stay at 1 where the others have hundreds."""
    replay = make(PRIORITISED, streams=1, length=1, capacity=100)
    feed = Feed(replay)
    for _ in range(100):
        feed.add([0])
    replay.dirty[:] = replay.unsaved[:] = False
    trained = replay.sample(10)["id"]
    error = np.full((10, 1), 5, np.float32)
    error[0] = 700
    replay.update(trained, {PRIORITY: error})
    counts = np.bincount([t for _, t in drawn(replay.sample(10_000))], minlength=100)
    others = np.setdiff1d(np.arange(100), trained)
    np.testing.assert_allclose(counts[others], 10_000 * 700 / (91 * 700 + 9 * 5), atol=2)
    np.testing.assert_allclose(counts[trained[0]], counts[others[0]], atol=2)
    assert counts[trained[1:]].max() <= 3
    assert replay.dirty.all(), "a checkpoint has them too"
    replay.update(trained, {PRIORITY: np.full((10, 1), 9, np.float32)})  # lower ones change nothing elsewhere
    assert set(np.unique(replay.arrays[PRIORITY]).tolist()) == {9, 700}


def test_priorities_of_overwritten_rows_are_skipped() -> None:
    replay = make(PRIORITISED, streams=1, length=2, capacity=5)
    feed = Feed(replay)
    for _ in range(7):  # rows 0 and 1 are overwritten by 5 and 6
        feed.add([0])
    values = {PRIORITY: np.array([[9e6], [2]], np.float32), "out/h": np.zeros((2, 2, 2), ml_dtypes.bfloat16)}
    assert replay.update(np.array([[0, 1], [3, 4]]), values) == 2 == replay.skipped
    assert replay._priorities is not None
    assert replay._priorities.highest == 2
    np.testing.assert_array_equal(replay.arrays[PRIORITY], [2, 2, 2, 2, 2])
    replay.update(np.array([[2], [4]]), {PRIORITY: np.array([[1], [1]], np.float32)})
    counts = np.bincount([t for _, t in drawn(replay.sample(600))], minlength=7)  # rows 6 and 5 of the ring go on
    np.testing.assert_allclose(counts, [0, 0, 100, 200, 100, 200, 0], atol=1)


def test_a_prefix_is_written_back_to_the_first_rows() -> None:
    replay = make(PRIORITISED, streams=1, length=3, capacity=9)
    feed = Feed(replay)
    for _ in range(9):
        feed.add([0])
    ids = np.array([[0, 1, 2], [4, 5, 6]])
    values = {PRIORITY: np.full((2, 1), 0.5, np.float32), "out/h": np.full((2, 2, 2), 77, ml_dtypes.bfloat16)}
    assert replay.update(ids, values) == 0
    np.testing.assert_array_equal(np.flatnonzero(replay.arrays[PRIORITY] == 0.5), [0, 4])
    rows = replay.look(1, 9, np.random.default_rng(0))
    np.testing.assert_array_equal(np.flatnonzero(rows["out/h"][0, :, 0] == ml_dtypes.bfloat16(77)), [0, 1, 4, 5])
    np.testing.assert_array_equal(np.flatnonzero(replay.dirty), [0, 1, 4, 5])


def test_priorities_cost_memory_only_where_there_are_some() -> None:
    assert bytes_per_row(PRIORITISED) == bytes_per_row(FIELDS) + 4 + 16
    replay = make(PRIORITISED)
    assert replay._priorities is not None
    assert replay._priorities._tree.nodes.nbytes == replay.capacity * 16
    assert make()._priorities is None
    feed = Feed(one := make())
    for _ in range(5):
        feed.add([0, 1])
    assert "weight" not in one.sample(2)


def test_priorities_that_mean_nothing_are_refused() -> None:
    replay = make(PRIORITISED)
    feed = Feed(replay)
    feed.add([0])
    for value in (np.nan, np.inf, -1):
        with pytest.raises(ValueError, match="a priority must be 0 or more and finite"):
            replay.update(np.array([[0]]), {PRIORITY: np.full((1, 1), value, np.float32)})
    with pytest.raises(ValueError, match=r"out/priority is float64 \[\], expected float32 \[\]"):
        make(FIELDS | {PRIORITY: Field((), np.dtype(np.float64))})
    with pytest.raises(ValueError, match="context is 3, expected 0 to 2"):
        make(context=3)
    with pytest.raises(ValueError, match=r"given float32 \[1, 2\], expected float32 \[1, 1\], or fewer"):
        replay.update(np.array([[0]]), {PRIORITY: np.ones((1, 2), np.float32)})


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


# --- rare events ----------------------------------------------------------------------------------

EVENTFUL = {
    "reward": Field((), np.dtype(np.float32)),
    "is_terminal": Field((), np.dtype(bool)),
    "obs/t": Field((), np.dtype(np.int32)),
}


def eventful(reward: np.ndarray, terminal: np.ndarray | None = None, **changes: Any) -> Replay:
    """A replay of one stream with these rewards `[t]` and ends."""
    values = {"streams": 1, "length": 5, "capacity": len(reward), "seed": 0, "online": False, "rare_share": 0.5}
    replay = Replay(EVENTFUL, **{**values, **changes})
    ends = np.zeros(len(reward), bool) if terminal is None else terminal
    rows = {"reward": np.float32(reward), "is_terminal": ends, "obs/t": np.arange(len(reward), dtype=np.int32)}
    for t in range(len(reward)):
        replay.add(np.array([0]), {key: x[t : t + 1] for key, x in rows.items()})
    return replay


def at(count: int, *places: int, value: float = 1.0) -> np.ndarray:
    out = np.zeros(count)
    out[list(places)] = value
    return out


@pytest.mark.parametrize(
    ("reward", "terminal", "events"),
    [
        pytest.param(at(1000, 70, 500), None, [70, 500], id="a reward"),
        pytest.param(at(1000, 70, value=-3), None, [70], id="a fall"),
        pytest.param(at(1000, 70, value=100) - 0.1 * np.linspace(0, 1, 1000), None, [70], id="a reward among costs"),
        pytest.param(at(1000, 70) + at(1000, 71, value=0.4), None, [70], id="a reward and one that is less than half"),
        pytest.param(np.full(1000, -1.0), at(1000, 9) > 0, [9], id="an end"),
        pytest.param(at(1000, *range(0, 1000, 50)), None, [], id="nothing rare"),
        pytest.param(np.zeros(1000), None, [], id="nothing"),
    ],
)
def test_events_are_what_happens_in_less_than_one_row_of_a_hundred(
    reward: np.ndarray, terminal: np.ndarray | None, events: list[int]
) -> None:
    replay = eventful(reward, terminal)
    assert sorted((replay.ids(replay.events()) & ((1 << ID_BITS) - 1)).tolist()) == events
    batch = replay.sample(400)
    holds = np.isin(batch["obs/t"], events).any(1)
    assert holds.mean() == (pytest.approx(0.5, abs=0.03) if events else 0)


def test_an_event_lies_anywhere_behind_the_context_and_each_is_equally_likely() -> None:
    replay = eventful(at(1000, 300, 700), rare_share=1.0, context=2)
    places = replay.sample(3000)["obs/t"]
    where, counts = np.unique(np.argwhere(np.isin(places, (300, 700)))[:, 1], return_counts=True)
    assert where.tolist() == [2, 3, 4]
    assert (abs(counts - 1000) < 150).all()
    assert abs((places == 300).any(1).mean() - 0.5) < 0.05


def test_events_that_were_overwritten_or_lie_in_no_window_are_not_drawn() -> None:
    replay = eventful(at(1000, 10, 600), capacity=500)
    assert (replay.ids(replay.events()) & ((1 << ID_BITS) - 1)).tolist() == [600]
    newest = eventful(at(1000, 999), rare_share=1.0, context=4)
    assert (newest.sample(50)["obs/t"][:, 4] == 999).all()
    oldest = eventful(at(1000, 1), rare_share=1.0, context=4)
    starts = oldest.sample(2000)["obs/t"][:, 0]
    assert len(np.unique(starts)) > 700, "where no window holds it behind its context, all are drawn"
