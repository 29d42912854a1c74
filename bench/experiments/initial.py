"""How initial weights change what a Dreamer does before it has learned anything, and how it learns.

    python -m bench.experiments.initial --coverage                     # before training: no env step, a minute
    python -m bench.experiments.initial --seeds 3 --out results/initial.json --picture docs/initial.png

Six scenarios (`SCENARIOS`) of hidden layers and of the outputs of policy and critic. Coverage: the share of the range
of actions that the greedy actions of many freshly initialised agents take (ten equal bins per dimension), and the share
of the sampled actions that must be clipped, on observations that a random player saw; and the mean size of what the
critic says there. Curves: the episode returns of
`reverie train` at equal steps. Greedy: what `reverie eval` says of the end.
"""

from __future__ import annotations

import json
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from bench.common import command_line, evaluated, keep, tell
from reverie import algos, config
from reverie.envs.build import make_env
from reverie.envs.values import sample
from reverie.model.dynamics import features
from reverie.run.log import read

SCENARIOS: dict[str, dict[str, str]] = {
    "paper": {},
    "orthogonal, small outputs": {
        "hidden_init": "orthogonal",
        "mean_init": "small",
        "std_init": "small",
        "critic_init": "small",
    },
    "orthogonal throughout": {
        "hidden_init": "orthogonal",
        "mean_init": "orthogonal",
        "std_init": "orthogonal",
        "critic_init": "orthogonal",
    },
    "fan in, orthogonal outputs": {
        "hidden_init": "fan_in",
        "mean_init": "orthogonal",
        "std_init": "orthogonal",
        "critic_init": "orthogonal",
    },
    "Kaiming, zero outputs": {
        "hidden_init": "kaiming",
        "mean_init": "zero",
        "std_init": "zero",
        "critic_init": "zero",
    },
    "truncated normal, orthogonal mean": {"hidden_init": "truncated", "mean_init": "orthogonal", "critic_init": "zero"},
}
TASKS = {"Pendulum-v1": ("--steps", "3000"), "Walker2d-v5": ("--steps", "3000", "--time-limit", "200")}
BINS = 10


@dataclass(frozen=True)
class Args:
    algorithm: str = "dreamer_v3"
    preset: str = "pendulum"
    """Whose values the runs have, on either task."""
    tasks: tuple[str, ...] = tuple(TASKS)
    seeds: int = 3
    first: int = 20
    """Freshly initialised agents whose actions are looked at."""
    episodes: int = 10
    """Greedy ones, at the end of every run."""
    coverage: bool = False
    """Only what is seen before training."""
    folder: Path | None = None
    """Where the runs lie and stay; what is finished there is only read again."""
    out: Path | None = None
    picture: Path | None = None


def observations(task: str, steps: int = 200) -> tuple[Any, dict[str, np.ndarray]]:
    """An env and what a random player of it sees, `[steps, 1, ...]`."""
    env, rng = make_env(task), np.random.default_rng(0)
    seen, row = [], env.reset(0)
    for _ in range(steps):
        seen.append(row.obs)
        row = env.reset(1) if row.is_last else env.step(sample(env.act_space, rng))
    return env, {f"obs/{k}": np.stack([x[k] for x in seen])[:, None] for k in env.obs_space}


def scenario_values(args: Args, scenario: dict[str, str]) -> dict[str, str]:
    """A scenario as values of the algorithm: DreamerV3 has them among its choices."""
    chosen = hasattr(config.default(args.algorithm).agent, "choices")
    return {"choices": json.dumps(scenario)} if chosen else scenario


def coverage(args: Args, task: str, scenario: dict[str, str]) -> dict[str, float]:
    """Shares of the action range that is taken and of the samples that are clipped, before training."""
    env, obs = observations(task)
    conf = config.override(config.default(args.algorithm, args.preset), env=task, **scenario_values(args, scenario))
    agent = algos.load(args.algorithm).make_agent(conf.agent, env.obs_space, env.act_space, precision="float32")
    first = {"is_first": jnp.ones(1, bool)}
    (name,) = env.act_space

    @jax.jit
    def look(key: jax.Array) -> tuple[jax.Array, ...]:
        state, carry = agent.init(key), agent.init_carry(1, key)

        def one(xs: tuple[jax.Array, dict[str, jax.Array]]) -> tuple[jax.Array, ...]:
            own_key, x = xs
            after, greedy, _ = agent.policy(state, carry, x | first, "eval")
            policy = state.model.pol(features(after.latent))[name]
            value = state.model.val(features(after.latent)).pred()
            return greedy[f"action/{name}"].ravel(), policy.sample(own_key).ravel(), value

        return jax.lax.map(one, (jax.random.split(key, 200), obs))

    greedy, drawn, values = map(np.asarray, zip(*(look(jax.random.key(i)) for i in range(args.first)), strict=True))
    bins = np.clip(((greedy + 1) / 2 * BINS).astype(int), 0, BINS - 1)  # [agents, steps, dimensions]
    taken = [[len(set(agent[:, d])) / BINS for d in range(bins.shape[-1])] for agent in bins]
    return {
        "covered_by_one_agent": float(np.mean(taken)),
        "covered_by_all": float(np.mean([len(set(bins[..., d].ravel())) / BINS for d in range(bins.shape[-1])])),
        "largest_mean": float(np.abs(greedy).max()),
        "clipped": float((np.abs(drawn) >= 1).mean()),
        "critic": float(np.abs(values).mean()),
    }


