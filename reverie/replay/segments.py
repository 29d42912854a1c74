"""The replay on disk: append-only segment files, a checksum per record, one high-water mark.

A record is a header (magic, schema, run, segment, kind, checksum and length of the payload; then the
checksum of the header itself) and a payload: `int64 ids [n]`, followed for every key in
alphabetical order by its values `[n, ...]`, raw. There are two kinds: **rows** hold all keys,
**patches** only `out/*`, the values that training wrote back to rows saved earlier. Records apply
in order and the last one counts, so that the replay read back is bit for bit the one saved.

A save appends what is new and returns a **manifest**: the segments with the length of each that counts, and the
replay's counters. Nothing appended is valid until a checkpoint carrying this manifest is committed: a load reads up to
the marks and writes nothing, the save after it begins a new segment.

Overwritten rows and superseded patches are dead bytes. A segment in which nothing lives leaves the
manifest. While the dead exceed the living, every save also **cleans**: what lives in the deadest
segments is saved again, at most as many bytes as the save writes anyhow. A mostly dead segment gives back
more than cleaning it costs, so that is enough; and what a save costs depends on what is new, not on
what replay holds. What no kept checkpoint counts on any more, whole files and tails left by a
crash, is removed after a commit (`collect_garbage`); a file with damage in it is renamed `damaged-...`.
"""

from __future__ import annotations

import json
import logging
import re
import struct
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from reverie.files import Folder, Missing
from reverie.replay.rows import Row
from reverie.replay.sequences import Replay
from reverie.saved import BYTES, COUNT, RELEASE, AnotherRun, Malformed, OtherVersion, fault

VERSION = 2
READS = (1, 2)  # 1: records do not say which run wrote them
ROWS, PATCH = 0, 1  # kinds of record
RECORD_BYTES = 4 << 20  # payload of one record, about: what one flipped bit can cost
SEGMENT_BYTES = 64 << 20  # a longer segment is not appended to

