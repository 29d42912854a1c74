"""The flags of every verb, and how they are read."""

from __future__ import annotations

import dataclasses
import itertools
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

from reverie import algos, config, earlier, fields, help
from reverie.config import Config, ConfigError, RunConfig
from reverie.fields import INT64, TINY, Count, Number, Place, Seed, Within
from reverie.help import Group

T = TypeVar("T")

VerbResult = tuple[dict[str, Any], int]  # by a verb: what `--json` prints, and the exit code

TRAIN = """\
Trains an agent in an env, and continues the run in --run if there is one: killed at any moment, the same command goes \
on, and ends as if nothing had happened. Any flag that is left out has the value of --preset, or of the algorithm's own.
"""


@dataclass(frozen=True, kw_only=True)
class Answer:
    """The flags of every verb."""

    json: bool = False
    """Print one JSON object as the last line of stdout; everything else goes to stderr."""


@dataclass(frozen=True, kw_only=True)
class OfRun(Answer):
    """The flags of a verb that looks at a run."""

    run: Place
    """The run's directory."""
    env: str = ""
    """The env of the run again. Needed only if it is code of your own: a run's directory runs none by itself."""
    trust: bool = False
    """Run the env that the run names, whatever it is."""


@dataclass(frozen=True, kw_only=True)
class Session(Answer):
    """Where the run lies and what to do with it."""

    run: str = ""
    """The run's directory; a run that is there is continued. Empty: a new one under runs/."""
    preset: str = ""
    """A named set of values (see `reverie list`), or a file of your own, mine.toml; explicit flags override it."""
    trust: bool = False
    """Run also such code as only the saved config of this run names: its env and its collector. Without it, what is
    neither Reverie's nor registered with Gymnasium has to be typed again."""
    dry_run: bool = False
    """Print what the run would be and cost, and do nothing."""


@dataclass(frozen=True, kw_only=True)
class Eval(OfRun):
    """Plays episodes with the newest checkpoint of a run, greedily unless --eval-mode says otherwise."""

    episodes: Count = 20
    """How many."""
    video: str = ""
    """A file for a video of the first episodes: .mp4, .gif or .webp."""
    seed: Annotated[int | None, Within(0, INT64)] = None
    """Seed of the episodes. None: that of the run's own evaluations."""
    opponent: str = ""
    """In games of two: random, perfect (small games), or mcts:N with N rollouts a move; half of the games are played
    from each seat. Empty: that of the run's own evaluations."""
    planner: Literal["none", "gumbel", "puct", "mppi"] | None = None
    """How a Dreamer plans in its dreams before every action: gumbel and puct where that is one discrete choice, mppi
    where all are continuous. None: as the run was trained."""
    simulations: Annotated[int | None, Within(1, 2**16)] = None
    """Imagined steps of each search, or sequences of mppi. None: those of the run."""
    planner_scale: Annotated[float | None, Within(TINY)] = None
    """The planner gumbel: how much values outweigh the actor. None: that of the run."""
    eval_mode: Literal["greedy", "sample"] | None = None
    """The most probable actions, or such as are drawn from the policy (of the search, where one searches). None: those
    of the run's own evaluations."""


@dataclass(frozen=True, kw_only=True)
class Dream(OfRun):
    """Shows what the model of a run imagines beside what really happened: it sees a few rows, then only the actions."""

    out: str = ""
    """A video of an image (.mp4, .gif, .webp) or a plot of everything else (.png). Empty: the image if there is one,
    in the run's videos/."""
    key: str = ""
    """Only this observation, or `reward`. Empty: the first image in a video, all the others in a plot."""
    seen: Count = 5
    """Rows that the model sees."""
    dreamt: Count = 45
    """Rows that it then imagines."""
    sequences: Count = 16
    """Dreams that the errors are means of; the four longest are shown."""
    policy: bool = False
    """The policy drives: after the rows seen it acts in its own imagination, instead of what was really done. A video
    of an image, and no errors: nothing is known of what would have happened. Dreamers only."""
    fresh: bool = False
    """Dream of new greedy episodes, from their beginnings on, instead of sequences out of the run's replay."""
    seed: Seed = 0
    """Seed of the draw of sequences, or of the episodes."""


@dataclass(frozen=True, kw_only=True)
class Think(OfRun):
    """Draws the search behind one decision of a run that searches, the MuZero family or a Dreamer with a planner: what
    was tried how often, what it was worth, and what that did to the policy. Continuous actions are drawn anew at every
    node: below the root, #3 is number 3 of a node's own. What chance does is called c3."""

    step: Number = 0
    """Step of a greedy episode, 0 is its beginning. In games of two, the agent moves for both."""
    seed: Seed = 0
    """Seed of the episode."""
    out: str = ""
    """A picture: .png or .svg. Empty: think-<step>.png in the run's videos/."""
    depth: Count = 3
    """Steps from the root that the picture shows."""
    planner: Literal["none", "gumbel", "puct"] | None = None
    """Dreamers whose actions are one discrete choice: search in the dreams before every action. None: as the run
    was trained."""
    simulations: Annotated[int | None, Within(1, 2**16)] = None
    """Simulations of this search. None: those of the run. The steps before are decided with those of the run."""


