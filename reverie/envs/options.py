"""Checks of the ids and keyword arguments of a family of envs, before anything is built."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar, get_type_hints

from reverie.fields import did_you_mean, fits, ranges, wording

T = TypeVar("T")
Info = dict[str, Any]  # the info of Gymnasium's reset and step, and the options of its reset


@dataclass(frozen=True)
class NoOptions:
    """Keyword arguments of a family that takes none; a shorter `--time-limit` is possible."""


def read(options: type[T], given: Mapping[str, Any]) -> T:
    """An instance of the dataclass `options` from JSON values.

    Args:
      options: with fields of type bool, int, float, str, `Literal`, or one of them `| None`. Numbers may have a range
        (`fields.Within`); for what a range cannot say its `__post_init__` may raise ValueError.

    Raises:
      ValueError: an unknown name (the message says the nearest), a value of another type, or out of its range.
    """
    kind: Any = options
    types, bounds = get_type_hints(options), ranges(kind)
    known = list(types)
    for name, value in given.items():
        if name not in known:
            raise ValueError(f"no option {name!r}: {did_you_mean(name, known)}There are {', '.join(known)}")
        if not fits(value, types[name]):
            raise ValueError(f"option {name} is {value!r}, expected {wording(types[name])}")
        if name in bounds and value not in bounds[name]:
            raise ValueError(f"option {name} is {value}, expected {bounds[name].wording(value)}")
    return options(**given)


def own_name(name: str, prefix: str, known: Collection[str], example: str = "", kind: str = "env") -> str:
    """The name by which a package itself knows the id `prefix + name`, one of `known`.

    Raises ValueError for any other. It says the nearest ones; where none is near, an example, or all.
    """
    name = name.removeprefix(prefix)
    if name in known:
        return name
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.4) or ([example] if example else known)
    raise ValueError(f"no such {kind}: did you mean {' or '.join(prefix + x for x in near)}?")
