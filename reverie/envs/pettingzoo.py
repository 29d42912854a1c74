"""Games of PettingZoo (Terry et al., 2021) for two who take turns: an AEC env as an `Env` of the host.

It names the players by words; here 0 is always the one who moves first. What a game of one's own needs is in the
docstring of `Game`.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from typing import Any, cast

import gymnasium
import numpy as np
import pettingzoo
from gymnasium import spaces
from pettingzoo import AECEnv, aec_registry
from pettingzoo.env_registry.exceptions import FailedToImport

from reverie.envs.base import Arrays, Space, Spaces, Step
from reverie.envs.masks import LEAF, MASK, apart, legal_of, mask_width, without_mask
from reverie.envs.options import NoOptions as Options
from reverie.envs.options import own_name
from reverie.envs.spaces import action_spaces, actor, observation_spaces, observer
from reverie.envs.values import Malformed

# Games whose rules give every player one move at a time; where one cannot move, passing is a move.
ALTERNATING = frozenset({"chess_v6", "connect_four_v3", "go_v5", "tictactoe_v3"})
CLASSIC = "classic/"  # how its registry calls the games of boards and cards
ONLY = "observation"  # the key of what is seen beside a mask


class Game:
    """One game.

    Observations are those of the player to move: `board` (`planes` where the space holds 0 and 1 alone, whole numbers;
    the keys of a Dict keep their names), `legal` and `player`. The reward of a row belongs to the player who moved
    before it, and what one wins the other loses. A copy (`copy.deepcopy`) goes on from where the game is.

    Args:
      env: an AEC env of two agents with the same spaces. Legal moves are told by `action_mask`, in a Dict observation
        or in `infos`; without it every move is legal.
      alternating: the players move in strict turns.

    Raises:
      ValueError: it is no such game.
    """

    def __init__(self, env: Any, alternating: bool = False) -> None:
        if not isinstance(env, AECEnv):
            raise ValueError(
                f"a {type(env).__name__}, whose agents act at once; expected an AECEnv, in which two take turns"
            )
        agents = list(env.possible_agents)
        if len(agents) != 2:
            raise ValueError(f"{len(agents)} agents take part, expected 2: try pettingzoo:connect_four_v3")
        (space, action), other = ((env.observation_space(a), env.action_space(a)) for a in agents)
        if (space, action) != other:
            raise ValueError(f"the agents have different spaces, expected the same: {space}, {action} and {other}")
        self.env, self._agents, self._beginner = env, agents, agents[0]
        self.act_space: Spaces = action_spaces(action)
        width = mask_width(self.act_space)
        self._masks = LEAF if isinstance(space, spaces.Dict) and MASK in space.spaces else f"infos[{MASK!r}]"
        seen = without_mask(space) if self._masks == LEAF else space
        self._alone = isinstance(seen, spaces.Dict) and list(seen.spaces) == [ONLY]
        board, self._observe = _board(cast("spaces.Dict", seen)[ONLY] if self._alone else seen)
        self.obs_space: Spaces = {
            **board,
            "legal": Space("legal", (width,)),
            "player": Space("player", (), alternating=alternating),
        }
        self._native = actor(action)
        self._find_immutables()

    def reset(self, seed: int | None = None) -> Step:
        self.env.reset(seed=seed)
        self._beginner = self.env.agent_selection
        self._find_immutables()
        return self._shown(0.0, first=True)

    def step(self, action: Arrays) -> Step:
        mover = self.env.agent_selection
        self.env.step(self._native(action))
        rewards_by_agent = {agent: float(self.env.rewards[agent]) for agent in self._agents}
        if abs(sum(rewards_by_agent.values())) > 1e-6 * max(map(abs, rewards_by_agent.values())):
            raise Malformed(f"rewards are {rewards_by_agent}, expected that what one wins the other loses")
        return self._shown(rewards_by_agent[mover], first=False)

    def render(self) -> np.ndarray | None:
        frame = self.env.render() if getattr(self.env, "render_mode", None) == "rgb_array" else None
        self._find_immutables()
        return np.ascontiguousarray(frame) if isinstance(frame, np.ndarray) and frame.ndim == 3 else None

    def close(self) -> None:
        self.env.close()

    def __deepcopy__(self, memo: dict[int, Any]) -> Game:
        memo |= {id(x): x for x in self._immutables}
        duplicate = copy.copy(self)
        duplicate.env = _copy(self.env, memo)
        return duplicate

    def _find_immutables(self) -> None:
        """Anew after a picture may have been made: tic-tac-toe does at every reset, connect four when rendered."""
        agent, env = self._agents[0], self.env
        spaces_of = [env.observation_space(agent), env.action_space(agent)]
        self._immutables = [*spaces_of, *_immutables(vars(env.unwrapped))]

    def _shown(self, reward: float, first: bool) -> Step:
        env = self.env
        mover = env.agent_selection
        ended = any(env.terminations.values())
        last = ended or any(env.truncations.values())
        raw, mask = env.observe(mover), env.infos.get(mover, {}).get(MASK)
        if self._masks == LEAF:
            if not isinstance(raw, Mapping):
                raise Malformed(f"observe() gave a {type(raw).__name__}, expected a dict with {ONLY!r} and {MASK!r}")
            raw, mask = apart(raw)
        elif mask is None:
            mask = np.ones(self.obs_space["legal"].shape, bool)
        obs = self._observe(raw.get(ONLY) if self._alone else raw)
        obs["legal"] = legal_of(None if last else mask, self.act_space, self._masks, last)
        obs["player"] = np.array(mover != self._beginner, np.int8)
        return Step(obs, reward, first, last, ended)


def _board(space: gymnasium.Space) -> tuple[Spaces, Callable[[Any], Arrays]]:
    """The spaces of an observation without its mask, and the function from one of PettingZoo's to arrays of them."""
    if _of_flags(space):
        return {"board": Space("planes", tuple(space.shape or ()))}, lambda raw: {"board": _flags(raw)}
    named, observe = observation_spaces(space), observer(space)
    if isinstance(space, spaces.Dict | spaces.Tuple):
        return named, observe
    (name,) = named
    return {"board": named[name]}, lambda raw: {"board": observe(raw)[name]}


