"""What do the states of a world model know of the body that it saw in pixels?

    python -m bench.probes.body --runs A B --learn C --ask D

Of runs A and B of one env, with `--targets proprio` or without. What the targets are, joints and end effectors, is read
linearly off their states (ridge regression, on sequences out of the replay of C), and asked for on those of D: once off
states that saw every row, and once off those that dreamt on from the first five. C and D have `--targets proprio` and
other seeds, so that neither the models nor the regression have met what is asked for; and models that decode a body
answer the same question as those that never heard of it. Prints a JSON line per run and quantity: the error's share of
the variance. 0 is all, 1 is nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import jax
import numpy as np
import tyro

from bench.common import tell
from reverie import api
from reverie.agent import CONTEXT_ROWS
from reverie.algos.dreamer.agent import Dreamer
from reverie.algos.dreamer.report import open_loop
from reverie.model.dynamics import features

Readout = Callable[[np.ndarray], np.ndarray]
RIDGE = 10.0  # of features and targets of variance 1, over thousands of rows
HORIZONS = (1, 5, 10, 20)


@dataclass(frozen=True)
class Args:
    runs: tuple[Path, ...]
    """Directories of runs of Dreamers."""
    learn: Path
    """Of a run with `--targets proprio`."""
    ask: Path
    """Of another one."""
    sequences: int = 256
    length: int = 30


def states(loaded: api.LoadedAgent, rows: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Features of what was seen and of what was dreamt, `[B, T, F]`, and where the dream is valid, `[B, T]`."""
    agent = loaded.agent
    if not isinstance(agent, Dreamer):
        raise SystemExit(f"{loaded.path} is a run of {loaded.config.algorithm}, expected one of a Dreamer")
    # What the other run remembered means nothing to this one: five rows have to do.
    rows = {k: v for k, v in rows.items() if not k.startswith("out/")} | {
        f"out/{k}": np.zeros((*rows["reward"].shape, *s.shape), s.dtype) for k, s in agent.out_space.items()
    }
    _, seen, dreamt, valid = jax.jit(open_loop, static_argnums=(0, 3))(agent, loaded.state, rows, CONTEXT_ROWS)
    return np.asarray(features(seen), np.float64), np.asarray(features(dreamt), np.float64), np.asarray(valid)


def readout(x: np.ndarray, y: np.ndarray) -> Readout:
    """The ridge regression of `y` `[N, D]` on `x` `[N, F]`."""
    mean, std, centre = x.mean(0), x.std(0) + 1e-6, y.mean(0)
    z = (x - mean) / std
    weights = np.linalg.solve(z.T @ z + RIDGE * np.eye(z.shape[1]), z.T @ (y - centre))
    return lambda x: (x - mean) / std @ weights + centre


def share(read: Readout, x: np.ndarray, y: np.ndarray) -> float:
    """Of the variance of `y` that is read wrong off `x`."""
    return round(float(((read(x) - y) ** 2).sum(-1).mean() / y.var(0).sum()), 4)


def main(args: Args) -> None:
    told = api.load(args.learn)
    body = [name for name, space in told.agent.obs_space.items() if space.kind == "target"]
    learn, ask = (run.rows(args.sequences, args.length) for run in (told, api.load(args.ask)))
    for run in args.runs:
        loaded = api.load(run)
        known, _, _ = states(loaded, learn)
        seen, dreamt, valid = states(loaded, ask)
        for name in body:
            given, truth = (x[f"obs/{name}"][:, -args.length :].astype(np.float64) for x in (learn, ask))
            given, truth = (x.reshape(*x.shape[:2], -1) for x in (given, truth))
            flat = lambda x: x[:, CONTEXT_ROWS:].reshape(-1, x.shape[-1])
            read = readout(flat(known), flat(given))
            shares = {"seen": share(read, flat(seen), flat(truth))}
            for h in HORIZONS:
                at = CONTEXT_ROWS + h - 1
                there = valid[:, at]
                shares[f"dreamt/{h}"] = share(read, dreamt[there, at], truth[there, at])
            line = {
                "bench": "body",
                "name": f"{loaded.spec.id}/{loaded.config.run.targets}/{loaded.config.run.seed}/{name}",
                "unit": "error / variance",
                **shares,
            }
            tell(line)


if __name__ == "__main__":
    main(tyro.cli(Args))
