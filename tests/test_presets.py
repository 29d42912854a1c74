"""Presets: what the files hold, and files of one's own."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

import pytest

from reverie import algos, cli, config, flags, presets
from reverie.config import ConfigError
from reverie.run.trust import NeedsTrust

FOLDER = Path(presets.__file__).parent


@pytest.fixture
def mine(tmp_path: Path):
    """Writes a preset of one's own, and says where."""

    def write(text: str, name: str = "mine.toml") -> str:
        (tmp_path / name).write_text(text)
        return str(tmp_path / name)

    return write


def test_every_file_is_an_algorithms():
    assert {path.stem for path in FOLDER.glob("*.toml")} <= algos.ALGORITHMS.keys()


def test_no_base_is_unused_and_every_suited_preset_has_an_env():
    used, known = set(), set()
    for path in FOLDER.glob("*.toml"):
        data = tomllib.loads(path.read_text())
        known |= {f"{path.stem}:{name}" for name in data.get("bases", {})}
        for values in (data.get("defaults", {}), *data.get("bases", {}).values(), *data["presets"].values()):
            bases = values.get("base", [])
            bases = [bases] if isinstance(bases, str) else bases
            used |= {base if ":" in base else f"{path.stem}:{base}" for base in bases}
        assert all(presets.of(path.stem).named[name]["env"] for name in data.get("suited", ()))
    assert known <= used


def test_a_preset_is_its_bases_in_order_and_then_its_own_values():
    named = presets.of("dreamer_v3").named
    both = named["v3-nature/atari100k"]
    assert (both["first_continue"], both["envs"], both["size"], both["replay_ratio"]) == ("true", 1, "200m", 128.0)
    first = presets.of("dreamer_v3_2023")
    assert (first.defaults["replay_size"], first.named["v3-2023/atari100k"]["size"]) == (1_000_000, "S")
    assert json.loads(both["env_kwargs"])["repeat"] == 4
    assert presets.of("dream_ppo").named["catch"]["entropy"] == named["catch"]["entropy"]
    toy, atari = (json.loads(presets.of("efficientzero").named[n]["choices"]) for n in ("atari-toy", "atari100k"))
    assert toy == atari | {"projection": 128, "predictor": 64, "prefix_units": 32}, "constants are changed one by one"


def test_a_file_of_ones_own_trains_lists_and_differs(mine, capsys):
    path = mine('algorithm = "dreamer_v3"\nbase = "cartpole"\nsize = "1m"\nenv_kwargs = { size = 5 }\n')
    conf, session, _ = flags.parse_train(["dreamer_v3", "--preset", path, "--batch", "8"])
    assert (conf.run.env, conf.agent.size, conf.run.batch, conf.run.steps) == ("CartPole-v1", "1m", 8, 8000)
    assert json.loads(conf.run.env_kwargs) == {"size": 5}
    assert session.preset == path
    assert cli.main(["list", path, "--json"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["values"]["size"] == "1m"
    assert cli.main(["diff", path, "cartpole", "--json"]) == 0
    different = json.loads(capsys.readouterr().out.splitlines()[-1])["differences"]
    assert different == {"size": ["1m", "200k"], "env_kwargs": ['{"size": 5}', "{}"]}


def test_a_file_names_the_algorithm(mine, capsys):
    path = mine('algorithm = "dreamer_v3"\nenv = "CartPole-v1"\n')
    assert cli.main(["train", "--preset", path, "--dry-run", "--json"]) == 0
    assert "dreamer_v3 on CartPole-v1" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("relpay_ratio = 3\n", "did you mean 'replay_ratio'"),
        ("batch = 'many'\n", "batch is 'many' .*expected a whole number"),
        ("batch = 0\n", "--batch must be 1 or more"),
        ("batch =\n", "is not TOML"),
        ("base = 'cartpol'\n", "did you mean 'cartpole'"),
        ("base = [3]\n", "base is .*expected the name of a preset"),
        ("algorithm = 'muzero'\n", "is a preset of 'muzero', and the algorithm is dreamer_v3"),
        ("[run]\nbatch = 3\n", "no value is called 'run'"),
    ],
)
def test_mistakes_in_a_file_are_named(mine, text, told):
    path = mine(text)
    with pytest.raises(ConfigError, match=rf"mine\.toml.*{told}"):
        flags.parse_train(["dreamer_v3", "--env", "CartPole-v1", "--preset", path])


def test_a_file_that_is_none_is_refused(tmp_path: Path, mine):
    for path in (tmp_path / "none.toml", tmp_path):
        with pytest.raises(ConfigError, match=r"there is no file|has no preset"):
            flags.parse_train(["dreamer_v3", "--env", "CartPole-v1", "--preset", str(path)])
    with pytest.raises(ConfigError, match='write algorithm = "dreamer_v3" into it'):
        config.lookup(mine("batch = 3\n"))
    with pytest.raises(algos.UnknownAlgorithm, match="did you mean 'dreamer_v3'"):
        config.lookup(mine("algorithm = 'dreamer_v4'\n"))


def test_a_file_runs_no_code_that_nobody_typed(mine):
    path = mine("env = 'mine.py:Env'\n")
    with pytest.raises(NeedsTrust, match="a preset runs no code that only its file names"):
        flags.parse_train(["dreamer_v3", "--preset", path])
    for vouched in (["--env", "mine.py:Env"], ["--trust"]):
        conf, _, _ = flags.parse_train(["dreamer_v3", "--preset", path, *vouched])
        assert conf.run.env == "mine.py:Env"


def test_constants_come_on_top_of_those_of_a_preset_one_by_one() -> None:
    conf = config.override(config.default("efficientzero", "cartpole-imagined"), choices='{"half_heat": 5}')
    assert json.loads(conf.agent.choices) == {"projection": 64, "predictor": 32, "prefix_units": 32, "half_heat": 5}
    typed, *_ = flags.parse_train(["efficientzero", "--preset", "cartpole-imagined", "--choices", '{"half_heat": 5}'])
    assert typed.agent.choices == conf.agent.choices
    same = config.override(conf, choices='{"half_heat": 20000}')
    plain = config.default("efficientzero", "cartpole-imagined")
    assert same.agent.choices != plain.agent.choices
    assert config.contradictions(plain, same) == [], "the paper's own value says nothing new"
    assert [name for name, *_ in config.contradictions(plain, conf)] == ["choices"]
    with pytest.raises(ValueError, match="no value is called 'projection' any more: type --choices"):
        config.override(conf, projection=8)


@pytest.mark.parametrize(("name", "told"), [("paper", "type its name, such as dreamer_v3"), ("none", "--dry-run")])
def test_words_that_stand_for_no_values_of_their_own_say_where_these_are(name: str, told: str):
    with pytest.raises(ConfigError, match=told):
        config.lookup(name)
