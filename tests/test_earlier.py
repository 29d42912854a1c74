"""Configs that earlier versions saved: they load, with the values that they had."""

import json
from pathlib import Path
from typing import Any

import pytest

from reverie import algos, config, earlier
from reverie.fields import ConfigError

SAVED = Path(__file__).parent / "golden" / "configs" / "0.1.0"


def text(name: str, **changes: Any) -> str:
    data = json.loads((SAVED / f"{name}.json").read_text())
    data["agent"] |= changes
    return json.dumps(data)


@pytest.mark.parametrize("path", sorted(SAVED.glob("*.json")), ids=lambda path: path.stem)
def test_every_value_that_was_saved_is_there_or_was_never_read(path: Path) -> None:
    saved = json.loads(path.read_text())
    conf = config.from_text(path.read_text())
    found = conf.all_values()
    lost = {name for name, value in (saved["run"] | saved["agent"]).items() if found.get(name, ()) != value}
    unread = set(earlier.UNREAD.get(saved["algorithm"], ()))
    only = {"discount", "optimizer", "first_continue", "replay_value_scale", "actor_gradient", "improve"}
    v3 = saved["algorithm"] in earlier.OVER_V3
    assert lost <= (unread | (only if v3 else set()))
    assert config.from_text(config.to_text(conf)) == conf


def test_both_papers_of_dreamer_v3_were_one_algorithm() -> None:
    final, first = (config.from_text(text(name)) for name in ("dreamer_v3", "v3-2023"))
    assert (final.algorithm, final.agent) == ("dreamer_v3", algos.load("dreamer_v3").Config())
    assert (first.algorithm, first.agent) == ("dreamer_v3_2023", algos.load("dreamer_v3_2023").Config(size="XL"))
    ablation = config.from_text(text("dreamer_v3", norm="layer", kernel=3))
    assert json.loads(ablation.agent.choices) == {"norm": "layer", "kernel": 3}


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("dreamer_v3", {"discount": "fixed"}, "discount is 'fixed': a mixture of the two papers"),
        ("dreamer_v3", {"optimizer": "adam"}, "optimizer is 'adam': a mixture"),
        ("v3-2023", {"replay_value_scale": 0.3}, "replay_value_scale is 0.3: a mixture"),
        ("dreamer_v3", {"norm": ["rms"]}, "--choices: norm is "),
        ("dreamer_v3", {"kernel": 1e300}, "--choices: kernel "),
        ("efficientzero", {"projection": -1}, "--choices: projection must be 1 or more"),
        ("muzero", {"scaling": None}, "--choices: scaling is None"),
    ],
)
def test_what_no_version_of_today_can_run_is_told(name: str, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        config.from_text(text(name, **changes))


def test_a_flag_that_has_gone_says_what_to_type() -> None:
    assert earlier.instead("dreamer_v3", "norm", "layer") == """type --choices '{"norm": "layer"}'"""
    assert earlier.instead("dreamer_v3", "kernel", "3") == """type --choices '{"kernel": 3}'"""
    assert (
        earlier.instead("dreamer_v3", "straight_through", "false") == """type --choices '{"straight_through": false}'"""
    )
    assert earlier.instead("muzero", "half_heat", "oops") == """type --choices '{"half_heat": VALUE}'"""
    assert earlier.instead("dreamer_v3", "kernel", "4") == """type --choices '{"kernel": VALUE}'"""
    assert earlier.instead("dreamer_v3", "norm", "") == """type --choices '{"norm": VALUE}'"""
    assert "dreamer_v3_2023" in earlier.instead("dreamer_v3", "discount", "fixed")
    assert "never read it" in earlier.instead("gumbel_muzero", "half_heat", "1")
    assert "dream_ppo has none" in earlier.instead("dream_ppo", "improve", "0.5")
    assert earlier.instead("dreamer_v3", "sizes", "1m") == ""
