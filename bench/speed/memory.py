"""Does memory stay flat? An Atari run collects, trains and evaluates, is resumed, and is watched.

    python -m bench.speed.memory [--env ALE/Pong-v5] [--frames 60000]

Replay is kept so small that it is full before the watch begins, so whatever still grows is a leak (or the
record of open episodes, which is let go when they end). Memory is the resident set of this process, and of
the processes of the envs together. The compiler's memory is given back some time after it is done, so the watch
begins `settle` frames after the resume. The figure is the growth of a line fitted to all samples, for 20,000
frames.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tyro

from bench.common import tell
from reverie.run.log import read

PAGE = os.sysconf("SC_PAGE_SIZE")
REPEAT = 4  # frames a step


@dataclass(frozen=True)
class Args:
    env: str = "ALE/Pong-v5"
    frames: int = 60_000
    """Watched, after the run was resumed."""
    settle: int = 40_000
    """Of the second session, before the watch begins."""
    warmup: int = 8_000
    """Frames of the first session, and what replay holds."""
    envs: int = 4
    run: Path | None = None
    """Set for the second session."""


def resident(pid: int) -> int:
    """Bytes of memory of a process; 0 if it has just ended."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * PAGE
    except (FileNotFoundError, ProcessLookupError):
        return 0


def children() -> list[int]:
    me = os.getpid()
    return [int(x) for x in Path(f"/proc/{me}/task/{me}/children").read_text().split()]


def session(args: Args, path: Path, steps: int) -> Any:
    import reverie

    return reverie.train(
        "dreamer_v3",
        env=args.env,
        run=path,
        size="200k",
        steps=steps,
        envs=args.envs,
        batch=4,
        length=16,
        replay_ratio=1.0,
        replay_size=args.warmup // REPEAT,
        warmup=200,
        log_every=200,
        eval_every=2000,
        eval_episodes=1,
        eval_envs=1,
        time_limit=500,  # greedy episodes of a fresh agent can last for hours
        report_every=2000,
        checkpoint_every=4000,
    )


def watched(args: Args, path: Path) -> None:
    """Resumes the run and prints the figure."""
    first = args.warmup // REPEAT
    begin = first + args.settle // REPEAT
    steps = begin + args.frames // REPEAT
    samples: list[tuple[int, int, int]] = []  # step, bytes here, bytes of the envs
    done = threading.Event()

    def watch() -> None:
        seen = 0
        while not done.wait(0.05):
            records = read(path / "metrics.jsonl")
            if len(records) > seen:
                seen = len(records)
                step = records[-1]["step"]
                pids = children()[: args.envs]  # those of an evaluation come later and go
                samples.append((step, resident(os.getpid()), sum(map(resident, pids))))

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    run = session(args, path, steps)
    done.set()
    watcher.join()
    step, here, there = np.array([s for s in samples if s[0] >= begin], np.float64).T
    growth = lambda values: round(float(np.polyfit(step, values, 1)[0]) / REPEAT * 20_000 / 1e6, 2)
    figure = {
        "bench": "memory",
        "name": args.env,
        "value": growth(here),
        "unit": "MB in 20,000 frames",
        "envs": growth(there),
        "frames": int((step[-1] - step[0]) * REPEAT),
        "mb": [round(float(np.median(part)) / 1e6, 1) for part in np.array_split(here, 6)],
        "envs_mb": [round(float(np.median(part)) / 1e6, 1) for part in np.array_split(there, 6)],
        "while_compiling_mb": round(max(s[1] for s in samples) / 1e6, 1),
        "updates": run.updates,
        "eval_return": run.evaluation.mean_return,
    }
    tell(figure)


def main(args: Args) -> None:
    if args.run is not None:
        return watched(args, args.run)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "run"
        print(session(args, path, args.warmup // REPEAT), file=sys.stderr)
        subprocess.run([sys.executable, *sys.argv, "--run", str(path)], check=True)


if __name__ == "__main__":
    main(tyro.cli(Args))
