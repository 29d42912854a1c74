"""Config: defaults, presets, overrides, text, contradictions; mistakes are named."""

from __future__ import annotations

import json
from typing import Any, get_type_hints

import pytest

from reverie import algos, config, presets
from reverie.config import Config, ConfigError, RunConfig
from reverie.saved import OtherVersion


@pytest.fixture(autouse=True)
def fake(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(algos.ALGORITHMS, "fake", "fakes")


@pytest.fixture
def base() -> Config:
    return config.override(config.default("fake"), env="CartPole-v1")


def test_order_default_preset_explicit() -> None:
    assert (config.default("fake").run.batch, config.default("fake").agent.rate) == (16, 0.1)
    preset = config.default("fake", "quick")
    assert (preset.run.batch, preset.run.length, preset.agent.rate) == (2, 4, 0.5)
    assert config.override(preset, rate=0.25).agent.rate == 0.25


def test_text_round_trip(base: Config) -> None:
    changed = config.override(base, seed=3, replay_ratio=0.1, gray=True, size="small")
    assert config.from_text(config.to_text(changed)) == changed


def test_text_with_missing_values_takes_defaults_and_unknown_ones_are_errors(base: Config) -> None:
    data = json.loads(config.to_text(base))
    del data["run"]["batch"]
    assert config.from_text(json.dumps(data)).run.batch == 16
    data["run"]["bacth"] = 3
    with pytest.raises(ConfigError, match="'bacth': did you mean 'batch'"):
        config.from_text(json.dumps(data))
    with pytest.raises(OtherVersion, match=r"format 99, of reverie .*; this version reads 1"):
        config.from_text(json.dumps(data | {"schema": 99}))


@pytest.mark.parametrize(
    ("values", "error", "message"),
    [
        ({"learning": 1}, ConfigError, "'learning': did you mean"),
        ({"replay-ratio": 1}, ConfigError, "did you mean 'replay_ratio'"),
        ({"xyzzy": 1}, ConfigError, "no value is called 'xyzzy'$"),
        ({"batch": "16"}, TypeError, r"batch is '16' \(str\), expected a whole number"),
        ({"batch": 1.5}, TypeError, r"batch is 1.5 \(float\), expected a whole number"),
        ({"batch": True}, TypeError, r"batch is True \(bool\), expected a whole number"),
        ({"rate": True}, TypeError, "expected a number"),
        ({"gray": 1}, TypeError, "expected true or false"),
        ({"size": "big"}, TypeError, "expected one of 'tiny', 'small'"),
        ({"device": None}, TypeError, "expected one of 'auto', 'cpu', 'gpu'"),
        ({"envs": 0}, ConfigError, "--envs must be 1 or more, got 0"),
        ({"steps": -5}, ConfigError, "--steps"),
        ({"seed": -1}, ConfigError, "--seed must be 0 or more"),
        ({"replay_ratio": float("nan")}, ConfigError, "--replay-ratio"),
        ({"replay_gb": 0.0}, ConfigError, "--replay-gb must be positive"),
        ({"priority_alpha": 1.5}, ConfigError, "--priority-alpha must be 0 to 1, got 1.5"),
        ({"priority_beta": float("nan")}, ConfigError, "--priority-beta must be 0 to 1"),
        ({"deadline": float("inf")}, ConfigError, "--deadline"),
        ({"envs": 4, "groups": 3}, ConfigError, "--groups 3 must divide --envs 4"),
        ({"devices": -1}, ConfigError, "--devices must be 0 or more, got -1"),
        ({"devices": 6}, ConfigError, "--devices 6 must divide --batch 16.*--devices 2, or --batch 18"),
        ({"devices": 2, "debug": True}, ConfigError, "--debug computes on one device: type --devices 1"),
        ({"env_kwargs": "[1]"}, ConfigError, "must be a JSON object"),
        ({"env_kwargs": "{size: 1}"}, ConfigError, "must be a JSON object"),
        ({"keep": 1}, ConfigError, "--keep must be 2 or more"),
        ({"rate": -1.0}, ValueError, "--rate must be positive"),
    ],
)
def test_mistakes_are_named(base: Config, values: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        config.override(base, **values)


def test_an_int_is_a_float(base: Config) -> None:
    ratio = config.override(base, replay_ratio=8).run.replay_ratio
    assert ratio == 8.0
    assert isinstance(ratio, float)


def test_unknown_preset_and_algorithm() -> None:
    with pytest.raises(ConfigError, match="did you mean 'quick'"):
        config.default("fake", "quikc")
    with pytest.raises(algos.UnknownAlgorithm, match="did you mean 'dreamer_v3'"):
        config.default("dreamer_v9")


def test_a_run_may_continue_on_another_number_of_devices(base: Config) -> None:
    saved, given = config.override(base, devices=4), config.override(base, devices=0)
    assert config.contradictions(saved, given) == []
    assert config.continuation(saved, given).run.devices == 0


def test_contradictions_list_all_that_differs_but_may_not(base: Config) -> None:
    given = config.override(base, envs=8, rate=0.3, steps=7, debug=True, precision="auto")
    saved = config.override(base, precision="float32")
    assert config.contradictions(saved, given) == [("envs", 4, 8), ("rate", 0.1, 0.3)]


def test_continued_takes_only_what_may_change(base: Config) -> None:
    given = config.override(base, steps=7, log_every=3, precision="auto")
    saved = config.override(base, precision="bfloat16")
    assert config.continuation(saved, given) == config.override(saved, steps=7, log_every=3)


@pytest.mark.parametrize("name", ["fake", "dreamer_v3"])
def test_names_of_run_and_algorithm_never_collide(name: str) -> None:
    module = algos.load(name)
    assert not get_type_hints(RunConfig).keys() & get_type_hints(module.Config).keys()


def test_every_preset_is_valid() -> None:
    for name in algos.ALGORITHMS:
        for preset in presets.of(name).named:
            assert config.default(name, preset).algorithm == name


def test_an_image_size_is_one_number_or_two():
    sizes = {
        given: config.override(config.default("fake"), image_size=given).run.image_size for given in (0, 64, (64, 64))
    }
    assert sizes == {0: 0, 64: 64, (64, 64): 64}
    wide = config.override(config.default("fake"), image_size=[210, 160])
    assert wide.run.image_size == (210, 160)
    assert config.from_text(config.to_text(wide)).run == wide.run
    for wrong in ((64, 0), (-1, 64), (64, 9000)):
        with pytest.raises(ConfigError, match="--image-size must be"):
            config.override(config.default("fake"), image_size=wrong)
    for wrong in ([1, 2, 3], ["64", 64], "64"):
        with pytest.raises(TypeError, match=r"image_size is .*, expected a whole number or a pair of whole numbers"):
            config.override(config.default("fake"), image_size=wrong)
