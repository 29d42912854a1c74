"""Games of pgx (Koyama et al., 2023): pure functions, for one player or for two who take turns.

pgx names the players by a number drawn at the beginning; here 0 is always the one who moves first.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import pgx

from reverie.envs.base import Space, Spaces
from reverie.envs.options import NoOptions as Options
from reverie.envs.options import own_name

# Games of two whose rules give every player one move at a time; where one cannot move, passing is a move. In the others
# (backgammon, Leduc hold'em) the same player may move again.
ALTERNATING = frozenset(
    {"animal_shogi", "chess", "connect_four", "gardner_chess", "go_19x19", "go_9x9", "hex", "kuhn_poker", "othello"}
    | {"shogi", "tic_tac_toe"}
)


class State(NamedTuple):
    """A position, and how it was reached."""

    game: Any  # pgx's own state
    beginner: Any  # int32, pgx's number of the player who moved first
    reward: Any  # float32, of the player who moved last
    is_first: Any  # bool


class Game:
    """One game of pgx as a `DeviceEnv`.

    Observations: `board`, bool features as `planes` and all others as a `vector`, from the view of the player to move;
    `legal`; and with two players `player`. An action that is not legal ends the game and costs 1.
    """

    def __init__(self, game: pgx.Env) -> None:
        state = jax.eval_shape(game.init, jax.random.key(0))
        board, actions = state.observation, state.legal_action_mask.shape
        self.players: int = game.num_players
        self.obs_space: Spaces = {
            "board": Space("planes" if board.dtype == bool else "vector", board.shape),
            "legal": Space("legal", actions),
        }
        if self.players == 2:
            self.obs_space["player"] = Space("player", (), alternating=game.id in ALTERNATING)
        self.act_space: Spaces = {"action": Space("discrete", (), classes=actions)}
        self._game = game

    def init(self, key: Any) -> State:
        game = self._game.init(key)
        return State(game, game.current_player, jnp.float32(0), jnp.bool_(True))

    def step(self, state: State, action: Any, key: Any) -> State:
        mover = state.game.current_player
        game = self._game.step(state.game, action["action"], key)
        return State(game, state.beginner, game.rewards[mover].astype(jnp.float32), jnp.bool_(False))

    def row(self, state: State) -> dict[str, Any]:
        game = state.game
        row = {
            "obs/board": game.observation.astype(self.obs_space["board"].dtype),
            "obs/legal": game.legal_action_mask,
            "reward": state.reward,
            "is_first": state.is_first,
            "is_last": game.terminated | game.truncated,
            "is_terminal": game.terminated,
        }
        if self.players == 2:
            row["obs/player"] = (game.current_player != state.beginner).astype(jnp.int8)
        return row


def make(name: str, options: Options) -> Game:
    """The env of an id such as `pgx:connect_four`; raises ValueError if there is none, or more than two play it."""
    game = pgx.make(own_name(name, "pgx:", pgx.available_envs()))
    if game.num_players > 2:
        raise ValueError(f"{game.num_players} players take part, expected 1 or 2: try pgx:connect_four")
    return Game(game)