@dataclass(frozen=True, kw_only=True)
class List(Answer):
    """The lists to print: algorithms with their sizes and the names of their presets, and families of envs."""

    preset: Place = ""
    """Only this preset, or file of your own, with all of its values."""


@dataclass(frozen=True, kw_only=True)
class Diff(Answer):
    """Prints the values in which two presets, or two runs, differ."""

    a: Place
    """A preset, a file of your own, a run's directory, or an algorithm for its defaults."""
    b: Place
    """The other preset, algorithm or run."""


@dataclass(frozen=True, kw_only=True)
class CheckEnv(Answer):
    """Looks for everything that can be wrong with an env, before training, and asks every algorithm whether it could
    use what the env shows and takes."""

    env: Place
    """A Gymnasium id, module:EnvClass, module:make_fn, or path/to/file.py:EnvClass."""
    algorithm: str = ""
    """Ask this algorithm alone. Empty: all of them."""
    env_kwargs: str = "{}"
    """Keyword arguments of the env, as a JSON object."""
    action_repeat: Count = 1
    """How often every action is taken; the rewards are summed."""
    time_limit: Number = 0
    """Env steps after which an episode is truncated. 0: its own limit."""
    image_size: Annotated[int | tuple[int, int], Within(0, 8192)] = 0
    """Images are resized to squares with sides of this length, or to this height and width. 0: left as they are."""
    gray: bool = False
    """Turn colour images into gray ones."""
    obs_keys: str = ""
    """Which observations of a Dict are seen: names or patterns, separated by commas; !name leaves one out."""
    deadline: Annotated[float, Within(TINY, 1e9)] = 60.0
    """Seconds that a reset or a step may take."""


@dataclass(frozen=True, kw_only=True)
class Import(Answer):
    """Makes replay of recorded episodes, every step of them checked as an env's are; `reverie train ALGORITHM --offline
    RUN` learns from it. A folder of .npz files, one episode each, with obs [T + 1, ...], action, reward, terminated and
    truncated [T, ...] in the env's own words (obs/KEY and action/KEY of a Dict), or a data set of Minari, minari:ID."""

    source: Place
    """The folder, or minari:ID."""
    run: str
    """The directory that is made."""
    env: str
    """The env that the episodes are of, as in `reverie train`."""
    env_kwargs: str = "{}"
    """Keyword arguments of the env, as a JSON object."""
    envs: Count = 4
    """Streams of the replay: the run that learns from it has as many --envs."""


def parse_train(argv: list[str], chosen: Mapping[str, Any] | None = None) -> tuple[Config, Session, Path | None]:
    """The config that a `train` command means, saved values and preset included.

    Args:
      chosen: values that count less than what is typed.

    Raises:
      ValueError: a name, value or combination that cannot be.
      SystemExit: help was asked for.
    """
    if not argv or argv[0].startswith("-"):
        if not argv or argv[0] not in help.MARKS:
            names = ", ".join(algos.ALGORITHMS)
            raise ConfigError(f"which algorithm? Type `reverie train ALGORITHM`, one of {names}")
        everything = argv[0] == "--help-all"
        about = f"{TRAIN}\n\nAlgorithms; each has flags of its own, `reverie train NAME --help`:\n\n{help.algorithms()}"
        print(help.page(_groups(RunConfig()), "reverie train ALGORITHM --env ENV [flags]", about, everything))
        raise SystemExit(0)
    algorithm, *flags = argv
    algos.module(algorithm)  # a typo is an error before anything else
    path = Path(peek(flags, "--run")) if peek(flags, "--run") else None
    session = Session()

    def typed(base: Config) -> Config:
        nonlocal session
        given = _values(
            [*_groups(base.run), Group(algorithm, "", type(base.agent), base.agent)], flags, f"train {algorithm}"
        )
        session = Session(**{name: given.pop(name) for name in fields.kinds(Session) if name in given})
        try:
            return config.override(base, **given)
        except ValueError as error:  # of an algorithm's own checks
            raise ConfigError(str(error)) from error

    from reverie.resolve import resolve

    conf, preset = resolve(
        algorithm,
        typed,
        saved=config.begun(path) if path else None,
        preset=peek(flags, "--preset"),
        env=peek(flags, "--env"),
        chosen=chosen,
        trust={name for name in config.CODE if peek(flags, f"--{name}") or "--trust" in flags},
    )
    return conf, dataclasses.replace(session, preset=preset), path


def _groups(run: RunConfig) -> list[Group]:
    """The flags of `train` that every algorithm has, with the values of `run` as defaults."""
    parts = [(Session, Session()), *((base, run) for base in RunConfig.__bases__)]
    return [Group(kind.__name__.lower(), kind.__doc__ or "", kind, defaults) for kind, defaults in parts]


