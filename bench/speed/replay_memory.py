"""Is replay as large as was said at the start of the run? Fills it with as many Atari frames.

    python -m bench.speed.replay_memory [--rows 1000000]

A million steps are four million frames at 60 a second: 18.5 hours of play. The prediction is the one that
`reverie train` prints when it begins. Measured is how much the resident set of this process grows, after every row
was added, and some sampled, written back and all saved once, so that all the bookkeeping that there is exists.
"""

from __future__ import annotations

import os
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro

from bench.common import tell
from reverie.run import experience

PAGE = os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True)
class Args:
    rows: int = 100_000
    env: str = "ALE/Pong-v5"
    size: str = "12m"
    envs: int = 16
    directory: Path | None = None
    """Where it is saved to: as large as replay. The default is a temporary directory."""
    save: bool = True


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * PAGE


def main(args: Args) -> None:
    from reverie import api, config
    from reverie.envs.build import make_env
    from reverie.replay.segments import Segments
    from reverie.replay.sequences import Replay

    conf = config.override(
        config.default("dreamer_v3"),
        env=args.env,
        size=args.size,
        envs=args.envs,
        steps=10 * args.rows,
        replay_size=args.rows,
        replay_gb=1000.0,
        device="cpu",
        precision="float32",
    )
    plan = api.dry_run(conf)
    meminfo = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    free = int(meminfo["MemAvailable"].split()[0]) * 1024
    if plan.replay_bytes > 0.85 * free:
        sys.exit(f"replay takes {plan.replay_bytes / 1e9:.1f} GB and {free / 1e9:.1f} GB are free: fewer --rows")
    env = make_env(api.spec_of(conf.run))
    agent = api.make_agent(conf, env.obs_space, env.act_space)
    fields = experience.fields(agent)
    rng = np.random.default_rng(0)
    streams = np.arange(args.envs)
    # Drawn before the measurement: other contents for every row would only cost time.
    rows = [
        {
            k: rng.integers(0, 256, (args.envs, f.nbytes), np.uint8).view(f.dtype).reshape(args.envs, *f.shape)
            if f.dtype != bool
            else np.zeros((args.envs, *f.shape), bool)
            for k, f in fields.items()
        }
        for _ in range(16)
    ]
    length = agent.context + conf.run.length
    with tempfile.TemporaryDirectory(dir=args.directory) as folder:
        before = resident()
        capacity = experience.capacity(conf.run, fields)
        replay = Replay(fields, streams=args.envs, length=length, capacity=capacity, seed=0, online=True)
        for t in range(replay.ring):
            replay.add(streams, rows[t % len(rows)])
        filled = resident()
        batch = replay.sample(16)
        outs = {k: v[:, agent.context :] for k, v in batch.items() if k.startswith("out/")}
        replay.update(batch["id"][:, agent.context :], outs)
        if args.save:
            segments = Segments(Path(folder) / "replay")
            segments.save(replay)
        del batch, outs
        after = resident()
    figure = {
        "bench": "replay_memory",
        "name": f"{args.env}/{args.size}",
        "value": round((after - before) / plan.replay_bytes, 4),
        "unit": "measured / predicted",
        "rows": len(replay),
        "predicted_gb": round(plan.replay_bytes / 1e9, 4),
        "filled_gb": round((filled - before) / 1e9, 4),
        "measured_gb": round((after - before) / 1e9, 4),
        "bytes_per_row": plan.replay_bytes // plan.replay_rows,
        "hours_of_play": round(len(replay) * 4 / 60 / 3600, 2),
    }
    tell(figure)


if __name__ == "__main__":
    main(tyro.cli(Args))
