"""Says whether the values that a model plans with are wrong, or the model is: greedy play one move deep.

    python -m bench.probes.lookahead runs/a runs/b --episodes 100

Of finished runs of the MuZero family, for one player on the device. Three players share the run's networks:

    search    what `reverie eval` plays
    rules     every move is tried in the env itself, and the network judges the observation it led to
    model     every move is imagined, and the network judges what it imagined

`rules` far above `model`: what is seen is judged well, and what is imagined is not. A fourth line, `siblings`, compares
the two on positions where `rules` came by: how far the worths of the moves of one position lie apart (standard
deviation, by the rules and as imagined), how they correlate, and how far chance alone moves what the rules say. Prints
a JSON line for each.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from bench.common import tell
from bench.probes.baseline import Score, on_device, tried
from reverie import api
from reverie.algos.muzero.muzero import MuZero
from reverie.envs.device import DeviceEnvs

TURNS = 100  # of `siblings`


@dataclass(frozen=True)
class Args:
    runs: tyro.conf.Positional[tuple[Path, ...]]
    """Directories of finished runs."""
    episodes: int = 100
    samples: int = 4
    """Outcomes of chance that `rules` tries after every move."""
    seed: int = 1_000_000


def judges(loaded: api.LoadedAgent, samples: int) -> tuple[Score, Score]:
    """Worth of every move by the rules, `[samples, episodes, actions]`, and as imagined, `[episodes, actions]`."""
    agent, model = loaded.agent, loaded.state.model
    if not isinstance(agent, MuZero):
        raise SystemExit(f"{loaded.config.algorithm} is not of the MuZero family: there is no search to take apart")
    seen = lambda rows: {key: rows[f"obs/{key}"] for key in agent.seen_space}

    def rules(envs: DeviceEnvs, world: Any, key: jax.Array) -> jax.Array:
        def one(key: jax.Array) -> jax.Array:
            rows = tried(envs, world, key)
            value = model.evaluate(model.represent(seen(rows)))[1]
            return rows["reward"] + model.gamma * jnp.where(rows["is_terminal"], 0.0, value)

        return jax.vmap(one)(jax.random.split(key, samples))

    def imagined(envs: DeviceEnvs, world: Any, key: jax.Array) -> jax.Array:
        root = model.represent(seen(envs.rows(world)))

        def one(action: jax.Array) -> jax.Array:
            latent = model.imagine(root, jnp.full(root.reward.shape, action), key)
            reward, discount = model.predict(latent)
            return reward + discount * model.evaluate(latent)[1]

        return jax.vmap(one, out_axes=1)(jnp.arange(agent.choices))

    return rules, imagined


def siblings(envs: DeviceEnvs, rules: Score, imagined: Score) -> dict[str, float]:
    """Both worths of the legal moves of a position, less their mean, over the positions that `rules` meets."""
    ((name, space),) = envs.act_space.items()

    @jax.jit
    def turn(world: Any, key: jax.Array) -> tuple[Any, ...]:
        legal = envs.rows(world).get("obs/legal", jnp.ones((envs.num, *space.classes), bool))
        told = rules(envs, world, key)
        best = jnp.where(legal, told.mean(0), -jnp.inf).argmax(-1).astype(space.dtype)
        return envs.step(world, {name: best}), legal, told.mean(0), imagined(envs, world, key), told.std(0, ddof=1)

    world, seen = envs.begin(), []
    for key in jax.random.split(jax.random.key(0), TURNS):
        world, *rest = turn(world, key)
        seen.append(jax.device_get(rest))
    legal, told, thought, chance = (np.concatenate(x) for x in zip(*seen, strict=True))
    count = legal.sum(1, keepdims=True)
    apart = lambda x: (x - (x * legal).sum(1, keepdims=True) / np.maximum(count, 1))[legal]
    return {
        "correlation": round(float(np.corrcoef(apart(told), apart(thought))[0, 1]), 3),
        "std_by_rules": round(float(apart(told).std()), 1),
        "std_imagined": round(float(apart(thought).std()), 1),
        "std_of_chance": round(float(chance[legal].mean()), 1),
    }


def main(args: Args) -> None:
    for run in args.runs:
        loaded = api.load(run)
        rules, imagined = judges(loaded, args.samples)
        name = f"{loaded.config.algorithm}/{loaded.spec.id}/{loaded.config.run.seed}"
        found = {
            "search": api.evaluate(loaded, episodes=args.episodes, seed=args.seed).returns,
            "rules": on_device(loaded.spec, args.episodes, args.seed, lambda *x, rules=rules: rules(*x).mean(0)),
            "model": on_device(loaded.spec, args.episodes, args.seed, imagined),
        }
        for player, returns in found.items():
            line = {
                "bench": "lookahead",
                "name": f"{name}/{player}",
                "value": round(float(np.mean(returns)), 1),
                "unit": "mean return",
                "standard_error": round(float(np.std(returns) / np.sqrt(len(returns))), 1),
                "episodes": len(returns),
            }
            tell(line)
        apart = siblings(DeviceEnvs(loaded.spec, args.episodes, seed=args.seed), rules, imagined)
        tell({"bench": "lookahead", "name": f"{name}/siblings"} | apart)


if __name__ == "__main__":
    main(tyro.cli(Args))
