"""All that decides how a run goes on, as one checkpoint; and the way back.

Beside its arrays, a checkpoint has facts (`FORM`): how far the run was, and how to go on.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from reverie.agent import Agent, State, add_prefix, select
from reverie.config import RunConfig
from reverie.envs.base import Spaces, to_json
from reverie.health import NonFinite
from reverie.replay.rows import Row
from reverie.replay.segments import Segments
from reverie.replay.sequences import Replay
from reverie.run import phases
from reverie.run.checkpoint import Checkpoint, Checkpoints, Mismatch, flatten, unflatten
from reverie.run.collect.base import Collector
from reverie.run.experience import WriteBack
from reverie.run.phases import Progress
from reverie.run.recent import Recent
from reverie.saved import BYTES, COUNT, Malformed, fault

logger = logging.getLogger("reverie")

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
    "ratio": {"done": COUNT},  # updates that were due; earlier versions cannot do without
    "names": [str],  # of the figures of an update
    "metrics_bytes": BYTES,  # of metrics.jsonl that count
    # What `Segments.save` returned.
    "replay": {"version": COUNT, "held": COUNT, "schema": {str: [object]}, "replay": {"count": [COUNT]}},
}


def describe_run(
    obs_space: Spaces,
    act_space: Spaces,
    progress: Progress,
    replay: Mapping[str, Any],
    *,
    done: int = 0,
    names: Sequence[str] = (),
    metrics_bytes: int = 0,
) -> dict[str, Any]:
    """The facts of a checkpoint, see `FORM`."""
    return {
        "obs_space": to_json(obs_space),
        "act_space": to_json(act_space),
        "progress": asdict(progress),
        "ratio": {"done": done},
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


@dataclass
class Snapshots:
    """The parts of a run in its checkpoints, besides its state and its progress."""

    run: RunConfig
    agent: Agent
    checkpoints: Checkpoints  # of the run, whose id they bear
    segments: Segments  # where the rows of `replay` lie
    # `restore` brings these back.
    replay: Replay
    write_back: WriteBack
    collector: Collector
    recent: Recent

    def save(self, state: State, progress: Progress, metrics_bytes: int) -> Path:
        """Commits a checkpoint of this very moment.

        Raises:
          OSError: the disk will not take it.
          NonFinite: the state cannot be learned from any more.
        """
        replay = self.segments.save(self.replay)
        arrays = add_prefix("agent/", flatten(state))
        self._require_finite(arrays, progress)
        if phases.collects(self.run, progress.step, progress.updates):
            arrays |= add_prefix("collector/", self.collector.state())
        arrays |= add_prefix("recent/", self.recent.arrays()) | add_prefix("late/", self.write_back.arrays())
        facts = describe_run(
            self.agent.obs_space,
            self.agent.act_space,
            progress,
            replay,
            done=0 if phases.apart(self.run) else progress.updates + progress.left_out,
            names=self.recent.names,
            metrics_bytes=metrics_bytes,
        )
        moment = phases.moment(self.run, progress.step, progress.updates)
        path = self.checkpoints.save(moment, arrays, facts)
        self.segments.collect_garbage(m["meta"]["replay"] for m in self.checkpoints.manifests())
        return path

    def restore(self, checkpoint: Checkpoint) -> tuple[State, Progress]:
        """The state and the progress of a checkpoint; all else is brought back in its place.

        Raises:
          Mismatch: the checkpoint is of another agent.
          Exception: what was saved cannot be gone on with.
        """
        facts, arrays = checkpoint.meta, checkpoint.arrays
        state = agent_state(self.agent, checkpoint)
        self.segments.load(self.replay, facts["replay"])
        progress = Progress.of(facts["progress"])
        self.recent.restore(facts["names"], select(arrays, "recent/"), progress)
        self.write_back.restore(select(arrays, "late/"))
        if phases.collects(self.run, progress.step, progress.updates):
            self.collector.restore(select(arrays, "collector/"))
            for envs, rows in zip(self.collector.groups, self.collector.pending, strict=True):
                if rows:
                    self.replay.check(envs, rows)
        return state, progress

    def _require_finite(self, arrays: Row, progress: Progress) -> None:
        """Updates look at what they get from a batch; this looks at what has become of the state."""
        for name, x in arrays.items():
            if jnp.issubdtype(x.dtype, jnp.inexact) and not np.isfinite(x).all():
                raise NonFinite(
                    f"{name} is not finite any more (step {progress.step}, update {progress.updates}). The "
                    f"last good checkpoint is kept in {self.checkpoints.directory}. Start over with a smaller "
                    "--learning-rate"
                )


def agent_state(agent: Agent, checkpoint: Checkpoint) -> State:
    """The agent's state in a checkpoint.

    Raises:
      Mismatch: it is of other spaces, another size or another version; lists all that differs.
    """
    faults = []
    for name in ("obs_space", "act_space"):
        saved, own = checkpoint.meta[name], to_json(getattr(agent, name))
        faults += [
            f"{name} {key}: saved {saved.get(key, 'nothing')}, expected {own.get(key, 'nothing')}"
            for key in sorted(saved.keys() | own.keys())
            if not _fits(saved.get(key), own.get(key))
        ]
    if faults:
        raise Mismatch(f"{checkpoint.path} is of another env:\n  " + "\n  ".join(faults))
    like = jax.eval_shape(agent.init, jax.random.key(0))
    arrays = select(checkpoint.arrays, "agent/")
    return unflatten(like, arrays | _add_missing(agent, arrays))


def _add_missing(agent: Agent, arrays: Row) -> Row:
    """The modules that a checkpoint of an earlier version lacks altogether, their share of the optimizer included."""
    lacking = set(agent.added).difference(*(path.split("/") for path in arrays))
    if not lacking:
        return {}
    logger.warning("the checkpoint is of a version without %s: untrained so far", ", ".join(sorted(lacking)))
    fresh = flatten(jax.jit(agent.init)(jax.random.key(0)))
    return {path: x for path, x in fresh.items() if lacking.intersection(path.split("/"))}


def _fits(saved: dict[str, Any] | None, own: dict[str, Any] | None) -> bool:
    """Whether two spaces, as `base.to_json` describes them, are one array.

    Who moves when changes no array, and earlier versions do not tell it. Nor is it another observation if its bounds
    are gone: earlier versions believed those of Box2D. (Actions always have bounds.)
    """
    free = {"alternating"}
    if own and set(own["low"]) | set(own["high"]) == {"-inf", "inf"}:
        free |= {"low", "high"}
    array = lambda space: space and {k: v for k, v in space.items() if k not in free}
    return array(saved) == array(own)
