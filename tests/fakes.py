"""A fake algorithm that obeys the contract and costs nothing, and the command line with it:

python tests/fakes.py train fake --env reverie.envs.toy:Counting ...
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp

from reverie import algos
from reverie.agent import CONTEXT_ROWS, Dream, Metrics, Mode, Part, Row
from reverie.envs.base import Spaces

SIZES = {"tiny": 3, "small": 5}


@dataclass(frozen=True)
class Config:
    """Values of the fake."""

    size: Literal["tiny", "small"] = "tiny"
    """Width of the memory."""
    priorities: bool = False
    """Draw what it predicts worst."""
    memory: Literal["bfloat16", "float32"] = "bfloat16"
    """What the memory is stored as."""
    rate: float = 0.1
    """Step size."""
    poison_from: int = -1
    """From this update on, everything is NaN. -1: never."""
    poison_to: int = 1 << 30
    """Before this update, it stops."""

    def __post_init__(self) -> None:
        if self.rate <= 0:
            raise ValueError(f"--rate must be positive, got {self.rate}")


def make_agent(config: Config, obs_space: Spaces, act_space: Spaces, *, precision: str) -> Fake:
    return Fake(config, obs_space, act_space)


class Fake:
    """Predicts the reward from a memory that the policy stores and training refreshes.

    It keeps all that a real agent keeps: parameters, keys, a carry, written-back outputs. Its behaviour is `wish`,
    which climbs to what the weights would have it be.
    """

    context, rows, trained = 1, 0, 0
    minibatches = 1
    parts = get_args(Part)
    symptoms = ()
    resized: dict = {}  # noqa: RUF012
    added = ()

    def __init__(self, config: Config, obs_space: Spaces, act_space: Spaces) -> None:
        self.config, self.obs_space, self.act_space = config, obs_space, act_space
        self.width, self.dtype = SIZES[config.size], jnp.dtype(config.memory)
        self.out_space = {
            "memory": jax.ShapeDtypeStruct((self.width,), self.dtype),
            "code": jax.ShapeDtypeStruct((), jnp.uint8),
        }
        if config.priorities:
            self.out_space["priority"] = jax.ShapeDtypeStruct((), jnp.float32)

    def init(self, key: jax.Array) -> dict[str, Any]:
        weights, key = jax.random.split(key)
        return {
            "weights": jax.random.normal(weights, (self.width,)),
            "wish": jnp.float32(0),
            "key": key,
            "updates": jnp.int32(0),
            "bad": jnp.zeros(2, jnp.int32),
        }

    def parameters(self, state: dict[str, Any]) -> dict[str, int]:
        return {"weights": state["weights"].size}

    def init_carry(self, batch: int, key: jax.Array) -> dict[str, Any]:
        return {"memory": jnp.zeros((batch, self.width)), "key": key}

    def policy(self, state: Any, carry: Any, obs: Row, mode: Mode) -> tuple[Any, Row, Row]:
        key, act = jax.random.split(carry["key"])
        kept = jnp.where(obs["is_first"][:, None], 0.0, carry["memory"])
        seen = jnp.zeros(len(kept))
        for name in self.obs_space:
            seen += obs[f"obs/{name}"].astype(jnp.float32).reshape(len(kept), -1).mean(1)
        memory = 0.9 * kept + jnp.tanh(seen[:, None] * state["weights"][None])
        action = {}
        for name, space in self.act_space.items():
            shape = (len(kept), *space.shape)
            if "obs/legal" in obs:
                legal = jnp.where(obs["obs/legal"], 0.0, -jnp.inf)
                value = legal.argmax(-1) if mode == "eval" else jax.random.categorical(act, legal)
            elif mode == "eval":
                value = jnp.zeros(shape)
            elif space.kind == "discrete":
                value = jax.random.randint(act, shape, 0, min(space.classes))
            else:
                value = jax.random.uniform(act, shape, minval=-1, maxval=1)
            action[f"action/{name}"] = value.astype(space.dtype)
        out = {"out/memory": memory.astype(self.dtype), "out/code": jnp.uint8(10 * memory[:, 0])}
        if self.config.priorities:
            out["out/priority"] = jnp.full(len(kept), -1.0)  # nobody asks
        return {"memory": memory, "key": key}, action, out

    def train(self, state: Any, batch: Row, part: Part = "all") -> tuple[Any, Row, Metrics]:
        weight = batch["weight"] if self.config.priorities else jnp.ones(len(batch["reward"]))
        rows = {k: x[:, self.context :] for k, x in batch.items() if k != "weight"}
        memory = rows["out/memory"].astype(jnp.float32)
        noise = jax.random.normal(jax.random.fold_in(state["key"], state["updates"]), (self.width,))

        def loss(weights: jax.Array) -> jax.Array:
            error = jnp.einsum("btw,w->bt", memory, weights + 0.01 * noise) - rows["reward"]
            return (weight[:, None] * jnp.tanh(error) ** 2).mean()

        value, gradient = jax.value_and_grad(loss)(state["weights"])
        seen = state["updates"] + state["bad"][0]
        poisoned = (self.config.poison_from >= 0) & (seen >= self.config.poison_from)
        poisoned &= seen < self.config.poison_to
        value = jnp.where(poisoned, jnp.nan, value)
        fine = jnp.isfinite(value)
        total, streak = state["bad"]
        bad = jnp.where(fine, jnp.stack([total, 0 * streak]), state["bad"] + 1)
        weights, wish = state["weights"], state["wish"]
        if part != "behavior":
            weights = jnp.where(fine, weights - self.config.rate * gradient, weights)
        if part != "model":
            wish = jnp.where(fine, wish + 0.1 * (weights.sum() + memory.mean() - wish), wish)
        refreshed = (0.99 * memory + 0.01 * weights[None, None]).astype(self.dtype)
        out = {"out/memory": jnp.where(fine, refreshed, rows["out/memory"])}
        if self.config.priorities:  # of the root, which is all that it knows
            root = rows["out/priority"][:, :1]
            out["out/priority"] = jnp.where(fine, jnp.abs(memory[:, :1].mean(-1) - rows["reward"][:, :1]), root)
        metrics = {"loss/total": value, "nonfinite/total": bad[0], "nonfinite/streak": bad[1]}
        if part == "behavior":  # sorts before all else: the metrics of the parts differ
            metrics["a/wish"] = wish
        updates = state["updates"] + fine
        state = {"weights": weights, "wish": wish, "key": state["key"], "updates": updates, "bad": bad}
        return state, out, metrics

    def renew(self, state: Any) -> Any:
        return state | {"key": jax.random.fold_in(state["key"], 1)}

    def report(self, state: Any, batch: Row) -> Metrics:
        return {"reward": batch["reward"].mean(), "weight": state["weights"].mean()}

    def dream(self, state: Any, batch: Row, seen: int = CONTEXT_ROWS) -> Dream:
        """Repeats the last row it saw."""
        rows = {k: x[:, self.context :] for k, x in batch.items()}
        truth = {"reward": rows["reward"]}
        for name, space in self.obs_space.items():
            x = rows[f"obs/{name}"]
            truth[f"obs/{name}"] = x.astype(jnp.float32) / 255 if space.kind == "image" else x
        last = jnp.minimum(jnp.arange(rows["reward"].shape[1]), seen - 1)
        begun = rows["is_first"].at[:, :seen].set(False)
        return Dream(truth, {k: x[:, last] for k, x in truth.items()}, jnp.cumsum(begun, 1) == 0)


if __name__ == "__main__":
    from reverie import cli

    algos.ALGORITHMS["fake"] = "fakes"
    sys.exit(cli.main())
