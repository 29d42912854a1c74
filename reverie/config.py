"""The configuration of a run: frozen, typed, strict, and saved with the run as text.

A value comes from, in rising order: the default in the dataclass, a preset, an explicit flag. A run
that continues takes its own saved values as defaults; a flag that contradicts them is an error,
except for the fields in `MAY_CHANGE`, which cannot change what a step computes (`devices`: but for rounding).

The bases of `RunConfig` are the groups of flags in `--help`.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import logging
import math
import os
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, get_type_hints

from reverie import algos
from reverie.fields import (
    INT32,
    TINY,
    ConfigError,
    Count,
    Number,
    Seed,
    Share,
    Steps,
    Weight,
    Within,
    check,
    flag,  # noqa: F401 (a value as it is typed: `config.flag`)
    parsed,
    plain_size,
    short,
    taken,
)
from reverie.files import Folder, Missing
from reverie.saved import RELEASE, OtherVersion

logger = logging.getLogger("reverie")

SCHEMA = 1
CODE = ("env", "collector")  # the values of a run that may name code
LARGEST = 1 << 20  # bytes of a config file; one has about 4,000
MAY_CHANGE = frozenset(
    {
        "stop_return",
        "eval_mode",
        "log_every",
        "report_every",
        "video_every",
        "keep",
        "logger",
        "workers",
        "deadline",
        "worker_memory",
        "devices",
        "debug",
    }
)


@dataclass(frozen=True, kw_only=True)
class Environment:
    """What the agent lives in, and how it is stepped."""

    env: str = ""
    """A Gymnasium id (CartPole-v1), an id of a family (pgx:connect_four; see `reverie list`), module:EnvClass,
    module:make_fn, or path/to/file.py:MyEnv."""
    env_kwargs: str = "{}"
    """Keyword arguments of the env, as a JSON object."""
    action_repeat: Count = 1
    """How often every action is taken; the rewards are summed."""
    time_limit: Number = 0
    """Env steps (before action repeat) after which an episode is truncated. 0: its own limit."""
    image_size: Annotated[int | tuple[int, int], Within(0, 8192)] = 0
    """Images are resized in the env: to squares with sides of this length, or to this height and width. 0 leaves them
    as they are, and networks that do not take their size resize them on their way in."""
    gray: bool = False
    """Turn colour images into gray ones."""
    obs_keys: str = ""
    """Which observations of a Dict the agent sees: names or patterns (camera/*), separated by commas; !name leaves one
    out. What is left out may be text or a sequence. Empty: all."""
    targets: Literal["none", "proprio"] = "none"
    """What a world model is to predict besides what it sees. proprio: positions and velocities of the joints, poses and
    velocities of the end effectors, of an env that has a body (MuJoCo, dm_control)."""
    envs: Annotated[int, Within(1, 2**20)] = 4
    """Environments stepped together."""
    groups: Annotated[int, Within(1, 2**20)] = 1
    """Stepped alternately in this many groups, so that the device never waits for all of them. It changes
    the numbers: rows come, and random keys are drawn, in another order."""
    workers: Literal["auto", "inline", "process"] = "auto"
    """In this process, in one supervised process each, or what is measured to be cheaper."""
    scan: Annotated[int, Within(1, 2**20)] = 16
    """Steps that envs on the device (pgx:, gymnax:, device:) take together in one compiled call. Host envs: unused."""
    deadline: Annotated[float, Within(TINY, 1e9)] = 60.0
    """Seconds that a reset or a step may take before the env is killed and rebuilt."""
    worker_memory: Annotated[float, Within(0, 1e9)] = 0.0
    """Gigabytes (10^9 bytes) that the process of an env may take. If it has more after a step, that env is rebuilt and
    its episode cut, as when it fails. 0: no limit."""


@dataclass(frozen=True, kw_only=True)
class Training:
    """How much is learned, and from what."""

    steps: Annotated[int, Within(1, 10**12 - 1)] = 100_000
    """Env steps of the whole run, over all envs."""
    stop_return: Annotated[float | None, Within()] = None
    """End the run early, once an evaluation reaches this mean return. None: never."""
    seed: Seed = 0
    """Of everything random: parameters, actions, replay and envs."""
    replay_ratio: Weight = 32.0
    """Replayed steps trained on per env step: updates = steps * ratio / (batch * length). In the MuZero family, roots
    per env step: updates = steps * ratio / batch."""
    batch: Annotated[int, Within(1, 2**20)] = 16
    """Sequences in a batch."""
    length: Annotated[int, Within(2, 2**20)] = 64
    """Trained rows of a sequence. The MuZero family derives its own from --unroll and --n-step."""
    warmup: Steps = 1024
    """Env steps with random actions before the first update."""
    max_nonfinite: Count = 20
    """Updates in a row with a NaN or infinite loss that end the run. Each of them is skipped."""
    schedule: Literal["together", "model-then-policy"] = "together"
    """together: envs, model and policy in turns. model-then-policy: first --steps with random actions, then
    --model-updates of the model alone, then --policy-updates of the policy in the model's imagination, with no env
    step; --replay-ratio and --warmup do not count. Dreamers only."""
    model_updates: Number = 10_000
    """With --schedule model-then-policy: updates of the model. With --offline alone: updates of everything."""
    policy_updates: Number = 10_000
    """With --schedule model-then-policy: updates of actor and critic."""
    collector: str = ""
    """With --schedule model-then-policy: who collects, instead of random actions. module:function or
    path/to/file.py:function, of one observation (key -> array) and a numpy random generator; it returns an action, a
    vector in [-1, 1] or a class number, or a dict of these."""
    offline: str = ""
    """The directory of a finished run in the same env. Its replay is learned from and no env step taken, whatever
    --steps says. A Dreamer learns from the run of any algorithm, the MuZero family from one that searched too. Or a
    folder of .npz episodes, or minari:ID: a Dreamer learns from these as well (see `reverie import`)."""


@dataclass(frozen=True, kw_only=True)
class Memory:
    """What replay holds."""

    replay_size: Annotated[int, Within(1, 10**12)] = 1_000_000
    """Env steps that replay holds at most."""
    replay_gb: Annotated[float, Within(TINY, 1e9)] = 4.0
    """Gigabytes (10^9 bytes) that replay holds at most; the smaller of the two bounds counts."""
    online: bool = True
    """Train on every new sequence once as soon as it is complete, before uniform draws. With priorities, the new ones
    are drawn first as it is, and nothing is served outside the draw."""
    within_episodes: bool = False
    """Draw only sequences that lie inside one episode."""
    priority_alpha: Share = 1.0
    """Sequences are drawn in proportion to this power of their priority, where the algorithm has priorities. 0:
    uniformly."""
    priority_beta: Share = 1.0
    """Power of the importance weights that make up for it. 0: none."""
    priority_anneal: Number = 0
    """Updates over which that power rises from --priority-beta to 1, evenly. 0: it stays."""


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """When the run is measured and saved; all in env steps, 0 for never. With --schedule model-then-policy an update
    counts like one more env step."""

    log_every: Steps = 1000
    """Metrics are averaged over this many steps."""
    eval_every: Steps = 10_000
    """Evaluation, see --eval-mode."""
    eval_episodes: Annotated[int, Within(0, 10**6)] = 10
    """Episodes of an evaluation. The run also ends with one. 0 for none at all."""
    eval_mode: Literal["greedy", "sample"] = "greedy"
    """Of evaluations: the most probable action, or one drawn from the policy (of the search, where one searches), as
    the reference of DreamerV3 does; without the noise that training adds to explore."""
    eval_envs: Annotated[int, Within(1, 2**20)] = 4
    """Environments stepped together in an evaluation."""
    opponent: str = "random"
    """Of evaluations, in games of two: random, perfect (small games), or mcts:N with N rollouts a move."""
    report_every: Steps = 10_000
    """Open-loop error of the model on replayed sequences."""
    video_every: Steps = 50_000
    """Dreams to look at, videos or plots, in the run's videos/ and TensorBoard; also made at the end."""
    checkpoint_every: Steps = 10_000
    """Everything is saved, so that the same command goes on from here; also done at the end."""
    keep: Annotated[int, Within(2, INT32)] = 2
    """Checkpoints kept."""
    logger: Literal["none", "wandb", "trackio"] = "none"
    """Where metrics go besides metrics.jsonl and TensorBoard. wandb and trackio are extras."""


@dataclass(frozen=True, kw_only=True)
class Machine:
    """What the run computes on."""

    device: Literal["auto", "cpu", "gpu"] = "auto"
    """auto: the GPU if JAX sees one."""
    devices: Annotated[int, Within(0, 2**16)] = 1
    """Devices of this kind that share every batch. 0: all that JAX sees. A run may continue on another number; sums
    are then rounded in another order."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Of matrix products: bfloat16 on a GPU, float32 on a CPU. Parameters are always float32."""
    debug: bool = False
    """Run without jit and with envs in this process, so that a breakpoint in a loss works. Slow."""


@dataclass(frozen=True, kw_only=True)
class RunConfig(Environment, Training, Memory, Schedule, Machine):
    """Everything about a run that is not the algorithm's own."""

    def __post_init__(self) -> None:
        check(self)
        if isinstance(self.image_size, tuple):
            object.__setattr__(self, "image_size", plain_size(self.image_size))
        if self.envs % self.groups:
            raise ConfigError(f"--groups {self.groups} must divide --envs {self.envs}, so that all are equal")
        if self.collector and self.schedule == "together":
            raise ConfigError(f"--collector {self.collector} needs --schedule model-then-policy")
        if self.collector and self.offline:
            raise ConfigError(
                "--collector takes env steps and --offline none: leave one of them out; where a preset brought the "
                "collector, type --collector ''"
            )
        if self.devices and self.batch % self.devices:
            fewer, more = math.gcd(self.devices, self.batch), self.batch + -self.batch % self.devices
            raise ConfigError(
                f"--devices {self.devices} must divide --batch {self.batch}, so that all have equal shares: try "
                f"--devices {fewer}, or --batch {more}"
            )
        if self.devices > 1 and self.debug:
            raise ConfigError(f"--debug computes on one device: type --devices 1 instead of --devices {self.devices}")
        try:
            kwargs = parsed(self.env_kwargs)
        except ValueError as error:
            kwargs = error
        if not isinstance(kwargs, dict):
            given = short(self.env_kwargs)
            raise ConfigError(f"--env-kwargs must be a JSON object such as '{{\"size\": 5}}', got {given}")


@dataclass(frozen=True)
class Config:
    """A whole run: the algorithm's name, the run's values, the algorithm's own values.

    Attributes:
      id: of the run that it was saved with, 32 hexadecimal digits; empty before it begins, and in old runs.
      files: where those of its values that name code in a file (`CODE`) found it: the value's name -> absolute path.
    """

    algorithm: str
    run: RunConfig
    agent: Any
    id: str = ""
    files: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def values(self) -> dict[str, Any]:
        """All fields in one flat dict; the names of run and algorithm never collide."""
        return dataclasses.asdict(self.run) | dataclasses.asdict(self.agent)


def default(algorithm: str, preset: str | None = None) -> Config:
    """The defaults of an algorithm, with a preset applied; raises ConfigError for unknown names."""
    module = algos.load(algorithm)
    config = override(Config(algorithm, RunConfig(), module.Config()), **module.DEFAULTS)
    return apply_preset(config, preset) if preset else config


PLAIN = "none"  # as a preset: none, even where there is one for the env; values are chosen for it (`defaults.py`)
PAPER = "paper"  # as a preset: the algorithm's own values, and nothing chosen


def suited(algorithm: str, env: str) -> str:
    """The preset that a new run in this env has unless another is asked for; empty if there is none."""
    found: str = algos.load(algorithm).SUITED.get(env, "")
    return found


def apply_preset(config: Config, name: str) -> Config:
    """`config` with the values of a preset of its algorithm: `variant`, `variant/benchmark` or a plain name."""
    presets = algos.load(config.algorithm).PRESETS
    if name in (PLAIN, PAPER):
        return config
    if name not in presets:
        known = f"Expected one of {', '.join(presets)}" if presets else "It has no presets"
        raise ConfigError(f"{config.algorithm} has no preset {name!r}{_nearest(name, presets) or '.'} {known}")
    return override(config, **presets[name])


def called(name: str) -> Config:
    """The config that a name means: a run's directory, an algorithm for its defaults, a preset of any algorithm, or
    `algorithm:preset` where several have one of that name (alone, it is the first one's).

    Raises:
      ConfigError: there is none of the three; names the nearest preset.
    """
    if (found := saved(Path(name))) is not None:
        return found
    if name in algos.ALGORITHMS:
        return default(name)
    presets: dict[str, tuple[str, str]] = {}
    for algorithm in algos.ALGORITHMS:
        for preset in algos.load(algorithm).PRESETS:
            presets.setdefault(preset, (algorithm, preset))
            presets[f"{algorithm}:{preset}"] = (algorithm, preset)
    if name not in presets:
        raise ConfigError(
            f"{name!r} is no preset, no algorithm and no run's directory{_nearest(name, presets) or '.'}"
            " `reverie list` prints all presets"
        )
    return default(*presets[name])


def differences(a: Config, b: Config) -> dict[str, tuple[Any, Any]]:
    """Name -> the two values, of everything that differs; None for a value that only the other algorithm has."""
    before, after = {"algorithm": a.algorithm} | a.values(), {"algorithm": b.algorithm} | b.values()
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
    for key, value in values.items():
        home = next((name for name in parts if key in hints[name]), None)
        if home is None:
            known = [k for h in hints.values() for k in h]
            raise ConfigError(f"no value is called {short(key)}{_nearest(key, known)}")
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
    for name, kind in _PARTS.items():
        if not isinstance(data.get(name), kind):
            expected = {int: "a whole number", str: "a text", dict: "an object"}[kind]
            raise ConfigError(f"{name} is {short(data.get(name))}, expected {expected}")
    for name in _ALSO:
        if not isinstance(data.get(name, ""), str):
            raise ConfigError(f"{name} is {short(data[name])}, expected a text")
    files = data.get("files", {})
    if not isinstance(files, dict) or not all(key in CODE and _is_place(path) for key, path in files.items()):
        raise ConfigError(f"files is {short(files)}, expected absolute paths by {' and '.join(CODE)}")
    if more := data.keys() - _PARTS.keys() - {*_ALSO, "files"}:
        raise ConfigError(f"it has {short(min(more))}, expected nothing but {', '.join(_PARTS)}")
    values = data["run"] | data["agent"]
    for key, value in values.items():
        if isinstance(value, str) and not _is_printable(value):
            raise ConfigError(f"{short(key)} is {short(value)}, expected a text without control characters")
    try:
        config = override(default(data["algorithm"]), **values)
    except (TypeError, ValueError) as error:
        raise ConfigError(str(error)) from error
    return dataclasses.replace(config, id=data.get("id", ""), files=files)


# What a saved config holds. Texts in it reach a terminal and the file system, where these characters do harm.
_PARTS = {"schema": int, "algorithm": str, "run": dict, "agent": dict}
_ALSO = ("reverie", "id")  # which old ones lack
_UNPRINTABLE = ("Cc", "Cs")


def _is_printable(text: str) -> bool:
    return not any(unicodedata.category(x) in _UNPRINTABLE for x in text)


def _is_place(path: Any) -> bool:
    return isinstance(path, str) and os.path.isabs(path) and path.endswith(".py") and _is_printable(path)


class InFile(NamedTuple):
    """Code that is named by the file it is in: `path/to/file.py:Env`, or `device:path/to/file.py:Env`."""

    prefix: str
    path: str
    name: str

    def at(self, path: str) -> str:
        """The same of another file."""
        return f"{self.prefix}{path}:{self.name}"


def in_file(code: str) -> InFile | None:
    """What a value names, if that is code in a file."""
    prefix = "device:" if code.startswith("device:") else ""
    path, _, name = code.removeprefix(prefix).rpartition(":")
    return InFile(prefix, path, name) if path.endswith(".py") else None


def places(run: RunConfig) -> dict[str, str]:
    """Where the files are, as seen from the current directory, in which values of a run name code: `Config.files`."""
    named = {key: in_file(getattr(run, key)) for key in CODE}
    return {key: os.path.abspath(code.path) for key, code in named.items() if code}


def here(config: Config) -> Config:
    """`config` with its code named so that it is found from the current directory: as it was typed, or by the absolute
    path where the run last had it. A warning says so."""
    moved: dict[str, Any] = {}
    for key, place in config.files.items():
        code = in_file(getattr(config.run, key))
        if code and place != os.path.abspath(code.path) and not os.path.isfile(code.path):
            there = "" if os.path.isfile(place) else ", and is not there any more"
            logger.warning("%s is not in %s; the run had it from %s%s", code.path, os.getcwd(), place, there)
            moved[key] = code.at(place)
    return dataclasses.replace(config, run=dataclasses.replace(config.run, **moved)) if moved else config


def as_typed(config: Config, before: Config | None) -> Config:
    """Inverse of `here`: the code of a run is called as in what was saved `before`, whatever was typed to go on."""
    names: dict[str, Any] = {key: getattr(before.run, key) for key in CODE} if before else {}
    return dataclasses.replace(config, run=dataclasses.replace(config.run, **names))


def same_code(a: str, b: str) -> bool:
    """Whether two values name the same code, seen from the current directory."""
    first, second = in_file(a), in_file(b)
    if not first or not second:
        return a == b
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


def contradictions(saved: Config, given: Config) -> list[tuple[str, Any, Any]]:
    """(name, saved, given) of every value that differs and may not; `auto` contradicts nothing."""
    free = _free(saved.run)
    before, after = {"algorithm": saved.algorithm}, {"algorithm": given.algorithm}
    if saved.algorithm == given.algorithm:
        before |= saved.values()
        after |= given.values()
    return [
        (name, before[name], after[name])
        for name in before
        if before[name] != after[name] and name not in free and after[name] != "auto"
    ]


def continued(saved: Config, given: Config) -> Config:
    """What a run continues with: its own values, and those of `given` that may change."""
    free = {name: getattr(given.run, name) for name in _free(saved.run)}
    return dataclasses.replace(saved, run=dataclasses.replace(saved.run, **free))


def _free(run: RunConfig) -> frozenset[str]:
    """Names of values that a run may be continued with: of what it counts, only what comes last can still grow."""
    if run.schedule == "model-then-policy":
        return MAY_CHANGE | {"policy_updates"}
    return MAY_CHANGE | ({"model_updates"} if run.offline else {"steps"})


def _nearest(name: str, known: Iterable[str]) -> str:
    """Names of values have underscores, those of presets dashes: neither is held against a typo."""
    plain = {k.replace("-", "_"): k for k in known}
    near = difflib.get_close_matches(name.replace("-", "_"), list(plain), n=1, cutoff=0.5)
    return f": did you mean {plain[near[0]]!r}?" if near else ""
