import functools
import json
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from dreamer import (
    EVERY_ACTION,
    KEY,
    OBS,
    B,
    T,
    bits,
    filled_state,
    random_batch,
    random_values,
    small_agent,
)

from reverie.agent import Dream
from reverie.algos.dreamer.v3 import SIZES, Config, make_agent
from reverie.envs.base import Space


@pytest.fixture(scope="module")
def agent():
    return small_agent()


@pytest.fixture(scope="module")
def init(agent):
    return jax.jit(agent.init)


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
    gradient = jax.jit(jax.grad(agent.loss, has_aux=True))
    grads, (_, _, metrics) = gradient(state.model, state, batch, KEY)
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


@pytest.mark.parametrize("reward", [1e38, -1e38, 3e38])
def test_a_colossal_reward_leaves_everything_finite(reward, train, state, batch):
    state, _, _ = train(state, batch)
    bad = batch | {"reward": jnp.full_like(batch["reward"], reward)}
    new, out, metrics = train(state, bad)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves((new.model, new.slow, new.returns, new.optimizer, out)))
    assert metrics["nonfinite/streak"] == 0
    # A step is as long as after any other batch: gradients are clipped, and divided by their own size.
    moved, usual = (
        optax.tree.norm(jax.tree.map(jnp.subtract, x.model, state.model)) for x in (new, train(state, batch)[0])
    )
    assert moved < 3 * usual


@pytest.mark.parametrize("place", ["low", "high"])
def test_a_statistic_that_is_not_finite_changes_nothing_either(place, agent, train, state, batch):
    new, out, _ = train(state, batch)
    new = eqx.tree_at(lambda s: getattr(s.returns, place), new, jnp.float32(jnp.inf))
    kept, out, metrics = agent.accept_finite(jnp.array(True), state, batch, new, out, {})
    assert [k for k, v in bits(kept).items() if v != bits(state)[k]] == [".nonfinite"]
    assert bits(out) == bits({k: batch[k][:, 1:] for k in out})
    assert metrics["nonfinite/streak"] == 1


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


@pytest.mark.parametrize(
    "initial", ["stored+refreshed", *(pytest.param(x, marks=pytest.mark.slow) for x in ("zeros", "stored"))]
)
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

    run = jax.jit(agent.loss)

    def loss(batch):
        return run(state.model, state, batch, KEY)[0]

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
    state, loss = filled_state(agent), jax.jit(agent.loss)
    last = batch["is_last"].at[:, 3].set(True)

    def run(batch):
        return loss(state.model, state, batch, KEY)[1][2]

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
    policy = jax.jit(functools.partial(agent.policy, mode=mode))
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
    policy = jax.jit(functools.partial(agent.policy, mode="train"))
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


@pytest.fixture(scope="module")
def report(agent):
    return jax.jit(agent.report)


def test_a_report_leaves_out_what_follows_the_start_of_another_episode(agent, batch, report):
    state = filled_state(agent)
    figures = report(state, batch)
    kinds = {f"open_loop/{n}/1" for n in ("reward", "vector", "token")}
    kinds |= {name.replace("open", "closed").removesuffix("/1") for name in kinds}
    kinds |= {"open_loop/reward/unexplained", "open_loop/vector/unexplained"}
    assert figures.keys() == kinds
    assert all(np.isfinite(v) and v >= 0 for k, v in figures.items() if "unexplained" not in k)
    # Row 6 of the trained ones is the first dreamed one.
    broken = batch | {"is_first": batch["is_first"].at[0, 6].set(True)}
    loud = broken | {"obs/vector": broken["obs/vector"].at[0, 6].add(5.0)}
    assert report(state, broken)["open_loop/vector/1"] == report(state, loud)["open_loop/vector/1"]
    assert report(state, broken)["open_loop/vector/1"] != figures["open_loop/vector/1"]
    nobody = batch | {"is_first": batch["is_first"].at[:, 6].set(True)}
    assert np.isnan(report(state, nobody)["open_loop/vector/1"]), "an error of zero would be a lie"
    short = jax.tree.map(lambda x: x[:, :5], batch)
    assert jax.eval_shape(agent.report, state, short) == {}


def test_a_report_reaches_as_far_as_its_batch(agent):
    figures = jax.eval_shape(agent.report, filled_state(agent), random_batch(agent, B, 50))
    assert {f"open_loop/vector/{h}" for h in (1, 5, 15, 45)} <= figures.keys()


