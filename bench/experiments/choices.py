"""Answers questions by measurement: trains the default and each alternative on a small task, with several seeds.

    python -m bench.experiments.choices                                      # every switch, 3 seeds each: hours
    python -m bench.experiments.choices --only scalars unimix --seeds 5
    python -m bench.experiments.choices --only images --seeds 1 --steps 600  # a smoke

Every run is what `solve` does with a preset and a flag. The default is trained once per task and shared by all switches
on it. Prints one JSON line per run and one per switch, and keeps all of it with the curves in `--out`,
which is rewritten after every switch: with `--folder`, what is finished is not done again.
"""

from __future__ import annotations

import json
import statistics
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

from bench.common import Record, origin, side_by_side, tell
from bench.experiments import solve
from reverie.run.log import read

PLANNED = ("--planner", "gumbel", "--simulations", "8")
# Row of the results -> the task it is asked on, and the flags of each other answer. `docs/choices.md` has a paragraph
# for each.
CHOICES: dict[str, tuple[str, dict[str, tuple[str, ...]]]] = {
    "images": ("catch", {"symlogged": ("--choices", '{"images": "symlogged"}')}),
    "image_loss": ("catch", {"gaussian": ("--choices", '{"image_loss": "gaussian"}')}),
    "vectors": ("cartpole", {"plain": ("--choices", '{"vectors": "plain"}')}),
    "scalars": (
        "cartpole",
        {
            "symlog_two_hot": ("--choices", '{"scalars": "symlog_two_hot"}'),
            "symlog_squared": ("--choices", '{"scalars": "symlog_squared"}'),
        },
    ),
    "kl": ("cartpole", {"averaged": ("--choices", '{"kl": "averaged"}')}),
    "free_nats": ("cartpole", {"0": ("--free-nats", "0")}),
    "replay": ("cartpole", {"within_episodes": ("--within-episodes",)}),
    "initial": (
        "cartpole",
        {"zeros": ("--initial", "zeros"), "stored": ("--initial", "stored")},
    ),
    "unimix": ("cartpole", {"0": ("--unimix", "0")}),
    "policy_unimix": ("cartpole", {"0": ("--policy-unimix", "0")}),
    "straight_through": ("cartpole", {"off": ("--choices", '{"straight_through": false}')}),
    "targets": ("balance", {"proprio": ("--targets", "proprio")}),
    "targets_pendulum": ("pendulum_pixels", {"proprio": ("--targets", "proprio")}),
    "returns": ("cartpole", {"one_step": ("--lam", "0"), "monte_carlo": ("--lam", "1")}),
    "improve": (
        "cartpole",
        {
            "planned": PLANNED,
            "improved": (*PLANNED, "--improve", "1"),
            "improved_a_tenth": (*PLANNED, "--improve", "0.1"),
            "improved_gently": (*PLANNED, "--improve", "1", "--planner-scale", "0.01"),
        },
    ),
}


# Task -> its preset, and what makes it short enough to be run dozens of times: half the batch, and half the steps.
TASKS: dict[str, tuple[str, tuple[str, ...]]] = {
    "cartpole": ("cartpole", ("--batch", "8", "--replay-ratio", "128", "--steps", "2000")),
    "catch": ("catch", ("--steps", "8000")),
    # A pole on a cart, seen in pixels.
    "balance": (
        "pendulum",
        (
            *("--env", "dmc:cartpole_balance", "--env-kwargs", '{"pixels": true, "size": 48, "fast_render": true}'),
            *("--action-repeat", "4", "--batch", "8", "--length", "16", "--replay-ratio", "48", "--steps", "3000"),
            *("--workers", "inline", "--eval-every", "2000", "--eval-episodes", "5", "--eval-envs", "5"),
        ),
    ),
    # A body seen in pixels and moved at random, the same for all answers. That hardly ever earns a reward here,
    # so there is no policy to learn: what is asked is how well it is dreamt.
    "pendulum_pixels": (
        "pendulum",
        (
            *("--env", "dmc:pendulum_swingup", "--env-kwargs", '{"pixels": true, "size": 48, "fast_render": true}'),
            *("--action-repeat", "4", "--time-limit", "400", "--workers", "inline", "--batch", "8", "--length", "16"),
            *("--schedule", "model-then-policy", "--steps", "3000", "--model-updates", "2500", "--policy-updates", "0"),
            *("--log-every", "100", "--report-every", "100", "--eval-every", "0", "--eval-episodes", "0"),
            *("--video-every", "0"),
        ),
    ),
}
REPORTS = 10  # of dreams, at the end of the model's training: their mean is compared


