"""What a person calls, from Python or through the command line: train, load, evaluate, dream, think, plan.

Everything here is assembly: a config becomes envs, an agent and a directory, and those go to `run`.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import jax
import numpy as np
from rich.console import Console

from reverie import algos, config, memory
from reverie.agent import DREAMT, SEEN, Agent, Carry, Divided, Dream, Mode
from reverie.algos.dreamer import Dreamer
from reverie.algos.muzero import Config as MuZeroConfig
from reverie.algos.muzero import MuZero
from reverie.algos.planning import Planning
from reverie.behavior.search import Found
from reverie.behavior.tree import ILLEGAL
from reverie.config import Config, ConfigError, RunConfig
from reverie.envs.base import Arrays, Env, Spaces
from reverie.envs.device import DeviceEnvs
from reverie.envs.spec import EnvLike, EnvSpec, env_spec, make_env
from reverie.envs.workers import episode_seed
from reverie.envs.wrappers import native_action, observe
from reverie.replay.segments import Segments
from reverie.replay.sequences import Replay, Row, bytes_per_row
from reverie.run import dreams, evaluation, loop, meta, offline, phases
from reverie.run.checkpoint import Checkpoints
from reverie.run.collect import Collector
from reverie.run.compiled import Compiled
from reverie.run.directory import RunDirectory
from reverie.run.evaluation import ACTING, Evaluation, open_envs
from reverie.run.loop import Result
from reverie.run.rollout import DeviceCollector
from reverie.run.script import Script
from reverie.run.stop import Stop
from reverie.run.trust import CODE, check_code
from reverie.saved import understood
from reverie.view.tree import Branches, Thought

logger = logging.getLogger("reverie")

FILM = 300  # frames after which a video ends with the episode


# --------------------------------------------------------------------------------------- training


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
    **values: Any,
) -> Run:
    """Trains an agent, or continues a run that is there already.

    Args:
      algorithm: a name of `reverie list`.
      env: a Gymnasium id, "module:EnvClass", an `EnvSpec`, or a function that builds an env.
      run: the run's directory; a new one under `runs/` if left out.
      preset: of the algorithm, applied before `values`; if left out, the one that was made for this env, if any
        ("none": plain defaults).
      trust: run also such code as only the saved config of this run names (its env, its collector).
      **values: any flag of `reverie train` by its name, with underscores: `steps=10_000, envs=8`.

    Raises:
      ConfigError: an unknown name, a value out of range, or one that contradicts the run's own.
      Untrusted: (a ConfigError) the saved config names code, and it is neither given again nor trusted.
      TypeError: a value of the wrong type.
      UnusableEnv: the env as named cannot be used.
      KeyboardInterrupt: on Ctrl-C, after everything is saved.
    """
    spec = None
    if env is not None:
        spec = env_spec(env)
        values = _spec_values(spec, values)
    saved = config.saved(Path(run)) if run else None
    given = saved or config.default(algorithm)
    if chosen := preset or ("" if saved or spec is None else config.suited(algorithm, spec.id)):
        given = config.apply_preset(given, chosen)
    given = config.override(dataclasses.replace(given, algorithm=algorithm), **values)
    typed = {"env"} & values.keys() | {"collector"} & values.keys()
    given = settle(saved, given, CODE if trust else typed)
    path = Path(run) if run else new_path(given)
    factory = spec.factory if spec else None
    result = run_training(given, path, Console(), factory)
    if result.stopped == "SIGINT":
        raise KeyboardInterrupt
    env = dataclasses.replace(spec_of(given.run), factory=factory)
    return Run(result.path, result.steps, result.updates, result.evaluation, env)


def run_training(conf: Config, path: Path, console: Console, factory: Callable[..., Any] | None = None) -> Result:
    """Trains in `path`, continuing what is there.

    Args:
      conf: settled with the saved one, if any.
      console: where a person watches.
      factory: builds the env, if only an object of this process can.
    """
    run = conf.run
    with (
        Stop() as stop,
        RunDirectory(path).locked() as directory,
        computing(run) as (devices, run),
        open_envs(
            dataclasses.replace(spec_of(run), factory=factory),
            run.envs,
            seed=loop.seeds(run.seed).envs,
            mode="inline" if run.debug else run.workers,
            deadline=run.deadline,
            memory=run.worker_memory,
        ) as workers,
    ):
        conf = dataclasses.replace(conf, run=run)
        agent = make_agent(conf, workers.obs_space, workers.act_space)
        forecast = plan(conf, agent, devices)
        session = loop.Training(conf.run, agent, workers, directory, stop, devices, conf.id)
        write_config(directory, dataclasses.replace(conf, id=session.id))  # whatever may be refused was
        forecast.tell(console, conf, path, workers.mode)
        return loop.train(session, console)


def settle(saved: Config | None, given: Config, vouched: Collection[str] = ()) -> Config:
    """What to run: `given`, or the saved config with what may change in it.

    Args:
      vouched: names of the values that a person typed, and that may therefore name code.

    Raises:
      Untrusted: (a ConfigError) the saved config names other code.
      ConfigError: no env is named, a new run asks for what its algorithm cannot do, or `given` contradicts what is
        saved; names all that do.
    """
    if not given.run.env:
        raise ConfigError("which env? Type for example --env CartPole-v1")
    if saved is None:
        if given.run.within_episodes and isinstance(given.agent, MuZeroConfig):
            raise ConfigError(
                f"--within-episodes, but {given.algorithm} learns from a row together with those after it: the last "
                "ones of an episode would never be learned from. Leave it out: what lies beyond an end is masked anyway"
            )
        return given
    clashes = config.contradictions(saved, given)
    if clashes:
        width = max(len(config.flag(name)) for name, _, _ in clashes)
        lines = [f"{config.flag(n):{width}}  saved {s!r}, given {g!r}" for n, s, g in clashes]
        raise ConfigError(
            "this run was begun with other values:\n  "
            + "\n  ".join(lines)
            + "\nLeave them out to continue it, or give a new run another directory with --run"
        )
    check_code(vouched, spec_of(saved.run), saved.run.collector)
    return config.continued(saved, given)


def write_config(directory: RunDirectory, conf: Config) -> None:
    """Puts the config into the run directory, whole or not at all."""
    directory.folder.replace(directory.config.name, config.to_text(conf).encode())
    directory.folder.sync()


def new_path(conf: Config) -> Path:
    """`runs/<algorithm>-<env>-<seed>`, with a number if that is taken."""
    env = re.sub(r"[^A-Za-z0-9._]+", "-", conf.run.env).strip("-.")
    first = Path("runs") / f"{conf.algorithm}-{env}-{conf.run.seed}"
    path, number = first, 2
    while path.exists():
        path, number = first.with_name(f"{first.name}-{number}"), number + 1
    return path


def spec_of(run: RunConfig) -> EnvSpec:
    """The env of a run, by name."""
    return EnvSpec(
        run.env,
        action_repeat=run.action_repeat,
        time_limit=run.time_limit,
        image_size=run.image_size,
        gray=run.gray,
        targets=run.targets,
        kwargs=run.env_kwargs,
    )


# --------------------------------------------------------------------------------------- planning


@dataclass(frozen=True)
class Plan:
    """The choices that matter, and what they cost.

    Attributes:
      parameters: `{"total": n, "modules": {name: n}}`.
      replay_bytes: memory that replay takes by the end of the run.
      updates: that the run does in all.
      env_steps: that it takes in all, evaluations aside.
    """

    parameters: dict[str, Any]
    replay_bytes: int
    replay_rows: int
    device: str
    precision: str
    size: str | None
    updates: int
    env_steps: int

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    def tell(self, console: Console, conf: Config, path: Path, workers: str) -> None:
        """Prints the plan of a run that begins in `path`."""
        run, total = conf.run, self.parameters["total"]
        size = f"size {self.size}, " if self.size else ""
        wanted = min(run.replay_size, self.env_steps or self.replay_rows)
        bounded = f" (of {wanted:,}: raise --replay-gb for more)" if self.replay_rows < wanted else ""
        every = f"every {run.checkpoint_every:,} steps" if run.checkpoint_every else "at the end"
        learned = f"replay ratio {run.replay_ratio:g} trained steps per env step"
        if phases.apart(run):
            first = f"replay of {run.offline}" if run.offline else "env steps"
            learned = (
                f"schedule     {first}, {run.model_updates:,} model updates, {run.policy_updates:,} policy updates"
                if run.schedule == "model-then-policy"
                else f"schedule     {first}, {run.model_updates:,} updates"
            )
        console.print(
            f"[bold]{conf.algorithm}[/bold] on [bold]{run.env}[/bold]: {self.env_steps:,} steps, "
            f"{self.updates:,} updates\n"
            f"  run          {path}\n"
            f"  model        {size}{total:,} parameters\n"
            f"  device       {self.device}, {self.precision}\n"
            f"  envs         {run.envs} ({workers})\n"
            f"  {learned}\n"
            f"  replay       {self.replay_rows:,} steps, {self.replay_bytes / 1e6:,.0f} MB{bounded}\n"
            f"  checkpoint   {every}",
            highlight=False,
            soft_wrap=True,
        )


def dry_run(conf: Config) -> Plan:
    """The plan of a run, from the shapes of its model alone."""
    with computing(conf.run) as (devices, run):
        env = make_env(spec_of(run))
        try:
            conf = dataclasses.replace(conf, run=run)
            return plan(conf, make_agent(conf, env.obs_space, env.act_space), devices)
        finally:
            env.close()


def plan(conf: Config, agent: Agent, devices: Sequence[jax.Device]) -> Plan:
    """What `conf` comes to.

    Raises:
      ConfigError: replay cannot hold what it must, or more than the machine has; a batch cannot be split; the model is
        to be learned first, and the algorithm cannot do that; or the run to learn from lived in another env.
      UnusableEnv: there is no such collector.
    """
    run = conf.run
    if run.schedule == "model-then-policy" and not isinstance(agent, Divided):
        raise ConfigError(
            f"--schedule {run.schedule}, but in {conf.algorithm} one loss trains model and policy: neither can wait "
            "for the other. Leave it out, or choose a Dreamer, such as `reverie train dreamer_v3`"
        )
    modules = agent.parameters(jax.eval_shape(agent.init, jax.random.key(0)))
    capacity, window = loop.capacity(run, agent), loop.window(run, agent)
    width = bytes_per_row(loop.fields(agent))
    if capacity // run.envs < window:
        raise ConfigError(
            f"replay may hold {capacity} steps, {capacity // run.envs} of each env, and a sequence "
            f"has {window}: raise --replay-size or --replay-gb, or lower --length or --envs"
        )
    rows = min(capacity, run.steps)
    if run.batch % agent.minibatches:
        raise ConfigError(
            f"--batch {run.batch} cannot be split into {agent.minibatches} equal minibatches, as an update of "
            f"{conf.algorithm} does: try --batch {run.batch + -run.batch % agent.minibatches}"
        )
    if run.offline:
        source = offline.source(run.offline)
        # What a Dreamer stores beside a step it can do without; the others learn from what their search stored.
        source.check(loop.fields(agent), run.envs, searched=not isinstance(agent, Divided))
        rows = min(capacity, source.rows)
    if run.collector:
        Script(run.collector, agent.act_space, run.seed)  # tells of a wrong name before anything is begun
    if run.opponent != RunConfig.opponent and not any(x.kind == "player" for x in agent.obs_space.values()):
        raise ConfigError(f"--opponent {run.opponent}, but {run.env} is no game of two players: type --opponent random")
    allowed, weights = memory.limit(), 4 * sum(modules.values())
    if weights > 0.9 * allowed:
        raise ConfigError(
            f"the parameters would take {weights / 1e9:.1f} GB, and this process may take {allowed / 1e9:.1f} GB: "
            "lower the widths or the number of layers"
        )
    if rows * width > 0.9 * allowed:
        raise ConfigError(
            f"replay would take {rows * width / 1e9:.1f} GB, and this process may take {allowed / 1e9:.1f} GB (what "
            "the machine has, or less if its container or `ulimit -v` says so): lower --replay-gb or --replay-size"
        )
    return Plan(
        parameters={"total": sum(modules.values()), "modules": modules},
        replay_bytes=rows * width,
        replay_rows=rows,
        device=_described(devices, run.batch),
        precision=run.precision,
        size=getattr(conf.agent, "size", None),
        updates=phases.all_updates(run) if phases.apart(run) else loop.ratio(run, agent).total(run.steps),
        env_steps=phases.env_steps(run),
    )


def make_agent(conf: Config, obs_space: Spaces, act_space: Spaces) -> Agent:
    """The agent of a config whose precision is settled."""
    algorithm = algos.load(conf.algorithm)
    agent: Agent = algorithm.make_agent(conf.agent, obs_space, act_space, precision=conf.run.precision)
    return agent


@contextmanager
def computing(run: RunConfig) -> Iterator[tuple[list[jax.Device], RunConfig]]:
    """Makes the chosen device JAX's default.

    Yields:
      the devices that share the batches, the default one first; and `run` with their number and with the precision
      that suits them.

    Raises:
      ConfigError: there is no such device, or not that many.
    """
    devices = jax.devices("cpu") if run.device == "cpu" else jax.devices()
    platform = devices[0].platform
    if run.device == "gpu" and platform != "gpu":
        raise ConfigError("--device gpu, but JAX sees none: install `reverie[cuda]`, or type --device cpu")
    if run.devices > len(devices):
        more = "; for more on a CPU, set XLA_FLAGS=--xla_force_host_platform_device_count" if platform == "cpu" else ""
        raise ConfigError(
            f"--devices {run.devices}, but JAX sees {len(devices)} ({platform}): type --devices 0 for all of them{more}"
        )
    run = dataclasses.replace(run, devices=run.devices or len(devices))
    devices = devices[: run.devices]
    if run.precision == "auto":
        precision: Literal["bfloat16", "float32"]
        precision = "bfloat16" if platform == "gpu" else "float32"
        run = dataclasses.replace(run, precision=precision)
    with jax.default_device(devices[0]), jax.disable_jit() if run.debug else nullcontext():
        yield devices, run


def _described(devices: Sequence[jax.Device], batch: int) -> str:
    """The devices in words, and how they share a batch."""
    first, count = devices[0], len(devices)
    kind = f"gpu ({first.device_kind})" if first.platform == "gpu" else first.platform
    return f"{count} x {kind}, {batch // count} of {batch} sequences each" if count > 1 else kind


def _spec_values(spec: EnvSpec, values: dict[str, Any]) -> dict[str, Any]:
    """`values` with what an env says about itself."""
    own = {k: getattr(spec, k) for k in ("action_repeat", "time_limit", "image_size", "gray", "targets")}
    own = {k: v for k, v in own.items() if v != getattr(RunConfig(), k)}
    if spec.kwargs:
        own["env_kwargs"] = json.dumps(spec.kwargs, sort_keys=True)
    for key in sorted(own.keys() & values.keys()):
        if own[key] != values[key]:
            raise ConfigError(f"{key} is {values[key]!r}, but the env given says {own[key]!r}")
    return {**values, **own, "env": spec.id}


# -------------------------------------------------------------------------------------- afterwards


class LoadedAgent:
    """A trained agent. Acts in the env's own words: raw observations in, raw actions out.

    Attributes:
      config: of its run, with the search that was asked for.
      step: env steps it was trained for.
      moment: the same, plus the updates if these came after them: of names and random keys.
      env: one of its kind, as the agent sees it.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        env: EnvLike | None = None,
        planner: str | None = None,
        simulations: int | None = None,
        planner_scale: float | None = None,
        trust: bool = False,
    ) -> None:
        self.path = Path(path)
        saved = config.saved(self.path)
        if saved is None:
            raise ConfigError(f"no run in {self.path}: it has no config.json")
        spec = _again(env, spec_of(saved.run))
        check_code(CODE if trust or env is not None else (), spec)
        checkpoint = meta.latest(Checkpoints(RunDirectory(self.path).checkpoints, run=saved.id))
        if checkpoint is None:
            raise ConfigError(f"the run in {self.path} has no checkpoint yet")
        saved = searching(saved, planner, simulations, planner_scale)
        self.config, self.step, self.moment = saved, checkpoint.meta["progress"]["step"], checkpoint.step
        self.spec = spec
        self.env: Env = make_env(self.spec)
        self.agent = make_agent(saved, self.env.obs_space, self.env.act_space)
        with understood(checkpoint.path):
            self.state = loop.agent_state(self.agent, checkpoint)
        self._policy = Compiled(self.agent).policy  # of one env
        self._dream = jax.jit(self.agent.dream, static_argnums=2)
        self._think: dict[int | None, Callable[..., Any]] = {}  # by the number of simulations
        self._replay = checkpoint.meta["replay"]

    def act(self, obs: Any, carry: Carry = None, mode: Mode = "eval") -> tuple[Any, Carry]:
        """One decision.

        Args:
          obs: an observation of the Gymnasium env itself, without batch axis.
          carry: what the last call returned; None to begin an episode.
          mode: `eval` is greedy, `sample` draws from the policy, `train` explores besides, `random` ignores the
            network.

        Returns:
          `(action, carry)`; the action is ready for the Gymnasium env's `step`.
        """
        return self._act(observe(self.env, obs), carry, mode, native=True)

    def film(self, seed: int = 0, mode: Mode = "eval") -> list[np.ndarray]:
        """Frames, uint8 `[H, W, 3]`, of episodes in this mode: as many as make a video of some seconds.

        Raises:
          ConfigError: the env cannot draw.
        """
        frames: list[np.ndarray] = []
        episode = 0
        while len(frames) < FILM:
            step, carry = self.env.reset(episode_seed(seed, 0, episode)), None
            while True:
                frame = self.env.render()
                if frame is None:
                    raise ConfigError(
                        f"{self.spec.id} draws no pictures: it needs a render() that returns uint8 "
                        f'[H, W, 3], and "rgb_array" in metadata["render_modes"]'
                    )
                frames.append(frame)
                if step.is_last:
                    break
                action, carry = self._act(step.obs, carry, mode, native=False)
                step = self.env.step(action)
            episode += 1
        return frames

    def rows(self, sequences: int = 4, length: int = DREAMT, fresh: bool = False, seed: int = 0) -> Row:
        """Sequences to dream from: the agent's rows of context (`agent.context`), then `length` rows.

        Args:
          sequences: how many, B.
          length: T, without the context.
          fresh: play greedy episodes, one stream of them per sequence, from their first row on. Otherwise the
            sequences come from the run's own replay, as it was at the checkpoint; if it is gone, they are played too.
          seed: of the draw, or of the episodes.

        Returns:
          key of a row -> `[B, C + T, ...]` (`docs/shapes.md`), what `dream` and `Agent.report` take. Where the
          replay holds no stretch that long, a shorter one is filled up with rows that begin an episode.
        """
        for name, value in (("sequences", sequences), ("length", length)):
            if value < 1:
                raise ConfigError(f"{name} must be 1 or more, got {value}")
        total = self.agent.context + length
        if not fresh:
            run = self.config.run
            replay = loop.replay_of(run, self.agent)
            directory = RunDirectory(self.path).replay
            with understood(directory):
                Segments(directory, self.config.id).load(replay, self._replay)
            if replay.longest > self.agent.context + 1:
                return dreams.look(replay, sequences, total, np.random.default_rng(seed))
            logger.warning("the replay of %s is gone: fresh episodes are played instead", self.path)
        return self._play(sequences, total, seed)

    def dream(
        self,
        sequences: int = 4,
        length: int = DREAMT,
        seen: int = SEEN,
        fresh: bool = False,
        seed: int = 0,
        rows: Row | None = None,
    ) -> Dream:
        """What the model makes of real sequences when it sees the first rows of each and then only the actions.

            dream = agent.dream()
            error = dream.dream["obs/image"] - dream.truth["obs/image"]   # float32 [B, T, H, W, C]
            error[~dream.valid] = numpy.nan                               # there an episode had begun

        Args:
          sequences, length, fresh, seed: of `rows`, B and T; not looked at if `rows` is given.
          seen: rows the model is shown, 1 to T - 1.
          rows: the sequences to dream from, `[B, C + T, ...]`, as `rows()` returns them.

        Returns:
          numpy arrays `[B, T, ...]` under `obs/<key>` and `reward`, in `truth` and in `dream`, and `valid` `[B, T]`;
          `Dream` says more.

        Raises:
          ConfigError: there are fewer than two rows, or not 1 to T - 1 of them are seen.
        """
        rows = self.rows(sequences, length, fresh, seed) if rows is None else rows
        length = rows["reward"].shape[1] - self.agent.context
        if not 0 < seen < length:
            raise ConfigError(f"of {length} rows 1 to {length - 1} can be seen, got seen={seen}: the rest is dreamt")
        dream: Dream = jax.device_get(self._dream(self.state, rows, seen))
        return dream

    def drive(
        self,
        sequences: int = 4,
        length: int = DREAMT,
        seen: int = SEEN,
        fresh: bool = False,
        seed: int = 0,
    ) -> Row:
        """What the policy does in the model's imagination alone, after a few real rows.

        Args:
          sequences, fresh, seed: of `rows`.
          length: T of what comes back, of which the first `seen` rows are real; then the policy acts greedily.

        Returns:
          numpy arrays `[B, T, ...]`: decoded `obs/<key>`, `reward`, and `valid`; `Dreamer.drive` says more.

        Raises:
          ConfigError: not 1 to T - 1 rows are seen, or the algorithm decodes nothing.
        """
        if not isinstance(self.agent, Dreamer):
            raise ConfigError(f"{self.config.algorithm} cannot show what it imagines: a Dreamer decodes its latents")
        if not 0 < seen < length:
            raise ConfigError(f"of {length} rows 1 to {length - 1} can be seen, got seen={seen}: the rest is imagined")
        drive = jax.jit(self.agent.drive, static_argnums=2)
        driven: Row = jax.device_get(drive(self.state, self.rows(sequences, seen, fresh, seed), length - seen))
        return driven

    def think(
        self,
        step: int = 0,
        seed: int = 0,
        simulations: int | None = None,
        obs: Any = None,
        carry: Carry = None,
    ) -> Thought:
        """The search behind one greedy decision: what the network proposed, what was looked at, what came of it.

        Args:
          step: of a greedy episode, 0 its beginning; in games of two the agent moves for both.
          seed: of the episode.
          simulations: of this search; those of the run if left out. What led here was played with those of the run.
          obs, carry: instead of playing to a step: what `act` takes.

        Raises:
          ConfigError: the algorithm does not search, or the episode ends before this step.
        """
        agent = self.agent
        if not isinstance(agent, MuZero | Dreamer) or getattr(agent.config, "planner", "") == "none":
            raise ConfigError(
                f"{self.config.algorithm} does not search, so there is no tree of what it thinks: "
                f"`reverie dream {self.path}` shows what it imagines, and where actions are one discrete choice "
                "--planner gumbel has a Dreamer search"
            )
        for name, value, least in (("step", step, 0), ("simulations", simulations, 1)):
            if value is not None and value < least:
                raise ConfigError(f"--{name} must be {least} or more, got {value}")
        if simulations is not None:
            more = searching(self.config, None, simulations)
            agent = cast("MuZero | Dreamer", make_agent(more, self.env.obs_space, self.env.act_space))
        if simulations not in self._think:
            self._think[simulations] = jax.jit(agent.think)
        seen, carry = self._reach(step, seed) if obs is None else (observe(self.env, obs), carry)
        rows, carry = self._row(seen, carry)
        actions, found = jax.device_get(self._think[simulations](self.state, carry, rows))
        player = rows.get("obs/player")
        return _thought(agent.enumerated, actions, found, None if player is None else int(player[0]))

    def _reach(self, step: int, seed: int) -> tuple[Arrays, Carry]:
        """What is seen at a step of a greedy episode, and the carry with which it is decided."""
        now, carry = self.env.reset(episode_seed(seed, 0, 0)), None
        for played in range(step + 1):
            if now.is_last:
                raise ConfigError(
                    f"the greedy episode of --seed {seed} has {played} decisions, and there is no --step {step} in it: "
                    f"type --step 0 to {played - 1}, or another --seed"
                )
            if played == step:
                break
            action, carry = self._act(now.obs, carry, "eval", native=False)
            now = self.env.step(action)
        return now.obs, carry

    def _play(self, sequences: int, length: int, seed: int) -> Row:
        """Greedy episodes, one stream of them per sequence."""
        run = self.config.run
        replay = Replay(
            loop.fields(self.agent), streams=sequences, length=length, capacity=sequences * length, seed=0, online=False
        )
        mode = "inline" if run.debug else run.workers
        compiled, carry = Compiled(self.agent), self.agent.init_carry(sequences, jax.random.key(seed))

        def decide(carry: Carry, seen: Row) -> tuple[Carry, Row, Row]:
            carry, action, out = compiled.policy["eval"](self.state, carry, seen)
            return carry, *jax.device_get((action, out))

        limits = {"deadline": run.deadline, "memory": run.worker_memory}
        with open_envs(self.spec, sequences, seed=seed, mode=mode, **limits) as envs:
            if isinstance(envs, DeviceEnvs):
                rollout = DeviceCollector(compiled.rollout(envs, length), replay.extend)
                rollout.carry = [carry]
                rollout.step(self.state, "eval")
            else:
                collector = Collector(envs, replay.add)
                collector.carry = [carry]
                while replay.longest < length:
                    collector.step(decide)
        return dreams.look(replay, sequences, length, np.random.default_rng(seed))

    def _act(self, obs: Arrays, carry: Carry, mode: Mode, native: bool) -> Any:
        rows, carry = self._row(obs, carry)
        carry, action, _ = self._policy[mode](self.state, carry, rows)
        single = {k.removeprefix("action/"): np.asarray(a)[0, ...] for k, a in action.items()}
        return (native_action(self.env, single) if native else single), carry

    def _row(self, obs: Arrays, carry: Carry) -> tuple[Arrays, Carry]:
        """What the policy takes for one env, `[1, ...]`; a carry of None begins an episode."""
        rows = {f"obs/{k}": np.asarray(x)[None] for k, x in obs.items()}
        rows["is_first"] = np.array([carry is None])
        rows["reward"] = np.zeros(1, np.float32)
        rows["is_last"] = rows["is_terminal"] = np.zeros(1, bool)
        if carry is None:
            carry = self.agent.init_carry(1, jax.random.key(self.config.run.seed))
        return rows, carry


