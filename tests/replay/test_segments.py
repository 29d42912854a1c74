from __future__ import annotations

import errno
import json
import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from faulty_disk import FaultyDisk, tree
from hypothesis import given, settings
from hypothesis import strategies as st

from reverie import files
from reverie.files import DiskError
from reverie.replay import segments
from reverie.replay.rows import ID_BITS, PRIORITY, Field, Row
from reverie.replay.segments import Segments
from reverie.replay.sequences import Replay
from reverie.saved import AnotherRun, OtherVersion

FIELDS = {
    "obs/where": Field((2,), np.dtype(np.int32)),  # stream, t
    "is_first": Field((), np.dtype(bool)),
    "out/h": Field((4,), np.dtype(ml_dtypes.bfloat16)),
    "out/n": Field((), np.dtype(np.uint8)),  # the sum of the four h, so that garbage shows
}


PRIORITISED = FIELDS | {PRIORITY: Field((), np.dtype(np.float32))}


def make(fields: dict[str, Field] = FIELDS, **changes: Any) -> Replay:
    values = {"streams": 3, "length": 4, "capacity": 90, "seed": 5, "context": 1}
    return Replay(fields, **{**values, **changes})


def play(replay: Replay, rng: np.random.Generator, steps: int) -> None:
    """Adds rows to random streams and writes back after every batch, like a run does."""
    for _ in range(steps):
        streams = rng.permutation(replay.streams)[: rng.integers(1, replay.streams + 1)]
        n = streams.size
        t = replay._count[streams]
        replay.add(
            streams,
            {
                "obs/where": np.stack([streams, t], -1).astype(np.int32),
                "is_first": rng.random(n) < 0.1,
                **outputs(replay, rng, (n,)),
            },
        )
        if replay.can_sample() and rng.random() < 0.5:
            ids = replay.sample(2)["id"]
            replay.update(ids, outputs(replay, rng, ids.shape))


def outputs(replay: Replay, rng: np.random.Generator, shape: tuple[int, ...]) -> Row:
    h = rng.integers(0, 60, (*shape, 4))
    values = {"out/h": h.astype(ml_dtypes.bfloat16), "out/n": h.sum(-1).astype(np.uint8)}
    if PRIORITY in replay.fields:  # of the first two rows of a window only
        values[PRIORITY] = rng.lognormal(0, 2, (*shape[:-1], min(shape[-1], 2) if len(shape) > 1 else shape[-1]))
        values[PRIORITY] = values[PRIORITY].astype(np.float32)
    return values


def assert_same(a: Replay, b: Replay) -> None:
    assert a.state() == b.state()
    np.testing.assert_array_equal(a.held, b.held)
    for key in a.arrays:
        np.testing.assert_array_equal(a.arrays[key][a.held], b.arrays[key][b.held])
    assert a.windows == b.windows
    if a._priorities and b._priorities:
        np.testing.assert_array_equal(a._priorities._tree.nodes[1:], b._priorities._tree.nodes[1:])


