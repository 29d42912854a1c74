"""The replay on disk: append-only segment files, a checksum per record, one high-water mark.

A record is a header (magic, schema, segment, kind, checksum and length of the payload; then the
checksum of the header itself) and a payload: `int64 ids [n]`, followed for every key in
alphabetical order by its values `[n, ...]`, raw. There are two kinds: **rows** hold all keys,
**patches** only `out/*`, the values that training wrote back to rows saved earlier. Records apply
in order and the last one counts, so that the replay read back is bit for bit the one saved.

A save appends what is new and returns a **manifest**: the segments with the length of each that
counts, and the replay's counters. Nothing appended is valid until a checkpoint carrying this
manifest is committed: a load reads up to the marks and writes nothing, the save after it begins a
new segment.

Overwritten rows and superseded patches are dead bytes. A segment in which nothing lives leaves the
manifest. When the dead exceed the living, the segments that are mostly dead are cleaned: what lives
in them is saved again. What no kept checkpoint counts on any more, whole files and tails left by a
crash, is removed after a commit (`collect_garbage`).
"""

from __future__ import annotations

import json
import logging
import os
import re
import struct
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from reverie import files
from reverie.replay.sequences import Replay, Row

VERSION = 1
ROWS, PATCH = 0, 1  # kinds of record
RECORD_BYTES = 4 << 20  # payload of one record, about: what one flipped bit can cost
SEGMENT_BYTES = 64 << 20  # a longer segment is not appended to

_MAGIC = b"reverie\x01"
# magic, schema, segment, kind, checksum of the payload, length of the payload
_HEADER = struct.Struct("<8sIIIIQ")
_CHECK = struct.Struct("<I")  # checksum of the header
_NAME = re.compile(r"segment-(\d{8})\.rows")

log = logging.getLogger("reverie")


class _Record(NamedTuple):
    segment: int
    kind: int
    slots: np.ndarray


