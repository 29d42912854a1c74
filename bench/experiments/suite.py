"""Small tasks as a user meets them: no presets, plain defaults, a fixed budget of one core.

    python -m bench.experiments.suite --out results/suite.jsonl                            # everything: many hours
    python -m bench.experiments.suite --tasks Acrobot-v1 --algorithms dreamer_v3 --seeds 1

Every run is `reverie train ALGORITHM --env TASK --preset none`, told to stop when its process and its children have
used so many minutes of processor time, or earlier, when four of its own evaluations in a row reached the threshold. Its
score is a greedy `reverie eval` of what it left, on episodes that the run itself never saw, solved early or not.
Prints one record per run, as `bench.common.Record` says; one that `--out` holds already is not made again. Minutes are
of processor time.
"""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import tyro

from bench.common import Record, command_line, commit, evaluated, greedy_curve, machine, records, tell
from bench.probes.exact import World
from reverie.run.log import read

# Task -> the mean return that solves it: Gymnasium's threshold where it has one. Pendulum: about what a policy earns
# that swings up in every episode. CliffWalking: the shortest safe way, and a step more. FrozenLake: nine tenths of what
# the best policy earns (`bench.probes.exact`). MinAtar: what the paper of the games shows for DQN after so few frames.
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
IN_A_ROW = 4  # of these: a greedy policy may solve a task once and not a thousand updates later
# Task -> the member of the MuZero family that is made for it, in place of gumbel_muzero: continuous actions, chance.
MEMBER = {
    "Pendulum-v1": "sampled_muzero",
    "MountainCarContinuous-v0": "sampled_muzero",
    "FrozenLake8x8-v1": "stochastic_muzero",
}


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


def threshold(task: str) -> float:
    return 0.9 * World(task).most(200) if task.startswith("FrozenLake") else TASKS[task]


def seconds(process: subprocess.Popen[bytes]) -> float:
    """Processor time of a running process and of its children that have ended."""
    fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(") ")[2].split()
    return sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")


def measure(task: str, algorithm: str, seed: int, args: Args, folder: Path) -> Record:
    """One run and its score."""
    run = folder / f"{algorithm}-{seed}"
    command = command_line("train", algorithm, "--env", task, "--preset", "none", "--seed", str(seed))
    command += ["--run", str(run), "--steps", str(10**9)]
    command += ["--eval-every", str(EVERY), "--video-every", "0", "--report-every", "0"]
    command += [] if ":" in task and "toy" not in task else ["--workers", "inline"]  # one on the device has none
    with (folder / "log").open("ab") as log:
        process = subprocess.Popen(
            command, stdout=log, stderr=log, preexec_fn=lambda: os.sched_setaffinity(0, {args.core})
        )
        used, last = 0.0, list[float]()
        while process.poll() is None and used < 60 * args.minutes:
            if len(last) == IN_A_ROW and min(last) >= threshold(task):
                break
            time.sleep(1)
            used, last = seconds(process), greedy_curve(run)["value"][-IN_A_ROW:]
        process.send_signal(signal.SIGTERM)
        if process.wait() != 0:
            raise SystemExit(f"{' '.join(command)} failed:\n{(folder / 'log').read_text()[-2000:]}")
    rows, played = read(run / "metrics.jsonl"), evaluated(run, args.episodes)
    return Record(
        env=task,
        algorithm=algorithm,
        preset="none",
        seed=seed,
        value=played["mean_return"],
        std=played["std_return"],
        episodes=args.episodes,
        threshold=round(threshold(task), 3),
        steps=rows[-1]["step"],
        updates=int(rows[-1]["updates"]),
        minutes=round(used / 60, 1),
        cores=1,
        command=f"python -m bench.experiments.suite --tasks {task} --algorithms {algorithm} --minutes {args.minutes:g}",
        commit=commit(),
        machine=machine(),
        curve=greedy_curve(run),
    )


def main(args: Args) -> None:
    kept = records(args.out) if args.out and args.out.exists() else []
    done = {(x.env, x.algorithm, x.seed) for x in kept}
    for seed, task, named in itertools.product(range(args.seeds), args.tasks, args.algorithms):
        algorithm = MEMBER.get(task, named) if named == "gumbel_muzero" else named
        if (task, algorithm, seed) not in done:
            with tempfile.TemporaryDirectory() as folder:
                tell(measure(task, algorithm, seed, args, Path(folder)), args.out)


if __name__ == "__main__":
    main(tyro.cli(Args))
