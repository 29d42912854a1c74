"""PPO in the dream: what a round does. Its losses are in tests/behavior."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from dreamer import ACT, EVERY_ACTION, KEY, OBS, bits, filled_state, random_batch

from reverie.algos.dreamer import v1 as dreamer_v1
from reverie.algos.dreamer import v2 as dreamer_v2
from reverie.algos.dreamer.ppo import PPO, Config, Values, drawn, make_agent

SMALL = {"size": "200k", "imagination": 3, "lr_warmup": 0, "learning_rate": 3e-3, "behavior_learning_rate": 3e-3}
SMALL |= {"model_minibatches": 2, "minibatch": 16, "ppo_updates": 3, "epochs": 2, "value_clip": 0.5}
SMALL |= {"choices": '{"vector_layers": 1, "prior_layers": 1}'}  # what is not tested here need not be compiled
B, T = 4, 7


def small_agent(obs=OBS, act=ACT, **values):
    return make_agent(Config(**(SMALL | values)), obs, act, precision="float32")


@pytest.fixture(scope="module")
def agent():
    return small_agent()


@pytest.fixture(scope="module")
def state(agent):
    return jax.jit(agent.init)(KEY)


@pytest.fixture(scope="module")
def batch(agent):
    """Whoever takes action 0 is rewarded."""
    rows = random_batch(agent, B, T)
    earned = (rows["action/action"] == 0).astype(jnp.float32)
    return rows | {"reward": jnp.pad(earned[:, :-1], ((0, 0), (1, 0)))}


@pytest.fixture(scope="module")
def train(agent):
    return jax.jit(agent.train)


@pytest.fixture(scope="module")
def practised(train, state, batch):
    """The state after 60 rounds on one batch, what the last gave back, and the metrics of each."""
    history = []
    for _ in range(60):
        state, out, metrics = train(state, batch)
        history.append(metrics)
    return state, out, jax.device_get(history)


def test_a_round_reaches_every_parameter(train, state, batch):
    # Heads start with zero weights: what lies below them moves from the second update on.
    second, _, metrics = train(*train(state, batch)[:1], batch)
    before, after = bits((state.model, state.slow)), bits((second.model, second.slow))
    assert [k for k in before if before[k] == after[k]] == []
    assert all(np.isfinite(v) for v in metrics.values())
    assert metrics["policy/kl"] > 0, "the second epoch is off policy"


def test_what_pays_in_the_dream_is_done(practised):
    state, _, history = practised
    first, last = history[0], history[-1]
    assert last["loss/reward"] < 0.3 * first["loss/reward"]
    assert first["policy/randomness/action"] > 0.99
    assert last["policy/randomness/action"] < 0.5
    assert last["imagined/reward"] > 0.8  # of at most 0.99: one action in a hundred is drawn blindly
    assert last["value/explained"] > 0
    assert state.updates == 60


def test_what_goes_back_to_replay_is_where_it_was(agent, practised, train, batch):
    # The deterministic state of the first row follows from the stored latent and the action alone.
    state, out, _ = practised
    again, out, _ = train(state, batch)
    latents = jax.jit(agent.observe)(again.model, batch, KEY)[0].latents
    assert out["out/deter"].shape == (B, T, 256)
    assert out["out/stoch"].shape == (B, T, 32)
    found, expected = (np.asarray(x[:, 0], np.float32) for x in (out["out/deter"], latents.deter))
    np.testing.assert_allclose(found, expected, atol=1e-2)
    assert np.abs(expected[0] - expected[1:]).max(-1).min() > 0.05, "sequences could be told apart"


@pytest.mark.parametrize("reward", [1e38, -1e38, 3e38])
def test_a_colossal_reward_leaves_everything_finite(reward, train, practised, batch):
    state = practised[0]
    bad = batch | {"reward": jnp.full_like(batch["reward"], reward)}
    new, out, metrics = train(state, bad)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves((new.model, new.slow, new.returns, new.optimizer, out)))
    assert (metrics["nonfinite/streak"] == 1) == (bits(new.model) == bits(state.model))


@pytest.mark.parametrize("key", ["obs/vector", "reward", "out/deter"])
def test_a_nan_changes_nothing_but_the_counters(key, train, practised, batch):
    state = practised[0]
    bad = batch | {key: batch[key].at[1, 0 if key == "out/deter" else 3].set(jnp.nan)}
    kept, out, metrics = train(state, bad)
    old, new = bits(state), bits(kept)
    assert [k for k in old if old[k] != new[k]] == [".nonfinite"]
    assert bits(out) == bits({k: bad[k][:, 1:] for k in ("out/deter", "out/stoch")})
    assert (metrics["nonfinite/total"], metrics["nonfinite/streak"]) == (1, 1)


def test_every_start_is_drawn_before_any_is_drawn_again():
    order = np.asarray(drawn(10, 4, 6, KEY))
    assert order.shape == (4, 6)
    counts = np.bincount(order.ravel()[:20], minlength=10)
    assert (counts == 2).all()
    assert (np.bincount(order.ravel()[:10], minlength=10) == 1).all()
    assert len(set(order.ravel()[20:])) == 4
    assert (order != np.asarray(drawn(10, 4, 6, jax.random.key(1)))).any()


def test_start_latents_are_bounded_in_bytes(state, batch):
    def starts(gigabytes):
        agent = small_agent(start_gb=gigabytes)
        return jax.eval_shape(agent.encode, state.model, agent.split(batch), KEY)[1]

    each = 4 * (256 + 32 * 4 + 1)
    assert starts(1.0).alive.shape == (B * T, 1)
    kept = starts(9 * each / 1e9)
    assert kept.alive.shape == (8, 1), "as many of either minibatch"
    assert sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(kept)) <= 9 * each
    assert starts(1e-9).alive.shape == (2, 1)


def test_devices_share_every_minibatch(agent):
    rows = {"reward": jnp.arange(4.0)[:, None]}
    np.testing.assert_array_equal(agent.split(rows)["reward"][..., 0], [[0, 2], [1, 3]])


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"epochs": 0}, "--epochs must be 1 or more"),
        ({"value_clip": -0.1}, "--value-clip must be 0 or more"),
        ({"lam": 1.5}, "--lam must be 0 to 1"),
    ],
)
def test_values_that_it_cannot_have_are_refused(values, message):
    with pytest.raises(ValueError, match=message):
        Config(**values)


# ------------------------------------------------------------------------- other Dreamers


@dataclass(frozen=True)
class ConfigV1(Values, dreamer_v1.Config):
    pass


@dataclass(frozen=True)
class ConfigV2(Values, dreamer_v2.Config):
    pass


class OverV1(PPO, dreamer_v1.DreamerV1):
    pass


class OverV2(PPO, dreamer_v2.DreamerV2):
    pass


TINY = {"deter": 8, "hidden": 8, "units": 8, "imagination": 2, "model_minibatches": 1, "minibatch": 4}
OTHERS = {
    "v1": (OverV1, ConfigV1(**TINY, stoch=4, continue_scale=1.0, free_nats=0.0)),
    "v2": (OverV2, ConfigV2(**TINY, classes=2, layers=1)),
}


@pytest.mark.parametrize("world", [pytest.param("v1", marks=pytest.mark.slow), "v2"])
def test_any_dreamer_will_do(world):
    kind, config = OTHERS[world]
    agent = kind(config, OBS, EVERY_ACTION, "float32")
    state, batch = jax.eval_shape(agent.init, KEY), random_batch(agent, 2, 3)
    new, _, metrics = jax.eval_shape(agent.train, state, batch)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), new) == jax.tree.map(lambda x: (x.shape, x.dtype), state)
    assert {"loss/policy", "loss/value", "loss/reward", "policy/clipped"} <= metrics.keys()
    assert (new.slow is None) == (world == "v1")


@pytest.mark.slow
@pytest.mark.parametrize("world", OTHERS)
def test_any_dreamer_learns_in_every_parameter(world):
    kind, config = OTHERS[world]
    agent = kind(config, OBS, EVERY_ACTION, "float32")
    state, batch, train = filled_state(agent), random_batch(agent, 2, 3), jax.jit(agent.train)
    after, _, metrics = train(state, batch)
    assert all(np.isfinite(v) for v in metrics.values())
    before, after = bits(state.model), bits(after.model)
    assert [k for k in before if before[k] == after[k]] == []


@pytest.mark.slow
@pytest.mark.parametrize("part", ["model", "behavior"])
def test_a_part_moves_alone(part, agent, state, batch):
    after, out, metrics = jax.jit(lambda *args: agent.train(*args, part=part))(state, batch)
    before, after = bits(state.model), bits(after.model)
    moved = {k.split(".")[1] for k in before if before[k] != after[k]}
    assert moved == ({"pol", "val"} if part == "behavior" else {"enc", "dyn", "dec", "rew", "con"})
    assert ("loss/policy" in metrics, "loss/reward" in metrics) == (part == "behavior", part == "model")
    assert out.keys() == {"out/deter", "out/stoch"}


@pytest.mark.slow
def test_a_share_of_the_starts_is_some_of_the_rows(state, batch):
    seen, some = (
        jax.jit(agent.encode)(state.model, agent.split(batch), KEY)[1]
        for agent in (small_agent(model_minibatches=1), small_agent(model_minibatches=1, start_gb=9 * 1540 / 1e9))
    )
    rows = [row.tobytes() for row in np.asarray(seen.latents.deter)]
    kept = [row.tobytes() for row in np.asarray(some.latents.deter)]
    assert len(set(rows)) == B * T
    assert len(set(kept)) == 9
    assert set(kept) < set(rows)
    assert kept != rows[:9]
