"""The pages of `--help`: of every verb the flags used most, and with `--help-all` all of them. And tables of values."""

from __future__ import annotations

import ast
import shutil
import textwrap
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from types import UnionType
from typing import Any, Literal, NamedTuple, Union, get_args, get_origin

import docstring_parser
from rich.table import Table

from reverie import algos
from reverie.fields import Place, flag, kinds

MARKS = ("-h", "--help", "--help-all")
# Of `train`, which has a hundred; the other verbs have a dozen each.
USUAL = (
    "env", "run", "preset", "size", "simulations", "steps", "seed", "envs", "replay_ratio", "learning_rate",
    "eval_every", "device", "dry_run", "json",
)  # fmt: skip
WIDEST, COLUMN = 110, 27  # characters: of a page, and before the text of a flag


class Group(NamedTuple):
    """Flags under one title; an empty title for those of a verb without groups."""

    title: str
    about: str
    kind: Any  # a dataclass
    defaults: Any  # has the values of those that may be left out


def page(groups: Sequence[Group], usage: str, about: str, everything: bool) -> str:
    """The help of a verb.

    Args:
      about: what it does, a sentence or several.
      everything: all flags, by group; otherwise those of `USUAL` alone where there are more than a dozen.
    """
    sections = [(group.title, group.about, _flags(group)) for group in groups]
    known = {name: row for *_, rows in sections for name, row in rows.items()}
    number = len(known)
    if not everything and len(groups) > 1:
        if getattr(groups[-1].defaults, "planner", "") == "none":
            known.pop("simulations", None)  # nothing searches unless a planner is asked for
        sections = [("", "", {name: known[name] for name in USUAL if name in known})]
    shown = sum(len(rows) for *_, rows in sections)
    parts = [f"usage: {usage}", *(wrap(text) for text in about.split("\n\n"))]
    for title, text, rows in sections:
        head = [f"{title} options", *([wrap(text, 2)] if text else [])] if title else []
        parts.append("\n".join([*head, *rows.values()]))
    parts.append(_row("-h, --help", "This page; --help-all has all flags." if shown < number else "This page."))
    more = f"These are the {shown} flags used most, of {number}: --help-all prints the others."
    return "\n\n".join([*parts, *([more] if shown < number else [])])


def algorithms() -> str:
    """A line for every algorithm: its name, and the first sentence of the file that defines it."""
    return "\n".join(_row(name, summary(name)) for name in algos.ALGORITHMS)


def summary(algorithm: str) -> str:
    """The first sentence that an algorithm's file says of itself."""
    spec: Any = find_spec(algos.module(algorithm))  # read, not imported: that would import JAX
    return (ast.get_docstring(ast.parse(Path(spec.origin).read_text())) or "").partition("\n")[0]


def wrap(text: str, indent: int = 0) -> str:
    """`text` wrapped once, to the terminal; a text of indented lines stays as it is."""
    if text.startswith("  "):
        return text
    return textwrap.fill(" ".join(text.split()), _width(), initial_indent=" " * indent, subsequent_indent=" " * indent)


def _width() -> int:
    return min(WIDEST, max(60, shutil.get_terminal_size((WIDEST, 24)).columns))


def _row(left: str, text: str) -> str:
    start = f"  {left:<{COLUMN - 3}} "
    body = textwrap.wrap(" ".join(text.split()), _width() - COLUMN) or [""]
    first = [start + body.pop(0)] if len(start) == COLUMN else [start.rstrip()]
    return "\n".join([*first, *(" " * COLUMN + line for line in body)]).rstrip()


def _flags(group: Group) -> dict[str, str]:
    """Name -> lines of every flag of a group; of a verb those of its own first, then what all verbs have."""
    texts: dict[str, str] = {}
    for base in reversed(group.kind.__mro__[:-1]):
        texts |= {x.arg_name: x.description or "" for x in docstring_parser.parse_from_object(base).params}
    shared = lambda x: not group.title and x[0] not in group.kind.__annotations__ and x[1] != Place
    rows = {}
    for name, kind in sorted(kinds(group.kind).items(), key=shared):
        default = getattr(group.defaults, name, None)
        typed = name.upper() if kind == Place else f"{flag(name)} {_word(kind)}".strip()
        unsaid = default is None or default is False or default == ""
        wording = "" if unsaid else f" (default {_value(default)})"
        rows[name] = _row(typed, f"{texts.get(name, '')}{wording}")
    return rows


def _value(value: Any) -> str:
    """`True` as the flag that it is; numbers as a person types them."""
    if value is True:
        return "on; --no-... turns it off"
    return f"{value:,}".replace(",", "_") if type(value) is int and value >= 10_000 else str(value)


def _word(hint: Any) -> str:
    """The type of a flag as it is typed; nothing for a switch."""
    if get_origin(hint) is Literal:
        return "{" + ",".join(str(x) for x in get_args(hint)) + "}"
    if get_origin(hint) is tuple:
        return " ".join(_word(x) for x in get_args(hint))
    if get_origin(hint) in (UnionType, Union):
        return "|".join(word for x in get_args(hint) if x is not type(None) for word in [_word(x)])
    return {bool: "", int: "INT", float: "FLOAT", str: "STR"}.get(hint, "STR")


def table(corner: str, columns: Sequence[str], rows: Mapping[str, Sequence[Any]]) -> Table:
    """Named rows of values, none of them cut off."""
    table = Table(corner, *columns, box=None, pad_edge=False)
    table.columns[0].no_wrap = True
    for column in table.columns[1:]:
        column.overflow = "fold"
    for name, values in rows.items():
        table.add_row(name, *(str(value) for value in values))
    return table
