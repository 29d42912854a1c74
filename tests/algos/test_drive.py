"""The policy in its own imagination."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from dreamer import KEY, OBS, filled_state, random_batch

from reverie.algos.dreamer import v1 as dreamer_v1
from reverie.envs.base import Space
from reverie.model.dynamics import features
from reverie.model.stoch import Gaussian

ACT = {"box": Space("vector", (2,), low=(-1.0,) * 2, high=(1.0,) * 2)}
VALUES = {"deter": 8, "hidden": 8, "units": 8, "depth": 1, "stoch": 4, "vector_layers": 1, "continue_scale": 1.0}
SEEN, DRIVEN = 3, 4


@pytest.fixture(autouse=True)
def certain(monkeypatch):
    """Latents are their means."""
    monkeypatch.setattr(Gaussian, "noise", lambda self, key, shape: jnp.zeros(shape))


def agent_and_state(continues):
    """An agent whose continue head always says the same: a logit."""
    agent = dreamer_v1.make_agent(dreamer_v1.Config(**VALUES), OBS, ACT, precision="float32")
    state = filled_state(agent)
    last = lambda s: (s.model.con.out.weight, s.model.con.out.bias)
    weight, bias = last(state)
    return agent, eqx.tree_at(last, state, (jnp.zeros_like(weight), jnp.full_like(bias, continues)))


@pytest.mark.slow
def test_a_drive_is_the_dream_of_what_the_greedy_policy_does():
    agent, state = agent_and_state(0.0)  # a chance of one half is not the likelier one
    batch, model = random_batch(agent, 2, SEEN), state.model

    @jax.jit
    def by_hand(batch):
        """The actions from the last row seen on, `[B, DRIVEN, 2]`."""
        latents = agent.observe(model, batch, KEY)[0].latents
        latent, actions = jax.tree.map(lambda x: x[:, -1], latents), []
        for _ in range(DRIVEN):
            actions.append(jnp.clip(model.pol(features(latent))["box"].pred(), -1, 1))
            latent = model.imagine(latent, {"box": actions[-1]}, KEY)
        return jnp.stack(actions, 1)

    actions = by_hand(batch)
    assert np.abs(np.diff(actions, axis=1)).max() > 1e-4, "what it does depends on what it imagines"
    longer = {k: jnp.concatenate([batch[k], x[:, SEEN:]], 1) for k, x in random_batch(agent, 2, SEEN + DRIVEN).items()}
    longer["action/box"] = longer["action/box"].at[:, SEEN - 1 : -1].set(actions)
    dreamt = jax.jit(agent.dream, static_argnums=2)(state, longer, SEEN).dream
    driven = jax.jit(agent.drive, static_argnums=2)(state, batch, DRIVEN)
    assert driven.keys() == dreamt.keys() | {"valid"}
    for key in dreamt:
        np.testing.assert_allclose(driven[key], dreamt[key], rtol=1e-4, atol=1e-5)
    assert driven["valid"].shape == (2, SEEN + DRIVEN)
    assert driven["valid"].all()


def test_a_drive_is_over_after_the_row_that_the_model_takes_for_the_last():
    agent, state = agent_and_state(-1.0)
    driven = jax.jit(agent.drive, static_argnums=2)(state, random_batch(agent, 2, SEEN), DRIVEN)
    np.testing.assert_array_equal(driven["valid"], [[True] * (SEEN + 1) + [False] * (DRIVEN - 1)] * 2)
