"""The flags of every verb, and how they are read."""

from __future__ import annotations

import dataclasses
import io
import itertools
from collections import deque
from collections.abc import Mapping
from contextlib import redirect_stderr, suppress
from dataclasses import dataclass, field, make_dataclass
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import tyro

from reverie import algos, config, earlier, help
from reverie.algos import choices
from reverie.config import Config, ConfigError, RunConfig
from reverie.fields import (
    INT64,
    TINY,
    Count,
    Number,
    Seed,
    Within,
    check,
    did_you_mean,
    fits,
    flag,
    short,
    whole,
    wording,
)

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

    run: tyro.conf.Positional[str]
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

    preset: tyro.conf.Positional[str] = ""
    """Only this preset, or file of your own, with all of its values."""


@dataclass(frozen=True, kw_only=True)
class Diff(Answer):
    """Prints the values in which two presets, or two runs, differ."""

    a: tyro.conf.Positional[str]
    """A preset, a file of your own, a run's directory, or an algorithm for its defaults."""
    b: tyro.conf.Positional[str]
    """The other preset, algorithm or run."""


@dataclass(frozen=True, kw_only=True)
class CheckEnv(Answer):
    """Looks for everything that can be wrong with an env, before training, and asks every algorithm whether it could
    use what the env shows and takes."""

    env: tyro.conf.Positional[str]
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

    source: tyro.conf.Positional[str]
    """The folder, or minari:ID."""
    run: str
    """The directory that is made."""
    env: str
    """The env that the episodes are of, as in `reverie train`."""
    env_kwargs: str = "{}"
    """Keyword arguments of the env, as a JSON object."""
    envs: Count = 4
    """Streams of the replay: the run that learns from it has as many --envs."""


def parse_train(
    argv: list[str], debug: bool = False, chosen: Mapping[str, Any] | None = None
) -> tuple[Config, Session, Path | None]:
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
        print(help.page(_flags_of(RunConfig()), "reverie train ALGORITHM --env ENV [flags]", about, everything))
        raise SystemExit(0)
    algorithm, *flags = argv
    algos.load(algorithm)  # a typo is an error before anything else
    _refuse_obsolete(algorithm, flags)
    path = Path(peek(flags, "--run")) if peek(flags, "--run") else None
    session = Session()

    def typed(base: Config) -> Config:
        nonlocal session
        own = ("agent", Annotated[type(base.agent), tyro.conf.arg(name=base.algorithm)], field(default=base.agent))
        parsed = parse(_flags_of(base.run, own), flags, f"train {algorithm}")
        session = parsed.session
        groups = [getattr(parsed, name) for name in _GROUPS]
        run = RunConfig(**{k: v for group in groups for k, v in vars(group).items()})
        agent = parsed.agent
        if peek(flags, "--choices"):
            agent = dataclasses.replace(agent, choices=choices.merged(base.agent.choices, agent.choices))
        return Config(algorithm, dataclasses.replace(run, debug=True) if debug else run, agent)

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


def _refuse_obsolete(algorithm: str, flags: list[str]) -> None:
    """Raises ConfigError for a flag that earlier versions had; says what to type instead."""
    known = config.default(algorithm).values()
    for typed, following in itertools.pairwise([*flags, ""]):
        name, _, value = typed.removeprefix("--").partition("=")
        name = name.replace("-", "_")
        if name.startswith("no_"):
            name, value = name.removeprefix("no_"), "false"
        if not typed.startswith("--") or name in known:
            continue
        if complaint := earlier.instead(algorithm, name, value or ("" if following.startswith("--") else following)):
            raise ConfigError(f"there is no {typed.partition('=')[0]} any more: {complaint}")


# The bases of RunConfig, in the order of `--help`.
_GROUPS: dict[str, type] = {base.__name__.lower(): base for base in RunConfig.__bases__}


def _flags_of(run: RunConfig, *own: tuple[str, Any, Any]) -> Any:
    """A dataclass of the flags of `train`, grouped, with the values of `run` as defaults.

    Args:
      own: the group of an algorithm, as a field of that dataclass.
    """
    members: list[tuple[str, Any, Any]] = [("session", Session, field(default=Session()))]
    for name, group in _GROUPS.items():
        values = {f.name: getattr(run, f.name) for f in dataclasses.fields(group)}
        members.append((name, group, field(default=group(**values))))
    return make_dataclass("Train", [*members, *own], frozen=True)


_REGISTRY = tyro.constructors.ConstructorRegistry()


@_REGISTRY.primitive_rule
def _integer(kind: tyro.constructors.PrimitiveTypeInfo) -> tyro.constructors.PrimitiveConstructorSpec[int] | None:
    """Integers may be typed as 1e6."""
    if kind.type is not int:
        return None
    return tyro.constructors.PrimitiveConstructorSpec(
        nargs=1,
        metavar="INT",
        instance_from_str=lambda args: whole(args[0]),
        is_instance=lambda value: type(value) is int,
        str_from_instance=lambda value: [str(value)],
    )


