"""Search inside a Dreamer: on a world that can be worked out by hand, and in the networks of a small one."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from dreamer import EVERY_ACTION, KEY, B, T, filled_state, random_batch, small_agent

from reverie.algos import Unsuitable, load
from reverie.algos.dreamer import planning
from reverie.algos.dreamer.planning import Planning, search
from reverie.algos.dreamer.world import Posterior
from reverie.behavior.search import SearchResult
from reverie.envs.base import Space
from reverie.model.dynamics import Latent, features
from reverie.nn.dists import OneHot, SquaredError

# The actor likes action 0, which leads to state 1, where nothing is to be had. Action 1 leads to state 2, from where
# every action pays 1 and ends the world, in state 3; of what comes then the critic dreams wildly, and of nothing else.
NEXT = jnp.array([[1, 2], [3, 3], [3, 3], [3, 3]])
REWARD, VALUE = jnp.array([[0.0, 0], [0, 0], [1, 1], [0, 0]]), jnp.array([0.0, 0, 0, 100])
LIKED = 0.8


class Crossroads(NamedTuple):
    """Has what `Searchable` asks of a Dreamer's networks. A latent holds the state as one-hot and the reward."""

    actions: tuple = (("move", Space("discrete", (), (2,))),)

    def imagine(self, latent, action, key):
        state = latent.deter[:, :4].argmax(-1)
        after, reward = NEXT[state, action["move"]], REWARD[state, action["move"]]
        return Latent(jnp.concatenate([jax.nn.one_hot(after, 4), reward[:, None]], 1), latent.stoch)

    def predict(self, latent):
        return latent.deter[:, 4], jnp.where(latent.deter[:, 3] == 1, 0.0, 0.9)

    def legal(self, feat):
        return None

    def policy(self, feat, legal=None):
        prior = jnp.log(jnp.array([LIKED, 1 - LIKED]))
        return {"move": OneHot(jnp.broadcast_to(prior, (len(feat), 2)), (2,), (), legal=legal)}

    def val(self, feat):
        return SquaredError(feat[:, 1:5] @ VALUE, 0)  # behind the one number of `stoch`


@functools.cache
def play(planner, simulations, greedy):
    """What 64 searches from the crossroads find, each with its own noise if it is not greedy."""
    config = Planning(planner=planner, simulations=simulations)
    begin = Latent(jnp.eye(5)[jnp.zeros(64, int)], jnp.zeros((64, 1, 1)))
    return jax.device_get(jax.jit(lambda key: search(config, Crossroads(), begin, key, None, greedy))(KEY))


def test_gumbel_finds_what_the_actor_does_not_like():
    found = play("gumbel", 4, True)
    assert (found.action == 1).all()
    # Both actions are visited in turn, twice. The second visit of state 2 sees the reward: its value is then the mean
    # of the critic's 0 and that 1, and action 1 is worth 0.9 times as much.
    np.testing.assert_array_equal(found.visits[0], [2, 2])
    np.testing.assert_allclose(found.q[0], [0, 0.45], rtol=1e-6)
    np.testing.assert_allclose(found.value[0], 0.9 / 5, rtol=1e-6)  # of the own value and four returns
    sigma = 0.1 * (50 + 2)  # of the better action; the worse one's is 0
    better = (1 - LIKED) * np.exp(sigma)
    np.testing.assert_allclose(found.policy[0], [LIKED / (LIKED + better), better / (LIKED + better)], rtol=1e-5)


def test_puct_finds_it_too():
    found = play("puct", 32, True)
    assert (found.action == 1).all()
    assert found.policy[0, 1] > 0.7
    assert found.q[0, 0] == 0
    assert 0.8 < found.q[0, 1] < 0.9, "most visits of state 2 see the reward, and none what the critic dreams of"


def test_in_training_a_search_is_noisy():
    found = play("gumbel", 4, False)
    assert 0.9 < found.action.mean() < 1, "drawn from the improved policy, which is 0.978 sure"
    np.testing.assert_allclose(found.policy, play("gumbel", 4, True).policy, rtol=1e-5)


class Gated(Crossroads):
    """Only action 1 is predicted to be legal, wherever one is; the env may say that only action 0 is."""

    def legal(self, feat):
        return jnp.broadcast_to(jnp.array([False, True]), (len(feat), 2))


@pytest.mark.parametrize("planner", ["gumbel", "puct"])
def test_the_root_follows_the_env_and_what_lies_below_it_the_model(planner):
    config, begin = (
        Planning(planner=planner, simulations=6),
        Latent(jnp.eye(5)[jnp.zeros(8, int)], jnp.zeros((8, 1, 1))),
    )
    only = jnp.broadcast_to(jnp.array([True, False]), (8, 2))
    found = jax.device_get(jax.jit(lambda key: search(config, Gated(), begin, key, only, False))(KEY))
    assert (found.action == 0).all(), "the env says so, whatever the model thinks"
    np.testing.assert_array_equal(found.policy, np.where(only, 1, 0))
    below = found.tree.child_visits[:, 1:].sum((0, 1))
    assert below[0] == 0
    assert below[1] > 0


