"""DreamerV1 and DreamerV2, and what the class below all three does."""

from dataclasses import replace

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from dreamer import ACT, EVERY_ACTION, KEY, OBS, bits, filled_state, random_batch

from reverie.algos.dreamer import v1 as dreamer_v1
from reverie.algos.dreamer import v2 as dreamer_v2
from reverie.algos.dreamer.v1 import free_nats_of_mean
from reverie.algos.dreamer.world import Posterior
from reverie.behavior.returns import ReturnScale
from reverie.envs.base import Space
from reverie.model.dynamics import Latent, features

MODULES = {"v1": dreamer_v1, "v2": dreamer_v2}
SMALL = {"deter": 16, "hidden": 16, "units": 16, "depth": 1, "imagination": 3}
OWN = {
    "v1": {"stoch": 4, "vector_layers": 1, "continue_scale": 1.0},
    "v2": {"classes": 2, "layers": 1},
}
PICTURE = {"image": Space("image", (64, 64, 1)), **OBS}
BOX = {"box": EVERY_ACTION["box"]}
BOTH = pytest.mark.parametrize("version", MODULES)
# Compiled for the second paper on request.
FIRST = pytest.mark.parametrize("version", ["v1", pytest.param("v2", marks=pytest.mark.slow)])


def agent_of(version, obs=OBS, act=ACT, **values):
    module = MODULES[version]
    return module.make_agent(module.Config(**SMALL | OWN[version] | values), obs, act, precision="float32")


def gradient(agent, state, batch):
    grad = jax.jit(jax.grad(agent.loss, has_aux=True))
    return grad(state.model, state, batch, KEY)


def unmoved(grads):
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(grads))
    return {jax.tree_util.keystr(p) for p, x in jax.tree_util.tree_leaves_with_path(grads) if not (x != 0).any()}


@FIRST
def test_the_gradient_reaches_every_parameter(version):
    agent = agent_of(version, PICTURE, free_nats=0.0, act={k: EVERY_ACTION[k] for k in ("multi", "box")})
    state, batch = filled_state(agent), random_batch(agent, 1, 3)
    grads, (out, _, metrics) = gradient(agent, state, batch)
    assert unmoved(grads) == set()
    assert out == {}
    assert {f"loss/{name}" for name in agent.scales} <= metrics.keys()


@pytest.fixture(scope="module", params=["v1", pytest.param("v2", marks=pytest.mark.slow)])
def learned(request):
    """A small agent, its first state, that after 100 updates on one batch, and the metrics."""
    rates = dict.fromkeys(("learning_rate", "actor_learning_rate", "critic_learning_rate"), 0.003)
    agent = agent_of(request.param, **rates)
    first, batch, traces, history = jax.jit(agent.init)(KEY), random_batch(agent, 1, 8), [], []

    def counted(state, batch):
        traces.append(1)
        return agent.train(state, batch)

    train, state = jax.jit(counted), first
    for _ in range(100):
        state, _, metrics = train(state, batch)
        history.append(metrics)
    assert len(traces) == 1
    return request.param, agent, first, state, train, batch, jax.device_get(history)


def test_a_sequence_is_learned_by_heart(learned):
    *_, history = learned
    names = ("decode/vector", "decode/token", "reward")
    start, end = (sum(h[f"loss/{n}"] for n in names) for h in (history[0], history[-1]))
    assert end < 0.25 * start


def test_a_poisoned_batch_changes_nothing(learned):
    _, _, _, state, train, batch, _ = learned
    poisoned = batch | {"reward": batch["reward"].at[0, 3].set(jnp.nan)}
    after, _, metrics = train(state, poisoned)
    assert metrics["nonfinite/streak"] == 1
    same = eqx.tree_at(lambda s: s.nonfinite, after, state.nonfinite)
    assert bits(same) == bits(state)


@pytest.mark.parametrize("reward", [1e38, -1e38, 3e38])
def test_a_colossal_reward_leaves_everything_finite(learned, reward):
    _, _, _, state, train, batch, _ = learned
    after, out, metrics = train(state, batch | {"reward": jnp.full_like(batch["reward"], reward)})
    assert metrics["nonfinite/streak"] == 1, "its square is not finite"
    assert bits((eqx.tree_at(lambda s: s.nonfinite, after, state.nonfinite), out)) == bits((state, {}))


def test_the_slow_critic_is_a_copy_now_and_then(learned):
    version, agent, first, state, *_ = learned
    if version == "v1":
        assert state.slow is None
        return
    slowed = jax.jit(lambda m, s, n: agent.target_critic(m, s, n))
    old = slowed(first.model, None, 0)
    assert bits(slowed(state.model, old, 99)) == bits(old)
    assert bits(slowed(state.model, old, 200)) == bits(state.model.val)
    # The first update copied the critic it made; ninety-nine more did not.
    assert bits(state.slow) not in (bits(first.slow), bits(state.model.val))


