"""A run directory that somebody forged: every checksum is right, and what it says is not.

Whatever is read from it ends in one sentence, with exit code 1 or 2, and nothing is changed.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import struct
import tracemalloc
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy

from reverie import algos, cli
from reverie.replay import segments
from reverie.run.checkpoint import Checkpoints, NoSoundCheckpoint

TRAIN = ["train", "fake", "--preset", "quick", "--warmup", "20", "--envs", "2", "--replay-size", "60"]
TRAIN += ["--env", "reverie.envs.toy:Catch", "--workers", "inline", "--eval-episodes", "0", "--video-every", "0"]


@pytest.fixture(autouse=True)
def fake(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(algos.ALGORITHMS, "fake", "fakes")
    monkeypatch.delenv("REVERIE_DEBUG", raising=False)


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    path = tmp_path_factory.mktemp("sound")
    algos.ALGORITHMS["fake"] = "fakes"
    assert cli.main([*TRAIN, "--steps", "40", "--run", str(path)]) == 0
    yield path
    del algos.ALGORITHMS["fake"]


@pytest.fixture
def run(sound: Path, tmp_path: Path) -> Path:
    """A copy, to be forged."""
    return Path(shutil.copytree(sound, tmp_path / "run"))


def content(path: Path) -> dict[str, str]:
    """Everything below a directory, links and what is no file included; but for the lock, which says who came last."""
    found = {}
    for folder, folders, names in os.walk(path):
        for name in [*folders, *names]:
            each = Path(folder, name)
            if each.is_symlink():
                found[str(each)] = f"link to {os.readlink(each)}"
            elif each.is_file() and name != "run.lock":
                found[str(each)] = hashlib.sha256(each.read_bytes()).hexdigest()
            else:
                found[str(each)] = str(each.lstat().st_mode)
    return found


def refused(capsys: pytest.CaptureFixture[str], path: Path, *words: str, verbs: str = "train eval") -> None:
    """Every verb refuses the run in one sentence with these words, and nothing around it changes."""
    before = content(path.parent)
    commands = {"train": [*TRAIN, "--steps", "50", "--run", str(path)], "eval": ["eval", str(path), "--episodes", "1"]}
    for verb in verbs.split():
        capsys.readouterr()
        code = cli.main(commands[verb])
        err = capsys.readouterr().err
        assert code in (1, 2), (verb, code)
        assert err.startswith("reverie: "), err
        assert all(line.startswith("  ") for line in err.splitlines()[1:]), err  # a list of what differs
        for word in words:
            assert word in err, err
        assert content(path.parent) == before, verb


def checkpoint(run: Path) -> Path:
    (path,) = (run / "checkpoints").iterdir()
    return path


def sign(run: Path, change: Callable[[Any], Any]) -> None:
    """Changes the manifest of the checkpoint, and its checksum with it."""
    file = checkpoint(run) / "manifest.json"
    manifest = json.loads(file.read_text())
    del manifest["sha256"]
    manifest = change(manifest) or manifest
    text = json.dumps(manifest, sort_keys=True)
    file.write_text(json.dumps({**manifest, "sha256": hashlib.sha256(text.encode()).hexdigest()}))


def put(*keys: Any, value: Any) -> Callable[[Any], None]:
    """A change: a value in another place than it belongs to; the type `del` is none at all."""

    def change(manifest: Any) -> None:
        inner = manifest
        for key in keys[:-1]:
            inner = inner[key]
        if value is del_:
            del inner[keys[-1]]
        else:
            inner[keys[-1]] = value

    return change


del_ = object()
LENGTH = ("meta", "replay", "segments", 0, "length")
COUNT = ("meta", "replay", "replay", "count")
MANIFESTS = {
    "no step": put("step", value=del_),
    "another step": put("step", value=41),
    "no files": put("files", value=None),
    "a name outside": put("files", value={"../../config.json": {"bytes": 1, "sha256": "0"}}),
    "a negative size": put("files", "arrays.safetensors", "bytes", value=-1),
    "no meta": put("meta", value=del_),
    "meta is a list": put("meta", value=[1, 2]),
    "no progress": put("meta", "progress", value=del_),
    "null": put("meta", "progress", "step", value=None),
    "a text": put("meta", "progress", "step", value="40"),
    "a float": put("meta", "progress", "updates", value=4.5),
    "2^62": put("meta", "progress", "step", value=2**62),
    "negative": put("meta", "progress", "measured", value=-5),
    "more": put("meta", "progress", "more", value=1),
    "an evaluation": put("meta", "progress", "evaluation", value={"returns": "many", "lengths": []}),
    "spaces": put("meta", "obs_space", value={"image": "big"}),
    "other spaces": put("meta", "obs_space", value={}),
    "names": put("meta", "names", value=[{}]),
    "fewer names": put("meta", "names", value=["one"]),
    "ratio": put("meta", "ratio", "done", value=2**62),
    "bytes": put("meta", "metrics_bytes", value=-1),
    "no replay": put("meta", "replay", value=del_),
    "replay is null": put("meta", "replay", value=None),
    "a schema of texts": put("meta", "replay", "schema", value={"reward": "float32"}),
    "a schema of objects": put("meta", "replay", "schema", "reward", value=["O", []]),
    "counts of 2^62": put(*COUNT, value=[2**62, 2**62]),
    "one count": put(*COUNT, value=[20]),
    "huge": put(*COUNT, value=[1] * 10_000),
    "texts for counts": put(*COUNT, value=["20", "20"]),
    "a random state": put("meta", "replay", "replay", "rng", value={"bit_generator": "MT19937", "state": 1}),
    "no random state": put("meta", "replay", "replay", "rng", "state", value={}),
    "held": put("meta", "replay", "held", value=-1),
    "next": put("meta", "replay", "replay", "next", value=[0]),
    "a segment outside": put("meta", "replay", "segments", 0, "name", value="../metrics.jsonl"),
    "a length of 2^62": put(*LENGTH, value=2**62),
    "a negative length": put(*LENGTH, value=-1),
    "segments are null": put("meta", "replay", "segments", value=None),
    "deep": put("meta", "names", value=[json.loads("[" * 400 + "]" * 400)]),
}
# What only training reads.
TRAINED = {"more", "an evaluation", "fewer names", "counts of 2^62", "texts for counts", "a random state", "huge"}
TRAINED |= {"no random state", "next", "a segment outside", "a length of 2^62", "a negative length", "one count"}
TRAINED |= {"segments are null", "a schema of objects"}


@pytest.mark.parametrize("name", MANIFESTS)
def test_a_manifest_that_says_what_cannot_be(capsys: pytest.CaptureFixture[str], run: Path, name: str) -> None:
    sign(run, MANIFESTS[name])
    told = "is of another env" if name == "other spaces" else "nothing was changed"
    refused(capsys, run, told, verbs="train" if name in TRAINED else "train eval")


def header(text: str, data: bytes = b"") -> bytes:
    return len(text).to_bytes(8, "little") + text.encode() + data


F32 = '"dtype":"F32","shape":[2]'
ARRAYS = {
    "pickle": b"\x80\x04\x95\x10\x00\x00\x00\x00\x00\x00\x00\x8c\x05posix\x94\x8c\x06system\x94\x93\x94.",
    "zip": b"PK\x03\x04\x14\x00\x00\x00\x08\x00" + bytes(100),
    "nothing": b"",
    "a huge header": (1 << 60).to_bytes(8, "little") + b"{}",
    "a huge shape": header('{"a":{"dtype":"F32","shape":[99999999999],"data_offsets":[0,4]}}', b"1234"),
    "overlap": header(f'{{"a":{{{F32},"data_offsets":[0,8]}},"b":{{{F32},"data_offsets":[4,12]}}}}', b"1" * 12),
    "beyond the end": header(f'{{"a":{{{F32},"data_offsets":[0,8]}}}}', b"1234"),
    "backwards": header(f'{{"a":{{{F32},"data_offsets":[8,0]}}}}', b"12345678"),
    "a type that is none": header('{"a":{"dtype":"OBJ","shape":[2],"data_offsets":[0,8]}}', b"12345678"),
    "deep": header("[" * 100_000),
    "no arrays": safetensors.numpy.save({}),
    "a name outside": safetensors.numpy.save({"../../config.json": np.zeros(3, np.float32)}),
    "another type": safetensors.numpy.save({"agent/weights": np.zeros(3, np.complex64)}),
}


@pytest.mark.parametrize("name", ARRAYS)
def test_arrays_that_are_none(capsys: pytest.CaptureFixture[str], run: Path, name: str) -> None:
    (checkpoint(run) / "arrays.safetensors").write_bytes(ARRAYS[name])
    entry = {"bytes": len(ARRAYS[name]), "sha256": hashlib.sha256(ARRAYS[name]).hexdigest()}
    sign(run, put("files", "arrays.safetensors", value=entry))
    refused(capsys, run, "nothing was changed")


# Of the many of a collector, one of each sort; tests/run/collect/test_collect.py forges them all.
CHECKED = ("agent/", "recent/", "collector/returns", "collector/lengths", "collector/episodes", "collector/turn")
CHECKED += ("collector/pending/0/reward", "collector/carry/0/memory", "collector/workers/crcs")


@pytest.mark.parametrize("change", ["missing", "type", "shape", "text"])
def test_arrays_of_another_kind(capsys: pytest.CaptureFixture[str], run: Path, change: str) -> None:
    file = checkpoint(run) / "arrays.safetensors"
    for name in safetensors.numpy.load_file(file):
        if not name.startswith(CHECKED):
            continue
        arrays = safetensors.numpy.load_file(file)
        array = arrays.pop(name)
        if change == "type":
            arrays[name] = array.astype(np.complex64)
        elif change == "shape":
            arrays[name] = np.stack([array, array])
        elif change == "text":
            arrays[name] = np.frombuffer(b'{"a": [1, null]}', np.uint8)
        data = safetensors.numpy.save(arrays)
        other = Path(shutil.copytree(run, run.parent / "other"))
        (checkpoint(other) / "arrays.safetensors").write_bytes(data)
        entry = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        sign(other, put("files", "arrays.safetensors", value=entry))
        refused(capsys, other, verbs="train")
        shutil.rmtree(other)


def test_a_manifest_of_many_megabytes_is_not_taken_in(tmp_path: Path) -> None:
    step = tmp_path / "step-000000000009"
    step.mkdir()
    (step / "manifest.json").write_bytes(b'{"meta": [' + b"[]," * 10_000_000 + b"[]]}")
    size = (step / "manifest.json").stat().st_size
    tracemalloc.start()
    with pytest.raises(NoSoundCheckpoint):
        Checkpoints(tmp_path).load_latest()
    assert tracemalloc.get_traced_memory()[1] < size
    tracemalloc.stop()


# ------------------------------------------------------------------------------------ no plain files


def fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def link(path: Path) -> None:
    away = path.parent / f"{path.name}.away"
    path.rename(away)
    path.symlink_to(away)


PLACES = ["config.json", "metrics.jsonl", "run.lock", "manifest.json", "arrays.safetensors", "segment-00000001.rows"]


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("make", [fifo, link], ids=lambda x: x.__name__)
def test_a_file_that_is_none(
    capsys: pytest.CaptureFixture[str], run: Path, make: Callable[[Path], None], place: str
) -> None:
    (path,) = run.rglob(place)
    make(path)
    loaded = place in ("config.json", "manifest.json", "arrays.safetensors")
    told = "is a FIFO, expected a file" if make is fifo else f"is a link to {path}.away"
    refused(capsys, run, str(path), told, verbs="train eval" if loaded else "train")


@pytest.mark.parametrize("place", ["checkpoints", "replay", "videos"])
def test_a_directory_that_is_a_link(capsys: pytest.CaptureFixture[str], run: Path, place: str) -> None:
    (run / place).mkdir(exist_ok=True)  # nothing was drawn yet
    (run / place).rename(run.parent / "away")
    (run / place).symlink_to(run.parent / "away")
    verbs = "train eval" if place == "checkpoints" else "train"
    refused(capsys, run, f"{run / place} is a link to {run.parent / 'away'}, expected a directory", verbs=verbs)


@pytest.mark.parametrize("place", ["metrics.jsonl", "run.lock"])
def test_a_second_name_of_a_file_is_not_written_to(capsys: pytest.CaptureFixture[str], run: Path, place: str) -> None:
    os.link(run / place, run.parent / "precious")
    refused(capsys, run, str(run / place), "is one of 2 names of the same file", verbs="train")


def test_nothing_outside_is_cut_by_a_manifest(capsys: pytest.CaptureFixture[str], run: Path) -> None:
    precious = run.parent / "precious"
    precious.write_bytes(b"everything I have")
    (run / "metrics.jsonl").unlink()
    (run / "metrics.jsonl").symlink_to(precious)
    sign(run, put("meta", "metrics_bytes", value=0))
    refused(capsys, run, f"is a link to {precious}", verbs="train")
    assert precious.read_bytes() == b"everything I have"


def test_a_run_behind_a_link_goes_on(run: Path) -> None:
    door = run.parent / "door"
    door.symlink_to(run)
    assert cli.main([*TRAIN, "--steps", "50", "--run", str(door)]) == 0


# ------------------------------------------------------------------------------------ segments


def forged_record(path: Path, **changes: Any) -> None:
    """Changes the header of the first record, and its checksum with it."""
    (file,) = (path / "replay").iterdir()
    data = bytearray(file.read_bytes())
    head = segments._HEADER
    names = ("magic", "schema", "run", "segment", "kind", "crc", "size")
    values = dict(zip(names, head.unpack_from(data), strict=True)) | changes
    if "ids" in values:
        body = head.size + 4
        data[body : body + 8] = struct.pack("<q", values.pop("ids"))
        values["crc"] = zlib.crc32(data[body : body + values["size"]])
    header = head.pack(*values.values())
    data[: head.size + 4] = header + struct.pack("<I", zlib.crc32(header))
    file.write_bytes(data)


@pytest.mark.parametrize(
    "changes",
    [
        {"size": 2**62},
        {"size": 0},
        {"size": 13, "crc": 0},
        {"kind": 7},
        {"segment": 9},
        {"schema": 1},
        {"ids": -1},
        {"ids": 2**62},
        {"ids": 5 << 40},
        {"ids": 10**9},
    ],
    ids=str,
)
def test_a_segment_that_says_what_cannot_be_costs_its_rows(
    capsys: pytest.CaptureFixture[str], run: Path, changes: dict[str, Any]
) -> None:
    forged_record(run, **changes)
    (file,) = (run / "replay").iterdir()
    before = file.read_bytes()
    assert cli.main([*TRAIN, "--steps", "120", "--run", str(run)]) == 0
    out = capsys.readouterr().out
    assert "damaged places set aside" in " ".join(out.split())
    kept = [path for path in (run / "replay").iterdir() if path.read_bytes() == before]
    assert kept, "what was damaged is renamed, or still there"


def test_a_segment_of_another_run_is_refused(capsys: pytest.CaptureFixture[str], run: Path) -> None:
    forged_record(run, run=bytes(15) + b"\x01")
    ours = json.loads((run / "config.json").read_text())["id"]
    refused(capsys, run, bytes(15).hex() + "01", ours, verbs="train")


def test_a_checkpoint_of_another_run_is_refused(capsys: pytest.CaptureFixture[str], run: Path) -> None:
    ours = json.loads((run / "config.json").read_text())["id"]
    sign(run, put("run", value="f" * 32))
    refused(capsys, run, "f" * 32, ours)


# ------------------------------------------------------------------------------------ other versions


def newer_checkpoint(run: Path) -> None:
    new = Path(shutil.copytree(checkpoint(run), run / "checkpoints" / "step-000000000090"))
    file = new / "manifest.json"
    manifest = json.loads(file.read_text())
    del manifest["sha256"]
    manifest |= {"version": 2, "step": 90, "what": {"we": "do not know yet"}}
    manifest["libraries"]["reverie"] = "7.0"
    text = json.dumps(manifest, sort_keys=True)
    file.write_text(json.dumps({**manifest, "sha256": hashlib.sha256(text.encode()).hexdigest()}))


def newer_replay(run: Path) -> None:
    sign(run, lambda m: m["meta"]["replay"].update(version=3, reverie="7.0", segments="elsewhere"))


def newer_config(run: Path) -> None:
    data = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps(data | {"schema": 2, "reverie": "7.0", "run": None}))


@pytest.mark.parametrize("make", [newer_checkpoint, newer_replay, newer_config], ids=lambda x: x.__name__)
def test_what_a_newer_version_wrote_survives_an_older_one(
    capsys: pytest.CaptureFixture[str], run: Path, make: Callable[[Path], None]
) -> None:
    make(run)
    refused(capsys, run, "pip install reverie==7.0", verbs="train" if make is newer_replay else "train eval")
