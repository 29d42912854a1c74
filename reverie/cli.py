"""The command line: train, eval, dream, think, list, diff, check-env, import.

Exit codes: 0 fine (also after SIGTERM or SIGHUP, when everything is saved), 130 after Ctrl-C, 2 for what the
user typed, 1 for everything else. With `--json`, text for people goes to stderr and the last line
of stdout is one JSON object.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import shlex
import sys
import threading
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.logging import RichHandler
from rich.table import Table
from rich.text import Text

from reverie import __version__, algos, config, help, pictures, presets
from reverie.compile_cache import keep_programs
from reverie.errors import PlainError
from reverie.fields import amount
from reverie.flags import CheckEnv, Diff, Eval, Import, List, Session, VerbResult, parse, parse_train, peek
from reverie.memory import collect_seldom, use_huge_pages
from reverie.run.stop import UNAWAITED
from reverie.safe_stdout import open_outlets

OVERVIEW = """\
reverie: agents that learn a model of their world and act by imagining it

  reverie train ALGORITHM --env ENV [--run PATH] [--preset NAME] [--dry-run] [flags]
  reverie eval RUN [--episodes N] [--video out.mp4] [--planner none|gumbel|puct|mppi] [--simulations N]
  reverie dream RUN [--out FILE] [--key NAME] [--fresh] [--policy]
  reverie think RUN [--step N] [--out FILE.svg|.png] [--planner gumbel|puct] [--simulations N]
  reverie list [PRESET]
  reverie diff PRESET|RUN PRESET|RUN
  reverie check-env ENV [--algorithm NAME]
  reverie import FOLDER --env ENV --run PATH
  reverie --version

