"""The MuZero family: what all of its members must do, and what each does besides."""

import json

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from dreamer import bits
from planners import BOARD, BOX, FAMILY, FIVE, IMAGE, VECTOR, B, first_rows, random_batch, small_agent

from reverie import health, trained
from reverie.algos import Unsuitable
from reverie.algos.muzero.frames import observed, raw, see
from reverie.algos.muzero.imagination import imagination_losses
from reverie.behavior.returns import Window
from reverie.envs.base import Space
from reverie.model.unroll import Towers

KEY = jax.random.key(0)
AGENTS = {name: small_agent(name) for name in FAMILY}
TRAIN = {name: jax.jit(agent.train) for name, agent in AGENTS.items()}
STATES = {}


def begun(name):
    if name not in STATES:
        STATES[name] = jax.jit(AGENTS[name].init)(KEY)
    return STATES[name]


@pytest.fixture(params=FAMILY)
def name(request):
    return request.param


# Of the five, the two that differ the most; the others are compiled for it on request.
HARD = pytest.mark.parametrize(
    "name",
    [
        "muzero",
        "stochastic_muzero",
        *(pytest.param(x, marks=pytest.mark.slow) for x in FAMILY if x[:2] not in ("mu", "st")),
    ],
)
# What they share is shown by the default member of the family; the others are compiled for it on request.
OFTEN = pytest.mark.parametrize(
    "name", ["gumbel_muzero", *(pytest.param(x, marks=pytest.mark.slow) for x in FAMILY if x != "gumbel_muzero")]
)


@HARD
def test_the_gradient_reaches_every_parameter(name):
    agent, batch = AGENTS[name], random_batch(AGENTS[name])
    grads, _ = jax.jit(jax.grad(agent.loss, has_aux=True))(moved(begun(name).model), batch, jnp.int32(0), KEY)
    for path, g in jax.tree_util.tree_leaves_with_path(grads):
        where = jax.tree_util.keystr(path)
        if ".after.body" in where and any(part in where for part in (".enc", ".out.")):
            continue  # an afterstate comes from a state, never from an observation
        assert jnp.isfinite(g).all(), where
        assert (g != 0).any(), f"no gradient reaches {where}"


def moved(model):
    """With random weights in the heads, which begin at zero and let nothing through."""
    return jax.tree.map(lambda x: x + 0.1 * jax.random.normal(KEY, x.shape), model)


@OFTEN
def test_one_batch_can_be_learned_by_heart(name):
    agent, batch, train = AGENTS[name], random_batch(AGENTS[name]), TRAIN[name]
    state, losses = begun(name), []
    for _ in range(150):
        state, _, metrics = train(state, batch)
        losses.append(float(metrics["loss/value"] + metrics["loss/reward"]))
    assert losses[-1] < 0.75 * losses[0]
    assert float(metrics["nonfinite/total"]) == 0
    assert int(state.updates) == 150
    del agent


@OFTEN
def test_the_same_key_gives_the_same_result_and_another_key_another(name):
    batch, state = random_batch(AGENTS[name]), begun(name)
    one, other = (TRAIN[name](state, batch) for _ in range(2))
    assert bits(one) == bits(other)
    agent = AGENTS[name]
    policy = jax.jit(agent.policy, static_argnums=3)
    rows = first_rows(agent, 8)
    acts = [policy(state, agent.init_carry(8, jax.random.key(k)), rows, "train")[1] for k in (1, 1, 2)]
    assert bits(acts[0]) == bits(acts[1])
    assert bits(acts[0]) != bits(acts[2])


@OFTEN
def test_a_nan_changes_nothing_but_the_counters(name):
    batch, state = random_batch(AGENTS[name]), begun(name)
    batch["reward"] = batch["reward"].at[0, AGENTS[name].context + 1].set(jnp.nan)
    new, out, metrics = TRAIN[name](state, batch)
    before, after = bits(state), bits(new)
    assert {k for k in before if before[k] != after[k]} == {".nonfinite"}
    assert float(metrics["nonfinite/streak"]) == 1
    for key, value in out.items():
        kept = batch[key][:, AGENTS[name].context :][:, : value.shape[1]]
        np.testing.assert_array_equal(value, kept, err_msg=key)


@OFTEN
@pytest.mark.parametrize("reward", [1e38, -1e38, 3e38])
def test_a_colossal_reward_is_learned_from_and_leaves_everything_finite(name, reward):
    batch, state = random_batch(AGENTS[name]), begun(name)
    batch["reward"] = jnp.full_like(batch["reward"], reward)  # whose sums float32 cannot say
    new, out, metrics = TRAIN[name](state, batch)
    assert float(metrics["nonfinite/streak"]) == 0
    assert int(new.updates) == 1
    assert all(np.isfinite(x).all() for x in jax.tree.leaves((new.model, new.target, new.optimizer, out)))
    assert (out["out/priority"] > 1e37).all()


