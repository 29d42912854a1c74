"""Checks of the ids and keyword arguments of a family of envs, before anything is built."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar, get_type_hints

from reverie.fields import did_you_mean, fits, wording

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
            raise ValueError(f"no option {name!r}: {did_you_mean(name, known)}There are {', '.join(known)}")
        if not fits(value, types[name]):
            raise ValueError(f"option {name} is {value!r}, expected {wording(types[name])}")
    return options(**given)


def unknown(name: str, known: Sequence[str], family: str) -> ValueError:
    """The error for an unknown id `family:name`: it says the nearest ones."""
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.4) or known
    return ValueError(f"no such env: did you mean {' or '.join(f'{family}:{x}' for x in near)}?")
