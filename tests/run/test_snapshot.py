"""Which envs a saved agent goes on in."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest
from planners import small_agent

from reverie.envs import base
from reverie.envs.base import Space
from reverie.run.checkpoint import Checkpoint, Mismatch, flatten
from reverie.run.snapshot import agent_state

UNIT = Space("vector", (3,), low=(-1.0,) * 3, high=(1.0,) * 3)
TWICE = replace(UNIT, low=(-2.0,) * 3, high=(2.0,) * 3)
UNBOUNDED = replace(UNIT, low=(-np.inf,) * 3, high=(np.inf,) * 3)


def goes_on(saved: Space, own: Space) -> bool:
    """Whether an agent that has seen `saved` is restored where it sees `own`."""
    agent = small_agent("gumbel_muzero", {"vector": own})
    arrays = {f"agent/{name}": x for name, x in flatten(jax.jit(agent.init)(jax.random.key(0))).items()}
    meta = {"obs_space": base.to_json({"vector": saved}), "act_space": base.to_json(agent.act_space)}
    try:
        agent_state(agent, Checkpoint(0, arrays, meta, Path("step-0"), ""))
    except Mismatch:
        return False
    return True


@pytest.mark.parametrize(
    ("saved", "own", "same"),
    [
        pytest.param(UNIT, UNIT, True, id="as it was"),
        pytest.param(UNIT, UNBOUNDED, True, id="bounds that were estimates are gone"),
        pytest.param(UNIT, TWICE, False, id="other units"),
        pytest.param(UNBOUNDED, UNIT, False, id="fewer values"),
        pytest.param(replace(UNBOUNDED, shape=(3, 1)), UNBOUNDED, False, id="another shape"),
    ],
)
def test_an_agent_goes_on_where_the_same_is_seen(saved: Space, own: Space, same: bool) -> None:
    assert goes_on(saved, own) == same