def test_a_dream_sees_some_rows_and_then_only_actions():
    agent = small_agent(OBS | {"image": Space("image", (48, 48, 1))})
    state, batch = filled_state(agent), random_batch(agent, length=9)
    certain = lambda s: s.model.dyn.post_out.weight  # so that what is seen decides which latents are drawn
    state = eqx.tree_at(certain, state, 50 * certain(state))
    dream = jax.jit(agent.dream)
    out = dream(state, batch)
    kept = {k: batch[k][:, 1:] for k in ("obs/image", "obs/vector", "obs/token", "reward")}
    kept["obs/image"] = kept["obs/image"].astype(jnp.float32) / 255
    assert bits(out.truth) == bits(kept)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), out.dream) == jax.tree.map(lambda x: (x.shape, x.dtype), kept)
    assert out.valid.all()
    # What comes after the fifth row is not looked at (row 0 is the context) ...
    blind = {k: x.at[:, 6:].set(0) if k.startswith("obs/") else x for k, x in batch.items()}
    assert bits(dream(state, blind).dream) == bits(out.dream)
    # ... the fifth is, in its own sequence ...
    moved = batch | {"obs/vector": batch["obs/vector"].at[0, 5].add(50.0)}
    moved["obs/image"] = batch["obs/image"].at[0, 5].set(255)
    changed = np.asarray(dream(state, moved).dream["obs/vector"] != out.dream["obs/vector"]).any(-1)
    assert changed[0].tolist() == 4 * [False] + 5 * [True]
    assert not changed[1].any()
    # ... and so are the actions. Each decides the row after it; the last one leads out of the dream.
    other = batch | {"action/action": (batch["action/action"].at[:, 7].add(1)) % 3}
    changed = np.asarray(dream(state, other).dream["obs/vector"] != out.dream["obs/vector"]).any((0, 2))
    assert changed.tolist() == 7 * [False] + 2 * [True]
    last = batch | {"action/action": (batch["action/action"].at[:, 9].add(1)) % 3}
    assert bits(dream(state, last).dream) == bits(out.dream)


def test_what_was_learned_by_heart_is_dreamt(agent, state, batch, overfitted):
    # Random values from row to row: only a model that learned what follows what can tell the last two of them.
    dream = jax.jit(agent.dream)
    before, after = (dream(s, batch) for s in (state, overfitted[0]))
    shares = [float(e.sum() / v.sum()) for e, v in (d.squares("obs/vector") for d in (before, after))]
    assert shares[1] < 0.3 * shares[0], shares


@pytest.mark.slow
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("task", ["vector", "pixels"])
def test_sixty_four_steps_are_dreamt_below_one_percent_of_their_variance(task, monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2]))
    from bench.experiments import overfit

    args = overfit.Args()
    env_like, key, updates = overfit.TASKS[task]
    figures = overfit.overfit(overfit.config_of(args), env_like, key, seed=0, updates=updates, every=1000)
    assert figures["value"] < overfit.LIMIT, figures


def test_a_dream_speaks_in_the_units_of_the_env(agent, batch):
    state = filled_state(agent)
    out = jax.jit(agent.dream)(state, batch)
    post, _ = agent.observe(state.model, batch, jax.random.fold_in(state.key, state.updates))
    vector = np.asarray(state.model.decode(post.latents)["vector"].mean[:, :5])
    raw = np.sign(vector) * np.expm1(np.abs(vector))
    np.testing.assert_allclose(out.dream["obs/vector"][:, :5], raw, rtol=1e-4, atol=1e-5)


def test_a_dream_is_over_where_an_episode_begins(agent, batch):
    state = filled_state(agent)
    begun = batch | {"is_first": batch["is_first"].at[0, 6].set(True).at[1, 4].set(True)}
    dream = jax.eval_shape(agent.dream, state, begun)
    assert dream.valid.shape == (B, T)
    valid = np.asarray(jax.jit(agent.dream)(state, begun).valid)
    assert valid.tolist() == [5 * [True] + 2 * [False], 7 * [True]], "what is seen may begin an episode"
    for seen in (0, T):
        with pytest.raises(ValueError, match=f"1 to {T - 1} of them, got seen={seen}"):
            agent.dream(state, batch, seen)


@pytest.mark.parametrize("arrays", [np, jnp], ids=["numpy", "jax"])
def test_squares_count_valid_imagined_rows_and_what_moves(arrays):
    truth = arrays.array([[[9.0], [1.0], [3.0], [7.0]], [[9.0], [5.0], [5.0], [0.0]]])
    valid = arrays.array([[True, True, True, True], [True, True, True, False]])
    wrong = arrays.array([[[5.0], [1.0], [0.0], [0.0]], 3 * [[2.0]] + [[9.0]]])
    dream = Dream({"x": truth}, {"x": truth + wrong}, valid)
    error, variance = dream.squares("x", seen=1)
    # Means 11/3 and 5: the second sequence stands still.
    np.testing.assert_allclose(error, [1 + 2 * 4])
    np.testing.assert_allclose(variance, [(64 + 4 + 100) / 9], rtol=1e-6)
