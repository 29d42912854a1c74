"""The library's front door, from Python or through the command line: train, load, evaluate, import.

Everything here is assembly: a config becomes envs, an agent and a directory, and those go to `run`.
"""

from __future__ import annotations

import dataclasses
import os
import re
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console

from reverie import algos, config, defaults, presets
from reverie.assembly import computing, env_here, make_agent, spec_of, spec_values
from reverie.config import CODE, Config, ConfigError
from reverie.envs import check
from reverie.envs.base import Spaces
from reverie.envs.check import Finding
from reverie.envs.spec import EnvLike, EnvSpec, UnusableEnv, env_spec
from reverie.plan import Plan, plan
from reverie.replay.segments import Segments
from reverie.replay.sequences import Replay
from reverie.resolve import again, resolve, searching, settle
from reverie.run import evaluation, experience, loop, snapshot
from reverie.run.callbacks import Callbacks, open_logger
from reverie.run.checkpoint import Checkpoints
from reverie.run.collect import dataset
from reverie.run.collect.base import Episode
from reverie.run.directory import RunDirectory
from reverie.run.envs import open_envs, open_evaluation
from reverie.run.evaluation import ACTING, Evaluation
from reverie.run.jitted import JittedAgent
from reverie.run.loop import Result
from reverie.run.phases import Progress
from reverie.run.seeds import evaluation_key, seeds
from reverie.run.stop import Stop
from reverie.run.trust import check_code
from reverie.trained import LoadedAgent


@dataclass(frozen=True)
class Run:
    """A finished (or interrupted) run.

    Attributes:
      path: its directory; `reverie.train(..., run=path)` continues it.
      steps, updates: of the whole run.
      evaluation: the last evaluation, None if there was none.
      env: what it was trained in.
    """

    path: Path
    steps: int
    updates: int
    evaluation: Evaluation | None
    env: EnvSpec

    def load(self) -> LoadedAgent:
        """The trained agent."""
        return load(self.path, self.env)


def train(
    algorithm: str,
    env: EnvLike | None = None,
    *,
    run: str | os.PathLike[str] | None = None,
    preset: str | None = None,
    trust: bool = False,
    on_log: Callable[[int, Mapping[str, float]], Any] | None = None,
    on_eval: Callable[[int, Evaluation], Any] | None = None,
    on_episode: Callable[[int, Episode], Any] | None = None,
    on_checkpoint: Callable[[int, Path], Any] | None = None,
    **values: Any,
) -> Run:
    """Trains an agent, or continues a run that is there already.

    Args:
      algorithm: a name of `reverie list`.
      env: a Gymnasium id, "module:EnvClass", an `EnvSpec`, or a function that builds an env.
      run: the run's directory; a new one under `runs/` if left out.
      preset: of the algorithm, applied before `values`; if left out, the one that was made for this env, if any
        ("none": no preset, values chosen by what the env shows; "paper": the algorithm's own).
      trust: run also such code as only the saved config of this run names (its env, its collector).
      on_log, on_eval, on_episode, on_checkpoint: called while the run goes, see `run.callbacks.Callbacks`.
      **values: any flag of `reverie train` by its name, with underscores: `steps=10_000, envs=8`.

    Raises:
      ConfigError: an unknown name, a value out of range, or one that contradicts the run's own.
      NeedsTrust: (a ConfigError) the saved config names code, and it is neither given again nor trusted.
      TypeError: a value of the wrong type.
      UnusableEnv: the env as named cannot be used.
      KeyboardInterrupt: on Ctrl-C, after everything is saved.
    """
    spec = None if env is None else env_spec(env)
    values = spec_values(spec, values) if spec else values
    saved = config.begun(Path(run)) if run else None
    ask = partial(
        resolve,
        algorithm,
        lambda base: config.override(base, **values),
        saved=saved,
        env=spec.id if spec else "",
        preset=preset or "",
        trust=CODE if trust else values.keys() & {*CODE},
    )
    given, named = ask()
    factory = spec.factory if spec else None
    if found := defaults.choices(given, named, is_new=saved is None, factory=factory):
        given, _ = ask(chosen={x.name: x.value for x in found})
        defaults.tell(Console(markup=False), given, found)
    path = Path(run) if run else new_path(given)
    callbacks = Callbacks(on_log, on_eval, on_episode, on_checkpoint)
    result = run_training(given, path, Console(markup=False), factory, callbacks)
    if result.stopped == "SIGINT":
        raise KeyboardInterrupt
    env = dataclasses.replace(spec_of(given.run), factory=factory)
    return Run(result.path, result.steps, result.updates, result.evaluation, env)


def run_training(conf: Config, path: Path, console: Console, *args: Any) -> Result:
    """Trains in `path`, continuing what is there. Arguments: those of `open_session`."""
    with open_session(conf, path, console, *args) as session:
        return loop.train(session, console)


