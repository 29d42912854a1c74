"""Simulations per second of the search, ours and mctx's, with a small model: what the bookkeeping of the trees costs.

    taskset -c 1 python -m bench.speed.search --roots 256 --simulations 50 --actions 18
    taskset -c 1 python -m bench.speed.search --roots 16 --simulations 50 200 --actions 4 --deep    # a chain, no bush

The model is an MLP of 64 units (dynamics, reward, value and policy: two layers and three heads). With `--deep` its
policy is sure of one action everywhere, and a tree becomes as deep as it has nodes. Prints one JSON line per figure;
`ratio` is mctx's time by ours. Of each the fastest of several calls is taken, ours and theirs by turns. On a CPU, time
is that of the process and not of the clock: it does not mind what else runs there, but counts every core; so pin it.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
import mctx
import tyro
from jax import Array

from bench.common import origin, tell
from reverie.behavior import search

UNITS = 64
Rule = Literal["gumbel", "puct"]


@dataclass(frozen=True)
class Args:
    roots: tuple[int, ...] = (1, 16, 64, 256)
    simulations: tuple[int, ...] = (8, 16, 50, 200, 800)
    actions: tuple[int, ...] = (4, 18, 82, 362)
    rules: tuple[Rule, ...] = ("gumbel", "puct")
    deep: bool = False
    repeats: int = 7
    baseline: bool = True
    """Measure mctx too. With many actions and simulations it takes minutes."""


class Small:
    """Two dense layers from latent and action to the next latent, and one for each head."""

    def __init__(self, actions: int, deep: bool):
        self.actions = actions
        shapes = {
            "latent": (UNITS, UNITS),
            "action": (actions, UNITS),
            "second": (UNITS, UNITS),
            "heads": (UNITS, actions + 2),
        }
        keys = jax.random.split(jax.random.key(0), len(shapes))
        self.weights = {
            name: jax.random.normal(key, shape) / shape[0] ** 0.5
            for key, (name, shape) in zip(keys, shapes.items(), strict=True)
        }
        self.bias = jnp.zeros(actions).at[0].set(1e4 if deep else 0.0)

    def imagine(self, latent: Array, action: Array, key: Any) -> Array:
        hidden = jax.nn.relu(latent @ self.weights["latent"] + self.weights["action"][action])
        return jnp.tanh(hidden @ self.weights["second"])

    def predict(self, latent: Array) -> tuple[Array, Array]:
        return jnp.tanh(latent @ self.weights["heads"][:, -1]), jnp.full(len(latent), 0.99)

    def evaluate(self, latent: Array) -> tuple[Array, Array]:
        out = latent @ self.weights["heads"][:, :-1]
        return out[:, :-1] + self.bias[None], out[:, -1]


def ours(rule: Rule, model: Small, simulations: int) -> Any:
    def call(latent: Array, key: Array) -> Any:
        found = getattr(search, rule)(model, latent, key, simulations=simulations)
        return found.action, found.policy, found.value

    return call


def theirs(rule: Rule, model: Small, simulations: int) -> Any:
    policy = {"gumbel": mctx.gumbel_muzero_policy, "puct": mctx.muzero_policy}[rule]

    def step(params: None, key: Array, action: Array, latent: Array) -> Any:
        latent = model.imagine(latent, action, key)
        reward, discount = model.predict(latent)
        logits, value = model.evaluate(latent)
        return mctx.RecurrentFnOutput(reward=reward, discount=discount, prior_logits=logits, value=value), latent

    def call(latent: Array, key: Array) -> Any:
        logits, value = model.evaluate(latent)
        root = mctx.RootFnOutput(prior_logits=logits, value=value, embedding=latent)
        out = policy(None, key, root, step, simulations)
        return out.action, out.action_weights, out.search_tree.node_values[:, 0]

    return call


def measure(calls: dict[str, Any], roots: int, repeats: int) -> dict[str, dict[str, float]]:
    """Milliseconds of the fastest call and seconds of compiling, by name."""
    clock = time.process_time if jax.default_backend() == "cpu" else time.perf_counter
    latent, key = jax.random.normal(jax.random.key(1), (roots, UNITS)), jax.random.key(2)
    compiled, figures = {}, {}
    for name, call in calls.items():
        start = clock()
        compiled[name] = jax.jit(call).lower(latent, key).compile()
        figures[name] = {"ms": float("inf"), "compile_s": round(clock() - start, 2)}
        jax.block_until_ready(compiled[name](latent, key))
    for _ in range(repeats):
        for name, call in compiled.items():
            start = clock()
            jax.block_until_ready(call(latent, key))
            figures[name]["ms"] = min(figures[name]["ms"], 1000 * (clock() - start))
    return figures


def main(args: Args) -> None:
    for actions in args.actions:
        model = Small(actions, args.deep)
        for roots in args.roots:
            for simulations in args.simulations:
                for rule in args.rules:
                    calls = {"ours": ours(rule, model, simulations)}
                    if args.baseline:
                        calls["mctx"] = theirs(rule, model, simulations)
                    found = measure(calls, roots, args.repeats)
                    rate = lambda name, found=found, work=roots * simulations: round(1000 * work / found[name]["ms"])
                    figure = {
                        "bench": "search",
                        "name": f"{rule}/{'deep' if args.deep else 'bushy'}/{roots}x{simulations}x{actions}",
                        "value": rate("ours"),
                        "unit": "simulations/s",
                        "ms": round(found["ours"]["ms"], 3),
                        "compile_s": found["ours"]["compile_s"],
                    }
                    if args.baseline:
                        figure |= {
                            "ratio": round(found["mctx"]["ms"] / found["ours"]["ms"], 2),
                            "mctx": rate("mctx"),
                            "mctx_ms": round(found["mctx"]["ms"], 3),
                            "mctx_compile_s": found["mctx"]["compile_s"],
                        }
                    figure |= {
                        "roots": roots,
                        "simulations": simulations,
                        "actions": actions,
                        **origin(),
                    }
                    tell(figure)


if __name__ == "__main__":
    main(tyro.cli(Args))
