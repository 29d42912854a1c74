"""Every number of a run, of an algorithm and of a verb has a range, and nothing outside of it is taken."""

from __future__ import annotations

import math
from typing import Any, get_args, get_type_hints

import pytest

from reverie import algos, config, flags
from reverie.config import ConfigError, RunConfig
from reverie.fields import Within, amount, chosen, parsed, ranges, taken, whole

AGENTS = {name: algos.load(name).Config for name in algos.ALGORITHMS}
VERBS = [flags.Eval, flags.Dream, flags.Think, flags.CheckEnv]
KINDS = [RunConfig, *AGENTS.values(), *VERBS]


def numbers(kind: type) -> list[str]:
    """Names of the fields that hold a number."""
    hints = get_type_hints(kind).items()
    return [
        name
        for name, hint in hints
        if {int, float} & set(get_args(hint) if hint is not bool else ()) | {hint} & {int, float}
    ]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: f"{kind.__module__}.{kind.__name__}")
def test_every_number_has_a_range(kind: type) -> None:
    assert numbers(kind), kind
    assert set(numbers(kind)) == set(ranges(kind))


def outside(within: Within, hint: Any) -> list[float]:
    """Values that a field must not take: not numbers, infinite, and just below and above its range."""
    if int in (hint, *get_args(hint)):
        return [within.least - 1, within.most + 1]
    below = [math.nextafter(within.least, -math.inf)] if within.least else [-1e-9]
    return [math.nan, math.inf, -math.inf, *below, math.nextafter(within.most, math.inf)]


@pytest.mark.parametrize("name", algos.ALGORITHMS)
def test_what_lies_outside_is_refused_by_its_flag(name: str) -> None:
    base = config.default(name)
    for part in (base.run, base.agent):
        hints = get_type_hints(type(part))
        for key, within in ranges(type(part)).items():
            for value in outside(within, hints[key]):
                with pytest.raises(ConfigError, match=f"--{key.replace('_', '-')} must be ") as refused:
                    config.override(base, **{key: value})
                assert str(value) in str(refused.value)
            if int in (hints[key], *get_args(hints[key])):
                for value in (math.nan, math.inf, 1.5):
                    with pytest.raises(TypeError, match=f"{key} is .*expected a whole number"):
                        config.override(base, **{key: value})


@pytest.mark.parametrize("name", algos.ALGORITHMS)
def test_both_ends_of_a_range_are_inside(name: str) -> None:
    """Alone, or with what the refusal says belongs to it: a range that refuses everything would pass the test above."""
    base, apart = config.default(name), {"groups", "devices", "improve", "batch"}
    for part in (base.run, base.agent):
        for key, within in ranges(type(part)).items():
            if key not in apart:
                for value in (within.least, within.most):
                    assert getattr(type(part)(**{key: value}), key) == value


@pytest.mark.parametrize(
    ("text", "value"), [("7", 7), ("1e6", 10**6), ("1_000", 1000), ("2.0", 2), ("-1", -1), ("1e18", 10**18)]
)
def test_a_whole_number_may_be_typed_short(text: str, value: int) -> None:
    assert whole(text) == value
    assert isinstance(whole(text), int)


@pytest.mark.parametrize("text", ["1e6.5", "1.5", "nan", "inf", "1e999999999", "", "many", "0x10", "1e-3"])
def test_what_is_no_whole_number(text: str) -> None:
    with pytest.raises(ValueError, match=r"no whole number.*1e6"):
        whole(text)


def test_1e6_steps_from_python() -> None:
    run = config.override(config.default("muzero"), steps=1e6, replay_ratio=8).run
    assert (run.steps, type(run.steps), run.replay_ratio, type(run.replay_ratio)) == (10**6, int, 8.0, float)
    assert taken("stop_return", None, float | None) is None
    with pytest.raises(TypeError, match=r"steps is 1\.5"):
        config.override(config.default("muzero"), steps=1.5)


@pytest.mark.parametrize("text", ["NaN", "[Infinity]", "-Infinity", "[" * 100_000, "1" * 5000, "{"])
def test_json_is_strict(text: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 (of a parser: any)
        parsed(text)


@pytest.mark.parametrize(
    ("patterns", "kept"),
    [
        ("", "camera/0 camera/1 mission x"),
        ("x", "x"),
        ("camera/*, x", "camera/0 camera/1 x"),
        ("!mission", "camera/0 camera/1 x"),
        ("camera/*,!camera/1", "camera/0"),
        ("!camera/*,!mission", "x"),
    ],
)
def test_observations_are_chosen_by_patterns(patterns: str, kept: str) -> None:
    assert chosen(["camera/0", "camera/1", "mission", "x"], patterns) == set(kept.split())


def test_a_pattern_that_chooses_nothing_is_a_mistake() -> None:
    with pytest.raises(config.ConfigError, match="no observation is called '!misson': did you mean 'mission'"):
        chosen(["mission", "x"], "!misson")
    with pytest.raises(config.ConfigError, match="leaves nothing to see"):
        chosen(["mission", "x"], "x,!x")


def test_amounts_agree_with_their_number() -> None:
    told = [amount(number, "step") for number in (0, 1, 2, 1000)]
    assert told == ["0 steps", "1 step", "2 steps", "1,000 steps"]
