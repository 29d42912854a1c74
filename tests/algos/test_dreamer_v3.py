import functools
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from dreamer import (
    EVERY_ACTION,
    KEY,
    OBS,
    B,
    T,
    bits,
    filled_state,
    jit_once,
    random_batch,
    random_values,
    small_agent,
)

from reverie.algos.dreamer_v3 import SIZES, Config, make_agent
from reverie.envs.base import Space


@pytest.fixture(scope="module")
def agent():
    return small_agent()


@pytest.fixture(scope="module")
def init(agent):
    return jit_once(agent.init)


@pytest.fixture(scope="module")
def state(init):
    return init(KEY)


@pytest.fixture(scope="module")
def batch(agent):
    return random_batch(agent)


@pytest.fixture(scope="module")
def train(agent):
    return jax.jit(agent.train)


@pytest.fixture(scope="module")
def overfitted(train, state, batch):
    """The state after 60 updates on one batch, and the metrics of each."""
    history = []
    for _ in range(60):
        state, _, metrics = train(state, batch)
        history.append(metrics)
    return state, jax.device_get(history)


# ------------------------------------------------------------------------ parameters

SPACES = {
    "proprio24_cont6": (
        Space("vector", (24,)),
        Space("vector", (6,), low=(-1.0,) * 6, high=(1.0,) * 6),
    ),
    "image64x64x3_disc6": (Space("image", (64, 64, 3)), Space("discrete", (), (6,))),
    "cartpole4_disc2": (Space("vector", (4,)), Space("discrete", (), (2,))),
}
COUNTS = json.loads((Path(__file__).parents[1] / "golden/dreamer/param_counts.json").read_text())["outputs"]["counts"]


@pytest.mark.parametrize("case", COUNTS, ids=lambda c: f"{c['size']}-{c['env']}")
def test_parameter_counts_equal_the_specification(case):
    obs, act = SPACES[case["env"]]
    agent = make_agent(
        Config(size=case["size"].removeprefix("size")),
        {"obs": obs},
        {"action": act},
        precision="bfloat16",
    )
    counts = agent.parameters(jax.eval_shape(agent.init, KEY))
    assert counts == case["modules"]
    assert sum(counts.values()) == case["total"]


def test_every_size_of_the_specification_is_counted():
    final = [name for name in SIZES if name.endswith("m")]
    assert {c["size"].removeprefix("size") for c in COUNTS} == set(final)
    assert len(COUNTS) == len(SPACES) * len(final) == 3 * 7


def test_the_smallest_size_keeps_its_name(agent, state):
    assert 150_000 < sum(agent.parameters(state).values()) < 250_000
    assert next(iter(SIZES)) == "200k"


# -------------------------------------------------------------------------- learning


def test_a_fresh_agent_predicts_neither_reward_nor_value(overfitted):
    first = overfitted[1][0]
    assert first["imagined/reward"] == 0
    assert first["imagined/value"] == 0
    assert first["imagined/value"] == 0
    np.testing.assert_allclose(first["loss/reward"], np.log(255), rtol=1e-5)


def test_the_gradient_reaches_every_parameter(train, state, batch):
    # Heads start with zero weights: what lies below them moves from the second update on.
    second, _, _ = train(*train(state, batch)[:1], batch)
    before, after = bits(state.model), bits(second.model)
    assert [k for k in before if before[k] == after[k]] == []


def test_the_gradient_reaches_images_and_every_kind_of_action():
    obs = {"image": Space("image", (48, 48, 3)), "grid": Space("vector", (2, 2))}
    act = {k: EVERY_ACTION[k] for k in ("multi", "box")}
    agent = small_agent(obs, act)
    state, batch = filled_state(agent), random_batch(agent, 1, 2)
    gradient = jit_once(jax.grad(agent.loss, has_aux=True))
    grads, (_, _, metrics) = gradient(state.model, state.slow, state.returns, batch, KEY)
    for path, leaf in jax.tree_util.tree_leaves_with_path(grads):
        assert np.isfinite(leaf).all(), jax.tree_util.keystr(path)
        assert (leaf != 0).any(), jax.tree_util.keystr(path)
    assert {"loss/decode/image", "loss/decode/grid"} <= metrics.keys()


