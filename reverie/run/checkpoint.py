"""Checkpoints: all of a run's state at one step, committed as one.

    checkpoints/step-000000001000/arrays.safetensors    every array, by name
                                  manifest.json         step, sizes, checksums, versions, `meta`

A checkpoint is written as `tmp-<uuid>/`, flushed to the disk and renamed: under its final name it
is complete. There is no pointer to the newest one: it is the highest step whose checksums hold.

What cannot be used is never removed. A **damaged** checkpoint (a checksum is wrong, a file is missing or cut short) is
passed over, and the next save renames it `damaged-...`. One that another version wrote, that is of another run, or that
cannot be read for the moment is an error, and nothing changes. Every format has `version`, `libraries` and `sha256` in
its manifest as this one has, or older versions could not say so.
"""

from __future__ import annotations

import errno
import hashlib
import importlib.metadata
import json
import logging
import os
import platform
import re
import uuid
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
import safetensors
import safetensors.numpy

from reverie import files
from reverie.errors import PlainError
from reverie.files import Folder, Missing
from reverie.saved import BYTES, COUNT, AnotherRun, OtherVersion, fault

VERSION = 1
_ARRAYS, _MANIFEST = "arrays.safetensors", "manifest.json"
_COMPUTE = {np.dtype("float32"), np.dtype(jax.numpy.bfloat16)}  # dtypes that agents compute in
_MANIFEST_BYTES = 8 << 20  # a longer manifest is none of ours
_FORM = {"step": COUNT, "files": {_ARRAYS: {"bytes": BYTES, "sha256": str}}, "meta": {str: object}}
# The second number counts saves of the same step: the new one is complete before the old one goes.
_NAME = re.compile(r"step-(\d{12})(?:-(\d+))?")

log = logging.getLogger("reverie")


class Mismatch(PlainError, ValueError):
    """Saved arrays are not those expected; lists all that differs."""


class NoSoundCheckpoint(PlainError, ValueError):
    """There are checkpoints, and none of them can be read."""


class _DamagedError(Exception):
    """A checkpoint that must not be used; says why."""


# A file that is missing is damage. Whatever else keeps one from being read may pass, and is an error.
_DAMAGE = (_DamagedError, Missing)


@dataclass(frozen=True)
class Checkpoint:
    """The content of a checkpoint."""

    step: int
    arrays: dict[str, np.ndarray]
    meta: dict[str, Any]
    path: Path
    run: str  # the id of the run that wrote it; empty if that is old and had none


