"""Named sets of values, as data: one TOML file per algorithm, and files of one's own.

    suited = ["catch"]       presets that are taken in their env unless another is asked for

    [defaults]               values of the run that differ from those of `RunConfig`
    [bases.laptop]           values that several presets share
    [presets.catch]          what `--preset catch` means
    base = "laptop"          what it begins with: a base, a preset, `algorithm:name` of another file, or a list of these
    env_kwargs = { size = 5 }

A file of one's own (`--preset mine.toml`) is one preset: values at its top, with `base` if it begins with another
preset, and `algorithm` to say whose values they are.
"""

from __future__ import annotations

import importlib.util
import json
import tomllib
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from reverie import algos
from reverie.fields import ConfigError, did_you_mean, short

LARGEST = 1 << 20  # bytes of a file of one's own


class Presets(NamedTuple):
    """The content of an algorithm's file, with every `base` filled in."""

    defaults: Mapping[str, Any]  # values of the run that differ from those of `RunConfig`
    named: Mapping[str, Mapping[str, Any]]  # preset -> its values
    preset_for: Mapping[str, str]  # env -> the preset that is taken there


@cache
def of(algorithm: str) -> Presets:
    """The presets of an algorithm; raises UnknownAlgorithm."""
    data = _file(algorithm)
    named = {name: _with_bases(algorithm, values) for name, values in data.get("presets", {}).items()}
    defaults = _with_bases(algorithm, data.get("defaults", {}))
    return Presets(defaults, named, {named[name]["env"]: name for name in data.get("suited", ())})


def is_file(preset: str) -> bool:
    """Whether a preset is a file of one's own."""
    return preset.endswith(".toml")


def owner(path: str) -> str:
    """The algorithm of a file of one's own; empty if it does not say. Raises as `own`, and UnknownAlgorithm."""
    if algorithm := str(_own_file(path).get("algorithm", "")):
        algos.module(algorithm)
    return algorithm


def own(path: str, algorithm: str) -> dict[str, Any]:
    """The values of a file of one's own, for an algorithm.

    Raises:
      ConfigError: there is no such file, it is no TOML, it is for another algorithm, or its base is none.
    """
    values = _own_file(path)
    if (of_whom := values.pop("algorithm", algorithm)) != algorithm:
        raise ConfigError(f"{path} is a preset of {short(of_whom)}, and the algorithm is {algorithm}")
    try:
        return _with_bases(algorithm, values)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None


def _file(algorithm: str) -> dict[str, Any]:
    """An algorithm's file, `presets/<algorithm>.toml` in the package that has the algorithm; empty if there is none."""
    spec: Any = importlib.util.find_spec(algos.module(algorithm).partition(".")[0])
    path = Path(spec.origin).parent / "presets" / f"{algorithm}.toml"
    return tomllib.loads(path.read_text()) if path.exists() else {}


def _own_file(path: str) -> dict[str, Any]:
    file = Path(path)
    if not file.is_file():
        raise ConfigError(f"there is no file {path}; the presets of an algorithm have names (see `reverie list`)")
    if file.stat().st_size > LARGEST:
        raise ConfigError(f"{path} is no preset: it has more than {LARGEST:,} bytes")
    try:
        return tomllib.loads(file.read_text())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ConfigError(f"{path} is not TOML: {error}") from None


def _with_bases(algorithm: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """Values on top of those that they begin with, as flags hold them."""
    values, found = dict(values), dict[str, Any]()
    bases = values.pop("base", [])
    bases = bases if isinstance(bases, list) else [bases]
    if not all(isinstance(base, str) for base in bases):
        raise ConfigError(f"base is {short(bases)}, expected the name of a preset or a list of names")
    for base in bases:
        found |= _base(algorithm, base)
    if isinstance(values.get("choices"), dict):
        values["choices"] = json.loads(found.get("choices", "{}")) | values["choices"]
    return found | {
        name: json.dumps(value, sort_keys=True) if isinstance(value, dict) else value for name, value in values.items()
    }


def _base(algorithm: str, name: str) -> dict[str, Any]:
    """The values of `name` or `algorithm:name`."""
    other, _, plain = name.rpartition(":")
    data = _file(other or algorithm)
    known = data.get("presets", {}) | data.get("bases", {})
    if plain not in known:
        whose = f"{other or algorithm} has {', '.join(known) or 'none'}"
        raise ConfigError(f"there is no base {short(name)}: {did_you_mean(plain, known)}{whose}")
    return _with_bases(other or algorithm, known[plain])
