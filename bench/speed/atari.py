"""Our workers against ale-py's own vector env: the same game, images, sticky actions and no-ops.

    python -m bench.speed.atari [--envs 8]

Steps of four frames, random actions, per second of wall time and per second of all processors used.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import tyro

from bench.common import tell


@dataclass(frozen=True)
class Args:
    game: str = "Pong"
    envs: int = 8
    seconds: float = 10.0
    rounds: int = 3
    """Both take turns, so that other work on the machine hits them alike; the median counts."""


def rate(step: Callable[[], object], envs: int, seconds: float, cpu: Callable[[], float]) -> tuple[float, float]:
    """Env steps per second of wall time, and per second of processor time."""
    step()
    began, used, turns = time.perf_counter(), cpu(), 0
    while time.perf_counter() - began < seconds:
        step()
        turns += 1
    return turns * envs / (time.perf_counter() - began), turns * envs / (cpu() - used)


def ours_cpu() -> float:
    """Processor seconds of this process and of its children that still run."""
    ticks, me = os.sysconf("SC_CLK_TCK"), os.getpid()
    total = time.process_time()
    with open(f"/proc/{me}/task/{me}/children") as file:
        for pid in file.read().split():
            with open(f"/proc/{pid}/stat") as stat:
                values = stat.read().rpartition(")")[2].split()
            total += (int(values[11]) + int(values[12])) / ticks
    return total


def main(args: Args) -> None:
    import gymnasium
    from ale_py.vector_env import AtariVectorEnv

    from reverie.envs.spec import EnvSpec
    from reverie.envs.workers import Workers

    everyone, rng = np.arange(args.envs), np.random.default_rng(0)
    found: dict[str, list[tuple[float, float]]] = {"ours": [], "ale_vector": []}
    with Workers(EnvSpec(f"ALE/{args.game}-v5"), args.envs, seed=0, mode="process") as workers:
        actions = workers.act_space["action"].classes[0]

        def ours() -> object:
            workers.send(everyone, {"action": rng.integers(0, actions, args.envs).astype(np.int32)})
            return workers.recv(everyone)

        theirs = AtariVectorEnv(
            gymnasium.spec(f"ALE/{args.game}-v5").kwargs["game"] if f"ALE/{args.game}-v5" in gymnasium.registry else "",
            args.envs,
            img_height=64,
            img_width=64,
            grayscale=False,
            stack_num=1,
            noop_max=30,
            use_fire_reset=False,
            reward_clipping=False,
            repeat_action_probability=0.25,
        )
        theirs.reset(seed=0)
        for _ in range(args.rounds):
            found["ours"].append(rate(ours, args.envs, args.seconds, ours_cpu))
            draw = lambda: theirs.step(rng.integers(0, actions, args.envs))
            found["ale_vector"].append(rate(draw, args.envs, args.seconds, ours_cpu))
        theirs.close()
    medians = {name: np.median(np.array(values), 0) for name, values in found.items()}
    for column, unit in enumerate(("steps/s", "steps per CPU second")):
        ours_value, theirs_value = medians["ours"][column], medians["ale_vector"][column]
        figure = {
            "bench": "atari",
            "name": f"{args.game} x {args.envs}",
            "value": round(float(ours_value / theirs_value), 3),
            "unit": f"ours / ale-py's vector env, {unit}",
            "ours": round(float(ours_value)),
            "ale_vector": round(float(theirs_value)),
        }
        tell(figure)


if __name__ == "__main__":
    main(tyro.cli(Args))
