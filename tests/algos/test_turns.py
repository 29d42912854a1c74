"""Games in which a player may move twice in a row: what is learned of whose turn comes, and what follows from it."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from four_moves import MOVES, ORDERS, SIDES, TURNS
from jax.tree_util import keystr, tree_flatten_with_path
from planners import VECTOR, random_batch, small_agent
from rich.console import Console

from reverie import api, config
from reverie.algos.muzero import muzero
from reverie.algos.muzero import stochastic as stochastic_muzero
from reverie.behavior.returns import Window
from reverie.behavior.tree import ILLEGAL
from reverie.envs import base
from reverie.envs.base import Space
from reverie.envs.device import DeviceEnvs
from reverie.envs.spec import EnvSpec
from reverie.model.unroll import Hidden
from reverie.nn.dists import Binary
from reverie.run.checkpoint import Checkpoint, Mismatch, flatten
from reverie.run.snapshot import agent_state

KEY = jax.random.key(0)
STRICT, IRREGULAR = (VECTOR | {"player": Space("player", (), alternating=strict)} for strict in (True, False))


class Features(NamedTuple):
    """A body whose states are their own features."""

    axes: int = 1

    def read(self, state: Any) -> Any:
        return state


class Known(muzero.Model):
    """The game itself as the model: states are `[order, moves made, lead of player 0]`, values those of random play.
    The head of turns knows what it is to learn; all that is made of it is the algorithm's own."""

    def __init__(self) -> None:
        self.gamma, self.classes, self.dtype = 1.0, 3, "float32"
        self.body, self.turn = Features(), lambda state: Binary(jnp.where(turned(state), 1.0, -1.0))
        self.rew = self.pol = self.val = self.dec = self.leg = None

    def advance(self, hidden: Hidden, action: Any) -> Hidden:
        return played(hidden, action)

    def evaluate(self, latent: Hidden) -> tuple[Any, Any]:
        return jnp.zeros((*latent.reward.shape, 3)), by_chance(latent.state)


class KnownByChance(stochastic_muzero.Model):
    """The same, and after every move a coin counts half a point for the player who made it, or against."""

    def __init__(self) -> None:
        self.gamma, self.classes, self.dtype, self.codes = 1.0, 3, "float32", 2
        self.body, self.turn = Features(), lambda state: Binary(jnp.where(turned(state), 1.0, -1.0))
        self.rew = self.pol = self.val = self.dec = self.leg = self.after = None

    def moved(self, hidden: Hidden, action: Any) -> Hidden:
        order, made = places(hidden.state)
        lead = hidden.state[..., 2] + jnp.asarray(SIDES)[order, made] * action
        return Hidden(hidden.state.at[..., 2].set(lead), jnp.zeros_like(lead), jnp.ones(lead.shape, bool))

    def after_chance(self, after: Hidden, code: Any) -> Hidden:
        now = played(after._replace(memory=()), jnp.argmax(code, -1) - 0.5)
        return now._replace(memory=jnp.zeros(now.reward.shape, bool))

    def evaluate(self, latent: Hidden) -> tuple[Any, Any]:
        """An afterstate is worth what the next state is to the player who moved: one random move less."""
        order, made = places(latent.state)
        side = jnp.asarray(SIDES)[order, made]
        after = jnp.where(made < MOVES, side * latent.state[..., 2], 0.0) + side * later(order, made + 1)
        logits = jnp.zeros((*latent.reward.shape, 3))
        return (
            logits.at[..., 2].set(jnp.where(latent.memory, ILLEGAL, 0.0)),
            jnp.where(latent.memory, after, by_chance(latent.state)),
        )


def places(state: Any) -> tuple[Any, Any]:
    """The order, and the number of moves made."""
    return state[..., 0].astype(int), state[..., 1].astype(int)


def turned(state: Any) -> Any:
    order, made = places(state)
    now = jnp.minimum(made, MOVES - 1)
    return jnp.asarray(TURNS)[order, now] != jnp.asarray(TURNS)[order, jnp.maximum(now - 1, 0)]


def played(hidden: Hidden, gain: Any) -> Hidden:
    order, made = places(hidden.state)
    side, lead = jnp.asarray(SIDES)[order, jnp.minimum(made, MOVES - 1)], hidden.state[..., 2]
    lead = lead + jnp.where(made < MOVES, side * gain, 0.0)
    reward = jnp.where(made == MOVES - 1, side * lead, 0.0)
    return hidden._replace(state=jnp.stack([hidden.state[..., 0], made + 1.0, lead], -1), reward=reward)


def later(order: Any, made: Any) -> Any:
    """What random moves from the next one on add to the lead of player 0, on average."""
    rest = jnp.concatenate([jnp.cumsum(jnp.asarray(SIDES)[:, ::-1], 1)[:, ::-1], jnp.zeros((len(ORDERS), 2))], 1)
    return rest[order, jnp.minimum(made, MOVES)]


