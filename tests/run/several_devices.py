"""A child of test_placement.py: some updates of a Dreamer on one device and on all; JAX sees four CPUs."""

from __future__ import annotations

import sys
from typing import Any

from reverie.compile_cache import keep_programs

keep_programs()  # before JAX is imported

import dreamer  # noqa: E402
import jax  # noqa: E402
import numpy as np  # noqa: E402

from reverie.envs.base import Space  # noqa: E402
from reverie.run.checkpoint import flatten  # noqa: E402
from reverie.run.jitted import JittedAgent  # noqa: E402

OBS = {"image": Space("image", (48, 48, 3)), "vector": Space("vector", (5,))}
# As little to compile as can be, with pooling, phases and blocks still in it. The default eps of 1e-20 gives every
# element of a gradient a step of the same size, rounding errors included.
VALUES = {"recurrence": "dense", "prior_layers": 1, "imagination": 2, "eps": 1e-3}


def learn(obs: str, devices: list[jax.Device], updates: int = 3) -> dict[str, np.ndarray]:
    """Everything that is computed: metrics and written-back latents of every update, the last state, a decision."""
    agent = dreamer.small_agent({obs: OBS[obs]}, **VALUES)
    batch = jax.device_get(dreamer.random_batch(agent, 4, 2))
    compiled = JittedAgent(agent, devices)
    place = compiled.place
    init = jax.jit(agent.init)
    state = place.everywhere(init(dreamer.KEY))
    # Of another copy: what NumPy looks at cannot be donated.
    found: dict[str, Any] = {f"first/{k}": x for k, x in flatten(init(dreamer.KEY)).items()}
    for i in range(updates):
        before = jax.tree.leaves(state)
        state, out, metrics = compiled.update()(state, batch)
        assert all(x.is_deleted() for x in before), "the state is donated"
        found |= {f"{i}/{k}": np.asarray(x) for k, x in out.items()}
        found |= {f"{i}/{k}": x for k, x in zip(compiled.names["all"], np.asarray(metrics), strict=True)}
        if devices:
            assert all(x.sharding.device_set == set(devices) for x in jax.tree.leaves(state))
            assert {x.addressable_data(0).shape[0] for x in out.values()} == {1}, "each device keeps its sequences"
    found |= {f"state/{k}": x for k, x in flatten(state).items()}
    assert compiled.traces["train"] == 1
    if devices:
        rows = {k: x[:, 0] for k, x in batch.items() if not k.startswith(("action/", "out/"))}
        carry = agent.init_carry(4, dreamer.KEY)
        for _ in range(2):
            carry, action, _ = compiled.policy["eval"](place.local(state), carry, rows)
            assert all(x.devices() == {devices[0]} for x in jax.tree.leaves((carry, action)))
        assert compiled.traces["policy/eval"] == 1
    return found


if __name__ == "__main__":
    assert len(jax.devices()) == 4
    for name, devices in {"one": [], "four": jax.devices()}.items():
        np.savez(f"{sys.argv[1]}/{name}.npz", **learn(sys.argv[2], devices))