class Checkpoints:
    """The checkpoints of one run, of which the newest `keep` (at least 2) are kept.

    Args:
      directory: where they lie; the one above it is the run's own.
      run: the id of the run, written into every one. Those of another are refused. Empty: any will do.
    """

    def __init__(self, directory: Path, keep: int = 2, run: str = "") -> None:
        if keep < 2:
            raise ValueError(f"keep at least 2 checkpoints, so that one may break; given keep={keep}")
        self.directory = directory
        self.keep = keep
        self.run = run
        self._folder = Folder(directory.parent) / directory.name
        self._passed_over: list[str] = []  # damaged ones, which the next save sets aside

    def save(self, step: int, arrays: Mapping[str, np.ndarray], meta: Mapping[str, Any]) -> Path:
        """Commits a checkpoint, reads it back, and removes those older than the newest `keep`.

        A checkpoint of a later step is removed as well: the run has gone back behind it, and it
        must not come back as the newest.

        Args:
          step: the moment (`phases`): env steps taken, and updates where they come after these.
          arrays: names -> arrays, see `flatten`. bfloat16 is kept.
          meta: JSON-able values.

        Returns its directory. Raises `files.DiskError` if the disk fails; the checkpoints before stay as they were.
        """
        folder = self._folder
        folder.make()
        self._tidy()
        content = safetensors.numpy.save({k: np.asarray(a, order="C") for k, a in arrays.items()})
        manifest = {
            "format": "reverie checkpoint",
            "version": VERSION,
            "run": self.run,
            "step": step,
            "files": {_ARRAYS: {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}},
            "libraries": _libraries(),
            "meta": json.loads(json.dumps(meta)),
        }
        text = json.dumps({**manifest, "sha256": _digest(manifest)}, indent=1).encode()
        attempt = max((a for s, a, _ in self._candidates() if s == step), default=-1) + 1
        name = f"step-{step:012d}" + (f"-{attempt}" if attempt else "")
        temporary = f"tmp-{uuid.uuid4().hex}"
        inside = folder / temporary
        try:
            inside.make()
            inside.create(_ARRAYS, [content])
            inside.create(_MANIFEST, [text])
            inside.sync()
            folder.rename(temporary, name)
            folder.sync()
        except OSError:
            with suppress(OSError):  # make room; what stays is removed by the next save
                folder.remove(temporary)
            raise
        try:
            with _verify(folder / name):
                pass
        except _DAMAGE as damage:
            raise files.DiskError(
                errno.EIO,
                f"the checkpoint just written does not read back: {folder.path / name}: {damage}. The disk is not "
                f"to be trusted; older checkpoints were left in place",
            ) from None
        self._prune(step, attempt)
        return folder.path / name

    def load_latest(self, until: int | None = None) -> Checkpoint | None:
        """The sound checkpoint of the highest step (up to `until`, if given), or None if there is none yet. Damaged
        ones are passed over with a warning.

        Raises:
          NoSoundCheckpoint: no other is left.
          OtherVersion: one of them was written by a version with another format.
          AnotherRun: one of them is not of this run.
          files.DiskError: one of them cannot be read for the moment, or is no plain file.
        """
        found = [each for each in self._candidates() if until is None or each[0] <= until]
        self._passed_over = []
        self._readable(found)  # or nothing is read
        for step, _, name in found:
            try:
                with _verify(self._folder / name) as (manifest, handle):
                    arrays = _read_arrays(handle)
                if manifest["step"] != step:
                    raise _DamagedError(f"its manifest says step {manifest['step']!r}")
            except _DAMAGE as damage:
                log.warning("checkpoint %s is damaged and passed over: %s", self._folder.path / name, damage)
                self._passed_over.append(name)
                continue
            wrote = str(manifest.get("run") or "")
            return Checkpoint(step, arrays, manifest["meta"], self._folder.path / name, wrote)
        if found:
            raise NoSoundCheckpoint(
                f"every checkpoint in {self.directory} is damaged; nothing was changed. Restore one from a copy, or "
                f"begin anew in another directory with --run"
            )
        return None

    def manifests(self) -> list[dict[str, Any]]:
        """The manifests (`step`, `meta`, ...) of all checkpoints on the disk that are not damaged, newest first. Raises
        as `load_latest` does."""
        return [*self._readable(self._candidates()).values()]

    def _readable(self, found: Iterable[tuple[int, int, str]]) -> dict[str, dict[str, Any]]:
        """Name -> manifest of those found whose manifest is not damaged; raises as `load_latest` does."""
        manifests: dict[str, dict[str, Any]] = {}
        for _, _, name in found:
            with suppress(*_DAMAGE):
                manifests[name] = manifest = _read_manifest(self._folder / name)
                theirs = str(manifest.get("run") or "")
                if self.run and theirs and theirs != self.run:
                    raise AnotherRun(f"the checkpoint {self._folder.path / name}", theirs, self.run)
        return manifests

    def _candidates(self) -> list[tuple[int, int, str]]:
        """(step, attempt, name), newest first."""
        names = (_NAME.fullmatch(name) for name in self._folder.names())
        return sorted(((int(name[1]), int(name[2] or 0), name[0]) for name in names if name), reverse=True)

    def _tidy(self) -> None:
        """Sets aside what is damaged, and removes what saves that were cut short have left."""
        for name in self._passed_over:
            with suppress(Missing):
                log.warning("%s is kept as %s", self._folder.path / name, self._folder.set_aside(name))
        self._passed_over = []
        for name in self._folder.names():
            if name.startswith("tmp-"):
                self._folder.remove(name)

    def _prune(self, step: int, attempt: int) -> None:
        found = self._candidates()
        manifests = self._readable(found)
        kept: set[int] = set()
        for s, a, name in found:
            stale = s > step or (s == step and a != attempt)
            if name not in manifests:
                self._folder.set_aside(name)
            elif stale or s in kept or len(kept) >= self.keep:
                self._folder.remove(name)
            else:
                kept.add(s)


# --- one checkpoint on the disk -------------------------------------------------------------------