_MAGIC = b"reverie\x02"
# magic, schema, run, segment, kind, checksum of the payload, length of the payload
_HEADER = struct.Struct("<8sI16sIIIQ")
_HEADERS = {_MAGIC: _HEADER, b"reverie\x01": struct.Struct("<8sIIIIQ")}  # the first version has no run
_CHECK = struct.Struct("<I")  # checksum of the header
_HEAD = _HEADER.size + _CHECK.size
_NOBODY = bytes(16)  # the run of whoever has no name
_FORM = {
    "schema": {str: [object]},
    "held": COUNT,
    "replay": {"count": [COUNT], "next": [COUNT], "skipped": COUNT, "rng": {str: object}},
    "segments": [{"name": str, "length": BYTES}],
}
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

    Args:
      directory: where they lie; the one above it is the run's own.
      run: the id of the run, 32 hexadecimal digits, written into every record. Records of another are refused. Empty:
        any will do.
    """

    def __init__(self, directory: Path, run: str = "") -> None:
        self.run = run
        self._folder = Folder(directory.parent) / directory.name
        self._lengths: dict[int, int] = {}  # number of a segment -> bytes that count, in order
        self._open = 0  # the segment to append to; 0: the next save begins a new one
        self._bad_files: set[str] = set()  # names of files that are not all sound
        # [kind, slot]: the segment in which the row and the latest patch of every slot lie; 0: in none.
        self._at = np.zeros((2, 0), np.int32)

    # --- saving -----------------------------------------------------------------------------------

    def save(self, replay: Replay) -> dict[str, Any]:
        """Appends what is new since the last save or load, durably.

        Returns the manifest, JSON-able. Raises `files.DiskError`; then nothing has changed that
        counts, and the next save tries again.
        """
        self._folder.make()
        if not self._at.size:
            self._at = np.zeros((2, replay.capacity), np.int32)
        rows = replay.held & replay.unsaved
        patches = replay.held & replay.dirty & ~rows
        victims = self._clean(replay, rows, patches)
        open_ = self._open if self._open not in victims else 0
        records = self._plan(replay, open_, rows, patches)
        lengths = self._write(replay, records)

        # Everything is on the disk: only now does memory follow.
        self._at = self._rest(rows, patches)
        for record in records:
            self._at[record.kind, record.slots] = record.segment
        self._lengths = {i: lengths[i] for i, size in _living(replay, self._at, lengths).items() if size}
        self._open = records[-1].segment if records else open_
        if self._open not in self._lengths:
            self._open = 0
        replay.unsaved[:] = False
        replay.dirty[:] = False
        return {
            "version": VERSION,
            "reverie": RELEASE,
            "schema": _schema(replay),
            "held": len(replay),
            "replay": replay.state(),
            "segments": [{"name": _name(i), "length": n} for i, n in self._lengths.items()],
        }

    def _clean(self, replay: Replay, rows: np.ndarray, patches: np.ndarray) -> set[int]:
        """While dead bytes exceed live ones, marks some of what lives in mostly dead segments as new (in place), no
        more than there is anyhow. Returns these segments."""
        width = [_width(replay, kind) for kind in (ROWS, PATCH)]
        room = np.count_nonzero(rows) * width[ROWS] + np.count_nonzero(patches) * width[PATCH]
        living = _living(replay, self._rest(rows, patches), self._lengths)
        if sum(self._lengths.values()) <= 2 * (sum(living.values()) + room):
            return set()
        victims = set()
        for segment in sorted(living, key=lambda i: living[i] / self._lengths[i]):
            if room < width[PATCH] or 2 * living[segment] >= self._lengths[segment]:
                break
            victims.add(segment)
            for kind, new, known in ((ROWS, rows, rows), (PATCH, patches, rows | patches)):
                found = np.flatnonzero((self._at[kind] == segment) & ~known)[: room // width[kind]]
                room -= found.size * width[kind]
                new[found] = True
            patches &= ~rows
        return victims

    def _rest(self, rows: np.ndarray, patches: np.ndarray) -> np.ndarray:
        """`_at`, without these rows and patches, which are saved again elsewhere."""
        return np.where([rows, rows | patches], 0, self._at)

    def _plan(self, replay: Replay, segment: int, rows: np.ndarray, patches: np.ndarray) -> list[_Record]:
        """Which slots go into which record of which segment."""
        records = []
        length = self._lengths.get(segment, 0)
        on_disk = (int(name[1]) for name in map(_NAME.fullmatch, self._folder.names()) if name)
        fresh = 1 + max((0, *self._lengths, *on_disk))
        for kind, mask in ((ROWS, rows), (PATCH, patches)):
            slots = np.flatnonzero(mask)
            width = _width(replay, kind)
            most = max(1, RECORD_BYTES // width)
            for first in range(0, slots.size, most):
                if not segment or length >= SEGMENT_BYTES:
                    segment, length, fresh = fresh, 0, fresh + 1
                records.append(_Record(segment, kind, slots[first : first + most]))
                length += _HEAD + width * records[-1].slots.size
        return records

    def _write(self, replay: Replay, records: list[_Record]) -> dict[int, int]:
        """Appends the records. Returns the lengths of all segments then."""
        lengths, new_files = dict(self._lengths), []
        try:
            for segment, group in groupby(records, key=lambda record: record.segment):
                name = _name(segment)
                chunks = (chunk for record in group for chunk in _encode(replay, record, self.run))
                if segment in lengths:
                    lengths[segment] = self._folder.append(name, lengths[segment], chunks)
                else:
                    new_files.append(name)
                    lengths[segment] = self._folder.create(name, chunks)
            if new_files:
                self._folder.sync()
        except OSError:
            # The half-written tail must not eat the space that the next attempt needs.
            with suppress(OSError):
                for name in new_files:
                    self._folder.remove(name)
                if self._open:
                    self._folder.truncate(_name(self._open), self._lengths[self._open])
            self._open = 0
            raise
        return lengths

    # --- loading ----------------------------------------------------------------------------------

    def load(self, replay: Replay, manifest: Mapping[str, Any]) -> int:
        """Puts the rows, counters and sampler of a manifest into a `replay` of the same fields.

        A record that is damaged, cut short, missing or of other fields is left out with one warning
        for all; windows over rows lost with it are not drawn.

        Returns the number of rows lost.

        Raises, before anything changes on the disk:
          OtherVersion, AnotherRun: what was saved is not for this version, or not of this run.
          ValueError: the fields, streams or counters cannot be those of this replay.
          files.DiskError: a segment cannot be read for the moment, or is no plain file.
        """
        _compare(replay, manifest)
        marks = {_number(s["name"]): int(s["length"]) for s in manifest["segments"]}
        replay.restore(manifest["replay"])
        at = self._at = np.zeros((2, replay.capacity), np.int32)
        self._lengths, self._open = dict(sorted(marks.items())), 0
        damages: list[str] = []
        for segment, length in self._lengths.items():
            faults: list[str] = []
            for kind, ids, values in self._decode(segment, length, replay, faults):
                try:
                    slots, live = replay.slots(ids)
                except ValueError as error:  # of another run of before they had names
                    faults.append(str(error))
                    continue
                if kind == PATCH:  # of a row that was lost, it means nothing
                    live[live] = replay.held[slots]
                    slots = replay.slots(ids[live])[0]
                replay.write(slots, {key: value[live] for key, value in values.items()})
                replay.held[slots] = True
                at[kind, slots] = segment
                if kind == ROWS:
                    at[PATCH, slots] = 0
            if faults:
                self._bad_files.add(_name(segment))
                damages += [f"{_name(segment)}: {each}" for each in faults]
        replay.reindex()
        missing = max(0, min(int(manifest["held"]), replay.capacity) - len(replay))
        if damages:
            log.warning(
                f"replay in {self._folder.path}: {len(damages)} damaged places set aside, {missing} of "
                f"{manifest['held']} rows lost, training goes on with the rest. First: {damages[0]}"
            )
        return missing

    def _decode(
        self, number: int, length: int, replay: Replay, faults: list[str]
    ) -> Iterator[tuple[int, np.ndarray, Row]]:
        """(kind, ids, values) of the sound records in the first `length` bytes of a segment; adds what else there is to
        `faults`."""
        try:
            data = self._folder.read(_name(number), length)
        except Missing:
            faults.append("is missing")
            return
        if len(data) < length:
            faults.append(f"ends after {len(data)} of {length} bytes")
        schema = _schema_check(replay)
        at = 0
        while at < len(data):
            form = _HEADERS.get(data[at : at + len(_MAGIC)])
            header = data[at : at + form.size] if form else b""
            body = at + len(header) + _CHECK.size
            if not form or data[at + len(header) : body] != _CHECK.pack(zlib.crc32(header)):
                faults.append(f"no record at byte {at}")
                at = min((x for x in (data.find(magic, at + 1) for magic in _HEADERS) if x >= 0), default=len(data))
                continue
            _, fields, *run, segment, kind, crc, size = form.unpack(header)
            payload = memoryview(data)[body : body + size]
            if zlib.crc32(payload) != crc:
                faults.append(f"the checksum of the record at byte {at} is wrong")
            elif self.run and any(each not in (_NOBODY, _id(self.run)) for each in run):
                raise AnotherRun(f"the replay in {self._folder.path / _name(number)}", run[0].hex(), self.run)
            elif fields != schema or kind not in (ROWS, PATCH) or size % _width(replay, kind):
                faults.append(f"the record at byte {at} has other fields")
            elif segment != number:
                faults.append(f"the record at byte {at} belongs to {_name(segment)}")
            else:
                yield kind, *_split(replay, kind, payload)
            at = body + size

    def collect_garbage(self, manifests: Iterable[Mapping[str, Any]]) -> None:
        """Removes all bytes that none of `manifests` (those of all kept checkpoints) counts on; a file in which `load`
        met damage gets another name instead. Call it after the commit of a checkpoint.
        """
        marks = {_name(i): length for i, length in self._lengths.items()}
        for segment in (s for m in manifests for s in m["segments"]):
            name = segment["name"]
            marks[name] = max(marks.get(name, 0), segment["length"])
        for name in filter(_NAME.fullmatch, self._folder.names()):
            if name not in marks and name in self._bad_files:
                self._folder.set_aside(name)
            elif name not in marks:
                self._folder.remove(name)
            elif name not in self._bad_files and self._folder.size(name) > marks[name]:
                self._folder.truncate(name, marks[name])


def _living(replay: Replay, at: np.ndarray, segments: Iterable[int]) -> dict[int, int]:
    """Bytes of each segment in which rows and patches live that lie `at` these places [kind, slot]."""
    most = max(segments, default=0) + 1
    rows, patches = (np.bincount(at[kind], minlength=most) * _width(replay, kind) for kind in (ROWS, PATCH))
    return {i: int(rows[i] + patches[i]) for i in segments}


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


def _id(run: str) -> bytes:
    """The id of a run as the 16 bytes in a record."""
    return bytes.fromhex(run) if run else _NOBODY


def _encode(replay: Replay, record: _Record, run: str) -> Iterator[bytes | memoryview]:
    columns = replay.read(record.slots, _keys(replay, record.kind)).values()
    chunks = [replay.ids(record.slots).data.cast("B"), *(x.reshape(-1).view("u1").data for x in columns)]
    crc = 0
    for chunk in chunks:
        crc = zlib.crc32(chunk, crc)
    size = sum(chunk.nbytes for chunk in chunks)
    header = _HEADER.pack(_MAGIC, _schema_check(replay), _id(run), record.segment, record.kind, crc, size)
    yield header + _CHECK.pack(zlib.crc32(header))
    yield from chunks


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
    """Raises ValueError, saying what differs, unless `replay` can take what the manifest says."""
    if manifest["version"] not in READS:
        raise OtherVersion("the replay", manifest["version"], " and ".join(map(str, READS)), manifest.get("reverie"))
    if wrong := fault(manifest, _FORM, "replay"):
        raise Malformed(f"the saved replay says what cannot be: {wrong}; nothing was changed")
    saved, own = dict(manifest["schema"]), _schema(replay)
    faults = [
        f"{key}: saved {saved.get(key, 'nothing')}, expected {own.get(key, 'nothing')}"
        for key in sorted(saved.keys() | own.keys())
        if saved.get(key) != own.get(key)
    ]
    streams = len(manifest["replay"]["count"])
    if streams != replay.streams or len(manifest["replay"]["next"]) != streams:
        faults.append(f"streams (envs): saved {streams}, expected {replay.streams}")
    if faults:
        raise ValueError("the saved replay is of another kind:\n  " + "\n  ".join(faults))
