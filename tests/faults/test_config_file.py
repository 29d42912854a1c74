"""A config file that is none: each ends in one sentence, and nothing has changed."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import reverie
from reverie import algos, cli, config
from reverie.config import ConfigError
from reverie.files import DiskError
from reverie.saved import OtherVersion

VERBS = {
    "eval": ["eval", "x", "--episodes", "1"],
    "dream": ["dream", "x"],
    "think": ["think", "x"],
    "train": ["train", "fake", "--run", "x"],
    "diff": ["diff", "x", "fake"],
    "list": ["list", "x"],
    "offline": ["train", "fake", "--run", "y", "--env", "reverie.envs.toy:Counting", "--envs", "2", "--offline", "x"],
}


def changed(change: Callable[[dict[str, Any]], object]) -> Callable[[str], bytes]:
    def forge(text: str) -> bytes:
        data = json.loads(text)
        change(data)
        return json.dumps(data).encode()

    return forge


def inside(part: str, **values: Any) -> Callable[[str], bytes]:
    return changed(lambda data: data[part].update(values))


FORGED: dict[str, tuple[Callable[[str], bytes], str]] = {
    "empty": (lambda text: b"", "it is not JSON"),
    "torn": (lambda text: text.encode()[: len(text) // 2], "it is not JSON"),
    "zeros": (lambda text: bytes(len(text)), "it is not JSON"),
    "a list": (lambda text: b"[1, 2]", r"it holds \[1, 2\], expected an object"),
    "null": (lambda text: b"null", "it holds None, expected an object"),
    "a number": (lambda text: b"1e400", "it holds inf"),
    "not UTF-8": (lambda text: text.replace("toy", "\xff").encode("latin-1"), "it is not UTF-8"),
    "UTF-16": (lambda text: text.encode("utf-16"), "it is not UTF-8"),
    "nested": (lambda text: b"[" * 100_000, "nested too deeply"),
    "a long number": (lambda text: text.replace("40", "4" * 5000).encode(), "it is not JSON"),
    "NaN": (lambda text: text.replace('"replay_ratio": 32.0', '"replay_ratio": NaN').encode(), "NaN is no JSON"),
    "an infinite number": (inside("run", replay_ratio=float("inf")), "Infinity is no JSON"),
    "1e400": (lambda text: text.replace('"deadline": 60.0', '"deadline": 1e400').encode(), "--deadline must be"),
    "no schema": (changed(lambda data: data.pop("schema")), "schema is None, expected a whole number"),
    "another schema": (changed(lambda data: data.update(schema=99)), "has format 99.*this version reads 1"),
    "no algorithm": (changed(lambda data: data.pop("algorithm")), "algorithm is None, expected a text"),
    "algorithm is a list": (changed(lambda data: data.update(algorithm=["fake"])), "algorithm is .*expected a text"),
    "an unknown algorithm": (changed(lambda data: data.update(algorithm="os")), "no algorithm 'os'"),
    "run is a list": (changed(lambda data: data.update(run=[])), r"run is \[\], expected an object"),
    "no agent": (changed(lambda data: data.pop("agent")), "agent is None, expected an object"),
    "one part more": (changed(lambda data: data.update(hook="x")), "it has 'hook', expected nothing but"),
    "files of another value": (
        changed(lambda data: data.update(files={"seed": "/x.py"})),
        "expected absolute paths by",
    ),
    "a file of here": (
        changed(lambda data: data.update(files={"env": "x.py"})),
        "expected absolute paths by env, collector, offline",
    ),
    "a file that is none": (
        changed(lambda data: data.update(files={"env": 3})),
        "expected absolute paths by env, collector, offline",
    ),
    "a file that steers": (changed(lambda data: data.update(files={"env": "/\x1b.py"})), "expected absolute paths by"),
    "an unknown value": (inside("run", stpes=3), "'stpes': did you mean 'steps'"),
    "a value called config": (inside("agent", config=3), "no value is called 'config'"),
    "a text for a number": (inside("run", envs="2"), "envs is '2'.*expected a whole number"),
    "null for a number": (inside("run", envs=None), "envs is None.*expected a whole number"),
    "an object for a text": (inside("run", env={"a": 1}), "env is {'a': 1}.*expected a text"),
    "true for a number": (inside("run", envs=True), "envs is True.*expected a whole number"),
    "negative": (inside("run", envs=-1), "--envs must be 1 or more, got -1"),
    "enormous": (inside("run", batch=2**62), "--batch must be 1 to"),
    "wrong arguments": (inside("run", env_kwargs="[1]"), "--env-kwargs must be a JSON object"),
    "nested arguments": (inside("run", env_kwargs="[" * 5000), "--env-kwargs must be a JSON object"),
    "characters that steer a terminal": (inside("run", env="\x1b[2J"), "expected a text without control characters"),
    "half a character": (inside("run", offline="\ud800"), "expected a text without control characters"),
}


@pytest.fixture
def run(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setitem(algos.ALGORITHMS, "fake", "fakes")
    monkeypatch.delenv("REVERIE_DEBUG", raising=False)
    monkeypatch.chdir(tmp_path)
    shutil.copytree(trained, "x")
    return Path("x")


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file() and not path.is_symlink()}


def refused(verb: str, capsys: pytest.CaptureFixture[str]) -> str:
    """The one sentence of a verb that fails, and leaves everything as it was."""
    before = tree(Path())
    code = cli.main(VERBS[verb])
    told = capsys.readouterr().err
    assert code in (1, 2), told
    assert told.startswith("reverie: "), told
    assert (told.count("\n"), "Traceback" in told) == (1, False), told
    assert tree(Path()) == before
    return told


@pytest.mark.parametrize("forged", FORGED)
def test_what_is_no_config_is_refused_by_every_verb(forged: str, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make, message = FORGED[forged]
    (run / "config.json").write_bytes(make((run / "config.json").read_text()))
    for verb in VERBS:
        assert refused(verb, capsys).startswith("reverie: x/config.json "), verb
    for ask in (lambda: reverie.load("x"), lambda: reverie.train("fake", run="x"), lambda: reverie.evaluate("x")):
        with pytest.raises((ConfigError, OtherVersion), match=message):
            ask()


def lay(kind: str, file: Path) -> None:
    """Puts something else in the place of a file."""
    content = file.read_text()
    file.unlink()
    if kind == "a directory":
        file.mkdir()
    elif kind == "a FIFO":
        os.mkfifo(file)
    elif kind == "a link":
        Path("elsewhere.json").write_text(content)
        file.symlink_to(Path("elsewhere.json").resolve())
    elif kind == "a link to nothing":
        file.symlink_to("nothing")
    elif kind == "a link to itself":
        file.symlink_to(file.name)
    elif kind == "endless":
        with file.open("wb") as sparse:
            sparse.truncate(1 << 40)


@pytest.mark.parametrize(
    "kind", ["a directory", "a FIFO", "a link", "a link to nothing", "a link to itself", "endless"]
)
def test_what_is_no_file_is_not_read(kind: str, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lay(kind, run / "config.json")
    if kind == "endless":
        assert config.LARGEST < 1 << 40
        os.truncate(run / "config.json", config.LARGEST + 1)  # which the comparison below can read
    for verb in VERBS:
        assert "x/config.json" in refused(verb, capsys), verb
    with pytest.raises((DiskError, ConfigError), match=r"x/config\.json (is|has)"):
        reverie.load("x")


def test_a_config_of_before_is_read(run: Path) -> None:
    """It has fewer values, its whole numbers are whole, and its floats may be."""
    data = json.loads((run / "config.json").read_text())
    del data["run"]["keep"]
    data["run"] |= {"replay_ratio": 8, "steps": 60.0}
    (run / "config.json").write_text(json.dumps(data))
    read = config.saved(run)
    assert read is not None
    assert (read.run.keep, read.run.replay_ratio, read.run.steps, type(read.run.steps)) == (2, 8.0, 60, int)
