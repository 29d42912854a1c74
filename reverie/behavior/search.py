"""Monte-Carlo tree search with a learned model: PUCT (MuZero) and Gumbel (Gumbel MuZero), for B roots at once.

The trees are grown by `behavior/tree.py`; here are the rules of selection and what is read off the grown trees.
Everything is float32; all of A is one discrete action.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from reverie.behavior.tree import ILLEGAL, Nodes, Planner, Tree, best, grow

TINY = float(jnp.finfo(jnp.float32).tiny)


class SearchResult(NamedTuple):
    """The result of a search at its roots."""

    action: Int[Array, "B"]  # to take
    policy: Float[Array, "B A"]  # to learn. Gumbel: the improved policy; PUCT: the share of the visits
    # Mean return of all simulations and the model's own value, in the eyes of the player to move.
    value: Float[Array, "B"]
    visits: Int[Array, "B A"]  # how often an action was simulated
    q: Float[Array, "B A"]  # mean value of an action that was, else 0
    tree: Tree  # all of it. Under `jax.jit` it costs nothing unless it is returned


def gumbel(
    model: Planner,
    latent: Any,
    key: PRNGKeyArray,
    *,
    simulations: int,
    legal: Bool[Array, "B A"] | None = None,
    considered: int = 16,
    scale: float | Float[Array, ""] = 1.0,
    visit_scale: float = 50.0,
    value_scale: float = 0.1,
    rescale: bool = True,
    mixed: bool = True,
    least_range: float = 0.0,
    max_depth: int | None = None,
) -> SearchResult:
    """Gumbel MuZero (Danihelka et al. 2022, "Policy improvement by planning with Gumbel"). The policy improves with any
    number of simulations from 2 on, if the values are right.

    At the root, `considered` actions are drawn without replacement and sequential halving finds the best of them; below
    it, visits follow the improved policy. That is `softmax(logits + sigma(q))` with q completed (`completed`), which is
    also what is to be learned.

    Args:
      latent: of the roots, pytree `[B, ...]`.
      legal: actions that may be taken at the roots; None: those whose logits are not `ILLEGAL`. A root without any
        takes action 0.
      considered: actions at most that the root looks at.
      scale: of the Gumbel noise; 0 for evaluation: no noise, the best action.
      visit_scale, value_scale, rescale, mixed, least_range: see `completed`. The paper has 50, 1.0 and no rescaling
        with values in [-1, 1]; with rescaling 0.1 is the usual choice.
      max_depth: see `tree.grow`.

    Raises:
      ValueError: if `simulations`, `considered` or `max_depth` is below 1.
    """
    if considered < 1:
        raise ValueError(f"considered={considered}: the root must look at some action, so considered=1 or more")
    logits, value = model.evaluate(latent)
    logits = _mask(logits, legal)
    legal = logits > ILLEGAL
    noise_key, key = jax.random.split(key)
    noise = scale * jax.random.gumbel(noise_key, logits.shape).T
    table = jnp.asarray(np.stack([considered_visits(m, simulations) for m in range(considered + 1)]))
    schedule = table[jnp.minimum(considered, legal.sum(-1))]  # [B, simulations]

    def improved(nodes: Nodes) -> Array:
        return nodes.logits + completed(nodes, visit_scale, value_scale, rescale, mixed, least_range)

    def at_root(nodes: Nodes, i: Array) -> Array:
        return halving(noise + improved(nodes), nodes.visits, schedule[:, i])

    def inside(nodes: Nodes) -> Array:
        return jax.nn.softmax(improved(nodes), 0) - nodes.visits / nodes.total[None]

    tree = grow(
        model, latent, logits, value, key, simulations=simulations, inside=inside, at_root=at_root, max_depth=max_depth
    )
    root = _root(tree)
    action = best(halving(noise + improved(root), root.visits, root.visits.max(0)), legal.T)
    policy = jax.nn.softmax(jnp.where(legal, improved(root).T, ILLEGAL), -1)
    return SearchResult(action, policy, root.value, tree.child_visits[:, 0], tree.q[:, 0], tree)


def puct(
    model: Planner,
    latent: Any,
    key: PRNGKeyArray,
    *,
    simulations: int,
    legal: Bool[Array, "B A"] | None = None,
    c1: float = 1.25,
    c2: float = 19652.0,
    dirichlet_alpha: float = 0.3,
    dirichlet_fraction: float = 0.25,
    temperature: float | Float[Array, "*B"] = 1.0,
    bounds: tuple[float, float] | None = None,
    least_range: float = 0.0,
    max_depth: int | None = None,
) -> SearchResult:
    """MuZero (Schrittwieser et al. 2020, appendix B): the action with the highest

        Q(s, a) + P(s, a) sqrt(N(s)) / (1 + N(s, a)) (c1 + log((N(s) + c2 + 1) / c2)),        N(s) = 1 + sum of N(s, a)

    is followed, Q within [0, 1] (`normalised`), and the root's prior is mixed with noise over what is legal.

    Args:
      latent, legal, max_depth: as of `gumbel`.
      dirichlet_alpha, dirichlet_fraction: of the noise, and its share of the root's prior; fraction 0 for none.
      temperature: see `by_visits`. May be traced, and be one for every root.
      bounds: lowest and highest return, where they are known (board games: -1 and 1).
      least_range: of the values that are moved to [0, 1]; see `normalised`.

    Raises:
      ValueError: if `simulations` or `max_depth` is below 1.
    """
    logits, value = model.evaluate(latent)
    if legal is None:
        legal = logits > ILLEGAL
    noise_key, action_key, key = jax.random.split(key, 3)
    prior = jax.nn.softmax(logits, -1)
    if dirichlet_fraction:
        # Only among what is legal: noise on what cannot be done would be lost, and an algorithm may pad its actions.
        noise = jnp.where(legal, jax.random.loggamma(noise_key, dirichlet_alpha, logits.shape), ILLEGAL)
        prior = jax.nn.softmax(jnp.where(legal, logits, ILLEGAL), -1)
        prior = (1 - dirichlet_fraction) * prior + dirichlet_fraction * jax.nn.softmax(noise, -1)
    logits = _mask(_log(prior), legal)

    def inside(nodes: Nodes) -> Array:
        explore = (jnp.sqrt(nodes.total) * (c1 + jnp.log((nodes.total + c2 + 1) / c2)))[None]
        return normalised(nodes, bounds, least_range) + explore * nodes.prior / (nodes.visits + 1)

    tree = grow(model, latent, logits, value, key, simulations=simulations, inside=inside, max_depth=max_depth)
    policy = tree.child_visits[:, 0] / simulations
    action = by_visits(policy, tree.q[:, 0], temperature, action_key)
    return SearchResult(action, policy, tree.value[:, 0], tree.child_visits[:, 0], tree.q[:, 0], tree)


def by_visits(
    policy: Float[Array, "B A"], q: Float[Array, "B A"], temperature: float | Float[Array, "*B"], key: PRNGKeyArray
) -> Int[Array, " B"]:
    """An action drawn with probability ~ visits^(1 / temperature), of which `policy` has the shares; at 0 the most
    visited, of several the one of the highest `q`: with few simulations several are often equal."""
    scaled_logits = _log(policy)
    heat = jnp.maximum(jnp.broadcast_to(jnp.asarray(temperature), policy.shape[:1]), TINY)
    scaled_logits = (scaled_logits - scaled_logits.max(-1, keepdims=True)) / heat[:, None]
    equal = scaled_logits == 0
    behind = equal & (q < jnp.where(equal, q, -jnp.inf).max(-1, keepdims=True))
    scaled_logits = jnp.where(behind & (heat == TINY)[:, None], -jnp.inf, scaled_logits)
    return jax.random.categorical(key, scaled_logits).astype(jnp.int32)


def completed(
    nodes: Nodes, visit_scale: float, value_scale: float, rescale: bool, mixed: bool, least_range: float = 0.0
) -> Float[Array, "A M"]:
    """sigma of the completed Q-values (Danihelka et al. 2022, eq. 8 and appendix D).

    An untried action has the value of the node: the model's own and what its tried actions gave, weighted by the prior
    (v_mix); with `mixed` False the model's own. `rescale` moves them to [0, 1], or to less where they differ by less
    than `least_range`. Sigma multiplies by `value_scale * (visit_scale + most visits of an action)`.
    """
    has_visits = nodes.visits > 0
    value = nodes.raw
    if mixed:
        # An action of no probability may have been tried; its weight must not be 0 / 0.
        weight = jnp.where(has_visits, jnp.maximum(nodes.prior, TINY), 0.0)
        weights = weight.sum(0)
        mean = (weight * nodes.q).sum(0) / jnp.where(weights > 0, weights, 1.0)
        value = (value + (nodes.total - 1) * mean) / nodes.total
    q = jnp.where(has_visits, nodes.q, value[None])
    if rescale:
        low = q.min(0)
        q = _unit(q, low, jnp.maximum(q.max(0), low + least_range))
    return (value_scale * (visit_scale + nodes.visits.max(0)))[None] * q


def normalised(
    nodes: Nodes, bounds: tuple[float, float] | None = None, least_range: float = 0.0
) -> Float[Array, "A M"]:
    """Q-values within [0, 1] for PUCT, 0 for untried actions.

    Between the lowest and the highest of the node's value and those of its tried actions, or between `bounds`. The
    paper takes the extremes of the whole tree; those of the neighbours tell actions apart deep in a tree too. What
    they do not tell is how much it matters: where values differ by less than `least_range`, they are divided by that.
    """
    has_visits = nodes.visits > 0
    if bounds is None:
        q = jnp.where(has_visits, nodes.q, nodes.value[None])
        low, high = jnp.minimum(nodes.value, q.min(0)), jnp.maximum(nodes.value, q.max(0))
    else:
        low, high = (jnp.full_like(nodes.value, x) for x in bounds)
    return jnp.where(has_visits, _unit(nodes.q, low, jnp.maximum(high, low + least_range)), 0.0)


def halving(scores: Float[Array, "A M"], visits: Float[Array, "A M"], turn: Array) -> Float[Array, "A M"]:
    """Sequential halving: among the actions that were visited `turn` `[M]` times, those of the highest scores survive.

    Where an action's logit is `ILLEGAL` or close to it, its score is finite, so that it can still be the only one.
    """
    return jnp.where(visits == turn[None], jnp.maximum(scores, -1e9), -jnp.inf)


def considered_visits(considered: int, simulations: int) -> Int[np.ndarray, "n"]:
    """The schedule of sequential halving (Karnin et al. 2013): how often the action that each of the simulations
    visits was visited before.

    In phases of about equal length, the survivors are visited in turn; the better half of them survives the phase,
    two at least.
    """
    if considered <= 1:
        return np.arange(simulations, dtype=np.int32)
    phases = math.ceil(math.log2(considered))
    turns: list[int] = []
    visited, surviving = 0, considered
    while len(turns) < simulations:
        for _ in range(max(1, simulations // (phases * surviving))):
            turns += [visited] * surviving
            visited += 1
        surviving = max(2, surviving // 2)
    return np.array(turns[:simulations], np.int32)


def _mask(logits: Array, legal: Array | None) -> Array:
    """Logits with the highest at 0, and `ILLEGAL` where an action is not legal."""
    may_act = logits > ILLEGAL
    if legal is not None:
        may_act &= legal
    return jnp.where(may_act, logits - logits.max(-1, keepdims=True), ILLEGAL)


def _root(tree: Tree) -> Nodes:
    logits, q, value, raw = (x[:, 0].T for x in (tree.logits, tree.q, tree.value, tree.raw))
    visits, total = (x[:, 0].T.astype(jnp.float32) for x in (tree.child_visits, tree.visits))
    return Nodes(logits, visits, q, total, value, raw)


def _unit(q: Array, low: Array, high: Array) -> Array:
    return (q - low[None]) / jnp.maximum(high - low, 1e-8)[None]


def _log(probabilities: Array) -> Array:
    return jnp.log(jnp.maximum(probabilities, TINY))
