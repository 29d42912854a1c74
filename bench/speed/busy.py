"""The share of time that the training loop keeps a device busy, with a simulated one.

    python -m bench.speed.busy
    python -m bench.speed.busy --tasks reverie.envs.toy:Catch --replay-ratio 64
    python -m bench.speed.busy --milliseconds 1 --updates-per-dispatch 4

The device is a clock: an update takes so many milliseconds from when it is asked for, or from when all that was asked
before is done, and what it returns can be read no sooner. A decision of the policy waits its turn as well, and takes
the time that the CPU needs for it: it is computed in earnest as it is asked for, so the host can do nothing else
meanwhile. It is work of the device (`updates_alone` does not count it). All else is a real run: envs, replay,
write-back. What is left over is the time that a device would wait for the host. Prints one JSON line per task.
"""

from __future__ import annotations

import itertools
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import jax
import numpy as np
import tyro

import reverie
from bench.common import origin, tell
from reverie.agent import Part
from reverie.run.jitted import JittedAgent
from reverie.run.log import read


@dataclass(frozen=True)
class Args:
    tasks: tuple[str, ...] = ("CartPole-v1", "reverie.envs.toy:Catch")
    """The second one is seen as pixels, 64 x 64."""
    replay_ratio: float = 512.0
    milliseconds: float = 5.0
    """Of one update."""
    updates: int = 2000
    updates_per_dispatch: int = 1


class Result:
    """An array that can be read from some time on."""

    def __init__(self, array: np.ndarray, ready: float) -> None:
        self.array, self.ready = array, ready

    def __array__(self, *_: Any, **__: Any) -> np.ndarray:
        wait_until(self.ready)
        return self.array


class Device:
    """What it is asked for, one after the other, by the clock; in place of what a `JittedAgent` computes."""

    def __init__(self) -> None:
        self.free = 0.0  # when it is done with all that it was asked for
        self.spans: list[tuple[float, float]] = []  # start and end of every update
        self.decisions: list[tuple[float, float]] = []  # and of every decision

    def ask(self, spans: list[tuple[float, float]], moment: float, seconds: float) -> None:
        """Something of this kind that takes so long, asked for at a moment."""
        start = max(moment, self.free)
        self.free = start + seconds
        spans.append((start, self.free))

    def late(self, array: Any) -> Result:
        """A result of what it was asked for last."""
        return Result(np.asarray(array), self.free)

    def busy(self, *kinds: list[tuple[float, float]]) -> float:
        """The share of the time that it computes something of these kinds, once all is under way."""
        first, last = self.spans[len(self.spans) // 4][0], self.spans[-1][1]
        inside = [end - start for start, end in itertools.chain(*kinds) if first <= start and end <= last]
        return sum(inside) / (last - first)


class Update(NamedTuple):
    """Updates of one dispatch on a device, which change nothing; in place of a `CountedJit`."""

    device: Device
    seconds: float
    updates: int  # of a dispatch
    context: int  # rows of a batch before the trained ones

    def compile_ahead(self, *shapes: Any) -> None:
        """There is nothing to compile."""

    def __call__(self, state: Any, batch: Any) -> Any:
        moment = time.perf_counter()
        for _ in range(self.updates):
            self.device.ask(self.device.spans, moment, self.seconds)
        trained = (*[slice(None)] * (batch["reward"].ndim - 1), slice(self.context, None))
        out = {k: self.device.late(x[trained]) for k, x in batch.items() if k.startswith("out/")}
        return state, out, self.device.late(np.zeros(2, np.float32))


def wait_until(moment: float) -> None:
    time.sleep(max(0.0, moment - time.perf_counter()))


def measure(task: str, args: Args, folder: Path) -> dict[str, Any]:
    device, decide, run = Device(), JittedAgent.decide, folder / "run"
    batch, length, warmup = 16, 32, 1024

    def decide_in_turn(compiled: JittedAgent, *given: Any) -> Any:
        start = time.perf_counter()
        carry, *decision = jax.block_until_ready(decide(compiled, *given))
        device.ask(device.decisions, start, time.perf_counter() - start)
        return carry, *jax.tree.map(device.late, decision)

    def update(compiled: JittedAgent, part: Part = "all", count: int = 1) -> Update:
        compiled.names[part] = ["nonfinite/streak", "nonfinite/total"]
        return Update(device, args.milliseconds / 1000, count, compiled.agent.context)

    with mock.patch.object(JittedAgent, "update", update), mock.patch.object(JittedAgent, "decide", decide_in_turn):
        reverie.train(
            "dreamer_v3",
            env=task,
            preset="paper",
            run=run,
            size="200k",
            batch=batch,
            length=length,
            replay_ratio=args.replay_ratio,
            updates_per_dispatch=args.updates_per_dispatch,
            warmup=warmup,
            steps=warmup + int(args.updates * batch * length / args.replay_ratio),
            workers="inline",
            eval_episodes=0,
            report_every=0,
            video_every=0,
            checkpoint_every=0,
            log_every=1000,
        )
    last = read(run / "metrics.jsonl")[-1]
    shares = {
        k.removeprefix("time/share/"): round(v, 3) for k, v in sorted(last.items()) if k.startswith("time/share/")
    }
    return {
        "bench": "busy",
        "name": task,
        "value": round(device.busy(device.spans, device.decisions), 3),
        "unit": "share of the time that the device is busy",
        "updates_alone": round(device.busy(device.spans), 3),
        "updates": len(device.spans),
        "milliseconds": args.milliseconds,
        "replay_ratio": args.replay_ratio,
        "updates_per_dispatch": args.updates_per_dispatch,
        "clock": shares,
        **origin(),
    }


def main(args: Args) -> None:
    for task in args.tasks:
        with tempfile.TemporaryDirectory() as folder:
            tell(measure(task, args, Path(folder)))


if __name__ == "__main__":
    main(tyro.cli(Args))
