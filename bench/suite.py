"""Small tasks as a user meets them: no presets, plain defaults, a fixed budget of one core.

    python bench/suite.py --out results/suite.jsonl                            # everything: many hours
    python bench/suite.py --tasks Acrobot-v1 --algorithms dreamer_v3 --seeds 1

Every run is `reverie train ALGORITHM --env TASK --preset none`, told to stop when its process and its children have
used so many minutes of processor time, or earlier, when two of its own evaluations in a row reached the threshold. Its
score is a greedy `reverie eval` of what it left, on episodes that the run itself never saw, solved early or not.
Prints one JSON line per run; a line that `--out` holds already is not made again.
"""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tyro
from solve import commit, evaluated, processor

from reverie.run.log import read

# Task -> the mean return that solves it: Gymnasium's threshold where it has one. Pendulum: about what a policy earns
# that swings up in every episode. CliffWalking: the shortest safe way, and a step more. FrozenLake: nine tenths of what
# the best policy earns (`frozen_lake`). MinAtar: what the paper of the games shows for DQN after so few frames.
TASKS: dict[str, float] = {
    "CartPole-v1": 475.0,
    "Acrobot-v1": -100.0,
    "MountainCarContinuous-v0": 85.0,
    "LunarLander-v3": 200.0,
    "Pendulum-v1": -200.0,
    "FrozenLake8x8-v1": 0.0,
    "CliffWalking-v1": -14.0,
    "gymnax:Breakout-MinAtar": 5.0,
    "gymnax:Asterix-MinAtar": 2.0,
    "MiniGrid-Empty-8x8-v0": 0.9,
    "MiniGrid-DoorKey-5x5-v0": 0.9,
    "reverie.envs.toy:Catch": 0.9,
}
EVERY = 5000  # steps between a run's own evaluations
CONTINUOUS = {"Pendulum-v1", "MountainCarContinuous-v0"}  # searched by sampled_muzero


@dataclass(frozen=True)
class Args:
    tasks: tuple[str, ...] = tuple(TASKS)
    algorithms: tuple[str, ...] = ("dreamer_v3", "gumbel_muzero")
    seeds: int = 3
    minutes: float = 10.0
    """Of processor time, for one run, its evaluations included."""
    episodes: int = 20
    """Greedy episodes that decide."""
    core: int = 0
    """The one core."""
    out: Path | None = None
    """File to which every line is added."""


def frozen_lake(steps: int = 200) -> float:
    """The chance of the best policy to reach the goal of the slippery 8x8 lake in so many steps, by value iteration."""
    import gymnasium

    table: Any = gymnasium.make("FrozenLake8x8-v1").unwrapped
    value = np.zeros(64)
    for _ in range(steps):
        value = np.array(
            [
                max(sum(p * (r + (not end) * value[s]) for p, s, r, end in table.P[at][a]) for a in range(4))
                for at in range(64)
            ]
        )
    return float(value[0])


def threshold(task: str) -> float:
    return 0.9 * frozen_lake() if task.startswith("FrozenLake") else TASKS[task]


def seconds(process: subprocess.Popen[bytes]) -> float:
    """Processor time of a running process and of its children that have ended."""
    fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(") ")[2].split()
    return sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")


def evaluations(run: Path) -> list[tuple[int, float]]:
    """Step and mean return of every evaluation that a run has made."""
    rows = read(run / "metrics.jsonl") if (run / "metrics.jsonl").exists() else []
    return [(row["step"], row["eval/mean_return"]) for row in rows if "eval/mean_return" in row]


def measure(task: str, algorithm: str, seed: int, args: Args, folder: Path) -> dict[str, Any]:
    """One run and its score."""
    run = folder / f"{algorithm}-{seed}"
    command = [sys.executable, "-m", "reverie.cli", "train", algorithm, "--env", task, "--preset", "none"]
    command += ["--seed", str(seed), "--run", str(run), "--steps", str(10**9)]
    command += ["--eval-every", str(EVERY), "--video-every", "0", "--report-every", "0"]
    command += [] if ":" in task and "toy" not in task else ["--workers", "inline"]  # one on the device has none
    began = time.monotonic()
    with (folder / "log").open("ab") as log:
        process = subprocess.Popen(
            command, stdout=log, stderr=log, preexec_fn=lambda: os.sched_setaffinity(0, {args.core})
        )
        used, last = 0.0, [-math.inf]
        while process.poll() is None and used < 60 * args.minutes and min(last) < threshold(task):
            time.sleep(1)
            used = seconds(process)
            last = [value for _, value in evaluations(run)[-2:]]
            last = last if len(last) == 2 else [-math.inf]
        process.send_signal(signal.SIGTERM)
        if process.wait() != 0:
            raise SystemExit(f"{' '.join(command)} failed:\n{(folder / 'log').read_text()[-2000:]}")
    wall = (time.monotonic() - began) / 60
    rows = read(run / "metrics.jsonl")
    played = evaluated(run, args.episodes)
    return {
        "bench": "suite",
        "name": task,
        "algorithm": algorithm,
        "seed": seed,
        "value": played["mean_return"],
        "unit": "mean greedy return",
        "std": played["std_return"],
        "threshold": round(threshold(task), 3),
        "solved": played["mean_return"] >= threshold(task),
        "steps": rows[-1]["step"],
        "updates": int(rows[-1]["updates"]),
        "budget_minutes": args.minutes,
        "processor_minutes": round(used / 60, 1),
        "minutes": round(wall, 1),
        "episodes": args.episodes,
        "curve": [[step, round(value, 2)] for step, value in evaluations(run)],
        "commit": commit(),
        "machine": processor(),
    }


def main(args: Args) -> None:
    lines = args.out.read_text().splitlines() if args.out and args.out.exists() else []
    kept = [json.loads(line) for line in lines]
    done = {(x["name"], x["algorithm"], x["seed"], x["budget_minutes"]) for x in kept}
    for seed in range(args.seeds):
        for task in args.tasks:
            for named in args.algorithms:
                algorithm = "sampled_muzero" if named == "gumbel_muzero" and task in CONTINUOUS else named
                if (task, algorithm, seed, args.minutes) in done:
                    continue
                with tempfile.TemporaryDirectory() as folder:
                    line = json.dumps(measure(task, algorithm, seed, args, Path(folder)))
                print(line, flush=True)
                if args.out:
                    with args.out.open("a") as file:
                        file.write(line + "\n")


if __name__ == "__main__":
    main(tyro.cli(Args))