def by_chance(state: Any) -> Any:
    order, made = places(state)
    side = jnp.asarray(SIDES)[order, jnp.minimum(made, MOVES - 1)]
    return jnp.where(made < MOVES, side * (state[..., 2] + later(order, made)), 0.0)


SEARCHES = {
    "gumbel_muzero": {},
    "muzero": {},
    "stochastic_muzero": {"codes": 2},
    "stochastic_muzero, gumbel": {"codes": 2, "search": "gumbel"},
}


@pytest.mark.parametrize("name", SEARCHES)
def test_a_search_of_the_true_game_plays_the_best_move_in_every_order_of_turns(name):
    algorithm, own = name.partition(",")[0], SEARCHES[name]
    chance = algorithm == "stochastic_muzero"
    agent = small_agent(algorithm, IRREGULAR, {"action": Space("discrete", (), (3,))}, simulations=32, **own)
    model = KnownByChance() if chance else Known()
    search = jax.jit(lambda root: agent.search(model, root, KEY, jnp.ones((8, 3), bool), None).action)
    states = jnp.stack([jnp.arange(8.0), jnp.zeros(8), jnp.zeros(8)], -1)
    root = Hidden(states, jnp.zeros(8), jnp.zeros(8, bool) if chance else ())
    for move in range(MOVES):
        chosen = np.asarray(search(root))
        assert dict(zip(ORDERS, chosen.tolist(), strict=True)) == dict.fromkeys(ORDERS, 2), f"move {move}"
        best = played(root._replace(memory=()), jnp.full(8, 2))
        root = root._replace(state=best.state)


def batch_of_turns(agent: Any, seed: int = 0, batch: int = 64) -> dict[str, Any]:
    """Rows after which the other player moves where the first number seen is positive, and else the same one."""
    rows = random_batch(agent, seed, batch)
    passes = rows["obs/vector"][:, :-1, 0] > 0
    player = jnp.pad(jnp.cumsum(passes, 1) % 2, ((0, 0), (1, 0)))
    return rows | {"obs/player": player.astype(jnp.int8)}


@pytest.mark.parametrize("algorithm", ["gumbel_muzero", pytest.param("stochastic_muzero", marks=pytest.mark.slow)])
def test_whose_turn_comes_is_learned_and_gives_the_discount_its_sign(algorithm):
    agent = small_agent(algorithm, IRREGULAR, unroll=1, units=32, hidden=16, learning_rate=1e-2, prioritized=False)
    state, train, gamma = jax.jit(agent.init)(KEY), jax.jit(agent.train), agent.config.discount
    batch = batch_of_turns(agent)

    def discounts(model: Any) -> Any:
        states = agent.unroll(model, batch, agent.taken(batch)[:, :1])
        return model.predict(Hidden(states.state[:, 1], states.reward[:, 1], jnp.zeros(64, bool)))[1]

    np.testing.assert_allclose(discounts(state.model), -gamma, err_msg="at first it is taken for granted")
    for _ in range(150):
        state, _, metrics = train(state, batch)
    assert metrics["loss/turn"] < 0.1
    passes = np.asarray(batch["obs/vector"][:, 0, 0] > 0)
    np.testing.assert_allclose(discounts(state.model), np.where(passes, -gamma, gamma), rtol=1e-6)


def test_turns_beyond_the_end_of_a_game_teach_nothing():
    agent = small_agent("gumbel_muzero", IRREGULAR, prioritized=False)
    loss, model, batch = jax.jit(agent.loss), jax.jit(agent.init)(KEY).model, batch_of_turns(agent, batch=4)

    def told(rows: Any) -> float:
        return float(loss(model, rows, jnp.int32(0), KEY)[1][1]["loss/turn"])

    def change(row: int) -> bool:
        """Whether a model that is not undecided feels who moves at that row of the first sequence."""
        other = batch | {"obs/player": batch["obs/player"].at[0, row].set(1 - batch["obs/player"][0, row])}
        return told(batch) != told(other)

    model = eqx.tree_at(lambda m: m.turn.out.weight, model, jnp.ones((8, 1)))
    assert [change(row) for row in range(4)] == [True, True, True, False], "two steps are unrolled"
    whole = batch
    for flags in (("is_last", "is_terminal"), ("is_last",)):
        batch = whole | {key: whole[key].at[0, 1].set(True) for key in flags}
        # Where a game has ended it is nobody's turn; where it was only cut, it is known whose.
        assert [change(row) for row in range(3)] == [len(flags) == 1, len(flags) == 1, False]


@pytest.mark.parametrize("algorithm", ["muzero", "stochastic_muzero", "efficientzero"])
def test_strict_turns_cost_nothing(algorithm):
    """No parameter, and no name in a checkpoint, that a run of one player does not have; the rules give the sign."""
    one, strict, free = (jax.eval_shape(small_agent(algorithm, o).init, KEY) for o in (VECTOR, STRICT, IRREGULAR))
    names = [{keystr(path) for path, _ in tree_flatten_with_path(state)[0]} for state in (one, strict, free)]
    assert names[0] == names[1] < names[2]
    assert all(".turn." in name for name in names[2] - names[0])
    assert [state.model.turn is None for state in (one, strict, free)] == [True, True, False]
    assert one.model.gamma == -strict.model.gamma == free.model.gamma > 0


