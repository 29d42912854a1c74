"""Games of two on the host against a player that learns nothing, who takes one of the seats.

The players are those of `envs/opponents.py`, for envs that are objects: a move is tried on a copy (`copy.deepcopy`).
Each has `move(env, step, rng)`: a legal move in the game that is at `step`; it leaves `env` as it is.
"""

from __future__ import annotations

import copy
import re

import numpy as np

from reverie.envs.base import Arrays, Env, Step
from reverie.envs.code import UnusableEnv
from reverie.envs.wrappers import Wrapper

MOST = 30_000  # positions of a game that `perfect` still enumerates
DEEPEST = 300  # moves of such a game
EXPLORATION = 2**0.5  # c of UCB1 (Auer et al., 2002), for values that are mapped to [0, 1]
LONGEST = 1000  # moves after which a random game counts as a draw


def check_name(name: str) -> None:
    """Raises UnusableEnv unless there is an opponent of this name: `random`, `perfect` or `mcts:N`."""
    if not re.fullmatch(r"random|perfect|mcts:[1-9][0-9]*", name):
        raise UnusableEnv(f"no opponent {name!r}, expected random, perfect or mcts:N (mcts:200)")


class OpponentWrapper(Wrapper):
    """A game of two in which an opponent has the other seat. All rows are shown, and where the opponent is to move, the
    action that is given has no effect: its own move is made.

    Args:
      seat: of the agent; 0 moves first.

    Raises:
      UnusableEnv: it is no game of two, or the opponent cannot play it.
    """

    def __init__(self, env: Env, name: str, seat: int) -> None:
        super().__init__(env)
        if not {"legal", "player"} <= env.obs_space.keys():
            raise UnusableEnv(f"an opponent ({name}) needs a game of two players, such as pettingzoo:connect_four_v3")
        self._opponent, self._seat = opponent(name, env), seat
        ((self._action, self._space),) = env.act_space.items()
        self._rng = np.random.default_rng()

    def reset(self, seed: int | None = None) -> Step:
        self._rng = np.random.default_rng(seed)
        self._now = self.env.reset(seed)
        return self._now

    def step(self, action: Arrays) -> Step:
        if self._now.obs["player"] != self._seat:
            move = self._opponent.move(self.env, self._now, self._rng)
            action = {self._action: np.array(move, self._space.dtype)}
        self._now = self.env.step(action)
        return self._now


def opponent(name: str, env: Env) -> Opponent:
    """The opponent of a name: `random`, `perfect` or `mcts:N`, N rollouts a move. `env` may be reset for it.

    Raises:
      UnusableEnv: there is none of this name, or the game is too large or too random for it.
    """
    check_name(name)
    if name == "random":
        return Random()
    _check_copies(env, name)
    return Perfect(env) if name == "perfect" else TreeSearch(int(name.removeprefix("mcts:")))


def after(env: Env, move: int) -> tuple[Env, Step]:
    """A copy of a game in which a move was made, and what it shows."""
    env = copy.deepcopy(env)
    return env, made(env, move)


def made(env: Env, move: int) -> Step:
    """A move."""
    ((name, space),) = env.act_space.items()
    return env.step({name: np.array(move, space.dtype)})


def _check_copies(env: Env, name: str) -> None:
    """Raises UnusableEnv unless a copy goes on as the game itself does."""
    step, rng = env.reset(0), np.random.default_rng(0)
    for _ in range(8):
        if step.is_last:
            return
        move = any_of(step.obs["legal"], rng)
        try:
            _, foreseen = after(env, move)
        except Exception as error:  # the border of the user's code
            raise UnusableEnv(f"--opponent {name} tries moves on copies, and copy.deepcopy(game): {error}") from error
        step = made(env, move)
        if (_code(foreseen), foreseen.reward, foreseen.is_last) != (_code(step), step.reward, step.is_last):
            raise UnusableEnv(
                f"--opponent {name} tries moves on copies, and a copy.deepcopy() of this game goes on differently (an "
                "EzPickle is built anew; or chance decides): give it a __deepcopy__, or play --opponent random"
            )


class Random:
    """Any legal move, all equally likely."""

    def move(self, env: Env, step: Step, rng: np.random.Generator) -> int:
        return any_of(step.obs["legal"], rng)


def any_of(may_act: np.ndarray, rng: np.random.Generator) -> int:
    """One of the allowed moves, bool [A]."""
    return int(rng.choice(np.flatnonzero(may_act)))


