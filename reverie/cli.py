"""The command line: train, eval, dream, think, list, diff, check-env, import.

Exit codes: 0 fine (also after SIGTERM or SIGHUP, when everything is saved), 130 after Ctrl-C, 2 for what the
user typed, 1 for everything else. With `--json`, text for people goes to stderr and the last line
of stdout is one JSON object.
"""

from __future__ import annotations

import dataclasses
import io
import itertools
import json
import logging
import os
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext, redirect_stderr
from dataclasses import dataclass, field, make_dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from rich.console import Console
from rich.logging import RichHandler
from rich.table import Table
from rich.text import Text

from reverie import __version__, algos, config, help, presets
from reverie.config import Config, ConfigError, RunConfig
from reverie.fields import INT64, TINY, Count, Number, Seed, Within, check, whole
from reverie.memory import use_huge_pages
from reverie.outlet import open_outlets
from reverie.programs import keep_programs

OVERVIEW = """\
reverie: agents that learn a model of their world and act by imagining it

  reverie train ALGORITHM --env ENV [--run PATH] [--preset NAME] [--dry-run] [flags]
  reverie eval RUN [--episodes N] [--video out.mp4] [--planner none|gumbel|puct] [--simulations N]
  reverie dream RUN [--out FILE] [--key NAME] [--fresh] [--policy]
  reverie think RUN [--step N] [--out FILE.svg|.png] [--planner gumbel|puct] [--simulations N]
  reverie list [PRESET]
  reverie diff PRESET|RUN PRESET|RUN
  reverie check-env ENV [--algorithm NAME]
  reverie --version

Every verb takes --json (one JSON object as the last line of stdout), --help (the flags used most) and --help-all
(all flags). The same train command with the same --run continues that run. REVERIE_DEBUG=1 is --debug.
"""


TRAIN = """\
Trains an agent in an env, and continues the run in --run if there is one: killed at any moment, the same command goes \
on, and ends as if nothing had happened. Any flag that is left out has the value of --preset, or of the algorithm's own.
"""


@dataclass(frozen=True)
class Session:
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
    json: bool = False
    """Print one JSON object as the last line of stdout; everything else goes to stderr."""


@dataclass(frozen=True)
class Eval:
    """Plays episodes with the newest checkpoint of a run, greedily unless --eval-mode says otherwise."""

    run: tyro.conf.Positional[str]
    """The run's directory."""
    episodes: Count = 20
    """How many."""
    video: str = ""
    """A file for a video of the first episodes: .mp4, .gif or .webp."""
    seed: Annotated[int | None, Within(0, INT64)] = None
    """Of the episodes. None: that of the run's own evaluations."""
    opponent: str = ""
    """In games of two: random, perfect (small games), or mcts:N with N rollouts a move; half of the games are played
    from each seat. Empty: that of the run's own evaluations."""
    planner: Literal["none", "gumbel", "puct"] | None = None
    """Of a Dreamer whose actions are one discrete choice: search in its dreams before every action. None: as the run
    was trained."""
    simulations: Annotated[int | None, Within(1, 2**16)] = None
    """Of each search: imagined steps per decision. None: those of the run."""
    planner_scale: Annotated[float | None, Within(TINY)] = None
    """Of the planner gumbel: how much values outweigh the actor. None: that of the run."""
    eval_mode: Literal["greedy", "sample"] | None = None
    """The most probable actions, or such as are drawn from the policy (of the search, where one searches). None: those
    of the run's own evaluations."""
    env: str = ""
    """The env of the run again. Needed only if it is code of your own: a run's directory runs none by itself."""
    trust: bool = False
    """Run the env that the run names, whatever it is."""
    json: bool = False
    """Print one JSON object as the last line of stdout; everything else goes to stderr."""


@dataclass(frozen=True)
class Dream:
    """Shows what the model of a run imagines beside what really happened: it sees a few rows, then only the actions."""

    run: tyro.conf.Positional[str]
    """The run's directory."""
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
    """Of the draw of sequences, or of the episodes."""
    env: str = ""
    """The env of the run again. Needed only if it is code of your own: a run's directory runs none by itself."""
    trust: bool = False
    """Run the env that the run names, whatever it is."""
    json: bool = False
    """Print one JSON object as the last line of stdout; everything else goes to stderr."""


