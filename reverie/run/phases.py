"""How far a run is, and what comes next. That follows from the counts of steps and updates alone, so that a resumed run
does what the interrupted one would have done.

    together             steps and updates in turns

    model-then-policy    collect          model                   policy
    env steps            0 ... steps      stand still             stand still
    updates              0                1 ... model_updates     ... model_updates + policy_updates
    moment               0 ... steps      ... + model_updates     ... + policy_updates

Offline there is nothing to collect: the env steps are 0 to the end. Without the schedule, `learn` takes the place of
model and policy: `model_updates` updates of everything.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from reverie.agent import Part
from reverie.config import RunConfig
from reverie.run.evaluation import Evaluation

Phase = Literal["together", "collect", "learn", "model", "policy", "done"]
PARTS: dict[Phase, Part] = {"together": "all", "learn": "all", "model": "model", "policy": "behavior"}  # that move
NUMBERS: dict[Phase, int] = {"collect": 0, "learn": 1, "model": 1, "policy": 2}  # as a metric


@dataclass(frozen=True)
class Progress:
    """Counters of a run."""

    step: int = 0  # rows in replay, ever: env steps of all envs
    updates: int = 0  # done, the skipped ones (not finite) included
    left_out: int = 0  # updates that were due while replay held no sequence to train on
    measured: int = 0  # the moment up to which all that is due is measured; behind the present one if a signal came
    evaluated: int = -1  # the moment of `evaluation`, or -1
    evaluation: Evaluation | None = None

    @classmethod
    def of(cls, facts: Mapping[str, Any]) -> Progress:
        """Inverse of `dataclasses.asdict`."""
        evaluation = facts["evaluation"]
        return cls(**{**facts, "evaluation": Evaluation(**evaluation) if evaluation else evaluation})


def apart(run: RunConfig) -> bool:
    """Whether no update comes before the last env step."""
    return run.schedule == "model-then-policy" or bool(run.offline)


def phase(run: RunConfig, step: int, updates: int) -> Phase:
    """The next phase after so many env steps and updates."""
    if not apart(run):
        return "together" if step < run.steps else "done"
    if step < env_steps(run):
        return "collect"
    if updates >= all_updates(run):
        return "done"
    if run.schedule == "together":
        return "learn"
    return "model" if updates < run.model_updates else "policy"


def moment(run: RunConfig, step: int, updates: int) -> int:
    """How far a run is, in the unit of everything that is due every so often: env steps; apart, updates as well."""
    return step + updates if apart(run) else step


def collects(run: RunConfig, step: int, updates: int) -> bool:
    """Env steps are still to come, or may: once none does, the envs are left alone, and not even re-enacted."""
    return not apart(run) or phase(run, step, updates) == "collect"


def env_steps(run: RunConfig) -> int:
    """Env steps of a whole run."""
    return 0 if run.offline else run.steps


def all_updates(run: RunConfig) -> int:
    """Updates of a whole run, of those that are apart."""
    return run.model_updates + (run.policy_updates if run.schedule == "model-then-policy" else 0)
