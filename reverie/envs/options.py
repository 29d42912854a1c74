"""Keyword arguments of a family of envs: known by name and type, checked before anything is built."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from types import UnionType
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

T = TypeVar("T")


def read(options: type[T], given: Mapping[str, Any]) -> T:
    """An instance of the dataclass `options` from JSON values.

    Args:
      options: with fields of type bool, int, float, str, `Literal`, or one of them `| None`. Its
        `__post_init__` may raise ValueError for values out of range.

    Raises:
      ValueError: an unknown name (the message says the nearest), or a value of another type.
    """
    types = get_type_hints(options)
    known = list(types)
    for name, value in given.items():
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1, cutoff=0.4)
            meant = f"did you mean {near[0]!r}? " if near else ""
            raise ValueError(f"no option {name!r}: {meant}There are {', '.join(known)}")
        if not _fits(value, types[name]):
            raise ValueError(f"option {name} is {value!r}, expected {_told(types[name])}")
    return options(**given)


def _fits(value: Any, kind: Any) -> bool:
    if get_origin(kind) is Literal:
        return value in get_args(kind) and type(value) in {type(x) for x in get_args(kind)}
    if get_origin(kind) is UnionType:
        return any(_fits(value, one) for one in get_args(kind))
    if kind is float:
        return isinstance(value, float | int) and not isinstance(value, bool)
    return type(value) is kind


def _told(kind: Any) -> str:
    if get_origin(kind) is Literal:
        return "one of " + ", ".join(repr(x) for x in get_args(kind))
    if get_origin(kind) is UnionType:
        return " or ".join(_told(one) for one in get_args(kind))
    if kind is type(None):
        return "null"
    if kind is bool:
        return "true or false"
    return {"int": "a whole number", "float": "a number", "str": "a text"}[kind.__name__]
