"""DreamerV3 over other dynamics than the recurrence: nothing but the dynamics changes."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from dreamer import KEY, OBS, B, filled_state, random_batch, small_agent

from reverie.algos import Unsuitable
from reverie.envs.base import Space
from reverie.fields import ConfigError

OTHERS = pytest.mark.parametrize("kind", ["transformer", "none"])
BOX = {"box": Space("vector", (2,), low=(-1.0,) * 2, high=(1.0,) * 2)}


@OTHERS
def test_the_gradient_reaches_every_parameter(kind):
    agent = small_agent(dynamics=kind, free_nats=0.0)
    state, batch = filled_state(agent), random_batch(agent)
    loss = lambda model: agent.loss(model, state, batch, KEY)[0]
    grads = jax.jit(jax.grad(loss))(state.model)
    unmoved = {jax.tree_util.keystr(p) for p, x in jax.tree_util.tree_leaves_with_path(grads) if not (x != 0).any()}
    assert unmoved == set()
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(grads))


@pytest.mark.parametrize("kind", ["transformer", pytest.param("none", marks=pytest.mark.slow)])
def test_a_sequence_is_learned_by_heart_and_acted_on(kind):
    agent, traces = small_agent(dynamics=kind), []
    state, batch = jax.jit(agent.init)(KEY), random_batch(agent)

    @jax.jit
    def train(state):
        traces.append(1)
        return agent.train(state, batch)

    losses = []
    for _ in range(100):
        state, out, metrics = train(state)
        losses.append([float(metrics[f"loss/{name}"]) for name in ("decode/vector", "decode/token", "reward")])
    assert len(traces) == 1
    assert out == {}
    assert (np.array(losses[-1]) < 0.5 * np.array(losses[0])).all()
    carry = agent.init_carry(B, KEY)
    rows = {k: v[:, 0] for k, v in batch.items() if not k.startswith(("action", "out"))}
    act = jax.jit(lambda carry, rows: agent.policy(state, carry, rows, "eval"))
    after, action, out = act(carry, rows)
    assert jax.tree.structure(after) == jax.tree.structure(carry)
    assert action["action/action"].shape == (B,)
    assert out == {}
    assert jax.jit(agent.dream, static_argnums=2)(state, batch, 3).dream["obs/vector"].shape == (B, 7, 3)


def test_a_plan_is_carried_from_step_to_step():
    agent = small_agent(act=BOX, planner="mppi", simulations=32, plan_steps=4)
    state, batch = filled_state(agent), random_batch(agent)
    carry = agent.init_carry(B, KEY)
    assert carry.plan.shape == (B, 4, 2)
    rows = {k: v[:, 1] for k, v in batch.items() if not k.startswith(("action", "out"))}
    act = jax.jit(lambda carry, rows, mode: agent.policy(state, carry, rows, mode), static_argnums=2)
    after, action, _ = act(carry, rows, "eval")
    assert (jnp.abs(after.plan[:, :3]) > 0).any()
    np.testing.assert_array_equal(after.plan[:, 3], 0)
    same = act(carry, rows, "eval")[1]
    np.testing.assert_array_equal(action["action/box"], same["action/box"])
    explored = act(carry, rows, "train")[1]["action/box"]
    assert (explored != action["action/box"]).any()
    assert (jnp.abs(explored) <= 1).all()
    begins = rows | {"is_first": jnp.ones(B, bool)}
    fresh = eqx.tree_at(lambda c: c.plan, after, carry.plan)
    begun, afresh = (act(c, begins, "eval")[0].plan for c in (after, fresh))
    np.testing.assert_array_equal(begun, afresh)


def test_who_cannot_be_planned_for_is_told_what_to_type():
    with pytest.raises(Unsuitable, match="action is discrete: type --planner gumbel"):
        small_agent(OBS, planner="mppi")
    with pytest.raises(Unsuitable, match="--planner mppi plans continuous actions"):
        small_agent(OBS, BOX, planner="gumbel")
    with pytest.raises(ConfigError, match="--planner mppi does not search"):
        small_agent(OBS, BOX, planner="mppi", improve=1.0)