@dataclass(frozen=True)
class Args:
    only: tuple[str, ...] = ()
    """Names of switches; all if none is given."""
    seeds: int = 3
    """Seeds 0, 1, ... up to this many, of every answer."""
    steps: int = 0
    """Env steps of every run. 0: those of `TASKS`. No run ends early: curves are compared at equal steps."""
    episodes: int = 20
    """Greedy episodes at the end of a run, on seeds of their own."""
    parallel: int = 1
    """Runs at the same time, each pinned to its own share of the cores."""
    folder: Path | None = None
    """Where the runs lie and stay; what is finished there is only scored again."""
    out: Path = Path("results/choices.json")


def area(record: Record) -> float | None:
    """Mean greedy return over the run: what separates answers that all end at the top."""
    points = record.curve["value"]
    return round(statistics.mean(points), 3) if points else None


def unexplained(run: Path) -> dict[str, float]:
    """What of the variance is dreamt wrong, `open_loop/<key>/unexplained`: the mean of the last reports."""
    records = read(run / "metrics.jsonl")
    parts: dict[str, list[float]] = {}
    for record in records:
        for name, value in record.items():
            if name.endswith("/unexplained") and value is not None:
                parts.setdefault(name.removeprefix("report/open_loop/").removesuffix("/unexplained"), []).append(value)
    return {name: round(statistics.mean(values[-REPORTS:]), 4) for name, values in parts.items()}


def train(args: Args, task: str, answer: str, flags: tuple[str, ...], folder: Path) -> list[dict[str, Any]]:
    """All seeds of one answer."""
    preset, short = TASKS[task]
    own = ("--stop-return", "None", *short, *flags)
    own += ("--steps", str(args.steps)) if args.steps else ()
    runs = solve.Args(preset=preset, seeds=args.seeds, episodes=args.episodes, parallel=args.parallel, flags=own)
    folder.mkdir(parents=True, exist_ok=True)

    def one(seed: int, cores: list[int]) -> dict[str, Any]:
        record = solve.solve(runs, seed, folder, cores)
        kept = ("seed", "value", "std", "minutes", "steps", "updates", "curve")
        result = {key: getattr(record, key) for key in kept} | {"mean_over_run": area(record)}
        result |= {"unexplained": unexplained(folder / f"{preset}-{seed}")}
        tell({"bench": "choices", "name": f"{task}/{answer}", "unit": record.unit} | result)
        return result

    return side_by_side(one, range(args.seeds), args.parallel)


def summary(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Mean and spread over seeds; of dreams, the mean."""
    found: dict[str, Any] = {}
    for name in ("value", "mean_over_run"):
        values = [r[name] for r in runs if r[name] is not None]
        if values:
            spread = statistics.stdev(values) if len(values) > 1 else 0.0
            found[name] = {"mean": round(statistics.mean(values), 3), "std": round(spread, 3)}
    found["unexplained"] = {
        key: round(statistics.mean(r["unexplained"][key] for r in runs), 4)
        for key in runs[0]["unexplained"]
        if all(key in r["unexplained"] for r in runs)
    }
    return found


def main(args: Args) -> None:
    unknown = set(args.only) - CHOICES.keys()
    if unknown:
        raise SystemExit(f"no switch is called {', '.join(sorted(unknown))}. Expected some of {', '.join(CHOICES)}")
    rows: dict[str, Any] = json.loads(args.out.read_text())["rows"] if args.out.exists() else {}
    with tempfile.TemporaryDirectory() as scratch:
        folder = args.folder or Path(scratch)
        defaults: dict[str, list[dict[str, Any]]] = {}
        for name in args.only or CHOICES:
            task, answers = CHOICES[name]
            if task not in defaults:
                defaults[task] = train(args, task, "default", (), folder / f"{task}-default")
            runs = {"default": defaults[task]}
            for answer, flags in answers.items():
                runs[answer] = train(args, task, f"{name}={answer}", flags, folder / f"{task}-{name}-{answer}")
            found = {answer: summary(each) for answer, each in runs.items()}
            tell({"bench": "choices", "name": name, "task": task, "value": found})
            rows[name] = {
                "task": task,
                "command": f"python -m bench.experiments.choices --only {name} --seeds {args.seeds}"
                + (f" --steps {args.steps}" if args.steps else ""),
                "flags": {answer: " ".join(flags) for answer, flags in answers.items()},
                **origin(),
                "summary": found,
                "runs": runs,
            }
            args.out.parent.mkdir(parents=True, exist_ok=True)
            args.out.write_text(json.dumps({"rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main(tyro.cli(Args))
