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
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args, get_type_hints

from reverie import algos
from reverie.fields import fits, told

SCHEMA = 1
MAY_CHANGE = frozenset(
    {
        "stop_return",
        "log_every",
        "report_every",
        "video_every",
        "keep",
        "workers",
        "deadline",
        "worker_memory",
        "devices",
        "debug",
    }
)


class ConfigError(ValueError):
    """A run as asked for cannot be; the message says what to type instead."""


@dataclass(frozen=True, kw_only=True)
class Environment:
    """What the agent lives in, and how it is stepped."""

    env: str = ""
    """A Gymnasium id (CartPole-v1), an id of a family (pgx:connect_four; see `reverie list`), module:EnvClass,
    module:make_fn, or path/to/file.py:MyEnv."""
    env_kwargs: str = "{}"
    """Keyword arguments of the env, as a JSON object."""
    action_repeat: int = 1
    """How often every action is taken; the rewards are summed."""
    time_limit: int = 0
    """Env steps (before action repeat) after which an episode is truncated. 0: its own limit."""
    image_size: int = 0
    """Images are resized to this height and width. 0 leaves them as they are."""
    gray: bool = False
    """Turn colour images into gray ones."""
    targets: Literal["none", "proprio"] = "none"
    """What a world model is to predict besides what it sees. proprio: positions and velocities of the joints, poses and
    velocities of the end effectors, of an env that has a body (MuJoCo, dm_control)."""
    envs: int = 4
    """Environments stepped together."""
    groups: int = 1
    """Stepped alternately in this many groups, so that the device never waits for all of them."""
    workers: Literal["auto", "inline", "process"] = "auto"
    """In this process, in one supervised process each, or what is measured to be cheaper."""
    scan: int = 16
    """Steps that envs on the device (pgx:, gymnax:, device:) take together in one compiled call. Host envs: unused."""
    deadline: float = 60.0
    """Seconds that a reset or a step may take before the env is killed and rebuilt."""
    worker_memory: float = 0.0
    """Gigabytes (10^9 bytes) that the process of an env may take. If it has more after a step, that env is rebuilt and
    its episode cut, as when it fails. 0: no limit."""


@dataclass(frozen=True, kw_only=True)
class Training:
    """How much is learned, and from what."""

    steps: int = 100_000
    """Env steps of the whole run, over all envs."""
    stop_return: float | None = None
    """End the run early, once a greedy evaluation reaches this mean return. None: never."""
    seed: int = 0
    """Of everything random: parameters, actions, replay and envs."""
    replay_ratio: float = 32.0
    """Replayed steps trained on per env step: updates = steps * ratio / (batch * length). In the MuZero family, roots
    per env step: updates = steps * ratio / batch."""
    batch: int = 16
    """Sequences in a batch."""
    length: int = 64
    """Trained rows of a sequence. The MuZero family derives its own from --unroll and --n-step."""
    warmup: int = 1024
    """Env steps with random actions before the first update."""
    max_nonfinite: int = 20
    """Updates in a row with a NaN or infinite loss that end the run. Each of them is skipped."""
    schedule: Literal["together", "model-then-policy"] = "together"
    """together: envs, model and policy in turns. model-then-policy: first --steps with random actions, then
    --model-updates of the model alone, then --policy-updates of the policy in the model's imagination, with no env
    step; --replay-ratio and --warmup do not count. Dreamers only."""
    model_updates: int = 10_000
    """With --schedule model-then-policy: updates of the model. With --offline alone: updates of everything."""
    policy_updates: int = 10_000
    """With --schedule model-then-policy: updates of actor and critic."""
    collector: str = ""
    """With --schedule model-then-policy: who collects, instead of random actions. module:function or
    path/to/file.py:function, of one observation (key -> array) and a numpy random generator; it returns an action, a
    vector in [-1, 1] or a class number, or a dict of these."""
    offline: str = ""
    """The directory of a finished run in the same env. Its replay is learned from and no env step taken, whatever
    --steps says. A Dreamer learns from the run of any algorithm, the MuZero family from one that searched too."""


@dataclass(frozen=True, kw_only=True)
class Memory:
    """What replay holds."""

    replay_size: int = 1_000_000
    """Env steps that replay holds at most."""
    replay_gb: float = 4.0
    """Gigabytes (10^9 bytes) that replay holds at most; the smaller of the two bounds counts."""
    online: bool = True
    """Train on every new sequence once as soon as it is complete, before uniform draws. With priorities, the new ones
    are drawn first as it is, and nothing is served outside the draw."""
    within_episodes: bool = False
    """Draw only sequences that lie inside one episode."""
    priority_alpha: float = 1.0
    """Sequences are drawn in proportion to this power of their priority, where the algorithm has priorities. 0:
    uniformly."""
    priority_beta: float = 1.0
    """Power of the importance weights that make up for it. 0: none."""


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """When the run is measured and saved; all in env steps, 0 for never. With --schedule model-then-policy an update
    counts like one more env step."""

    log_every: int = 1000
    """Metrics are averaged over this many steps."""
    eval_every: int = 10_000
    """Greedy evaluation."""
    eval_episodes: int = 10
    """Episodes of an evaluation. The run also ends with one. 0 for none at all."""
    eval_envs: int = 4
    """Environments stepped together in an evaluation."""
    opponent: str = "random"
    """Of evaluations, in games of two: random, perfect (small games), or mcts:N with N rollouts a move."""
    report_every: int = 10_000
    """Open-loop error of the model on replayed sequences."""
    video_every: int = 50_000
    """Dreams to look at, videos or plots, in the run's videos/ and TensorBoard; also made at the end."""
    checkpoint_every: int = 10_000
    """Everything is saved, so that the same command goes on from here; also done at the end."""
    keep: int = 2
    """Checkpoints kept."""


