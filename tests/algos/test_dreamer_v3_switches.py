"""What the switches change in losses and gradients of a whole agent; the parts have tests of their own."""

import json

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from dreamer import ACT, EVERY_ACTION, KEY, OBS, agent_2023, bits, filled_state, random_batch, small_agent

from reverie.algos import Unsuitable
from reverie.algos.dreamer.world import Posterior
from reverie.config import ConfigError
from reverie.envs.base import Space
from reverie.model.dynamics import Latent

MIXED = {k: EVERY_ACTION[k] for k in ("multi", "box")}
BOX = {"box": EVERY_ACTION["box"]}


def gradient(agent, state, batch):
    """Gradient and metrics of the loss."""
    grads, (_, _, metrics) = jax.jit(jax.grad(agent.loss, has_aux=True))(state.model, state, batch, KEY)
    return grads, metrics


def reached(grads):
    """Names of the leaves with a gradient, and of those without."""
    found = {jax.tree_util.keystr(path): bool((x != 0).any()) for path, x in jax.tree_util.tree_leaves_with_path(grads)}
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(grads))
    return {k for k, hit in found.items() if hit}, {k for k, hit in found.items() if not hit}


@pytest.mark.slow
def test_the_gradient_of_2023_reaches_every_parameter_of_images_vectors_and_actions():
    obs = {"image": Space("image", (16, 24, 3)), "grid": Space("vector", (2, 2)), "token": OBS["token"]}
    agent = agent_2023(obs, MIXED)
    state = filled_state(agent)
    assert len(state.model.enc.convs) == len(state.model.dec.image.convs) == 2  # down to 4 x 6
    grads, metrics = gradient(agent, state, random_batch(agent, 2, 3))
    assert reached(grads)[1] == set()
    assert ".dyn.first" in reached(grads)[0]
    assert "loss/replay_value" not in metrics


@pytest.fixture(scope="module")
def learned_2023():
    """States and metrics of 100 updates of the smallest v3-2023 on one batch, and how often the update was traced."""
    agent = agent_2023(learning_rate=3e-3, behavior_learning_rate=3e-3, behavior_eps=1e-8)
    state, batch, history = jax.jit(agent.init)(KEY), random_batch(agent, 1, 8), []
    traces = 0

    def counted(state, batch):
        nonlocal traces
        traces += 1
        return agent.train(state, batch)

    train = jax.jit(counted)
    first = state
    for _ in range(100):
        state, out, metrics = train(state, batch)
        assert out == {}
        history.append(metrics)
    return agent, first, state, jax.device_get(history), traces


@pytest.mark.slow
def test_v3_2023_learns_a_sequence_by_heart(learned_2023):
    *_, history, traces = learned_2023
    assert traces == 1
    names = ("decode/vector", "decode/token", "reward", "continue")
    start, end = (sum(h[f"loss/{n}"] for n in names) for h in (history[0], history[-1]))
    assert np.isfinite(end)
    assert end < 0.25 * start


@pytest.mark.slow
def test_heads_of_2023_begin_at_zero_and_learn_a_constant(learned_2023):
    *_, history, _ = learned_2023
    assert history[0]["imagined/reward"] == history[0]["imagined/value"] == 0
    np.testing.assert_allclose(history[0]["loss/reward"], np.log(255), rtol=1e-5)
    np.testing.assert_allclose(history[-1]["imagined/reward"], 1.0, atol=0.1)
    # A flag, not a probability, times gamma: either all of it or nothing, but for the true first one.
    np.testing.assert_allclose(history[-1]["imagined/discount"], 1 - 1 / 333, rtol=1e-6)


@pytest.mark.slow
def test_three_optimizers_move_everything(learned_2023):
    _, first, last, _, _ = learned_2023
    before, after = bits(first.model), bits(last.model)
    assert [k for k in before if before[k] == after[k]] == []


def test_world_model_actor_and_critic_are_clipped_and_moved_apart():
    agent = agent_2023(clip=1.0, behavior_clip=1e-12, learning_rate=0.5, eps=1.0, behavior_eps=1.0)
    params = jax.eval_shape(agent.init, KEY).model
    fill = lambda value: jax.tree.map(lambda x: jnp.full(x.shape, value), params)
    optimizer = agent.optimizer

    @jax.jit
    def step(params, grads):
        return optimizer.update(grads, optimizer.init(params), params)[0]

    changes = step(fill(1.0), fill(1.0))
    world = eqx.tree_at(lambda m: (m.pol, m.val), changes, (None, None))
    # Adam's first update is rate * g / (|g| + eps) of the clipped gradient: all of one norm over all elements.
    size = sum(x.size for x in jax.tree.leaves(world))
    g = 1 / np.sqrt(size)
    for x in jax.tree.leaves(world):
        np.testing.assert_allclose(x, -0.5 * g / (g + 1), rtol=1e-3)
    for part in (changes.pol, changes.val):
        assert max(float(jnp.abs(x).max()) for x in jax.tree.leaves(part)) < 1e-12


