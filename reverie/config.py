"""The configuration of a run: frozen, typed, strict, and saved with the run as text.

Where values come from says `resolve.py`. One that contradicts what a run has saved is an error, except for the fields
in `MAY_CHANGE`, which cannot change what a step computes (`devices` and `observe`: but for rounding).
"""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, get_type_hints

from reverie import algos, presets
from reverie.algos import choices
from reverie.earlier import instead, upgrade
from reverie.fields import WORDS, ConfigError, did_you_mean, parsed, short, taken
from reverie.files import Folder, Missing
from reverie.run.config import RunConfig
from reverie.saved import RELEASE, OtherVersion

logger = logging.getLogger("reverie")

SCHEMA = 1
CODE = ("env", "collector")  # the values of a run that may name code
ON_DISK = (*CODE, "offline")  # those that may name a file or a folder
LARGEST = 1 << 20  # bytes of a config file; one has about 4,000
MAY_CHANGE = frozenset({
    "stop_return", "eval_mode", "log_every", "report_every", "video_every", "keep", "logger",
    "workers", "deadline", "worker_memory", "devices", "debug", "replay_on", "observe",
})  # fmt: skip


@dataclass(frozen=True)
class Config:
    """A whole run: the algorithm's name, the run's values, the algorithm's own values."""

    algorithm: str
    run: RunConfig
    agent: Any
    id: str = ""  # of the run that it was saved with, 32 hexadecimal digits; empty before it begins, and in old runs
    # Where those of its values that name something on disk (`ON_DISK`) found it: the value's name -> absolute path.
    files: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def values(self) -> dict[str, Any]:
        """All fields in one flat dict; the names of run and algorithm never collide."""
        return dataclasses.asdict(self.run) | dataclasses.asdict(self.agent)

    def all_values(self) -> dict[str, Any]:
        """`values`, with every constant of the paper in place of `choices`."""
        values = self.values()
        if values.pop("choices", None) is not None:
            values |= dataclasses.asdict(self.agent.chosen())
        return values


def default(algorithm: str, preset: str = "") -> Config:
    """The defaults of an algorithm, with a preset applied; raises ConfigError for unknown names."""
    own = algos.load(algorithm).Config()
    return apply_preset(override(Config(algorithm, RunConfig(), own), **presets.of(algorithm).defaults), preset)


PLAIN = "none"  # as a preset: none, even where there is one for the env; values are chosen for it (`defaults.py`)
PAPER = "paper"  # as a preset: the algorithm's own values, and nothing chosen


def preset_for(algorithm: str, env: str) -> str:
    """The preset that a new run in this env has unless another is asked for; empty if there is none."""
    return presets.of(algorithm).preset_for.get(env, "")


def apply_preset(config: Config, name: str) -> Config:
    """`config` with the values of a preset of its algorithm: `variant`, `variant/benchmark`, a plain name, a file of
    one's own, or none."""
    if name in ("", PLAIN, PAPER):
        return config
    if presets.is_file(name):
        values = presets.own(name, config.algorithm)
        try:
            return override(config, **values)
        except (ConfigError, TypeError) as error:
            raise ConfigError(f"{name}: {error}") from error
    named = presets.of(config.algorithm).named
    if name not in named:
        known = f"Expected one of {', '.join(named)}, or a file.toml" if named else "It has none"
        if others := [other for other in algos.ALGORITHMS if name in presets.of(other).named]:
            known = f"it is one of {' and '.join(others)}"
        else:
            known = did_you_mean(name, named) + known
        raise ConfigError(f"{config.algorithm} has no preset {name!r}: {known}")
    return override(config, **named[name])


def lookup(name: str) -> Config:
    """The config that a name means: a run's directory, an algorithm for its defaults, a preset of any algorithm,
    `algorithm:preset` where several have one of that name (alone, it is the first one's), or a file of one's own.

    Raises:
      ConfigError: there is none of these; names the nearest preset.
    """
    if (found := saved(Path(name))) is not None:
        return found
    if name in algos.ALGORITHMS:
        return default(name)
    if presets.is_file(name):
        if not (algorithm := presets.owner(name)):
            raise ConfigError(f'{name} does not say whose values it has: write algorithm = "dreamer_v3" into it')
        return default(algorithm, name)
    if name == PAPER:
        raise ConfigError(f"{name} stands for the values of an algorithm itself: type its name, such as dreamer_v3")
    if name == PLAIN:
        raise ConfigError(
            f"{name} stands for values that are chosen by what an env shows: "
            "`reverie train dreamer_v3 --env CartPole-v1 --preset none --dry-run` prints them"
        )
    known: dict[str, tuple[str, str]] = {}
    for algorithm in algos.ALGORITHMS:
        for preset in presets.of(algorithm).named:
            known.setdefault(preset, (algorithm, preset))
            known[f"{algorithm}:{preset}"] = (algorithm, preset)
    if name not in known:
        raise ConfigError(
            f"{name!r} is no preset, no algorithm and no run's directory: {did_you_mean(name, known)}"
            "`reverie list` prints all presets"
        )
    return default(*known[name])