@contextmanager
def open_session(
    conf: Config,
    path: Path,
    console: Console,
    factory: Callable[..., Any] | None = None,
    callbacks: Callbacks | None = None,
) -> Iterator[loop.Training]:
    """A session of training in `path`, with envs, agent and replay, and with what a run that is there has saved.

    Args:
      conf: settled with the saved one, if any.
      console: where a person watches.
      factory: builds the env, if only an object of this process can.
      callbacks: that hear of the run, beside those of `--logger`.
    """
    spec = dataclasses.replace(spec_of(conf.run), factory=factory)
    with (
        Stop() as stop,
        RunDirectory(path).with_lock() as directory,
        computing(conf) as (devices, conf),
        open_envs(conf.run, spec, conf.run.envs, seeds(conf.run.seed).envs) as workers,
    ):
        agent = make_agent(conf, workers.obs_space, workers.act_space)
        forecast = plan(conf, agent, devices)
        session = loop.Training(conf.run, agent, workers, directory, stop, devices, conf.id)
        conf = dataclasses.replace(conf, id=session.id, files=config.places(conf.run))
        directory.write_config(config.to_text(config.typed_names(conf, config.saved(path))))  # what may be refused was
        forecast.tell(console, conf, path, workers.mode, session.progress)
        with open_logger(conf.run.logger, conf, path) as tracker:
            session.callbacks += [tracker, *([callbacks] if callbacks else [])]
            yield session


def new_path(conf: Config) -> Path:
    """`runs/<algorithm>-<env>-<seed>`, with a number if that is taken."""
    env = re.sub(r"[^A-Za-z0-9._]+", "-", conf.run.env).strip("-.")
    first = Path("runs") / f"{conf.algorithm}-{env}-{conf.run.seed}"
    path, number = first, 2
    while path.exists():
        path, number = first.with_name(f"{first.name}-{number}"), number + 1
    return path


def import_episodes(source: str, env: EnvLike, path: str | os.PathLike[str], envs: int = 4) -> int:
    """Makes replay of recorded episodes, in a directory that `--offline` takes. Returns the number of rows.

    Args:
      source: a folder of .npz files, or `minari:<id>`; `run.collect.dataset` says what is in a file.
      env: that they are of.
      path: of the directory; a new one.
      envs: streams; a run that learns from it has as many.

    Raises:
      ConfigError: the directory is there, or the data is none, or not of this env.
      UnusableEnv: the env as named cannot be used.
    """
    spec, path = env_spec(env), Path(path)
    if envs < 1:
        raise ConfigError(f"--envs must be 1 or more, got {envs}")
    if path.exists() and any(path.iterdir()):
        raise ConfigError(f"{path} is there already: give another directory")
    if not dataset.holds(source):
        raise ConfigError(f"{source}: expected a folder of .npz files, or {dataset.MINARI}<id>")
    data = dataset.Dataset(source, spec, envs)
    values = spec_values(spec, {"envs": envs, "replay_size": max(data.rows, 2 * envs) * envs})
    conf = dataclasses.replace(config.override(config.default("dreamer_v3"), **values), id=uuid.uuid4().hex)
    fields = experience.row_fields(data.obs_space, data.act_space)
    replay = Replay(fields, streams=envs, length=1, capacity=conf.run.replay_size, seed=0, online=False)
    data.pour(replay)
    with RunDirectory(path).with_lock() as directory:
        manifest = Segments(directory.replay, conf.id).save(replay)
        facts = snapshot.describe_run(data.obs_space, data.act_space, Progress(step=data.rows), manifest)
        Checkpoints(directory.checkpoints, run=conf.id).save(data.rows, {}, facts)
        directory.write_config(config.to_text(conf))
    return data.rows


def check_env(
    env: EnvLike, algorithm: str | None = None, *, steps: int = 1000, deadline: float = 60.0
) -> list[Finding]:
    """Finds everything that would keep an env from being trained on: what is wrong with it, and which algorithms cannot
    use what it shows and takes.

    Args:
      env: an id, a callable or an `EnvSpec`.
      algorithm: asked for; all of them if left out.
      steps: random steps to take, over as many episodes as they give.
      deadline: seconds allowed for each phase that should be short: building, a reset, a step.

    Returns:
      what was found, errors first. An algorithm trains where no `error` is for everybody (`Finding.algorithms`) or for
      it.
    """
    spec = env_spec(env)
    found, spaces = check.examine(spec, steps=steps, deadline=deadline)
    if spaces is None:
        return found
    refusals: dict[str, list[str]] = {}
    for name in [algorithm] if algorithm else algos.ALGORITHMS:
        if why := _refusal(name, spec, *spaces):
            refusals.setdefault(why, []).append(name)
    found += [Finding("error", why, algorithms=tuple(names)) for why, names in refusals.items()]
    return check.by_severity(found)


