"""Says whether the values that a model plans with are wrong, or the model is: greedy play one move deep.

    python bench/lookahead.py runs/a runs/b --episodes 100

Of finished runs of the MuZero family, for one player on the device. Three players share the run's networks:

    search    what `reverie eval` plays
    rules     every move is tried in the env itself, and the network judges the observation it led to
    model     every move is imagined, and the network judges what it imagined

`rules` far above `model`: values of what is seen are good, those of what is imagined are not. Prints a JSON line for
each.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from baseline import Score, on_device, tried

from reverie import api
from reverie.envs.device import DeviceEnvs


@dataclass(frozen=True)
class Args:
    runs: tyro.conf.Positional[tuple[Path, ...]]
    """Directories of finished runs."""
    episodes: int = 100
    samples: int = 4
    """Outcomes of chance that `rules` tries after every move."""
    seed: int = 1_000_000


def players(loaded: api.LoadedAgent, samples: int) -> dict[str, Score]:
    """The two that look one move ahead."""
    agent, model = loaded.agent, loaded.state.model
    seen = lambda rows: {key: rows[f"obs/{key}"] for key in agent.seen_space}

    def rules(envs: DeviceEnvs, world: Any, key: jax.Array) -> jax.Array:
        def one(key: jax.Array) -> jax.Array:
            rows = tried(envs, world, key)
            value = model.evaluate(model.represent(seen(rows)))[1]
            return rows["reward"] + model.gamma * jnp.where(rows["is_terminal"], 0.0, value)

        return jax.vmap(one)(jax.random.split(key, samples)).mean(0)

    def imagined(envs: DeviceEnvs, world: Any, key: jax.Array) -> jax.Array:
        root = model.represent(seen(envs.rows(world)))

        def one(action: jax.Array) -> jax.Array:
            latent = model.imagine(root, jnp.full(root.reward.shape, action), key)
            reward, discount = model.predict(latent)
            return reward + discount * model.evaluate(latent)[1]

        return jax.vmap(one, out_axes=1)(jnp.arange(agent.choices))

    return {"rules": rules, "model": imagined}


def main(args: Args) -> None:
    for run in args.runs:
        loaded = api.load(run)
        found = {"search": api.evaluate(loaded, episodes=args.episodes, seed=args.seed).returns}
        for name, score in players(loaded, args.samples).items():
            found[name] = on_device(loaded.spec, args.episodes, args.seed, score)
        for name, returns in found.items():
            line = {
                "bench": "lookahead",
                "name": f"{loaded.config.algorithm}/{loaded.spec.id}/{loaded.config.run.seed}/{name}",
                "value": round(float(np.mean(returns)), 1),
                "unit": "mean return",
                "standard_error": round(float(np.std(returns) / np.sqrt(len(returns))), 1),
                "episodes": len(returns),
            }
            print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main(tyro.cli(Args))
