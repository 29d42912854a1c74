"""Search results as a person looks at them."""

from __future__ import annotations

from collections.abc import Mapping

import jax
import numpy as np

from reverie.behavior.search import SearchResult
from reverie.behavior.tree import ILLEGAL
from reverie.view.tree import Branches, SearchReport


def search_report(
    enumerated: bool, actions: Mapping[str, np.ndarray], found: SearchResult, player: int | None
) -> SearchReport:
    """A search of one root, in numpy arrays.

    Args:
      enumerated: a number means the same action at every node of the tree.
      actions: that the root chose among, `[A, ...]` by key.
      player: who moves there, in a game of two.
    """
    tree = jax.tree.map(lambda x: x[0], found.tree)
    policy, visits, q = (np.asarray(x[0]) for x in (found.policy, found.visits, found.q))
    names = [_name_of({k: x[a, ...] for k, x in actions.items()}) for a in range(len(policy))]
    inside = names if enumerated else [f"#{a}" for a in range(len(names))]

    # Slots that a limit of depth left empty have no parent either.
    nodes = np.flatnonzero((tree.parent >= 0) | (np.arange(len(tree.parent)) == 0))
    parents, taken = tree.parent[nodes], tree.action[nodes]
    label = [
        "" if parent < 0 else f"c{a}" if tree.chance[parent] else inside[a] if parent else names[a]
        for parent, a in zip(parents, taken, strict=True)
    ]
    logits = tree.logits[0, : len(policy)]
    return SearchReport(
        actions=names,
        legal=logits > ILLEGAL,
        prior=np.where(logits > ILLEGAL, np.exp(logits), 0.0),
        policy=policy,
        visits=visits[: len(policy)],
        q=q[: len(policy)],
        chosen=int(found.action[0]),
        player=player,
        raw=float(tree.raw[0]),
        value=float(found.value[0]),
        tree=Branches(
            parent=np.searchsorted(nodes, parents).astype(np.int32) - (parents < 0),
            action=taken,
            name=label,
            visits=tree.visits[nodes],
            q=np.where(parents < 0, tree.value[0], tree.q[parents, taken]),
            chance=tree.chance[nodes],
        ),
    )


def _name_of(action: Mapping[str, np.ndarray]) -> str:
    """An action as text: class numbers, and vectors in [-1, 1]."""
    number = lambda x: f"{x:+.2f}" if np.issubdtype(np.asarray(x).dtype, np.floating) else str(x)
    parts = {k: " ".join(number(x) for x in np.ravel(value)) for k, value in action.items()}
    return next(iter(parts.values())) if len(parts) == 1 else ", ".join(f"{k} {text}" for k, text in parts.items())
