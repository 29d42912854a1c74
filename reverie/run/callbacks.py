"""Functions of a caller that hear of a run while it goes."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from reverie.run.collect.base import Episode
from reverie.run.evaluation import Evaluation

logger = logging.getLogger("reverie")


@dataclass
class Callbacks:
    """Functions to call, with the env steps so far as first argument. What they return is ignored, and one that
    raises is a warning, told once, and training goes on. After a resume they hear again of what came after the
    checkpoint.

    Attributes:
      on_log: `(step, values)`, a line of metrics, name -> finite number.
      on_eval: `(step, evaluation)`.
      on_episode: `(step, episode)`, one that ended in training.
      on_checkpoint: `(step, path)`, one that is whole and on the disk.
    """

    on_log: Callable[[int, Mapping[str, float]], Any] | None = None
    on_eval: Callable[[int, Evaluation], Any] | None = None
    on_episode: Callable[[int, Episode], Any] | None = None
    on_checkpoint: Callable[[int, Path], Any] | None = None
    _print_error: set[str] = field(default_factory=set)

    def __call__(self, name: str, step: int, what: Any) -> None:
        """Calls the function of this name, if there is one."""
        if (function := getattr(self, name)) is None:
            return
        try:
            function(step, what)
        except Exception as error:  # the user's own function: no reason to lose a run
            if name not in self._print_error:
                self._print_error.add(name)
                logger.warning(
                    "step %d: %s raised %s: %s. Training goes on; this is told once", step, name,
                    type(error).__name__, error,
                )  # fmt: skip
