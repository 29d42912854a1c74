"""The search against recorded numbers of mctx, against mctx itself, and against what can be worked out exactly."""

from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import mctx
import numpy as np
import pytest

from reverie.behavior import search
from reverie.behavior.tree import ILLEGAL, Nodes

GOLDEN = Path(__file__).parents[1] / "golden" / "muzero"
PUCT, GUMBEL, HALVING = (sorted(p.stem for p in GOLDEN.glob(f"{kind}_*.json")) for kind in ("puct", "gumbel", "seqh*"))


def longer_are_slow(names: list[str]) -> list[Any]:
    """Every setting is compiled anew: those that have a recording of 16 simulations are played with 50 on request."""
    again = {x for x in names if x.endswith("_s50") and x.replace("_s50", "_s16") in names}
    return [pytest.param(x, marks=pytest.mark.slow) if x in again else x for x in names]


class Table(NamedTuple):
    """A world of S states, known exactly; the latent tells the state and the step that led to it."""

    next_state: jax.Array  # [S, A]
    reward: jax.Array  # [S, A]
    discount: jax.Array  # [S, A]
    logits: jax.Array  # [S, A]
    value: jax.Array  # [S]

    def start(self, state):
        return {"state": state, "reward": jnp.zeros(len(state)), "discount": jnp.zeros(len(state))}

    def imagine(self, latent, action, key):
        at = latent["state"], action
        return {"state": self.next_state[at], "reward": self.reward[at], "discount": self.discount[at]}

    def predict(self, latent):
        return latent["reward"], latent["discount"]

    def evaluate(self, latent):
        return self.logits[latent["state"]], self.value[latent["state"]]


def random_table(seed, states=40, actions=5, discounts=(0.0, 0.9, -0.9, 0.9)):
    rng = np.random.default_rng(seed)
    shape = (states, actions)
    return Table(
        jnp.asarray(rng.integers(0, states, shape)),
        jnp.asarray(rng.normal(size=shape), jnp.float32),
        jnp.asarray(rng.choice(discounts, shape), jnp.float32),
        jnp.asarray(2 * rng.normal(size=shape), jnp.float32),
        jnp.asarray(rng.normal(size=states), jnp.float32),
    )


_JITTED: dict = {}
TRACED = ("legal", "scale", "temperature", "noise")


def run(rule, table, root, key=None, **settings):
    """One program per setting; tables, roots, masks, temperatures and recorded noise are its arguments."""
    traced = {k: settings.pop(k) for k in TRACED if k in settings}

    def call(table, root, key, noise=None, **traced):
        with pytest.MonkeyPatch.context() as patch:
            if noise is not None:
                patch.setattr(jax.random, "gumbel", lambda key, shape: noise)
                patch.setattr(jax.random, "loggamma", lambda key, alpha, shape: jnp.log(noise))
            return getattr(search, rule)(table, table.start(root), key, **settings, **traced)

    name = (rule, *sorted(settings.items()))
    if name not in _JITTED:
        _JITTED[name] = jax.jit(call)
    return _JITTED[name](table, root, jax.random.key(0) if key is None else key, **traced)


def golden_table(g):
    i = g.inputs
    return Table(i["next_state"], i["reward"], i["discount"], i["prior_logits"], i["value"])


