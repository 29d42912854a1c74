"""Checkpoints: all of a run's state at one step, committed as one.

    checkpoints/step-000000001000/arrays.safetensors    every array, by name
                                  manifest.json         step, sizes, checksums, versions, `meta`

A checkpoint is written as `tmp-<uuid>/`, flushed to the disk and renamed: under its final name it
is complete. There is no pointer to the newest one: it is the highest step whose checksums hold.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import logging
import os
import platform
import re
import uuid
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
import safetensors
import safetensors.numpy

from reverie import files

VERSION = 1
_ARRAYS, _MANIFEST = "arrays.safetensors", "manifest.json"
_MANIFEST_BYTES = 256 << 20  # a longer manifest is none of ours
# The second number counts saves of the same step: the new one is complete before the old one goes.
_NAME = re.compile(r"step-(\d{12})(?:-(\d+))?")

log = logging.getLogger("reverie")


class Mismatch(ValueError):
    """Saved arrays are not those expected; lists all that differs."""


class AllDamaged(ValueError):
    """There are checkpoints, and none of them can be read."""


class _Damaged(Exception):
    """A checkpoint that must not be used; says why."""


@dataclass(frozen=True)
class Checkpoint:
    step: int
    arrays: dict[str, np.ndarray]
    meta: dict[str, Any]
    path: Path


class Checkpoints:
    """The checkpoints of one run, of which the newest `keep` (at least 2) are kept."""

    def __init__(self, directory: Path, keep: int = 2) -> None:
        if keep < 2:
            raise ValueError(f"keep at least 2 checkpoints, so that one may break; given keep={keep}")
        self.directory = directory
        self.keep = keep

    def save(self, step: int, arrays: Mapping[str, np.ndarray], meta: Mapping[str, Any]) -> Path:
        """Commits a checkpoint, reads it back, and removes those older than the newest `keep`.

        A checkpoint of a later step is removed as well: the run has gone back behind it, and it
        must not come back as the newest.

        Args:
          step: the moment (`phases`): env steps taken, and updates where they come after these.
          arrays: names -> arrays, see `flatten`. bfloat16 is kept.
          meta: JSON-able values.

        Returns its directory. Raises `files.DiskError` if the disk fails; the checkpoints before
        stay as they were.
        """
        files.make_dir(self.directory)
        self._remove_litter()
        content = safetensors.numpy.save({k: np.asarray(a, order="C") for k, a in arrays.items()})
        manifest = {
            "format": "reverie checkpoint",
            "version": VERSION,
            "step": step,
            "files": {_ARRAYS: {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}},
            "libraries": _libraries(),
            "meta": json.loads(json.dumps(meta)),
        }
        text = json.dumps({**manifest, "sha256": _digest(manifest)}, indent=1).encode()
        attempt = max((a for s, a, _ in self._found() if s == step), default=-1) + 1
        path = self.directory / (f"step-{step:012d}" + (f"-{attempt}" if attempt else ""))
        temporary = self.directory / f"tmp-{uuid.uuid4().hex}"
        try:
            files.make_dir(temporary)
            files.create(temporary / _ARRAYS, [content])
            files.create(temporary / _MANIFEST, [text])
            files.sync_dir(temporary)
            files.rename(temporary, path)
            files.sync_dir(self.directory)
        except OSError:
            with suppress(OSError):  # make room; what stays is removed by the next save
                files.remove(temporary)
            raise
        try:
            _verify(path)
        except _Damaged as fault:
            raise files.DiskError(
                f"the checkpoint just written does not read back: {path}: {fault}. The disk is not "
                f"to be trusted; older checkpoints were left in place"
            ) from None
        self._prune(step, attempt)
        return path

    def load_latest(self, until: int | None = None) -> Checkpoint | None:
        """The sound checkpoint of the highest step (up to `until`, if given), or None if there is none yet. Damaged
        ones are passed over with a warning; AllDamaged is raised if no other is left."""
        found = [each for each in self._found() if until is None or each[0] <= until]
        for _, _, path in found:
            try:
                manifest = _verify(path)
                arrays = _read_arrays(path / _ARRAYS)
            except _Damaged as fault:
                log.warning("checkpoint %s is damaged and passed over: %s", path, fault)
                continue
            return Checkpoint(manifest["step"], arrays, manifest["meta"], path)
        if found:
            raise AllDamaged(
                f"every checkpoint in {self.directory} is damaged; nothing was changed. Restore one from a copy, or "
                f"begin anew in another directory with --run"
            )
        return None

    def manifests(self) -> list[dict[str, Any]]:
        """The manifests (`step`, `meta`, ...) of all checkpoints on the disk that can be read,
        newest first."""
        manifests = []
        for _, _, path in self._found():
            with suppress(_Damaged):
                manifests.append(_read_manifest(path))
        return manifests

    def _found(self) -> list[tuple[int, int, Path]]:
        """(step, attempt, path), newest first."""
        if not self.directory.is_dir():
            return []
        names = ((_NAME.fullmatch(p.name), p) for p in self.directory.iterdir())
        found = [(int(name[1]), int(name[2] or 0), path) for name, path in names if name]
        return sorted(found, reverse=True)

    def _prune(self, step: int, attempt: int) -> None:
        kept: set[int] = set()
        for s, a, path in self._found():
            stale = s > step or (s == step and a != attempt)
            if stale or s in kept or len(kept) >= self.keep:
                files.remove(path)
            else:
                kept.add(s)

    def _remove_litter(self) -> None:
        for path in self.directory.glob("tmp-*"):
            files.remove(path)


# --- one checkpoint on the disk -------------------------------------------------------------------


def _digest(manifest: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def _libraries() -> dict[str, str]:
    names = ("reverie", "jax", "jaxlib", "numpy", "safetensors")
    versions = {"python": platform.python_version()}
    for name in names:
        with suppress(importlib.metadata.PackageNotFoundError):  # run from a checkout
            versions[name] = importlib.metadata.version(name)
    return versions


def _open(path: Path) -> int:
    """Opens a file of a checkpoint for reading; a link that could lead elsewhere is refused."""
    try:
        return os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError as error:
        raise _Damaged(f"{path.name}: {os.strerror(error.errno or 0)}") from None


def _read_manifest(path: Path) -> dict[str, Any]:
    if path.is_symlink():
        raise _Damaged("is a link")
    try:
        with open(_open(path / _MANIFEST), "rb") as file:
            text = file.read(_MANIFEST_BYTES)
        manifest = json.loads(text)
        digest = manifest.pop("sha256")
        right = digest == _digest(manifest)
        version = manifest["version"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise _Damaged(f"{_MANIFEST} cannot be read ({type(error).__name__}: {error})") from None
    if not right:
        raise _Damaged(f"the checksum of {_MANIFEST} is wrong")
    if version != VERSION:
        raise _Damaged(f"format {version}, this version of reverie reads {VERSION}")
    return manifest


def _verify(path: Path) -> dict[str, Any]:
    """The manifest of a checkpoint whose sizes and checksums hold."""
    manifest = _read_manifest(path)
    # No name out of the manifest is ever opened: the one file it may list is the one we know.
    if list(manifest["files"]) != [_ARRAYS]:
        raise _Damaged(f"lists the files {list(manifest['files'])}, expected {[_ARRAYS]}")
    want = manifest["files"][_ARRAYS]
    try:
        with open(_open(path / _ARRAYS), "rb") as file:
            size = os.fstat(file.fileno()).st_size
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise _Damaged(f"{_ARRAYS} cannot be read ({error})") from None
    if size != want["bytes"]:
        raise _Damaged(f"{_ARRAYS} has {size} bytes instead of {want['bytes']}")
    if digest != want["sha256"]:
        raise _Damaged(f"the checksum of {_ARRAYS} is wrong")
    return manifest


def _read_arrays(path: Path) -> dict[str, np.ndarray]:
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
    except (OSError, safetensors.SafetensorError) as error:
        raise _Damaged(f"{path.name} cannot be read ({error})") from None


# --- pytrees as named arrays ----------------------------------------------------------------------


def flatten(tree: Any) -> dict[str, np.ndarray]:
    """A pytree of arrays as `path/of/keys` -> array. Typed PRNG keys become their key data
    (uint32).

    Raises TypeError for a leaf that is no array, ValueError if two leaves have the same name.
    """
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    arrays: dict[str, np.ndarray] = {}
    for path, leaf in leaves:
        name = _leaf_name(path)
        if name in arrays:
            raise ValueError(f"two leaves of the tree are called {name!r}")
        array = np.asarray(jax.random.key_data(leaf) if _is_key(leaf) else leaf)
        if array.dtype == object:
            raise TypeError(f"{name}: a state holds arrays only; given {type(leaf).__name__}")
        arrays[name] = array
    return arrays


def unflatten(like: Any, arrays: Mapping[str, np.ndarray]) -> Any:
    """The pytree of `flatten`, with the structure of `like`.

    Args:
      like: a pytree of arrays or of `jax.ShapeDtypeStruct` (`jax.eval_shape(agent.init, key)`).
      arrays: exactly its names, shapes and dtypes.

    Returns a tree of jax arrays. Raises `Mismatch`, listing every name that is missing, unexpected
    or of another shape or dtype.
    """
    leaves, treedef = jax.tree_util.tree_flatten_with_path(like)
    names = [_leaf_name(path) for path, _ in leaves]
    faults = [f"{name}: saved, but not expected" for name in sorted(arrays.keys() - set(names))]
    for name, (_, leaf) in zip(names, leaves, strict=True):
        want = jax.eval_shape(jax.random.key_data, leaf) if _is_key(leaf) else leaf
        if name not in arrays:
            faults.append(f"{name}: expected {want.dtype} {list(want.shape)}, not saved")
        elif arrays[name].shape != want.shape or arrays[name].dtype != want.dtype:
            got = arrays[name]
            faults.append(f"{name}: saved {got.dtype} {list(got.shape)}, expected {want.dtype} {list(want.shape)}")
    if faults:
        raise Mismatch(
            f"the checkpoint is of another agent (size, spaces or version), nothing was changed; "
            f"{len(faults)} differences:\n  " + "\n  ".join(faults)
        )
    values = [_as_leaf(leaf, arrays[name]) for name, (_, leaf) in zip(names, leaves, strict=True)]
    return jax.tree_util.tree_unflatten(treedef, values)


def _leaf_name(path: Any) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/") or "."


def _is_key(leaf: Any) -> bool:
    return hasattr(leaf, "dtype") and jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _as_leaf(like: Any, array: np.ndarray) -> jax.Array:
    # A copy: on the CPU jax may otherwise share the memory of `array` and then donate it.
    if not _is_key(like):
        return jax.numpy.array(array)
    impl = jax.random.key_impl(like) if isinstance(like, jax.Array) else None
    return jax.random.wrap_key_data(jax.numpy.array(array), impl=impl)