class Segments:
    """The segments of one replay in one directory.

    Remembers what the files hold, so that a save writes only what is new: one `Segments` belongs to
    one `Replay`, from its first save or load on.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._lengths: dict[int, int] = {}  # number of a segment -> bytes that count, in order
        self._open = 0  # the segment to append to; 0: the next save begins a new one
        # The segment in which the row and the latest patch of every slot lie; 0: in none.
        self._row_at = self._patch_at = np.zeros(0, np.int32)

    # --- saving -----------------------------------------------------------------------------------

    def save(self, replay: Replay) -> dict[str, Any]:
        """Appends what is new since the last save or load, durably.

        Returns the manifest, JSON-able. Raises `files.DiskError`; then nothing has changed that
        counts, and the next save tries again.
        """
        files.make_dir(self.directory)
        if not self._row_at.size:
            self._row_at = self._patch_at = np.zeros(replay.capacity, np.int32)
        rows = replay.held & replay.unsaved
        patches = replay.held & replay.dirty & ~rows
        row_at = np.where(replay.held & ~rows, self._row_at, 0)
        patch_at = np.where(replay.held & ~rows & ~patches, self._patch_at, 0)
        mostly_dead = self._clean(replay, rows, patches, row_at, patch_at)

        open_ = self._open if self._open not in mostly_dead else 0
        records = self._plan(replay, open_, rows, patches)
        lengths = self._write(replay, records, dict(self._lengths))

        # Everything is on the disk: only now does memory follow.
        for record in records:
            (row_at if record.kind == ROWS else patch_at)[record.slots] = record.segment
        living = set(np.unique(row_at)) | set(np.unique(patch_at))
        self._lengths = {i: n for i, n in lengths.items() if i in living}
        self._open = records[-1].segment if records else open_
        if self._open not in self._lengths:
            self._open = 0
        self._row_at, self._patch_at = row_at, patch_at
        replay.unsaved[:] = False
        replay.dirty[:] = False
        return {
            "version": VERSION,
            "schema": _schema(replay),
            "held": len(replay),
            "replay": replay.state(),
            "segments": [{"name": _name(i), "length": n} for i, n in self._lengths.items()],
        }

    def _clean(
        self,
        replay: Replay,
        rows: np.ndarray,
        patches: np.ndarray,
        row_at: np.ndarray,
        patch_at: np.ndarray,
    ) -> set[int]:
        """If dead bytes exceed live ones, marks what lives in mostly dead segments as new (in
        place)."""
        row_bytes, patch_bytes = _width(replay, ROWS), _width(replay, PATCH)
        number = max(self._lengths, default=0) + 1
        live = np.bincount(row_at, minlength=number) * row_bytes
        live += np.bincount(patch_at, minlength=number) * patch_bytes
        new = np.count_nonzero(rows) * row_bytes + np.count_nonzero(patches) * patch_bytes
        if sum(self._lengths.values()) <= 2 * (int(live[1:].sum()) + new):
            return set()
        victims = {i for i, length in self._lengths.items() if 2 * live[i] < length}
        rows |= np.isin(row_at, list(victims))
        patches |= np.isin(patch_at, list(victims))
        patches &= ~rows
        row_at[rows] = 0
        patch_at[rows | patches] = 0
        return victims

    def _plan(self, replay: Replay, segment: int, rows: np.ndarray, patches: np.ndarray) -> list[_Record]:
        """Which slots go into which record of which segment."""
        records = []
        length = self._lengths.get(segment, 0)
        fresh = 1 + max((0, *self._lengths, *self._numbers_on_disk()))
        for kind, mask in ((ROWS, rows), (PATCH, patches)):
            slots = np.flatnonzero(mask)
            width = _width(replay, kind)
            most = max(1, RECORD_BYTES // width)
            for first in range(0, slots.size, most):
                if not segment or length >= SEGMENT_BYTES:
                    segment, length, fresh = fresh, 0, fresh + 1
                records.append(_Record(segment, kind, slots[first : first + most]))
                length += _HEADER.size + _CHECK.size + width * records[-1].slots.size
        return records

    def _write(self, replay: Replay, records: list[_Record], lengths: dict[int, int]) -> dict[int, int]:
        """Appends the records. Returns `lengths` with the new marks."""
        created = []
        try:
            for segment, group in groupby(records, key=lambda record: record.segment):
                path = self.directory / _name(segment)
                chunks = (chunk for record in group for chunk in _encode(replay, record))
                if segment in lengths:
                    lengths[segment] = files.append(path, lengths[segment], chunks)
                else:
                    created.append(path)
                    lengths[segment] = files.create(path, chunks)
            if created:
                files.sync_dir(self.directory)
        except OSError:
            # The half-written tail must not eat the space that the next attempt needs.
            with suppress(OSError):
                for path in created:
                    files.remove(path)
                if self._open:
                    files.truncate(self.directory / _name(self._open), self._lengths[self._open])
            self._open = 0
            raise
        return lengths

    def _numbers_on_disk(self) -> list[int]:
        names = (_NAME.fullmatch(p.name) for p in self.directory.iterdir())
        return [int(name[1]) for name in names if name]

    # --- loading ----------------------------------------------------------------------------------

    def load(self, replay: Replay, manifest: Mapping[str, Any]) -> int:
        """Puts the rows, counters and sampler of a manifest into a `replay` of the same fields.

        A record that is damaged, cut short, missing or of other fields is left out with one warning
        for all; windows over rows lost with it are not drawn.

        Returns the number of rows lost. Raises ValueError, before anything changes, if version,
        fields or streams differ.
        """
        _compare(replay, manifest)
        marks = {_number(s["name"]): int(s["length"]) for s in manifest["segments"]}
        replay.restore(manifest["replay"])
        self._row_at = np.zeros(replay.capacity, np.int32)
        self._patch_at = np.zeros(replay.capacity, np.int32)
        self._lengths, self._open = dict(sorted(marks.items())), 0
        damages: list[str] = []
        for segment, length in self._lengths.items():
            path = self.directory / _name(segment)
            for item in _decode(path, length, replay):
                if isinstance(item, str):
                    damages.append(f"{path.name}: {item}")
                    continue
                kind, ids, values = item
                try:
                    slots, live = replay.slots(ids)
                except ValueError as error:  # the file of another run
                    damages.append(f"{path.name}: {error}")
                    continue
                if kind == PATCH:  # of a row that was lost, it means nothing
                    live[live] = replay.held[slots]
                    slots = replay.slots(ids[live])[0]
                for key, value in values.items():
                    replay.arrays[key][slots] = value[live]
                replay.held[slots] = True
                if kind == ROWS:
                    self._row_at[slots], self._patch_at[slots] = segment, 0
                else:
                    self._patch_at[slots] = segment
        replay.reindex()
        lost = max(0, min(int(manifest["held"]), replay.capacity) - len(replay))
        if damages:
            log.warning(
                "replay in %s: %d damaged places set aside, %d of %d rows lost, training goes on "
                "with the rest. First: %s",
                self.directory,
                len(damages),
                lost,
                manifest["held"],
                damages[0],
            )
        return lost

    def collect_garbage(self, manifests: Iterable[Mapping[str, Any]]) -> list[Path]:
        """Removes all bytes that none of `manifests` (those of all kept checkpoints) counts on.

        Call it after the commit of a checkpoint. Returns the files removed or cut.
        """
        marks = {_name(i): length for i, length in self._lengths.items()}
        for segment in (s for m in manifests for s in m["segments"]):
            name = segment["name"]
            marks[name] = max(marks.get(name, 0), segment["length"])
        collected = []
        for path in sorted(self.directory.iterdir()) if self.directory.is_dir() else []:
            if not _NAME.fullmatch(path.name):
                continue
            if path.name not in marks:
                files.remove(path)
            elif not path.is_symlink() and path.stat().st_size > marks[path.name]:
                files.truncate(path, marks[path.name])
            else:
                continue
            collected.append(path)
        return collected


def _name(segment: int) -> str:
    return f"segment-{segment:08d}.rows"


def _number(name: str) -> int:
    # A manifest is read from a file: nothing in it may lead out of the directory.
    match = _NAME.fullmatch(name)
    if not match:
        raise ValueError(f"{name!r} is no name of a replay segment")
    return int(match[1])


def _keys(replay: Replay, kind: int) -> list[str]:
    return sorted(k for k in replay.fields if kind == ROWS or k.startswith("out/"))


def _width(replay: Replay, kind: int) -> int:
    """Bytes of one row in a record."""
    return 8 + sum(replay.fields[k].nbytes for k in _keys(replay, kind))


def _schema(replay: Replay) -> dict[str, list[Any]]:
    return {k: [np.dtype(f.dtype).name, list(f.shape)] for k, f in sorted(replay.fields.items())}


def _schema_check(replay: Replay) -> int:
    return zlib.crc32(json.dumps(_schema(replay)).encode())


def _encode(replay: Replay, record: _Record) -> Iterator[bytes | memoryview]:
    chunks = [replay.ids(record.slots).data.cast("B")]
    for key in _keys(replay, record.kind):
        rows = replay.arrays[key].take(record.slots, axis=0)
        chunks.append(rows.reshape(-1).view("u1").data)
    crc = 0
    for chunk in chunks:
        crc = zlib.crc32(chunk, crc)
    size = sum(chunk.nbytes for chunk in chunks)
    header = _HEADER.pack(_MAGIC, _schema_check(replay), record.segment, record.kind, crc, size)
    yield header + _CHECK.pack(zlib.crc32(header))
    yield from chunks


def _decode(path: Path, length: int, replay: Replay) -> Iterator[tuple[int, np.ndarray, Row] | str]:
    """(kind, ids, values) of the sound records in the first `length` bytes, a text for others."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
        with open(handle, "rb") as file:
            data = file.read(length)
    except OSError as error:
        yield f"cannot be read: {os.strerror(error.errno or 0)}"
        return
    if len(data) < length:
        yield f"ends after {len(data)} of {length} bytes"
    schema = _schema_check(replay)
    head = _HEADER.size + _CHECK.size
    at = 0
    while at < len(data):
        header = data[at : at + _HEADER.size]
        body = at + head
        whole = len(data) >= body and header.startswith(_MAGIC)
        if not whole or data[at + _HEADER.size : body] != _CHECK.pack(zlib.crc32(header)):
            yield f"no record at byte {at}"
            at = data.find(_MAGIC, at + 1)
            if at < 0:
                return
            continue
        _, fields, segment, kind, crc, size = _HEADER.unpack(header)
        payload = memoryview(data)[body : body + size]
        if zlib.crc32(payload) != crc:
            yield f"the checksum of the record at byte {at} is wrong"
        elif fields != schema or kind not in (ROWS, PATCH) or size % _width(replay, kind):
            yield f"the record at byte {at} has other fields"
        elif segment != _number(path.name):
            yield f"the record at byte {at} belongs to {_name(segment)}"
        else:
            yield (kind, *_split(replay, kind, payload))
        at = body + size