@pytest.mark.parametrize(
    "mode", ["train", "random", *(pytest.param(mode, marks=pytest.mark.slow) for mode in ("eval", "sample"))]
)
def test_actions_lie_in_their_spaces_in_every_mode(name, mode):
    agent = AGENTS[name]
    rows = first_rows(agent, 6)
    carry, action, out = jax.jit(agent.policy, static_argnums=3)(begun(name), agent.init_carry(6, KEY), rows, mode)
    for key, space in agent.act_space.items():
        value = np.asarray(action[f"action/{key}"])
        assert value.shape == (6, *space.shape)
        assert value.dtype == space.dtype
        low, high = (-1, 1) if space.kind == "vector" else (0, space.classes[0] - 1)
        assert low <= value.min() <= value.max() <= high
    assert {k.removeprefix("out/"): (v.shape[1:], v.dtype) for k, v in out.items()} == {
        k: (s.shape, s.dtype) for k, s in agent.out_space.items()
    }
    np.testing.assert_allclose(out["out/policy"].sum(-1), 1, rtol=1e-5)
    assert (carry.moves == 1).all()


@OFTEN
def test_a_sampled_evaluation_draws_from_the_policy_of_a_search_without_noise(name):
    agent = small_agent(name, random_moves=1.0)
    state = eqx.tree_at(lambda s: s.model, begun(name), moved(begun(name).model))
    rows = jax.tree.map(lambda x: x.repeat(2000, 0), first_rows(agent, 1))
    act = jax.jit(agent.policy, static_argnums=3)
    carry = agent.init_carry(2000, KEY)
    (_, greedy, best), (_, drawn, out) = (act(state, carry, rows, mode) for mode in ("eval", "sample"))
    if agent.enumerated:
        np.testing.assert_allclose(out["out/policy"], best["out/policy"], rtol=1e-5)
        often = jnp.bincount(drawn["action/action"], length=5) / 2000
        np.testing.assert_allclose(often, out["out/policy"].mean(0), atol=0.05)
        assert len(np.unique(greedy["action/action"])) == 1
    assert bits(drawn) != bits(greedy)


@pytest.mark.parametrize(
    "name",
    [pytest.param(x, marks=() if x in ("sampled_muzero", "stochastic_muzero") else pytest.mark.slow) for x in FAMILY],
)
def test_where_values_differ_by_less_than_is_asked_for_the_prior_is_followed(name):
    """Every search reads `least_range`: the one of PUCT is by visits, and follows the prior but for rounding."""
    found = {}
    for least in (0.0, 1e9):
        agent = small_agent(name, simulations=30, least_range=least)
        state = eqx.tree_at(lambda s: s.model, begun(name), moved(begun(name).model))
        found[least] = jax.device_get(jax.jit(agent.think)(state, agent.init_carry(1, KEY), first_rows(agent, 1))[1])
    prior = jax.nn.softmax(found[1e9].tree.logits[0, 0])
    near = {least: np.abs(x.policy[0] - prior).max() for least, x in found.items()}
    assert 4 * near[1e9] < near[0.0], near
    assert near[1e9] < 0.1


@OFTEN
def test_a_thought_is_the_search_behind_the_greedy_action(name):
    agent = small_agent(name, simulations=9)
    both = jax.jit(lambda *args: (agent.policy(*args, "eval"), agent.think(*args)))
    (_, action, out), (actions, found) = jax.device_get(
        both(begun(name), agent.init_carry(1, KEY), first_rows(agent, 1))
    )
    for key, value in actions.items():
        np.testing.assert_allclose(value[found.action[0]], action[f"action/{key}"][0], rtol=1e-5)
        assert value.shape[0] == agent.choices
    np.testing.assert_allclose(found.policy, out["out/policy"], rtol=1e-4)

    thought = trained.search_report(agent.enumerated, actions, found, None)
    branches = thought.tree
    assert len(thought.actions) == agent.choices
    np.testing.assert_allclose(thought.prior.sum(), 1, rtol=1e-5)
    assert branches.visits[0] == agent.config.simulations + 1
    assert len(branches.name) == agent.config.simulations + 1
    assert (branches.parent[1:] < np.arange(1, len(branches.parent))).all()
    assert branches.parent[0] == -1
    for node in np.flatnonzero(branches.parent == 0):
        a = branches.action[node]
        assert branches.name[node] == thought.actions[a]
        assert (branches.visits[node], branches.q[node]) == (thought.visits[a], thought.q[a])
    level = np.zeros(len(branches.parent), int)
    for node in range(1, len(level)):
        level[node] = level[branches.parent[node]] + 1
    assert level.max() > 1
    np.testing.assert_array_equal(branches.chance, (level % 2 == 1) & (name == "stochastic_muzero"))
    deep = {branches.name[node][0] for node in np.flatnonzero(level == 2)}
    assert deep <= {"stochastic_muzero": {"c"}, "sampled_muzero": {"#"}}.get(name, set("01234"))