@dataclass(frozen=True)
class Think:
    """Draws the search behind one decision of a run that searches, the MuZero family or a Dreamer with a planner: what
    was tried how often, what it was worth, and what that did to the policy. Continuous actions are drawn anew at every
    node: below the root, #3 is number 3 of a node's own. What chance does is called c3."""

    run: tyro.conf.Positional[str]
    """The run's directory."""
    step: Number = 0
    """Of a greedy episode, 0 its beginning. In games of two, the agent moves for both."""
    seed: Seed = 0
    """Of the episode."""
    out: str = ""
    """A picture: .png or .svg. Empty: think-<step>.png in the run's videos/."""
    depth: Count = 3
    """Steps from the root that the picture shows."""
    planner: Literal["none", "gumbel", "puct"] | None = None
    """Of a Dreamer whose actions are one discrete choice: search in its dreams before every action. None: as the run
    was trained."""
    simulations: Annotated[int | None, Within(1, 2**16)] = None
    """Of this search. None: those of the run. The steps before are decided with those of the run."""
    env: str = ""
    """The env of the run again. Needed only if it is code of your own: a run's directory runs none by itself."""
    trust: bool = False
    """Run the env that the run names, whatever it is."""
    json: bool = False
    """Print one JSON object as the last line of stdout; everything else goes to stderr."""


@dataclass(frozen=True)
class List:
    """What there is: algorithms with their sizes and the names of their presets, and families of envs."""

    preset: tyro.conf.Positional[str] = ""
    """Only this preset, or file of your own, with all of its values."""
    json: bool = False
    """Print one JSON object as the last line of stdout; everything else goes to stderr."""


@dataclass(frozen=True)
class Diff:
    """Prints the values in which two presets, or two runs, differ."""

    a: tyro.conf.Positional[str]
    """A preset, a file of your own, a run's directory, or an algorithm for its defaults."""
    b: tyro.conf.Positional[str]
    """What to compare with it."""
    json: bool = False
    """Print one JSON object as the last line of stdout; everything else goes to stderr."""


@dataclass(frozen=True)
class CheckEnv:
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
    json: bool = False
    """Print one JSON object as the last line of stdout; everything else goes to stderr."""


@dataclass(frozen=True)
class Import:
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
    json: bool = False
    """Print one JSON object as the last line of stdout; everything else goes to stderr."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; returns its exit code."""
    verb, *rest = [*(sys.argv[1:] if argv is None else argv), ""][:-1] or ["--help"]
    if verb == "--version":
        print(__version__)
        return 0
    if verb in help.MARKS:
        return _help(verb == "--help-all")
    debug = "--debug" in rest or os.environ.get("REVERIE_DEBUG", "") not in ("", "0")
    if sys.platform == "linux" and "DISPLAY" not in os.environ:
        os.environ.setdefault("SDL_VIDEODRIVER", "dummy")  # pygame complains about a missing screen
    console = Console(stderr="--json" in rest, highlight=False, markup=False)  # brackets in names are brackets
    _logging(console, debug)
    try:
        if verb not in VERBS:
            raise ConfigError(f"no verb {verb!r}. Expected one of {', '.join(VERBS)}")
        return VERBS[verb](rest, console, debug)
    except KeyboardInterrupt:
        _failed("--json" in rest, "interrupted before everything was saved", "KeyboardInterrupt", 130)
        return 130
    except Exception as error:  # the boundary to the person at the terminal
        return _explain(error, debug, [verb, *rest])


def train(argv: list[str], console: Console, debug: bool) -> int:
    argv, facts = _named(argv, console)
    conf, session, path = parse_train(argv, debug)
    if session.preset and not _peek(argv, "--preset"):
        told = f"preset {session.preset}: made for this env; --preset {config.PLAIN} to choose by what it shows"
        console.print(told, highlight=False, soft_wrap=True)
    if conf.run.device == "cpu":
        # Before JAX looks for devices: it would take most of the GPU's memory on finding one.
        os.environ.setdefault("JAX_PLATFORMS", "cpu")
    from reverie import api, defaults

    if found := defaults.choices(conf, session.preset, is_new=not (path and config.saved(path)), facts=facts):
        conf, session, path = parse_train(argv, debug, {choice.name: choice.value for choice in found})
        defaults.tell(console, conf, found)
    path = path or api.new_path(conf)
    if session.dry_run:
        plan = api.dry_run(conf)
        plan.tell(console, conf, path, conf.run.workers)
        _output(session.json, plan.to_json())
        return 0
    result = api.run_training(conf, path, console)
    evaluation = result.evaluation.to_json() if result.evaluation else None
    if result.stopped:
        console.print(f"{result.stopped}: saved at step {result.steps:,}.", highlight=False)
        console.print(f"To continue: the same command, with --run {shlex.quote(str(path))}", soft_wrap=True)
    else:
        console.print(_done(result, conf, path), soft_wrap=True)
    _output(
        session.json,
        {
            "path": str(path),
            "steps": result.steps,
            "steps_asked": conf.run.steps,
            "updates": result.updates,
            "evaluation": evaluation,
            "stopped": result.stopped,
        },
    )
    return 130 if result.stopped == "SIGINT" else 0


