"""Names and values that a person typed, against what there is: names in use, types of dataclass fields."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from types import UnionType
from typing import Any, Literal, get_args, get_origin


def fits(value: Any, kind: Any) -> bool:
    """Whether `value` is of the type `kind`: bool, int, float, str, a `Literal`, or a union of these and None.

    An int may be a float; a bool is no number.
    """
    if get_origin(kind) is Literal:
        return value in get_args(kind) and type(value) in {type(x) for x in get_args(kind)}
    if get_origin(kind) is UnionType:
        return any(fits(value, one) for one in get_args(kind))
    if kind is float:
        return isinstance(value, float | int) and not isinstance(value, bool)
    return type(value) is kind


def told(kind: Any) -> str:
    """`kind` in words, for "expected ..."."""
    if get_origin(kind) is Literal:
        return "one of " + ", ".join(repr(x) for x in get_args(kind))
    if get_origin(kind) is UnionType:
        return " or ".join(told(one) for one in get_args(kind))
    if kind is type(None):
        return "null"
    if kind is bool:
        return "true or false"
    return {"int": "a whole number", "float": "a number", "str": "a text"}[kind.__name__]


def meant(name: str, known: Iterable[str]) -> str:
    """The known name nearest to `name` as "did you mean ...? ", for a sentence to follow; empty if none is near."""
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=0.4)
    return f"did you mean {near[0]!r}? " if near else ""
