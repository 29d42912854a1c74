"""What is chosen for an env that has no preset: by what it shows, with a reason, and never against what is typed."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

import reverie
from reverie import algos, cli, config, defaults, fields
from reverie.envs.base import Space
from reverie.envs.facts import EarlyLook, Facts, Play, Variation
from reverie.envs.spec import EnvSpec

SPARSE = Play(4000, (-500.0,) * 8, (500,) * 8, 0)
FOUND = Play(4000, (-500.0, -200.0), (500, 200), 1)
DENSE = Play(4000, (1.0, 30.0, 90.0), (10, 30, 90), 3)
ENDLESS = Play(4000, (), (), 0)
VECTOR = {"obs": Space("vector", (4,), low=(-1.0,) * 4, high=(1.0,) * 4)}
PICTURE = {"image": Space("image", (84, 84, 3))}
CHOICE = {"action": Space("discrete", (), classes=(3,))}


def facts(plain: Play = DENSE, held: Play = DENSE, obs: Any = VECTOR, seconds: float = 1e-4, rows: Any = None) -> Facts:
    seen = {} if rows is None else {"obs": Variation.of(np.asarray(rows, np.float32))}
    return Facts(obs, CHOICE, plain, held, 1.0, seen, seconds)


def chosen(algorithm: str, seen: Facts) -> dict[str, Any]:
    conf = config.override(config.default(algorithm), env="x")
    return {choice.name: choice.value for choice in defaults.suit(conf, seen)}


@pytest.mark.parametrize("algorithm", algos.ALGORITHMS)
@pytest.mark.parametrize("seen", [facts(), facts(SPARSE, FOUND), facts(ENDLESS, ENDLESS, PICTURE, 0.1)])
def test_every_choice_is_a_value_of_the_algorithm_and_has_a_reason(algorithm: str, seen: Facts) -> None:
    conf = config.override(config.default(algorithm), env="x")
    choices = defaults.suit(conf, seen)
    assert config.override(conf, **{x.name: x.value for x in choices}) != conf
    assert all(choice.reason for choice in choices)


def test_what_is_hard_to_find_is_looked_for_with_repeated_actions() -> None:
    for algorithm in ("dreamer_v3", "gumbel_muzero"):
        assert {"hold", "random_moves"} <= chosen(algorithm, facts(SPARSE, FOUND)).keys()
        assert {"hold", "random_moves"} <= chosen(algorithm, facts(SPARSE, SPARSE)).keys()
        assert not {"hold", "random_moves"} & chosen(algorithm, facts()).keys()


def test_what_is_hardly_ever_paid_is_looked_for_and_replayed_without_repeated_actions() -> None:
    """A door whose key must be found first: repeated actions find it less often."""
    seen = dataclasses.replace(facts(), zeros=0.998)
    for algorithm in ("dreamer_v3", "dreamer_v1", "gumbel_muzero"):
        assert {"random_moves", "warmup"} <= chosen(algorithm, seen).keys()
        assert "hold" not in chosen(algorithm, seen)
        assert not {"random_moves", "rare_share"} & chosen(algorithm, dataclasses.replace(seen, zeros=0.9)).keys()
    assert "rare_share" in chosen("dreamer_v3", seen)
    assert "rare_share" not in chosen("gumbel_muzero", seen), "its values would be those of luck"


def test_a_search_acts_on_a_tenth_of_a_reward() -> None:
    assert chosen("gumbel_muzero", facts())["least_range"] == 0.1
    assert chosen("gumbel_muzero", dataclasses.replace(facts(), largest=50.0))["least_range"] == 0.1
    assert chosen("gumbel_muzero", dataclasses.replace(facts(), largest=0.02))["least_range"] == 0.002
    assert "least_range" not in chosen("gumbel_muzero", dataclasses.replace(facts(), zeros=1.0, largest=0.0))


def test_a_return_is_no_longer_than_an_episode() -> None:
    short, long = Play(4000, (1.0,), (8,), 1), Play(4000, (1.0,), (200,), 1)
    assert chosen("gumbel_muzero", facts(short, short))["n_step"] == 8
    assert chosen("gumbel_muzero", facts(long, short))["n_step"] == 20


def test_errors_of_values_do_not_decide_what_is_replayed() -> None:
    conf = config.override(config.default("gumbel_muzero"), env="x")
    choices = defaults.suit(conf, facts())
    assert chosen("gumbel_muzero", facts())["prioritized"] is False
    told = io.StringIO()
    conf = config.override(conf, **{x.name: x.value for x in choices})
    defaults.tell(Console(file=told, width=200), conf, choices)
    assert "  --no-prioritized: " in told.getvalue(), "as it would be typed"


def test_pictures_drawn_in_squares_are_small_ones() -> None:
    plain = dataclasses.replace(facts(obs={"image": Space("image", (64, 96, 3))}), blocks={"image": 1})
    drawn = dataclasses.replace(plain, blocks={"image": 8})
    assert chosen("dreamer_v3", drawn)["image_size"] == (8, 12)
    assert json.loads(chosen("dreamer_v3", drawn)["choices"]) == {"bins": 63, "stages": 1}
    assert json.loads(chosen("dreamer_v3", plain)["choices"]) == {"bins": 63}
    assert "image_size" not in chosen("dreamer_v3", plain)
    assert "reanalyse" in chosen("efficientzero", plain)
    assert "reanalyse" in chosen("efficientzero", drawn)
    assert chosen("dreamer_v2", drawn) == chosen("dreamer_v2", plain), "its pictures have 64 x 64 pixels in any case"
    coarse = dataclasses.replace(plain, blocks={"image": 32})
    assert chosen("gumbel_muzero", coarse)["image_size"] == (8, 12), "no side below 7"
    two = {"a": PICTURE["image"], "b": Space("image", (8, 8, 3))}
    several = dataclasses.replace(facts(obs=two), blocks={"a": 12, "b": 4})
    assert "image_size" not in chosen("gumbel_muzero", several), "one flag for both"
    told = io.StringIO()
    conf = config.override(config.default("dreamer_v3"), env="x")
    choices = defaults.suit(conf, drawn)
    defaults.tell(Console(file=told, width=200), config.override(conf, **{x.name: x.value for x in choices}), choices)
    assert "pictures are drawn in squares of 8 x 8 equal pixels" in told.getvalue()
    assert "--image-size 8 12: " in told.getvalue()
    assert "it shows pictures of 8x12" in told.getvalue()


def test_an_env_that_never_ends_by_itself_gets_a_clock() -> None:
    assert chosen("dreamer_v3", facts(ENDLESS, ENDLESS))["time_limit"] == 1000
    assert "time_limit" not in chosen("dreamer_v3", facts(SPARSE, SPARSE))


def test_numbers_that_hardly_vary_are_brought_to_a_spread_of_one() -> None:
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(5000, 4)) * [1, 0.02, 0, 0.3] + [0, 0.5, 3, 5000]
    free = {"obs": Space("vector", (4,))}
    center, spread = json.loads(chosen("dreamer_v3", facts(rows=rows, obs=free))["obs_scale"])["obs"]
    assert spread == [1, pytest.approx(0.02, rel=0.1), 1, pytest.approx(0.3, rel=0.1)]
    assert center == [0, pytest.approx(0.5, abs=0.002), 0, pytest.approx(5000, abs=0.03)]
    assert chosen("gumbel_muzero", facts(rows=rows, obs=free))["obs_scale"] == json.dumps({"obs": [center, spread]})


def test_numbers_that_vary_enough_or_switch_or_stand_still_are_left_alone() -> None:
    rng = np.random.default_rng(0)
    rare = rng.random(5000) < 0.01
    rows = np.stack([rng.normal(size=5000), 9 * rng.normal(size=5000), rare, np.full(5000, 0.1)], 1)
    assert "obs_scale" not in chosen("dreamer_v3", facts(rows=rows))


def test_what_was_seen_once_far_away_is_not_blown_up() -> None:
    rows = 0.001 * np.random.default_rng(0).normal(size=(5000, 4))
    rows[7] = 1.0
    _, spread = json.loads(chosen("dreamer_v3", facts(rows=rows))["obs_scale"])["obs"]
    assert min(spread) >= 0.1


def test_bounds_tell_how_far_good_play_may_go() -> None:
    rows = 0.05 * np.random.default_rng(0).normal(size=(5000, 4))
    ends = (0.4, 4.8, 1e9, np.inf)
    obs = {"obs": Space("vector", (4,), low=tuple(-x for x in ends), high=ends)}
    _, spread = json.loads(chosen("dreamer_v3", facts(rows=rows, obs=obs))["obs_scale"])["obs"]
    assert spread == pytest.approx([0.05, 0.24, 1, 0.05], rel=0.1)


def test_how_long_random_play_lasts_does_not_shorten_the_horizon() -> None:
    """A pole that random play drops after 23 steps stands for 500."""
    assert not {"horizon"} & (chosen("dreamer_v3", facts()).keys() | chosen("dream_ppo", facts()).keys())


def test_rewards_that_are_rare_and_large_are_replayed() -> None:
    """A random lander crashes once in ninety steps, and no other reward is nearly as large."""
    crash = dataclasses.replace(facts(), large=0.012)
    assert chosen("dreamer_v3", crash).items() >= {"rare_share": 0.25, "entropy": 3e-3}.items()
    assert chosen("dreamer_v1", crash)["rare_share"] == 0.25
    for other in (crash, facts()):
        assert "rare_share" not in chosen("gumbel_muzero", other)
    for share in (0.0, 0.1, 1.0):
        assert not {"rare_share", "entropy"} & chosen("dreamer_v3", dataclasses.replace(facts(), large=share)).keys()


def test_slow_envs_and_pictures_change_how_much_is_learned_from_a_step() -> None:
    fast, slow, seen = (chosen("dreamer_v3", x) for x in (facts(), facts(seconds=0.02), facts(obs=PICTURE)))
    assert slow["replay_ratio"] == 256
    assert "replay_ratio" not in fast, "that of the run, 32"
    assert "replay_ratio" not in seen
    assert chosen("dreamer_v2", facts())["replay_ratio"] == 64
    assert "replay_ratio" not in chosen("dreamer_v2", facts(obs=PICTURE))


@pytest.mark.parametrize("name", ["gumbel_muzero", "efficientzero"])
def test_pictures_are_not_read_again_for_the_values_of_returns(name: str) -> None:
    """There are 26 of each root with returns of 20 steps."""
    conf = config.override(config.default(name), env="x", **chosen(name, facts(obs=PICTURE)))
    assert (conf.agent.bootstrap, conf.agent.reanalyse) == ("stored", 0.0)
    assert not {"bootstrap", "reanalyse"} & chosen(name, facts()).keys()


def test_a_game_is_searched_and_everything_else_is_dreamt() -> None:
    board = {"obs": Space("planes", (3, 3, 2)), "legal": Space("legal", (9,)), "player": Space("player", ())}
    assert defaults.algorithm("pgx:tic_tac_toe", facts(obs=board)).value == "gumbel_muzero"
    assert defaults.algorithm("pgx:2048", facts(obs=board)).value == "stochastic_muzero"
    assert defaults.algorithm("CartPole-v1", facts()).value == "dreamer_v3"


def test_what_is_typed_counts_more_and_only_what_counts_is_told() -> None:
    conf = config.override(config.default("dreamer_v3"), env="x")
    choices = defaults.suit(conf, facts())
    conf = config.override(conf, **{x.name: x.value for x in choices} | {"size": "12m"})
    told = io.StringIO()
    defaults.tell(Console(file=told, width=200), conf, choices)
    assert "--learning-rate" in told.getvalue()
    assert "200k" not in told.getvalue()


QUICK = {"steps": 8, "warmup": 100, "envs": 2, "eval_episodes": 0, "eval_every": 0, "workers": "inline"}
FLAGS = [x for name, value in QUICK.items() for x in (fields.flag(name), str(value))]


def test_a_new_run_has_what_was_chosen_and_keeps_it(
    looks: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    env = "reverie.envs.toy:Catch"
    flags = ["train", "gumbel_muzero", "--env", env, "--preset", "none", "--units", "16", *FLAGS]
    assert cli.main([*flags, "--run", str(tmp_path / "a")]) == 0
    assert "--least-range 0.1" in capsys.readouterr().out
    saved = config.saved(tmp_path / "a")
    assert saved is not None
    assert (saved.agent.units, saved.agent.n_step) == (16, 7)
    assert cli.main([*flags, "--run", str(tmp_path / "a"), "--steps", "16"]) == 0  # it is not looked at again
    assert "Chosen" not in capsys.readouterr().out
    reverie.train("gumbel_muzero", env, run=tmp_path / "b", preset="none", units=16, **QUICK)
    other = config.saved(tmp_path / "b")
    assert other is not None
    assert dataclasses.replace(other, id="") == dataclasses.replace(saved, id="")
    reverie.train("gumbel_muzero", env, run=tmp_path / "c", preset="paper", **QUICK)
    plain = config.saved(tmp_path / "c")
    assert plain is not None
    assert plain.agent == config.default("gumbel_muzero").agent


def test_without_a_name_the_algorithm_is_chosen(looks: None, capsys: pytest.CaptureFixture[str]) -> None:
    with contextlib.suppress(SystemExit):
        assert cli.main(["train", "--env", "Acrobot-v1", "--dry-run"]) == 0
    told = capsys.readouterr().out
    assert told.startswith("dreamer_v3: ")
    assert "--hold 32" in told


def test_the_env_of_a_command_is_looked_at_while_the_algorithm_is_imported(
    looks: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the whole command says of the env may be more than its name; a run that is there is not looked at."""
    begun: list[EnvSpec | None] = []

    class Noted(EarlyLook):
        def __init__(self, spec: EnvSpec | None) -> None:
            begun.append(spec)
            super().__init__(spec)

    monkeypatch.setattr("reverie.envs.facts.EarlyLook", Noted)
    catch = EnvSpec("reverie.envs.toy:Catch")
    flags = ["train", "gumbel_muzero", "--env", catch.id, "--preset", "none", "--dry-run"]
    for given, expected in (
        ([], [catch]),
        (["--gray"], [catch, dataclasses.replace(catch, gray=True)]),
        (["--preset", "paper"], [None]),
        (["--run", str(tmp_path)], [None, catch]),
        (["--env-kwargs", "{"], [None]),
    ):
        begun.clear()
        cli.main([*flags, *given])
        assert begun == expected, given
