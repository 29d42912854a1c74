from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import tracemalloc
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from faulty_disk import FaultyDisk, tree

from reverie import files
from reverie.files import DiskError, NotPlain
from reverie.run.checkpoint import Checkpoints, Mismatch, NoSoundCheckpoint, flatten, unflatten
from reverie.saved import AnotherRun, OtherVersion

ARRAYS = {
    "params/w": np.arange(600, dtype=np.float32).reshape(20, 30),
    "params/b": np.ones(7, ml_dtypes.bfloat16),
    "count": np.array(3, np.int32),
    "empty": np.zeros((0, 4), bool),
}
META = {"best": 1.5, "replay": {"segments": []}, "big": 2**100, "none": None}


def names(path: Path) -> list[str]:
    return sorted(p.name for p in path.iterdir())


def assert_equal(actual: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    assert actual.keys() == expected.keys()
    for name, array in expected.items():
        assert (actual[name].dtype, actual[name].shape) == (array.dtype, array.shape)
        np.testing.assert_array_equal(actual[name], array)


def test_what_is_loaded_is_what_was_saved(tmp_path: Path) -> None:
    path = Checkpoints(tmp_path).save(1000, ARRAYS, META)
    assert path.name == "step-000000001000"
    loaded = Checkpoints(tmp_path).load_latest()
    assert loaded is not None
    assert (loaded.step, loaded.meta, loaded.path) == (1000, META, path)
    assert_equal(loaded.arrays, ARRAYS)
    assert set(json.loads((path / "manifest.json").read_text())["libraries"]) >= {"jax", "numpy"}


def test_nothing_saved_is_none(tmp_path: Path) -> None:
    assert Checkpoints(tmp_path / "missing").load_latest() is None
    assert Checkpoints(tmp_path).load_latest() is None
    assert Checkpoints(tmp_path).manifests() == []


def test_the_newest_are_kept_and_litter_goes(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=3)
    (tmp_path / "tmp-dead").mkdir()
    (tmp_path / "tmp-dead" / "arrays.safetensors").write_bytes(b"half")
    for step in (1, 2, 30, 400):
        checkpoints.save(step, ARRAYS, {"at": step})
    assert names(tmp_path) == ["step-000000000002", "step-000000000030", "step-000000000400"]
    assert [m["meta"]["at"] for m in checkpoints.manifests()] == [400, 30, 2]
    assert [getattr(checkpoints.load_latest(until), "step", None) for until in (None, 399, 30, 1)] == [
        400,
        30,
        30,
        None,
    ]
    with pytest.raises(ValueError, match="at least 2"):
        Checkpoints(tmp_path, keep=1)


def test_the_same_step_may_be_saved_again(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(5, ARRAYS, {"try": 0})
    for attempt in range(1, 4):
        checkpoints.save(7, ARRAYS, {"try": attempt})
        loaded = checkpoints.load_latest()
        assert loaded is not None
        assert (loaded.step, loaded.meta) == (7, {"try": attempt})
        assert len(names(tmp_path)) == 2


def test_a_run_that_went_back_is_not_overtaken_by_its_past(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    checkpoints = Checkpoints(tmp_path)
    for step in (10, 20):
        checkpoints.save(step, ARRAYS, {})
    os.truncate(tmp_path / "step-000000000020" / "arrays.safetensors", 9)
    loaded = checkpoints.load_latest()
    assert loaded is not None
    assert loaded.step == 10
    checkpoints.save(15, ARRAYS, {})
    assert names(tmp_path) == ["damaged-step-000000000020", "step-000000000010", "step-000000000015"]
    assert (tmp_path / "damaged-step-000000000020" / "manifest.json").exists()


@pytest.mark.parametrize("name", ["arrays.safetensors", "manifest.json"])
def test_any_flipped_bit_or_missing_byte_falls_back(
    name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, {"x": np.ones(2)}, {"which": "old"})
    path = checkpoints.save(2, ARRAYS, {"which": "new"}) / name
    content = path.read_bytes()
    rng = np.random.default_rng(0)
    places = [0, 7, 8, len(content) - 1, *rng.integers(len(content), size=60).tolist()]
    for place in places:
        flipped = bytearray(content)
        flipped[place] ^= 1 << int(rng.integers(8))
        for damaged in (bytes(flipped), content[:place]):
            path.write_bytes(damaged)
            caplog.clear()
            loaded = checkpoints.load_latest()
            assert loaded is not None
            if loaded.meta["which"] == "new":  # white space of the JSON text
                assert_equal(loaded.arrays, ARRAYS)
                assert json.loads(damaged) == json.loads(content)
            else:
                assert_equal(loaded.arrays, {"x": np.ones(2)})
                assert "is damaged and passed over" in caplog.text
    path.unlink()
    loaded = checkpoints.load_latest()
    assert loaded is not None
    assert loaded.step == 1


def forge(directory: Path, content: bytes, **changes: Any) -> None:
    """A checkpoint of step 9 whose checksums hold, but that we would not write."""
    directory.mkdir(parents=True)
    (directory / "arrays.safetensors").write_bytes(content)
    entry = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    manifest = {"version": 1, "step": 9, "files": {"arrays.safetensors": entry}, "meta": {}}
    manifest.update(changes)
    text = json.dumps(manifest, sort_keys=True).encode()
    manifest["sha256"] = hashlib.sha256(text).hexdigest()
    (directory / "manifest.json").write_text(json.dumps(manifest))


def header(text: str, data: bytes = b"") -> bytes:
    return len(text).to_bytes(8, "little") + text.encode() + data


F32 = '"dtype":"F32","shape":[2]'
FORGED = {
    "garbage": b"\x80\x04\x95 not arrays",
    "huge header": (1 << 60).to_bytes(8, "little") + b"{}",
    "huge shape": header('{"a":{"dtype":"F32","shape":[99999999999],"data_offsets":[0,4]}}', b"1234"),
    "overlap": header(f'{{"a":{{{F32},"data_offsets":[0,8]}},"b":{{{F32},"data_offsets":[4,12]}}}}', b"1" * 12),
    "beyond the end": header(f'{{"a":{{{F32},"data_offsets":[0,8]}}}}', b"1234"),
    "deep": header("[" * 100_000),
}


@pytest.mark.parametrize("content", FORGED.values(), ids=FORGED.keys())
def test_forged_arrays_are_passed_over_and_cost_no_memory(content: bytes, tmp_path: Path) -> None:
    forge(tmp_path / "step-000000000009", content)
    tracemalloc.start()
    with pytest.raises(NoSoundCheckpoint):
        Checkpoints(tmp_path).load_latest()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1 << 30, "what a header promises is not believed"


def test_forged_manifests_are_passed_over(tmp_path: Path) -> None:
    sound = safetensors.numpy.save({"x": np.ones(2)})
    forge(tmp_path / "a" / "step-000000000009", sound)
    loaded = Checkpoints(tmp_path / "a").load_latest()
    assert loaded is not None  # the forging itself works
    (tmp_path / "secret").write_bytes(sound)
    for i, changes in enumerate(
        [
            {"files": {"../../secret": {"bytes": len(sound), "sha256": "0"}}},
            {"files": {}},
            {"files": None},
            {"meta": []},
            {"step": 2**62},
            {"step": "9"},
            {"step": 8},
        ]
    ):
        forge(tmp_path / f"b{i}" / "step-000000000009", sound, **changes)
        with pytest.raises(NoSoundCheckpoint):
            Checkpoints(tmp_path / f"b{i}").load_latest()
    step = tmp_path / "c" / "step-000000000009"
    step.mkdir(parents=True)
    (step / "manifest.json").write_text("[" * 1_000_000)
    with pytest.raises(NoSoundCheckpoint):
        Checkpoints(tmp_path / "c").load_latest()


@pytest.mark.parametrize("linked", ["arrays.safetensors", "manifest.json", ".", ".."])
def test_links_are_not_followed(linked: str, tmp_path: Path) -> None:
    step = Checkpoints(tmp_path / "run" / "checkpoints").save(1, ARRAYS, {})
    target = {".": step, "..": step.parent}.get(linked, step / linked)
    target.rename(tmp_path / "elsewhere")
    target.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(NotPlain, match=f"{target} is a link to .*/elsewhere"):
        Checkpoints(tmp_path / "run" / "checkpoints").load_latest()


def test_a_run_may_lie_behind_a_link(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "run").symlink_to(tmp_path / "disk")
    checkpoints = Checkpoints(tmp_path / "run" / "checkpoints")
    checkpoints.save(1, ARRAYS, {})
    assert checkpoints.load_latest() is not None


def test_another_version_is_refused_and_nothing_is_touched(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, ARRAYS, {})
    forge(tmp_path / "step-000000000009", b"of tomorrow", version=2, libraries={"reverie": "7.0"})
    before = tree(tmp_path)
    with pytest.raises(OtherVersion, match=r"step-000000000009 has format 2, of reverie 7.0; .*pip install reverie=="):
        checkpoints.load_latest()
    with pytest.raises(OtherVersion):
        checkpoints.manifests()
    assert tree(tmp_path) == before
    with pytest.raises(OtherVersion):  # whoever did not look before saving
        Checkpoints(tmp_path).save(2, ARRAYS, {})
    assert tree(tmp_path).items() >= before.items()


def test_what_cannot_be_read_for_the_moment_is_no_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoints = Checkpoints(tmp_path)
    for step in (1, 2):
        checkpoints.save(step, ARRAYS, {})
    before, original = tree(tmp_path), os.open
    for code in (errno.EACCES, errno.EIO, errno.ESTALE):
        for name in ("manifest.json", "arrays.safetensors"):

            def failing(path: Any, *args: Any, name: str = name, code: int = code, **kwargs: Any) -> int:
                if path == name:
                    raise OSError(code, os.strerror(code))
                return original(path, *args, **kwargs)

            with monkeypatch.context() as patch:
                patch.setattr(files.os, "open", failing)
                with pytest.raises(DiskError, match=f"step-000000000002/{name}") as caught:
                    checkpoints.load_latest()
            assert caught.value.errno == code
    assert tree(tmp_path) == before
    latest = checkpoints.load_latest()
    assert latest is not None
    assert latest.step == 2


def test_a_checkpoint_of_another_run_is_refused(tmp_path: Path) -> None:
    ours, theirs = (Checkpoints(tmp_path / name, run=name * 32) for name in "ab")
    ours.save(1, ARRAYS, {})
    foreign = theirs.save(2, ARRAYS, {})
    shutil.copytree(foreign, tmp_path / "a" / foreign.name)
    before = tree(tmp_path)
    for _ in range(2):
        with pytest.raises(AnotherRun, match=f"{foreign.name} was written by run {'b' * 32}, .* run {'a' * 32}"):
            ours.load_latest()
    assert tree(tmp_path) == before
    loaded = Checkpoints(tmp_path / "a").load_latest()  # whoever does not know which run it is takes what there is
    assert loaded is not None
    assert loaded.run == "b" * 32


def test_a_full_disk_leaves_the_old_checkpoint_and_no_litter(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, ARRAYS, {})
    with FaultyDisk()() as disk:
        checkpoints.save(1, ARRAYS, {})
    writes = [i for i, name in enumerate(disk.operations) if name == "pwrite"]
    assert len(writes) == 2  # the arrays, the manifest
    before = tree(tmp_path)
    for at in writes:
        with FaultyDisk(at, "full")(), pytest.raises(DiskError, match=r"cannot write \d+ bytes"):
            checkpoints.save(2, ARRAYS, {})
        assert tree(tmp_path) == before
        assert not list(tmp_path.glob("tmp-*"))
    checkpoints.save(2, ARRAYS, {})
    loaded = checkpoints.load_latest()
    assert loaded is not None
    assert loaded.step == 2


# --- pytrees ------------------------------------------------------------------------------------


def state(width: int = 3) -> dict[str, Any]:
    return {
        "params": [jnp.ones((2, width)), {"w/x": jnp.zeros(2, jnp.bfloat16)}],
        "key": jax.random.key(7),
        "keys": jax.random.split(jax.random.key(8), 3),
        "step": jnp.int32(4),
    }


def test_a_tree_comes_back_as_it_was(tmp_path: Path) -> None:
    tree_ = state()
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, flatten(tree_), {})
    loaded = checkpoints.load_latest()
    assert loaded is not None
    for like in (tree_, jax.eval_shape(state)):
        again = unflatten(like, loaded.arrays)
        assert jax.tree.structure(again) == jax.tree.structure(tree_)
        for a, b in zip(jax.tree.leaves(again), jax.tree.leaves(tree_), strict=True):
            assert a.dtype == b.dtype
            if jax.dtypes.issubdtype(a.dtype, jax.dtypes.prng_key):
                a, b = jax.random.key_data(a), jax.random.key_data(b)
            np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


def test_names_tell_where_an_array_is() -> None:
    assert sorted(flatten(state())) == ["key", "keys", "params/0", "params/1/w/x", "step"]
    with pytest.raises(ValueError, match="two leaves of the tree are called 'a/b'"):
        flatten({"a": {"b": jnp.ones(1)}, "a/b": jnp.ones(1)})
    with pytest.raises(TypeError, match="arrays only; given object"):
        flatten({"a": object()})


def test_a_mismatch_lists_everything_that_differs() -> None:
    arrays = flatten(state(width=5))
    arrays["step"] = arrays["step"].astype(np.int64)
    arrays["extra"] = arrays.pop("keys")
    with pytest.raises(Mismatch) as caught:
        unflatten(state(), arrays)
    assert "nothing was changed; 4 differences" in str(caught.value)
    for line in (
        "extra: saved, but not expected",
        "keys: expected uint32 [3, 2], not saved",
        "params/0: saved float32 [2, 5], expected float32 [2, 3]",
        "step: saved int64 [], expected int32 []",
    ):
        assert line in str(caught.value)


def test_a_run_may_move_between_machines_that_compute_in_other_precisions() -> None:
    x = np.array([1, 1 / 3], np.float32)
    there = unflatten({"x": jnp.zeros(2, jnp.bfloat16)}, {"x": x}, computed=True)
    back = unflatten({"x": jnp.zeros(2)}, flatten(there), computed=True)
    assert (there["x"].dtype, back["x"].dtype) == (jnp.bfloat16, jnp.float32)
    np.testing.assert_array_equal(back["x"], np.float32(x.astype(ml_dtypes.bfloat16)))
    with pytest.raises(Mismatch, match=r"x: saved float64 \[2\], expected float32 \[2\]"):
        unflatten({"x": jnp.zeros(2)}, {"x": x.astype(np.float64)}, computed=True)
    with pytest.raises(Mismatch, match=r"x: saved float32 \[2\], expected bfloat16 \[2\]"):
        unflatten({"x": jnp.zeros(2, jnp.bfloat16)}, {"x": x})


def test_a_restored_tree_does_not_share_memory_with_the_arrays() -> None:
    # Training donates the state: memory shared with numpy would be written over.
    arrays = {"x": np.ones(1024, np.float32)}
    restored = unflatten({"x": jnp.zeros(1024)}, arrays)
    arrays["x"][:] = 2
    np.testing.assert_array_equal(np.asarray(restored["x"]), 1)
