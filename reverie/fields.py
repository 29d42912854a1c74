"""Names and values that a person typed, against what there is: names in use, types and ranges of dataclass fields.

A number's range stands beside its type, `Annotated[float, Within(0, 1)]`, and `check` is the one place that holds every
number to it: of a run, of every algorithm, and of the flags of every verb.
"""

from __future__ import annotations

import difflib
import fnmatch
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields, replace
from decimal import Decimal, InvalidOperation
from functools import cache
from types import UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from reverie.errors import PlainError

T = TypeVar("T")

TINY, HUGE = 2.0**-126, (2 - 2.0**-23) * 2.0**127  # the least normal and the largest finite float32
INT32, INT64 = 2**31 - 1, 2**63 - 1  # the largest integers of these types

# Types, for "expected ...".
WORDS: dict[Any, str] = {type(None): "null", bool: "true or false", int: "a whole number", float: "a number"}
WORDS |= {str: "a text", list: "a list", dict: "an object"}

SMALL = 100  # a bound up to this says something of the value, a larger one only of the machine
LONGEST = 200  # characters of a value in a sentence


class ConfigError(PlainError, ValueError):
    """A run as asked for cannot be; the message says what to type instead."""


@dataclass(frozen=True)
class Within:
    """The range of a number, both ends included. NaN lies in none; without bounds it holds what a float32 can."""

    least: float = -HUGE
    most: float = HUGE

    def __contains__(self, value: float) -> bool:
        return self.least <= value <= self.most

    def wording(self, value: float) -> str:
        """The range in words, for a sentence that refuses `value`; a bound that only machines set is told where met."""
        if (self.least, self.most) == (-HUGE, HUGE):
            return "a finite number"
        least = "positive" if self.least == TINY else f"{self.least} or more"
        if value > self.most and (self.least == TINY or self.most == HUGE):
            return f"{least} and at most {self.most:.3g}"
        if value > self.most or self.most <= SMALL:
            return f"{self.least} to {self.most:,}"
        return f"{least}, not below {TINY:.3g}" if 0 < value < TINY else least


# Types of fields.
Count = Annotated[int, Within(1, INT32)]
Number = Annotated[int, Within(0, INT32)]
Steps = Annotated[int, Within(0, 10**12 - 1)]  # checkpoints are named by twelve digits
Width = Annotated[int, Within(1, 2**16)]
Layers = Annotated[int, Within(1, 1000)]
Seed = Annotated[int, Within(0, INT64)]
Share = Annotated[float, Within(0, 1)]
Weight = Annotated[float, Within(0)]
Positive = Annotated[float, Within(TINY)]
Place = Annotated[str, "place"]  # of a flag that is typed without its name


def flag(name: str) -> str:
    """`replay_ratio` as it is typed: `--replay-ratio`."""
    return "--" + name.replace("_", "-")


@cache
def kinds(kind: type) -> dict[str, Any]:
    """Name -> type of every field of a dataclass; of what is said of types only `Place` stays."""
    plain, full = get_type_hints(kind), get_type_hints(kind, include_extras=True)
    return {x.name: Place if full[x.name] == Place else plain[x.name] for x in fields(kind)}


@cache
def ranges(kind: Any) -> dict[str, Within]:
    """Name -> the range of every field of a dataclass that has one."""
    hints = get_type_hints(kind, include_extras=True).items()
    return {name: x for name, hint in hints for x in getattr(hint, "__metadata__", ()) if isinstance(x, Within)}


def check(values: Any, label: Callable[[str], str] = flag) -> None:
    """Raises ConfigError for a number outside the range of its field; names the flag, the value and the range."""
    kind: Any = type(values)
    for name, within in ranges(kind).items():
        value = getattr(values, name)
        for number in value if isinstance(value, tuple) else (value,):
            if number is not None and number not in within:
                raise ConfigError(f"{label(name)} must be {within.wording(number)}, got {number}")


def whole(text: str) -> int:
    """An integer as a person types it: `1000000`, `1_000_000` or `1e6`; raises ValueError for anything else."""
    try:
        number = Decimal(text)
    except InvalidOperation:
        raise ValueError(f"{text!r} is no whole number, expected for example 1000000 or 1e6") from None
    if not number.is_finite() or number.adjusted() > 30 or number != number.to_integral_value():
        raise ValueError(f"{text} is no whole number that can be used, expected for example 1000000 or 1e6")
    return int(number)


def parsed(text: str) -> Any:
    """The value of strict JSON, in which a number is finite; raises ValueError saying what is wrong."""

    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} is no JSON")

    try:
        return json.loads(text, parse_constant=refuse)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def json_object(text: str, name: str, example: str) -> dict[str, Any]:
    """The object that a text holds; raises ConfigError, naming the flag, if it holds none."""
    try:
        given = parsed(text)
    except ValueError:
        given = None
    if not isinstance(given, dict):
        raise ConfigError(f"{flag(name)} must be a JSON object such as '{example}', got {short(text)}")
    return given