def test_one_batch_can_be_learned_by_heart(overfitted):
    _, history = overfitted
    names = ("decode/vector", "decode/token", "reward", "continue")

    def total(metrics):
        return sum(metrics[f"loss/{n}"] for n in names)

    assert total(history[-1]) < 0.25 * total(history[0])


def test_a_constant_reward_is_learned(overfitted):
    _, history = overfitted
    np.testing.assert_allclose(history[-1]["imagined/reward"], 1.0, atol=0.1)
    assert history[-1]["loss/reward"] < 0.7  # the entropy of the two-hot code of 1.0 is 0.68


def test_losses_have_the_names_of_their_scales_and_add_up(agent, overfitted):
    first = overfitted[1][0]
    losses = {k.removeprefix("loss/"): v for k, v in first.items() if k.startswith("loss/") and k != "loss/total"}
    assert losses.keys() == agent.scales.keys()
    np.testing.assert_allclose(first["loss/total"], sum(agent.scales[k] * v for k, v in losses.items()), rtol=1e-5)


def test_a_loss_without_a_scale_is_an_error(batch):
    agent = small_agent()
    del agent.scales["reward"]
    with pytest.raises(AssertionError, match="reward"):
        jax.eval_shape(agent.train, jax.eval_shape(agent.init, KEY), batch)


def test_the_slow_critic_follows_slowly(train, state, batch):
    first, _, _ = train(state, batch)
    second, _, _ = train(first, batch)
    expected = jax.tree.map(lambda slow, new: 0.98 * slow + 0.02 * new, first.slow, second.model.val)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-8), second.slow, expected)


def test_the_same_key_gives_the_same_result_and_another_key_another(init, train, state, batch):
    again = init(jax.random.key(0))
    assert bits(again) == bits(state)
    assert bits(train(again, batch)) == bits(train(state, batch))
    other = bits(init(jax.random.key(1)).model)
    same = [k for k, v in bits(state.model).items() if v == other[k]]
    assert all("bias" in k or "scale" in k or ".out.weight" in k for k in same), same  # constants by design


# ---------------------------------------------------------------------- a bad batch


@pytest.mark.parametrize("key", ["obs/vector", "reward", "out/deter"])
def test_a_nan_changes_nothing_but_the_counters(key, train, state, batch):
    state, _, _ = train(state, batch)  # moments and counters that are not zero
    bad = batch | {key: batch[key].at[1, 0 if key == "out/deter" else 3].set(jnp.nan)}
    kept, out, metrics = train(state, bad)
    old, new = bits(state), bits(kept)
    assert [k for k in old if old[k] != new[k]] == [".nonfinite"]
    assert bits(out) == bits({k: bad[k][:, 1:] for k in ("out/deter", "out/stoch")})
    assert not np.isfinite(metrics["loss/total"])

    twice, _, metrics = train(kept, bad)
    assert (metrics["nonfinite/total"], metrics["nonfinite/streak"]) == (2, 2)
    recovered, _, metrics = train(twice, batch)
    assert (metrics["nonfinite/total"], metrics["nonfinite/streak"]) == (2, 0)
    expected, _, _ = train(state, batch)
    old, new = bits(expected), bits(recovered)
    assert [k for k in old if old[k] != new[k]] == [".nonfinite"]


# ------------------------------------------------- how a replayed sequence begins