@pytest.mark.parametrize("mode", ["train", "eval", "random", "sample"])
@pytest.mark.parametrize(
    "algorithm", ["gumbel_muzero", *(pytest.param(x, marks=pytest.mark.slow) for x in ("muzero", "stochastic_muzero"))]
)
def test_only_legal_actions_are_taken_and_learned(algorithm, mode):
    agent = small_agent(algorithm, BOARD, network="mlp", n_step=2)
    rows = first_rows(agent, 16)
    legal = np.random.default_rng(0).random((16, 5)) < 0.4
    legal[:, 3] |= ~legal.any(1)
    rows["obs/legal"] = jnp.asarray(legal)
    _, action, out = jax.jit(agent.policy, static_argnums=3)(
        jax.jit(agent.init)(KEY), agent.init_carry(16, KEY), rows, mode
    )
    assert legal[np.arange(16), np.asarray(action["action/action"])].all()
    assert (np.asarray(out["out/policy"])[~legal] == 0).all()


@OFTEN
def test_the_priority_is_the_error_of_the_searched_value(name):
    agent = small_agent(name, bootstrap="stored", reanalyse=0.0)  # or its values are others before
    batch = random_batch(agent)
    _, out, _ = jax.jit(agent.train)(jax.jit(agent.init)(KEY), batch)
    g, value = agent.config.discount, np.asarray(batch["out/value"])
    reward, n, lam = np.asarray(batch["reward"]), agent.config.n_step, agent.config.lam
    later = value[:, n]
    for t in range(n, 0, -1):
        here = later if t == n else (1 - lam) * value[:, t] + lam * later
        later = reward[:, t] + g * here
    np.testing.assert_allclose(out["out/priority"][:, 0], np.abs(value[:, 0] - later), rtol=1e-4)


def test_importance_weights_scale_the_loss_of_their_sequence():
    agent, batch = AGENTS["gumbel_muzero"], random_batch(AGENTS["gumbel_muzero"])
    loss = jax.jit(lambda b: agent.loss(begun("gumbel_muzero").model, b, jnp.int32(0), KEY)[0])
    whole = loss(batch)
    parts = [loss(batch | {"weight": jnp.eye(B)[i]}) for i in range(B)]
    np.testing.assert_allclose(sum(parts), whole, rtol=1e-5)


