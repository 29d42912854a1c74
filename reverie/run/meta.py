"""What a checkpoint says beside its arrays: how far the run was, and how to go on."""

from __future__ import annotations

from reverie.run.checkpoint import Checkpoint, Checkpoints
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


def latest(checkpoints: Checkpoints) -> Checkpoint | None:
    """The newest sound checkpoint, which says all that it must; None if there is none yet.

    Raises:
      Malformed: it does not. What `Checkpoints.load_latest` raises.
    """
    checkpoint = checkpoints.load_latest()
    if checkpoint and (wrong := fault(checkpoint.meta, FORM)):
        raise Malformed(f"{checkpoint.path} says what cannot be: {wrong}; nothing was changed")
    return checkpoint