def differences(a: Config, b: Config) -> dict[str, tuple[Any, Any]]:
    """Name -> the two values, of everything that differs; None for a value that only the other algorithm has."""
    before, after = {"algorithm": a.algorithm} | a.all_values(), {"algorithm": b.algorithm} | b.all_values()
    names = dict.fromkeys([*before, *after])
    return {name: (before.get(name), after.get(name)) for name in names if before.get(name) != after.get(name)}


def override(config: Config, /, **values: Any) -> Config:
    """`config` with other values for fields of the run or of the algorithm.

    Raises:
      ConfigError: an unknown key, naming the nearest; or a value outside its range.
      TypeError: a value of the wrong type, naming the key, what was given and what is expected.
    """
    parts = {"run": config.run, "agent": config.agent}
    changes: dict[str, dict[str, Any]] = {name: {} for name in parts}
    hints = {name: get_type_hints(type(part)) for name, part in parts.items()}
    if isinstance(values.get("choices"), str) and "choices" in hints["agent"]:
        values["choices"] = choices.merged(config.agent.choices, values["choices"])
    for key, value in values.items():
        home = next((name for name in parts if key in hints[name]), None)
        if home is None:
            gone = instead(config.algorithm, key, str(value))
            hint = f" any more: {gone}" if gone else f": {did_you_mean(key, hints['run'] | hints['agent'])}"
            raise ConfigError(f"no value is called {short(key)}{hint}".rstrip(": "))
        changes[home][key] = taken(key, value, hints[home][key])
    new = {name: dataclasses.replace(part, **changes[name]) for name, part in parts.items()}
    return dataclasses.replace(config, **new)


def to_text(config: Config) -> str:
    """JSON with one value per line."""
    data = {
        "schema": SCHEMA,
        "reverie": RELEASE,
        "id": config.id,
        "files": dict(config.files),
        "algorithm": config.algorithm,
        "run": dataclasses.asdict(config.run),
        "agent": dataclasses.asdict(config.agent),
    }
    return json.dumps(data, indent=2) + "\n"


def from_text(text: str, name: str = "the config") -> Config:
    """Inverse of `to_text`: missing values take their defaults, unknown ones are errors.

    Raises:
      ConfigError: this is no config, or not one that this version can have written; says why.
      OtherVersion: it has another format; calls it `name`.
    """
    try:
        data = parsed(text)
    except ValueError as error:
        raise ConfigError(f"it is not JSON: {error}") from None
    if not isinstance(data, dict):
        raise ConfigError(f"it holds {short(data)}, expected an object with {', '.join(_PARTS)}")
    if isinstance(data.get("schema"), int) and data["schema"] != SCHEMA:
        raise OtherVersion(name, data.get("schema"), SCHEMA, data.get("reverie"))
    kinds = _PARTS | {name: kind for name, kind in _LATER.items() if name in data}
    for name, kind in kinds.items():
        if not isinstance(data.get(name), kind):
            raise ConfigError(f"{name} is {short(data.get(name))}, expected {WORDS[kind]}")
    files = data.get("files", {})
    if not all(_is_place(key, path) for key, path in files.items()):
        raise ConfigError(f"files is {short(files)}, expected absolute paths by {', '.join(ON_DISK)}")
    if more := data.keys() - kinds.keys():
        raise ConfigError(f"it has {short(min(more))}, expected nothing but {', '.join(_PARTS)}")
    try:
        algorithm, agent = upgrade(data["algorithm"], data["agent"])
        values = data["run"] | agent
        for key, value in values.items():
            if isinstance(value, str) and not _is_printable(value):
                raise ConfigError(f"{short(key)} is {short(value)}, expected a text without control characters")
        config = override(default(algorithm), **values)
    except (TypeError, ValueError) as error:
        raise ConfigError(str(error)) from error
    return dataclasses.replace(config, id=data.get("id", ""), files=files)


# What a saved config holds.
_PARTS = {"schema": int, "algorithm": str, "run": dict, "agent": dict}
_LATER = {"reverie": str, "id": str, "files": dict}  # which old ones lack


def _is_printable(text: str) -> bool:
    """Whether a text has no control characters, which do harm in a terminal and in the file system."""
    return not any(unicodedata.category(x) in ("Cc", "Cs") for x in text)


def _is_place(key: str, path: Any) -> bool:
    if key not in ON_DISK or not isinstance(path, str) or not os.path.isabs(path) or not _is_printable(path):
        return False
    return path.endswith(".py") or key not in CODE