def check_tree(g, found, legal):
    """Everything that the recording tells of a tree."""
    tree = found.tree
    g.check("node_visits", tree.visits)
    g.check("parents", tree.parent)
    g.check("action_from_parent", tree.action)
    g.check("node_values", np.where(tree.visits > 0, tree.value, 0))
    g.check("root_value", found.value)
    g.check("visit_counts", found.visits)
    tried = g.outputs["visit_counts"] > 0
    assert (tried <= legal).all()
    np.testing.assert_allclose(found.q[tried], g.outputs["root_qvalues"][tried], rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(found.q[~tried], 0)
    np.testing.assert_allclose(found.policy[legal], g.outputs["action_weights"][legal], rtol=2e-5, atol=1e-6)
    np.testing.assert_array_equal(found.policy[~legal], 0)


@pytest.mark.parametrize("name", longer_are_slow(PUCT))
def test_puct_on_known_worlds(golden, name):
    g = golden(name)
    legal = np.asarray(~g.inputs.get("invalid_actions", jnp.zeros(g.outputs["visit_counts"].shape, bool)))
    bounds = (g.spec["min_value"], g.spec["max_value"]) if "min_value" in g.spec else None
    found = run(
        "puct",
        golden_table(g),
        g.inputs["root_state"],
        simulations=g.spec["num_simulations"],
        c1=g.spec["pb_c_init"],
        c2=g.spec["pb_c_base"],
        dirichlet_fraction=0.0,
        bounds=bounds,
        max_depth=g.spec.get("max_depth"),
        temperature=jnp.float32(0),
        legal=jnp.asarray(legal),
    )
    check_tree(g, found, legal)
    most = g.outputs["visit_counts"]
    assert (np.take_along_axis(most, np.asarray(found.action)[:, None], 1)[:, 0] == most.max(1)).all()


@pytest.mark.parametrize("name", longer_are_slow(GUMBEL))
def test_gumbel_on_known_worlds(golden, name):
    g = golden(name)
    legal = np.asarray(~g.inputs["invalid_actions"])
    found = run(
        "gumbel",
        golden_table(g),
        g.inputs["root_state"],
        simulations=g.spec["num_simulations"],
        considered=g.spec["max_num_considered_actions"],
        visit_scale=g.spec["maxvisit_init"],
        value_scale=g.spec["value_scale"],
        rescale=g.spec["rescale_values"],
        mixed=g.spec["use_mixed_value"],
        max_depth=g.spec.get("max_depth"),
        scale=jnp.float32(g.spec["gumbel_scale"]),
        noise=g.inputs.get("gumbel", jnp.full(legal.shape, 7.0)),  # left out where the scale is 0
        legal=jnp.asarray(legal),
    )
    check_tree(g, found, legal)
    g.check("action", found.action)


@pytest.mark.parametrize("name", sorted(p.stem for p in GOLDEN.glob("qtransform_mix_*.json")))
def test_completed_values_match_the_reference(golden, name):
    g = golden(name)
    logits, visits, q = (g.inputs[k].astype(jnp.float32).T for k in ("prior_logits", "visit_counts", "qvalues"))
    raw = g.inputs["raw_value"]
    nodes = Nodes(jax.nn.log_softmax(logits, 0), visits, q, 1 + visits.sum(0), raw, raw)
    settings = [g.spec[k] for k in ("maxvisit_init", "value_scale", "rescale_values", "use_mixed_value")]
    g.check("completed_qvalues", search.completed(nodes, *settings).T)


def test_normalised_values_match_the_reference(golden):
    g = golden("qtransform_parent_siblings")
    visits, q, value = (g.inputs[k].astype(jnp.float32).T for k in ("visit_counts", "qvalues", "node_value"))
    nodes = Nodes(q, visits, q, 1 + visits.sum(0), value, value)
    g.check("value_score", search.normalised(nodes).T)


@pytest.mark.parametrize("name", HALVING)
def test_the_schedule_of_halving_matches_the_reference(golden, name):
    g = golden(name)
    most, simulations = g.spec["max_num_considered_actions"], g.spec["num_simulations"]
    table = np.stack([search.considered_visits(m, simulations) for m in range(most + 1)])
    np.testing.assert_array_equal(table, g.outputs["table"])


def mctx_search(rule, table, root, legal, noise, simulations, max_depth):
    def step(params, key, action, latent):
        latent = table.imagine(latent, action, key)
        reward, discount = table.predict(latent)
        logits, value = table.evaluate(latent)
        out = mctx.RecurrentFnOutput(reward=reward, discount=discount, prior_logits=logits, value=value)
        return out, latent

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax.random, "gumbel", lambda key, shape, dtype: noise)
        patch.setattr(jax.random, "dirichlet", lambda key, alpha, shape: noise)
        latent = table.start(root)
        logits, value = table.evaluate(latent)
        if rule == "puct":  # there, noise falls on what is not legal too, and is lost
            logits = jnp.where(legal, logits, ILLEGAL)
            noise = jnp.where(legal, noise, 0)
            noise /= noise.sum(-1, keepdims=True)
        first = mctx.RootFnOutput(prior_logits=logits, value=value, embedding=latent)
        policy = {"gumbel": mctx.gumbel_muzero_policy, "puct": mctx.muzero_policy}[rule]
        return policy(None, jax.random.key(0), first, step, simulations, ~legal, max_depth)