def _digest(manifest: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def _libraries() -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for name in ("reverie", "jax", "jaxlib", "numpy", "safetensors"):
        with suppress(importlib.metadata.PackageNotFoundError):  # run from a checkout
            versions[name] = importlib.metadata.version(name)
    return versions


def _read_manifest(folder: Folder) -> dict[str, Any]:
    text = folder.read(_MANIFEST, _MANIFEST_BYTES + 1)
    if len(text) > _MANIFEST_BYTES:
        raise _DamagedError(f"{_MANIFEST} has more than {_MANIFEST_BYTES} bytes")
    try:
        manifest = json.loads(text)
        digest = manifest.pop("sha256")
        right = digest == _digest(manifest)
        version = manifest["version"]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise _DamagedError(f"{_MANIFEST} cannot be read ({type(error).__name__}: {error})") from None
    if not right:
        raise _DamagedError(f"the checksum of {_MANIFEST} is wrong")
    if version != VERSION:
        libraries = manifest.get("libraries")
        wrote = libraries.get("reverie") if isinstance(libraries, dict) else None
        raise OtherVersion(f"the checkpoint {folder.path}", version, VERSION, wrote)
    if wrong := fault(manifest, _FORM):
        raise _DamagedError(f"{_MANIFEST}: {wrong}")
    return manifest


@contextmanager
def _verify(folder: Folder) -> Iterator[tuple[dict[str, Any], int]]:
    """The manifest of a checkpoint whose sizes and checksums hold, and an open handle of its arrays."""
    manifest = _read_manifest(folder)
    # No name out of the manifest is ever opened: the one file it may list is the one we know.
    if list(manifest["files"]) != [_ARRAYS]:
        raise _DamagedError(f"lists the files {list(manifest['files'])[:9]}, expected {[_ARRAYS]}")
    want, handle = manifest["files"][_ARRAYS], folder.open(_ARRAYS)
    with open(handle, "rb") as file:
        try:
            size = os.fstat(handle).st_size
            if size != want["bytes"]:
                raise _DamagedError(f"{_ARRAYS} has {size} bytes instead of {want['bytes']}")
            if hashlib.file_digest(file, "sha256").hexdigest() != want["sha256"]:
                raise _DamagedError(f"the checksum of {_ARRAYS} is wrong")
        except OSError as error:
            raise files.DiskError(error.errno, f"cannot read {folder.path / _ARRAYS}: {error.strerror}") from error
        yield manifest, handle


def _read_arrays(handle: int) -> dict[str, np.ndarray]:
    try:
        # By the handle whose content was just checked, not by a name.
        with safetensors.safe_open(f"/dev/fd/{handle}", framework="numpy") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
    except (OSError, ValueError, TypeError, AttributeError, safetensors.SafetensorError) as error:
        raise _DamagedError(f"{_ARRAYS} cannot be read ({error})") from None


# --- pytrees as named arrays ----------------------------------------------------------------------


def flatten(tree: Any) -> dict[str, np.ndarray]:
    """A pytree of arrays as `path/of/keys` -> array. Typed PRNG keys become their key data (uint32).

    Raises TypeError for a leaf that is no array, ValueError if two leaves have the same name.
    """
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    arrays: dict[str, np.ndarray] = {}
    for path, leaf in leaves:
        name = leaf_name(path)
        if name in arrays:
            raise ValueError(f"two leaves of the tree are called {name!r}")
        array = np.asarray(jax.random.key_data(leaf) if is_key(leaf) else leaf)
        if array.dtype == object:
            raise TypeError(f"{name}: a state holds arrays only; given {type(leaf).__name__}")
        arrays[name] = array
    return arrays


def unflatten(like: Any, arrays: Mapping[str, np.ndarray], *, computed: bool = False) -> Any:
    """The pytree of `flatten`, with the structure of `like`.

    Args:
      like: a pytree of arrays or of `jax.ShapeDtypeStruct` (`jax.eval_shape(agent.init, key)`).
      arrays: exactly its names, shapes and dtypes.
      computed: bfloat16 and float32 stand for each other: a run may move between a GPU and a CPU, whose agents compute
        in other dtypes (`reverie.assembly.make_agent`).

    Returns a tree of jax arrays. Raises `Mismatch`, listing every name that is missing, unexpected
    or of another shape or dtype.
    """
    leaves, treedef = jax.tree_util.tree_flatten_with_path(like)
    expected = {leaf_name(path): leaf for path, leaf in leaves}
    faults = [f"{name}: saved, but not expected" for name in sorted(arrays.keys() - expected.keys())]
    for name, leaf in expected.items():
        want = jax.eval_shape(jax.random.key_data, leaf) if is_key(leaf) else leaf
        dtypes = _COMPUTE if computed and want.dtype in _COMPUTE else {want.dtype}
        text = f"expected {want.dtype} {list(want.shape)}"
        if (given := arrays.get(name)) is None:
            faults.append(f"{name}: {text}, not saved")
        elif given.shape != want.shape or given.dtype not in dtypes:
            faults.append(f"{name}: saved {given.dtype} {list(given.shape)}, {text}")
    if faults:
        raise Mismatch(
            f"the checkpoint is of another agent (size, spaces or version), nothing was changed; "
            f"{len(faults)} differences:\n  " + "\n  ".join(faults)
        )
    return jax.tree_util.tree_unflatten(treedef, [_as_leaf(leaf, arrays[name]) for name, leaf in expected.items()])


def leaf_name(path: Any, alone: str = ".") -> str:
    """The name of the leaf at a path; `alone`: that of a tree which is one leaf."""
    return jax.tree_util.keystr(path, simple=True, separator="/") or alone


def is_key(leaf: Any) -> bool:
    return hasattr(leaf, "dtype") and jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _as_leaf(like: Any, array: np.ndarray) -> jax.Array:
    # A copy: on the CPU jax may otherwise share the memory of `array` and then donate it.
    if not is_key(like):
        return jax.numpy.array(array, like.dtype)
    impl = jax.random.key_impl(like) if isinstance(like, jax.Array) else None
    return jax.random.wrap_key_data(jax.numpy.array(array), impl=impl)
