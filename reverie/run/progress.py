"""How far a run is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from reverie.run.evaluation import Evaluation


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

    @classmethod
    def of(cls, facts: Mapping[str, Any]) -> Progress:
        """Inverse of `dataclasses.asdict`."""
        evaluation = facts["evaluation"]
        return cls(**{**facts, "evaluation": Evaluation(**evaluation) if evaluation else evaluation})