def _done(result: Any, conf: Config, path: Path) -> str:
    """What came of a run that went to its end, and what to type to see more of it."""
    from reverie.envs.spec import draws
    from reverie.run.log import show

    score = f", return {show(round(result.evaluation.mean_return, 1))}" if result.evaluation else ""
    further = result.steps - conf.run.steps
    more = f" ({conf.run.steps:,} were asked for: envs that step together end together)" if further > 0 else ""
    typed, film = shlex.quote(str(path)), shlex.quote(str(path / "videos" / "eval.mp4"))
    video = f" --video {film}" if draws(conf.run.env) else ""
    return (
        f"Done: {result.steps:,} steps{more}, {result.updates:,} updates{score}.\n"
        f"The run lies in {path}. To see more of it:\n"
        f"  reverie eval {typed} --episodes 20{video}\n"
        f"  tensorboard --logdir {typed}    (pip install tensorboard)"
    )


def evaluate(argv: list[str], console: Console, debug: bool) -> int:
    flags = _parse(Eval, argv, "eval")
    from reverie import api
    from reverie.run.evaluation import ACTING
    from reverie.view import video

    if flags.video:
        video.check_suffix(Path(flags.video))
    search = {"planner": flags.planner, "simulations": flags.simulations, "planner_scale": flags.planner_scale}
    agent = api.load(flags.run, flags.env or None, trust=flags.trust, **search)
    if flags.video:
        agent.require_pictures()
    mode = flags.eval_mode or agent.config.run.eval_mode
    played = api.evaluate(agent, flags.episodes, flags.seed, flags.opponent or None, mode)
    told = {"greedy": "greedy", "sample": "sampled"}[mode]
    console.print(
        Text.assemble(
            f"{agent.config.run.env} after {agent.step:,} steps, {flags.episodes} {told} episodes: mean return ",
            (_score(played.mean_return), "bold"),
            f", standard deviation {_score(played.std_return)}, lengths {min(played.lengths)} to {max(played.lengths)}",
        ),
        soft_wrap=True,
    )
    for seat, counts in played.seats.items():
        score = ", ".join(f"{count} {name}" for name, count in counts.items())
        console.print(f"moving {seat} against {played.opponent}: {score}")
    if flags.video:
        video.write(Path(flags.video), agent.film(flags.seed or 0, ACTING[mode]))
        console.print(f"video: {flags.video}", soft_wrap=True)
    _output(flags.json, played.to_json())
    return 0


def _score(value: float) -> str:
    """Two digits behind the point, but for numbers so large that nobody reads them."""
    from reverie.run.log import show

    return f"{value:.2f}" if abs(value) < 1e6 else show(value)