@pytest.mark.parametrize("initial", ["zeros", "stored", "stored+refreshed"])
def test_sequences_begin_as_told(initial, state):
    agent = small_agent(initial=initial)
    batch = random_batch(agent)
    stored = {"zeros": set(), "stored": {"deter", "stoch"}, "stored+refreshed": {"deter", "stoch"}}[initial]
    assert agent.out_space.keys() == stored
    assert agent.context == (0 if initial == "zeros" else 1)
    _, out, _ = jax.eval_shape(agent.train, state, batch)
    returned = agent.out_space if initial == "stored+refreshed" else {}
    assert {k: (v.shape, v.dtype) for k, v in out.items()} == {
        f"out/{k}": ((B, T, *s.shape), s.dtype) for k, s in returned.items()
    }

    run = jit_once(agent.loss)

    def loss(batch):
        return run(state.model, state.slow, state.returns, batch, KEY)[0]

    value = loss(batch)
    assert np.isfinite(value)
    first = batch | {"is_first": batch["is_first"].at[:, agent.context].set(True)}
    if initial == "zeros":
        assert loss(first) == value  # every sequence begins like an episode
    else:
        assert loss(first) != value
        deter = batch["out/deter"]
        assert loss(batch | {"out/deter": deter.at[:, 0].multiply(0.5)}) != value
        assert loss(batch | {"out/deter": deter.at[:, 1:].multiply(0.5)}) == value
        assert loss(batch | {"obs/vector": batch["obs/vector"].at[:, 0].add(1)}) == value  # only its latent counts
        action = batch["action/action"]
        assert loss(batch | {"action/action": action.at[:, 0].set((action[:, 0] + 1) % 3)}) != value


def test_refreshed_latents_are_the_ones_of_the_trained_rows(agent, train, state, batch):
    _, out, _ = train(state, batch)
    assert {k: (v.shape, v.dtype) for k, v in out.items()} == {
        f"out/{k}": ((B, T, *s.shape), s.dtype) for k, s in agent.out_space.items()
    }
    # Where an episode begins, the stored latent before it makes no difference.
    begins = batch | {"is_first": batch["is_first"].at[:, 1].set(True)}
    halved = begins | {"out/deter": batch["out/deter"] * 0.5}
    assert bits(train(state, begins)[1]) == bits(train(state, halved)[1]) != bits(out)


def test_a_cut_bootstraps_and_an_end_does_not(agent, batch):
    state, loss = filled_state(agent), jit_once(agent.loss)
    last = batch["is_last"].at[:, 3].set(True)

    def run(batch):
        return loss(state.model, state.slow, state.returns, batch, KEY)[1][2]

    plain, cut, ended = (
        run(batch),
        run(batch | {"is_last": last}),
        run(batch | {"is_last": last, "is_terminal": last}),
    )
    assert cut["loss/continue"] == plain["loss/continue"] != ended["loss/continue"]
    assert len({float(m["loss/replay_value"]) for m in (plain, cut, ended)}) == 3
    for name in ("loss/reward", "loss/decode/vector", "loss/dynamics", "loss/policy"):
        assert plain[name] == cut[name] == ended[name]


# --------------------------------------------------------------------------- acting


def first_rows(agent, count, seed=0):
    rows = random_values(np.random.default_rng(seed), agent.obs_space, "obs/", (count,))
    flags = {k: np.zeros(count, bool) for k in ("is_last", "is_terminal")}
    return jax.tree.map(
        jnp.asarray,
        rows | flags | {"is_first": np.ones(count, bool), "reward": np.zeros(count, np.float32)},
    )


def assert_inside(space, action, count):
    action = np.asarray(action)
    assert action.shape == (count, *space.shape)
    assert action.dtype == space.dtype
    if space.kind == "vector":
        assert (np.abs(action) <= 1).all()
    else:
        assert (action >= 0).all()
        assert (action < np.reshape(space.classes, space.shape)).all()


