"""Can the model hold one sequence by heart? Learns 64 steps of one episode, then dreams them.

    python -m bench.experiments.overfit                       # CartPole (a vector) and a bouncing ball (64 x 64 pixels)
    python -m bench.experiments.overfit --task vector --flags free_nats=1       # what the free nats cost

The batch is that one sequence, the algorithm DreamerV3 at its smallest. Three things differ from a training run.
There are no free nats: below them nothing pulls the prior towards the posterior, and a dream drifts away from what a
model that sees everything shows (docs/notebook.md has both). The learning rate falls to nothing along a cosine, so that
what is measured is the fit and not its last few updates. And behaviour is learned from 3 imagined steps: nobody acts.

Then the model sees 5 rows and dreams the 59 others from the actions that were taken, with samples as always and not
with the likeliest latents. What counts is the error as a share of the signal's variance in time: what stands still, as
most of a picture does, counts for nothing.

Prints one JSON line per task; `--out` appends them to a file with the config, the commit and the machine.
"""

from __future__ import annotations

import dataclasses
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium
import jax
import numpy as np
import optax
import tyro
from gymnasium import spaces

from bench.common import origin, tell
from reverie.agent import CONTEXT_ROWS, Dream
from reverie.algos.dreamer.v3 import Config, DreamerV3, make_agent
from reverie.algos.dreamer.world import State
from reverie.envs.base import Env
from reverie.envs.build import make_env
from reverie.envs.spec import EnvSpec
from reverie.run.counted_jit import gradient_options

ROWS = 64
LIMIT = 0.01  # of the signal's variance


class Bounce(gymnasium.Env):
    """A ball in a box that an action pushes to the left or to the right, or leaves alone; 64 rows of one episode.

    Observation: uint8 `[64, 64, 3]`. The ball bounces off the walls and loses no speed; there is no reward.
    """

    def __init__(self) -> None:
        self.observation_space = spaces.Box(0, 255, (64, 64, 3), np.uint8)
        self.action_space = spaces.Discrete(3)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        self._at = self.np_random.uniform(16, 48, 2)
        self._speed = self.np_random.uniform(-3, 3, 2)
        return self._picture(), {}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self._speed[0] = np.clip(self._speed[0] + 0.5 * (int(action) - 1), -4, 4)
        self._at += self._speed
        outside = (self._at < 8) | (self._at > 56)
        self._speed = np.where(outside, -self._speed, self._speed)
        self._at = np.clip(self._at, 8, 56)
        return self._picture(), 0.0, False, False, {}

    def _picture(self) -> np.ndarray:
        x, y = np.meshgrid(np.arange(64), np.arange(64))
        inside = 8 - np.hypot(x - self._at[0], y - self._at[1])  # the edge is a pixel wide
        ball = np.array([255, 220, 80]) - 16
        return (16 + ball * inside.clip(0, 1)[..., None]).astype(np.uint8)


# What to live in, what to look at, and updates that are enough.
TASKS: dict[str, tuple[Any, str, int]] = {
    "vector": ("CartPole-v1", "obs/vector", 8000),
    "pixels": (Bounce, "obs/image", 4000),
}


@dataclass(frozen=True)
class Args:
    task: tuple[str, ...] = ("vector", "pixels")
    updates: int = 0
    """0: each task has its own."""
    learning_rate: float = 1e-3
    flags: tuple[str, ...] = ()
    """Other values of the algorithm, as name=value."""
    seeds: int = 1
    every: int = 500
    """Updates between two dreams."""
    out: Path | None = None
    """A file that the lines are appended to."""


