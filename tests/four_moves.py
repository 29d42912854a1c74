"""A game of two in which turns may come in any order.

Four moves are made, each of 0, 1 or 2. A move counts for the player who makes it, and only the last one is paid: what
the player who makes it leads by. Whatever the order of turns, move 2 is always best. No reward tells so before the end,
so that a search that mistakes whose turn comes next plays 0.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from reverie.envs.base import Space, Spaces

ORDERS = ("0000", "0001", "0010", "0011", "0100", "0101", "0110", "0111")
TURNS = np.array([[int(player) for player in order] for order in ORDERS], np.int8)
SIDES = (1 - 2 * TURNS).astype(np.float32)  # 1 where the first player moves
MOVES = TURNS.shape[1]


class Position(NamedTuple):
    order: Any  # int32, which of the orders
    made: Any  # int32, moves so far
    lead: Any  # float32, of player 0


class FourMoves:
    """The game in one of `orders`, drawn for every episode.

    Observation: `position`, float32 [13]: how many moves are made, the order, and what the player to move leads by.
    """

    players = 2
    act_space: Spaces = {"action": Space("discrete", (), classes=(3,))}  # noqa: RUF012
    obs_space: Spaces = {  # noqa: RUF012
        "position": Space("vector", (MOVES + len(ORDERS) + 1,)),
        "legal": Space("legal", (3,)),
        "player": Space("player", ()),
    }

    def __init__(self, orders: str = ",".join(ORDERS)) -> None:
        self._orders = jnp.array([ORDERS.index(order) for order in orders.split(",")], jnp.int32)

    def init(self, key: Any) -> Position:
        return Position(jax.random.choice(key, self._orders), jnp.int32(0), jnp.float32(0))

    def step(self, state: Position, action: Any, key: Any) -> Position:
        side = jnp.asarray(SIDES)[state.order, state.made]
        return Position(state.order, state.made + 1, state.lead + side * action["action"])

    def row(self, state: Position) -> dict[str, Any]:
        turn = jnp.minimum(state.made, MOVES - 1)
        sides, over = jnp.asarray(SIDES)[state.order], state.made == MOVES
        hot = (jax.nn.one_hot(state.made, MOVES), jax.nn.one_hot(state.order, len(ORDERS)))
        return {
            "obs/position": jnp.concatenate([*hot, (sides[turn] * state.lead)[None]]),
            "obs/legal": jnp.ones(3, bool),
            "obs/player": jnp.asarray(TURNS)[state.order, turn],
            "reward": jnp.where(over, sides[-1] * state.lead, 0.0),
            "is_first": state.made == 0,
            "is_last": over,
            "is_terminal": over,
        }


class Alternating(FourMoves):
    """Only the order 0101, and the game says so."""

    obs_space: Spaces = FourMoves.obs_space | {"player": Space("player", (), alternating=True)}

    def __init__(self) -> None:
        super().__init__("0101")


class Claims(FourMoves):
    """Says that the players take strict turns, and they do not."""

    obs_space: Spaces = Alternating.obs_space
