"""Device envs: the rules of the games, our toys beside those of the host, and what is refused."""

from __future__ import annotations

import importlib.util
import json
from typing import Any

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reverie import algos
from reverie.algos.dreamer import v3 as dreamer_v3
from reverie.envs import base, toy
from reverie.envs.base import DeviceEnv, Space
from reverie.envs.build import device_env, make_env
from reverie.envs.check import check_env
from reverie.envs.device import DeviceEnvs, advance
from reverie.envs.device_toy import CartPole, PoleState
from reverie.envs.device_wrappers import HostView
from reverie.envs.spec import EnvSpec, UnusableEnv
from reverie.envs.values import Gate
from reverie.envs.workers import Workers

GYMNAX = pytest.mark.skipif(
    importlib.util.find_spec("six") is None, reason="gymnax 0.0.9 needs six, which it does not ask for"
)


def play(view: Any, *actions: int) -> list[base.Step]:
    """The steps of one episode from its reset on, each let through the gate."""
    gate = Gate(view.obs_space)
    steps = [view.reset(0), *(view.step({"action": np.array(a, np.int32)}) for a in actions)]
    for step in steps:
        gate.check(step)
    return steps


def test_a_won_game_of_tic_tac_toe() -> None:
    *_, before, last = play(make_env("pgx:tic_tac_toe"), 0, 3, 1, 4, 2)
    steps = play(make_env("pgx:tic_tac_toe"), 0, 3, 1, 4, 2)
    assert [int(s.obs["player"]) for s in steps[:5]] == [0, 1, 0, 1, 0], "0 is who moves first, whatever pgx drew"
    assert [s.is_first for s in steps] == [True] + 5 * [False]
    assert [s.reward for s in steps] == [0, 0, 0, 0, 0, 1], "of the player who acted"
    assert (before.is_last, last.is_last, last.is_terminal) == (False, True, True)
    assert np.flatnonzero(~before.obs["legal"]).tolist() == [0, 1, 3, 4]
    assert np.flatnonzero(before.obs["board"][..., 0]).tolist() == [0, 1], "planes of the player to move"
    assert np.flatnonzero(before.obs["board"][..., 1]).tolist() == [3, 4], "and of the other"


def test_an_illegal_move_ends_the_game_and_costs_the_player_who_made_it() -> None:
    last = play(make_env("pgx:connect_four"), *[3] * 7)[-1]
    assert (last.reward, last.is_last, last.is_terminal) == (-1, True, True)


def test_2048_is_played_alone_and_by_chance() -> None:
    env = make_env("pgx:2048")
    assert env.obs_space == {"board": Space("planes", (4, 4, 31)), "legal": Space("legal", (4,))}
    boards = {env.reset(seed).obs["board"].tobytes() for seed in range(8)}
    assert len(boards) > 4
    game = device_env("pgx:2048")
    assert game is not None
    state = game.init(jax.random.key(0))
    (move, *_) = np.flatnonzero(game.row(state)["obs/legal"])
    after = jax.jit(jax.vmap(lambda key: game.row(game.step(state, {"action": jnp.int32(move)}, key))["obs/board"]))
    assert len(np.unique(after(jax.random.split(jax.random.key(1), 32)), axis=0)) > 8, "the new tile takes the key"


def test_the_step_after_the_last_one_begins_the_next_episode() -> None:
    env = device_env(EnvSpec("device:Catch", kwargs={"cells": 4}))
    assert env is not None
    state, firsts, lasts = env.init(jax.random.key(0)), [], []
    for t in range(9):
        row = env.row(state)
        firsts.append(bool(row["is_first"]))
        lasts.append(bool(row["is_last"]))
        state = advance(env, state, {"action": jnp.int32(1)}, jax.random.key(t))
    assert firsts == [True, False, False, False] * 2 + [True]
    assert lasts == [False, False, False, True] * 2 + [False]