@pytest.mark.parametrize("mode", ["train", "eval", "random"])
def test_actions_lie_in_their_spaces_in_every_mode(mode):
    agent, count = small_agent(OBS, EVERY_ACTION), 60
    rows = first_rows(agent, count)
    policy = jit_once(functools.partial(agent.policy, mode=mode))
    state, carry = filled_state(agent), agent.init_carry(count, KEY)
    carry, action, out = policy(state, carry, rows)
    assert action.keys() == {f"action/{k}" for k in EVERY_ACTION}
    for key, space in EVERY_ACTION.items():
        assert_inside(space, action[f"action/{key}"], count)
    assert {k: (v.shape, v.dtype) for k, v in out.items()} == {
        f"out/{k}": ((count, *s.shape), s.dtype) for k, s in agent.out_space.items()
    }
    assert out["out/stoch"].max() < SIZES["200k"].classes

    carry, later, _ = policy(state, carry, rows)
    assert any((later[k] != action[k]).any() for k in action) == (mode != "eval" or bits(later) != bits(action))
    if mode == "random":
        for key, space in EVERY_ACTION.items():
            if space.kind == "discrete":
                seen = np.asarray(action[f"action/{key}"]).reshape(count, -1).max(0)
                np.testing.assert_array_equal(seen, np.array(space.classes) - 1)
            else:
                assert np.abs(action[f"action/{key}"]).max() > 0.9


@pytest.mark.parametrize("name", EVERY_ACTION)
def test_a_single_action_of_any_kind_will_do(name):
    agent = small_agent(OBS, {"action": EVERY_ACTION[name]})
    rows, carry = first_rows(agent, 2), jax.eval_shape(lambda: agent.init_carry(2, KEY))
    state = jax.eval_shape(agent.init, KEY)
    for mode in ("train", "eval", "random"):
        after, action, _ = jax.eval_shape(functools.partial(agent.policy, mode=mode), state, carry, rows)
        shape = action["action/action"]
        assert (shape.shape, shape.dtype) == (
            (2, *EVERY_ACTION[name].shape),
            EVERY_ACTION[name].dtype,
        )
        assert jax.tree.map(lambda x: (x.shape, x.dtype), after) == jax.tree.map(lambda x: (x.shape, x.dtype), carry)


def test_the_first_row_of_an_episode_forgets_everything_before(agent, state):
    policy = jit_once(functools.partial(agent.policy, mode="train"))
    rows = first_rows(agent, 2)
    begun, _, _ = policy(state, agent.init_carry(2, KEY), rows)
    fresh = agent.init_carry(2, begun.key)
    second = first_rows(agent, 2, seed=1) | {"is_first": jnp.array([True, False])}
    _, action, out = policy(state, begun, second)
    _, other_action, other_out = policy(state, fresh, second)
    for new, old in zip(jax.tree.leaves((action, out)), jax.tree.leaves((other_action, other_out)), strict=True):
        np.testing.assert_array_equal(new[0], old[0])
    assert (out["out/deter"][1] != other_out["out/deter"][1]).any()


# ------------------------------------------------------------------------- reporting


def test_a_report_leaves_out_what_follows_the_start_of_another_episode(agent, batch):
    state = filled_state(agent)
    report = jit_once(agent.report)
    figures = report(state, batch)
    names = {"reward", "vector", "token"}
    assert figures.keys() == {f"open_loop/{n}/1" for n in names} | {f"closed_loop/{n}" for n in names}
    assert all(np.isfinite(v) and v >= 0 for v in figures.values())
    # Row 6 of the trained ones is the first dreamed one.
    broken = batch | {"is_first": batch["is_first"].at[0, 6].set(True)}
    loud = broken | {"obs/vector": broken["obs/vector"].at[0, 6].add(5.0)}
    assert report(state, broken)["open_loop/vector/1"] == report(state, loud)["open_loop/vector/1"]
    assert report(state, broken)["open_loop/vector/1"] != figures["open_loop/vector/1"]
    short = jax.tree.map(lambda x: x[:, :5], batch)
    assert jax.eval_shape(agent.report, state, short) == {}