@pytest.mark.parametrize("max_depth", [None, pytest.param(4, marks=pytest.mark.slow)])
@pytest.mark.parametrize("rule", ["gumbel", "puct"])
def test_every_node_is_that_of_mctx(rule, max_depth):
    """On 96 random trees of 33 nodes: two players, ends, masks at the root, noise."""
    theirs = jax.jit(lambda *args: mctx_search(rule, *args, 32, max_depth))
    for seed in range(4):
        rng = np.random.default_rng(seed)
        table, root = random_table(seed), jnp.asarray(rng.integers(0, 40, 24))
        legal = jnp.asarray((rng.random((24, 5)) < 0.7) | (np.arange(5) == seed % 5)[None])
        noise = rng.gumbel(size=(24, 5)) if rule == "gumbel" else rng.dirichlet(np.full(5, 0.3), 24)
        noise = jnp.asarray(noise, jnp.float32)
        settings = {"simulations": 32, "max_depth": max_depth, "legal": legal, "noise": noise}
        found = run(rule, table, root, **settings)
        expected = theirs(table, root, legal, noise)
        tree, other = found.tree, expected.search_tree
        np.testing.assert_array_equal(tree.parent, other.parents)
        np.testing.assert_array_equal(tree.action, other.action_from_parent)
        np.testing.assert_array_equal(tree.visits, other.node_visits)
        np.testing.assert_array_equal(tree.child, other.children_index)
        np.testing.assert_array_equal(tree.child_visits, other.children_visits)
        there = np.asarray(tree.visits) > 0
        np.testing.assert_allclose(tree.value[there], other.node_values[there], rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(tree.raw[there], other.raw_values[there])
        q = other.children_rewards + other.children_discounts * other.children_values
        np.testing.assert_allclose(tree.q, q, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(found.policy, expected.action_weights, rtol=1e-4, atol=1e-6)
        if rule == "gumbel":
            np.testing.assert_array_equal(found.action, expected.action)
    if max_depth is None:
        assert depths(tree).max() > 4  # the trees are deep enough to tell
    else:
        assert depths(tree).max() == 4


def depths(tree):
    """[B, N]; 0 for empty slots."""
    parent = np.asarray(tree.parent)
    depth = np.zeros_like(parent)
    for n in range(1, parent.shape[1]):
        known = parent[:, n] >= 0
        depth[known, n] = depth[known, parent[known, n]] + 1
    return depth


@pytest.mark.parametrize("rule", ["gumbel", "puct"])
def test_what_the_rules_forbid_is_never_tried(rule):
    """Neither at the root nor below, though all that is forbidden would pay."""
    rng = np.random.default_rng(0)
    table = random_table(1)
    forbidden = (rng.random((40, 5)) < 0.6) & (np.arange(5) != 2)[None]
    table = table._replace(
        logits=jnp.where(forbidden, ILLEGAL, table.logits.at[:, 2].set(-20.0)),
        reward=jnp.where(forbidden, 100.0, table.reward),
    )
    root = jnp.arange(40)
    found = run(rule, table, root, simulations=60)
    tree = found.tree
    states = np.zeros(tree.parent.shape, int)
    states[:, 0] = root
    for n in range(1, states.shape[1]):
        before = states[np.arange(40), np.asarray(tree.parent)[:, n]]
        action = np.asarray(tree.action)[:, n]
        assert not forbidden[before, action].any()
        states[:, n] = np.asarray(table.next_state)[before, action]
    assert not forbidden[np.arange(40), np.asarray(found.action)].any()
    assert np.all(np.asarray(found.policy)[forbidden] == 0)
    assert np.all(np.asarray(tree.child_visits)[forbidden[states]] == 0)
    assert np.asarray(tree.child_visits).sum() == 40 * 60 + (np.asarray(tree.visits)[:, 1:] - 1).sum()


@pytest.mark.parametrize("rule", ["gumbel", "puct"])
def test_roots_without_a_legal_action_do_no_harm(rule):
    """Beside a game that goes on there may be one that is over."""
    table, root = random_table(2), jnp.arange(6)
    legal = jnp.ones((6, 5), bool).at[3].set(False)
    found = run(rule, table, root, simulations=16, legal=legal)
    assert found.action[3] == 0
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(found))
    others = jnp.array([0, 1, 2, 4, 5])
    if rule == "gumbel":  # a search has its own noise for each root
        noise = jax.random.normal(jax.random.key(3), (6, 5))
        found = run(rule, table, root, simulations=16, legal=legal, noise=noise)
        alone = run(rule, table, root[others], simulations=16, legal=legal[others], noise=noise[others])
        jax.tree.map(lambda x, y: np.testing.assert_allclose(x[others], y, rtol=1e-5, atol=1e-6), found, alone)


def exact_values(table, policy):
    """Q of every state and action under a policy, by solving the Bellman equation."""
    states, actions = table.reward.shape
    reward, discount, follow = (np.asarray(x, np.float64) for x in (table.reward, table.discount, policy))
    move = np.zeros((states, states))
    for s in range(states):
        for a in range(actions):
            move[s, int(table.next_state[s, a])] += follow[s, a] * discount[s, a]
    value = np.linalg.solve(np.eye(states) - move, (follow * reward).sum(1))
    return value, reward + discount * value[np.asarray(table.next_state)]


@pytest.mark.parametrize("simulations", [2, 3, 16, 50])
def test_the_policy_improves_whatever_the_number_of_simulations(simulations):
    """With exact values, acting once by the improved policy is never worse than by the prior."""
    gains = []
    for seed in range(5):
        table = random_table(seed, states=200, actions=7, discounts=(0.0, 0.5, 0.9))
        prior = jax.nn.softmax(table.logits, -1)
        value, q = exact_values(table, prior)
        table = table._replace(value=jnp.asarray(value, jnp.float32))
        # At depth 1 the values of the actions are their exact ones: the claim is about the policy.
        found = run("gumbel", table, jnp.arange(200), jax.random.key(seed), simulations=simulations, max_depth=1)
        gains.append(((np.asarray(found.policy) - np.asarray(prior)) * q).sum(1))
    gains = np.concatenate(gains)
    assert gains.min() >= -1e-5
    assert (gains > 1e-3).mean() > 0.9


class Dice(NamedTuple):
    """A game of two throws. Whoever plays chooses a die, sees what it shows and chooses once more; then it is over.

    Faces are worth their number times the worth of the die; the second choice may double what was thrown, at a risk.
    """

    odds: jax.Array  # [dice, faces], probabilities
    worth: jax.Array  # [throws, dice, faces]
    knows: bool = False  # what the last throw is worth, before it and before its choice; else all values are 0

    def start(self, batch):
        zero = jnp.zeros(batch, jnp.int32)
        return {"throw": zero, "die": zero, "thrown": jnp.zeros(batch, bool), "face": zero, "reward": jnp.zeros(batch)}

    def imagine(self, latent, action, key):
        fell = latent["thrown"]
        reward = jnp.where(fell, self.worth[latent["throw"].clip(max=1), latent["die"], action], 0.0)
        reward = reward * jnp.where(latent["face"] == 2, 2.0, 1.0)
        return {
            "throw": latent["throw"] + fell,
            "die": jnp.where(fell, latent["die"], action),
            "thrown": ~fell,
            "face": jnp.where(fell, action, latent["face"]),
            "reward": jnp.where(latent["throw"] >= 2, 0.0, reward),
        }

    def predict(self, latent):
        return latent["reward"], jnp.where((latent["throw"] >= 2) & ~latent["thrown"], 0.0, 1.0)

    def evaluate(self, latent):
        faces, dice = self.odds.shape[1], len(self.odds)
        choose = jnp.where(jnp.arange(faces) < dice, 0.0, ILLEGAL)[None]
        logits = jnp.where(latent["thrown"][:, None], jnp.log(self.odds)[latent["die"].clip(max=dice - 1)], choose)
        last = (self.odds * self.worth[1]).sum(1)
        last = jnp.where(latent["thrown"], last[latent["die"]], last.max()) * jnp.where(latent["face"] == 2, 2.0, 1.0)
        return logits, jnp.where(self.knows & (latent["throw"] == 1), last, 0.0)

    def chance(self, latent):
        return latent["thrown"]

    def exact(self):
        """Q of the first dice: expectations over faces, maxima over dice."""
        odds, worth = np.asarray(self.odds), np.asarray(self.worth)
        later = np.array([(odds * worth[1] * (2 if face == 2 else 1)).sum(1).max() for face in range(3)])
        return (odds * (worth[0] + later[None])).sum(1)


@pytest.mark.parametrize("rule", ["gumbel", "puct"])
def test_chance_is_averaged_over_as_in_expectimax(rule):
    """PUCT finds it with values of 0 everywhere. Gumbel leaves an action whose first Q-value is below those of its
    siblings, so it is told what the last throw is worth, and has to average over the first."""
    odds = jnp.array([[0.5, 0.3, 0.2], [0.1, 0.2, 0.7]])
    worth = jnp.array([[[3.0, 0.0, 0.0], [0.0, 1.0, 0.5]], [[0.5, 0.5, 0.5], [2.0, 0.0, 0.9]]])
    game = Dice(odds, worth, knows=rule == "gumbel")
    exact = game.exact()
    assert abs(exact[0] - exact[1]) > 0.05
    settings = {"scale": 0.0} if rule == "gumbel" else {"dirichlet_fraction": 0.0, "temperature": 0.0, "c1": 4.0}
    call = lambda key: getattr(search, rule)(game, game.start(2), key, simulations=2000, **settings)
    found = jax.jit(call)(jax.random.key(0))
    np.testing.assert_array_equal(found.action, exact.argmax())
    np.testing.assert_allclose(found.q[:, exact.argmax()], exact.max(), atol=0.05)
    np.testing.assert_array_equal(found.visits[:, 2], 0)  # there are two dice
    # Each face came up as often as it should: without noise, to within one throw or two.
    tree = jax.tree.map(lambda x: np.asarray(x[0]), found.tree)
    for die in range(2):
        node = tree.child[0, die]
        visits = tree.child_visits[node]
        np.testing.assert_allclose(visits, visits.sum() * np.asarray(odds[die]), atol=2)


class Counting(Table):
    """Counts every evaluation on the host, and how often the three methods are traced."""

    traced: list = []  # noqa: RUF012
    ran: list = []  # noqa: RUF012

    def imagine(self, latent, action, key):
        self.traced.append("imagine")
        jax.debug.callback(lambda x: self.ran.append(("imagine", len(x))), action, ordered=True)
        return super().imagine(latent, action, key)

    def predict(self, latent):
        self.traced.append("predict")
        jax.debug.callback(lambda x: self.ran.append(("predict", len(x))), latent["state"], ordered=True)
        return super().predict(latent)

    def evaluate(self, latent):
        self.traced.append("evaluate")
        jax.debug.callback(lambda x: self.ran.append(("evaluate", len(x))), latent["state"], ordered=True)
        return super().evaluate(latent)


@pytest.mark.parametrize("rule", ["gumbel", "puct"])
def test_one_call_of_the_model_per_simulation_for_all_roots(rule):
    table = Counting(*random_table(0))
    table.traced.clear()
    table.ran.clear()
    call = jax.jit(lambda root, key: getattr(search, rule)(table, table.start(root), key, simulations=9).action)
    for key in range(3):
        call(jnp.arange(6), jax.random.key(key)).block_until_ready()
    jax.effects_barrier()
    assert call._cache_size() == 1
    assert sorted(table.traced) == ["evaluate", "evaluate", "imagine", "predict"]  # the root is evaluated too
    once = [("evaluate", 6)] + 9 * [("imagine", 6), ("predict", 6), ("evaluate", 6)]
    assert table.ran == 3 * once


def test_latents_may_be_anything_and_each_simulation_has_a_key_of_its_own():
    class Noisy:
        def imagine(self, latent, action, key):
            return {"key": jax.random.split(key, 4), "parts": (latent["parts"][0] + 1,)}

        def predict(self, latent):
            return jax.vmap(jax.random.uniform)(latent["key"]), jnp.ones(4)

        def evaluate(self, latent):
            return jnp.zeros((4, 3)), latent["parts"][0].sum((1, 2)).astype(jnp.float32)

    latent = {"key": jax.random.split(jax.random.key(0), 4), "parts": (jnp.zeros((4, 2, 2), jnp.uint8),)}
    call = jax.jit(lambda key: search.gumbel(Noisy(), latent, key, simulations=12).tree)
    tree = call(jax.random.key(1))
    assert len(np.unique(tree.reward[:, 1:])) == 4 * 12
    np.testing.assert_array_equal(tree.raw, 4 * depths(tree))  # the latent is that of the parent, one step on
    assert not np.array_equal(call(jax.random.key(2)).reward, tree.reward)


@pytest.mark.slow
def test_temperature_and_noise():
    table, root = random_table(5), jnp.zeros(2000, jnp.int32)
    quiet = {"simulations": 20, "dirichlet_fraction": 0.0}
    found = run("puct", table, root, temperature=jnp.float32(1.0), **quiet)
    visits = np.asarray(found.visits[0])
    assert (np.asarray(found.visits) == visits).all()
    assert (visits > 0).sum() >= 2
    for temperature in (1.0, 0.5):
        action = run("puct", table, root, temperature=jnp.float32(temperature), **quiet).action
        expected = visits ** (1 / temperature) / (visits ** (1 / temperature)).sum()
        np.testing.assert_allclose(np.bincount(action, minlength=5) / 2000, expected, atol=0.04)
    greedy = run("puct", table, root, temperature=jnp.float32(0.0), **quiet).action
    most = np.flatnonzero(visits == visits.max())
    assert (np.asarray(greedy) == most[np.asarray(found.q[0])[most].argmax()]).all()
    assert _JITTED[("puct", *sorted(quiet.items()))]._cache_size() == 1  # a schedule of temperatures compiles nothing
    noisy = run("puct", table, root, simulations=20, dirichlet_fraction=0.5, temperature=jnp.float32(1.0))
    assert len(np.unique(noisy.visits, axis=0)) > 10


def test_the_noise_of_the_root_falls_on_what_is_legal():
    """Padded and illegal actions take nothing away of it."""
    table, root = random_table(5), jnp.zeros(500, jnp.int32)
    legal = jnp.zeros((500, 5), bool).at[:, :2].set(True)
    found = run("puct", table, root, simulations=1, legal=legal, dirichlet_fraction=1.0, temperature=jnp.float32(1.0))
    prior = np.exp(np.asarray(found.tree.logits[:, 0]))
    np.testing.assert_allclose(prior[:, :2].sum(-1), 1, rtol=1e-5)
    np.testing.assert_allclose(prior[:, 0].mean(), 0.5, atol=0.06)
    assert prior[:, 0].std() > 0.3, "a Dirichlet distribution of 0.3 over two: nearly all on either"


def test_small_differences_of_value_stay_small_below_the_least_range():
    column = lambda *x: jnp.array(x, jnp.float32)[:, None]
    one = jnp.ones(1)
    nodes = Nodes(column(0, 0, 0), column(1, 1, 0), column(4, 5, 0), 3 * one, 4.5 * one, 4.5 * one)
    score = lambda least: search.normalised(nodes, least_range=least)[:, 0]
    np.testing.assert_allclose(score(0.0), [0, 1, 0], atol=1e-6)
    np.testing.assert_allclose(score(10.0), [0, 0.1, 0], atol=1e-6)
    np.testing.assert_allclose(score(0.5), [0, 1, 0], atol=1e-6)


def test_gumbel_noise_chooses_by_the_improved_policy_and_none_chooses_the_best():
    """The action of a search is drawn from the improved policy, as near as the considered actions allow."""
    table, root = random_table(6), jnp.zeros(4000, jnp.int32)
    sharp = {"simulations": 5, "max_depth": 1, "visit_scale": 10.0}
    found = run("gumbel", table, root, jax.random.key(1), scale=jnp.float32(1.0), **sharp)
    drawn = np.bincount(found.action, minlength=5) / 4000
    np.testing.assert_allclose(drawn, np.asarray(found.policy).mean(0), atol=0.05)
    found = run("gumbel", table, root, jax.random.key(1), scale=jnp.float32(0.0), **sharp)
    assert len(np.unique(found.action)) == 1


@pytest.mark.parametrize("bad", [{"simulations": 0}, {"simulations": 4, "max_depth": 0}])
@pytest.mark.parametrize("rule", ["gumbel", "puct"])
def test_a_search_of_nothing_is_refused(rule, bad):
    table = random_table(0)
    with pytest.raises(ValueError, match="at least one step"):
        getattr(search, rule)(table, table.start(jnp.arange(2)), jax.random.key(0), **bad)


def test_a_root_that_looks_at_nothing_is_refused():
    table = random_table(0)
    with pytest.raises(ValueError, match="considered=0"):
        search.gumbel(table, table.start(jnp.arange(2)), jax.random.key(0), simulations=4, considered=0)