Every verb takes --json (one JSON object as the last line of stdout), --help (the flags used most) and --help-all
(all flags). The same train command with the same --run continues that run. REVERIE_DEBUG=1 is --debug.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; returns its exit code."""
    verb, *rest = [*(sys.argv[1:] if argv is None else argv), ""][:-1] or ["--help"]
    if verb == "--version":
        print(__version__)
        return 0
    if verb in help.MARKS:
        return _help(verb == "--help-all")
    if sys.platform == "linux" and "DISPLAY" not in os.environ:
        os.environ.setdefault("SDL_VIDEODRIVER", "dummy")  # pygame complains about a missing screen
    console = Console(stderr="--json" in rest, highlight=False, markup=False)  # brackets in names are brackets
    _logging(console, _is_debug(rest))
    try:
        if verb not in VERBS:
            raise config.ConfigError(f"no verb {verb!r}. Expected one of {', '.join(VERBS)}")
        values, code = VERBS[verb](rest, console)
        if "--json" in rest:
            print(json.dumps(values), flush=True)
        return code
    except (KeyboardInterrupt, Exception) as error:  # the boundary to the person at the terminal
        return _explain(error, [verb, *rest])


def train(argv: list[str], console: Console) -> VerbResult:
    with closing(_early_look(argv)) as early:  # which goes on beside the import of JAX and the algorithm
        conf, session, path = _train_config(argv, console, early.facts)
    from reverie import api
    from reverie.run import loop

    path = path or api.new_path(conf)
    if session.dry_run:
        plan = api.dry_run(conf)
        plan.tell(console, conf, path, conf.run.workers, api.progress(conf, path))
        return dataclasses.asdict(plan), 0
    with api.open_session(conf, path, console) as training:
        result = loop.train(training, console)
    evaluation = result.evaluation.to_json() if result.evaluation else None
    if result.stopped:
        console.print(f"{result.stopped}: saved at step {result.steps:,}.", highlight=False)
        console.print(f"To continue: the same command, with --run {shlex.quote(str(path))}", soft_wrap=True)
    else:
        console.print(_farewell(result, conf, path), soft_wrap=True)
    return {
        "path": str(path),
        "steps": result.steps,
        "steps_asked": conf.run.steps,
        "updates": result.updates,
        "evaluation": evaluation,
        "stopped": result.stopped,
    }, 130 if result.stopped == "SIGINT" else 0


def _farewell(result: Any, conf: config.Config, path: Path) -> str:
    """The outcome of a run that went to its end, and the commands that show more of it."""
    from reverie.envs.spec import draws
    from reverie.run.log import show

    score = f", return {show(round(result.evaluation.mean_return, 1))}" if result.evaluation else ""
    further = result.steps - conf.run.steps
    more = f" (of --steps {conf.run.steps}: envs that step together end together)" if further > 0 else ""
    typed, film = shlex.quote(str(path)), shlex.quote(str(path / "videos" / "eval.mp4"))
    video = f" --video {film}" if draws(conf.run.env) else ""
    return (
        f"Done: {amount(result.steps, 'step')}{more}, {amount(result.updates, 'update')}{score}.\n"
        f"The run lies in {path}. To see more of it:\n"
        f"  reverie eval {typed} --episodes 20{video}\n"
        f"  tensorboard --logdir {typed}    (pip install tensorboard)"
    )


def evaluate(argv: list[str], console: Console) -> VerbResult:
    flags = parse(Eval, argv, "eval")
    from reverie import api
    from reverie.run.evaluation import ACTING
    from reverie.view import video

    if flags.video:
        video.check_suffix(Path(flags.video))
    agent = api.load(
        flags.run, flags.env or None, flags.planner, flags.simulations, flags.planner_scale, trust=flags.trust
    )
    if flags.video:
        agent.require_pictures()
    mode = flags.eval_mode or agent.config.run.eval_mode
    played = api.evaluate(agent, flags.episodes, flags.seed, flags.opponent or None, mode)
    wording = {"greedy": "greedy", "sample": "sampled"}[mode]
    seen = f"{agent.config.run.env} after {amount(agent.step, 'step')}, {amount(flags.episodes, f'{wording} episode')}"
    mean = (_score(played.mean_return), "bold")
    rest = f", standard deviation {_score(played.std_return)}, lengths {min(played.lengths)} to {max(played.lengths)}"
    console.print(Text.assemble(f"{seen}: mean return ", mean, rest), soft_wrap=True)
    for seat, counts in played.seats.items():
        score = ", ".join(f"{count} {name}" for name, count in counts.items())
        console.print(f"moving {seat} against {played.opponent}: {score}")
    if flags.video:
        video.write(Path(flags.video), agent.film(flags.seed or 0, ACTING[mode]))
        console.print(f"video: {flags.video}", soft_wrap=True)
    return played.to_json(), 0


def _score(value: float) -> str:
    """Two digits behind the point, but for numbers so large that nobody reads them."""
    from reverie.run.log import show

    return f"{value:.2f}" if abs(value) < 1e6 else show(value)


def list_all(argv: list[str], console: Console) -> VerbResult:
    flags = parse(List, argv, "list")
    from reverie.envs.spec import families

    if flags.preset:
        values = config.lookup(flags.preset).all_values()
        console.print(help.table(flags.preset, ["value"], {k: [v] for k, v in values.items()}))
        return {"preset": flags.preset, "values": values}, 0
    algorithms: dict[str, dict[str, Any]] = {
        name: {"sizes": list(getattr(algos.load(name), "SIZES", ())), "presets": presets.of(name).named}
        for name in algos.ALGORITHMS
    }
    envs: dict[str, dict[str, Any]] = {f.name: {"extra": f.extra, "installed": f.is_installed} for f in families()}
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
    return {"algorithms": algorithms, "envs": envs}, 0


def diff(argv: list[str], console: Console) -> VerbResult:
    flags = parse(Diff, argv, "diff")
    found = config.differences(config.lookup(flags.a), config.lookup(flags.b))
    same = f"{flags.a} and {flags.b} have the same values"
    console.print(help.table("", [flags.a, flags.b], found) if found else same)
    return {"a": flags.a, "b": flags.b, "differences": found}, 0


def check_env(argv: list[str], console: Console) -> VerbResult:
    flags = parse(CheckEnv, argv, "check-env")
    if flags.algorithm:
        algos.module(flags.algorithm)  # a typo is an error before anything else
    os.environ.setdefault("JAX_PLATFORMS", "cpu")  # nothing is computed here
    from reverie import api
    from reverie.envs.spec import EnvSpec

    wrapper_values = {k: getattr(flags, k) for k in ("action_repeat", "time_limit", "image_size", "gray", "obs_keys")}
    spec = EnvSpec(flags.env, kwargs=flags.env_kwargs, **wrapper_values)
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
    finding_rows = [dataclasses.asdict(finding) for finding in findings]
    return {"env": flags.env, "ok": bool(sound), "algorithms": sound, "findings": finding_rows}, 0 if sound else 1


def import_episodes(argv: list[str], console: Console) -> VerbResult:
    flags = parse(Import, argv, "import")
    from reverie import api
    from reverie.envs.spec import EnvSpec

    rows = api.import_episodes(flags.source, EnvSpec(flags.env, kwargs=flags.env_kwargs), flags.run, flags.envs)
    console.print(f"{flags.run} holds {amount(rows, 'row')} of {flags.source}. To learn from them:", soft_wrap=True)
    typed = ["--env", flags.env, *(["--env-kwargs", flags.env_kwargs] if flags.env_kwargs != "{}" else [])]
    typed += ["--offline", flags.run, "--envs", str(flags.envs)]
    console.print(f"  reverie train dreamer_v3 {shlex.join(typed)}", soft_wrap=True)
    return {"path": flags.run, "rows": rows}, 0


VERBS: dict[str, Callable[[list[str], Console], VerbResult]] = {
    "train": train,
    "eval": evaluate,
    "dream": pictures.dream,
    "think": pictures.think,
    "list": list_all,
    "diff": diff,
    "check-env": check_env,
    "import": import_episodes,
}


def _early_look(argv: list[str]) -> Any:
    """An `EarlyLook` at the env of a new run, by its name and arguments: most commands say no more of it. Nothing is
    begun where a run is there, or has a preset, or no env is named.

    Raises:
      UnusableEnv: nobody has registered such an env.
    """
    from reverie.envs.build import require_id
    from reverie.envs.facts import EarlyLook
    from reverie.envs.spec import EnvSpec, UnusableEnv

    env, run, preset = (peek(argv, flag) for flag in ("--env", "--run", "--preset"))
    algorithm = argv[0] if argv and argv[0] in algos.ALGORITHMS else "dreamer_v3"
    is_there = bool(run) and Path(run).exists()
    has_preset = preset not in ("", config.PLAIN) or (not preset and config.preset_for(algorithm, env))
    if not env or is_there or has_preset or set(help.MARKS) & set(argv):
        return EarlyLook(None)
    try:
        spec = EnvSpec(env, kwargs=peek(argv, "--env-kwargs") or "{}")
    except UnusableEnv:  # which will be told when the whole command is read
        return EarlyLook(None)
    require_id(spec)
    return EarlyLook(spec)


def _train_config(
    argv: list[str], console: Console, facts_of: Callable[..., Any]
) -> tuple[config.Config, Session, Path | None]:
    """The config that a `train` command means, as of `parse_train`, with the values that are chosen for its env.

    Args:
      facts_of: gives the facts of an env, as `EarlyLook.facts` does.
    """
    argv = _with_algorithm(argv, console, facts_of)
    argv = [*argv, "--debug"] if _is_debug(argv) else argv
    conf, session, path = parse_train(argv)
    if session.preset and not peek(argv, "--preset"):
        wording = f"preset {session.preset}: made for this env; --preset {config.PLAIN} to choose by what it shows"
        console.print(wording, highlight=False, soft_wrap=True)
    if conf.run.device == "cpu":
        # Before JAX looks for devices: it would take most of the GPU's memory on finding one.
        os.environ.setdefault("JAX_PLATFORMS", "cpu")
    from reverie import defaults

    if found := defaults.choices(conf, session.preset, is_new=not (path and config.saved(path)), facts_of=facts_of):
        conf, session, path = parse_train(argv, {choice.name: choice.value for choice in found})
        defaults.tell(console, conf, found)
    return conf, session, path


def _with_algorithm(argv: list[str], console: Console, facts_of: Callable[..., Any]) -> list[str]:
    """The command with an algorithm: that of the run to continue, or the one for what the env is."""
    named = bool(argv) and not argv[0].startswith("-")
    preset = peek(argv, "--preset")
    if not named and presets.is_file(preset) and (owner := presets.owner(preset)):
        return [owner, *argv]
    if named or not peek(argv, "--env") or set(help.MARKS) & set(argv):
        return argv
    run = peek(argv, "--run")
    if run and (saved := config.saved(Path(run))):
        return [saved.algorithm, *argv]
    from reverie import defaults
    from reverie.assembly import spec_of

    conf, _, _ = parse_train(["dreamer_v3", *argv])
    facts = facts_of(spec_of(conf.run))
    if facts is None:
        return ["dreamer_v3", *argv]
    choice = defaults.algorithm(conf.run.env, facts)
    console.print(f"{choice.value}: {choice.reason}", highlight=False, soft_wrap=True)
    return [choice.value, *argv]


def _help(everything: bool) -> int:
    """The overview; with all verbs and all their flags, if so asked."""
    print(OVERVIEW)
    for argv in [*([verb] for verb in VERBS), *(["train", name] for name in algos.ALGORITHMS)] if everything else []:
        try:
            VERBS[argv[0]]([*argv[1:], "--help-all"], Console(markup=False))
        except SystemExit:
            print()
    return 0


def _is_debug(argv: Sequence[str]) -> bool:
    return "--debug" in argv or os.environ.get("REVERIE_DEBUG", "") not in ("", "0")


def _logging(console: Console, debug: bool) -> None:
    handler = RichHandler(console=console, show_path=False, log_time_format="%H:%M:%S")
    logger = logging.getLogger("reverie")
    logger.handlers = [handler]
    logger.setLevel(logging.DEBUG if debug else logging.INFO)
    logger.propagate = False


def _explain(error: BaseException, argv: Sequence[str]) -> int:
    """Tells the user what happened, and returns the exit code: what can be told in a sentence without a traceback."""
    kind = type(error).__name__
    plain = error if isinstance(error, PlainError) and not _is_debug(argv[1:]) else None
    if isinstance(error, KeyboardInterrupt):
        wording, code = "interrupted before everything was saved", 130
    elif plain:
        wording, code = plain.answer(argv), plain.exit_code
        print(f"reverie: {wording}", file=sys.stderr)
    else:
        wording, code = f"{kind}: {error}", 1
    if "--json" in argv:
        print(json.dumps({"error": wording, "kind": kind, "exit": code}), flush=True)
    if plain or isinstance(error, KeyboardInterrupt):
        return code
    raise error


def program() -> None:
    """The `reverie` program: `main`, with memory made ready, compiled programs kept, and nobody who must listen."""
    if sys.argv[1:2] == ["train"] and "--dry-run" not in sys.argv:
        use_huge_pages()
    open_outlets()
    if sys.argv[1:2] in (["train"], ["eval"], ["think"]) and not {"--dry-run", "--help", "-h"} & set(sys.argv):
        keep_programs()
        collect_seldom()
    code = main()
    if any(thread.name.startswith(UNAWAITED) for thread in threading.enumerate()):
        # A program is being compiled that nobody wants any more, and Python would wait for it.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


if __name__ == "__main__":
    program()
