"""The training loop: synchronous, deterministic, and at every step boundary ready to be killed.

One turn of the loop:

    measure     evaluation, report, averages and checkpoint, where their step is due
    draw        the batch of the first update, if there is to be one: a device still works on the last one
    collect     what one group of envs shows; the rows whose successor is known go to replay, and the policy is asked
    update      as often as the replay ratio says; what training recomputes is written back, see `experience.WriteBack`
    act         once the first update is handed to the device: the envs take the actions that the policy decided for

With `--schedule model-then-policy` a turn is either a step or an update, see `phases`.

A checkpoint holds everything that decides what happens next, so a run that continues from one does,
bit for bit, what it would have done. Steps alone decide when something is due, never the clock.
"""

from __future__ import annotations

import logging
import math
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
from rich.console import Console

from reverie.agent import Agent, Part, State, as_two_phase
from reverie.config import ConfigError, RunConfig
from reverie.fields import amount
from reverie.health import NonFinite, Watch
from reverie.replay.rows import Row
from reverie.replay.segments import Segments
from reverie.run import experience, phases
from reverie.run.callbacks import Callbacks
from reverie.run.checkpoint import Checkpoint, Checkpoints
from reverie.run.clock import Clock, Pace
from reverie.run.collect import offline
from reverie.run.directory import RunDirectory
from reverie.run.envs import Envs, training_collector
from reverie.run.evaluation import Evaluation
from reverie.run.events import Events
from reverie.run.jitted import JittedAgent
from reverie.run.log import JsonLines, Log, display, finite, read
from reverie.run.measures import Measures
from reverie.run.phases import Phase, Progress
from reverie.run.recent import Recent
from reverie.run.seeds import keys
from reverie.run.snapshot import Snapshots, latest
from reverie.run.stop import Stop
from reverie.saved import reading

logger = logging.getLogger("reverie")


@dataclass(frozen=True)
class Result:
    """The result of a session of training."""

    path: Path
    steps: int  # of the whole run, earlier sessions included
    updates: int  # as well
    evaluation: Evaluation | None  # the newest, None if there was none
    stopped: str | None  # the signal that ended the session before its last step, or None
    traces: dict[str, int]  # how often each function was traced in this session
    seconds: dict[str, float]  # wall time of this session by what it was spent on