def replace_from_json(values: T, text: str, name: str) -> T:
    """A dataclass with the values of a JSON object in place of its own.

    Args:
      name: of the field that holds the text.

    Raises:
      ConfigError: the text is no JSON object, or has an unknown name or a value that cannot be; names the flag.
    """
    given = json_object(text, name, json.dumps(dict([next(iter(vars(values).items()))])))
    kinds = get_type_hints(type(values))
    for key in given.keys() - kinds.keys():
        raise ConfigError(f"{flag(name)} has no {short(key)}; {did_you_mean(key, kinds)}it has {', '.join(kinds)}")
    try:
        return replace(values, **{key: taken(key, value, kinds[key]) for key, value in given.items()})  # type: ignore[type-var]
    except (TypeError, ConfigError) as error:
        raise ConfigError(f"{flag(name)}: {error}") from None


def plain_size(size: int | tuple[int, int]) -> int | tuple[int, int]:
    """The size of an image in one of two forms: a square as a number, anything else as height and width.

    Raises ConfigError for a side below 1, unless both are 0.
    """
    height, wide = (size, size) if isinstance(size, int) else size
    if min(height, wide) < (height != wide):
        raise ConfigError(f"--image-size must be a height and a width of 1 or more, got {height} {wide}")
    return height if height == wide else (height, wide)


def amount(number: int, noun: str) -> str:
    """A number of things, for a sentence: `1 step`, `2,000 steps`."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def short(value: object) -> str:
    """`repr(value)`, cut where it is long, for a sentence."""
    text = repr(value)
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}..."


def taken(key: str, value: Any, kind: Any) -> Any:
    """`value` as a field of the type `kind` keeps it: an int may be given as 1e6, a float as 8, a pair as a list.

    Raises TypeError, naming what was given and what is expected.
    """
    kinds = (kind, *get_args(kind))
    if isinstance(value, list) and any(get_origin(one) is tuple for one in kinds):
        value = tuple(value)
    if int in kinds and isinstance(value, float) and value.is_integer():
        return int(value)
    if not fits(value, kind):
        raise TypeError(f"{key} is {short(value)} ({type(value).__name__}), expected {wording(kind)}")
    return float(value) if float in kinds and value is not None else value


def fits(value: Any, kind: Any) -> bool:
    """Whether `value` is of the type `kind`: bool, int, float, str, a `Literal`, a tuple of these, or a union of all
    that and None.

    An int may be a float; a bool is no number.
    """
    if get_origin(kind) is Literal:
        return value in get_args(kind) and type(value) in {type(x) for x in get_args(kind)}
    if get_origin(kind) in (UnionType, Union):
        return any(fits(value, one) for one in get_args(kind))
    if get_origin(kind) is tuple:
        parts = get_args(kind)
        return isinstance(value, tuple) and len(value) == len(parts) and all(map(fits, value, parts))
    if kind is float:
        return isinstance(value, float | int) and not isinstance(value, bool)
    return type(value) is kind


def wording(kind: Any) -> str:
    """`kind` in words, for "expected ..."."""
    if get_origin(kind) is Literal:
        return "one of " + ", ".join(repr(x) for x in get_args(kind))
    if get_origin(kind) in (UnionType, Union):
        return " or ".join(wording(one) for one in get_args(kind))
    if get_origin(kind) is tuple:
        return "a pair of " + wording(get_args(kind)[0]).removeprefix("a ") + "s"
    return WORDS[kind]


def chosen(names: Iterable[str], patterns: str) -> frozenset[str]:
    """The observations that `--obs-keys` keeps of those with these names.

    Args:
      patterns: separated by commas, with `*`, `?` and `[...]` as in file names; one with `!` before it leaves out. If
        no other pattern is given, what is not left out is kept. Empty: everything.

    Raises ConfigError for a pattern that no name matches, or if nothing is kept.
    """
    names = list(names)
    given = [pattern.strip() for pattern in patterns.split(",") if pattern.strip()]
    for pattern in given:
        if not fnmatch.filter(names, pattern.removeprefix("!")):
            hint = did_you_mean(pattern.removeprefix("!"), names)
            raise ConfigError(f"--obs-keys {patterns}: no observation is called {pattern!r}: {hint}There are {names}")
    of = lambda name, patterns: any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)
    wanted = [pattern for pattern in given if not pattern.startswith("!")] or ["*"]
    exclude = [pattern[1:] for pattern in given if pattern.startswith("!")]
    kept = frozenset(name for name in names if of(name, wanted) and not of(name, exclude))
    if not kept:
        raise ConfigError(f"--obs-keys {patterns} leaves nothing to see of {names}")
    return kept


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """The known name nearest to `name` as "did you mean ...? ", for a sentence to follow; empty if none is near.

    Names of values have underscores, those of presets dashes: neither is held against a typo.
    """
    plain = {k.replace("-", "_"): k for k in known}
    near = difflib.get_close_matches(name.replace("-", "_"), list(plain), n=1, cutoff=0.4)
    return f"did you mean {plain[near[0]]!r}? " if near else ""