class InFile(NamedTuple):
    """Code that is named by the file it is in: `path/to/file.py:Env`, or `device:path/to/file.py:Env`."""

    prefix: str
    path: str
    name: str

    def at(self, path: str) -> str:
        """The same of another file."""
        return f"{self.prefix}{path}:{self.name}"


def in_file(code: str) -> InFile | None:
    """The file and name of a value that is code in a file; None if it is not."""
    prefix = "device:" if code.startswith("device:") else ""
    path, _, name = code.removeprefix(prefix).rpartition(":")
    return InFile(prefix, path, name) if path.endswith(".py") else None


def places(run: RunConfig) -> dict[str, str]:
    """Absolute paths of the files and folders that values of a run name: `Config.files`."""
    code = {key: in_file(getattr(run, key)) for key in CODE}
    paths = {key: named.path for key, named in code.items() if named}
    if run.offline and not run.offline.startswith("minari:"):
        paths["offline"] = run.offline
    return {key: os.path.abspath(path) for key, path in paths.items()}


def here(config: Config) -> Config:
    """`config` with its files and folders named so that they are found from the current directory: as they were typed,
    or by the absolute path where the run last had them. A warning says so."""
    moved: dict[str, Any] = {}
    for key, place in config.files.items():
        value = getattr(config.run, key)
        code = in_file(value) if key in CODE else None
        path = code.path if code else value
        if path and place != os.path.abspath(path) and not os.path.exists(path):
            there = "" if os.path.exists(place) else ", and is not there any more"
            logger.warning("%s is not in %s; the run had it from %s%s", path, os.getcwd(), place, there)
            moved[key] = code.at(place) if code else place
    return override(config, **moved)


def typed_names(config: Config, before: Config | None) -> Config:
    """Inverse of `here`: files of a run are called as in what was saved `before`, whatever was typed to go on."""
    return override(config, **{key: getattr(before.run, key) for key in ON_DISK}) if before else config


def same_file(a: str, b: str) -> bool:
    """Whether two values name the same code, or the same file, seen from the current directory."""
    first, second = in_file(a), in_file(b)
    if not first or not second:
        return a == b or (os.path.exists(a) and os.path.realpath(a) == os.path.realpath(b))
    return first.at(os.path.realpath(first.path)) == second.at(os.path.realpath(second.path))


def saved(directory: Path) -> Config | None:
    """The config of the run in a directory; None if there is none.

    Raises:
      ConfigError: it is no config, as `from_text`; names the file.
      OtherVersion: another version with another format wrote it.
      files.DiskError: it cannot be read, or is no plain file.
    """
    file = directory / "config.json"
    try:
        text = Folder(directory).read(file.name, LARGEST + 1)
    except Missing:
        return None
    if len(text) > LARGEST:
        raise ConfigError(f"{file} is no config of a run: it has more than {LARGEST:,} bytes")
    try:
        return from_text(text.decode(), str(file))
    except UnicodeDecodeError:
        raise ConfigError(f"{file} is no config of a run: it is not UTF-8") from None
    except ConfigError as error:
        raise ConfigError(f"{file} is no config of a run: {error}") from error


def begun(directory: Path) -> Config | None:
    """`saved`, to go on with from the current directory: see `here`."""
    found = saved(directory)
    return here(found) if found else None


def of_run(directory: Path) -> Config:
    """`saved`; raises ConfigError too where no run is."""
    if found := saved(directory):
        return found
    raise ConfigError(f"no run in {directory}: it has no config.json")


def contradictions(saved: Config, given: Config) -> list[tuple[str, Any, Any]]:
    """(name, saved, given) of every value that differs and may not, of one algorithm; `auto` contradicts nothing."""
    free = _free(saved.run)
    before, after = saved.values(), given.values()
    if hasattr(saved.agent, "chosen") and saved.agent.chosen() == given.agent.chosen():
        after["choices"] = before["choices"]
    return [
        (name, before[name], after[name])
        for name in before
        if before[name] != after[name] and name not in free and after[name] != "auto"
    ]


def continuation(saved: Config, given: Config) -> Config:
    """The config that a run continues with: its own values, and those of `given` that may change."""
    values = given.values()
    if values.get("observe") == "auto":
        values.pop("observe")  # what was measured as the run began is not measured again
    return override(saved, **{name: values[name] for name in _free(saved.run) & values.keys()})


def _free(run: RunConfig) -> frozenset[str]:
    """Names of values that a run may be continued with: of what it counts, only what comes last can still grow."""
    if run.schedule == "model-then-policy":
        return MAY_CHANGE | {"policy_updates"}
    return MAY_CHANGE | ({"model_updates"} if run.offline else {"steps"})
