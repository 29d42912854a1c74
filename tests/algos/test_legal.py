"""Only what is legal is done, in the env and in what is imagined of it."""

from __future__ import annotations

from typing import Any, get_args

import dreamer
import jax
import jax.numpy as jnp
import numpy as np
import planners
import pytest

from reverie.agent import Mode
from reverie.algos import load
from reverie.algos.dreamer.agent import Dreamer
from reverie.envs.base import Space
from reverie.model.heads import LegalHead

MASKED = {"vector": Space("vector", (3,)), "legal": Space("legal", (5,))}
FIVE = {"action": Space("discrete", (), (5,))}
SEVERAL = {"action": Space("discrete", (2,), (2, 3))}
TINY: dict[str, dict[str, Any]] = {
    "dreamer_v1": {"deter": 8, "stoch": 4, "hidden": 8, "units": 8, "vector_layers": 1, "imagination": 2},
    "dreamer_v2": {"deter": 8, "classes": 2, "hidden": 8, "units": 8, "layers": 1, "imagination": 2},
    "dreamer_v3": dreamer.SMALL,
    "dream_ppo": dreamer.SMALL | {"model_minibatches": 1, "minibatch": 8, "ppo_updates": 1, "epochs": 2},
}
N = 32


def agent_of(name: str, act: Any = FIVE, **values: Any) -> Any:
    if name in planners.FAMILY:
        return planners.small_agent(name, MASKED, act, **values)
    module = load(name)
    return module.make_agent(module.Config(**(TINY[name] | values)), MASKED, act, precision="float32")


def masks(seed: int, lead: tuple[int, ...], act: Any = FIVE) -> Any:
    """Random ones, with one legal class of every element at least."""
    rng = np.random.default_rng(seed)
    legal, (space,) = rng.random((*lead, 5)) < 0.4, act.values()
    for part in np.split(legal, np.cumsum(space.classes)[:-1], -1):
        np.put_along_axis(part, rng.integers(part.shape[-1], size=(*lead, 1)), True, -1)
    return jnp.asarray(legal)


def batch_of(agent: Any) -> dict[str, Any]:
    rows = (dreamer if isinstance(agent, Dreamer) else planners).random_batch(agent)
    return rows | {"obs/legal": masks(1, rows["reward"].shape, agent.act_space)}


def acts_legally(agent: Any, state: Any) -> None:
    """In every mode."""
    legal = masks(2, (N,), agent.act_space)
    rows = {"obs/vector": jnp.ones((N, 3)), "obs/legal": legal, "is_first": jnp.ones(N, bool)}
    rows |= {"is_last": jnp.zeros(N, bool), "is_terminal": jnp.zeros(N, bool), "reward": jnp.zeros(N)}
    carry = agent.init_carry(N, jax.random.key(1))
    every = jax.jit(lambda state, rows: [agent.policy(state, carry, rows, mode)[1] for mode in get_args(Mode)])
    starts = np.cumsum((0, *agent.act_space["action"].classes))[:-1]
    for mode, action in zip(get_args(Mode), every(state, rows), strict=True):
        chosen = np.asarray(action["action/action"]).reshape(N, -1) + starts
        assert np.take_along_axis(np.asarray(legal), chosen, 1).all(), mode


def learns(agent: Any, state: Any) -> tuple[Any, dict[str, Any]]:
    state, _, metrics = jax.jit(agent.train)(state, batch_of(agent))
    assert metrics["nonfinite/total"] == 0
    return state, metrics


CASES: list[Any] = [
    ("dreamer_v3", FIVE, {}),
    pytest.param("dreamer_v3", SEVERAL, {}, marks=pytest.mark.slow),
    pytest.param("dreamer_v3", FIVE, {"planner": "gumbel", "simulations": 3, "improve": 0.5}, marks=pytest.mark.slow),
    pytest.param("dreamer_v1", FIVE, {}, marks=pytest.mark.slow),
    pytest.param("dreamer_v1", SEVERAL, {}, marks=pytest.mark.slow),
    pytest.param("dreamer_v2", FIVE, {}, marks=pytest.mark.slow),
    pytest.param("dreamer_v2", FIVE, {"actor_gradient": "both"}, marks=pytest.mark.slow),
    pytest.param("dream_ppo", FIVE, {}, marks=pytest.mark.slow),
    ("muzero", FIVE, {"behavior": "actor-critic", "imagination": 2}),
    pytest.param("muzero", FIVE, {"random_moves": 0.5}, marks=pytest.mark.slow),
    pytest.param("gumbel_muzero", FIVE, {"random_moves": 0.5}, marks=pytest.mark.slow),
    pytest.param("efficientzero", FIVE, {"behavior": "actor-critic", "imagination": 2}, marks=pytest.mark.slow),
    pytest.param("stochastic_muzero", FIVE, {}, marks=pytest.mark.slow),
    pytest.param("sampled_muzero", SEVERAL, {"reanalyse": 0.5}, marks=pytest.mark.slow),
    pytest.param("sampled_muzero", FIVE, {"search": "puct", "random_moves": 0.5}, marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("name", "act", "values"), CASES)
def test_only_legal_actions_are_taken_and_learned_from(name: str, act: Any, values: dict[str, Any]) -> None:
    agent = agent_of(name, act, **values)
    state = dreamer.filled_state(agent)
    acts_legally(agent, state)
    state, metrics = learns(agent, state)
    if agent.parameters(state).get("leg"):
        assert metrics["loss/legal"] > 0
    acts_legally(agent, state)


@pytest.mark.parametrize("name", ["dreamer_v3", "muzero"])
def test_where_nobody_says_what_is_legal_there_is_no_head_for_it(name: str) -> None:
    values = {"behavior": "actor-critic"} if name == "muzero" else {}
    free = {"vector": MASKED["vector"]}
    plain = planners.small_agent(name, free, FIVE, **values) if values else dreamer.small_agent(obs=free, act=FIVE)
    sizes = [agent.parameters(jax.eval_shape(agent.init, dreamer.KEY)) for agent in (plain, agent_of(name, **values))]
    assert not sizes[0].get("leg")
    assert sizes[1].pop("leg") > 0
    assert {k: n for k, n in sizes[0].items() if n} == {k: n for k, n in sizes[1].items() if n}


def test_a_head_for_what_is_legal_leaves_something_of_every_element() -> None:
    head = LegalHead(SEVERAL["action"], 4, 8, 1, key=jax.random.key(0))
    feat = jax.random.normal(jax.random.key(1), (200, 4))
    assert head.legal(feat).all(), "before it has learned anything, all is legal"
    rng = np.random.default_rng(0)
    weights = jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape) - 0.5, x.dtype), head)
    legal = np.asarray(weights.legal(feat))
    logits = np.asarray(weights(feat).logit)
    assert legal[logits >= 0].all()
    for part, logit in ((legal[:, :2], logits[:, :2]), (legal[:, 2:], logits[:, 2:])):
        assert part.any(-1).all()
        forced = (logit < 0).all(-1)
        assert forced.any()
        np.testing.assert_array_equal(part[forced].argmax(-1), logit[forced].argmax(-1))
        assert (part[forced].sum(-1) == 1).all()