def _split(replay: Replay, kind: int, payload: memoryview) -> tuple[np.ndarray, Row]:
    n = payload.nbytes // _width(replay, kind)
    ids = np.frombuffer(payload[: 8 * n], np.int64)
    values, at = {}, 8 * n
    for key in _keys(replay, kind):
        field = replay.fields[key]
        end = at + n * field.nbytes
        values[key] = np.frombuffer(payload[at:end], field.stored).reshape(n, *field.shape)
        at = end
    return ids, values


def _compare(replay: Replay, manifest: Mapping[str, Any]) -> None:
    if manifest["version"] != VERSION:
        raise ValueError(
            f"the replay was saved in format {manifest['version']}, this version reads {VERSION}: "
            f"continue it with the version of reverie that wrote it"
        )
    saved, own = dict(manifest["schema"]), _schema(replay)
    faults = [
        f"{key}: saved {saved.get(key, 'nothing')}, expected {own.get(key, 'nothing')}"
        for key in sorted(saved.keys() | own.keys())
        if saved.get(key) != own.get(key)
    ]
    streams = len(manifest["replay"]["count"])
    if streams != replay.streams:
        faults.append(f"streams (envs): saved {streams}, expected {replay.streams}")
    if faults:
        raise ValueError("the saved replay is of another kind:\n  " + "\n  ".join(faults))