@dataclass(frozen=True, kw_only=True)
class Machine:
    """What the run computes on."""

    device: Literal["auto", "cpu", "gpu"] = "auto"
    """auto: the GPU if JAX sees one."""
    devices: int = 1
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
        for name in ("action_repeat", "envs", "groups", "scan", "steps", "batch", "eval_envs"):
            self._at_least(name, 1)
        self._at_least("length", 2)
        self._at_least("keep", 2)
        self._at_least("max_nonfinite", 1)
        for name in ("time_limit", "image_size", "warmup", "seed", "replay_ratio", "worker_memory"):
            self._at_least(name, 0)
        for name in ("priority_alpha", "priority_beta"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"{flag(name)} must be 0 to 1, got {getattr(self, name)}")
        for name in ("log", "eval", "report", "video", "checkpoint"):
            self._at_least(f"{name}_every", 0)
        self._at_least("eval_episodes", 0)
        for name in ("deadline", "replay_gb", "replay_size"):
            if not 0 < getattr(self, name) < math.inf:
                raise ConfigError(f"{flag(name)} must be positive, got {getattr(self, name)}")
        if self.envs % self.groups:
            raise ConfigError(f"--groups {self.groups} must divide --envs {self.envs}, so that all are equal")
        for name in ("model_updates", "policy_updates"):
            self._at_least(name, 0)
        if self.collector and self.schedule == "together":
            raise ConfigError(f"--collector {self.collector} needs --schedule model-then-policy")
        if self.collector and self.offline:
            raise ConfigError(
                "--collector takes env steps and --offline none: leave one of them out; where a preset brought the "
                "collector, type --collector ''"
            )
        self._at_least("devices", 0)
        if self.devices and self.batch % self.devices:
            fewer, more = math.gcd(self.devices, self.batch), self.batch + -self.batch % self.devices
            raise ConfigError(
                f"--devices {self.devices} must divide --batch {self.batch}, so that all have equal shares: try "
                f"--devices {fewer}, or --batch {more}"
            )
        if self.devices > 1 and self.debug:
            raise ConfigError(f"--debug computes on one device: type --devices 1 instead of --devices {self.devices}")
        try:
            kwargs = json.loads(self.env_kwargs)
        except json.JSONDecodeError as error:
            kwargs = error
        if not isinstance(kwargs, dict):
            raise ConfigError(f"--env-kwargs must be a JSON object such as '{{\"size\": 5}}', got {self.env_kwargs!r}")

    def _at_least(self, name: str, least: int) -> None:
        value = getattr(self, name)
        if not least <= value < math.inf:
            raise ConfigError(f"{flag(name)} must be {least} or more, got {value}")


@dataclass(frozen=True)
class Config:
    """A whole run: the algorithm's name, the run's values, the algorithm's own values."""

    algorithm: str
    run: RunConfig
    agent: Any

    def values(self) -> dict[str, Any]:
        """All fields in one flat dict; the names of run and algorithm never collide."""
        return dataclasses.asdict(self.run) | dataclasses.asdict(self.agent)


def flag(name: str) -> str:
    """`replay_ratio` as it is typed: `--replay-ratio`."""
    return "--" + name.replace("_", "-")


def default(algorithm: str, preset: str | None = None) -> Config:
    """The defaults of an algorithm, with a preset applied; raises ConfigError for unknown names."""
    module = algos.load(algorithm)
    config = override(Config(algorithm, RunConfig(), module.Config()), **module.DEFAULTS)
    return apply_preset(config, preset) if preset else config


PLAIN = "none"  # as a preset: the algorithm's defaults, even where it has a preset for the env


def suited(algorithm: str, env: str) -> str:
    """The preset that a new run in this env has unless another is asked for; empty if there is none."""
    found: str = algos.load(algorithm).SUITED.get(env, "")
    return found


def apply_preset(config: Config, name: str) -> Config:
    """`config` with the values of a preset of its algorithm: `variant`, `variant/benchmark` or a plain name."""
    presets = algos.load(config.algorithm).PRESETS
    if name == PLAIN:
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
    file = Path(name) / "config.json"
    if file.is_file():
        return from_text(file.read_text())
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


def override(config: Config, **values: Any) -> Config:
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
            raise ConfigError(f"no value is called {key!r}{_nearest(key, known)}")
        changes[home][key] = _checked(key, value, hints[home][key])
    new = {name: dataclasses.replace(part, **changes[name]) for name, part in parts.items()}
    return dataclasses.replace(config, **new)


def to_text(config: Config) -> str:
    """JSON with one value per line."""
    data = {
        "schema": SCHEMA,
        "algorithm": config.algorithm,
        "run": dataclasses.asdict(config.run),
        "agent": dataclasses.asdict(config.agent),
    }
    return json.dumps(data, indent=2) + "\n"


def from_text(text: str) -> Config:
    """Inverse of `to_text`: missing values take their defaults, unknown ones are errors."""
    data = json.loads(text)
    if data.get("schema") != SCHEMA:
        raise ConfigError(
            f"config has schema {data.get('schema')!r}, expected {SCHEMA}: it was written by another version of reverie"
        )
    return override(default(data["algorithm"]), **data["run"], **data["agent"])


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


def _checked(key: str, value: Any, hint: Any) -> Any:
    """`value` as the field's type, or TypeError: an int may be a float, a bool no number."""
    if not fits(value, hint):
        raise TypeError(f"{key} is {value!r} ({type(value).__name__}), expected {told(hint)}")
    return float(value) if float in (hint, *get_args(hint)) and value is not None else value
