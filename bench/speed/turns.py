"""One update of today's code and one of an older commit's, by turns: the ratio that noise on a machine cannot make.

    python -m bench.speed.turns --before 112f74d              # sizes 1m and 12m, vector and image
    python -m bench.speed.turns --before 112f74d --sizes 1m --inputs vector --core 1
    python -m bench.speed.turns --before HEAD --precision bfloat16       # what rounded operands of products save

Two processes hold one agent each, of equal configuration, and are told one after the other to make an update of the
same batch, on the same cores. Each compiles as its commit's `reverie train` does. The older commit is checked out into
a folder that is removed afterwards; it runs with the packages that are installed here. Inputs are those of
`bench.speed.update`. Prints one JSON line per figure: below 1, today's code is faster.
"""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Literal, cast

import numpy as np
import tyro

from bench.common import origin, tell

ROOT = Path(__file__).resolve().parents[2]

# What each process runs, from its own checkout: written out here, since the older commit does not have it. Modules had
# other names before "The house, redrawn".
WORKER = """
import importlib, sys, time
import jax

size, kind, precision, batch, length, imagination = *sys.argv[1:4], *map(int, sys.argv[4:])

def first(*names):
    for name in names:
        try:
            return importlib.import_module(name)
        except ImportError:
            pass
    raise ImportError(names)

v3 = first("reverie.algos.dreamer.v3", "reverie.algos.dreamer_v3")
update = first("bench.speed.update", "update")
try:
    from reverie.run.counted_jit import gradient_options
    options = gradient_options()
except ImportError:
    options = None
config, dtype, precise = v3.Config(size=size, imagination=imagination), "float32", lambda train, precision: train
if precision != "float32":
    from reverie.run.jitted import compute_dtype, precise
    dtype = compute_dtype(precision)
agent = v3.make_agent(config, *update.INPUTS[kind], precision=dtype)
state = jax.jit(agent.init)(jax.random.key(0))
rows = jax.device_put(update.random_batch(agent, batch, length))
start = time.perf_counter()
train = precise(agent.train, precision)
train = jax.jit(train, donate_argnums=0, compiler_options=options).lower(state, rows).compile()
print(time.perf_counter() - start, flush=True)
for _ in sys.stdin:
    start = time.perf_counter()
    state, _, metrics = train(state, rows)
    jax.block_until_ready(metrics)
    print(time.perf_counter() - start, flush=True)
"""


@dataclass(frozen=True)
class Args:
    before: str
    """The older commit."""
    sizes: tuple[str, ...] = ("1m", "12m")
    inputs: tuple[str, ...] = ("vector", "image")
    batch: int = 16
    length: int = 64
    imagination: int = 15
    repeats: int = 10
    """Updates of each, after one that is not counted."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Of today's updates, as of `reverie train --precision`; the older commit's have float32."""
    core: int | None = None
    """The one core of both; without it all cores."""


@contextmanager
def checkout(commit: str) -> Iterator[Path]:
    """The files of a commit, in a folder of their own."""
    with tempfile.TemporaryDirectory() as folder:
        archive = subprocess.run(["git", "archive", commit], cwd=ROOT, check=True, capture_output=True).stdout
        subprocess.run(["tar", "-x", "-C", folder], input=archive, check=True)
        yield Path(folder)


class Worker:
    """A process that makes an update when it is told to, and says how many seconds it took."""

    def __init__(self, folder: Path, args: Args, size: str, kind: str, precision: str) -> None:
        paths = os.pathsep.join([str(folder), str(folder / "bench")])
        numbers = map(str, (args.batch, args.length, args.imagination))
        command = [sys.executable, "-c", WORKER, size, kind, precision, *numbers]
        pin = [] if args.core is None else ["taskset", "--cpu-list", str(args.core)]
        env = os.environ | {"PYTHONPATH": paths, "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}
        self._process = subprocess.Popen(
            [*pin, *command], cwd=folder, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.compiling = self._told()

    def update(self) -> float:
        stdin = cast("IO[str]", self._process.stdin)
        stdin.write("\n")
        stdin.flush()
        return self._told()

    def close(self) -> None:
        cast("IO[str]", self._process.stdin).close()
        self._process.wait()

    def _told(self) -> float:
        line = cast("IO[str]", self._process.stdout).readline()
        if not line:
            raise SystemExit("a process ended: its message stands above")
        return float(line)


def main(args: Args) -> None:
    with checkout(args.before) as folder:
        for size, kind in itertools.product(args.sizes, args.inputs):
            sides = ((folder, "float32"), (ROOT, args.precision))
            workers = [Worker(where, args, size, kind, precision) for where, precision in sides]
            times = np.array([[worker.update() for worker in workers] for _ in range(args.repeats + 1)])[1:]
            for worker in workers:
                worker.close()
            before, now = np.median(times, 0)
            tell(
                {
                    "bench": "turns",
                    "name": f"{size}/{kind}",
                    "value": round(float(np.median(times[:, 1] / times[:, 0])), 3),
                    "unit": "ratio",
                    "before_ms": round(1000 * float(before), 1),
                    "now_ms": round(1000 * float(now), 1),
                    "compile_s": [round(worker.compiling, 1) for worker in workers],
                    "before": args.before,
                    "cores": os.cpu_count() if args.core is None else 1,
                    "batch": [args.batch, args.length],
                    "horizon": args.imagination,
                    "precision": args.precision,
                    **origin(),
                }
            )


if __name__ == "__main__":
    main(tyro.cli(Args))
