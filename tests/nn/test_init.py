import jax
import jax.numpy as jnp
import numpy as np
import pytest
from dreamer import KEY, filled_state, small_agent

from reverie.envs.base import Space
from reverie.nn.init import drawn
from reverie.nn.layers import ACTIVATIONS, GAINS, Style

BOX = {"box": Space("vector", (2,), low=(-1.0,) * 2, high=(1.0,) * 2)}


@pytest.mark.parametrize("act", GAINS)
def test_a_gain_keeps_the_mean_square_of_a_unit_normal(act):
    x = np.linspace(-10, 10, 200_001)
    y = np.asarray(ACTIVATIONS[act](jnp.float32(x)), float)
    square = (y**2 * np.exp(-0.5 * x**2)).sum() * (x[1] - x[0]) / np.sqrt(2 * np.pi)
    np.testing.assert_allclose(GAINS[act] ** 2 * square, 1, rtol=1e-4)


def test_every_rule_has_its_spread():
    shape, fan = (200, 300), 200
    std = {kind: float(drawn(kind, KEY, shape, fan, 1.5).std()) for kind in ("truncated", "fan_in", "kaiming")}
    root = np.sqrt(fan)
    np.testing.assert_allclose([std["truncated"] * root, std["kaiming"] * root], [1, 1.5], rtol=0.02)
    np.testing.assert_allclose(std["fan_in"] * root, 1 / np.sqrt(3), rtol=0.02)  # of a uniform distribution
    assert float(jnp.abs(drawn("fan_in", KEY, shape, fan, 1.5)).max()) <= 1 / root


@pytest.mark.parametrize("shape", [(6, 4), (4, 6), (3, 6, 4), (2, 2, 3, 5)])
def test_orthogonal_matrices_times_the_gain(shape):
    w = np.asarray(drawn("orthogonal", KEY, shape, 6, 2.0))
    for block in w if len(shape) == 3 else [w.reshape(-1, shape[-1])]:  # blocks on their own, a kernel as a whole
        small = block if block.shape[0] >= block.shape[1] else block.T
        np.testing.assert_allclose(small.T @ small, 4 * np.eye(small.shape[1]), atol=1e-5)


def test_hidden_layers_and_outputs_begin_as_told():
    given = {"hidden_init": "orthogonal", "mean_init": "zero", "std_init": "orthogonal", "critic_init": "small"}
    model = jax.jit(small_agent(act=BOX, **given).init)(KEY).model
    policy, critic, hidden = model.pol.outs["box"], model.val.out, model.pol.mlp.linears[1]
    assert (policy.mean.weight == 0).all()
    np.testing.assert_allclose(policy.std.weight.T @ policy.std.weight, np.eye(2), atol=1e-5)
    np.testing.assert_allclose(critic.weight.std() * np.sqrt(32), 0.01, rtol=0.05)
    np.testing.assert_allclose(hidden.weight.T @ hidden.weight, GAINS["silu"] ** 2 * np.eye(32), atol=1e-4)
    assert (model.rew.out.weight == 0).all()  # the reward is not the critic


def test_the_paper_is_what_nothing_else_asks_for():
    assert Style().init == "paper"
    one, other = (filled_state(small_agent(**v)).model for v in ({}, {"hidden_init": "paper", "mean_init": "paper"}))
    assert jax.tree.structure(one) == jax.tree.structure(other)
