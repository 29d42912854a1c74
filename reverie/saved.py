"""Checks of saved files against what they must be. Checksums tell damage; they do not tell who wrote a file."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from reverie.errors import PlainError

COUNT = range(10**12)  # steps, updates, rows: what the 12 digits of a checkpoint's name can say
BYTES = range(1 << 53)
try:
    RELEASE = importlib.metadata.version("reverie")  # beside what is saved, so that another can say which to install
except importlib.metadata.PackageNotFoundError:  # run from a checkout
    RELEASE = ""


class Malformed(PlainError, ValueError):
    """Something is sound, and says what cannot be."""


class OtherVersion(PlainError, ValueError):
    """A version of reverie with another format wrote this.

    Args:
      what: was read, with its path.
      found: its format; `known` is the one that this version reads.
      wrote: the version of reverie that wrote it, if that is known.
    """

    def __init__(self, what: str, found: Any, known: Any, wrote: Any = None) -> None:
        named = isinstance(wrote, str) and 0 < len(wrote) < 40
        install = f"`pip install reverie=={wrote}`" if named else "install the version of reverie that wrote it"
        super().__init__(
            f"{what} has format {found!r}{f', of reverie {wrote}' if named else ''}; this version reads {known}. "
            f"Nothing was changed: to go on with it, {install}"
        )


class AnotherRun(PlainError, ValueError):
    """A part of one run lies in the directory of another.

    Args:
      what: it is, with its path.
      theirs, ours: ids of the two runs.
    """

    def __init__(self, what: str, theirs: str, ours: str) -> None:
        super().__init__(
            f"{what} was written by run {theirs}, and this is run {ours} (the `id` in its config.json). Nothing was "
            "changed: move it back to where it came from"
        )


def fault(value: Any, form: Any, name: str = "") -> str:
    """The fault of a value out of JSON, with its place; empty if there is none.

    Args:
      form: a `range` for a whole number in it; `float` for any number; `str`; `bool`; `None` for null; `object` for
        anything; `[form]` for a list of these; `{str: form}` for an object of these by any name; `{"a": form}` for an
        object with at least this member; a tuple for one of several forms.
    """
    if isinstance(form, tuple):
        return "" if any(not fault(value, each) for each in form) else fault(value, form[-1], name)
    if not _is(value, form):
        return f"{name or 'it'} is {_short(value)}, expected {_reported(form)}"
    if isinstance(form, list):
        faults = (fault(x, form[0], f"{name}[{i}]") for i, x in enumerate(value))
    elif isinstance(form, dict) and str in form:
        faults = (fault(x, form[str], _below(name, k)) for k, x in value.items())
    elif isinstance(form, dict):
        here = {k: _below(name, k) for k in form}
        faults = (fault(value[k], x, here[k]) if k in value else f"{here[k]} is missing" for k, x in form.items())
    else:
        return ""
    return next((each for each in faults if each), "")


_WORDS = {None: "null", object: "anything", float: "a number", str: "a text", bool: "true or false"}
_WORDS |= {list: "a list", dict: "an object"}


def _below(name: str, key: str) -> str:
    return f"{name}/{key}"[:200] if name else key[:200]


def _is(value: Any, form: Any) -> bool:
    if isinstance(form, range):
        return type(value) is int and value in form
    if form is float:
        return type(value) in (int, float)
    if isinstance(form, list | dict):
        return isinstance(value, type(form))
    return value is None if form is None else form is object or type(value) is form


def _reported(form: Any) -> str:
    if isinstance(form, range):
        return f"a whole number from {form.start} to {form.stop - 1}"
    return _WORDS[type(form) if isinstance(form, list | dict) else form]


def _short(value: Any) -> str:
    text = _WORDS[type(value)] if isinstance(value, list | dict) else repr(value)
    return text if len(text) < 40 else f"{text[:37]}..."


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turns every surprise in a file saved under `path` into `Malformed`; errors that say more pass."""
    try:
        yield
    except (KeyError, TypeError, IndexError, AttributeError, OverflowError, RecursionError, ValueError) as error:
        if type(error).__module__.startswith("reverie"):
            raise
        kind, text = type(error).__name__, str(error).partition("\n")[0]
        raise Malformed(f"{path} says what cannot be ({kind}: {text[:300]}); nothing was changed") from error