def _thought(enumerated: bool, actions: Mapping[str, np.ndarray], found: Found, player: int | None) -> Thought:
    """What a search of one root found, in numpy arrays, as a person looks at it."""
    tree = jax.tree.map(lambda x: x[0], found.tree)
    policy, visits, q = (np.asarray(x[0]) for x in (found.policy, found.visits, found.q))
    names = [_named({k: x[a, ...] for k, x in actions.items()}) for a in range(len(policy))]
    inside = names if enumerated else [f"#{a}" for a in range(len(names))]

    # Slots that a limit of depth left empty have no parent either.
    nodes = np.flatnonzero((tree.parent >= 0) | (np.arange(len(tree.parent)) == 0))
    parents, taken = tree.parent[nodes], tree.action[nodes]
    called = [
        "" if parent < 0 else f"c{a}" if tree.chance[parent] else inside[a] if parent else names[a]
        for parent, a in zip(parents, taken, strict=True)
    ]
    logits = tree.logits[0, : len(policy)]
    return Thought(
        actions=names,
        legal=logits > ILLEGAL,
        prior=np.where(logits > ILLEGAL, np.exp(logits), 0.0),
        policy=policy,
        visits=visits[: len(policy)],
        q=q[: len(policy)],
        chosen=int(found.action[0]),
        player=player,
        raw=float(tree.raw[0]),
        value=float(found.value[0]),
        tree=Branches(
            parent=np.searchsorted(nodes, parents).astype(np.int32) - (parents < 0),
            action=taken,
            name=called,
            visits=tree.visits[nodes],
            q=np.where(parents < 0, tree.value[0], tree.q[parents, taken]),
            chance=tree.chance[nodes],
        ),
    )