def _flags(raw: Any) -> np.ndarray:
    array = np.asarray(raw)
    return array.astype(np.uint8) if array.dtype.kind in "biu" else array


def _of_flags(space: gymnasium.Space) -> bool:
    if not isinstance(space, spaces.Box) or np.dtype(space.dtype).kind not in "biu":
        return False
    return bool((space.low == 0).all() and (space.high == 1).all())


def _immutables(attributes: Any) -> Iterator[Any]:
    """Objects that no move changes: spaces, pictures and fonts. Copying them would cost most of the time, or fail."""
    for value in attributes.values() if isinstance(attributes, dict) else attributes:
        if isinstance(value, gymnasium.Space) or type(value).__module__.partition(".")[0] == "pygame":
            yield value
        elif isinstance(value, dict | list | tuple):
            yield from _immutables(value)


def _copy(env: AECEnv, memo: dict[int, Any]) -> AECEnv:
    """A copy of an env and of the wrappers around it. `copy.deepcopy` would build an `EzPickle` anew, as it was at
    first."""
    new = object.__new__(type(env))
    memo[id(env)] = new
    for name, value in vars(env).items():
        vars(new)[name] = _copy(value, memo) if isinstance(value, AECEnv) else copy.deepcopy(value, memo)
    return new


def make(name: str, options: Options) -> Game:
    """The env of an id such as `pettingzoo:connect_four_v3`; raises ValueError if there is none, or not for two."""
    known = {key.removeprefix(CLASSIC).replace("-v", "_v"): key for key in aec_registry if key.startswith(CLASSIC)}
    name = own_name(name, "pettingzoo:", known, kind="game")
    try:
        env = pettingzoo.make("aec", known[name], render_mode="rgb_array")
    except FailedToImport as error:
        raise ValueError(f'{error.__cause__}: type `pip install "reverie[pettingzoo]"`') from error
    return Game(env, name in ALTERNATING)
