"""The training loop: synchronous, deterministic, and at every step boundary ready to be killed.

One turn of the loop:

    measure     evaluation, report, averages and checkpoint, where their step is due
    collect     one step of one group of envs; the rows whose successor is known go to replay
    update      as often as the replay ratio says; what training recomputes is written back

With `--schedule model-then-policy` a turn is either a step or an update, see `phases`.

A checkpoint holds everything that decides what happens next, so a run that continues from one does,
bit for bit, what it would have done. Steps alone decide when something is due, never the clock.
"""

from __future__ import annotations

import logging
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console

from reverie.agent import DREAMT, Agent, Carry, Divided, Mode, Part, State
from reverie.config import ConfigError, RunConfig
from reverie.envs import base
from reverie.envs.device import DeviceEnvs
from reverie.envs.spec import UnusableEnv
from reverie.envs.workers import Workers
from reverie.health import Watch
from reverie.replay.segments import Segments
from reverie.replay.sequences import Field, Replay, Row, bytes_per_row
from reverie.run import dreams, meta, offline, phases
from reverie.run.callbacks import Callbacks
from reverie.run.checkpoint import Checkpoint, Checkpoints, Mismatch, flatten, unflatten
from reverie.run.clock import Clock
from reverie.run.collect import Collector, Episode, mean_figures, pack, unpack
from reverie.run.compiled import Compiled
from reverie.run.directory import RunDirectory
from reverie.run.evaluation import ACTING, Envs, Evaluation, evaluate, evaluation_key, open_evaluation
from reverie.run.log import Log, finite, read
from reverie.run.pace import Pace
from reverie.run.phases import Phase
from reverie.run.ratio import Ratio
from reverie.run.rollout import DeviceCollector
from reverie.run.script import Script
from reverie.run.stop import Stop
from reverie.saved import understood

logger = logging.getLogger("reverie")

# What the device, or the machine, may have no room for beside training.
SHORT = (jax.errors.JaxRuntimeError, MemoryError)
COUNTERS = ("nonfinite/total", "nonfinite/streak")  # metrics that are not averaged


class NonFinite(RuntimeError):
    """Too many updates in a row were not finite, or the state is not."""


@dataclass(frozen=True)
class Result:
    """What a session of training leaves.

    Attributes:
      steps, updates: of the whole run, earlier sessions included.
      evaluation: the newest evaluation, None if there was none.
      stopped: the signal that ended the session before its last step, or None.
      traces: how often each function was traced in this session.
      seconds: wall time of this session by what it was spent on.
    """

    path: Path
    steps: int
    updates: int
    evaluation: Evaluation | None
    stopped: str | None
    traces: dict[str, int]
    seconds: dict[str, float]


class Seeds(NamedTuple):
    """Independent seeds of the parts that draw numbers on the host."""

    envs: int
    evaluation: int
    replay: int


def seeds(seed: int) -> Seeds:
    return Seeds(*(int(x) for x in np.random.SeedSequence(seed).generate_state(3)))


def row_fields(obs_space: base.Spaces, act_space: base.Spaces) -> dict[str, Field]:
    """What replay stores of one step in these spaces, without what an agent adds."""
    flags = {name: Field((), np.dtype(bool)) for name in ("is_first", "is_last", "is_terminal")}
    return (
        {f"obs/{key}": Field(space.shape, space.dtype) for key, space in obs_space.items()}
        | {f"action/{key}": Field(space.shape, space.dtype) for key, space in act_space.items()}
        | {"reward": Field((), np.dtype("float32"))}
        | flags
    )


def fields(agent: Agent) -> dict[str, Field]:
    """What replay stores of one step of this agent."""
    own = {f"out/{key}": Field(x.shape, np.dtype(x.dtype)) for key, x in agent.out_space.items()}
    return row_fields(agent.obs_space, agent.act_space) | own


