"""Games of two players: an agent against an opponent, from both seats."""

from __future__ import annotations

import itertools
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np

from reverie.agent import Agent, Mode, State
from reverie.envs.device import DeviceEnvs
from reverie.envs.opponents import opponent
from reverie.run.collect.base import TALLY_KEYS, Episode, Tally
from reverie.run.counted_jit import CountedJit, decision_options
from reverie.run.stop import Stop

SEATS = ("first", "second")


class Game(NamedTuple):
    """One that was played to its end."""

    seat: int  # the agent's: 0 where it moved first
    outcome: int  # 1 where the agent earned more than nothing in all, -1 where it was less, 0 else
    length: int  # moves of both

    @classmethod
    def of(cls, episode: Episode, seat: int) -> Game:
        """The game of an episode, whose return is that of the first player (`Tally`)."""
        return cls(seat, int(np.sign(episode.episode_return)) * (1 - 2 * seat), episode.length)


class Arena:
    """Plays an agent that acts in a mode against an opponent of some name (see `envs.opponents.opponent`), N games of a
    seat at once; `options` are those of `jax.jit`.

    Raises:
      UnusableEnv: the game or the opponent will not do.
    """

    def __init__(self, envs: DeviceEnvs, agent: Agent, name: str, mode: Mode = "eval", **options: Any) -> None:
        self.envs, self.agent = envs, agent
        self._opponent = opponent(name, envs.env)
        options["compiler_options"] = decision_options()
        self.policy = CountedJit(f"arena/{envs.num}", partial(agent.policy, mode=mode), same_state=True, **options)
        self._step, self._rows = jax.jit(envs.step), jax.jit(envs.rows)

    def play(self, state: State, games: int, key: Any, stop: Stop | None = None) -> list[Game] | None:
        """`games` games, the agent beginning the first half of them (and one more, if they are odd); None if `stop` has
        a signal meanwhile. The agent's carry and the opponent's moves are drawn with `key`."""
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
        """N games with the agent in `seat`, of each env the first."""
        begin, carry_key, key = jax.random.split(key, 3)
        num, ((name, _),) = self.envs.num, self.envs.act_space.items()
        world, carry = self.envs.begin()._replace(key=begin), self.agent.init_carry(num, carry_key)
        tally, games = Tally(num), dict[int, Game]()  # by env
        for moves in itertools.count():
            if stop and stop.signal:
                return None
            rows = self._rows(world)
            seen = jax.device_get({k: rows[k] for k in TALLY_KEYS})
            tally.add(np.arange(num), seen)
            for episode in tally.take():
                games.setdefault(episode.env, Game.of(episode, seat))
            if len(games) == num:
                break
            mine = seen["obs/player"] == seat
            # The agent sees every row, or what it remembers would have holes.
            carry, chosen, _ = self.policy(state, carry, rows)
            action = np.asarray(chosen[f"action/{name}"])
            if any(not mine[env] for env in range(num) if env not in games):
                theirs = self._opponent.act(world.state, rows, jax.random.fold_in(key, moves))
                action = np.where(mine, action, np.asarray(theirs))
            world = self._step(world, {name: action})
        return [games[env] for env in range(num)]


def scores(games: list[Game]) -> dict[str, dict[str, int]]:
    """`{"first": {"wins": n, "draws": n, "losses": n}, "second": ...}`, from the agent's view by its seat."""
    names = {1: "wins", 0: "draws", -1: "losses"}
    return {
        seat: {name: sum(g.seat == i and g.outcome == outcome for g in games) for outcome, name in names.items()}
        for i, seat in enumerate(SEATS)
    }
