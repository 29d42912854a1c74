"""Games of two players: an agent against an opponent, from both seats."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import numpy as np

from reverie.agent import Agent, Mode, State
from reverie.envs.device import DeviceEnvs
from reverie.envs.opponents import opponent
from reverie.run.counted_jit import CountedJit
from reverie.run.stop import Stop

SEATS = ("first", "second")


class Game(NamedTuple):
    """One that was played to its end.

    Attributes:
      seat: the agent's: 0 where it moved first.
      outcome: 1 where the agent earned more than nothing in all, -1 where it was less, 0 else.
      length: moves of both.
    """

    seat: int
    outcome: int
    length: int


class Arena:
    """Plays an agent against an opponent, all games of a seat at once.

    Args:
      envs: of a game of two players; N is how many are played at once.
      name: of the opponent, see `envs.opponents.opponent`.
      mode: in which the agent acts.
      options: of `jax.jit`.

    Raises:
      UnusableEnv: the game or the opponent will not do.
    """

    def __init__(self, envs: DeviceEnvs, agent: Agent, name: str, mode: Mode = "eval", **options: Any) -> None:
        self.envs, self.agent, self.name = envs, agent, name
        self._opponent = opponent(name, envs.env)
        self.policy = CountedJit(
            f"arena/{envs.num}", lambda state, carry, rows: agent.policy(state, carry, rows, mode), **options
        )
        self._step, self._rows = jax.jit(self._advance), jax.jit(envs.rows)

    def play(self, state: State, games: int, key: Any, stop: Stop | None = None) -> list[Game] | None:
        """`games` games, the agent beginning the first half of them (and one more, if they are odd).

        Args:
          key: of the agent's carry and of the opponent's moves.
          stop: gives up when it has a signal: None.
        """
        played: list[Game] = []
        for seat, share in enumerate((games - games // 2, games // 2)):
            while (left := share - sum(game.seat == seat for game in played)) > 0:
                key, now = jax.random.split(key)
                more = self._round(state, seat, now, stop)
                if more is None:
                    return None
                played += more[:left]
        return played

    def _round(self, state: State, seat: int, key: Any, stop: Stop | None) -> list[Game] | None:
        """N games with the agent in `seat`.

        row        0       1       2      ...     the last
        moves      first   second  first
        reward             first's second's       of who moved on the row before
        """
        begin, carry_key, key = jax.random.split(key, 3)
        num, ((name, _),) = self.envs.num, self.envs.act_space.items()
        world, carry = self.envs.begin()._replace(key=begin), self.agent.init_carry(num, carry_key)
        score, lengths = np.zeros(num), np.zeros(num, int)
        over, mine = np.zeros(num, bool), np.zeros(num, bool)
        for moves in range(10**9):
            if stop and stop.signal:
                return None
            rows = self._rows(world)
            seen = jax.device_get({k: rows[k] for k in ("reward", "is_last", "obs/player")})
            if moves:
                score += np.where(over, 0.0, np.where(mine, 1, -1) * seen["reward"])
                lengths += ~over
            over |= seen["is_last"]
            if over.all():
                break
            mine = seen["obs/player"] == seat
            # The agent sees every row, or what it remembers would have holes.
            carry, action, _ = self.policy(state, carry, rows)
            action = np.asarray({k.removeprefix("action/"): x for k, x in action.items()}[name])
            if (~mine & ~over).any():
                theirs = self._opponent.act(world.state, rows, jax.random.fold_in(key, moves))
                action = np.where(mine, action, np.asarray(theirs))
            world = self._step(world, {name: action})
        return [Game(seat, int(np.sign(s)), int(n)) for s, n in zip(score, lengths, strict=True)]

    def _advance(self, world: Any, action: dict[str, Any]) -> Any:
        return self.envs.step(world, action)


def scores(games: list[Game]) -> dict[str, dict[str, int]]:
    """`{"first": {"wins": n, "draws": n, "losses": n}, "second": ...}`, from the agent's view by its seat."""
    names = {1: "wins", 0: "draws", -1: "losses"}
    return {
        seat: {name: sum(g.seat == i and g.outcome == outcome for g in games) for outcome, name in names.items()}
        for i, seat in enumerate(SEATS)
    }
