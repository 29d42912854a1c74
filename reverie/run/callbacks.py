"""Who hears of a run while it goes: functions of a caller, and trackers of experiments (`--logger`), each a package of
somebody else's.
"""

from __future__ import annotations

import importlib
import importlib.util
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from reverie.config import Config, ConfigError
from reverie.run.collect.base import Episode
from reverie.run.evaluation import Evaluation

logger = logging.getLogger("reverie")

PROJECT = "reverie"  # of a tracker
OnLog = Callable[[int, Mapping[str, float]], Any]


@dataclass
class Callbacks:
    """Functions to call, with the env steps so far as first argument. What they return is ignored, and one that raises
    is a warning, told once, and training goes on. After a resume they hear again of what came after the checkpoint.

    Attributes:
      on_log: `(step, values)`, a line of metrics, name -> finite number.
      on_eval: `(step, evaluation)`.
      on_episode: `(step, episode)`, one that ended in training.
      on_checkpoint: `(step, path)`, one that is whole and on the disk.
    """

    on_log: OnLog | None = None
    on_eval: Callable[[int, Evaluation], Any] | None = None
    on_episode: Callable[[int, Episode], Any] | None = None
    on_checkpoint: Callable[[int, Path], Any] | None = None
    _faulty: set[str] = field(default_factory=set)  # names of those that raised

    def __call__(self, name: str, step: int, what: Any) -> None:
        """Calls the function of this name, if there is one."""
        if (function := getattr(self, name)) is None:
            return
        try:
            function(step, what)
        except Exception as error:  # the user's own function: no reason to lose a run
            if name not in self._faulty:
                self._faulty.add(name)
                raised = f"{name} raised {type(error).__name__}: {error}"
                logger.warning("step %d: %s. Training goes on; this is told once", step, raised)


def require(name: str) -> None:
    """Raises ConfigError if the package of a logger is missing; imports nothing."""
    if name != "none" and importlib.util.find_spec(name) is None:
        raise ConfigError(
            f'--logger {name} needs a package that is not installed: type `pip install "reverie[{name}]"`'
        )


@contextmanager
def open_logger(name: str, conf: Config, path: Path) -> Iterator[Callbacks]:
    """The callbacks of a logger, which is told all values of a run under the last part of its path, and is closed
    afterwards. One that cannot begin, or end, is a warning."""
    require(name)
    if name == "none":
        yield Callbacks()
        return
    values = {"algorithm": conf.algorithm, **conf.values()}
    write: OnLog | None = None
    package: Any = None
    with _spare(name, "begin"):
        package = importlib.import_module(name)
        write = OPEN[name](package, values, path)
    try:
        yield Callbacks(on_log=write)  # which has the means of evaluations too
    finally:
        if write is not None:
            with _spare(name, "end"):
                package.finish()


@contextmanager
def _spare(name: str, what: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # of a package that talks to servers: not worth a run
        logger.warning("--logger %s cannot %s: %s: %s. Training goes on", name, what, type(error).__name__, error)


def _wandb(wandb: Any, values: Mapping[str, Any], path: Path) -> OnLog:
    run = wandb.init(project=PROJECT, name=path.name, config=values, dir=str(path), resume="allow")
    run.define_metric("*", step_metric="env_steps")  # a resume goes back, which wandb's own step cannot
    return lambda step, numbers: run.log({"env_steps": step, **numbers})


def _trackio(trackio: Any, values: Mapping[str, Any], path: Path) -> OnLog:
    trackio.init(project=PROJECT, name=path.name, config=values, resume="allow")
    return lambda step, numbers: trackio.log(dict(numbers), step=step)


OPEN = {"wandb": _wandb, "trackio": _trackio}
