"""The share of a run that is spent neither in `env.step` nor in a compiled call.

    python -m bench.speed.overhead

CartPole with the smallest size: the cheapest env and the cheapest update, so the loop weighs most. The run's own clock
says what compiled calls took, a wrapper around the env what its steps took; what remains is the loop's.
"""

from __future__ import annotations

import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium as gym
import tyro

from bench.common import tell
from reverie.memory import use_huge_pages
from reverie.run.log import read


@dataclass(frozen=True)
class Args:
    steps: int = 6000
    replay_ratio: float = 32.0
    """The lower, the heavier the loop weighs."""


class TimedEnv(gym.Wrapper[Any, Any, Any, Any]):
    """CartPole that adds up the seconds spent in it."""

    seconds = 0.0
    calls = 0

    def step(self, action: Any) -> Any:
        start = time.perf_counter()
        result = self.env.step(action)
        TimedEnv.seconds += time.perf_counter() - start
        TimedEnv.calls += 1
        return result


def main(args: Args) -> None:
    import reverie

    with tempfile.TemporaryDirectory() as folder:
        run = reverie.train(
            "dreamer_v3",
            env=lambda: TimedEnv(gym.make("CartPole-v1")),
            run=Path(folder) / "run",
            preset="cartpole",
            steps=args.steps,
            replay_ratio=args.replay_ratio,
            eval_episodes=0,
            report_every=0,
            video_every=0,
            checkpoint_every=0,
            log_every=1000,
        )
        rows = read(run.path / "metrics.jsonl")
    # The first lines hold compilation; the last is steady.
    last = rows[-1]
    shares = {k.removeprefix("time/share/"): v for k, v in last.items() if k.startswith("time/share/")}
    stepping = TimedEnv.seconds / TimedEnv.calls * last["time/steps_per_second"]
    own = 1 - shares["policy"] - shares["train"] - stepping
    figure = {
        "bench": "overhead",
        "name": "cartpole/200k",
        "value": round(own, 4),
        "unit": "share of wall time",
        "env_step": round(stepping, 4),
        "clock": {k: round(v, 4) for k, v in sorted(shares.items())},
        "steps_per_second": round(rows[-1]["time/steps_per_second"], 1),
    }
    tell(figure)


if __name__ == "__main__":
    arguments = tyro.cli(Args)
    use_huge_pages()
    main(arguments)
