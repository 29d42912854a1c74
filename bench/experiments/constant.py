"""Trains algorithms where every step pays 1 and looks the same, and compares the value they learn with the truth.

    python -m bench.experiments.constant                                       # every algorithm at its defaults
    python -m bench.experiments.constant --algorithms muzero --values '{"bootstrap": "stored"}'

In `device:Constant` episodes are truncated, not terminated, after 10 steps, so that at a discount of 0.9 every state is
worth 10. Who says less took a truncation for an end, or bootstraps from values of a time when nothing was known yet.
What is read is the critic's mean (Dreamers), or the value that the network gives the root (MuZero family), over the
states of one episode but its last. Prints one JSON line per algorithm; `curve` has the same figure on the way.
"""

from __future__ import annotations

import bisect
import contextlib
import json
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tyro

import reverie
from bench.common import origin, tell
from reverie import config, defaults
from reverie.algos import ALGORITHMS
from reverie.algos.muzero.muzero import MuZero
from reverie.assembly import make_agent, spec_of
from reverie.compile_cache import keep_programs
from reverie.envs.build import make_env
from reverie.envs.device import DeviceEnvs
from reverie.model.dynamics import features
from reverie.run.experience import ratio
from reverie.trained import LoadedAgent

ENV = "device:Constant"
DISCOUNT = 0.9
QUIET = {f"{name}_every": 0 for name in ("eval", "report", "video", "checkpoint")} | {"eval_episodes": 0}


@dataclass(frozen=True)
class Args:
    algorithms: tuple[str, ...] = tuple(ALGORITHMS)
    updates: int = 2000
    points: int = 4
    """Moments at which the value is read, the last one included."""
    seed: int = 0
    values: str = "{}"
    """Further values of the run, as a JSON object."""


def discount(algorithm: str) -> dict[str, Any]:
    """The value that makes an algorithm's discount 0.9."""
    own = vars(config.default(algorithm).agent)
    if "horizon" in own:
        return {"horizon": round(1 / (1 - DISCOUNT))}
    return {"gamma" if "gamma" in own else "discount": DISCOUNT}


def steps(algorithm: str, values: dict[str, Any], updates: int) -> int:
    """Env steps after which so many updates are done."""
    conf = config.override(config.default(algorithm), env=ENV, **values)
    chosen = defaults.choices(conf, "", is_new=True)
    conf = config.override(conf, **{x.name: x.value for x in chosen if x.name not in values})
    env = make_env(spec_of(conf.run))
    agent = make_agent(config.override(conf, precision="float32"), env.obs_space, env.act_space)
    return bisect.bisect_left(range(10**9), updates, key=ratio(conf.run, agent).total)


def learned(agent: LoadedAgent) -> float:
    """Mean value of the states of an episode but its last."""
    policy = jax.jit(lambda state, carry, rows: agent.agent.policy(state, carry, rows, "eval"))
    envs, values = DeviceEnvs(agent.spec, 1, seed=0), []
    world, carry, state = envs.begin(), agent.agent.init_carry(1, jax.random.key(0)), agent.state
    while not (rows := jax.device_get(envs.rows(world)))["is_last"][0]:
        carry, action, _ = policy(state, carry, rows)
        if isinstance(agent.agent, MuZero):
            value = state.model.val(state.model.body.read(state.model.represent({"obs": rows["obs/obs"]}).state))
        else:
            value = state.model.val(features(carry.latent))
        values.append(float(value.pred()[0]))
        world = envs.step(world, {"action": action["action/action"]})
    return float(np.mean(values))


def measure(algorithm: str, args: Args, folder: Path) -> dict[str, Any]:
    given = json.loads(args.values)
    values = {**QUIET, **discount(algorithm), "seed": args.seed, **given}
    wall, cpu, curve = time.perf_counter(), time.process_time(), []
    for point in range(1, args.points + 1):
        wanted = steps(algorithm, values, args.updates * point // args.points)
        with contextlib.redirect_stdout(sys.stderr):  # what a person sees of a run
            run = reverie.train(algorithm, ENV, run=folder / algorithm, steps=wanted, **values)
        curve.append([run.updates, round(learned(run.load()), 3)])
    truth = 1 / (1 - DISCOUNT)
    return {
        "bench": "constant",
        "name": algorithm,
        "value": curve[-1][1],
        "unit": f"learned value, truth {truth:g}",
        "relative_error": round(abs(curve[-1][1] - truth) / truth, 4),
        "updates": run.updates,
        "curve": curve,
        "seconds": round(time.perf_counter() - wall, 1),
        "cpu_seconds": round(time.process_time() - cpu, 1),
        "values": given,
        "seed": args.seed,
        **origin(),
    }


def main(args: Args) -> None:
    keep_programs()
    for algorithm in args.algorithms:
        with tempfile.TemporaryDirectory() as folder:
            tell(measure(algorithm, args, Path(folder)))


if __name__ == "__main__":
    main(tyro.cli(Args))