def parse(flags: type[T], argv: list[str], verb: str) -> T:
    """The flags of a verb, every number of them within its range.

    Raises:
      ConfigError: one is not, or a flag is unknown, malformed or missing; or there is no such run.
      SystemExit: help was asked for.
    """
    parsed = flags(**_values([Group("", flags.__doc__ or "", flags, flags)], argv, verb))
    fields.check(parsed)
    if isinstance(parsed, OfRun):
        config.of_run(Path(parsed.run))  # a typo is an error before JAX is imported
    return parsed


def _values(groups: Sequence[Group], argv: list[str], verb: str) -> dict[str, Any]:
    """Name -> value of the flags that a command gives; raises as `parse`."""
    algorithm = verb.removeprefix("train ")
    places = [name.upper() for group in groups for name, kind in fields.kinds(group.kind).items() if kind == Place]
    usage = " ".join(["reverie", verb, *(["--env ENV"] if algorithm != verb else places), "[flags]"])
    if help_marks := [x for x in argv if x in help.MARKS]:
        about = f"{help.summary(algorithm)}\n\n{TRAIN}" if algorithm != verb else groups[0].about
        print(help.page(groups, usage, about, "--help-all" in help_marks))
        raise SystemExit(0)
    try:
        return _read(groups, argv, algorithm)
    except ConfigError as error:
        raise ConfigError(f"{error}\nIt is `{usage}`, and `reverie {verb} --help-all` has the flags") from None


def _read(groups: Sequence[Group], argv: list[str], algorithm: str) -> dict[str, Any]:
    """`_values`, without the usage beside a complaint."""
    types = {name: kind for group in groups for name, kind in fields.kinds(group.kind).items()}
    places = deque(name for name, kind in types.items() if kind == Place)
    known = {fields.flag(name): name for name in types if name not in places}
    given, left = dict[str, Any](), deque(argv)
    while left:
        typed = left.popleft()
        name, equals, value = typed.partition("=")
        name = name.replace("_", "-")
        on = name.replace("--no-", "--", 1)
        if not name.startswith("--"):
            if typed.startswith("-") or not places:
                raise ConfigError(f"{typed!r} belongs to no flag")
            given[places.popleft()] = typed
        elif on in known and types[known[on]] is bool:
            if equals:
                raise ConfigError(f"{name} takes no value, got {fields.short(value)}")
            given[known[on]] = on == name
        elif name in known:
            kind, values = types[known[name]], [value] if equals else []
            most = 2 if any(get_origin(x) is tuple for x in get_args(kind)) else 1
            while left and len(values) < most and not left[0].startswith("--") and (not values or left[0].isdecimal()):
                values.append(left.popleft())
            given[known[name]] = _value(name, values, kind)
        else:
            following = value if equals else left[0] if left and not left[0].startswith("--") else ""
            text = following if on == name else "false"
            if gone := algorithm in algos.ALGORITHMS and earlier.instead(algorithm, on[2:].replace("-", "_"), text):
                raise ConfigError(f"there is no {name} any more: {gone}")
            raise ConfigError(f"there is no {name}: {fields.did_you_mean(name, known)}".rstrip(": "))
    without = [x for x in types if x not in given and not any(hasattr(group.defaults, x) for group in groups)]
    if missing := [x.upper() if x in places else fields.flag(x) for x in without]:
        raise ConfigError(f"{' and '.join(missing)} {'is' if len(missing) == 1 else 'are'} missing")
    return given


def _value(name: str, texts: list[str], kind: Any) -> Any:
    """The texts behind a flag as a value of its type; raises ConfigError if they are none."""
    options = get_args(kind) if get_origin(kind) in (UnionType, Union) else (kind,)
    expected = f"expected {' or '.join(fields.wording(x) for x in options if x is not type(None))}"
    if not texts:
        raise ConfigError(f"{name} has no value, {expected}")
    if texts == ["None"] and type(None) in options:
        return None
    for read in (texts, [_number(text) for text in texts]):
        value: Any = read[0] if len(read) == 1 else tuple(read)
        if fields.fits(value, kind):
            return float(value) if float in options else value
    raise ConfigError(f"{name} is {fields.short(' '.join(texts))}, {expected}")


def _number(text: str) -> Any:
    """A number, where the text is one; integers may be typed as 1e6."""
    for read in (fields.whole, float):
        with suppress(ValueError):
            return read(text)
    return text


def peek(argv: list[str], name: str) -> str:
    """The value of a flag that decides what the other flags mean; the last one counts."""
    value = ""
    for typed, following in itertools.pairwise([*argv, ""]):
        if typed == name:
            value = "" if following.startswith("--") else following
        elif typed.startswith(f"{name}="):
            value = typed.partition("=")[2]
    return value