def dream(argv: list[str], console: Console, debug: bool) -> int:
    flags = _parse(Dream, argv, "dream")
    from reverie import api, files
    from reverie.envs.base import RULES
    from reverie.view import dream as view
    from reverie.view import video

    suffix = Path(flags.out).suffix.lower()
    if flags.out and suffix not in (*video.SUFFIXES, ".png"):
        raise video.NoVideo(
            f"cannot draw a dream into {Path(flags.out).name!r}: expected a name that ends in "
            f"{', '.join(video.SUFFIXES)} for an image, or .png for anything else"
        )
    agent = api.load(flags.run, flags.env or None, trust=flags.trust)
    seen = {name: space for name, space in agent.env.obs_space.items() if space.kind not in RULES}
    images = [name for name, space in seen.items() if space.pictured]
    if flags.policy:
        key = _subject([*seen, "reward"], images, flags.key, suffix)
        return _drive(flags, console, agent, key if key in images else "")
    rows = agent.rows(flags.sequences, flags.seen + flags.dreamt, flags.fresh, flags.seed)
    dreams = agent.dream(seen=flags.seen, rows=rows)
    # Not every model can say what it would see: MuZero's tells rewards and values.
    dreamt = [name.removeprefix("obs/") for name in view.curves(dreams) + view.pictures(dreams)]
    key = _subject(dreamt, [name for name in images if name in dreamt], flags.key, suffix)
    is_image = key in images
    path = _place(flags.out, agent.path, f"dream-{agent.moment:09d}{video.BEST if is_image else '.png'}")
    name = f"obs/{key}" if key in seen else key
    if is_image:
        video.write(path, view.frames(dreams, name, flags.seen), view.FPS)
    else:
        files.replace(path, view.plot(dreams, name or None, flags.seen))
    errors = view.errors(dreams, flags.seen)
    horizons = [f"after {h}" for h in errors["reward"]["horizons"]]
    number = lambda x, form: "-" if x is None else format(x, form)
    cells = {
        name: [number(e["unexplained"], ".1%"), *(number(x, ".3g") for x in e["horizons"].values())]
        for name, e in errors.items()
    }
    console.print(
        f"{agent.config.run.env} after {agent.step:,} steps: {flags.sequences} dreams, {flags.seen} rows seen and "
        f"{flags.dreamt} imagined. Mean squared errors, of discrete values the share that is wrong:",
        soft_wrap=True,
    )
    console.print(_table("", ["error / variance", *horizons], cells))
    console.print(f"picture: {path}", soft_wrap=True)
    _output(flags.json, {"path": str(path), "step": agent.step, "seen": flags.seen, "errors": errors})
    return 0


def _drive(flags: Dream, console: Console, agent: Any, key: str) -> int:
    """The other half of `dream`: the policy acts in its imagination."""
    from reverie.view import dream as view
    from reverie.view import video

    if not key:
        raise ConfigError("--policy draws a video of an image, and this is none: from Python, `load(run).drive()`")
    path = _place(flags.out, agent.path, f"drive-{agent.moment:09d}{video.BEST}")
    rows = agent.drive(flags.sequences, flags.seen + flags.dreamt, flags.seen, flags.fresh, flags.seed)
    video.write(path, view.driven(rows, f"obs/{key}", flags.seen), view.FPS)
    gained = (rows["reward"] * rows["valid"])[:, flags.seen :].sum(1)
    console.print(
        f"{agent.config.run.env} after {agent.step:,} steps: {flags.sequences} imagined drives of {flags.dreamt} steps "
        f"from {flags.seen} rows seen, mean reward {gained.mean():.3g} in all",
        soft_wrap=True,
    )
    console.print(f"picture: {path}", soft_wrap=True)
    _output(flags.json, {"path": str(path), "step": agent.step, "seen": flags.seen, "rewards": gained.tolist()})
    return 0


def _place(out: str, run: Path, name: str) -> Path:
    """Where a picture goes: what was typed, or the run's videos/, which no link may replace."""
    if out:
        return Path(out)
    from reverie.run.directory import RunDirectory

    videos = RunDirectory(run).folder / "videos"
    videos.make()
    return videos.path / name


def _subject(known: Sequence[str], images: Sequence[str], key: str, suffix: str) -> str:
    """Which of what is known to draw, or nothing for all that is no image in one plot."""
    if key and key not in known:
        raise ConfigError(f"no {key!r} in its dreams. Expected --key {' or '.join(sorted(known))}")
    if not key and suffix != ".png":
        if suffix and not images:
            raise ConfigError(f"it dreams of no image, only of {', '.join(known)}: draw a plot, --out dream.png")
        return images[0] if images else ""
    if key and suffix and (key in images) != (suffix != ".png"):
        fitting = "an image makes a video, --out dream.mp4" if key in images else "it makes a plot, --out dream.png"
        raise ConfigError(f"{key!r} cannot be drawn into a {suffix}: {fitting}")
    return key