def _named(action: Mapping[str, np.ndarray]) -> str:
    """An action as text: class numbers, and vectors in [-1, 1]."""
    number = lambda x: f"{x:+.2f}" if np.issubdtype(np.asarray(x).dtype, np.floating) else str(x)
    parts = {k: " ".join(number(x) for x in np.ravel(value)) for k, value in action.items()}
    return next(iter(parts.values())) if len(parts) == 1 else ", ".join(f"{k} {text}" for k, text in parts.items())


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
      Untrusted: (a ConfigError) the env is code that only the run names; says what would be run.
      ConfigError: there is no run, or no checkpoint in it yet, or it cannot search as asked for.
      Unsuitable: the actions are not one discrete choice, and a planner is asked for.
      Mismatch: the env has other spaces than the agent was trained with.
    """
    return LoadedAgent(path, env, planner, simulations, planner_scale, trust)


def _again(env: EnvLike | None, own: EnvSpec) -> EnvSpec:
    """The env of a run, `own`, as a person gives it again; a name or a function takes over what was said about it.

    Raises ConfigError if the name is another.
    """
    if env is None or isinstance(env, EnvSpec):
        return own if env is None else env
    given = env_spec(env)
    if isinstance(env, str) and env != own.id:
        raise ConfigError(f"--env {env}, but this run was trained in {own.id}: type that, or leave it out")
    return dataclasses.replace(own, factory=given.factory) if given.id == own.id else given


def searching(conf: Config, planner: str | None, simulations: int | None, planner_scale: float | None = None) -> Config:
    """`conf` with another search when acting; what is None stays.

    Raises:
      ConfigError: the algorithm has no planner, there is none that could make simulations, or less than 1 of them.
    """
    own: dict[str, Any] = {}
    if planner is not None:
        if not isinstance(conf.agent, Planning):
            own_way = "it searches in its own way, and --simulations N says how much"
            has = own_way if hasattr(conf.agent, "simulations") else "it does not search"
            raise ConfigError(f"--planner {planner}, but {conf.algorithm} has no planner: {has}")
        own |= {"planner": planner, "improve": 0.0}  # which is a loss, and of no concern here
    if simulations is not None:
        own["simulations"] = simulations
        if own.get("planner", getattr(conf.agent, "planner", "")) == "none":
            raise ConfigError(f"--simulations {simulations}, but nothing searches: add --planner gumbel")
    if planner_scale is not None:
        own["planner_scale"] = planner_scale
    try:
        return config.override(conf, **own)
    except (TypeError, ValueError) as error:
        raise ConfigError(str(error)) from error


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
    if not isinstance(agent, LoadedAgent):
        agent = load(agent)
    run = agent.config.run
    if opponent and not any(space.kind == "player" for space in agent.env.obs_space.values()):
        raise ConfigError(f"--opponent {opponent}, but {agent.spec.id} is no game of two players: leave it out")
    mode = eval_mode or run.eval_mode
    if mode not in ACTING:
        raise ConfigError(f"--eval-mode must be one of {', '.join(ACTING)}, got {mode!r}")
    seed = loop.seeds(run.seed).evaluation if seed is None else seed
    with evaluation.open_evaluation(run, agent.spec, episodes, seed, "inline" if run.debug else run.workers) as envs:
        key = evaluation.evaluation_key(run.seed, agent.moment)
        compiled = Compiled(agent.agent)
        opponent = opponent or run.opponent
        acting = ACTING[mode]
        played = evaluation.evaluate(compiled, agent.state, envs, episodes, key, opponent=opponent, mode=acting)
    assert played is not None, "only a signal gives up an evaluation"
    return played


def list_presets() -> dict[str, list[str]]:
    """Algorithm -> names of its presets."""
    return {name: list(algos.load(name).PRESETS) for name in algos.ALGORITHMS}