def curve(args: Args, task: str, scenario: dict[str, str], seed: int, run: Path) -> list[list[float]]:
    """Step and mean return of the training episodes."""
    command = command_line("train", args.algorithm, "--preset", args.preset, "--env", task)
    command += ["--seed", str(seed), "--run", str(run), "--eval-episodes", "0", "--report-every", "0", "--json"]
    own = scenario_values(args, scenario).items()
    command += [*TASKS[task], *(word for k, v in own for word in (f"--{k.replace('_', '-')}", v))]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    rows = read(run / "metrics.jsonl")
    return [[row["step"], round(row["episode/return"], 2)] for row in rows if "episode/return" in row]


def greedy(args: Args, run: Path) -> float:
    """Mean return of greedy episodes at the end of a run, told once."""
    told = run / "greedy.json"
    if not told.exists():
        told.write_text(json.dumps(evaluated(run, args.episodes)))
    return round(float(json.loads(told.read_text())["mean_return"]), 2)


def draw(results: list[dict[str, Any]], path: Path) -> None:
    """Coverage above; below, mean and range of the seeds, and the greedy end of each. One column per task."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot as plt

    tasks = list(dict.fromkeys(r["task"] for r in results))
    figure, axes = plt.subplots(2, len(tasks), figsize=(6 * len(tasks), 8), squeeze=False)
    for column, task in enumerate(tasks):
        own = [r for r in results if r["task"] == task]
        above, below = axes[:, column]
        places = np.arange(len(own))
        above.barh(places + 0.2, [r["coverage"]["covered_by_one_agent"] for r in own], 0.4, label="range covered")
        above.barh(places - 0.2, [r["coverage"]["clipped"] for r in own], 0.4, label="samples clipped")
        above.set_yticks(places, [r["scenario"] for r in own])
        above.set(title=f"{task}: before training", xlim=(0, 1))
        above.invert_yaxis()
        above.legend()
        for r in own:
            if r["curves"]:
                # Episodes of seeds end at different steps: all are read at the same ones.
                curves = [np.array(c).T for c in r["curves"]]
                steps = np.linspace(max(c[0, 0] for c in curves), min(c[0, -1] for c in curves), 50)
                returns = np.array([np.interp(steps, *c) for c in curves])
                (line,) = below.plot(steps, returns.mean(0), label=r["scenario"])
                below.fill_between(steps, returns.min(0), returns.max(0), color=line.get_color(), alpha=0.15)
                end = [int(TASKS[task][TASKS[task].index("--steps") + 1])] * len(r["greedy"])
                below.scatter(end, r["greedy"], color=line.get_color())
        below.set(title=f"{task}: returns", xlabel="env steps; dots: greedy")
    handles, names = axes[1, 0].get_legend_handles_labels()
    figure.legend(handles, names, loc="lower center", ncol=3, fontsize="small", frameon=False)
    figure.tight_layout(rect=(0, 0.06, 1, 1))
    figure.savefig(path, dpi=80)


def main(args: Args) -> None:
    results = []
    with tempfile.TemporaryDirectory() as scratch:
        folder = args.folder or Path(scratch)
        for task in args.tasks:
            for number, (name, scenario) in enumerate(SCENARIOS.items()):
                row: dict[str, Any] = {"bench": "initial", "task": task, "scenario": name, "flags": scenario}
                row["coverage"] = coverage(args, task, scenario)
                runs = [folder / f"{task}-{number}-{s}" for s in range(0 if args.coverage else args.seeds)]
                row["curves"] = [curve(args, task, scenario, s, run) for s, run in enumerate(runs)]
                row["greedy"] = [greedy(args, run) for run in runs]
                results.append(row)
                tell({k: v for k, v in row.items() if k != "curves"})
    if args.out:
        words = f"--algorithm {args.algorithm} --preset {args.preset} --seeds {args.seeds}"
        keep(args.out, {"command": f"python -m bench.experiments.initial {words}", "results": results})
    if args.picture:
        draw(results, args.picture)


if __name__ == "__main__":
    main(tyro.cli(Args))
