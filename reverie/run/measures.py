"""Measurements that change nothing of a run: evaluations, reports, pictures of dreams."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

import jax
import numpy as np

from reverie.agent import DREAMT, State
from reverie.config import RunConfig
from reverie.files import Folder
from reverie.replay.rows import Row
from reverie.replay.sequences import Replay
from reverie.run import dreams
from reverie.run.clock import Clock
from reverie.run.envs import Envs, open_evaluation
from reverie.run.evaluation import ACTING, Evaluation, evaluate
from reverie.run.events import Events
from reverie.run.jitted import JittedAgent
from reverie.run.seeds import evaluation_key, seeds
from reverie.run.stop import Stop

logger = logging.getLogger("reverie")

# What the device, or the machine, may have no room for beside training.
SHORT = (jax.errors.JaxRuntimeError, MemoryError)


class Measures:
    """Each of them is the same whenever its moment comes: what training draws is not touched, and an evaluation has
    other envs, of the kind of `workers`. One for which there is no memory is a warning, and training goes on.

    Raises:
      UnusableEnv: the opponent of evaluations cannot play.
    """

    def __init__(
        self, run: RunConfig, compiled: JittedAgent, workers: Envs, replay: Replay, clock: Clock, stop: Stop
    ) -> None:
        self._run, self._jitted, self._workers, self._replay = run, compiled, workers, replay
        self._clock, self._stop = clock, stop
        self._standing: Envs | None = None  # of evaluations on the device: compiled once
        if not run.eval_episodes:
            return
        if workers.mode == "device":
            self._standing = envs = self._open()
            if envs.mode == "device" and envs.env.players == 2:
                # An opponent that cannot play is told of now.
                compiled.arena(envs, run.opponent, ACTING[run.eval_mode])
        elif "player" in workers.obs_space:
            self._open().close()  # as above

    def evaluation(self, state: State, step: int, moment: int) -> Evaluation | None:
        """None if it was given up: for a signal, or for want of memory."""
        run = self._run
        advice = f"A new run plays fewer games at once with --eval-envs below {run.eval_envs}, or --eval-episodes"
        with self._spare(state, step, "evaluation", "no evaluation", advice), self._standing or self._open() as envs:
            local, key = self._jitted.place.local(state), evaluation_key(run.seed, moment)
            mode = ACTING[run.eval_mode]
            return evaluate(self._jitted, local, envs, run.eval_episodes, key, self._stop, run.opponent, mode)
        return None

    def report(self, state: State, step: int, moment: int) -> dict[str, float]:
        """The model's report on a batch; empty for want of memory."""
        figures: dict[str, jax.Array] = {}
        advice = "--report-every 0 leaves reports out; they grow with --batch"
        with self._spare(state, step, "report", "no report", advice):
            figures = jax.device_get(self._jitted.report(self._jitted.place.local(state), self._look(moment)))
        return {f"report/{k}": float(v) for k, v in figures.items()}

    def film(self, state: State, step: int, moment: int, folder: Folder, events: Events) -> None:
        """Dreams as pictures; a full disk is a warning, as for metrics."""
        advice = "--video-every 0 leaves pictures out; they grow with --batch"
        with self._spare(state, step, "report", "no picture of a dream", advice):
            dream = jax.device_get(self._jitted.dream(self._jitted.place.local(state), self._look(moment)))
            try:
                dreams.film(dream, folder, moment, events)
            except OSError as error:
                logger.warning("step %d: no picture of a dream: %s", step, error)

    def _open(self) -> Envs:
        """The envs of an evaluation."""
        run, workers = self._run, self._workers
        mode = "auto" if workers.mode == "device" else workers.mode
        seed = seeds(run.seed).evaluation
        return open_evaluation(run, workers.spec, workers.obs_space, run.eval_episodes, seed, run.opponent, mode)

    def _look(self, moment: int) -> Row:
        """A batch to look at."""
        rng = np.random.default_rng((seeds(self._run.seed).replay, moment))
        return dreams.look(self._replay, self._run.batch, self._jitted.agent.context + DREAMT, rng)

    @contextmanager
    def _spare(self, state: State, step: int, kind: str, without: str, advice: str) -> Iterator[None]:
        """A block that only looks at the run does not end it: if there is no memory for it, that is a warning `without`
        what it makes. The clock knows its time by `kind`."""
        with self._clock.measure_time("train"):
            jax.block_until_ready(state)  # what fails in here is an update, and does end it
        try:
            with self._clock.measure_time(kind):
                yield
        except SHORT as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            logger.warning("step %d: %s, training goes on: %s. %s", step, without, reason, advice)
