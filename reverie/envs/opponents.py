"""Players of two-player games that learn nothing: to train against nobody, and to be measured by.

Each sees the true state of the game, as `DeviceEnv` has it, and may try moves on it.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np

from reverie.envs.base import DeviceEnv
from reverie.envs.opposed import EXPLORATION, LONGEST, MOST, check_name
from reverie.envs.spec import UnusableEnv

_CHUNK = 1024  # positions that are expanded together


@runtime_checkable
class Opponent(Protocol):
    """Chooses moves in N games at once."""

    def act(self, state: Any, rows: dict[str, Any], key: Any) -> Any:
        """Moves int32 [N] in games of which `state` and `rows` (what the state shows) have the leading axis [N]."""


def opponent(name: str, env: DeviceEnv) -> Opponent:
    """The opponent of a name: `random`, `perfect` or `mcts:N`, N rollouts a move.

    Raises:
      UnusableEnv: the env is no game of two, or it is too large or too random for this opponent.
    """
    if env.players != 2:
        raise UnusableEnv(f"an opponent ({name}) needs a game of two players, such as pgx:tic_tac_toe")
    check_name(name)
    if name == "random":
        return Random()
    return Perfect(env) if name == "perfect" else TreeSearch(env, int(name.removeprefix("mcts:")))


class Random:
    """Any legal move, all equally likely."""

    def act(self, state: Any, rows: dict[str, Any], key: Any) -> Any:
        return _draw(rows["obs/legal"], key)


def _any(may_act: Any, key: Any) -> Any:
    """One of the allowed moves, int32 `[...]`, of bool `[..., A]`."""
    return jax.random.categorical(key, jnp.where(may_act, 0.0, -jnp.inf)).astype(jnp.int32)


_draw = jax.jit(_any)


# ------------------------------------------------------------------------------------------ perfect


class Perfect:
    """Backward induction over every position of a game; of all best moves it takes any.

    Positions are told apart by what they show. The game must be free of chance and may not repeat a position.

    Raises:
      UnusableEnv: there are more than `MOST` positions, or chance decides, or positions come again.
    """

    def __init__(self, env: DeviceEnv) -> None:
        self._env = env
        self._row = jax.jit(jax.vmap(env.row))
        self._children = jax.jit(self._expand)
        self._best: dict[bytes, np.ndarray] = {}
        self.value = self._solve()  # of the first position to the player who begins
        self.positions = len(self._best)  # of the game that are not its end

    def act(self, state: Any, rows: dict[str, Any], key: Any) -> Any:
        over = np.ones(np.shape(rows["obs/legal"])[1], bool)  # where the game has ended any move is as good
        best = [self._best.get(code.tobytes(), over) for code in _codes(rows)]
        return _draw(np.stack(best), key)

    def _solve(self) -> float:
        begun = jax.tree.map(np.asarray, jax.vmap(self._env.init)(jax.random.split(jax.random.key(0), 16)))
        if len(np.unique(_codes(self._row(begun)), axis=0)) > 1:
            raise _too_random("its first position is drawn")
        states = jax.tree.map(lambda x: x[:1], begun)
        layers = []
        while len(jax.tree.leaves(states)[0]):
            layer, states = self._layer(states)
            if any(code.tobytes() in self._best for code in layer.codes):
                raise UnusableEnv("perfect play is enumerated, but here positions come again: try mcts:200")
            self._best |= {code.tobytes(): legal for code, legal in zip(layer.codes, layer.legal, strict=True)}
            if len(self._best) > MOST:
                raise UnusableEnv(
                    f"perfect play is enumerated, and this game has more than {MOST:,} positions: try mcts:200"
                )
            layers.append(layer)
        value = np.zeros(0, np.float32)
        for layer in reversed(layers):
            after = np.append(value, np.float32(0))[layer.child]  # the last: there is no child
            worth = layer.reward + np.where(layer.turns, -after, after)
            worth = np.where(layer.legal, worth, -np.inf)
            value = worth.max(1)
            for code, row in zip(layer.codes, worth, strict=True):
                self._best[code.tobytes()] = row == row.max()
        return float(value[0])

    def _layer(self, states: Any) -> tuple[_Layer, Any]:
        """All moves in positions `[n]`, and the different positions that follow."""
        rows = self._row(states)
        count, actions = rows["obs/legal"].shape
        legal, codes = np.asarray(rows["obs/legal"]), _codes(rows)
        whole_chunks = jax.tree.map(lambda x: np.concatenate([x, np.repeat(x[:1], -count % _CHUNK, 0)]), states)
        chunks = [jax.tree.map(lambda x, b=b: x[b : b + _CHUNK], whole_chunks) for b in range(0, count, _CHUNK)]
        after, shown, other = jax.tree.map(lambda *x: np.concatenate(x)[:count], *map(self._children, chunks))
        flat = lambda tree: jax.tree.map(lambda x: x.reshape(count * actions, *x.shape[2:]), tree)
        shown, other = flat(shown), flat(other)
        if any((shown[k][legal.ravel()] != other[k][legal.ravel()]).any() for k in shown):
            raise _too_random("the same move leads to different positions")
        goes_on = np.flatnonzero(legal.ravel() & ~shown["is_last"])
        _, first, inverse = np.unique(_codes(shown)[goes_on], axis=0, return_index=True, return_inverse=True)
        child = np.full(count * actions, len(first))
        child[goes_on] = inverse.ravel()
        turns = shown["obs/player"].reshape(count, actions) != np.asarray(rows["obs/player"])[:, None]
        reward = shown["reward"].reshape(count, actions)
        layer = _Layer(codes, legal, reward, turns, child.reshape(count, actions))
        return layer, jax.tree.map(lambda x: x[goes_on[first]], flat(after))

    def _expand(self, states: Any) -> tuple[Any, Any, Any]:
        """The states `[n, A]` after every move in positions `[n]`, what they show, and what by other chance."""
        ((name, space),) = self._env.act_space.items()
        moves = jnp.arange(space.classes[0], dtype=jnp.int32)

        def after(key: Any) -> Any:
            move = lambda state, action: self._env.step(state, {name: action}, key)
            return jax.vmap(jax.vmap(move, (None, 0)), (0, None))(states, moves)

        show = jax.vmap(jax.vmap(self._env.row))
        one, other = after(jax.random.key(1)), after(jax.random.key(2))
        return one, show(one), show(other)


class _Layer(NamedTuple):
    """n positions after the same number of moves, and all their moves."""

    codes: np.ndarray  # uint8 [n, w]
    legal: np.ndarray  # bool [n, A]
    reward: np.ndarray  # float32 [n, A], of the player who moves
    turns: np.ndarray  # bool [n, A], it is the other's turn afterwards
    child: np.ndarray  # int [n, A], the position in the next layer, or the number of these at an end


def _codes(rows: dict[str, Any]) -> np.ndarray:
    """The observations of positions `[n]`, as bytes: uint8 [n, w]."""
    shown = [np.asarray(rows[key]) for key in sorted(rows) if key.startswith("obs/")]
    return np.concatenate([np.ascontiguousarray(x).reshape(len(x), -1).view(np.uint8) for x in shown], 1)


def _too_random(why: str) -> UnusableEnv:
    return UnusableEnv(f"perfect play is enumerated, which needs a game without chance: {why}; try mcts:200")


# ---------------------------------------------------------------------------------------- tree search


class _Tree(NamedTuple):
    """The tree of one game, of n nodes; 0 is the root."""

    state: Any  # [n, ...]
    child: Any  # int32 [n, A], -1: not there yet
    visits: Any  # int32 [n, A]
    total: Any  # float32 [n, A], what the move earned the player whose turn it is there
    points: Any  # float32 [n], of the move that led here, for the player who moved first
    over: Any  # bool [n]
    legal: Any  # bool [n, A]
    sign: Any  # float32 [n], 1 where the player who moved first is to move, else -1


class TreeSearch:
    """Plain Monte-Carlo tree search: UCB1 in the tree, random moves beyond it, on the true rules of the game.

    One simulation adds one node and plays one game to its end (Kocsis and Szepesvari, 2006). The move most visited is
    taken. Games of chance are searched as if every move had one outcome: the one drawn first.

    Args:
      simulations: a move.
    """

    def __init__(self, env: DeviceEnv, simulations: int) -> None:
        ((self._name, space),) = env.act_space.items()
        self._env, self._simulations, self._actions = env, simulations, space.classes[0]
        self._moves = jax.jit(jax.vmap(self._search))

    def act(self, state: Any, rows: dict[str, Any], key: Any) -> Any:
        return self._moves(state, jax.random.split(key, len(jax.tree.leaves(state)[0])))

    def _search(self, state: Any, key: Any) -> Any:
        """The move in one game."""
        visits, key = self.visits(state, key)
        visits = jnp.where(self._env.row(state)["obs/legal"], visits, -1)
        return _any(visits == visits.max(), key)

    def visits(self, state: Any, key: Any) -> tuple[Any, Any]:
        """How often a search in one game tries every move, int32 [A]; and a fresh key."""
        nodes = self._simulations + 1
        zeros, row = partial(jnp.zeros, (nodes, self._actions)), self._env.row(state)
        tree = _Tree(
            jax.tree.map(lambda x: jnp.broadcast_to(x, (nodes, *x.shape)), state),
            jnp.full((nodes, self._actions), -1, jnp.int32),
            zeros(jnp.int32),
            zeros(jnp.float32),
            jnp.zeros(nodes),
            jnp.zeros(nodes, bool),
            jnp.broadcast_to(row["obs/legal"], (nodes, self._actions)),
            jnp.broadcast_to(_sign(row), (nodes,)),
        )
        tree, key = jax.lax.fori_loop(1, nodes, self._simulate, (tree, key))
        return tree.visits[0], key

    def _simulate(self, new: Any, at: tuple[_Tree, Any]) -> tuple[_Tree, Any]:
        """Walks down, adds node `new`, plays to the end, and tells all nodes on the way.

        path     0        1        ...     depth
        node     root     child            where the walk ends
        action   a        a'               leads to `new`, or to an end that is known
        """
        tree, key = at
        key, walk, step, play = jax.random.split(key, 4)
        path, depth = self._walk(tree, walk)
        node, action = path[depth, 0], path[depth, 1]
        leaf = tree.child[node, action]
        known = leaf >= 0  # the end of a game, met again: it becomes no second node
        leaf = jnp.where(known, leaf, new)
        before = jax.tree.map(lambda x: x[node], tree.state)
        state = self._env.step(before, {self._name: action}, step)
        row = self._env.row(state)
        points = tree.sign[node] * row["reward"]
        tree = tree._replace(
            state=jax.tree.map(lambda x, y: x.at[new].set(y), tree.state, state),
            child=tree.child.at[node, action].set(leaf),
            points=tree.points.at[leaf].set(points),
            over=tree.over.at[leaf].set(row["is_last"]),
            legal=tree.legal.at[leaf].set(row["obs/legal"]),
            sign=tree.sign.at[leaf].set(_sign(row)),
        )
        gain = self._play(state, play)
        # What was earned from each node on, for the player who moved first in the game.
        steps = jnp.arange(len(path))
        on = steps <= depth
        along = jnp.where(on, tree.points[tree.child[path[:, 0], path[:, 1]]], 0.0)
        worth = jnp.cumsum(along[::-1])[::-1] + gain
        nodes = jnp.where(on, path[:, 0], len(tree.over))  # beyond the last: dropped
        return tree._replace(
            visits=tree.visits.at[nodes, path[:, 1]].add(1, mode="drop"),
            total=tree.total.at[nodes, path[:, 1]].add(tree.sign[path[:, 0]] * worth, mode="drop"),
        ), key

    def _walk(self, tree: _Tree, key: Any) -> tuple[Any, Any]:
        """`(path, depth)`: nodes and moves int32 [n, 2] from the root to a move without child or to an end."""

        def choose(node: Any, key: Any) -> Any:
            visits = tree.visits[node].astype(jnp.float32)
            value = (tree.total[node] / jnp.maximum(visits, 1) + 1) / 2
            bound = value + EXPLORATION * jnp.sqrt(jnp.log(jnp.maximum(visits.sum(), 1)) / jnp.maximum(visits, 1))
            bound = jnp.where(tree.legal[node], jnp.where(visits == 0, jnp.inf, bound), -jnp.inf)
            return _any(bound == bound.max(), key)

        def goes_on(at: tuple[Any, Any, Any]) -> Any:
            path, depth, _ = at
            child = tree.child[path[depth, 0], path[depth, 1]]
            return (child >= 0) & ~tree.over[child]

        def down(at: tuple[Any, Any, Any]) -> tuple[Any, Any, Any]:
            path, depth, key = at
            key, now = jax.random.split(key)
            child = tree.child[path[depth, 0], path[depth, 1]]
            return path.at[depth + 1].set(jnp.stack([child, choose(child, now)])), depth + 1, key

        key, now = jax.random.split(key)
        path = jnp.zeros((len(tree.over), 2), jnp.int32).at[0, 1].set(choose(jnp.int32(0), now))
        path, depth, _ = jax.lax.while_loop(goes_on, down, (path, jnp.int32(0), key))
        return path, depth

    def _play(self, state: Any, key: Any) -> Any:
        """The return of the player who moved first, with random moves to the end."""

        def goes_on(at: tuple[Any, Any, Any, Any]) -> Any:
            state, _, moves, _ = at
            return ~self._env.row(state)["is_last"] & (moves < LONGEST)

        def move(at: tuple[Any, Any, Any, Any]) -> tuple[Any, Any, Any, Any]:
            state, gain, moves, key = at
            key, draw, step = jax.random.split(key, 3)
            row = self._env.row(state)
            state = self._env.step(state, {self._name: _any(row["obs/legal"], draw)}, step)
            return state, gain + _sign(row) * self._env.row(state)["reward"], moves + 1, key

        return jax.lax.while_loop(goes_on, move, (state, jnp.float32(0), jnp.int32(0), key))[1]


def _sign(row: dict[str, Any]) -> Any:
    """1 where the player who moved first is to move, -1 where the other is."""
    return 1.0 - 2.0 * row["obs/player"].astype(jnp.float32)