def parse(flags: Any, argv: list[str], verb: str) -> Any:
    """The flags of a verb, every number of them within its range.

    Raises:
      ConfigError: one is not, or a flag is unknown, malformed or missing.
      SystemExit: help was asked for.
    """
    algorithm = verb.removeprefix("train ")
    positional = [x.name.upper() for x in dataclasses.fields(flags) if "Positional" in str(x.type)]
    usage = " ".join(["reverie", verb, *(["--env ENV"] if algorithm != verb else positional), "[flags]"])
    if help_marks := [x for x in argv if x in help.MARKS]:
        about = f"{help.summary(algorithm)}\n\n{TRAIN}" if algorithm != verb else flags.__doc__
        print(help.page(flags, usage, about, "--help-all" in help_marks))
        raise SystemExit(0)
    box = io.StringIO()
    try:
        with redirect_stderr(box):
            parsed = tyro.cli(
                flags,
                args=argv,
                prog=f"reverie {verb}",
                add_help=False,
                config=(tyro.conf.OmitArgPrefixes,),
                registry=_REGISTRY,
            )
    except SystemExit as stop:
        cause: BaseException | None = stop
        while cause and not isinstance(cause, ConfigError):
            cause = cause.__context__
        if cause:  # by the dataclass of these flags, in a sentence
            raise cause from None
        words = box.getvalue().translate(dict.fromkeys(map(ord, "╭╮╰╯│─"), " ")).split()
        complaint = _complaint(flags, argv) or " ".join(words)
        raise ConfigError(f"{complaint}\nIt is `{usage}`, and `reverie {verb} --help-all` has the flags") from None
    check(parsed)
    return parsed


def _complaint(flags: Any, argv: list[str]) -> str:
    """The first fault of a command that tyro could not read, as a sentence; empty if none is found."""
    kinds = _kinds(flags)
    places = [name.upper() for name, kind in kinds.items() if tyro.conf.Positional in get_args(kind)]
    known = {flag(name): kind for name, kind in kinds.items() if name.upper() not in places}
    left, names, others = deque(argv), set(), 0
    while left:
        typed = left.popleft()
        name, equals, value = typed.partition("=")
        name = name.replace("_", "-")
        if not name.startswith("--"):
            if others == len(places):
                return f"{typed!r} belongs to no flag"
            others += 1
            continue
        names.add(name)
        if known.get(name.replace("--no-", "--", 1)) is bool:
            if equals:
                return f"{name} takes no value, got {short(value)}"
            continue
        if name not in known:
            return f"there is no {name}: {did_you_mean(name, known)}".rstrip(": ")
        kind = known[name]
        values = [value] if equals else []
        most = 2 if any(get_origin(x) is tuple for x in get_args(kind)) else 1
        while left and len(values) < most and not left[0].startswith("--") and (not values or left[0].isdecimal()):
            values.append(left.popleft())
        if complaint := _misfit(values, kind):
            return f"{name} {complaint}"
    needed = [x.name for x in dataclasses.fields(flags) if x.default is dataclasses.MISSING]
    missing = [x.upper() for x in needed if x.upper() in places[others:]]
    missing += [flag(x) for x in needed if x.upper() not in places and flag(x) not in names]
    return f"{' and '.join(missing)} {'is' if len(missing) == 1 else 'are'} missing" if missing else ""


def _kinds(flags: Any) -> dict[str, Any]:
    """Name -> type of every flag, those of groups included; only what is typed without a flag keeps its mark."""
    found: dict[str, Any] = {}
    for name, kind in get_type_hints(flags, include_extras=True).items():
        bare = get_args(kind)[0] if get_origin(kind) is Annotated else kind
        is_marked = tyro.conf.Positional in get_args(kind)
        found |= _kinds(bare) if dataclasses.is_dataclass(bare) else {name: kind if is_marked else bare}
    return found


def _misfit(values: list[str], kind: Any) -> str:
    """The end of the sentence that says why these are no value of this type; empty if they are."""
    kinds = [x for x in get_args(kind) if x is not type(None)] if get_origin(kind) in (UnionType, Union) else [kind]
    expected = f"expected {' or '.join(wording(x) for x in kinds)}"
    if not values:
        return f"has no value, {expected}"
    read: list[Any] = [*values]
    for i, text in enumerate(values):
        for number in (float, whole):
            with suppress(ValueError):
                read[i] = number(text)
    value = read[0] if len(read) == 1 else tuple(read)
    is_none = type(None) in get_args(kind) and values == ["None"]
    is_fit = str in kinds or any(fits(value, x) for x in kinds)
    return "" if is_none or is_fit else f"is {short(' '.join(values))}, {expected}"


def peek(argv: list[str], name: str) -> str:
    """The value of a flag that decides what the other flags mean; the last one counts."""
    value = ""
    for typed, following in itertools.pairwise([*argv, ""]):
        if typed == name:
            value = following
        elif typed.startswith(f"{name}="):
            value = typed.partition("=")[2]
    return value
