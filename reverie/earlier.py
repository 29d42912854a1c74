"""Values of configs that earlier versions saved, as this version has them, and flags that have gone."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict
from typing import Any

from reverie import algos
from reverie.fields import ConfigError, replace_from_json

OVER_V3 = ("dreamer_v3", "dream_ppo")  # had the choices of both papers as flags
ADAM = ("behavior_learning_rate", "behavior_clip", "behavior_eps")
# Flags that an algorithm showed and never read.
ROOT = ("root_noise", "root_alpha", "half_heat", "quarter_heat", "temperature_moves")
ALONE = ("behavior", "imagination", "imagined_lam", "entropy")
UNREAD = {"dreamer_v3": ADAM, "gumbel_muzero": ROOT, "sampled_muzero": ALONE, "stochastic_muzero": ALONE}
FIRST = "the first paper is dreamer_v3_2023"
ONLY_V3 = "the actor-critic of dreamer_v3 has that choice, dream_ppo has none"
GONE: dict[str, dict[str, str]] = {
    "dreamer_v3": {"discount": FIRST, "optimizer": FIRST},
    "dreamer_v3_2023": dict.fromkeys(("first_continue", "replay_value_scale"), "this paper has one value only"),
    "dream_ppo": dict.fromkeys(("improve", "first_continue", "replay_value_scale", "actor_gradient"), ONLY_V3),
}


def upgrade(algorithm: str, values: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """The algorithm and its own values, as this version calls them.

    Raises:
      ConfigError: there are no such values any more.
    """
    values = dict(values)
    if algorithm in OVER_V3 and "recurrence" in values:
        algorithm, values = _dreamer_v3(algorithm, values)
    for name in UNREAD.get(algorithm, ()):
        values.pop(name, None)
    # Constants of a paper were flags of their own.
    paper = constants(algorithm)
    found = {name: values.pop(name) for name in paper if name in values}
    changes = {name: value for name, value in found.items() if value != paper[name]}
    return algorithm, values | ({"choices": json.dumps(changes)} if found else {})


def _dreamer_v3(algorithm: str, values: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """DreamerV3 was one algorithm for both papers. Now each is its own, and constants are `choices`."""
    found = {name: values.pop(name, plain) for name, plain in (("discount", "learned"), ("optimizer", "laprop"))}
    # What the other actor-critics have no use for was always this.
    fixed: dict[str, Any] = {}
    if found == {"discount": "fixed", "optimizer": "adam"} and algorithm == "dreamer_v3":
        algorithm, fixed = "dreamer_v3_2023", {"first_continue": "true", "replay_value_scale": 0.0}
    elif found != {"discount": "learned", "optimizer": "laprop"}:
        fixed = {"discount": "learned", "optimizer": "laprop"}
        values |= found
    elif algorithm == "dream_ppo":
        fixed = {"first_continue": "true", "replay_value_scale": 0.0, "actor_gradient": "reinforce", "improve": 0.0}
    for name, only in fixed.items():
        if (given := values.pop(name, only)) != only:
            raise ConfigError(
                f"{name} is {given!r}: a mixture of the two papers of DreamerV3, which only versions up to 0.1 can run"
            )
    return algorithm, values


def constants(algorithm: str) -> dict[str, Any]:
    """Name -> value of an algorithm's `choices`; empty if it has none."""
    config = algos.load(algorithm).Config()
    return asdict(config.paper()) if hasattr(config, "paper") else {}


def instead(algorithm: str, name: str, value: str) -> str:
    """The flag to type for one that has gone, as the end of a sentence; empty if there was none of this name."""
    config = algos.load(algorithm).Config()
    if name in constants(algorithm):
        readings: list[Any] = [value]
        with suppress(ValueError):
            readings.append(json.loads((value or "true").lower()))
        for given in readings:
            text = json.dumps({name: given})
            with suppress(ConfigError):
                replace_from_json(config.paper(), text, "choices")
                return f"type --choices '{text}'"
        return f"""type --choices '{{"{name}": VALUE}}'"""
    if name in UNREAD.get(algorithm, ()):
        return "this algorithm never read it: leave it out"
    return GONE.get(algorithm, {}).get(name, "")