def episode(env: Env, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """The first 64 rows of an episode, `[64, ...]`: a pole that is balanced and nudged, or a ball pushed at random."""
    (action_key,) = env.act_space
    rows: list[dict[str, Any]] = []
    step = env.reset(int(rng.integers(1 << 31)))
    while len(rows) < ROWS:
        if "vector" in env.obs_space:
            x, speed, angle, turn = step.obs["vector"]
            action = int(angle + 0.5 * turn + 0.05 * x + 0.1 * speed > 0)
            if abs(angle) < 0.1 and rng.random() < 0.5:
                action = int(rng.integers(2))  # left alone, the controller only trembles
        else:
            action = int(rng.integers(3))
        rows.append(
            {f"obs/{k}": v for k, v in step.obs.items()}
            | {f"action/{action_key}": np.int32(action), "reward": np.float32(step.reward)}
            | {k: np.bool_(getattr(step, k)) for k in ("is_first", "is_last", "is_terminal")}
        )
        step = env.step({action_key: np.asarray(action, np.int32)})
    assert not any(row["is_last"] for row in rows[:-1]), "the episode must last"
    return {k: np.stack([row[k] for row in rows]) for k in rows[0]}


def batch_of(agent: DreamerV3, rows: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """`[1, C + 64, ...]`. The sequence begins an episode: what stands in the context does not matter."""
    rows = rows | {f"out/{k}": np.zeros((ROWS, *s.shape), s.dtype) for k, s in agent.out_space.items()}
    first = {k: x[:1].repeat(agent.context, 0) for k, x in rows.items()}
    return {k: np.concatenate([first[k], x])[None] for k, x in rows.items()}


def unexplained(dream: Dream, key: str) -> tuple[float, float]:
    """The error's share of the variance: of all elements together, and of the worst that moves at least a little (of a
    picture, a pixel that the edge of the ball touches once: this says little there)."""
    error, variance = (np.asarray(x, np.float64) for x in dream.squares(key, CONTEXT_ROWS))
    moves = variance > 1e-2 * variance.max()
    return float(error.sum() / variance.sum()), float((error[moves] / variance[moves]).max())


def overfit(config: Config, env_like: Any, key: str, seed: int, updates: int, every: int) -> dict[str, Any]:
    """Learns one sequence and dreams it; the figures of the last dream, and of those on the way. `closed_loop`, `seen`:
    the same share for a model that sees every row, which bounds what a dream can reach."""
    env = make_env(EnvSpec(env_like) if isinstance(env_like, str) else env_like)
    agent = make_agent(config, env.obs_space, env.act_space, precision="float32")
    batch = batch_of(agent, episode(env, np.random.default_rng(seed)))
    env.close()
    batch = jax.device_put(batch)
    decay = optax.scale_by_schedule(optax.cosine_decay_schedule(1.0, updates))
    agent.optimizer = optax.chain(agent.optimizer, decay)
    state: State = jax.jit(agent.init)(jax.random.key(seed))
    train = jax.jit(agent.train, donate_argnums=0, compiler_options=gradient_options())
    dream = jax.jit(agent.dream, static_argnums=2)
    curve, begin = [], time.perf_counter()
    for update in range(1, updates + 1):
        state, _, metrics = train(state, batch)
        if update % every == 0 or update == updates:
            # The latents drawn decide what is dreamt: eight dreams tell more than one.
            shares = [
                unexplained(jax.device_get(dream(dataclasses.replace(state, key=jax.random.key(n)), batch)), key)
                for n in range(8)
            ]
            share, worst = np.mean(shares, 0).tolist()
            seen, _ = unexplained(jax.device_get(dream(state, batch, ROWS - 1)), key)
            losses = {k: round(float(v), 4) for k, v in metrics.items() if k.startswith("loss/decode/") or k == "kl"}
            shares_now = {"unexplained": round(share, 5), "worst": round(worst, 5), "seen": round(seen, 5)}
            curve.append({"update": update} | shares_now | losses)
            tell(curve[-1] | {"seconds": round(time.perf_counter() - begin)})
    return {
        "value": round(share, 5),
        "closed_loop": round(seen, 5),
        "worst_element": round(worst, 5),
        "worst_of_8_dreams": round(max(s for s, _ in shares), 5),
        "updates": updates,
        "minutes": round((time.perf_counter() - begin) / 60, 1),
        "curve": curve,
    }


def config_of(args: Args) -> Config:
    """The smallest size, with a learning rate for a few thousand updates, and whatever else is asked for."""
    changes: dict[str, Any] = {"size": "200k", "imagination": 3, "free_nats": 0.0}
    changes |= {"learning_rate": args.learning_rate, "lr_warmup": 100}
    for flag in args.flags:
        name, _, value = flag.partition("=")
        old = getattr(Config(), name)
        changes[name] = value if isinstance(old, str) else type(old)(float(value))
    return Config(**changes)


def main(args: Args) -> None:
    config = config_of(args)
    for task in args.task:
        env_like, key, enough = TASKS[task]
        for seed in range(args.seeds):
            figures = overfit(config, env_like, key, seed, args.updates or enough, args.every)
            line = {
                "bench": "overfit",
                "name": task,
                "seed": seed,
                "unit": "error / variance, 59 rows dreamt after 5 seen",
                **figures,
                "below_limit": figures["value"] < LIMIT,
            }
            tell(line | {"config": dataclasses.asdict(config)} | origin(), args.out)


if __name__ == "__main__":
    main(tyro.cli(Args))