def think(argv: list[str], console: Console, debug: bool) -> int:
    flags = _parse(Think, argv, "think")
    from reverie import api, files
    from reverie.view import tree as view

    suffix = Path(flags.out or "think.png").suffix.lower()
    if suffix not in view.SUFFIXES:
        raise ConfigError(
            f"cannot draw a tree into {Path(flags.out).name!r}: expected a name that ends in "
            f"{' or '.join(view.SUFFIXES)}, for example {Path(flags.out).with_suffix('.svg').name}"
        )
    for folder in Path(flags.out).parents:
        if folder.exists() and not folder.is_dir():
            raise ConfigError(f"--out {flags.out}: {folder} is a file, expected a directory or a name that is free")
    agent = api.load(flags.run, flags.env or None, planner=flags.planner, trust=flags.trust)
    found = agent.think(flags.step, flags.seed, flags.simulations)
    path = _place(flags.out, agent.path, f"think-{flags.step}.png")
    mover = "" if found.player is None else f", player {found.player} to move"
    title = f"{agent.config.run.env} after {agent.step:,} steps: step {flags.step} of an episode{mover}"
    entries: list[dict[str, Any]] = [
        {
            "action": found.actions[a],
            "prior": float(found.prior[a]),
            "visits": int(found.visits[a]),
            "q": float(found.q[a]) if found.visits[a] else None,
            "policy": float(found.policy[a]),
        }
        for a in found.ranked
    ]
    files.replace(path, view.draw(found, title, suffix, flags.depth))
    console.print(
        f"{title}\n{found.tree.visits[0] - 1} simulations; value {found.raw:.3g} by the network, {found.value:.3g} by "
        f"the search; action {found.actions[found.chosen]} is taken",
        soft_wrap=True,
    )
    if found.why:
        console.print(found.why, soft_wrap=True)
    table = Table("action", box=None, pad_edge=False)
    for name in ("prior", "visits", "Q", "improved policy"):
        table.add_column(name, justify="right")
    for entry, a in zip(entries[: view.ACTIONS], found.ranked, strict=False):
        q = "-" if entry["q"] is None else f"{entry['q']:.3g}"
        cells = (entry["action"], f"{entry['prior']:.1%}", str(entry["visits"]), q, f"{entry['policy']:.1%}")
        table.add_row(*cells, style="bold" if a == found.chosen else None)
    console.print(table)
    if len(entries) > view.ACTIONS:
        console.print(f"and {len(entries) - view.ACTIONS} actions more, which the search likes less")
    if missing := view.left_out(found.tree, flags.depth):
        console.print(f"the picture shows {missing}")
    console.print(f"picture: {path}", soft_wrap=True)
    values = {"raw": found.raw, "searched": found.value}
    told = {"path": str(path), "trained": agent.step, "step": flags.step, "player": found.player, "value": values}
    _output(flags.json, told | {"action": found.actions[found.chosen], "why": found.why, "actions": entries})
    return 0


def list_all(argv: list[str], console: Console, debug: bool) -> int:
    flags = _parse(List, argv, "list")
    from reverie.envs.spec import families

    if flags.preset:
        values = config.called(flags.preset).values()
        console.print(_table(flags.preset, ["value"], {k: [v] for k, v in values.items()}))
        _output(flags.json, {"preset": flags.preset, "values": values})
        return 0
    modules = {name: algos.load(name) for name in algos.ALGORITHMS}
    algorithms: dict[str, dict[str, Any]] = {
        name: {"sizes": list(getattr(module, "SIZES", ())), "presets": presets.of(name).named}
        for name, module in modules.items()
    }
    envs: dict[str, dict[str, Any]] = {f.name: {"extra": f.extra, "installed": f.installed} for f in families()}
    for name, entry in algorithms.items():
        console.print(Text.assemble((name, "bold"), f": {help.summary(name)}"), soft_wrap=True)
        if entry["sizes"]:
            console.print(f"  sizes: {' '.join(entry['sizes'])}", soft_wrap=True)
        console.print(f"  presets: {' '.join(entry['presets']) or 'none'}", soft_wrap=True)
    console.print("\n`reverie list PRESET` prints the values of a preset.\n")
    table = Table("envs", "pip install", "installed", box=None, pad_edge=False)
    for name, env in envs.items():
        table.add_row(name, env["extra"] or "nothing", "yes" if env["installed"] else "no")
    console.print(table)
    _output(flags.json, {"algorithms": algorithms, "envs": envs})
    return 0