def capacity(run: RunConfig, agent: Agent) -> int:
    """Rows that replay may hold: by their number and by their bytes."""
    return min(run.replay_size, int(run.replay_gb * 1e9) // bytes_per_row(fields(agent)))


def window(run: RunConfig, agent: Agent) -> int:
    """Rows of a window that replay serves."""
    return agent.context + (agent.rows or run.length)


def replay_of(run: RunConfig, agent: Agent) -> Replay:
    """The replay of a run, empty."""
    return Replay(
        fields(agent),
        streams=run.envs,
        length=window(run, agent),
        capacity=capacity(run, agent),
        seed=seeds(run.seed).replay,
        online=run.online,
        within_episodes=run.within_episodes,
        context=agent.context,
        alpha=run.priority_alpha,
        beta=run.priority_beta,
    )


def beta(run: RunConfig, updates: int) -> float:
    """Power of the importance weights after so many updates."""
    share = min(1.0, updates / run.priority_anneal) if run.priority_anneal else 0.0
    return run.priority_beta + share * (1 - run.priority_beta)


def ratio(run: RunConfig, agent: Agent) -> Ratio:
    """Updates per step. The first is due after warm-up, when some env has filled one window."""
    start = max(run.warmup, run.envs * window(run, agent))
    return Ratio(run.replay_ratio, run.batch * (agent.trained or agent.rows or run.length), start)


@dataclass(frozen=True)
class Progress:
    """Counters of a run.

    Attributes:
      step: rows in replay, ever: env steps of all envs.
      updates: done, the skipped ones (not finite) included.
      left_out: updates that were due while replay held no sequence to train on.
      measured: the moment (`phases`) up to which all that is due is measured; behind the present one if a signal came.
      evaluated: the moment of `evaluation`, or -1.
    """

    step: int = 0
    updates: int = 0
    left_out: int = 0
    measured: int = 0
    evaluated: int = -1
    evaluation: Evaluation | None = None


class Training:
    """One session of a run: everything that changes, and how it is saved and restored. It begins from the newest
    checkpoint in `directory`, if there is one.

    Args:
      agent: of the spaces of `workers`.
      workers: fresh, `run.envs` of them, seeded with `seeds(run.seed).envs`.
      directory: locked by the caller.
      stop: what asks the session to end.
      devices: that share every batch, `run.batch` being a multiple of their number; none for JAX's default one.
      id: of the run, if it has one already; otherwise it takes that of its checkpoint, or a new one.

    Raises:
      UnusableEnv: what was asked for cannot be done in this env.
      Mismatch: the checkpoint is of another agent.
      AllDamaged, OtherVersion, AnotherRun, Malformed, files.DiskError: what was saved cannot be gone on with.
    """

    def __init__(
        self,
        run: RunConfig,
        agent: Agent,
        workers: Envs,
        directory: RunDirectory,
        stop: Stop,
        devices: Sequence[jax.Device] = (),
        id: str = "",
    ) -> None:
        self.run, self.agent, self.workers = run, agent, workers
        self.directory, self.stop = directory, stop
        self.callbacks: list[Callbacks] = []  # that hear of the run
        self.clock = Clock()
        self.compiled = Compiled(agent, devices)
        self.replay = replay_of(run, agent)
        self.checkpoints = Checkpoints(directory.checkpoints, run.keep, id)
        checkpoint = meta.latest(self.checkpoints)
        self.id = self.checkpoints.run = id or (checkpoint and checkpoint.run) or uuid.uuid4().hex
        self.segments = Segments(directory.replay, self.id)
        self.ratio = ratio(run, agent)
        self.collector: Collector | DeviceCollector
        self._examination: DeviceEnvs | None = None  # of evaluations: compiled once
        if isinstance(workers, DeviceEnvs):
            if run.groups > 1:
                raise UnusableEnv(f"{workers.spec.id} lives on the device: all envs step together, leave --groups out")
            self.collector = DeviceCollector(self.compiled.rollout(workers, run.scan), self._extend)
            if run.eval_episodes:
                envs = self._open_evaluation()
                assert isinstance(envs, DeviceEnvs), envs
                self._examination = envs
                if envs.env.players == 2:
                    # An opponent that cannot play is told of now.
                    self.compiled.arena(envs, run.opponent, ACTING[run.eval_mode])
        else:
            self.collector = Collector(workers, self._remember, run.groups)
            if run.eval_episodes and "player" in agent.obs_space:
                self._open_evaluation().close()  # as above
        init, act = jax.random.split(jax.random.key(run.seed), 3)[:2]
        self.collector.carry = [
            agent.init_carry(len(envs), jax.random.fold_in(act, group))
            for group, envs in enumerate(self.collector.groups)
        ]
        self.watch = Watch(agent.symptoms)
        self.progress = Progress()
        self.saved: Progress | None = None
        self.metrics_bytes = 0  # of metrics.jsonl that count
        # Since the last line of metrics:
        self.figures: list[jax.Array | np.ndarray] = []  # of every update, float32 [len(names)]
        self.names: list[str] = []
        self.episodes: list[Episode] = []
        self._latest: jax.Array | None = None
        self.script = Script(run.collector, agent.act_space, seeds(run.seed).envs) if run.collector else None
        if self.script and isinstance(workers, DeviceEnvs):
            raise UnusableEnv(f"{workers.spec.id} lives on the device, where no --collector reaches: leave it out")
        self._logged, self._seconds = self.progress, self.clock.read()
        if checkpoint:
            with understood(checkpoint.path):
                self._restore(checkpoint)
        else:
            self.state = self.compiled.place.everywhere(jax.jit(agent.init)(init))
            self.segments.collect_garbage([])
            if run.offline:
                offline.source(run.offline, workers.spec, run.envs).pour(self.replay)
        self._begun = self.progress

    @property
    def local(self) -> State:
        """The state as one device has it: for everything but training, and only until the next update."""
        return self.compiled.place.local(self.state)

    @property
    def finished(self) -> bool:
        """All steps and updates are done, or the evaluation of this very moment is as good as was asked for."""
        done, goal = self.progress, self.run.stop_return
        solved = goal is not None and done.evaluation is not None and done.evaluation.mean_return >= goal
        return self.phase(self.moment) == "done" or (solved and done.evaluated == self.moment)

    @property
    def moment(self) -> int:
        """How far the run is, see `phases`."""
        return phases.moment(self.run, self.progress.step, self.progress.updates)

    def phase(self, moment: int) -> Phase:
        """What the run does next at a moment, the present one or an earlier."""
        step = min(moment, self.progress.step)
        return phases.phase(self.run, step, moment - step)

    # ------------------------------------------------------------------------------------- one turn

    def turn(self) -> None:
        """Collects, updates, or does both."""
        phase = self.phase(self.moment)
        if phase in ("together", "collect"):
            self.collect()
        if phase == "together":
            self.update(self.ratio.due(self.progress.step))
        elif phase in phases.PARTS:
            if phase == "policy" and self.progress.updates == self.run.model_updates:
                assert isinstance(self.agent, Divided), self.agent
                # Adam counted steps of the actor in which nothing was asked of it: its first ones would be too long.
                self.state = self.compiled.place.everywhere(self.agent.renew(self.local))
            self.update(1, phases.PARTS[phase])

    def pace(self) -> Pace:
        """What this session did, and what is left of its run."""
        run, now = self.run, self.progress
        updates = phases.all_updates(run) if phases.apart(run) else self.ratio.total(run.steps) - now.left_out
        return Pace(
            steps=now.step - self._begun.step,
            updates=now.updates - self._begun.updates,
            steps_left=max(0, phases.env_steps(run) - now.step),
            updates_left=max(0, updates - now.updates),
            seconds=self.clock.read(),
            compiling=self.compiled.compiling,
        )

    def catch_up(self) -> bool:
        """The updates that a signal left out of the newest turn; False if one leaves them out again."""
        if phases.apart(self.run):
            return True
        if self.ratio.owed(self.progress.step):
            self.update(self.ratio.due(self.progress.step))
        return not self.ratio.owed(self.progress.step)

    def collect(self) -> None:
        """One step of one group of envs; of device envs, as many as one scan has."""
        learns = not phases.apart(self.run) and self.progress.step >= self.run.warmup
        mode: Mode = "train" if learns else "random"
        policy = self.compiled.policy[mode]

        def decide(carry: Carry, rows: Row) -> tuple[Carry, Row, Row]:
            with self.clock.spent("policy"):
                carry, action, out = policy(self.local, carry, rows)
                if self.script:
                    action = self.script(rows, self.progress.step)
                return carry, *jax.device_get((action, out))

        with self.clock.spent("envs"):
            if isinstance(self.collector, DeviceCollector):
                committed = self.collector.step(self.local, mode)
            else:
                committed = self.collector.step(decide)
        ended = self.collector.episodes()
        self.episodes += ended
        self.progress = replace(self.progress, step=self.progress.step + committed)
        for episode in ended:
            self._tell("on_episode", episode)

    def update(self, due: int, part: Part = "all") -> None:
        """So many updates of a part."""
        if phases.apart(self.run) and not self.replay.can_sample():
            raise ConfigError(
                f"replay holds {len(self.replay)} rows, and in them no sequence of {self.replay.length} to learn from: "
                "raise --steps, or lower --length or --envs"
            )
        if due and not self.replay.can_sample():
            if not self.progress.left_out:
                logger.warning(
                    "step %d: updates are left out while replay holds no sequence of %d rows%s",
                    self.progress.step,
                    self.replay.length,
                    " inside one episode: try a smaller --length, or --no-within-episodes"
                    if self.run.within_episodes
                    else "",
                )
            left_out = self.progress.left_out + due
            self.progress = replace(self.progress, left_out=left_out)
            return
        for number in range(due):
            if self.stop.signal and part == "all" and not phases.apart(self.run):
                self.ratio.done -= due - number  # `catch_up` of the resume makes up for them
                return
            with self.clock.spent("replay"):
                batch = self.replay.sample(self.run.batch, beta=beta(self.run, self.progress.updates))
                ids = batch.pop("id")
            with self.clock.spent("train"):
                self.state, out, figures = self.compiled.train(self.state, batch, part)
                out = jax.device_get(out)
            with self.clock.spent("replay"):
                if out:
                    self.replay.update(ids[:, self.agent.context :], out)
            self.progress = replace(self.progress, updates=self.progress.updates + 1)
            streak = self._streak()  # of the update before this one: no wait for the device
            self.names = self.compiled.names[part]
            self.figures.append(figures)
            self._latest = figures
            if streak >= self.run.max_nonfinite:
                raise NonFinite(
                    f"{streak} updates in a row had a loss, gradient or result that is not finite (step "
                    f"{self.progress.step}, update {self.progress.updates}). The last good "
                    f"checkpoint is kept in {self.directory.checkpoints}. Look at the env with "
                    f"`reverie check-env`, or start over with a smaller --learning-rate"
                )

    def measure(self, log: Log, final: bool) -> None:
        """Whatever is due at this moment. If a signal comes meanwhile, it is left to the resume."""
        now, run, moment = self.progress, self.run, self.moment
        over = self.phase(now.measured) != self.phase(moment)  # a phase: the next one has other metrics

        def due(every: int) -> bool:
            return every > 0 and moment // every > now.measured // every

        values: dict[str, float] = {}
        evaluation = None
        if run.eval_episodes and now.evaluated != moment and (final or due(run.eval_every)):
            evaluation = self._evaluate()
            if evaluation is None and self.stop.signal:
                return
        if evaluation:
            self.progress = replace(self.progress, evaluation=evaluation, evaluated=moment)
            values["eval/mean_return"] = evaluation.mean_return
            values["eval/std_return"] = evaluation.std_return
            values["eval/length"] = float(np.mean(evaluation.lengths))
            values["eval/steps"] = float(np.sum(evaluation.lengths))
            values |= {f"eval/{name}": value for name, value in evaluation.figures.items()}
            for seat, counts in evaluation.seats.items():
                values |= {f"eval/{seat}/{name}": float(count) for name, count in counts.items()}
        if moment == now.measured and not values:
            return
        if due(run.report_every) and self.replay.can_sample():
            values |= self._report()
        if due(run.log_every) or ((final or over) and moment > now.measured):
            values |= self._averages()
            for symptom in self.watch.look(finite(values)):
                logger.warning("step %d: %s. %s.", now.step, symptom.meaning, symptom.advice)
            values |= self.watch.figures()
        if values:
            if phases.apart(run):
                values |= {"updates": now.updates, "phase": phases.NUMBERS[self.phase(now.measured)]}
            log.write(now.step, values, moment)
            self._tell("on_log", {name: x for name, x in finite(values).items() if x is not None})
        if evaluation:
            self._tell("on_eval", evaluation)
        if run.video_every and (final or due(run.video_every)) and self.replay.can_sample():
            self._film(log)
        self.progress = replace(self.progress, measured=moment)
        if run.checkpoint_every and (over or due(run.checkpoint_every)) and not final:
            try:
                self.save(log)
            except OSError as error:  # the older checkpoints are whole; there may be space for the next one
                logger.error("step %d: no checkpoint, training goes on: %s", now.step, error)

    # ------------------------------------------------------------------------ saving, restoring

    def save(self, log: Log) -> None:
        """Commits a checkpoint of this very moment.

        Raises:
          OSError: the disk will not take it.
          RunGone: the directory is not there any more.
          NonFinite: the state cannot be learned from any more.
        """
        self.directory.check()
        if self._streak():
            logger.warning("step %d: no checkpoint, the last update was not finite", self.progress.step)
            return
        with self.clock.spent("checkpoint"):
            log.lines.sync()
            replay = self.segments.save(self.replay)
            arrays = {f"agent/{k}": x for k, x in flatten(self.state).items()}
            self._require_finite(arrays)
            if self._collects:
                arrays |= {f"collector/{k}": x for k, x in self.collector.state().items()}
            table = [np.asarray(x) for x in self.figures]
            arrays["recent/figures"] = np.array(table, np.float32).reshape(len(table), len(self.names))
            arrays["recent/episodes"] = pack(self.episodes)
            said = {
                "obs_space": base.to_json(self.agent.obs_space),
                "act_space": base.to_json(self.agent.act_space),
                "progress": asdict(self.progress),
                "ratio": self.ratio.state(),
                "names": self.names,
                "metrics_bytes": log.lines.offset,
                "replay": replay,
            }
            path = self.checkpoints.save(self.moment, arrays, said)
            self.segments.collect_garbage(m["meta"]["replay"] for m in self.checkpoints.manifests())
        self.saved = self.progress
        self._tell("on_checkpoint", path)

    def _tell(self, name: str, what: Any) -> None:
        """Tells all callbacks of this name."""
        for each in self.callbacks:
            each(name, self.progress.step, what)

    def _require_finite(self, arrays: dict[str, np.ndarray]) -> None:
        """Updates look at what they get from a batch; this looks at what has become of the state."""
        for name, x in arrays.items():
            if jnp.issubdtype(x.dtype, jnp.inexact) and not np.isfinite(x).all():
                raise NonFinite(
                    f"{name} is not finite any more (step {self.progress.step}, update {self.progress.updates}). The "
                    f"last good checkpoint is kept in {self.directory.checkpoints}. Start over with a smaller "
                    "--learning-rate"
                )

    def _restore(self, checkpoint: Checkpoint) -> None:
        said, arrays = checkpoint.meta, checkpoint.arrays
        self.state = self.compiled.place.everywhere(agent_state(self.agent, checkpoint))
        self.segments.load(self.replay, said["replay"])
        self.ratio.restore(said["ratio"])
        self.names, self.metrics_bytes = said["names"], said["metrics_bytes"]
        figures = arrays["recent/figures"]
        if figures.dtype != np.float32 or figures.shape != (len(figures), len(self.names)):
            raise ValueError(f"recent/figures is {figures.dtype} {figures.shape}, of {len(self.names)} names")
        self.figures = list(figures)
        self.episodes = unpack(arrays["recent/episodes"])
        progress = dict(said["progress"])
        if progress["evaluation"]:
            progress["evaluation"] = Evaluation(**progress["evaluation"])
        self.progress = self.saved = self._logged = Progress(**progress)
        if self._collects:
            self.collector.restore(_below("collector/", arrays))
            if isinstance(self.collector, Collector):
                for envs, rows in zip(self.collector.groups, self.collector.pending, strict=True):
                    if rows:
                        self.replay.check(envs, rows)
        for record in read(self.directory.metrics, self.metrics_bytes):
            if self.watch.figures().keys() <= record.keys():  # not of an evaluation alone: the watch never saw that
                self.watch.look(record)

    @property
    def _collects(self) -> bool:
        """Env steps are still to come, or may: once none does, the envs are left alone, and not even re-enacted."""
        return not phases.apart(self.run) or self.phase(self.moment) == "collect"

    # ---------------------------------------------------------------------------------- measuring

    def _evaluate(self) -> Evaluation | None:
        """None if it was given up: for a signal, or for want of memory."""
        run = self.run
        advice = f"A new run plays fewer games at once with --eval-envs below {run.eval_envs}, or --eval-episodes"
        with self._spared("evaluation", "no evaluation", advice):
            envs = self._examination or self._open_evaluation()
            with envs:
                key = evaluation_key(run.seed, self.moment)
                mode = ACTING[run.eval_mode]
                return evaluate(self.compiled, self.local, envs, run.eval_episodes, key, self.stop, run.opponent, mode)
        return None

    def _report(self) -> dict[str, float]:
        figures: dict[str, jax.Array] = {}
        with self._spared("report", "no report", "--report-every 0 leaves reports out; they grow with --batch"):
            figures = jax.device_get(self.compiled.report(self.local, self._look()))
        return {f"report/{k}": float(v) for k, v in figures.items()}

    def _film(self, log: Log) -> None:
        """Dreams as pictures; a full disk is a warning, as for metrics."""
        advice = "--video-every 0 leaves pictures out; they grow with --batch"
        with self._spared("report", "no picture of a dream", advice):
            dream = jax.device_get(self.compiled.dream(self.local, self._look()))
            try:
                dreams.film(dream, self.directory.folder / "videos", self.moment, log)
            except OSError as error:
                logger.warning("step %d: no picture of a dream: %s", self.progress.step, error)

    def _open_evaluation(self) -> Envs:
        mode = "auto" if self.workers.mode == "device" else self.workers.mode
        spec, space, seed = self.workers.spec, self.agent.obs_space, seeds(self.run.seed).evaluation
        return open_evaluation(self.run, spec, space, self.run.eval_episodes, seed, mode, self.run.opponent)

    @contextmanager
    def _spared(self, kind: str, without: str, advice: str) -> Iterator[None]:
        """Whatever only looks at the run does not end it: if there is no memory for it, that is a warning.

        Args:
          kind: of the time that it takes, for the clock.
          without: in words, what there is not.
          advice: a sentence.
        """
        with self.clock.spent("train"):
            jax.block_until_ready(self.state)  # what fails in here is an update, and does end it
        try:
            with self.clock.spent(kind):
                yield
        except SHORT as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            logger.warning("step %d: %s, training goes on: %s. %s", self.progress.step, without, reason, advice)

    def _look(self) -> Row:
        """A batch to look at, the same whenever this moment comes: what training draws is not touched."""
        rng = np.random.default_rng((seeds(self.run.seed).replay, self.moment))
        return dreams.look(self.replay, self.run.batch, self.agent.context + DREAMT, rng)

    def _averages(self) -> dict[str, float]:
        """What happened since the last log; counters stand as they are."""
        now = self.progress
        values: dict[str, float] = {"updates": now.updates}
        if self.figures:
            table = np.stack([np.asarray(x) for x in self.figures])
            with np.errstate(over="ignore", invalid="ignore"):  # what is not finite is told as such
                values |= dict(zip(self.names, table.mean(0).tolist(), strict=True))
            values |= {k: float(table[-1, self.names.index(k)]) for k in COUNTERS}
        if self.episodes:
            values["episode/return"] = float(np.mean([e.episode_return for e in self.episodes]))
            values["episode/length"] = float(np.mean([e.length for e in self.episodes]))
            figures = mean_figures(self.workers.spec, [e.figures for e in self.episodes])
            values |= {f"episode/{name}": value for name, value in figures.items()}
        if not phases.apart(self.run) or now.step > self._logged.step:
            values["episode/count"] = len(self.episodes)
            values["env/failures"] = self.workers.failures
        values["updates/left_out"] = now.left_out
        values["replay/rows"] = len(self.replay)
        values["replay/evicted_before_update"] = self.replay.skipped
        seconds = self.clock.read()
        spent = {k: s - self._seconds.get(k, 0.0) for k, s in seconds.items()}
        whole = sum(spent.values())
        values |= {f"time/share/{k}": s / whole for k, s in spent.items()}
        values["time/session"] = sum(seconds.values())
        working = whole - sum(spent.get(k, 0.0) for k in ("evaluation", "report", "checkpoint"))
        values["time/steps_per_second"] = (now.step - self._logged.step) / working
        values["time/updates_per_second"] = (now.updates - self._logged.updates) / working
        values["time/traces"] = sum(self.compiled.traces.values())
        if isinstance(self.workers, Workers) and self.workers.mode == "process":
            values["memory/worker_mb"] = max(self.workers.memory()) / 1e6
        self.figures, self.episodes = [], []
        self._seconds, self._logged = seconds, now
        return values

    def _streak(self) -> int:
        """Updates in a row that were not finite, up to the newest whose figures are known."""
        if self._latest is None:
            return 0
        return int(np.asarray(self._latest)[self.names.index("nonfinite/streak")])

    def _remember(self, envs: np.ndarray, rows: Row) -> None:
        with self.clock.spent("replay"):
            self.replay.add(envs, rows)

    def _extend(self, envs: np.ndarray, rows: Row) -> None:
        with self.clock.spent("replay"):
            self.replay.extend(envs, rows)


def train(session: Training, console: Console) -> Result:
    """Trains until `run.steps`, `run.stop_return` or a signal.

    Args:
      session: in a directory that is locked by the caller, whose `stop` was entered.
      console: where a person watches.

    Raises:
      NonFinite: `run.max_nonfinite` updates in a row were not finite, or what they left is not.
      EnvFailed: an env failed too often.
      RunGone: the directory was deleted or moved.
      OSError: the last checkpoint could not be written.
    """
    run, directory, stop = session.run, session.directory, session.stop
    with Log(
        directory.metrics,
        directory.path / "tensorboard",
        console,
        steps=phases.end(run),
        unit="step or update" if phases.apart(run) else "step",
        start=session.moment,
        keep=session.metrics_bytes,
    ) as log:
        while session.catch_up():
            session.measure(log, session.finished)
            log.update(session.moment, session.pace())
            if session.finished or stop.signal:
                break
            session.turn()
        if session.saved != session.progress:
            session.save(log)
    done = session.progress
    return Result(
        path=directory.path,
        steps=done.step,
        updates=done.updates,
        evaluation=done.evaluation,
        stopped=None if session.finished and done.measured == session.moment else stop.signal,
        traces=session.compiled.traces,
        seconds=session.clock.read(),
    )


def agent_state(agent: Agent, checkpoint: Checkpoint) -> State:
    """The agent's state in a checkpoint.

    Raises:
      Mismatch: it is of other spaces, another size or another version; lists all that differs.
    """
    faults = []
    for name in ("obs_space", "act_space"):
        saved, own = checkpoint.meta[name], base.to_json(getattr(agent, name))
        faults += [
            f"{name} {key}: saved {saved.get(key, 'nothing')}, expected {own.get(key, 'nothing')}"
            for key in sorted(saved.keys() | own.keys())
            if _laid_out(saved.get(key)) != _laid_out(own.get(key))
        ]
    if faults:
        raise Mismatch(f"{checkpoint.path} is of another env:\n  " + "\n  ".join(faults))
    like = jax.eval_shape(agent.init, jax.random.key(0))
    arrays = _below("agent/", checkpoint.arrays)
    return unflatten(like, arrays | _added(agent, arrays))


def _added(agent: Agent, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The modules that a checkpoint of an earlier version lacks altogether, their share of the optimizer included."""
    lacking = set(agent.added).difference(*(path.split("/") for path in arrays))
    if not lacking:
        return {}
    logger.warning("the checkpoint is of a version without %s: untrained so far", ", ".join(sorted(lacking)))
    fresh = flatten(jax.jit(agent.init)(jax.random.key(0)))
    return {path: x for path, x in fresh.items() if lacking.intersection(path.split("/"))}


def _laid_out(space: dict[str, object] | None) -> dict[str, object] | None:
    """What a space says of its array; who moves when changes no array, and earlier versions do not tell it."""
    return space and {k: v for k, v in space.items() if k != "alternating"}


def _below(prefix: str, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {k.removeprefix(prefix): x for k, x in arrays.items() if k.startswith(prefix)}