@FIRST
@pytest.mark.parametrize("part", ["model", "behavior"])
def test_a_part_of_an_update_moves_that_part_alone(version, part):
    agent = agent_of(version)
    state, batch = filled_state(agent), random_batch(agent, 1, 4)
    after, _, metrics = jax.jit(lambda s, b: agent.train(s, b, part))(state, batch)
    moved = {
        name: bits(getattr(after.model, name)) != bits(getattr(state.model, name))
        for name in ("enc", "dyn", "dec", "rew", "con", "pol", "val")
    }
    assert moved == {name: (name in ("pol", "val")) == (part == "behavior") for name in moved}
    assert ("loss/policy" in metrics) == (part == "behavior")
    assert after.updates == 1


def test_a_renewed_optimizer_has_seen_nothing():
    agent = agent_of("v1")
    state = filled_state(agent)
    state = eqx.tree_at(lambda s: s.optimizer, state, jax.tree.map(jnp.ones_like, state.optimizer))
    renewed = agent.renew(state)
    assert not any(x.any() for x in jax.tree.leaves(renewed.optimizer))
    assert bits(eqx.tree_at(lambda s: s.optimizer, renewed, state.optimizer)) == bits(state)


def test_the_kl_is_balanced():
    """The prior gets four times the gradient that the posterior gets, where both would get the same."""
    p, q = jnp.log(jnp.array([[[[0.7, 0.3]]]])), jnp.log(jnp.array([[[[0.4, 0.6]]]]))
    agent = agent_of("v2", kl_balance=0.8, kl_scale=0.5)
    kind = filled_state(agent).model.dyn.kind

    def loss(p, q):
        dynamics = free_nats_of_mean(kind.kl(jax.lax.stop_gradient(p), q), 0.0)
        representation = free_nats_of_mean(kind.kl(p, jax.lax.stop_gradient(q)), 0.0)
        return agent.scales["dynamics"] * dynamics + agent.scales["representation"] * representation

    value, (by_p, by_q) = jax.value_and_grad(loss, (0, 1))(p, q)
    kl = 0.7 * np.log(0.7 / 0.4) + 0.3 * np.log(0.3 / 0.6)
    np.testing.assert_allclose(value, 0.5 * kl, rtol=1e-6)
    np.testing.assert_allclose(by_q.ravel(), 0.5 * 0.8 * -np.array([0.7, 0.3]), rtol=1e-6)
    log_ratio = np.log([0.7 / 0.4, 0.3 / 0.6])
    np.testing.assert_allclose(by_p.ravel(), 0.5 * 0.2 * np.array([0.7, 0.3]) * (log_ratio + 1), rtol=1e-5)


def test_free_nats_are_those_of_the_mean():
    np.testing.assert_allclose(
        free_nats_of_mean(jnp.array([[1.0, 9.0]]), 3.0), 5.0
    )  # of each step: 3 and 9, 6 in the mean
    np.testing.assert_allclose(free_nats_of_mean(jnp.array([[1.0, 2.0]]), 3.0), 3.0)


@BOTH
def test_the_discount_head_knows_gamma_and_its_absence_means_for_ever(version):
    scale = {"v1": "continue_scale", "v2": "discount_scale"}[version]
    agent = agent_of(version)
    feat = jnp.ones_like(features(agent.dyn.zeros((2,), agent.dtype)))
    model = filled_state(agent).model
    np.testing.assert_allclose(model.discount(feat), model.con(feat).prob())
    without = agent_of(version, **{scale: 0.0})
    assert filled_state(without).model.con is None
    np.testing.assert_allclose(filled_state(without).model.discount(feat), 0.99, rtol=1e-6)


def test_rewards_of_v2_may_be_squashed():
    np.testing.assert_allclose(agent_of("v2", reward_squash="tanh").transform_reward(jnp.array([2.0])), np.tanh([2.0]))


def dreamt_loss(agent, state, name="policy"):
    """A loss of the behaviour at random latents, as a function of the model."""
    rng, blank = np.random.default_rng(0), agent.dyn.zeros((1, 3), agent.dtype)
    latents = Latent(*(jnp.asarray(rng.normal(size=x.shape), jnp.float32) for x in blank[:2]))

    def loss(model):
        seen = Posterior({}, latents, jnp.array([[1.0, 1.0, 0.0]]))
        losses, *_ = agent.behavior_loss(model, replace(state, returns=ReturnScale()), seen, KEY)
        return losses[name].sum(), losses[name]

    return jax.jit(jax.grad(loss, has_aux=True))