def test_our_cart_pole_is_gymnasiums() -> None:
    ours, theirs = CartPole(length=30), gymnasium.make("CartPole-v1", max_episode_steps=30).unwrapped
    rng, ends = np.random.default_rng(0), 0
    for episode in range(12):
        seen, _ = theirs.reset(seed=episode)
        state = PoleState(jnp.asarray(seen), jnp.int32(0))
        for t in range(1, 31):
            action = int(rng.integers(2)) if episode % 3 else int(seen[2] > 0)  # the last kind holds out
            seen, reward, terminated, *_ = theirs.step(action)
            state = ours.step(state, {"action": jnp.int32(action)}, jax.random.key(0))
            row = ours.row(state)
            np.testing.assert_allclose(row["obs/obs"], seen, rtol=1e-4, atol=1e-5)
            assert (row["reward"], row["is_terminal"]) == (reward, terminated)
            assert row["is_last"] == (terminated or t == 30)
            if terminated:
                ends += 1
                break
    assert 0 < ends < 12, "both kinds of end were met"


def test_our_catch_is_that_of_the_host() -> None:
    ours, theirs = make_env("device:Catch"), toy.Catch()
    for seed in range(4):
        step, pixels = ours.reset(seed), theirs.reset()[0]
        theirs._ball = [0, int(step.obs["cells"][0, :, 1].argmax())]
        while not step.is_last:
            action = (seed + int(step.obs["cells"][..., 1].any(1).argmax())) % 3
            step = ours.step({"action": np.array(action, np.int32)})
            pixels, reward, over, _, _ = theirs.step(action)
            small = pixels[::8, ::8]
            np.testing.assert_array_equal(step.obs["cells"][..., 1] == 1, small[..., 0] == 255)
            shown = (step.obs["cells"][..., 0] == 1) & (small[..., 0] != 255)
            np.testing.assert_array_equal(shown, small[..., 0] == 80)
            assert (step.reward, step.is_last) == (reward, over)


def test_a_time_limit_truncates() -> None:
    steps = play(make_env(EnvSpec("device:CartPole", time_limit=3)), 0, 1, 0)
    assert [(s.is_last, s.is_terminal) for s in steps] == [(False, False)] * 3 + [(True, False)]


@GYMNAX
def test_the_clock_of_gymnax_is_a_truncation() -> None:
    view = make_env("gymnax:Pendulum-v1")
    assert view.act_space["action"].kind == "vector"
    step, length = view.reset(0), 0
    while not step.is_last:
        step, length = view.step({"action": np.zeros(1, np.float32)}), length + 1
    assert (length, step.is_terminal) == (200, False)
    steps = play(make_env("gymnax:CartPole-v1"), *[0] * 12)
    assert next((s.is_terminal, s.reward) for s in steps if s.is_last) == (True, 1)
    with pytest.raises(UnusableEnv, match="gymnax:CartPole-v1"):
        make_env("gymnax:CartPol-v1")


@GYMNAX
def test_the_actions_of_gymnax_are_stretched_to_its_bounds() -> None:
    from reverie.envs import gymnax

    task = gymnax.make("gymnax:Pendulum-v1", gymnax.Options()).env
    state = task.init(jax.random.key(0))
    full = task.step(state, {"action": jnp.ones(1)}, jax.random.key(0))
    assert full.inner.last_u == 2.0


@pytest.mark.skipif(importlib.util.find_spec("six") is not None, reason="six is here")
def test_what_gymnax_lacks_is_named() -> None:
    with pytest.raises(UnusableEnv, match="pip install six"):
        make_env("gymnax:CartPole-v1")


def test_the_same_seed_is_the_same_game_on_the_device_and_through_workers() -> None:
    with Workers(EnvSpec("device:Catch"), 1, seed=3, mode="inline") as workers:
        assert workers.obs_space == DeviceEnvs(EnvSpec("device:Catch"), 1, seed=3).obs_space
        columns = []
        for _ in range(2):
            workers.send(np.array([0]), {"action": np.ones(1, np.int32)})
            rows, cut = workers.recv(np.array([0]))
            columns.append(int(rows["obs/cells"][0].argmax()))
            assert not cut.any()
    assert not any(f.severity == "error" for f in check_env("pgx:tic_tac_toe", steps=30))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("pgx:tictactoe", "pgx:tic_tac_toe"),
        ("pgx:sparrow_mahjong", "3 players"),
        ("device:reverie.envs.toy:Catch", "DeviceEnv"),
        ("device:Cart", "CartPole"),
        ("device:test_device:Liar", "obs/x: float32 \\[2\\], expected float32 \\[3\\]"),
        ("device:test_device:Silent", "legal.*player"),
        ("device:test_device:Growing", "step changes state"),
    ],
)
def test_an_env_that_cannot_be_used_says_why(name: str, message: str) -> None:
    with pytest.raises(UnusableEnv, match=message):
        make_env(name)