@pytest.mark.slow
def test_the_dynamics_gradient_moves_the_policy_and_nothing_else():
    found, rng = {}, np.random.default_rng(0)
    for kind in ("reinforce", "auto"):
        agent = small_agent(OBS, BOX, actor_gradient=kind, entropy=0.0, replay_value_scale=0.0)
        state = filled_state(agent)
        latents = Latent(
            jnp.asarray(rng.normal(size=(1, 3, 256)), jnp.float32),
            jax.nn.one_hot(jnp.asarray(rng.integers(0, 4, (1, 3, 32))), 4),
        )

        post = Posterior({}, latents, jnp.ones((1, 3)))

        def loss(model, agent=agent, state=state, post=post):
            losses, *_ = agent.behavior_loss(model, state, post, KEY)
            return losses["policy"].sum()

        grads = jax.jit(jax.grad(loss))(state.model)
        moved, _ = reached(grads)
        assert moved
        assert all(name.startswith(".pol") for name in moved)
        found[kind] = jax.tree.leaves(grads.pol)
    assert any(not np.allclose(a, b) for a, b in zip(*found.values(), strict=True))


def test_no_gradient_flows_through_discrete_actions():
    with pytest.raises(Unsuitable, match=r"discrete actions \(multi\); --actor-gradient auto"):
        small_agent(OBS, MIXED, actor_gradient="dynamics")
    assert small_agent(OBS, MIXED, actor_gradient="auto").differentiable == {"box"}
    assert small_agent(OBS, MIXED, actor_gradient="reinforce").differentiable == frozenset()
    assert small_agent(OBS, BOX, actor_gradient="dynamics").differentiable == {"box"}


@pytest.fixture(scope="module")
def plain():
    """The final version's state, batch and metrics."""
    agent = small_agent(OBS, ACT)
    state, batch = filled_state(agent), random_batch(agent)
    return state, batch, metrics_of(agent, state, batch)


def metrics_of(agent, state, batch):
    return jax.jit(agent.loss)(state.model, state, batch, KEY)[1][2]


def test_averaging_divides_the_kl_before_free_nats_are_granted(plain):
    _, batch, summed = plain
    agent = small_agent(OBS, ACT, kl="averaged", free_nats=0.0)
    averaged = metrics_of(agent, filled_state(agent), batch)
    assert summed["kl"] > 1
    for name in ("kl", "loss/dynamics", "loss/representation"):
        np.testing.assert_allclose(averaged[name], summed[name] / 32, rtol=1e-4, err_msg=name)


def test_a_true_first_flag_and_a_fixed_discount():
    agent = agent_2023()
    state, batch = filled_state(agent), random_batch(agent)
    ended = batch | {k: jnp.ones_like(batch[k]) for k in ("is_terminal", "is_last")}
    run = jax.jit(agent.loss)
    alive, dead = (run(state.model, state, rows, KEY)[1][2] for rows in (batch, ended))
    # Where the world ended there is nothing to imagine; where it goes on, the first step counts in full.
    assert dead["imagined/length"] == dead["loss/policy"] == dead["loss/value"] == 0
    assert alive["imagined/length"] >= 1
    flags = np.asarray(alive["imagined/discount"]) / (1 - 1 / 333) * 4 * 14  # 14 states, 4 flags each
    np.testing.assert_allclose(flags, np.round(flags), atol=1e-3)


def test_a_true_first_flag_ends_dreams_of_the_final_version_where_the_world_ended(plain):
    state, batch, _ = plain
    ended = batch | {k: jnp.ones_like(batch[k]) for k in ("is_terminal", "is_last")}
    found = metrics_of(small_agent(OBS, ACT, first_continue="true"), state, ended)
    assert found["imagined/length"] == found["loss/policy"] == found["loss/value"] == 0


@pytest.mark.parametrize(("stages", "side"), [(1, 8), (2, 16), (3, 24)])
def test_small_pictures_are_halved_less_often(stages, side):
    """At the smallest size, whose maps have the fewest channels: every block of the recurrence paints some."""
    agent = small_agent({"image": Space("image", (side, side, 3))}, choices=json.dumps({"stages": stages}))
    assert agent.resized == {}
    model = filled_state(agent).model
    assert len(model.enc.convs) == len(model.dec.image.convs) == stages
    stoch = model.dec.image.from_stoch.weight.shape[0]
    painted = jax.eval_shape(lambda: model.dec(jnp.zeros((2, 256)), jnp.zeros((2, stoch)))["image"].mean)
    assert painted.shape == (2, side, side, 3)


def test_an_even_number_of_bins_has_none_for_0():
    model = jax.eval_shape(small_agent(choices='{"bins": 63}').init, KEY).model
    assert model.rew.bins == model.val.bins == 63
    with pytest.raises(ConfigError, match="63 has one for 0"):
        small_agent(choices='{"bins": 62}')
