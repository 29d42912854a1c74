"""Trackers of experiments, `--logger`: each is a package of somebody else's, and hears what a callback hears."""

from __future__ import annotations

import importlib
import importlib.util
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from reverie.config import Config, ConfigError
from reverie.run.callbacks import Callbacks

logger = logging.getLogger("reverie")

PROJECT = "reverie"


def require(name: str) -> None:
    """Raises ConfigError if the package of a logger is missing; imports nothing."""
    if name != "none" and importlib.util.find_spec(name) is None:
        raise ConfigError(
            f'--logger {name} needs a package that is not installed: type `pip install "reverie[{name}]"`'
        )


@contextmanager
def open_logger(name: str, conf: Config, path: Path) -> Iterator[Callbacks]:
    """The callbacks of a logger, which is closed afterwards. One that cannot begin, or end, is a warning.

    Args:
      conf: of the run; all its values are told to the logger.
      path: of the run, whose last part is its name there.
    """
    require(name)
    if name == "none":
        yield Callbacks()
        return
    values = {"algorithm": conf.algorithm, **conf.values()}
    write: Callable[[int, Mapping[str, float]], Any] | None = None
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


def _wandb(wandb: Any, values: Mapping[str, Any], path: Path) -> Callable[[int, Mapping[str, float]], Any]:
    run = wandb.init(project=PROJECT, name=path.name, config=values, dir=str(path), resume="allow")
    run.define_metric("*", step_metric="env_steps")  # a resume goes back, which wandb's own step cannot
    return lambda step, numbers: run.log({"env_steps": step, **numbers})


def _trackio(trackio: Any, values: Mapping[str, Any], path: Path) -> Callable[[int, Mapping[str, float]], Any]:
    trackio.init(project=PROJECT, name=path.name, config=values, resume="allow")
    return lambda step, numbers: trackio.log(dict(numbers), step=step)


OPEN: dict[str, Callable[[Any, Mapping[str, Any], Path], Callable[[int, Mapping[str, float]], Any]]] = {
    "wandb": _wandb,
    "trackio": _trackio,
}
