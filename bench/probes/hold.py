"""How often random play finds what a task pays for, when its actions are repeated for a while.

    python -m bench.probes.hold >> results/hold.jsonl

Prints one JSON line per task: for every bound on the repetition of an action, the episodes that ended and those of them
that found the goal.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import tyro

from bench.common import origin, tell
from reverie.envs.build import make_env
from reverie.envs.facts import wander
from reverie.envs.spec import EnvSpec

# Task -> its clock, if another than its own; whether its goal is what ends an episode, or else a reward above 0.
TASKS = {
    "Acrobot-v1": (0, True),
    "MountainCarContinuous-v0": (0, True),
    "CliffWalking-v1": (500, True),
    "FrozenLake8x8-v1": (0, False),
    "MiniGrid-DoorKey-5x5-v0": (0, False),
}


@dataclass(frozen=True)
class Args:
    tasks: tuple[str, ...] = tuple(TASKS)
    bounds: tuple[int, ...] = (1, 8, 16, 32)
    steps: int = 20_000


def main(args: Args) -> None:
    for task in args.tasks:
        limit, ends = TASKS[task]
        counts = {}
        for bound in args.bounds:
            env = make_env(EnvSpec(task, time_limit=limit))
            steps = [step for step, _ in itertools.islice(wander(env, [bound]), args.steps)]
            env.close()
            found = sum(step.is_terminal if ends else step.reward > 0 for step in steps)
            counts[bound] = [found, sum(step.is_last for step in steps)]
        line = {"bench": "hold", "name": task, "unit": "episodes with the goal, of all", "value": counts}
        tell(line | {"steps": args.steps} | origin())


if __name__ == "__main__":
    main(tyro.cli(Args))