def assert_sound(replay: Replay, batch: int = 400) -> None:
    """No window holds a row from elsewhere, a hole, or values that were never written."""
    rows = replay.sample(batch)
    where = np.stack([rows["id"] >> ID_BITS, rows["id"] & ((1 << ID_BITS) - 1)], -1)
    np.testing.assert_array_equal(rows["obs/where"], where)
    total = rows["out/h"].astype(np.int64).sum(-1)
    np.testing.assert_array_equal(rows["out/n"], total.astype(np.uint8))


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Records of a few rows and segments of a few records."""
    monkeypatch.setattr(segments, "RECORD_BYTES", 200)
    monkeypatch.setattr(segments, "SEGMENT_BYTES", 900)


def reopen(directory: Path, manifest: dict[str, Any], **changes: Any) -> tuple[Replay, Segments, int]:
    replay, disk = make(**changes), Segments(directory)
    return replay, disk, disk.load(replay, json.loads(json.dumps(manifest)))


@settings(max_examples=25)
@given(
    seed=st.integers(0, 10**6),
    sessions=st.lists(st.tuples(st.integers(0, 60), st.booleans()), min_size=1, max_size=8),
    within=st.booleans(),
    fields=st.sampled_from([FIELDS, PRIORITISED]),
    sizes=st.sampled_from([(200, 900), (4 << 20, 64 << 20), (1000, 3000)]),
)
def test_what_is_loaded_is_what_was_saved(
    seed: int,
    sessions: list[tuple[int, bool]],
    within: bool,
    fields: dict[str, Field],
    sizes: tuple[int, int],
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    directory = tmp_path_factory.mktemp("replay")
    rng = np.random.default_rng(seed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(segments, "RECORD_BYTES", sizes[0])
        patch.setattr(segments, "SEGMENT_BYTES", sizes[1])
        replay, disk = make(fields, within_episodes=within), Segments(directory)
        for steps, restart in sessions:
            play(replay, rng, steps)
            manifest = disk.save(replay)
            again, again_disk, lost = reopen(directory, manifest, fields=fields, within_episodes=within)
            assert lost == 0
            assert_same(replay, again)
            disk.collect_garbage([manifest])
            if restart:
                replay, disk = again, again_disk


@pytest.mark.parametrize("fields", [FIELDS, PRIORITISED], ids=["uniform", "priorities"])
@pytest.mark.parametrize("steps", [33, 120])
def test_a_resumed_replay_draws_and_serves_the_same(fields: dict[str, Field], steps: int, tmp_path: Path) -> None:
    replay, disk = make(fields), Segments(tmp_path)
    play(replay, np.random.default_rng(0), steps)
    again, _, _ = reopen(tmp_path, disk.save(replay), fields=fields)
    one, other = np.random.default_rng(1), np.random.default_rng(1)
    for _ in range(50):
        play(replay, one, 1)
        play(again, other, 1)
        expected, actual = replay.sample(3), again.sample(3)
        for key in expected:
            np.testing.assert_array_equal(actual[key], expected[key])


def test_a_save_writes_only_what_is_new(tmp_path: Path) -> None:
    replay, disk = make(capacity=3000), Segments(tmp_path)
    rng = np.random.default_rng(0)
    play(replay, rng, 400)
    first = disk.save(replay)["segments"]
    assert disk.save(replay)["segments"] == first
    replay.update(replay.sample(1)["id"], outputs(replay, rng, (1, 4)))
    second = disk.save(replay)["segments"]
    assert [s["name"] for s in second] == [s["name"] for s in first]
    patch = 4 * (8 + 4 * 2 + 1)  # 4 rows: id, h, n
    head = segments._HEADER.size + segments._CHECK.size
    assert second[0]["length"] - first[0]["length"] == head + patch


@pytest.mark.usefixtures("small")
def test_the_disk_is_bounded_and_garbage_goes(tmp_path: Path) -> None:
    replay, disk = make(), Segments(tmp_path)
    rng = np.random.default_rng(0)
    manifests: list[dict[str, Any]] = []
    for _ in range(60):
        play(replay, rng, 20)
        manifests = [*manifests[-1:], disk.save(replay)]
        disk.collect_garbage(manifests)
        live = 90 * segments._width(replay, segments.ROWS)
        length = sum(s["length"] for s in manifests[-1]["segments"])
        assert length < 3.5 * live  # dead <= live, one segment half cleaned, headers of tiny records
        on_disk = {p.name for p in tmp_path.iterdir()}
        assert on_disk == {s["name"] for m in manifests for s in m["segments"]}
    for manifest in manifests:  # the older checkpoint still stands
        assert reopen(tmp_path, manifest)[2] == 0


def test_what_was_never_committed_does_not_count(tmp_path: Path) -> None:
    replay, disk = make(), Segments(tmp_path)
    rng = np.random.default_rng(0)
    play(replay, rng, 20)
    manifest = disk.save(replay)
    copy, _, _ = reopen(tmp_path, manifest)
    play(replay, rng, 20)
    disk.save(replay)
    for _ in range(2):
        again, again_disk, lost = reopen(tmp_path, manifest)
        assert lost == 0
        assert_same(copy, again)
        (segment,) = manifest["segments"]
        again_disk.collect_garbage([manifest])
        assert (tmp_path / segment["name"]).stat().st_size == segment["length"]


Damage = Callable[[Path, np.random.Generator], None]


def flip(path: Path, rng: np.random.Generator) -> None:
    data = bytearray(path.read_bytes())
    data[rng.integers(len(data))] ^= 1 << rng.integers(8)
    path.write_bytes(data)


def shorten(path: Path, rng: np.random.Generator) -> None:
    path.write_bytes(path.read_bytes()[: rng.integers(1, path.stat().st_size)])


def empty(path: Path, rng: np.random.Generator) -> None:
    path.write_bytes(b"")


def delete(path: Path, rng: np.random.Generator) -> None:
    path.unlink()


def duplicate(path: Path, rng: np.random.Generator) -> None:
    others = [p for p in sorted(path.parent.iterdir()) if p != path]
    shutil.copyfile(others[rng.integers(len(others))], path)


def scramble(path: Path, rng: np.random.Generator) -> None:
    path.write_bytes(rng.bytes(path.stat().st_size))


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("damage", [flip, shorten, empty, delete, duplicate, scramble], ids=lambda d: d.__name__)
@pytest.mark.parametrize("fields", [FIELDS, PRIORITISED], ids=["uniform", "priorities"])
def test_damage_costs_only_what_it_hit(
    fields: dict[str, Field], damage: Damage, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rng = np.random.default_rng(0)
    replay, disk = make(fields), Segments(tmp_path / "saved")
    for _ in range(4):
        play(replay, rng, 12)
        manifest = disk.save(replay)
    assert len(manifest["segments"]) > 2
    held = len(replay)
    for trial in range(25):
        directory = tmp_path / str(trial) / "replay"
        shutil.copytree(tmp_path / "saved", directory)
        names = [s["name"] for s in manifest["segments"]]
        damage(directory / names[rng.integers(len(names))], rng)
        caplog.clear()
        again, again_disk, lost = reopen(directory, manifest, fields=fields)
        warnings = [r for r in caplog.records if r.levelno == logging.WARNING]
        assert len(warnings) == 1
        assert f"{lost} of {held} rows lost" in warnings[0].getMessage()
        assert len(again) == held - lost
        assert again.windows < replay.windows or lost == 0
        assert_sound(again)
        if damage is flip:
            assert lost < held / 4
        # What was lost stays lost, also through further saves, and is never mistaken for data.
        play(again, rng, 3)
        third, _, lost = reopen(directory, again_disk.save(again), fields=fields)
        assert_same(again, third)
        assert_sound(third)


def test_rows_of_other_fields_are_refused_and_nothing_changes(tmp_path: Path) -> None:
    replay, disk = make(), Segments(tmp_path)
    play(replay, np.random.default_rng(0), 20)
    manifest = disk.save(replay)
    fields = {**FIELDS, "out/h": Field((5,), np.dtype(np.float32)), "reward": FIELDS["out/n"]}
    other = Replay(fields, streams=2, length=4, capacity=90, seed=0)
    before = other.state()
    with pytest.raises(ValueError, match="of another kind") as caught:
        Segments(tmp_path).load(other, manifest)
    for part in ("out/h: saved ['bfloat16', [4]]", "reward: saved nothing", "saved 3, expected 2"):
        assert part in str(caught.value)
    assert other.state() == before
    for wrote, advice in (("9.9", "pip install reverie==9.9"), (None, "install the version of reverie that wrote it")):
        with pytest.raises(OtherVersion, match=advice):
            reopen(tmp_path, {**manifest, "version": 99, "reverie": wrote})


def test_segments_of_another_kind_are_set_aside(tmp_path: Path) -> None:
    replay, disk = make(), Segments(tmp_path / "a")
    play(replay, np.random.default_rng(0), 20)
    manifest = disk.save(replay)
    fields = {**FIELDS, "reward": Field((), np.dtype(np.float32))}
    other = Replay(fields, streams=3, length=4, capacity=90, seed=0)
    rows = {k: np.ones((3, *f.shape), f.dtype) for k, f in fields.items()}
    for _ in range(30):
        other.add(np.arange(3), rows)
    Segments(tmp_path / "b").save(other)
    (name,) = (s["name"] for s in manifest["segments"])
    shutil.copyfile(tmp_path / "b" / name, tmp_path / "a" / name)
    again, _, lost = reopen(tmp_path / "a", manifest)
    assert lost == len(replay)
    assert not again.can_sample()


def test_a_name_that_leads_out_of_the_directory_is_refused(tmp_path: Path) -> None:
    replay, disk = make(), Segments(tmp_path / "replay")
    play(replay, np.random.default_rng(0), 9)
    manifest = disk.save(replay)
    (tmp_path / "secret").write_bytes(b"1")
    for name in ("../secret", "/etc/passwd", "segment-00000001.rows/../../secret"):
        bad = {**manifest, "segments": [{"name": name, "length": 1}]}
        with pytest.raises(ValueError, match="no name of a replay segment"):
            reopen(tmp_path / "replay", bad)


@pytest.mark.usefixtures("small")
def test_a_full_disk_loses_nothing(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    replay, disk = make(), Segments(tmp_path)
    play(replay, rng, 15)
    manifest, failures = disk.save(replay), 0
    for at in range(60):
        play(replay, rng, 5)
        try:
            with FaultyDisk(at * 7 % 200, "full")():
                manifest = disk.save(replay)
        except DiskError:
            failures += 1
        else:
            again, _, lost = reopen(tmp_path, manifest)
            assert lost == 0
            assert_same(replay, again)
        disk.collect_garbage([manifest])
        # What was half written does not eat the space that the next attempt needs.
        on_disk = {p.name: p.stat().st_size for p in tmp_path.iterdir()}
        assert on_disk == {s["name"]: s["length"] for s in manifest["segments"]}
    assert 10 < failures < 50


def test_a_record_of_another_run_is_refused(tmp_path: Path) -> None:
    manifests = {}
    for name in "ab":
        replay, disk = make(), Segments(tmp_path / name / "replay", name * 32)
        play(replay, np.random.default_rng(0), 20)
        manifests[name] = disk.save(replay)
    (segment,) = (s["name"] for s in manifests["a"]["segments"])
    shutil.copyfile(tmp_path / "b" / "replay" / segment, tmp_path / "a" / "replay" / segment)
    before = tree(tmp_path)
    with pytest.raises(AnotherRun, match=f"{segment} was written by run {'b' * 32}, .* run {'a' * 32}"):
        Segments(tmp_path / "a" / "replay", "a" * 32).load(make(), manifests["a"])
    assert tree(tmp_path) == before
    assert Segments(tmp_path / "a" / "replay").load(make(), manifests["a"]) == 0  # whoever does not know takes it


def test_records_without_a_run_are_anybodys(tmp_path: Path) -> None:
    replay, disk = make(), Segments(tmp_path)
    play(replay, np.random.default_rng(0), 20)
    manifest = disk.save(replay)
    again, disk = make(), Segments(tmp_path, "a" * 32)
    assert disk.load(again, manifest) == 0
    play(again, np.random.default_rng(0), 3)
    manifest = disk.save(again)
    third, _, lost = reopen(tmp_path, manifest)
    assert lost == 0
    assert_same(again, third)


@pytest.mark.parametrize("code", [errno.EACCES, errno.EIO, errno.ESTALE])
def test_what_cannot_be_read_for_the_moment_is_no_damage(
    code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    replay, disk = make(), Segments(tmp_path)
    play(replay, np.random.default_rng(0), 20)
    manifest, original = disk.save(replay), os.open

    def failing(path: Any, *args: Any, **kwargs: Any) -> int:
        if path == manifest["segments"][0]["name"]:
            raise OSError(code, os.strerror(code))
        return original(path, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(files.os, "open", failing)
        with pytest.raises(DiskError, match=manifest["segments"][0]["name"]) as caught:
            reopen(tmp_path, manifest)
    assert caught.value.errno == code
    assert reopen(tmp_path, manifest)[2] == 0


@pytest.mark.usefixtures("small")
def test_a_file_with_damage_is_set_aside_and_never_removed(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    replay, disk = make(), Segments(tmp_path)
    play(replay, rng, 15)
    manifest = disk.save(replay)
    name = manifest["segments"][0]["name"]
    scramble(tmp_path / name, rng)
    content = (tmp_path / name).read_bytes()
    replay, disk, lost = reopen(tmp_path, manifest)
    assert lost
    for _ in range(4):  # until nothing that was saved before lives
        play(replay, rng, 40)
        disk.collect_garbage([disk.save(replay)])
    assert (tmp_path / f"damaged-{name}").read_bytes() == content
    assert not (tmp_path / name).exists()


def test_a_save_writes_no_more_than_twice_what_is_new(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(segments, "SEGMENT_BYTES", 20_000)
    rng, most, cleaned = np.random.default_rng(0), 0.0, 0
    replay, disk = make(capacity=3000), Segments(tmp_path)
    play(replay, rng, 1600)
    manifest = disk.save(replay)
    widths = [segments._width(replay, kind) for kind in (segments.ROWS, segments.PATCH)]
    for _ in range(120):
        play(replay, rng, 3)
        ids = replay.ids(rng.choice(replay.capacity, 200, replace=False))
        replay.update(ids, outputs(replay, rng, ids.shape))
        rows = np.count_nonzero(replay.unsaved)
        new = rows * widths[0] + np.count_nonzero(replay.dirty & ~replay.unsaved) * widths[1]
        with FaultyDisk()() as counted:
            manifest = disk.save(replay)
        disk.collect_garbage([manifest])
        most = max(most, counted.written / new)
        cleaned += counted.written > 1.1 * new
        length = sum(s["length"] for s in manifest["segments"])
    assert cleaned > 5, "segments were cleaned, or this shows nothing"
    assert most < 2.2, "headers of small records aside"
    assert length < 3 * 3000 * sum(widths), "and that is enough to keep the disk bounded"
    again, _, lost = reopen(tmp_path, manifest, capacity=3000)
    assert lost == 0
    assert_same(replay, again)
