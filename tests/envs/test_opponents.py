"""Opponents play each other: what is known of perfect play, and of more search against less."""

from __future__ import annotations

from functools import cache
from typing import Any

import jax
import numpy as np
import pytest
from four_moves import MOVES, ORDERS, FourMoves

from reverie.envs import opponents
from reverie.envs.device import DeviceEnvs
from reverie.envs.opponents import Opponent, Perfect, TreeSearch, opponent
from reverie.envs.spec import EnvSpec, UnusableEnv

GAMES = 60


@cache
def games() -> DeviceEnvs:
    return DeviceEnvs(EnvSpec("pgx:tic_tac_toe"), GAMES, seed=0)


@cache
def player(name: str) -> Opponent:
    return opponent(name, games().env)


@cache
def compiled() -> tuple[Any, Any]:
    return jax.jit(games().rows), jax.jit(games().step)


def match(first: str, second: str) -> tuple[int, int, int]:
    """Wins, draws and losses of the first player."""
    rows_of, step = compiled()
    world, score, over = games().begin(), np.zeros(GAMES), np.zeros(GAMES, bool)
    for move in range(10):
        rows = rows_of(world)
        earned = np.where(over, 0, np.asarray(rows["reward"]))  # by the move before
        score += earned if move % 2 else -earned
        over |= np.asarray(rows["is_last"])
        if over.all():
            break
        mover = player((first, second)[move % 2])
        action = mover.act(world.state, rows, jax.random.fold_in(jax.random.key(1), move))
        legal = np.take_along_axis(np.asarray(rows["obs/legal"]), np.asarray(action)[:, None], 1)
        assert legal[~over].all()
        world = step(world, {"action": action})
    assert over.all()
    return int((score > 0).sum()), int((score == 0).sum()), int((score < 0).sum())


def test_all_of_tic_tac_toe_is_known() -> None:
    perfect = player("perfect")
    assert isinstance(perfect, Perfect)
    assert perfect.positions == 4520, "of 5478 positions, 958 are ends"
    assert perfect.value == 0


def test_perfect_players_draw() -> None:
    assert match("perfect", "perfect") == (0, GAMES, 0)


def test_a_perfect_player_never_loses() -> None:
    for other in ("random", "mcts:100"):
        assert match("perfect", other)[2] == 0
        assert match(other, "perfect")[0] == 0
    assert match("perfect", "random")[0] > 0.9 * GAMES, "nor does it give wins away"


def test_a_search_beats_random_moves_from_both_seats() -> None:
    wins, _, losses = match("mcts:100", "random")
    assert wins >= 0.85 * GAMES
    assert losses <= 0.05 * GAMES
    wins, _, losses = match("random", "mcts:100")
    assert losses >= 0.65 * GAMES
    assert wins <= 0.15 * GAMES


@pytest.mark.slow
def test_more_search_draws_more_against_perfect_play() -> None:
    assert match("perfect", "mcts:100")[1] > match("perfect", "mcts:5")[1] + 0.2 * GAMES


def test_a_search_sees_a_win_and_a_threat() -> None:
    env, search = games().env, player("mcts:100")
    for moves, best in (((0, 3, 1, 4), 2), ((0, 4, 1), 2)):  # three in a row; and where the other would have it
        state = env.init(jax.random.key(0))
        for move in moves:
            state = env.step(state, {"action": np.int32(move)}, jax.random.key(0))
        many = jax.tree.map(lambda x: np.repeat(np.asarray(x)[None], GAMES, 0), state)
        chosen = np.asarray(search.act(many, {}, jax.random.key(2)))
        assert (chosen == best).mean() > 0.95, moves


@pytest.mark.parametrize(
    ("game", "message"),
    [("pgx:kuhn_poker", "chance"), ("pgx:connect_four", "positions"), ("pgx:2048", "game of two")],
)
def test_what_cannot_be_enumerated_is_told(game: str, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(opponents, "MOST", 300)
    with pytest.raises(UnusableEnv, match=message):
        opponent("perfect", DeviceEnvs(EnvSpec(game), 1, seed=0).env)


def test_opponents_know_whose_move_comes_next() -> None:
    """In a game in which a player may move several times in a row, in every order of turns: move 2 is always best."""
    for order, lead in (("0010", 4), ("0111", -4)):
        assert Perfect(FourMoves(order)).value == lead, "of the player who begins, if both play well"
    envs = DeviceEnvs(EnvSpec("device:four_moves:FourMoves"), 64, seed=0)
    world, rows_of, step, search = envs.begin(), jax.jit(envs.rows), jax.jit(envs.step), TreeSearch(envs.env, 100)
    assert len(set(np.asarray(world.state.order).tolist())) == len(ORDERS)
    for move in range(MOVES):
        rows = rows_of(world)
        chosen = np.asarray(search.act(world.state, rows, jax.random.key(move)))
        assert (chosen == 2).all(), move
        world = step(world, {"action": chosen})