def diff(argv: list[str], console: Console, debug: bool) -> int:
    flags = _parse(Diff, argv, "diff")
    found = config.differences(config.called(flags.a), config.called(flags.b))
    console.print(_table("", [flags.a, flags.b], found) if found else f"{flags.a} and {flags.b} have the same values")
    _output(flags.json, {"a": flags.a, "b": flags.b, "differences": found})
    return 0


def _table(corner: str, columns: Sequence[str], rows: Mapping[str, Sequence[Any]]) -> Table:
    """Named rows of values, none of them cut off."""
    table = Table(corner, *columns, box=None, pad_edge=False)
    table.columns[0].no_wrap = True
    for column in table.columns[1:]:
        column.overflow = "fold"
    for name, values in rows.items():
        table.add_row(name, *(str(value) for value in values))
    return table


def check_env(argv: list[str], console: Console, debug: bool) -> int:
    flags = _parse(CheckEnv, argv, "check-env")
    if flags.algorithm:
        algos.load(flags.algorithm)  # a typo is an error before anything else
    os.environ.setdefault("JAX_PLATFORMS", "cpu")  # nothing is computed here
    from reverie import api
    from reverie.envs.spec import EnvSpec

    wrapped = {k: getattr(flags, k) for k in ("action_repeat", "time_limit", "image_size", "gray", "obs_keys")}
    spec = EnvSpec(flags.env, kwargs=flags.env_kwargs, **wrapped)
    findings = api.check_env(spec, flags.algorithm or None, deadline=flags.deadline)
    colours = {"error": "red", "warning": "yellow", "note": "cyan"}
    for finding in findings:
        whom = f" for {', '.join(finding.algorithms)}" if finding.algorithms else ""
        console.print(Text.assemble((f"{finding.severity}{whom}", colours[finding.severity]), f": {finding.what}"))
        if finding.fix:
            console.print(f"  {finding.fix}", style="dim")
    errors = [finding for finding in findings if finding.severity == "error"]
    names = [flags.algorithm] if flags.algorithm else list(algos.ALGORITHMS)
    sound = [name for name in names if not any(name in (e.algorithms or names) for e in errors)]
    verdict = f"can be trained on by {', '.join(sound)}" if sound else "needs repair first"
    console.print(f"{flags.env} {verdict}", soft_wrap=True)
    listed = [dataclasses.asdict(finding) for finding in findings]
    _output(flags.json, {"env": flags.env, "ok": bool(sound), "algorithms": sound, "findings": listed})
    return 0 if sound else 1


def import_episodes(argv: list[str], console: Console, debug: bool) -> int:
    flags = _parse(Import, argv, "import")
    from reverie.envs.spec import EnvSpec
    from reverie.recorded import import_episodes

    rows = import_episodes(flags.source, EnvSpec(flags.env, kwargs=flags.env_kwargs), flags.run, flags.envs)
    console.print(f"{rows:,} rows of {flags.source} lie in {flags.run}. To learn from them:", soft_wrap=True)
    typed = ["--env", flags.env, *(["--env-kwargs", flags.env_kwargs] if flags.env_kwargs != "{}" else [])]
    typed += ["--offline", flags.run, "--envs", str(flags.envs)]
    console.print(f"  reverie train dreamer_v3 {shlex.join(typed)}", soft_wrap=True)
    _output(flags.json, {"path": flags.run, "rows": rows})
    return 0


VERBS: dict[str, Callable[[list[str], Console, bool], int]] = {
    "train": train,
    "eval": evaluate,
    "dream": dream,
    "think": think,
    "list": list_all,
    "diff": diff,
    "check-env": check_env,
    "import": import_episodes,
}


def _named(argv: list[str], console: Console) -> tuple[list[str], Any]:
    """The command with an algorithm: that of the run to continue, or the one for what the env is; and the env's facts,
    if that took a look at it."""
    named = bool(argv) and not argv[0].startswith("-")
    preset = _peek(argv, "--preset")
    if not named and presets.is_file(preset) and (owner := presets.owner(preset)):
        return [owner, *argv], None
    if named or not _peek(argv, "--env") or {"-h", "--help", "--help-all"} & set(argv):
        return argv, None
    run = _peek(argv, "--run")
    if run and (saved := config.saved(Path(run))):
        return [saved.algorithm, *argv], None
    from reverie import defaults
    from reverie.assembly import spec_of
    from reverie.envs import facts

    conf, _, _ = parse_train(["dreamer_v3", *argv])
    seen = facts.look(spec_of(conf.run))
    if seen is None:
        return ["dreamer_v3", *argv], None
    choice = defaults.algorithm(conf.run.env, seen)
    console.print(f"{choice.value}: {choice.reason}", highlight=False, soft_wrap=True)
    return [choice.value, *argv], seen


