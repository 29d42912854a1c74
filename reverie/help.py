"""The pages of `--help`: of every verb the flags used most, and with `--help-all` all of them. And tables of values."""

from __future__ import annotations

import dataclasses
import shutil
import textwrap
from collections.abc import Collection, Iterator, Mapping, Sequence
from types import UnionType
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin, get_type_hints

import docstring_parser
import tyro
from rich.table import Table

from reverie import algos
from reverie.fields import flag

MARKS = ("-h", "--help", "--help-all")
# Of `train`, which has a hundred; the other verbs have a dozen each.
USUAL = (
    "env", "run", "preset", "size", "simulations", "steps", "seed", "envs", "replay_ratio", "learning_rate",
    "eval_every", "device", "dry_run", "json",
)  # fmt: skip
WIDEST, COLUMN = 110, 27  # characters: of a page, and before the text of a flag


class Flag(NamedTuple):
    """One line of a page: what to type, and what it means."""

    name: str
    typed: str
    text: str


class Group(NamedTuple):
    """Flags under one title; an empty title for those of a verb without groups."""

    title: str
    about: str
    flags: list[Flag]


def page(kind: Any, usage: str, about: str, everything: bool) -> str:
    """The help of a verb.

    Args:
      kind: the dataclass of its flags, or one whose fields are such dataclasses.
      about: what it does, a sentence or several.
      everything: all flags, by group; otherwise those of `USUAL` alone where there are more than a dozen.
    """
    groups = list(_groups(kind))
    number = sum(len(group.flags) for group in groups)
    if not everything and len(groups) > 1:
        known = {x.name: x for group in groups for x in group.flags}
        if getattr(getattr(kind, "agent", None), "planner", "") == "none":
            known.pop("simulations", None)  # nothing searches unless a planner is asked for
        groups = [Group("", "", [known[name] for name in USUAL if name in known])]
    shown = sum(len(group.flags) for group in groups)
    parts = [f"usage: {usage}", *(wrap(text) for text in about.split("\n\n"))]
    for group in groups:
        title = [f"{group.title} options", *([wrap(group.about, 2)] if group.about else [])] if group.title else []
        parts.append("\n".join([*title, *(_row(x.typed, x.text) for x in group.flags)]))
    parts.append(_row("-h, --help", "This page; --help-all has all flags." if shown < number else "This page."))
    more = f"These are the {shown} flags used most, of {number}: --help-all prints the others."
    return "\n\n".join([*parts, *([more] if shown < number else [])])


def algorithms() -> str:
    """A line for every algorithm: its name, and the first sentence of the file that defines it."""
    return "\n".join(_row(name, summary(name)) for name in algos.ALGORITHMS)


def summary(algorithm: str) -> str:
    """The first sentence that an algorithm's file says of itself."""
    return (algos.load(algorithm).__doc__ or "").strip().partition("\n")[0]


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


def _groups(kind: Any) -> Iterator[Group]:
    hints = get_type_hints(kind, include_extras=True)
    fields = dataclasses.fields(kind)
    if not all(dataclasses.is_dataclass(_bare(hints[x.name])) for x in fields):
        own = _flags(kind, {x.name: x.default for x in fields})
        shared = lambda x: x.name not in kind.__annotations__ and tyro.conf.Positional not in _marks(hints[x.name])
        yield Group("", "", sorted(own, key=shared))  # what a verb has for itself, then what all have
        return
    for group in fields:
        bare = _bare(hints[group.name])
        title = next((x.name for x in get_args(hints[group.name])[1:] if getattr(x, "name", None)), group.name)
        about = docstring_parser.parse(bare.__doc__ or "").short_description or ""
        flags = list(_flags(bare, vars(group.default)))
        if flags:
            yield Group(title, about if group.name != "agent" else "", flags)


def _flags(kind: Any, defaults: dict[str, Any]) -> Iterator[Flag]:
    texts: dict[str, str] = {}
    for base in reversed(kind.__mro__[:-1]):
        texts |= {x.arg_name: x.description or "" for x in docstring_parser.parse_from_object(base).params}
    hints = get_type_hints(kind, include_extras=True)
    for one in dataclasses.fields(kind):
        default, hint = defaults[one.name], hints[one.name]
        typed = one.name.upper() if tyro.conf.Positional in _marks(hint) else f"{flag(one.name)} {_word(hint)}".strip()
        unsaid = default is None or default is False or default == "" or default is dataclasses.MISSING
        wording = "" if unsaid else f" (default {_value(default)})"
        yield Flag(one.name, typed, f"{' '.join(texts.get(one.name, '').split())}{wording}")


def _marks(hint: Any) -> Collection[Any]:
    return getattr(hint, "__metadata__", ())


def _bare(hint: Any) -> Any:
    return get_args(hint)[0] if get_origin(hint) is Annotated else hint


def _value(value: Any) -> str:
    """`True` as the flag that it is; numbers as a person types them."""
    if value is True:
        return "on; --no-... turns it off"
    return f"{value:,}".replace(",", "_") if type(value) is int and value >= 10_000 else str(value)


def _word(hint: Any) -> str:
    """The type of a flag as it is typed; nothing for a switch."""
    hint = _bare(hint)
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