# ----------------------------------------------------------------------------- in the networks of a Dreamer


def planner(**values):
    return small_agent(**({"planner": "gumbel", "simulations": 3, "improve": 0.5} | values))


def first_rows(count):
    rows = {k: v[:, 0] for k, v in random_batch(small_agent(), batch=count).items() if k.startswith("obs/")}
    return rows | {"is_first": jnp.ones(count, bool)}


@pytest.mark.slow
def test_a_greedy_action_is_that_of_the_thought_behind_it():
    agent = planner()
    state, rows = filled_state(agent), first_rows(1)
    traces = []

    def both(*args):
        traces.append(None)
        return agent.policy(*args, "eval"), agent.think(*args)

    compiled, carry = jax.jit(both), agent.init_carry(1, KEY)
    for _ in range(3):
        (carry, action, out), (actions, found) = compiled(state, carry, rows)
        np.testing.assert_array_equal(action["action/action"], actions["action"][found.action])
        assert found.visits.sum() == 3
        assert set(out) == {"out/deter", "out/stoch"}, "nothing of the search is stored"
        np.testing.assert_array_equal(carry.action, jax.nn.one_hot(found.action, 3), "the belief goes on from it")
    assert len(traces) == 1


def seen_by(agent, alive):
    rng, blank = np.random.default_rng(0), agent.dyn.zeros((B, T), agent.dtype)
    latents = Latent(*(jnp.asarray(rng.normal(size=x.shape), jnp.float32) for x in blank[:2]))
    return Posterior({}, latents, alive)


def logp(agent, model, seen):
    """Of the actor at every row, `[B * T, A]`."""
    read = jax.jit(lambda model: model.pol(features(seen.starts()))["action"].logp[:, 0])
    return np.asarray(read(model))


def test_the_actor_is_moved_to_what_the_search_prefers_and_nothing_else_is(monkeypatch):
    agent = planner(policy_unimix=0.0)
    model, seen, plans = filled_state(agent).model, seen_by(agent, jnp.ones((B, T))), []

    def spied(*args, **kwargs):
        plans.append(search(*args, **kwargs))
        return plans[-1]

    monkeypatch.setattr(planning, "search", spied)

    def loss(model):
        distance, metrics = agent.search_loss(model, seen, KEY)
        return distance.mean(), (metrics, plans[-1].policy)

    (before, (metrics, target)), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(model)
    assert metrics["improve/kl"] > 0.1
    for name in ("enc", "dyn", "dec", "rew", "con", "val"):
        assert all((np.asarray(x) == 0).all() for x in jax.tree.leaves(getattr(grads, name))), name
    closer = jax.tree.map(lambda x, g: x - 0.01 * g, model, grads)
    after = -(target * logp(agent, closer, seen)).sum(-1).mean()
    assert after < before - 1e-4


def test_the_loss_is_the_cross_entropy_where_the_world_goes_on(monkeypatch):
    agent = planner(policy_unimix=0.0)
    model = filled_state(agent).model
    alive = jnp.ones((B, T)).at[1, 3].set(0.0)
    target = jnp.tile(jnp.array([0.5, 0.5, 0.0]), (B * T, 1))
    monkeypatch.setattr(planning, "search", lambda *args, **kwargs: SearchResult(*[None] * 6)._replace(policy=target))
    seen = seen_by(agent, alive)
    distance, metrics = jax.jit(agent.search_loss)(model, seen, KEY)
    expected = -logp(agent, model, seen)[:, :2].mean(-1)
    np.testing.assert_allclose(distance.ravel(), expected * np.ravel(alive), rtol=1e-5)
    kl = (expected - np.log(2))[np.ravel(alive) == 1].mean()
    np.testing.assert_allclose(metrics["improve/kl"], kl, rtol=1e-5)


# ------------------------------------------------------------------------------------- what is refused


@pytest.mark.parametrize("algorithm", ["dreamer_v1", "dreamer_v2", "dreamer_v3"])
@pytest.mark.parametrize("action", ["multi", "binary", "box"])
def test_only_one_discrete_choice_can_be_searched(algorithm, action):
    module, obs = load(algorithm), {"vector": Space("vector", (3,))}
    build = lambda act: module.make_agent(module.Config(planner="gumbel"), obs, act, precision="float32")
    with pytest.raises(Unsuitable, match=r"one discrete one; the env has .*--planner none leaves .* to the actor"):
        build({action: EVERY_ACTION[action]})
    build({"action": EVERY_ACTION["discrete"]})


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"planner": "gumbel", "simulations": 0}, "--simulations must be 1 or more, got 0"),
        ({"planner": "gumbel", "planner_scale": 0.0}, "--planner-scale must be positive"),
        ({"planner": "gumbel", "improve": -1.0}, "--improve must be 0 or more"),
        ({"improve": 1.0}, "--planner none does not search: add --planner gumbel"),
    ],
)
@pytest.mark.parametrize("algorithm", ["dreamer_v1", "dreamer_v2", "dreamer_v3"])
def test_values_that_cannot_be_are_refused(algorithm, values, message):
    with pytest.raises(ValueError, match=message):
        load(algorithm).Config(**values)
