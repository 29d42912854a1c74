"""A run directory is data: whatever it names, loading it runs none of its code."""

from __future__ import annotations

import json
import os
import pickle
import shlex
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gymnasium
import pytest

import reverie
from reverie import algos, cli
from reverie.config import ConfigError
from reverie.envs.code import UnusableEnv
from reverie.run.trust import NeedsTrust

ALARM = "alarm"  # what an attack would leave in the current directory
SPRING = f"open({ALARM!r}, 'w').close()\n"
TRAIN = ["train", "fake", "--run", "x"]
QUICK = {"preset": "quick", "steps": 40, "warmup": 20, "envs": 2, "workers": "inline", "eval_episodes": 1}
MINE = """
import functools, os
from os import system
from reverie.envs.toy import Counting

class Mine(Counting):
    pass

class Writer:
    def __init__(self, command=''):
        os.system(command)

touch = functools.partial(os.system, 'touch alarm')
"""


class Loads(gymnasium.Env):
    """A registered env that runs a file which its arguments name."""

    observation_space = action_space = gymnasium.spaces.Discrete(2)

    def __init__(self, level: str = "", render_mode: str | None = None) -> None:
        exec(Path(level).read_text())


@pytest.fixture
def run(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A copy of it in the current directory, with code beside it and inside it."""
    monkeypatch.setitem(algos.ALGORITHMS, "fake", "fakes")
    monkeypatch.delenv("REVERIE_DEBUG", raising=False)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setitem(gymnasium.registry, "Loads-v0", gymnasium.envs.registration.EnvSpec("Loads-v0", Loads))
    known = set(sys.modules)
    shutil.copytree(trained, "x")
    for folder in (tmp_path, tmp_path / "x"):
        (folder / "evil.py").write_text(SPRING + MINE)
    (tmp_path / "mine.py").write_text(MINE)
    with open("x/level.npy", "wb") as file:
        pickle.dump(Spring(), file)
    yield Path("x")
    for name in set(sys.modules) - known:
        if name in ("evil", "mine") or name.startswith("reverie_file_"):
            del sys.modules[name]


class Spring:
    def __reduce__(self) -> Any:
        return os.system, (f"touch {ALARM}",)


def forge(run: Path, **values: Any) -> None:
    file = run / "config.json"
    config = json.loads(file.read_text())
    config["run"] |= values
    file.write_text(json.dumps(config))


def tree(run: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(run.rglob("*")) if path.is_file()}


def quiet() -> bool:
    return not list(Path().glob(f"{ALARM}*"))


def env(of: str, /, **kwargs: Any) -> dict[str, Any]:
    return {"env": of, "env_kwargs": json.dumps(kwargs)}


def collector(name: str) -> dict[str, Any]:
    return {"schedule": "model-then-policy", "collector": name}


# What a config would have run -> how the refusal tells of it.
ENVS: dict[str, tuple[dict[str, Any], str]] = {
    "a program": (
        env("subprocess:check_output", args=["touch", ALARM]),
        "import 'subprocess' and call check_output(args=['touch', 'alarm'])",
    ),
    "a command": (env("os:system", command=f"touch {ALARM}"), "import 'os' and call system"),
    "a script": (env("runpy:run_path", path_name="x/evil.py"), "call run_path(path_name='x/evil.py')"),
    "an import": (env("importlib:import_module", name="evil"), "call import_module(name='evil')"),
    "a file of the run": (env("x/evil.py:Mine"), "x/evil.py' and call Mine()"),
    "a module beside the run": (env("evil:Mine"), "import 'evil' and call Mine()"),
    "a module that registers": (env("evil:Mine-v0"), "import 'evil'"),
    "a module of the device": (env("device:evil:Mine"), "import 'evil' and call Mine()"),
    "what a toy imports": (env("reverie.envs.toy:np.save", file=ALARM, arr=[1]), "call np.save"),
    "what a toy of the device imports": (env("device:jnp.save", file=ALARM, arr=[1]), "call jnp.save"),
    "an env that writes": (
        env("faulty:Faulty", script={"build": "raise"}, once=ALARM),
        "import 'faulty' and call Faulty",
    ),
    "a function of Reverie": (
        env("reverie.files:create", path=ALARM, chunks=[]),
        "call create(chunks=[], path='alarm'",
    ),
    "a maker of envs": (env("gymnasium:make", id="evil:Mine-v0"), "call make(id='evil:Mine-v0')"),
    "a pickle": (
        env("numpy:load", file="x/level.npy", allow_pickle=True),
        "call load(allow_pickle=True, file='x/level.npy'",
    ),
    "an argument of a registered env": (env("Loads-v0", level="x/evil.py"), "hand level='x/evil.py' to Loads-v0"),
}
COLLECTORS: dict[str, tuple[dict[str, Any], str]] = {
    "a collector in a module": (collector("evil:system"), "import 'evil' and call system() at every step"),
    "a collector in a file": (collector("x/evil.py:system"), "x/evil.py' and call system() at every step"),
    "a collector of the library": (collector("os:system"), "import 'os' and call system() at every step"),
}
VERBS: dict[str, Callable[[], object]] = {
    "eval": lambda: cli.main(["eval", "x", "--episodes", "1"]),
    "dream": lambda: cli.main(["dream", "x", "--fresh"]),
    "think": lambda: cli.main(["think", "x"]),
    "train": lambda: cli.main(TRAIN),
    "dry-run": lambda: cli.main([*TRAIN, "--dry-run"]),
    "load": lambda: reverie.load("x"),
    "evaluate": lambda: reverie.evaluate("x", episodes=1),
    "train from Python": lambda: reverie.train("fake", run="x"),
}


def refused(verb: str, capsys: pytest.CaptureFixture[str], run: Path) -> str:
    """The sentence with which a verb refuses; nothing has run, and nothing has changed."""
    before = tree(run)
    try:
        code = VERBS[verb]()
        told = capsys.readouterr().err
    except NeedsTrust as error:
        code, told = 2, str(error)
    assert quiet(), "code of the run ran"
    assert code == 2, told
    assert "Traceback" not in told
    assert told.removeprefix("reverie: ").startswith("a run directory runs no code that only its config names: "), told
    assert tree(run) == before
    return told


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("way", ENVS)
def test_no_env_of_a_config_runs(way: str, verb: str, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    values, told = ENVS[way]
    forge(run, **values)
    assert told in refused(verb, capsys, run)


@pytest.mark.parametrize("verb", ["train", "dry-run", "train from Python"])
@pytest.mark.parametrize("way", COLLECTORS)
def test_no_collector_of_a_config_runs(way: str, verb: str, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    values, told = COLLECTORS[way]
    forge(run, **values)
    assert told in refused(verb, capsys, run)


def test_modules_beside_a_sound_run_stay_unread(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its env is in a process of its own, which begins with imports of Python's library."""
    for name in ("json", "struct", "av", "reverie_env", "pgx", "ale_py"):
        Path(f"{name}.py").write_text(SPRING)
    forge(run, workers="process")
    before = list(sys.path)
    assert cli.main(["eval", "x", "--episodes", "1"]) == 0, capsys.readouterr().err
    assert quiet()
    assert sys.path == before


def test_of_the_run_that_another_learns_from_only_data_is_read(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    forge(run, **env("os:system", command=f"touch {ALARM}"), collector="x/evil.py:system", schedule="model-then-policy")
    flags = ["--env", "reverie.envs.toy:Counting", "--preset", "quick", "--envs", "2", "--workers", "inline"]
    flags += ["--model-updates", "2", "--eval-episodes", "0", "--video-every", "0"]
    assert cli.main(["train", "fake", "--offline", "x", "--run", "y", *flags]) == 0, capsys.readouterr().err
    assert quiet()


@pytest.mark.parametrize("forged", ["pickle", "yaml", "python"])
def test_a_config_is_read_as_json_alone(forged: str, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = {
        "pickle": pickle.dumps(Spring()),
        "yaml": f"!!python/object/apply:os.system ['touch {ALARM}']".encode(),
        "python": f"__import__('os').system('touch {ALARM}')".encode(),
    }[forged]
    (run / "config.json").write_bytes(content)
    for verb in ("eval", "dream", "think", "train"):
        assert VERBS[verb]() == 2
        told = capsys.readouterr().err
        assert told.startswith("reverie: x/config.json is no config of a run: it is not "), told
    with pytest.raises(ConfigError, match="no config of a run"):
        reverie.load("x")
    assert quiet()


def test_arrays_that_are_a_pickle_are_no_checkpoint(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for file in run.rglob("arrays.safetensors"):
        file.write_bytes(pickle.dumps(Spring()))
    assert cli.main(["eval", "x"]) in (1, 2)
    assert "Traceback" not in capsys.readouterr().err
    assert quiet()


# ------------------------------------------------------------------------- what a person vouches for


def test_the_command_that_is_proposed_is_the_one_to_type(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    forge(run, env="mine.py:Mine")
    for argv in (["eval", "x", "--episodes", "1"], [*TRAIN, "--steps", "60"]):
        assert cli.main(argv) == 2
        proposed = [line for line in capsys.readouterr().err.splitlines() if line.startswith("  reverie ")]
        assert len(proposed) == 1
        assert proposed[0] == f"  reverie {shlex.join([*argv, '--env', 'mine.py:Mine'])}"
        assert cli.main(shlex.split(proposed[0])[1:]) == 0, capsys.readouterr().err
        capsys.readouterr()


def test_trust_is_for_all_that_a_run_names(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    forge(run, env="mine.py:Mine")
    assert cli.main(["eval", "x", "--episodes", "1", "--trust"]) == 0, capsys.readouterr().err
    assert reverie.load("x", trust=True).spec.id == "mine.py:Mine"
    assert reverie.train("fake", run="x", trust=True).env.id == "mine.py:Mine"
    with pytest.raises(NeedsTrust, match=r"pass env='mine.py:Mine', or trust=True"):
        reverie.load("x")


def test_a_name_typed_again_takes_over_what_was_said_of_it(run: Path) -> None:
    forge(run, **env("mine.py:Mine", length=3), action_repeat=2)
    spec = reverie.load("x", env="mine.py:Mine").spec
    assert (spec.arguments(), spec.action_repeat) == ({"length": 3}, 2)
    with pytest.raises(ConfigError, match=r"this run was trained in mine\.py:Mine: type that"):
        reverie.load("x", env="CartPole-v1")


def test_who_trained_may_load(run: Path) -> None:
    assert reverie.train("fake", env="mine.py:Mine", run="y", **QUICK).load().spec.id == "mine.py:Mine"


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("subprocess:check_output", "module of Python's own library"),
        ("os:system", "module of Python's own library"),
        ("builtins:print", "module of Python's own library"),
        ("mine:system", "mine:system is of 'posix', which is a module of Python's own library"),
        ("mine:touch", "mine:touch is of 'posix'"),
        ("mine.py:system", "is of 'posix'"),
        ("mine:Writer", "mine:Writer is a class without reset() and step()"),
        ("device:mine:Writer", "is a class without reset() and step()"),
        ("os:Env-v0", "module of Python's own library"),
    ],
)
def test_what_is_no_env_is_not_called_even_if_typed(name: str, told: str, run: Path) -> None:
    kwargs = {"command": f"touch {ALARM}"}
    with pytest.raises(UnusableEnv) as error:
        reverie.make_env(reverie.EnvSpec(name, kwargs=kwargs))
    assert told in str(error.value)
    assert quiet()


def test_a_collector_of_the_library_is_refused_even_if_typed(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("os:system", "mine:system"):
        forge(run, **collector(name))
        assert cli.main([*TRAIN, "--collector", name]) == 2
        assert "Python's own library" in capsys.readouterr().err
    assert quiet()
