"""What play without learning earns: random actions, or the move with the best reward at hand.

    python -m bench.probes.baseline --algorithm dreamer_v1 --preset carracing
    python -m bench.probes.baseline --algorithm muzero --preset 2048 --episodes 256
    python -m bench.probes.baseline --algorithm muzero --preset 2048 --episodes 256 --greedy

In the env of a preset, with its time limit and repeated actions; of envs of the host, on the episodes that a run of
that preset and seed is evaluated on. Prints one JSON line.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from bench.common import tell
from reverie import config
from reverie.api import spec_of
from reverie.envs.build import device_env, make_env
from reverie.envs.check import legally
from reverie.envs.device import DeviceEnvs
from reverie.envs.spec import EnvSpec
from reverie.envs.values import sample
from reverie.envs.workers import episode_seed
from reverie.run.seeds import seeds


@dataclass(frozen=True)
class Args:
    algorithm: str = "dreamer_v3"
    preset: str = "cartpole"
    episodes: int = 20
    greedy: bool = False
    """The legal move with the highest reward, ties drawn; only where the env lives on the device and can be asked."""
    seed: int = 0


def on_host(spec: EnvSpec, episodes: int, seed: int) -> list[float]:
    """Returns of random actions; episode e has a generator of its own."""
    env, returns = make_env(spec), []
    for e in range(episodes):
        rng, step, total = np.random.default_rng((1, e)), env.reset(episode_seed(seed, e, 0)), 0.0
        while not step.is_last:
            step = env.step(legally(sample(env.act_space, rng), step.obs.get("legal"), env.act_space, rng))
            total += step.reward
        returns.append(total)
    env.close()
    return returns


Score = Callable[[DeviceEnvs, Any, jax.Array], jax.Array]
"""Of every action in every env, `[episodes, actions]`; from the envs, their world and a key."""


def on_device(spec: EnvSpec, episodes: int, seed: int, score: Score) -> list[float]:
    """Returns of the first episode of as many envs, whose one action is a discrete choice: the legal one that scores
    highest."""
    envs = DeviceEnvs(spec, episodes, seed=seed)
    ((name, space),) = envs.act_space.items()

    @jax.jit
    def turn(world: Any, key: jax.Array) -> tuple[Any, ...]:
        legal = envs.rows(world).get("obs/legal", True)
        best = jnp.where(legal, score(envs, world, key), -jnp.inf).argmax(-1)
        world = envs.step(world, {name: best.astype(space.dtype)})
        rows = envs.rows(world)
        return world, rows["reward"], rows["is_last"]

    world, returns, open_ = envs.begin(), np.zeros(episodes), np.ones(episodes, bool)
    key = jax.random.key(seed)
    while open_.any():
        key, now = jax.random.split(key)
        world, *seen = turn(world, now)
        reward, last = jax.device_get(seen)
        returns += reward * open_
        open_ &= ~last
    return returns.tolist()


def tried(envs: DeviceEnvs, world: Any, key: jax.Array) -> dict[str, jax.Array]:
    """The rows `[episodes, actions, ...]` that every action would lead to; nothing is played."""
    ((name, space),) = envs.act_space.items()
    choices = jnp.arange(space.classes[0]).astype(space.dtype)
    ask = lambda state, choice, key: envs.env.row(envs.env.step(state, {name: choice}, key))
    keys = jax.random.split(key, envs.num)
    return jax.vmap(jax.vmap(ask, (None, 0, None)))(world.state, jnp.tile(choices, (envs.num, 1)), keys)


def at_random(envs: DeviceEnvs, world: Any, key: jax.Array) -> jax.Array:
    ((_, space),) = envs.act_space.items()
    return jax.random.uniform(key, (envs.num, *space.classes))


def greedily(envs: DeviceEnvs, world: Any, key: jax.Array) -> jax.Array:
    """By the reward at hand; ties are drawn."""
    return 1e3 * tried(envs, world, key)["reward"] + at_random(envs, world, key)


def main(args: Args) -> None:
    run = config.apply_preset(config.default(args.algorithm), args.preset).run
    spec = spec_of(run)
    if device_env(spec) is not None:
        returns = on_device(spec, args.episodes, args.seed, greedily if args.greedy else at_random)
    elif args.greedy:
        raise SystemExit(f"--greedy asks for the reward of every move before one is made: {spec.id} cannot tell")
    else:
        returns = on_host(spec, args.episodes, seeds(args.seed).evaluation)
    line = {
        "bench": "baseline",
        "name": f"{spec.id}/{'greedy' if args.greedy else 'random'}",
        "value": round(float(np.mean(returns)), 1),
        "unit": "mean return",
        "std": round(float(np.std(returns)), 1),
        "episodes": args.episodes,
        "returns": [round(float(r), 2) for r in returns] if args.episodes <= 20 else None,
    }
    tell(line)


if __name__ == "__main__":
    main(tyro.cli(Args))
