"""B search trees that grow together: one look into the model per simulation, and work only where something changed.

What a node would choose next changes only when a simulation has passed through it. So every node remembers its choice
and the child this leads to, and a simulation is

    down     from every root along the remembered children: one small gather per level; the path is recorded
    expand   one `imagine`, `predict` and `evaluate` for all roots
    up       along the path: returns, means and Q-values
    refresh  the nodes of all paths, in batches without gaps however different their depths: the statistics are written
             and the rule of selection is asked for the next choice

A rule is a function of M nodes (`Nodes`) that scores their actions; the highest score is taken. At a node without
visits every rule must prefer the likeliest action: there it is not asked. An action of logit `ILLEGAL` is never taken.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from reverie.agent import WorldModel

ILLEGAL = float(jnp.finfo(jnp.float32).min)  # finite: the softmax of a node with no legal action must not be NaN
# Nodes refreshed together, if there are fewer roots, from the least to the most: fewer cost the same on any machine.
# With many actions the places in such a batch that no path has reached cost something: it then has so many scores.
NODES_AT_ONCE, SCORES_AT_ONCE = (8, 128), 1024


@runtime_checkable
class Planner(WorldModel, Protocol):
    """The model that a search needs. Latents are pytrees of arrays `[B, ...]`; they are stored with every node.

    `imagine(latent, action, key)` takes the index of an action, int32 `[B]`. `predict(latent) -> (reward, discount)`
    speaks of the step that led to `latent`: the discount is 0 if it ended the episode, negative if the other player is
    now to move.

    A model of chance has one method more, `chance(latent) -> bool [B]`: True where not the player is to move but
    chance, whose outcomes are then the first actions, and their log-probabilities the logits. Logits are as wide as the
    larger of the two sets, and `ILLEGAL` beyond the own one. Roots are never nodes of chance.
    """

    def evaluate(self, latent: Any) -> tuple[Array, Array]:
        """`(logits [B, A], value [B])`, float32: the prior, `ILLEGAL` where an action may not be taken, and the value
        in the eyes of the player to move."""


class Tree(NamedTuple):
    """Node 0 is the root, the node that simulation i made is i + 1. N = simulations + 1.

    `logits` are log-probabilities, or `ILLEGAL`.
    `visits` counts the simulations that made or passed a node, `value` is the mean of their returns and `raw` the
    model's own value. `reward` and `discount` belong to the step from `parent` by `action`; without one (the root; a
    slot that a limit of depth left empty) these two are -1. `child` is -1 where nothing was tried; there `q` is 0.
    `chance` tells where not the player is to move but chance.
    """

    parent: Int[Array, "B N"]
    action: Int[Array, "B N"]
    visits: Int[Array, "B N"]
    value: Float[Array, "B N"]
    raw: Float[Array, "B N"]
    reward: Float[Array, "B N"]
    discount: Float[Array, "B N"]
    logits: Float[Array, "B N A"]
    child: Int[Array, "B N A"]
    child_visits: Int[Array, "B N A"]
    q: Float[Array, "B N A"]
    chance: Bool[Array, "B N"]


class Nodes(NamedTuple):
    """The statistics of M nodes. The actions are the first axis: sums and maxima over them are then sums and maxima
    of whole vectors, which on a CPU makes a rule five times faster.

    The logits are log-probabilities. Counts are float32: `visits` of the actions, and `total` of the node, its own
    evaluation included, so that it is 1 more than their sum.
    """

    logits: Float[Array, "A M"]
    visits: Float[Array, "A M"]
    q: Float[Array, "A M"]
    total: Float[Array, "M"]
    value: Float[Array, "M"]
    raw: Float[Array, "M"]

    @property
    def prior(self) -> Float[Array, "A M"]:
        return jnp.exp(self.logits)


Rule = Callable[[Nodes], Array]  # scores [A, M]
RootRule = Callable[[Nodes, Array], Array]  # the same, told the number of the simulation, int32 []


class Forest(NamedTuple):
    """All nodes of all trees, `[N * B, ...]`: node n of root b lies at n * B + b, so that those made by one simulation
    lie together and are written in one piece. Indices are such places; -1 is none."""

    logits: Array
    visits: Array
    q: Array
    child: Array
    total: Array
    value: Array
    raw: Array
    reward: Array
    discount: Array
    parent: Array
    action: Array  # that led here
    choice: Array  # the action that comes next
    following: Array  # the child it leads to
    chance: Array | None
    latent: Any

    def look(self, at: Array) -> Nodes:
        """Nodes `[M]`; of a place outside of the forest, those of any other."""
        fields = (self.logits, self.visits, self.q, self.total, self.value, self.raw)
        return Nodes(*(_take(x, at).T for x in fields))

    def choose(self, at: Array, scores: Array, logits: Array) -> Forest:
        """Remembers the legal action of the highest score. Places outside of the forest are skipped."""
        choice = best(scores, logits > ILLEGAL)
        following = self.child.at[at, choice].get(mode="clip")
        return self._replace(
            choice=self.choice.at[at].set(choice, mode="drop"),
            following=self.following.at[at].set(following, mode="drop"),
        )

    def record(self, at: Array, q: Array, value: Array) -> Forest:
        """One more visit of nodes `[M]` and of the actions that they had chosen. Places outside are skipped."""
        choice = _take(self.choice, at)
        return self._replace(
            visits=self.visits.at[at, choice].add(1, mode="drop"),
            q=self.q.at[at, choice].set(q, mode="drop"),
            total=self.total.at[at].add(1, mode="drop"),
            value=self.value.at[at].set(value, mode="drop"),
        )


class Path(NamedTuple):
    """The nodes of the current simulation's paths, and what they become: row k is k + 1 steps above the leaf. Below the
    root of a short path stands what nobody reads. `[D, B]`, kept between simulations only to save the allocation."""

    node: Array
    q: Array
    value: Array


def best(scores: Float[Array, "A M"], legal: Bool[Array, "A M"]) -> Int[Array, "M"]:
    """The legal action of the highest score, the first of equals; 0 if none is legal."""
    # With many actions `jnp.argmax` takes ten times as long on a CPU: it does not use vectors.
    scores = jnp.where(legal, scores, -jnp.inf)
    backwards = jnp.arange(len(scores), 0, -1, dtype=jnp.float32)[:, None]
    found = jnp.where(scores == scores.max(0)[None], backwards, 0.0).max(0)
    return len(scores) - found.astype(jnp.int32)


def normal(logits: Float[Array, "A M"]) -> Float[Array, "A M"]:
    """Log-probabilities; `ILLEGAL` stays what it is."""
    return jnp.where(logits > ILLEGAL, jax.nn.log_softmax(logits, 0), ILLEGAL)


def grow(
    model: Planner,
    latent: Any,
    logits: Float[Array, "B A"],
    value: Float[Array, "B"],
    key: PRNGKeyArray,
    *,
    simulations: int,
    inside: Rule,
    at_root: RootRule | None = None,
    max_depth: int | None = None,
) -> Tree:
    """Runs `simulations` simulations from every root.

    Args:
      latent, logits, value: of the roots; logits `ILLEGAL` where an action may not be taken.
      inside, at_root: rules of selection, of all nodes but the roots, and of these; None: the same.
      max_depth: steps from the root to a leaf, at most. A leaf at the limit is imagined and evaluated again when it is
        reached again, and its latest value replaces the one before. None: no limit.

    Raises:
      ValueError: if `simulations` or `max_depth` is below 1.
    """
    for name, given in (("simulations", simulations), ("max_depth", max_depth)):
        if given is not None and given < 1:
            raise ValueError(f"{name}={given}: a search takes at least one step, so {name}=1 or more")
    limit = simulations if max_depth is None else min(max_depth, simulations)
    forest = _plant(model, latent, logits, value, simulations + 1)
    path = Path(*(jnp.zeros((limit, len(value)), dtype) for dtype in (jnp.int32, jnp.float32, jnp.float32)))

    def simulation(number: Any, carry: tuple[Forest, Path]) -> tuple[Forest, Path]:
        i = jnp.asarray(number, jnp.int32)  # without jit it is a Python number
        forest, path = carry
        roots = jnp.arange(len(value), dtype=jnp.int32)
        top = forest.look(roots)
        forest = forest.choose(roots, at_root(top, i) if at_root else inside(top), top.logits)
        length, parent = _down(forest, len(value), limit)
        forest, leaf = _expand(model, forest, parent, i + 1, jax.random.fold_in(key, i), limit < simulations)
        path = _up(forest, path, length, leaf)
        return _refresh(forest, path, length, inside), path

    forest, _ = lax.fori_loop(0, simulations, simulation, (forest, path))
    return _tree(forest, len(value))


def _take(x: Array, at: Array) -> Array:
    """Rows of `x`; of places outside, any others. What JAX does by default, to fill them with NaN, takes longer."""
    return x.at[at].get(mode="clip")


def _plant(model: Planner, latent: Any, logits: Array, value: Array, nodes: int) -> Forest:
    """A forest of roots."""
    roots, actions = logits.shape
    size = nodes * roots
    numbers = lambda first=None: jnp.zeros(size).at[:roots].set(0.0 if first is None else first)
    places = jnp.full(size, -1, jnp.int32)
    return Forest(
        logits=jnp.zeros((size, actions)).at[:roots].set(normal(logits.T).T),
        visits=jnp.zeros((size, actions)),
        q=jnp.zeros((size, actions)),
        child=jnp.full((size, actions), -1, jnp.int32),
        total=numbers(1.0),
        value=numbers(value),
        raw=numbers(value),
        reward=numbers(),
        discount=numbers(),
        parent=places,
        action=places,
        choice=jnp.zeros(size, jnp.int32),
        following=places,
        chance=jnp.zeros(size, bool) if hasattr(model, "chance") else None,
        latent=jax.tree.map(lambda x: jnp.broadcast_to(x, (nodes, *x.shape)).reshape(size, *x.shape[1:]), latent),
    )


def _down(forest: Forest, roots: int, limit: int) -> tuple[Array, Array]:
    """From every root to where the next step is untried, or the last one allowed.

    Returns:
      the number of steps of every path (that which leaves the tree included), and its last node, `[B]` both.
    """

    def deeper(carry: tuple[Array, Array, Array, Array]) -> tuple[Array, Array, Array, Array]:
        level, _, length, node = carry
        child = _take(forest.following, node)
        goes_on = child >= 0
        return level + 1, goes_on.any(), length + goes_on, jnp.where(goes_on, child, node)

    start = jnp.int32(1), jnp.bool(True), jnp.ones(roots, jnp.int32), jnp.arange(roots, dtype=jnp.int32)
    *_, length, node = lax.while_loop(lambda carry: carry[1] & (carry[0] < limit), deeper, start)
    return length, node


def _expand(
    model: Planner, forest: Forest, parent: Array, number: Array, key: PRNGKeyArray, again: bool
) -> tuple[Forest, Array]:
    """Takes the chosen step from `parent` `[B]` and makes node `number` of it. Returns the places of the leaves `[B]`.

    With `again` (static) the leaf may exist already, and is then made anew.
    """
    roots = len(parent)
    action, following = _take(forest.choice, parent), _take(forest.following, parent)
    latent = model.imagine(jax.tree.map(lambda x: _take(x, parent), forest.latent), action, key)
    reward, discount = model.predict(latent)
    logits, value = model.evaluate(latent)
    logits = normal(logits.T)
    start = number * roots
    leaf = start + jnp.arange(roots, dtype=jnp.int32)
    total = jnp.ones(roots)
    if again:
        leaf = jnp.where(following >= 0, following, leaf)
        total += _take(forest.total, leaf)
        put = lambda x, new: x.at[leaf].set(new.astype(x.dtype))
    else:
        put = lambda x, new: lax.dynamic_update_slice_in_dim(x, new.astype(x.dtype), start, 0)
    forest = forest._replace(
        logits=put(forest.logits, logits.T),
        child=forest.child.at[parent, action].set(leaf),
        total=put(forest.total, total),
        value=put(forest.value, value),
        raw=put(forest.raw, value),
        reward=put(forest.reward, reward),
        discount=put(forest.discount, discount),
        parent=put(forest.parent, parent),
        action=put(forest.action, action),
        choice=put(forest.choice, best(logits, logits > ILLEGAL)),
        chance=None if forest.chance is None else put(forest.chance, model.chance(latent)),  # type: ignore[attr-defined]
        latent=jax.tree.map(put, forest.latent, latent),
    )
    return forest, leaf


def _up(forest: Forest, path: Path, length: Array, leaf: Array) -> Path:
    """The new statistics of the paths' nodes, from the leaves to the roots.

    row       2      1      0      leaf        a path of length 3
    node      s0     s1     s2     s3
    return    G0     G1     G2     G3 = v3     G_l = r_{l+1} + d_{l+1} G_{l+1}
    q         q0     q1     q2                 q_l = r_{l+1} + d_{l+1} V_{l+1}, with V after this simulation
    """

    def higher(carry: tuple[Array, Array, Array, Array, Path]) -> tuple[Array, Array, Array, Array, Path]:
        row, below, returns, value, path = carry
        node = _take(forest.parent, below)
        reward, discount, total = _take(forest.reward, below), _take(forest.discount, below), _take(forest.total, node)
        returns = reward + discount * returns
        q = reward + discount * value
        value = (_take(forest.value, node) * total + returns) / (total + 1)
        put = lambda x, new: lax.dynamic_update_index_in_dim(x, new, row, 0)
        return row + 1, node, returns, value, Path(put(path.node, node), put(path.q, q), put(path.value, value))

    value = _take(forest.value, leaf)
    highest = length.max()
    return lax.while_loop(lambda carry: carry[0] < highest, higher, (jnp.int32(0), leaf, value, value, path))[-1]


def _refresh(forest: Forest, path: Path, length: Array, inside: Rule) -> Forest:
    """Writes what the nodes of the paths became, and has all but the roots choose anew."""
    roots = path.node.shape[1]
    size = len(forest.total)
    flat = jax.tree.map(jnp.ravel, path)
    top = (length - 1) * roots + jnp.arange(roots)
    forest = forest.record(jnp.arange(roots), _take(flat.q, top), _take(flat.value, top))
    ends = jnp.cumsum(length - 1)  # where the nodes of a path end if all of them stand in one line
    least, most = NODES_AT_ONCE
    together = max(roots, least, min(most, SCORES_AT_ONCE // forest.logits.shape[1]))

    def some(carry: tuple[Array, Forest]) -> tuple[Array, Forest]:
        first, forest = carry
        place = first + jnp.arange(together, dtype=jnp.int32)
        root = jnp.searchsorted(ends, place, side="right", method="scan_unrolled").clip(max=roots - 1)
        there = place < ends[-1]
        row = _take(ends, root) - 1 - place
        at = jnp.where(there, row * roots + root, 0)
        node = jnp.where(there, _take(flat.node, at), size)
        forest = forest.record(node, _take(flat.q, at), _take(flat.value, at))
        nodes = forest.look(node)
        scores = inside(nodes)
        if forest.chance is not None:
            scores = jnp.where(_take(forest.chance, node)[None], outcomes(nodes), scores)
        return first + together, forest.choose(node, scores, nodes.logits)

    return lax.while_loop(lambda carry: carry[0] < ends[-1], some, (jnp.int32(0), forest))[1]


def outcomes(nodes: Nodes) -> Float[Array, "A M"]:
    """Scores of what chance may do: visits become proportional to probabilities without a random number (Antonoglou et
    al. 2022, "Planning in Stochastic Environments with a Learned Model", on chance nodes)."""
    return nodes.prior / (nodes.visits + 1)


def _tree(forest: Forest, roots: int) -> Tree:
    """The forest, tree by tree."""
    by_root = lambda x: jnp.moveaxis(x.reshape(-1, roots, *x.shape[1:]), 0, 1)
    place = lambda x: jnp.where(x < 0, -1, x // roots)
    fields = forest._asdict() | {
        "parent": place(forest.parent),
        "child": place(forest.child),
        "visits": forest.total.astype(jnp.int32),
        "child_visits": forest.visits.astype(jnp.int32),
        "chance": jnp.zeros(len(forest.total), bool) if forest.chance is None else forest.chance,
    }
    return Tree(*(by_root(fields[name]) for name in Tree._fields))
