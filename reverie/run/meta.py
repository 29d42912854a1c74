"""The facts of a checkpoint beside its arrays: how far the run was, and how to go on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from reverie.envs.base import Spaces, to_json
from reverie.run.checkpoint import Checkpoint, Checkpoints
from reverie.run.progress import Progress
from reverie.saved import BYTES, COUNT, Malformed, fault

_SPACES = {str: {str: object}}
FORM = {
    "obs_space": _SPACES,
    "act_space": _SPACES,
    "progress": {
        "step": COUNT,
        "updates": COUNT,
        "left_out": COUNT,
        "measured": COUNT,
        "evaluated": range(-1, COUNT.stop),
        "evaluation": (None, {"returns": [float], "lengths": [COUNT]}),
    },
    "ratio": {"done": COUNT},
    "names": [str],
    "metrics_bytes": BYTES,
    "replay": {"version": COUNT, "held": COUNT, "schema": {str: [object]}, "replay": {"count": [COUNT]}},
}


def describe_run(
    obs_space: Spaces,
    act_space: Spaces,
    progress: Progress,
    replay: Mapping[str, Any],
    *,
    ratio: Mapping[str, int],
    names: Sequence[str] = (),
    metrics_bytes: int = 0,
) -> dict[str, Any]:
    """The facts of a checkpoint in this form.

    Args:
      replay: what `Segments.save` returned.
      ratio: the state of `Ratio`.
      names: of the figures of an update.
      metrics_bytes: of metrics.jsonl that count.
    """
    return {
        "obs_space": to_json(obs_space),
        "act_space": to_json(act_space),
        "progress": asdict(progress),
        "ratio": dict(ratio),
        "names": list(names),
        "metrics_bytes": metrics_bytes,
        "replay": replay,
    }


def latest(checkpoints: Checkpoints) -> Checkpoint | None:
    """The newest sound checkpoint, which says all that it must; None if there is none yet.

    Raises:
      Malformed: it does not. What `Checkpoints.load_latest` raises.
    """
    checkpoint = checkpoints.load_latest()
    if checkpoint and (wrong := fault(checkpoint.meta, FORM)):
        raise Malformed(f"{checkpoint.path} says what cannot be: {wrong}; nothing was changed")
    return checkpoint