def test_an_afterstate_is_worth_what_it_is_to_the_player_who_moved():
    """By what came and the value of what was seen then: less that value where it is the other player's."""
    reward, value = jnp.array([[9.0, 0, 0, 1]]), jnp.array([[9.0, 2, 3, 0]])
    there, turned = jnp.ones((1, 4), bool), jnp.array([[False, True, False, True]])
    window = Window(value, reward, there, there, turned)
    agent = small_agent("stochastic_muzero", IRREGULAR, unrolled_value="seen", discount=0.5)
    np.testing.assert_allclose(agent.worth(window), [[-1.0, 1.5, 1.0]])
    agent = small_agent("stochastic_muzero", IRREGULAR, unrolled_value="return", discount=0.5)
    np.testing.assert_allclose(agent.worth(window), [[9.0, 2.0, 3.0]])


def test_a_run_that_did_not_learn_whose_turn_comes_goes_on_and_learns_it(caplog):
    """It was saved by a version that took turns for strict, and plays on as it did."""
    agent = small_agent("gumbel_muzero", IRREGULAR)
    state = jax.jit(agent.init)(jax.random.key(7))
    saved = {f"agent/{name}": x for name, x in flatten(state).items() if "/turn/" not in name}
    spaces = {name: base.to_json(getattr(agent, name)) for name in ("obs_space", "act_space")}
    found = agent_state(agent, Checkpoint(0, saved, spaces, Path("step-0"), ""))
    assert "without turn" in caplog.text
    same = {name: x for name, x in flatten(found).items() if "/turn/" not in name}
    assert {f"agent/{name}" for name in same} == saved.keys()
    for name, x in same.items():
        np.testing.assert_array_equal(x, saved[f"agent/{name}"])
    latent = found.model.imagine(found.model.represent({"vector": jnp.ones((2, 3))}), jnp.array([0, 1]), KEY)
    np.testing.assert_allclose(found.model.predict(latent)[1], -0.997)
    lacking = {name: x for name, x in saved.items() if not name.endswith("val/out/bias")}
    with pytest.raises(Mismatch, match=r"val/out/bias: .* not saved"):
        agent_state(agent, Checkpoint(0, lacking, spaces, Path("step-0"), ""))


def test_a_run_of_a_version_that_did_not_say_how_turns_are_taken_is_the_same_game():
    agent = small_agent("gumbel_muzero", STRICT)
    saved = {f"agent/{name}": x for name, x in flatten(jax.jit(agent.init)(KEY)).items()}
    spaces = {name: base.to_json(getattr(agent, name)) for name in ("obs_space", "act_space")}
    assert spaces["obs_space"]["player"].pop("alternating") is True
    assert agent_state(agent, Checkpoint(0, saved, spaces, Path("step-0"), "")).model.gamma == -0.997
    spaces["obs_space"]["player"]["kind"] = "vector"
    with pytest.raises(Mismatch, match="player"):
        agent_state(agent, Checkpoint(0, saved, spaces, Path("step-0"), ""))


def greedy(agent: Any, state: Any, envs: DeviceEnvs) -> dict[str, str]:
    """What is played in each order of turns."""
    policy = jax.jit(lambda *x: agent.policy(*x, "eval"))
    world, carry, moves = envs.begin(), agent.init_carry(envs.num, KEY), []
    order = np.asarray(world.state.order)
    for _ in range(MOVES):
        carry, action, _ = policy(state, carry, envs.rows(world))
        action = {"action": action["action/action"]}
        moves.append(np.asarray(action["action"]))
        world = envs.step(world, action)
    return {ORDERS[o]: "".join(map(str, made)) for o, made in zip(order, np.stack(moves, 1), strict=True)}


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", ["gumbel_muzero", "muzero", "stochastic_muzero"])
def test_every_order_of_turns_is_learned(algorithm, tmp_path):
    own = {"codes": 2} if algorithm == "stochastic_muzero" else {}
    conf = config.override(
        config.default(algorithm),
        env="device:four_moves:FourMoves",
        steps=24_000,
        envs=64,
        replay_ratio=16.0,
        n_step=4,
        discount=1.0,
        support=3,
        value_scale=1.0,
        learning_rate=2e-3,
        simulations=24,
        least_range=1.0,
        prioritized=False,
        random_moves=0.3,
        log_every=4000,
        eval_every=0,
        eval_episodes=0,
        report_every=0,
        video_every=0,
        **own,
    )
    api.run_training(conf, tmp_path, Console(quiet=True))
    loaded = api.load(tmp_path, trust=True)
    envs = DeviceEnvs(EnvSpec("device:four_moves:FourMoves"), 64, seed=0)
    assert greedy(loaded.agent, loaded.state, envs) == dict.fromkeys(ORDERS, "2222")