def parse_train(
    argv: list[str], debug: bool = False, chosen: Mapping[str, Any] | None = None
) -> tuple[Config, Session, Path | None]:
    """The config that a `train` command means, saved values and preset included.

    Args:
      chosen: values that count less than what is typed.

    Raises:
      ValueError: a name, value or combination that cannot be.
      SystemExit: help was asked for (0), or a flag is unknown or malformed (2).
    """
    if not argv or argv[0].startswith("-"):
        if not argv or argv[0] not in help.MARKS:
            names = ", ".join(algos.ALGORITHMS)
            raise ConfigError(f"which algorithm? Type `reverie train ALGORITHM`, one of {names}")
        everything = argv[0] == "--help-all"
        about = f"{TRAIN}\n\nAlgorithms; each has flags of its own, `reverie train NAME --help`:\n\n{help.algorithms()}"
        run_flags = make_dataclass("Run", _members(RunConfig()), frozen=True)
        print(help.page(run_flags, "reverie train ALGORITHM --env ENV [flags]", about, everything))
        raise SystemExit(0)
    algorithm, *flags = argv
    algos.load(algorithm)  # a typo is an error before anything else
    path = Path(_peek(flags, "--run")) if _peek(flags, "--run") else None
    session = Session()

    def typed(base: Config) -> Config:
        nonlocal session
        parsed = _parse(_flags_of(base), flags, f"train {algorithm}")
        session = parsed.session
        groups = [getattr(parsed, name) for name in _GROUPS]
        run = RunConfig(**{k: v for group in groups for k, v in vars(group).items()})
        return Config(algorithm, dataclasses.replace(run, debug=True) if debug else run, parsed.agent)

    from reverie.resolve import resolve

    conf, preset = resolve(
        algorithm,
        typed,
        saved=config.begun(path) if path else None,
        preset=_peek(flags, "--preset"),
        env=_peek(flags, "--env"),
        chosen=chosen,
        vouched={name for name in config.CODE if _peek(flags, f"--{name}") or "--trust" in flags},
    )
    return conf, dataclasses.replace(session, preset=preset), path


# The bases of RunConfig, in the order of `--help`.
_GROUPS: dict[str, type] = {base.__name__.lower(): base for base in RunConfig.__bases__}


def _flags_of(base: Config) -> Any:
    """A dataclass of all flags of `train`, grouped, with the values of `base` as defaults."""
    members = _members(base.run)
    members.append((
        "agent",
        Annotated[type(base.agent), tyro.conf.arg(name=base.algorithm)],
        field(default=base.agent),
    ))  # fmt: skip
    return make_dataclass("Train", members, frozen=True)


def _members(run: RunConfig) -> list[tuple[str, Any, Any]]:
    """The groups of flags that every algorithm has, as fields of a dataclass."""
    members: list[tuple[str, Any, Any]] = [("session", Session, field(default=Session()))]
    for name, group in _GROUPS.items():
        values = {f.name: getattr(run, f.name) for f in dataclasses.fields(group)}
        members.append((name, group, field(default=group(**values))))
    return members


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


def _parse(flags: Any, argv: list[str], verb: str) -> Any:
    """The flags of a verb, every number of them within its range.

    Raises:
      ConfigError: one is not.
      SystemExit: help was asked for (0), or a flag is unknown or malformed (2).
    """
    if marked := [x for x in argv if x in help.MARKS]:
        algorithm = verb.removeprefix("train ")
        about = f"{help.summary(algorithm)}\n\n{TRAIN}" if algorithm != verb else flags.__doc__
        positional = [x.name.upper() for x in dataclasses.fields(flags) if "Positional" in str(x.type)]
        usage = " ".join(["reverie", verb, *(["--env ENV"] if algorithm != verb else positional), "[flags]"])
        print(help.page(flags, usage, about, "--help-all" in marked))
        raise SystemExit(0)
    told = io.StringIO()
    try:
        with redirect_stderr(told) if "--json" in argv else nullcontext():
            parsed = _parsed(flags, argv, verb)
    except SystemExit:
        if not told.getvalue():
            raise
        words = told.getvalue().translate(dict.fromkeys(map(ord, "╭╮╰╯│─"), " ")).split()
        raise ConfigError(f"{' '.join(words)}. `reverie {verb} --help` has the flags") from None
    check(parsed)
    return parsed