class Training:
    """One session of a run: everything that changes, and how it is saved and restored. It begins from the newest
    checkpoint in `directory`, if there is one.

    Args:
      agent: of the spaces of `workers`.
      workers: fresh, `run.envs` of them, seeded with `seeds(run.seed).envs`.
      directory: locked by the caller.
      devices: that share every batch, `run.batch` being a multiple of their number; none for JAX's default one.
      id: of the run, if it has one already; otherwise it takes that of its checkpoint, or a new one.

    Raises:
      UnusableEnv: what was asked for cannot be done in this env.
      Mismatch: the checkpoint is of another agent.
      NoSoundCheckpoint, OtherVersion, AnotherRun, Malformed, files.DiskError: what was saved cannot be gone on with.
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
        self.compiled = JittedAgent(agent, devices, run.precision)
        self.replay = experience.replay_of(run, agent)
        self.write_back = experience.WriteBack(self.replay)
        self._drawn: Row = {}  # the batch of the next update, between a draw and that; never at the end of a turn
        self._acting = False  # envs wait for the second half of their step; never at the end of a turn
        checkpoints = Checkpoints(directory.checkpoints, run.keep, id)
        checkpoint = latest(checkpoints)
        self.id = checkpoints.run = id or (checkpoint and checkpoint.run) or uuid.uuid4().hex
        self.ratio = experience.ratio(run, agent)
        self.progress = Progress()
        self.collector = training_collector(
            run, workers, self.compiled, self.replay, self.clock, lambda: self.progress.step
        )
        experience.check_dispatch(run, agent, workers.mode == "device")
        self.measures = Measures(run, self.compiled, workers, self.replay, self.clock, stop)
        self.recent = Recent(run, workers, self.replay, self.compiled, self.clock)
        segments = Segments(directory.replay, self.id)
        self.snapshots = Snapshots(
            run, agent, checkpoints, segments, self.replay, self.write_back, self.collector, self.recent
        )
        self.watch = Watch(agent.symptoms)
        self.saved: Progress | None = None
        self.metrics_bytes = 0  # of metrics.jsonl that count
        if checkpoint:
            with reading(checkpoint.path):
                self._restore(checkpoint)
        self._begun = self.progress
        self._compile_ahead()
        if not checkpoint:
            self.state = self.compiled.place.everywhere(self.compiled.init(keys(run.seed).init))
            segments.collect_garbage([])  # of a run that left no checkpoint
            if run.offline:
                offline.source(run.offline, workers.spec, run.envs).pour(self.replay)

    def _compile_ahead(self) -> None:
        """The next update is compiled while envs collect what it is to learn from, if one is to come at all."""
        run, updates = self.run, self.progress.updates
        if self.pace().updates_left:
            phase = phases.phase(run, phases.env_steps(run), updates) if phases.apart(run) else "together"
            state, count = jax.eval_shape(self.agent.init, jax.random.key(0)), run.updates_per_dispatch
            shapes = experience.shapes(run, self.agent, count)
            self.compiled.update(phases.PARTS[phase], count).compile_ahead(state, shapes)

    @property
    def local(self) -> State:
        """The state as one device has it: for everything but training, and only until the next update."""
        return self.compiled.place.local(self.state)

    @property
    def is_over(self) -> bool:
        """All steps and updates are done, or the evaluation of this very moment is as good as was asked for."""
        done, goal = self.progress, self.run.stop_return
        at_goal = goal is not None and done.evaluation is not None and done.evaluation.mean_return >= goal
        return self.phase(self.moment) == "done" or (at_goal and done.evaluated == self.moment)

    @property
    def moment(self) -> int:
        """How far the run is, see `phases`."""
        return phases.moment(self.run, self.progress.step, self.progress.updates)

    def phase(self, moment: int) -> Phase:
        """The run's next phase at a moment, the present one or an earlier."""
        step = min(moment, self.progress.step)
        return phases.phase(self.run, step, moment - step)

    # ------------------------------------------------------------------------------------- one turn

    def turn(self) -> tuple[int, Part]:
        """Collects, if that is what comes next; the number of updates that follow, and the part that they train. The
        envs wait for `act`."""
        phase = self.phase(self.moment)
        due = self.updates_due(self.progress.step + self.collector.upcoming) if phase == "together" else 0
        if due:
            self._draw(due)
        if phase in ("together", "collect"):
            self.collect()
        if phase == "together":
            return due, "all"
        if phase in phases.PARTS:
            if phase == "policy" and self.progress.updates == self.run.model_updates:
                agent = as_two_phase(self.agent)
                assert agent is not None, self.agent
                # Adam counted steps of the actor in which nothing was asked of it: its first ones would be too long.
                self.state = self.compiled.place.everywhere(agent.renew(self.local))
            return 1, phases.PARTS[phase]
        return 0, "all"

    def pace(self) -> Pace:
        """The work done in this session, and what is left of its run."""
        run, now = self.run, self.progress
        updates = phases.all_updates(run) if phases.apart(run) else self.ratio.total(run.steps) - now.left_out
        return Pace(
            steps=now.step - self._begun.step,
            updates=now.updates - self._begun.updates,
            steps_left=max(0, phases.env_steps(run) - now.step),
            updates_left=max(0, updates - now.updates),
            seconds=self.clock.read(),
            compiling=self.compiled.compiling,
            earlier=self._begun.updates,
        )

    def catch_up(self) -> bool:
        """The updates that a signal left out of the newest turn; False if one leaves them out again."""
        if phases.apart(self.run):
            return True
        if due := self.updates_due(self.progress.step):
            self.update(due)
        return not self.updates_due(self.progress.step)

    def updates_due(self, step: int) -> int:
        """Updates that the first `step` env steps ask for, where steps and updates take turns, and that are to do."""
        return max(0, self.ratio.total(step) - self.progress.updates - self.progress.left_out)

    def collect(self) -> None:
        """The first half of a step of one group of envs, or of as many steps of device envs as one scan has."""
        learns = not phases.apart(self.run) and self.progress.step >= self.run.warmup
        with self.clock.measure_time("envs"):
            self.collector.decide(self.local, "train" if learns else "random")
        self._acting = True

    def act(self) -> None:
        """The second half, if it is still to come."""
        if not self._acting:
            return
        with self.clock.measure_time("envs"):
            row_count = self.collector.act()
        self._acting = False
        ended = self.collector.tally.take()
        self.recent.episodes += ended
        self.progress = replace(self.progress, step=self.progress.step + row_count)
        for episode in ended:
            self._tell("on_episode", episode)

    def update(self, due: int, part: Part = "all") -> None:
        """So many updates of a part, one or more. Envs that wait act once the first is on its way."""
        while due:
            if self.stop.signal and not self._drawn and part == "all" and not phases.apart(self.run):
                return  # `catch_up` of the resume makes up for them
            self._draw(due)
            if not self._drawn:
                self.act()  # whose rows may be the first that make a sequence
                self._draw(due)
            if not self._drawn:
                self._leave_out(due)
                return
            ids = self._drawn.pop("id")
            count = math.prod(ids.shape[:-2])
            with self.clock.measure_time("train"):
                self.state, out, figures = self.compiled.update(part, count)(self.state, self._drawn)
                self._drawn = {}
            self.act()  # waits for a decision, and the device has that update to do meanwhile
            with self.clock.measure_time("train"):
                streak = self.recent.streak()  # waits for the update before this one, no longer
            with self.clock.measure_time("replay"):
                self.write_back.follow(ids[..., self.agent.context :], out)
            due -= count
            self.progress = replace(self.progress, updates=self.progress.updates + count)
            self.recent.add(self.compiled.names[part], figures)
            if streak >= self.run.max_nonfinite:
                raise NonFinite(
                    f"{amount(streak, 'update')} in a row had a loss, gradient or result that is not finite (step "
                    f"{self.progress.step}, update {self.progress.updates}). The last good "
                    f"checkpoint is kept in {self.directory.checkpoints}. Look at the env with "
                    f"`reverie check-env`, or start over with a smaller --learning-rate"
                )

    def _leave_out(self, due: int) -> None:
        """So many updates, for which replay has no batch."""
        if phases.apart(self.run):
            raise ConfigError(
                f"replay holds {len(self.replay)} rows, and in them no sequence of {self.replay.length} to learn "
                "from: raise --steps, or lower --length or --envs"
            )
        if not self.progress.left_out:
            inside = " inside one episode: try a smaller --length, or --no-within-episodes"
            advice, length = inside if self.run.within_episodes else "", self.replay.length
            wording = "step %d: updates are left out while replay holds no sequence of %d rows%s"
            logger.warning(wording, self.progress.step, length, advice)
        self.progress = replace(self.progress, left_out=self.progress.left_out + due)

    def _draw(self, due: int) -> None:
        """The batch of the next of these updates (or batches), if replay has one and it is not drawn yet."""
        if not self._drawn and self.replay.can_sample():
            with self.clock.measure_time("replay"):
                count = experience.at_once(self.run, due)
                self._drawn = experience.draw(self.run, self.replay, self.progress.updates, count)

    def measure(self, log: Log, final: bool) -> None:
        """Does everything due at this moment. If a signal comes meanwhile, it is left to the resume."""
        now, run, moment = self.progress, self.run, self.moment
        over = self.phase(now.measured) != self.phase(moment)  # a phase: the next one has other metrics

        def due(every: int) -> bool:
            return every > 0 and moment // every > now.measured // every

        values: dict[str, float] = {}
        evaluation = None
        if run.eval_episodes and now.evaluated != moment and (final or due(run.eval_every)):
            evaluation = self.measures.evaluation(self.state, now.step, moment)
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
            values |= self.measures.report(self.state, now.step, moment)
        if due(run.log_every) or ((final or over) and moment > now.measured):
            values |= self.recent.take(self.progress)
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
            self.measures.film(self.state, now.step, moment, self.directory.folder / "videos", log.events)
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
          RunGone: the directory is not there any more. What `Snapshots.save` raises.
        """
        self.directory.check()
        if self.recent.streak():
            logger.warning("step %d: no checkpoint, the last update was not finite", self.progress.step)
            return
        with self.clock.measure_time("checkpoint"):
            log.lines.sync()
            path = self.snapshots.save(self.state, self.progress, log.lines.offset)
        self.saved = self.progress
        self._tell("on_checkpoint", path)

    def _restore(self, checkpoint: Checkpoint) -> None:
        state, self.progress = self.snapshots.restore(checkpoint)
        self.state, self.saved = self.compiled.place.everywhere(state), self.progress
        self.metrics_bytes = checkpoint.meta["metrics_bytes"]
        for record in read(self.directory.metrics, self.metrics_bytes):
            if self.watch.figures().keys() <= record.keys():  # not of an evaluation alone: the watch never saw that
                self.watch.look(record)

    def _tell(self, name: str, what: Any) -> None:
        """Tells all callbacks of this name."""
        for each in self.callbacks:
            each(name, self.progress.step, what)


def train(session: Training, console: Console) -> Result:
    """Trains until `run.steps`, `run.stop_return` or a signal; a person watches the console. The caller has locked the
    directory, and entered `session.stop`.

    Raises:
      NonFinite: `run.max_nonfinite` updates in a row were not finite, or what they left is not.
      EnvError: an env failed too often.
      RunGone: the directory was deleted or moved.
      OSError: the last checkpoint could not be written.
    """
    run, directory, stop = session.run, session.directory, session.stop
    steps = phases.moment(run, phases.env_steps(run), phases.all_updates(run))
    unit = "step or update" if phases.apart(run) else "step"
    with Log(
        JsonLines(directory.metrics, session.metrics_bytes),
        Events(directory.path / "tensorboard", session.moment),
        display(console, steps, session.moment, unit),
    ) as log:
        while session.catch_up():
            session.measure(log, session.is_over)
            log.display.update(session.moment, session.pace())
            if session.is_over or stop.signal:
                break
            due, part = session.turn()
            if due:
                session.update(due, part)
            session.act()
        if session.saved != session.progress:
            session.save(log)
    done = session.progress
    return Result(
        path=directory.path,
        steps=done.step,
        updates=done.updates,
        evaluation=done.evaluation,
        stopped=None if session.is_over and done.measured == session.moment else stop.signal,
        traces=session.compiled.traces,
        seconds=session.clock.read(),
    )