class Node:
    """A position in the tree of a search."""

    def __init__(self, env: Env, step: Step) -> None:
        self.env, self.step = env, step
        self.sign = 1 - 2 * int(step.obs["player"])  # 1 where the player who moved first is to move
        self.children: dict[int, Node] = {}
        # Of its moves, [A]: how often each was tried, and what that earned the player who moves here, in all.
        self.visits, self.total = np.zeros((2, len(step.obs["legal"])))

    def choose(self, rng: np.random.Generator) -> int:
        """The move of the highest bound of UCB1, an untried one before all others."""
        has_visits = np.maximum(self.visits, 1)
        bound = (self.total / has_visits + 1) / 2 + EXPLORATION * np.sqrt(
            np.log(max(self.visits.sum(), 1)) / has_visits
        )
        bound = np.where(self.step.obs["legal"], np.where(self.visits == 0, np.inf, bound), -np.inf)
        return any_of(bound == bound.max(), rng)


class TreeSearch:
    """Plain Monte-Carlo tree search: UCB1 in the tree, random moves beyond it (Kocsis and Szepesvari, 2006). One
    simulation adds one node and plays one game to its end; the move most visited is taken."""

    def __init__(self, simulations: int) -> None:
        self._simulations = simulations

    def move(self, env: Env, step: Step, rng: np.random.Generator) -> int:
        visits = np.where(step.obs["legal"], self.visits(env, step, rng), -1)
        return any_of(visits == visits.max(), rng)

    def visits(self, env: Env, step: Step, rng: np.random.Generator) -> np.ndarray:
        """How often a search tries every move, [A]."""
        root = Node(env, step)
        for _ in range(self._simulations):
            self._simulate(root, rng)
        return root.visits

    def _simulate(self, root: Node, rng: np.random.Generator) -> None:
        path, node = [], root
        while True:
            move = node.choose(rng)
            path.append((node, move))
            child = node.children.get(move)
            if child is None:
                child = node.children[move] = Node(*after(node.env, move))
                break
            if child.step.is_last:
                break
            node = child
        worth = self._play(child, rng)  # for the player who moved first, from there on
        for node, move in reversed(path):
            worth += node.sign * node.children[move].step.reward
            node.visits[move] += 1
            node.total[move] += node.sign * worth

    def _play(self, leaf: Node, rng: np.random.Generator) -> float:
        """The return of the player who moved first, with random moves to the end."""
        if leaf.step.is_last:
            return 0.0
        env, step = copy.deepcopy(leaf.env), leaf.step
        gain = 0.0
        for _ in range(LONGEST):
            sign = 1 - 2 * int(step.obs["player"])
            step = made(env, any_of(step.obs["legal"], rng))
            gain += sign * step.reward
            if step.is_last:
                break
        return gain


class Perfect:
    """Backward induction over every position of a game without chance; of all best moves it takes any.

    Raises:
      UnusableEnv: there are more than `MOST` positions, or they come again, or the first is drawn.
    """

    def __init__(self, env: Env) -> None:
        self._worth: dict[bytes, np.ndarray] = {}  # of every move, to the player who makes it
        self._open: set[bytes] = set()
        first = env.reset(0)
        if _code(env.reset(1)) != _code(first):
            raise UnusableEnv("perfect play is enumerated, and here the first position is drawn: try mcts:200")
        self.value = self._solve(env, first)  # of the first position to the player who begins
        self.positions = len(self._worth)  # of the game that are not its end

    def move(self, env: Env, step: Step, rng: np.random.Generator) -> int:
        worth = self._worth[_code(step)]
        return any_of(worth == worth.max(), rng)

    def _solve(self, env: Env, step: Step) -> float:
        """The value of a position to the player who is to move."""
        code = _code(step)
        if code not in self._worth:
            if code in self._open:
                raise UnusableEnv("perfect play is enumerated, but here positions come again: try mcts:200")
            if len(self._worth) + len(self._open) >= MOST or len(self._open) >= DEEPEST:
                raise UnusableEnv(
                    f"perfect play is enumerated, and this game has more than {MOST:,} positions, or more than "
                    f"{DEEPEST} moves: try mcts:200"
                )
            self._open.add(code)
            worth = np.full(len(step.obs["legal"]), -np.inf)
            for move in np.flatnonzero(step.obs["legal"]).tolist():
                then, shown = after(env, move)
                ahead = 0.0 if shown.is_last else self._solve(then, shown)
                worth[move] = shown.reward + (ahead if shown.obs["player"] == step.obs["player"] else -ahead)
            self._open.remove(code)
            self._worth[code] = worth
        return float(self._worth[code].max())


Opponent = Random | TreeSearch | Perfect


def _code(step: Step) -> bytes:
    """The observation of a position."""
    return b"".join(step.obs[key].tobytes() for key in sorted(step.obs))