def _parsed(flags: Any, argv: list[str], verb: str) -> Any:
    """What tyro makes of the flags of a verb; it says on stderr what it cannot read, and leaves."""
    return tyro.cli(
        flags,
        args=argv,
        prog=f"reverie {verb}",
        add_help=False,
        config=(tyro.conf.OmitArgPrefixes,),
        registry=_REGISTRY,
    )


def _peek(argv: list[str], name: str) -> str:
    """The value of a flag that decides what the other flags mean; the last one counts."""
    value = ""
    for flag, following in itertools.pairwise([*argv, ""]):
        if flag == name:
            value = following
        elif flag.startswith(f"{name}="):
            value = flag.partition("=")[2]
    return value


def _help(everything: bool) -> int:
    """The overview; with all verbs and all their flags, if so asked."""
    print(OVERVIEW)
    for argv in [*([verb] for verb in VERBS), *(["train", name] for name in algos.ALGORITHMS)] if everything else []:
        try:
            VERBS[argv[0]]([*argv[1:], "--help-all"], Console(markup=False), False)
        except SystemExit:
            print()
    return 0


def _logging(console: Console, debug: bool) -> None:
    handler = RichHandler(console=console, show_path=False, log_time_format="%H:%M:%S")
    logger = logging.getLogger("reverie")
    logger.handlers = [handler]
    logger.setLevel(logging.DEBUG if debug else logging.INFO)
    logger.propagate = False


def _explain(error: Exception, debug: bool, argv: Sequence[str]) -> int:
    """Tells the user what happened: what can be told in a sentence without a traceback."""
    from reverie.envs.spec import UnusableEnv
    from reverie.envs.workers import EnvFailed
    from reverie.files import DiskError
    from reverie.health import NonFinite
    from reverie.run.checkpoint import AllDamaged, Mismatch
    from reverie.run.directory import RunGone, RunLocked
    from reverie.run.trust import Untrusted
    from reverie.saved import AnotherRun, Malformed, OtherVersion
    from reverie.view.video import NoVideo

    asked = (
        ConfigError,
        algos.UnknownAlgorithm,
        algos.Unsuitable,
        UnusableEnv,
        Mismatch,
        AllDamaged,
        Malformed,
        OtherVersion,
        AnotherRun,
        RunLocked,
        NoVideo,
    )
    met = (EnvFailed, DiskError, NonFinite, RunGone)
    wanted, kind = "--json" in argv, type(error).__name__
    if debug or not isinstance(error, (*asked, *met)):
        _failed(wanted, f"{kind}: {error}", kind, 1)
        raise error
    told = str(error)
    if isinstance(error, Untrusted) and error.missing:
        again = [x for name, value in error.missing.items() for x in (config.flag(name), value)]
        told = f"{error.what}. If you trust it, type\n  reverie {shlex.join([*argv, *again])}\nor add --trust instead"
    print(f"reverie: {told}", file=sys.stderr)
    code = 2 if isinstance(error, asked) else 1
    _failed(wanted, told, kind, code)
    return code


def _failed(wanted: bool, told: str, kind: str, code: int) -> None:
    """The JSON object of a command that did not do what was asked."""
    _output(wanted, {"error": told, "kind": kind, "exit": code})


def _output(wanted: bool, values: dict[str, Any]) -> None:
    if wanted:
        print(json.dumps(values), flush=True)


def program() -> None:
    """The `reverie` program: `main`, with memory made ready for training, compiled programs kept, and nobody who must
    listen."""
    if sys.argv[1:2] == ["train"] and "--dry-run" not in sys.argv:
        use_huge_pages()
    open_outlets()
    if sys.argv[1:2] in (["train"], ["eval"], ["think"]) and not {"--dry-run", "--help", "-h"} & set(sys.argv):
        keep_programs()
    sys.exit(main())


if __name__ == "__main__":
    program()
