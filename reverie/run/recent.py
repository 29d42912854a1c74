"""The events of a run since its last line of metrics, and the line that they become."""

from __future__ import annotations

import jax
import numpy as np

from reverie.config import RunConfig
from reverie.replay.rows import Row
from reverie.replay.sequences import Replay
from reverie.run import phases
from reverie.run.clock import Clock
from reverie.run.collect.base import Episode, mean_figures, pack, unpack
from reverie.run.envs import Envs
from reverie.run.jitted import JittedAgent
from reverie.run.phases import Progress

COUNTERS = ("nonfinite/total", "nonfinite/streak")  # metrics that are not averaged


class Recent:
    """Figures of updates and finished episodes since the last line of metrics."""

    def __init__(self, run: RunConfig, workers: Envs, replay: Replay, compiled: JittedAgent, clock: Clock) -> None:
        self.names: list[str] = []  # of the figures of an update
        self.episodes: list[Episode] = []  # in the order in which they finished
        self.logged = Progress()  # how far the run was then
        self._run, self._workers, self._replay, self._jitted, self._clock = run, workers, replay, compiled, clock
        self._figures: list[jax.Array | np.ndarray] = []  # float32 [len(names)] of an update, or [K, len(names)] of K
        self._latest: jax.Array | None = None
        self._seconds = clock.read()

    def add(self, names: list[str], figures: jax.Array) -> None:
        """The figures of one more update, or of as many as there are rows."""
        self.names, self._latest = names, figures
        self._figures.append(figures)

    def streak(self) -> int:
        """Updates in a row that were not finite, up to the newest whose figures are known."""
        if self._latest is None:
            return 0
        return int(np.asarray(self._latest)[..., self.names.index("nonfinite/streak")].flat[-1])

    def take(self, now: Progress) -> dict[str, float]:
        """A line of metrics: means over what happened, which is over with that; counters stand as they are."""
        values: dict[str, float] = {"updates": now.updates}
        if self._figures:
            table = self._table()
            with np.errstate(over="ignore", invalid="ignore"):  # what is not finite is told as such
                values |= dict(zip(self.names, table.mean(0).tolist(), strict=True))
            values |= {k: float(table[-1, self.names.index(k)]) for k in COUNTERS}
        if self.episodes:
            values["episode/return"] = float(np.mean([e.episode_return for e in self.episodes]))
            values["episode/length"] = float(np.mean([e.length for e in self.episodes]))
            figures = mean_figures(self._workers.spec, [e.figures for e in self.episodes])
            values |= {f"episode/{name}": value for name, value in figures.items()}
        if not phases.apart(self._run) or now.step > self.logged.step:
            values["episode/count"] = len(self.episodes)
            values["env/failures"] = self._workers.failures
        values["updates/left_out"] = now.left_out
        values["replay/rows"] = len(self._replay)
        values["replay/evicted_before_update"] = self._replay.skipped
        values |= self._rates(now)
        if self._workers.mode == "process":
            values["memory/worker_mb"] = max(self._workers.memory()) / 1e6
        self._figures, self.episodes, self.logged = [], [], now
        return values

    def _rates(self, now: Progress) -> dict[str, float]:
        """Where the time went since the last line, and what was done in it."""
        seconds = self._clock.read()
        durations = {k: s - self._seconds.get(k, 0.0) for k, s in seconds.items()}
        self._seconds = seconds
        whole = sum(durations.values())
        working = whole - sum(durations.get(k, 0.0) for k in ("evaluation", "report", "checkpoint"))
        return {f"time/share/{k}": s / whole for k, s in durations.items()} | {
            "time/session": sum(seconds.values()),
            "time/steps_per_second": (now.step - self.logged.step) / working,
            "time/updates_per_second": (now.updates - self.logged.updates) / working,
            "time/traces": sum(self._jitted.traces.values()),
        }

    def arrays(self) -> Row:
        """The argument of `restore`, besides `names`."""
        return {"figures": self._table(), "episodes": pack(self.episodes)}

    def _table(self) -> np.ndarray:
        """The figures of every update, float32 [n, len(names)]."""
        rows = [np.asarray(x).reshape(-1, len(self.names)) for x in self._figures]
        return np.concatenate([np.zeros((0, len(self.names)), np.float32), *rows])

    def restore(self, names: list[str], arrays: Row, now: Progress) -> None:
        """Goes on from `arrays`, with `now` the last line. Raises ValueError or TypeError for what cannot be."""
        figures = arrays["figures"]
        if figures.dtype != np.float32 or figures.shape != (len(figures), len(names)):
            raise ValueError(f"recent/figures is {figures.dtype} {figures.shape}, of {len(names)} names")
        self.names, self._figures, self.episodes, self.logged = names, list(figures), unpack(arrays["episodes"]), now