@pytest.mark.parametrize(
    "bootstrap", ["search", *(pytest.param(x, marks=pytest.mark.slow) for x in ("stored", "network"))]
)
def test_reanalysis_changes_targets_and_only_those_of_its_share(bootstrap):
    agent = small_agent("gumbel_muzero", reanalyse=0.5, bootstrap=bootstrap)
    batch = random_batch(agent)
    state = jax.jit(agent.init)(KEY)
    _, out, metrics = jax.jit(agent.train)(state, batch)
    span = agent.config.unroll + 1
    for key in ("out/policy", "out/value"):
        same = np.asarray(out[key] == batch[key][:, agent.context :])
        same = same.reshape(*same.shape[:2], -1).all(-1)
        assert same[B // 2 :].all(), "what no search found is not written back"
        assert not same[: B // 2, :span].any(), "searched where they are targets"
        # Bootstraps beyond the unroll are searched, and written back, only if that is asked for.
        assert same[: B // 2, span:].all() == (bootstrap != "search")
        assert bootstrap != "search" or not same[: B // 2].any()
    assert float(metrics["reanalyse/value_moved"]) > 0
    none = small_agent("gumbel_muzero", reanalyse=0.0, bootstrap=bootstrap)
    _, out, _ = jax.jit(none.train)(state, batch)
    assert set(out) == {"out/priority"}


CUT = {"is_last": (slice(None), 3)}  # in rows K + 1 to n - 1, where no policy is a target and no full return ends
BOOTSTRAPS = {
    "n steps": ("gumbel_muzero", {}, {}),
    "cut": ("gumbel_muzero", {"n_step": 6}, CUT),
    "cut at the root": ("gumbel_muzero", {}, {"is_last": (0, 0)}),
    "lambda": ("gumbel_muzero", {"lam": 0.5, "n_step": 6}, {}),
    "age": ("efficientzero", {"n_step": 6, "trust_updates": 1}, {}),
    "two players": ("gumbel_muzero", {"network": "mlp", "n_step": 6}, CUT),
}


@pytest.mark.parametrize("case", BOOTSTRAPS)
@pytest.mark.parametrize(
    ("bootstrap", "reanalyse"),
    [("stored", 0.0), ("network", 0.0), ("search", 0.5), pytest.param("network", 0.5, marks=pytest.mark.slow)],
)
def test_no_target_depends_on_a_stored_value_unless_that_is_asked_for(case, bootstrap, reanalyse):
    name, values, flags = BOOTSTRAPS[case]
    spaces = BOARD if case == "two players" else VECTOR
    agent = small_agent(name, spaces, bootstrap=bootstrap, reanalyse=reanalyse, **values)
    batch = random_batch(agent)
    for key, at in flags.items():
        batch[key] = batch[key].at[at].set(True)

    @jax.jit
    def targets(state, batch):
        """What the values of states 0 to K are to be, where that can be known, and that of the root's search."""
        given, losses = [], agent.losses
        agent.losses = lambda *args: given.append(args[2:]) or losses(*args)
        agent.train(state, batch)
        ((window, used),) = given
        return jnp.where(window.known, window.value, 0.0), used["out/value"][:, agent.context]

    state = jax.jit(agent.init)(KEY)
    state = eqx.tree_at(lambda s: (s.updates, s.target), state, (jnp.int32(4), moved(state.target)))
    stale = batch | {"out/value": batch["out/value"] + 10.0}
    (one, root), (other, other_root) = targets(state, batch), targets(state, stale)
    assert (np.asarray(one) != 0).any(1).all()
    if bootstrap == "stored":
        assert (one[:, 0] != other[:, 0]).all(), "each of these returns ends with a value"
    else:
        np.testing.assert_array_equal(one, other)
        np.testing.assert_array_equal(root, other_root, "of the two a priority is made")


def test_unrolled_values_may_be_those_of_what_is_seen(monkeypatch):
    """Only the root's value learns returns; a terminal row ends the world for the other states."""
    agent = small_agent("muzero", unrolled_value="seen")
    model, batch, last = moved(jax.jit(agent.init)(KEY).model), random_batch(agent), agent.config.unroll
    batch |= {k: jnp.zeros_like(batch[k]).at[0, last].set(True) for k in ("is_last", "is_terminal")}
    windows, losses = [], agent.losses
    monkeypatch.setattr(agent, "losses", lambda *args: windows.append(args[2]) or losses(*args))
    for changed in (batch, batch | {"reward": batch["reward"] + 1, "out/value": batch["out/value"] + 1}):
        agent.loss(model, changed, jnp.int32(0), KEY)
    one, other = (window.value for window in windows)
    seen = model.represent({k: v[:, 1 : last + 1] for k, v in raw(agent, batch).items()})
    told = model.val(model.body.read(seen.state)).pred().at[0, last - 1].set(0.0)
    np.testing.assert_allclose(one[:, 1:], told, atol=1e-6)
    np.testing.assert_array_equal(one[:, 1:], other[:, 1:])
    assert (one[:, 0] != other[:, 0]).all()


def test_actions_change_the_dynamics_and_a_blind_model_is_told():
    agent, batch = AGENTS["gumbel_muzero"], random_batch(AGENTS["gumbel_muzero"])
    seen = health.action_blind().shows

    def influence(model):
        _, (_, metrics) = jax.jit(agent.loss)(model, batch, jnp.int32(0), KEY)
        return {"action/influence": float(metrics["action/influence"])}

    model = begun("gumbel_muzero").model
    assert not seen(influence(model))
    weight = model.body.trunk.linears[0].weight
    blind = jax.tree.map(lambda x: x, model)
    object.__setattr__(blind.body.trunk.linears[0], "weight", weight.at[agent.config.hidden :].set(0.0))
    assert seen(influence(blind))


@pytest.mark.parametrize("network", ["mlp", "tower"])
def test_frames_are_stacked_alike_when_acting_and_when_training(network):
    spaces = {"board": Space("planes", (3, 4, 2))}
    agent = small_agent("gumbel_muzero", spaces, stack=3, network=network)
    rng = np.random.default_rng(0)
    steps = agent.context + agent.rows
    frames = rng.integers(0, 2, (2, steps, 3, 4, 2), np.uint8)
    first = np.zeros((2, steps), bool)
    first[0, 4] = first[1, 1] = True
    carry, shown = agent.init_carry(2, KEY), []
    for t in range(steps):
        seen, carry = see(agent, carry, {"obs/board": jnp.asarray(frames[:, t]), "is_first": jnp.asarray(first[:, t])})
        shown.append(seen["board"])
    rows = {"obs/board": jnp.asarray(frames), "is_first": jnp.asarray(first)}
    replayed = observed(agent, rows, 0, agent.rows)["board"]
    np.testing.assert_array_equal(replayed, jnp.stack(shown[agent.context :], 1))
    assert replayed.shape[-1] == 6
    assert (np.asarray(replayed[0, 4 - agent.context, ..., :4]) == 0).all(), "nothing of the episode before"


@pytest.mark.slow
@pytest.mark.parametrize("obs", [BOARD, IMAGE], ids=["board", "image"])
def test_towers_learn_from_boards_and_pictures(obs):
    agent = small_agent("gumbel_muzero", obs, network="tower", n_step=2)
    batch, state = random_batch(agent), jax.jit(agent.init)(KEY)
    assert state.model.gamma == (-0.997 if "player" in obs else 0.997)
    grads, _ = jax.jit(jax.grad(agent.loss, has_aux=True))(moved(state.model), batch, jnp.int32(0), KEY)
    assert all((g != 0).any() for g in jax.tree.leaves(grads))


def test_boards_are_read_off_every_state_until_the_episode_ends():
    agent = small_agent("muzero", BOARD, decode_scale=1.0, channels=16, learning_rate=1e-2)
    batch, state = random_batch(agent), jax.jit(agent.init)(KEY)
    assert small_agent("muzero", BOARD).make_model(KEY).dec is None
    train, loss, told = jax.jit(agent.train), jax.jit(agent.loss), []
    for _ in range(100):
        state, _, metrics = train(state, batch)
        told.append(float(metrics["loss/decode/board"]))
    assert told[0] > 0.9 * 2 * 24 * np.log(2), "K + 1 boards of 24 bits, those of steps 1 to K by 1 / K"
    assert told[-1] < 0.5 * told[0]

    def reached(k, batch):
        """Whether the board of row k matters."""
        other = batch | {"obs/board": batch["obs/board"].at[0, k].set(1 - batch["obs/board"][0, k])}
        one, two = (loss(state.model, b, jnp.int32(0), KEY)[1][1]["loss/decode/board"] for b in (batch, other))
        return bool(one != two)

    ending = lambda *keys: batch | {k: batch[k].at[0, 1].set(True) for k in keys}
    assert reached(2, batch)
    assert reached(1, ending("is_last", "is_terminal")), "the last board of a game is seen"
    assert not reached(2, ending("is_last", "is_terminal"))
    assert not reached(2, ending("is_last")), "it is of another game"


def test_on_boards_the_dynamics_see_in_which_column_an_action_is():
    spaces = {"board": Space("planes", (6, 7, 2))}
    body = Towers(spaces, 7, blocks=0, channels=2, read_channels=1, key=KEY)
    only_places = body.action.weight.at[:, :, :-1].set(0) / 100  # neither the state nor the constant planes count
    body = eqx.tree_at(lambda b: b.action.weight, body, only_places)
    state = jnp.full((6, 7, 2), 0.5).at[0, 0].set(jnp.array([0.0, 1.0]))
    change = body.advance(state, jax.nn.one_hot(4, 7)) - state
    assert (jnp.abs(change).max((0, 2)) > 1e-5).tolist() == [False, False, False, True, True, True, False]


def test_the_gradient_into_the_root_is_halved_at_every_step():
    agent, batch = AGENTS["gumbel_muzero"], random_batch(AGENTS["gumbel_muzero"])
    model = moved(begun("gumbel_muzero").model)
    actions = agent.taken(batch)[:, :2]

    def end(scale):
        def chain(x):
            hidden = model.represent({"vector": batch["obs/vector"][:, 0]})._replace(state=x)
            for k in range(2):
                part = hidden.state
                part = scale * part + (1 - scale) * jax.lax.stop_gradient(part)
                hidden = model.advance(hidden._replace(state=part), actions[:, k])
            return hidden.state[..., 0].sum()

        return jax.jit(jax.grad(chain))(model.represent({"vector": batch["obs/vector"][:, 0]}).state)

    np.testing.assert_allclose(end(0.5), 0.25 * end(1.0), rtol=1e-4, atol=1e-7)


def test_value_prefixes_begin_anew_at_their_horizon():
    agent = small_agent("efficientzero", unroll=5, prefix_horizon=2)
    sums = jnp.array([[9.0, 1, 2, 3, 4, 5]])
    window = Window(sums, sums, sums > 0, sums > 0, sums < 0)
    #          step       1  2    3  4    5
    np.testing.assert_array_equal(agent.reward_of(window), [[0, 1, 1 + 2, 3, 3 + 4, 5]])
    model = moved(jax.jit(agent.init)(KEY).model)
    hidden, totals = model.represent({"vector": jnp.ones((1, 3))}), []
    for _ in range(5):
        hidden = model.advance(hidden, jnp.zeros(1, jnp.int32))
        totals.append((float(hidden.reward[0]), float(hidden.memory.total[0])))
    for k, (reward, total) in enumerate(totals):
        before = totals[k - 1][1] if k % 2 else 0.0
        assert reward == pytest.approx(total - before, abs=1e-5)


def test_the_step_size_rises_and_falls_to_a_tenth_again_and_again():
    from types import SimpleNamespace

    from reverie.algos.muzero.muzero import make_optimizer
    from reverie.algos.muzero.values import Choices

    values = {"learning_rate": 0.2, "lr_warmup": 4, "clip": 1e9, "optimizer": "adam"}
    for drop, tenths in ((10, lambda count: count // 10), (0, lambda count: 0)):
        choices = Choices(lr_drop_every=drop, weight_decay=0.0)
        config = SimpleNamespace(**values, chosen=lambda choices=choices: choices)
        optimizer = make_optimizer(config)
        state, step = optimizer.init(jnp.zeros(())), jax.jit(optimizer.update)
        for count in range(25):  # of a gradient that stays the same, Adam makes a step of the step size
            change, state = step(jnp.ones(()), state, jnp.zeros(()))
            expected = 0.2 * min(1, count / 4) * 0.1 ** tenths(count)
            np.testing.assert_allclose(-change, expected, rtol=1e-3, atol=1e-9)


def test_old_data_is_trusted_for_fewer_steps():
    agent = small_agent("efficientzero", n_step=3, trust_updates=10)
    rows = {"out/born": jnp.array([[100], [89], [75], [0]])}
    np.testing.assert_array_equal(agent.td_steps_for_age(rows, jnp.int32(100)), [3, 2, 1, 1])


@pytest.mark.slow
def test_candidates_that_come_from_a_broader_policy_weigh_less():
    agent = small_agent("sampled_muzero", candidates=64, broad=0.5)
    model = moved(jax.jit(agent.init)(KEY).model)
    hidden = model.represent({"vector": jnp.ones((2, 3))})
    codes, prior = model.propose(hidden, KEY).memory
    policy, _ = model.judge_all(hidden)
    # prior = log pi - log beta: an estimate of 1 by samples of beta, (beta_hat / beta) pi summed.
    np.testing.assert_allclose(jnp.exp(prior).mean(-1), 1, atol=0.35)
    assert prior[:, :32].min() < prior[:, 32:].mean(), "what only the broader policy draws is improbable"
    even = small_agent("sampled_muzero", candidates=8, broad=0.0)
    root = even.make_model(KEY)
    np.testing.assert_allclose(root.propose(root.represent({"vector": jnp.ones((2, 3))}), KEY).memory[1], 0, atol=1e-6)
    assert codes.shape == (2, 64, 5)
    del policy


def test_chance_takes_turns_with_the_player():
    agent = AGENTS["stochastic_muzero"]
    model = moved(begun("stochastic_muzero").model)
    root = model.represent({"vector": jnp.ones((2, 3))})
    assert not model.chance(root).any()
    mixed = root._replace(memory=jnp.array([False, True]))
    after = model.imagine(mixed, jnp.array([1, 1]), KEY)
    np.testing.assert_array_equal(model.chance(after), [True, False])
    reward, discount = model.predict(after)
    assert float(reward[0]) == 0
    np.testing.assert_allclose(discount, [1.0, agent.config.discount])
    logits, _ = model.evaluate(after)
    assert logits.shape == (2, 5)
    assert (logits[0, 3:] < -1e30).all(), "three codes"
    np.testing.assert_allclose(jnp.exp(logits[0, :3]).sum(), 1, rtol=1e-5)


@pytest.mark.parametrize("unrolled_value", ["return", "seen"])
def test_an_afterstate_learns_what_came_of_it_and_nothing_of_another_episode(unrolled_value):
    agent = small_agent("stochastic_muzero", unrolled_value=unrolled_value)
    loss, model, batch = jax.jit(agent.loss), moved(jax.jit(agent.init)(KEY).model), random_batch(agent)
    names = ["loss/after_value", "loss/chance", "loss/commitment"]

    def change(key, row, batch=batch):
        """Which of the losses feel that one entry is another."""
        other = batch | {key: batch[key].at[0, row].add(1.0)}
        (_, (_, one)), (_, (_, two)) = (loss(model, b, jnp.int32(0), KEY) for b in (batch, other))
        return [name for name in names if one[name] != two[name]]

    # Of the afterstates between rows 0, 1 and 2, with three steps to a return.
    assert change("reward", 1) == change("reward", 2) == names[:1]
    assert change("reward", 0) == []
    assert "loss/commitment" in change("obs/vector", 2)
    later = names[:1] if unrolled_value == "return" else []
    assert change("reward", 3) == change("out/value", 4) == later
    cut = batch | {"is_last": batch["is_last"].at[0, 1].set(True)}
    for key in ("reward", "obs/vector"):
        assert change(key, 2, cut) == [], "row 2 is of another episode"
    ended = cut | {"is_terminal": cut["is_last"]}
    assert change("reward", 1, ended) == names[:1]
    assert "loss/commitment" in change("obs/vector", 1, ended), "the last row of a game came of a move"
    assert change("obs/vector", 2, ended) == []


def test_codes_of_chance_stay_in_use_with_their_balance():
    """The batch is of noise: nothing else asks for codes."""

    def used(balance):
        agent = small_agent("stochastic_muzero", balance_scale=balance)
        batch, train, state = random_batch(agent), jax.jit(agent.train), jax.jit(agent.init)(KEY)
        for _ in range(60):
            state, _, metrics = train(state, batch)
        return float(metrics["loss/balance"])

    assert used(1.0) < 0.3 * used(0.0)


@OFTEN
def test_a_dream_tells_rewards_and_values(name):
    agent = AGENTS[name]
    rows = random_batch(agent)
    longer = {k: jnp.concatenate([v, v], 1) for k, v in rows.items() if k != "weight"}
    dream = jax.jit(lambda s, b: agent.dream(s, b, 3))(begun(name), longer)
    assert dream.dream.keys() == dream.truth.keys() == {"reward", "value"}
    for key in dream.dream:
        assert dream.dream[key].shape == dream.truth[key].shape
        assert jnp.isfinite(dream.dream[key]).all()
    metrics = jax.jit(agent.report)(begun(name), longer)
    assert {"open_loop/reward/1", "open_loop/value/1"} <= metrics.keys()


def test_the_policy_learns_what_is_best_inside_the_model():
    """One step ahead all can be enumerated: Q(a) = r(a) + gamma v(s(a)) of the model itself, which stands still; or
    r(a) - gamma v(s(a)) where it says that the other player moves next."""
    obs = VECTOR | {"player": Space("player", ())}
    agent = small_agent("muzero", obs, behavior="actor-critic", imagination=1, entropy=0.0)
    model, batch = moved(jax.jit(agent.init)(KEY).model), random_batch(agent, batch=32)
    model = eqx.tree_at(lambda m: m.turn.out.weight, model, jax.random.normal(KEY, (8, 1)))
    states = agent.unroll(model, batch, agent.taken(batch)[:, : agent.config.unroll])
    undecided = jnp.median(model.turn(model.body.read(states.state)).logit)[None]
    model = eqx.tree_at(lambda m: m.turn.out.bias, model, model.turn.out.bias - undecided)
    ones = jnp.ones((32, agent.config.unroll + 1), bool)
    window = Window(ones.astype(jnp.float32), ones.astype(jnp.float32), ones, ones, ~ones)

    @jax.jit
    def enumerated(model):
        states = agent.unroll(model, batch, agent.taken(batch)[:, : agent.config.unroll])
        places = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]).repeat(5, 0), states)
        after = model.advance(places, jnp.tile(jnp.arange(5), 32 * (agent.config.unroll + 1)))
        reward, discount = model.predict(after)
        return states, (reward + discount * model.evaluate(after)[1]).reshape(-1, 5), discount

    states, q, discount = enumerated(model)
    assert np.unique(np.sign(discount)).tolist() == [-1, 1]

    def losses(model, window, key):
        losses, _ = imagination_losses(agent, model, states, window, key)
        return losses["policy"][1].mean() + losses["imagined_value"][1].mean(), losses

    optimizer, gradient = optax.adam(0.03), jax.value_and_grad(losses, has_aux=True)

    @jax.jit
    def learned(model):
        """The policy after 300 updates of its own, and what the first of them leaves out and moves."""
        some = window._replace(real=ones.at[0, 1:].set(False))
        (_, first), grads = gradient(model, some, KEY)

        def step(carry, key):
            pol, moments = carry
            grads = gradient(eqx.tree_at(lambda m: m.pol, model, pol), window, key)[1]
            changes, moments = optimizer.update(grads.pol, moments)
            return (optax.apply_updates(pol, changes), moments), None

        (pol, _), _ = jax.lax.scan(step, (model.pol, optimizer.init(model.pol)), jax.random.split(KEY, 300))
        feat = model.body.read(states.state.reshape(len(q), -1))
        gained = lambda pol: (jnp.exp(pol(feat)["action"].logp[:, 0]) * q).sum(-1).mean()
        return gained(model.pol), gained(pol), first, grads

    before, after, first, grads = learned(model)
    best = q.max(-1).mean()
    assert best - before > 1e-3
    assert after > before + 0.8 * (best - before)
    for _, each in first.values():
        assert (each[0, 1:] == 0).all(), "beyond the end of an episode"
        assert (each[1:] != 0).all()
    parts = ("body", "rew", "pol", "val")
    moving = {name: any((x != 0).any() for x in jax.tree.leaves(getattr(grads, name))) for name in parts}
    assert moving == {"body": False, "rew": False, "pol": True, "val": True}, "the model is data"


def test_the_policy_acts_alone_and_nothing_searches(monkeypatch):
    agent = small_agent("muzero", behavior="actor-critic", reanalyse=0.5)
    monkeypatch.setattr(agent, "search", None)
    state = begun("muzero")
    state = eqx.tree_at(lambda s: s.model, state, moved(state.model))
    rows, carry = first_rows(agent, 64), agent.init_carry(64, KEY)
    prior, value = state.model.evaluate(state.model.represent({"vector": rows["obs/vector"]}))
    act = jax.jit(agent.policy, static_argnums=3)
    _, action, out = act(state, carry, rows, "eval")
    np.testing.assert_array_equal(action["action/action"], prior.argmax(-1))
    np.testing.assert_allclose(out["out/policy"], jnp.exp(prior), rtol=1e-4)
    np.testing.assert_allclose(out["out/value"], value, rtol=1e-4, atol=1e-6)
    _, action, _ = act(state, carry, rows, "train")
    assert len(np.unique(action["action/action"])) == 5
    _, _, metrics = jax.eval_shape(agent.train, state, random_batch(agent))
    assert {"loss/policy", "loss/imagined_value", "imagined/return", "reanalyse/value_moved"} <= metrics.keys()


@pytest.mark.parametrize("algorithm", ["sampled_muzero", "stochastic_muzero"])
def test_a_model_that_a_policy_cannot_play_in_has_no_flag_for_that(algorithm):
    """Its model takes drawn candidates or codes of chance."""
    with pytest.raises(TypeError, match="behavior"):
        small_agent(algorithm, behavior="actor-critic")


def test_what_cannot_be_searched_is_refused_with_advice():
    with pytest.raises(Unsuitable, match="sampled_muzero"):
        small_agent("gumbel_muzero", act=BOX)
    for obs, network in ((VECTOR, "auto"), (IMAGE, "auto"), (BOARD, "mlp")):
        with pytest.raises(Unsuitable, match="decode_scale 1 among --choices reads boards off the planes of a tower"):
            small_agent("gumbel_muzero", obs, network=network, decode_scale=1.0)
    assert small_agent("sampled_muzero", VECTOR, FIVE).choices == 4


@pytest.mark.parametrize("algorithm", FAMILY)
def test_presets_can_be_built(algorithm):
    from reverie import config, presets

    for preset in presets.of(algorithm).named:
        conf = config.default(algorithm, preset)
        assert json.loads(config.to_text(conf))["algorithm"] == algorithm


@pytest.mark.parametrize("preset", ["atari100k", "atari-toy"])
def test_the_presets_for_atari_name_options_that_there_are(preset):
    pytest.importorskip("ale_py")
    from reverie import api, config
    from reverie.envs.build import make_env

    conf = config.override(config.default("efficientzero", preset), env="ALE/Pong-v5")
    env = make_env(api.spec_of(conf.run))
    agent = api.make_agent(conf, env.obs_space, env.act_space)
    assert agent.context == 3
    assert sum(agent.parameters(jax.eval_shape(agent.init, KEY)).values()) > 1000
    env.close()