def test_wrappers_of_the_host_are_refused_with_their_flag() -> None:
    for flags, flag in (({"action_repeat": 2}, "--action-repeat"), ({"image_size": 8}, "--image-size")):
        with pytest.raises(UnusableEnv, match=flag):
            make_env(EnvSpec("device:CartPole", **flags))


class Liar(CartPole):
    obs_space = {"x": Space("vector", (3,))}  # noqa: RUF012

    def row(self, state: Any) -> dict[str, Any]:
        row = super().row(state)
        row["obs/x"] = row.pop("obs/obs")[:2]
        return row


class Silent(CartPole):
    players = 2


class Growing(CartPole):
    def step(self, state: Any, action: Any, key: Any) -> Any:
        return state._replace(body=jnp.zeros(5))


def test_rules_and_planes_are_spaces_like_others() -> None:
    env = make_env("pgx:connect_four")
    assert isinstance(env, HostView)
    assert isinstance(env.device, DeviceEnv)
    assert base.from_json(base.to_json(env.obs_space)) == env.obs_space
    assert [str(s.dtype) for s in env.obs_space.values()] == ["uint8", "bool", "int8"]
    assert [s.is_picture for s in env.obs_space.values()] == [True, False, False]
    gate = Gate(env.obs_space)
    step = env.reset(0)
    step.obs["board"][0, 0, 0] = 2
    step.obs["player"][...] = 2
    step.obs["legal"][:] = False
    faults = " ".join(gate.problems(step))
    assert "obs/board: element 0 is 2" in faults
    assert "obs/player: element 0 is 2" in faults
    assert "no action is legal" in faults


@pytest.mark.parametrize(
    "name", ["tic_tac_toe", *(pytest.param(x, marks=pytest.mark.slow) for x in ("kuhn_poker", "othello", "hex"))]
)
def test_games_with_strict_turns_say_so(name: str) -> None:
    """Every move of random games gives the turn away; and the flag survives the way to a worker and back."""
    envs = DeviceEnvs(EnvSpec(f"pgx:{name}"), 8, seed=0)
    assert base.from_json(json.loads(json.dumps(base.to_json(envs.obs_space))))["player"].alternating
    turned = turns(envs, 80)
    assert turned.all()
    assert len(turned) > 100


@pytest.mark.slow
def test_in_backgammon_the_same_player_moves_again() -> None:
    envs = DeviceEnvs(EnvSpec("pgx:backgammon"), 8, seed=0)
    assert not envs.obs_space["player"].alternating
    assert 0.3 < turns(envs, 80).mean() < 0.6


def turns(envs: DeviceEnvs, steps: int) -> Any:
    """Of all random moves that did not end a game: whether the other player moved next."""

    def move(world: Any, key: Any) -> Any:
        rows = envs.rows(world)
        action = jax.random.categorical(key, jnp.where(rows["obs/legal"], 0.0, -jnp.inf)).astype(jnp.int32)
        return envs.step(world, {"action": action}), rows

    _, rows = jax.jit(lambda world, keys: jax.lax.scan(move, world, keys))(
        envs.begin(), jax.random.split(jax.random.key(1), steps)
    )
    going = ~np.asarray(rows["is_last"])
    return (np.diff(np.asarray(rows["obs/player"]), axis=0) != 0)[going[:-1] & going[1:]]


def test_a_dreamer_refuses_a_game_of_two_and_takes_one_player() -> None:
    conf = dreamer_v3.Config()
    two, one = make_env("pgx:tic_tac_toe"), make_env("pgx:2048")
    with pytest.raises(algos.Unsuitable, match="two players"):
        dreamer_v3.make_agent(conf, two.obs_space, two.act_space, precision="float32")
    agent = dreamer_v3.make_agent(conf, one.obs_space, one.act_space, precision="float32")
    model = jax.eval_shape(agent.init, jax.random.key(0)).model
    assert model.enc.mlp.linears[0].weight.shape[0] == 4 * 4 * 31
    assert set(model.dec.heads) == {"board"}, "rules are neither seen nor decoded"