@pytest.mark.parametrize(
    ("version", "act", "values"),
    [
        ("v1", BOX, {}),
        ("v1", ACT, {}),
        ("v2", BOX, {"entropy": 0.0}),
        ("v2", ACT, {"entropy": 0.0, "actor_gradient": "dynamics"}),
        ("v2", ACT, {"entropy": 0.0}),
    ],
)
def test_the_return_moves_the_actor_and_nothing_else(version, act, values):
    agent = agent_of(version, act=act, **values)
    state = filled_state(agent)
    grads, loss = dreamt_loss(agent, state)(state.model)
    moved = {jax.tree_util.keystr(p) for p, x in jax.tree_util.tree_leaves_with_path(grads) if (x != 0).any()}
    assert moved
    assert all(name.startswith(".pol") for name in moved)
    assert (loss[:, 2] == 0).all()  # nothing comes after the end of the world
    assert (loss[:, :2] != 0).all()


def test_both_gradients_are_mixed():
    found = {}
    for kind in ("reinforce", "dynamics", "both"):
        agent = agent_of("v2", entropy=0.0, actor_gradient=kind, actor_mix=0.3)
        state = filled_state(agent)
        found[kind] = jax.tree.leaves(dreamt_loss(agent, state)(state.model)[0].pol)
    # Samples are drawn alike in all three, so the gradients add up.
    for score, dynamics, both in zip(*found.values(), strict=True):
        np.testing.assert_allclose(both, 0.7 * score + 0.3 * dynamics, rtol=2e-3, atol=1e-5)


@BOTH
@pytest.mark.parametrize("mode", ["train", *(pytest.param(x, marks=pytest.mark.slow) for x in ("eval", "random"))])
def test_actions_lie_in_their_spaces(version, mode):
    agent = agent_of(version, act=EVERY_ACTION)
    state, rows = filled_state(agent), random_batch(agent, 3, 1)
    obs = {k: v[:, 0] for k, v in rows.items() if not k.startswith("action/")}
    _, action, out = jax.jit(lambda s, c, o: agent.policy(s, c, o, mode))(state, agent.init_carry(3, KEY), obs)
    assert out == {}
    for name, space in EVERY_ACTION.items():
        value = np.asarray(action[f"action/{name}"])
        assert value.shape == (3, *space.shape)
        assert value.dtype == space.dtype
        if space.kind == "vector":
            assert (abs(value) <= 1).all()
        else:
            assert ((value >= 0) & (value < np.reshape(space.classes, space.shape))).all()


def test_v1_explores_by_noise():
    agent = agent_of("v1", act={"box": BOX["box"], "token": Space("discrete", (), (50,))}, exploration=0.3)
    action = {"box": jnp.zeros((4000, 2, 1)), "token": jnp.zeros(4000, jnp.int32)}
    noisy = jax.jit(agent.add_noise)(action, None, KEY)
    assert abs(float(noisy["box"].std()) - 0.3) < 0.01
    assert abs(float((noisy["token"] != 0).mean()) - 0.3 * 49 / 50) < 0.03


@pytest.mark.parametrize("planner", ["none", "puct"])
def test_a_sampled_evaluation_draws_from_the_policy_and_explores_no_further(planner):
    agent = agent_of("v1", act={"token": Space("discrete", (), (5,))}, exploration=1.0, planner=planner)
    state = jax.tree.map(jnp.zeros_like, filled_state(agent))
    bias = jnp.array([2.0, 0, 0, 0, 0])  # of the policy alone, so that all else is worth nothing
    state = eqx.tree_at(lambda s: (s.model.pol.outs["token"].bias, s.key), state, (bias, KEY))
    rows = {k: v[:, 0] for k, v in random_batch(agent, 1000, 1).items() if not k.startswith("action/")}
    often = {}
    for mode in ("eval", "sample", "train"):
        _, action, _ = jax.jit(agent.policy, static_argnums=3)(state, agent.init_carry(1000, KEY), rows, mode)
        often[mode] = float((action["action/token"] == 0).mean())
    assert often["eval"] == 1
    assert 0.55 < often["sample"] < 0.75, "e^2 / (e^2 + 4), and of the visits nearly so"
    assert often["train"] < 0.3


def test_values_that_cannot_be_are_refused_by_name():
    with pytest.raises(ValueError, match="--vector-layers must be 1 or more, got 0"):
        dreamer_v1.Config(vector_layers=0)
    with pytest.raises(ValueError, match="--actor-mix must be 0 to 1, got 2"):
        dreamer_v2.Config(actor_mix=2)


@pytest.mark.slow
@FIRST
def test_targets_are_predicted_and_never_seen(version):
    agent = agent_of(version, {"vector": OBS["vector"], "joints": Space("target", (2, 2))}, free_nats=0.0)
    state, rows = filled_state(agent), random_batch(agent, 1, 4)
    _, (_, _, metrics) = gradient(agent, state, rows)
    other = rows | {"obs/joints": rows["obs/joints"] + 1}
    _, (_, _, changed) = gradient(agent, state, other)
    assert metrics["loss/decode/joints"] != changed["loss/decode/joints"]
    assert metrics["loss/decode/vector"] == changed["loss/decode/vector"]
    assert state.model.enc.mlp.linears[0].weight.shape[0] == 3