def _refusal(algorithm: str, spec: EnvSpec, obs_space: Spaces, act_space: Spaces) -> str:
    """Why `train` would refuse an env with these spaces; empty if it would not."""
    try:
        conf = config.default(algorithm, config.preset_for(algorithm, spec.id))
        conf = settle(None, config.override(conf, **spec_values(spec, {})))
        with computing(conf) as (devices, conf):
            plan(conf, make_agent(conf, obs_space, act_space), devices)
    except (ConfigError, algos.Unsuitable, UnusableEnv) as error:
        return str(error)
    return ""


def dry_run(conf: Config) -> Plan:
    """The plan of a run, from the shapes of its model alone."""
    with computing(conf) as (devices, conf), closing(env_here(spec_of(conf.run))) as env:
        return plan(conf, make_agent(conf, env.obs_space, env.act_space), devices)


def progress(conf: Config, path: Path) -> Progress | None:
    """How far a run in `path` has come; None if it has no checkpoint."""
    newest = snapshot.latest(Checkpoints(RunDirectory(path).checkpoints, run=conf.id))
    return Progress.of(newest.meta["progress"]) if newest else None


def load(
    path: str | os.PathLike[str],
    env: EnvLike | None = None,
    planner: str | None = None,
    simulations: int | None = None,
    planner_scale: float | None = None,
    trust: bool = False,
) -> LoadedAgent:
    """The agent of the newest checkpoint of a run.

    Args:
      path: the run's directory.
      env: that of the run again. Needed only if it is code of one's own: a directory that was copied from somebody
        runs none by itself.
      planner: of a Dreamer: how it searches before it acts (none, gumbel or puct), whatever it was trained with; the
        run's own if left out.
      simulations: of each search, of Dreamers and of the MuZero family; the run's own if left out.
      planner_scale: of the planner gumbel: how much values outweigh the actor; the run's own if left out.
      trust: run also an env that only the run names.

    Raises:
      NeedsTrust: (a ConfigError) the env is code that only the run names; says what would be run.
      ConfigError: there is no run, or no checkpoint in it yet, or it cannot search as asked for.
      Unsuitable: the actions are not one discrete choice, and a planner is asked for.
      Mismatch: the env has other spaces than the agent was trained with.
    """
    path = Path(path)
    saved = config.here(config.of_run(path))
    spec = again(env, spec_of(saved.run))
    check_code(CODE if trust or env is not None else (), spec)
    checkpoint = snapshot.latest(Checkpoints(RunDirectory(path).checkpoints, run=saved.id))
    if checkpoint is None:
        raise ConfigError(f"the run in {path} has no checkpoint yet")
    return LoadedAgent(path, searching(saved, planner, simulations, planner_scale), spec, checkpoint)


def evaluate(
    agent: LoadedAgent | str | os.PathLike[str],
    episodes: int = 10,
    seed: int | None = None,
    opponent: str | None = None,
    eval_mode: str | None = None,
) -> Evaluation:
    """Plays episodes; in games of two, against an opponent and half of them from each seat.

    Args:
      agent: a loaded one, or the path of a run.
      episodes: how many.
      seed: of the episodes; the one of the run's own evaluations if left out.
      opponent: in games of two: random, perfect or mcts:N; the one of the run's own evaluations if left out.
      eval_mode: greedy (the most probable action) or sample (drawn from the policy); the run's own if left out.

    Raises:
      ConfigError: an opponent is named, and there is only one player.
      UnusableEnv: the opponent cannot play this game.
    """
    if episodes < 1:
        raise ConfigError(f"--episodes must be 1 or more, got {episodes}")
    if isinstance(agent, str | os.PathLike):
        agent = load(agent)
    run = agent.config.run
    if opponent and not any(space.kind == "player" for space in agent.env.obs_space.values()):
        raise ConfigError(f"--opponent {opponent}, but {agent.spec.id} is no game of two players: leave it out")
    mode = eval_mode or run.eval_mode
    if mode not in ACTING:
        raise ConfigError(f"--eval-mode must be one of {', '.join(ACTING)}, got {mode!r}")
    seed = seeds(run.seed).evaluation if seed is None else seed
    opponent = opponent or run.opponent
    with open_evaluation(run, agent.spec, agent.env.obs_space, episodes, seed, opponent) as envs:
        key, compiled = evaluation_key(run.seed, agent.moment), JittedAgent(agent.agent)
        played = evaluation.evaluate(compiled, agent.state, envs, episodes, key, opponent=opponent, mode=ACTING[mode])
    assert played is not None, "only a signal gives up an evaluation"
    return played


def list_presets() -> dict[str, list[str]]:
    """Algorithm -> names of its presets."""
    return {name: list(presets.of(name).named) for name in algos.ALGORITHMS}
