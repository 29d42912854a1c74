import jax
import jax.numpy as jnp
import numpy as np

from reverie.behavior.imagine import rollout


class Adding:
    """A world in which states add up the actions."""

    def imagine(self, latent, action, key):
        return {
            "sum": latent["sum"] + action,
            "noise": jax.random.uniform(key, latent["sum"].shape),
        }

    def predict(self, latent):
        return latent["sum"], jnp.ones_like(latent["sum"])


START = {"sum": jnp.array([0.0, 100.0]), "noise": jnp.zeros(2)}


def test_states_and_actions_line_up():
    latents, actions = rollout(Adding(), lambda latent, key: latent["sum"] + 1, START, 3, jax.random.key(0))
    # action_t is chosen at state_t and leads to state_{t+1}; the last leads nowhere.
    np.testing.assert_array_equal(latents["sum"], [[0, 100], [1, 201], [3, 403], [7, 807]])
    np.testing.assert_array_equal(actions, np.asarray(latents["sum"]) + 1)


def test_every_step_draws_its_own_numbers_and_a_key_decides_them():
    def policy(latent, key):
        return jax.random.uniform(key, latent["sum"].shape)

    run = jax.jit(lambda key: rollout(Adding(), policy, START, 4, key))
    latents, actions = run(jax.random.key(1))
    drawn = np.concatenate([np.ravel(latents["noise"][1:]), np.ravel(actions)])
    assert len(np.unique(drawn)) == drawn.size
    jax.tree.map(np.testing.assert_array_equal, run(jax.random.key(1)), (latents, actions))
    assert np.abs(run(jax.random.key(2))[1] - actions).min() > 0
