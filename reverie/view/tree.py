"""Search trees a person can look at: what was tried how often, and what it did to the policy."""

from __future__ import annotations

import io
from typing import Any, NamedTuple

import numpy as np

from reverie.fields import amount
from reverie.view.dream import DREAMS, OVER, SEES, unit

SUFFIXES = (".png", ".svg")
DEPTH = 3  # steps from the root that are drawn
NODES = 60  # that a picture has room for
ACTIONS = 20  # that bars and table have room for
PITCH = 0.34  # inches from one line to the next


class Branches(NamedTuple):
    """The N nodes of a tree in the order in which they were made: the root is node 0, and parents precede children."""

    parent: np.ndarray  # int `[N]`, -1 of the root
    action: np.ndarray  # int `[N]`, that led here; -1 of the root
    name: list[str]  # N texts: what this action, or outcome of chance, is called
    visits: np.ndarray  # int `[N]`, simulations that made or passed a node; of the root, its own evaluation included
    # float `[N]`, mean return of the step that led here, in the eyes of the player who took it; of the root, its value.
    q: np.ndarray
    chance: np.ndarray  # bool `[N]`, not the player is to move here but chance


class SearchReport(NamedTuple):
    """The result of one search of one root, over A actions.

    Attributes:
      actions: A texts. A continuous action is in [-1, 1], as the agent acts.
      legal: bool `[A]`.
      prior, policy: float `[A]`, what the network proposed, and what the search made of it and is to be learned
        (Gumbel: the improved policy; PUCT: the share of the visits). 0 where not legal.
      visits: int `[A]`.
      q: float `[A]`, mean return, in the eyes of the player to move; 0 where there were no visits.
      chosen: the action taken.
      player: in games of two, who is to move: 0 or 1.
      raw, value: of the root, by the network alone and by the search.
      tree: all that was looked at.
    """

    actions: list[str]
    legal: np.ndarray
    prior: np.ndarray
    policy: np.ndarray
    visits: np.ndarray
    q: np.ndarray
    chosen: int
    player: int | None
    raw: float
    value: float
    tree: Branches

    @property
    def ranking(self) -> list[int]:
        """The legal actions, those that the search prefers first."""
        order = np.lexsort((-self.q, -self.visits, -self.policy))
        return [int(a) for a in order if self.legal[a]]

    @property
    def why(self) -> str:
        """Why the action taken is not the one that the search prefers, a sentence; empty where it is."""
        best, taken = self.ranking[0], self.chosen
        if best == taken:
            return ""
        fewer, more = (amount(int(self.visits[a]), "time") for a in (best, taken))
        return (
            f"{self.actions[best]} has more of the improved policy ({self.policy[best]:.1%}, against "
            f"{self.policy[taken]:.1%}), but was tried {fewer} and {self.actions[taken]} {more}: what is "
            "taken is the best of those that were tried most"
        )


def shown(tree: Branches, depth: int = DEPTH, most: int = NODES) -> tuple[np.ndarray, int, int]:
    """Which nodes a picture shows: down to `depth` steps from the root, and of those the `most` visited.

    Returns:
      their numbers in ascending order, parents always among them; how many lie too deep; and how many of the others
      were visited too seldom.
    """
    level = np.zeros(len(tree.parent), int)
    for node in range(1, len(level)):
        level[node] = level[tree.parent[node]] + 1
    near = np.flatnonzero(level <= depth)
    # A parent has all visits of its children and its own; of equals the one made first.
    kept = near[np.argsort(-tree.visits[near], kind="stable")][:most]
    return np.sort(kept), len(level) - len(near), len(near) - len(kept)


def left_out(tree: Branches, depth: int = DEPTH, most: int = NODES) -> str:
    """The parts that a picture does not show, in words; empty if it shows all."""
    nodes, deeper, rarer = shown(tree, depth, most)
    causes = [f"{deeper} deeper than {amount(depth, 'step')}"] * (deeper > 0)
    causes += [f"{rarer} visited least"] * (rarer > 0)
    return f"{len(nodes)} of {len(tree.parent)} nodes; left out: {', '.join(causes)}" if causes else ""


def draw(found: SearchReport, title: str, suffix: str = ".png", depth: int = DEPTH, most: int = NODES) -> bytes:
    """The tree from left to right, and beside it bars of the prior against the improved policy.

    The root is green: it was seen. What is orange was imagined; gray diamonds are chance. The area of a node and the
    width of a line are shares of the visits, and the action taken is drawn in black. Beside a node stand the action
    that led to it, its visits, and its mean return; dots if some of what follows it is left out.

    Args:
      suffix: one of `SUFFIXES`.
      depth, most: see `shown`.

    Returns:
      a PNG, or an SVG whose texts are texts.
    """
    import matplotlib
    from matplotlib.figure import Figure  # takes a second to import: not every command draws

    nodes, _, _ = shown(found.tree, depth, most)
    places = _places(found.tree, nodes)
    ranking = found.ranking[:ACTIONS]
    lines = max(max(y for _, y in places.values()) + 1, len(ranking), 3)
    deepest = max(x for x, _ in places.values())
    # Settings of this figure alone: SVGs with text in them, and the same bytes every time.
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "reverie"}):
        # In inches: the tree, a gap for the names of actions, the bars; above both a head of three lines, below a note.
        tree, gap, side, edge, head, foot = 1.9 * (deepest + 1), 0.9, 2.4, 0.15, 1.0, 0.4
        wide, high = tree + gap + side + 2 * edge, PITCH * lines + head + foot
        figure = Figure(figsize=(wide, high), dpi=110)
        axes = lambda left, width: figure.add_axes((left / wide, foot / high, width / wide, PITCH * lines / high))
        branches, bars = axes(edge, tree), axes(edge + tree + gap, side)
        for ax in (branches, bars):
            ax.set_ylim(lines - 0.5, -0.5)
        branches.set_xlim(-0.1, deepest + 0.9)
        branches.axis("off")
        _branches(branches, found, places)
        _bars(bars, found, ranking)
        write = lambda y, text, size: figure.text(edge / wide, y / high, text, fontsize=size, va="center")
        write(high - 0.2, title, 10)
        dice = "; diamonds: chance decides, c3 is its outcome 3" * bool(found.tree.chance[nodes].any())
        write(high - 0.45, f"action: visits, mean return; black: the action taken{dice}", 8)
        notes = [left_out(found.tree, depth, most)]
        if len(ranking) < len(found.ranking):
            notes.append(f"bars: {len(ranking)} of {len(found.ranking)} actions")
        write(0.15, "   ".join(note for note in notes if note), 8)
        data = io.BytesIO()
        figure.savefig(data, format=suffix[1:], metadata={"Date": None} if suffix == ".svg" else {})
    return data.getvalue()


def _places(tree: Branches, nodes: np.ndarray) -> dict[int, tuple[int, float]]:
    """Node -> its depth and its line. Every leaf has a line of its own, and a parent stands in the middle of its
    children, the most visited of which comes first."""
    children: dict[int, list[int]] = {int(node): [] for node in nodes}
    for node in sorted(children, key=lambda node: (-tree.visits[node], node)):
        if node:
            children[int(tree.parent[node])].append(node)
    places: dict[int, tuple[int, float]] = {}
    free = iter(range(len(nodes)))

    def put(node: int, depth: int) -> float:
        below = [put(child, depth + 1) for child in children[node]]
        line = (below[0] + below[-1]) / 2 if below else float(next(free))
        places[node] = (depth, line)
        return line

    put(0, 0)
    return places


def _branches(ax: Any, found: SearchReport, places: dict[int, tuple[int, float]]) -> None:
    tree = found.tree
    share = tree.visits / tree.visits[0]
    inside = {int(tree.parent[node]) for node in places}
    cut = {int(parent) for node, parent in enumerate(tree.parent) if node not in places}
    taken = np.flatnonzero((tree.parent == 0) & (tree.action == found.chosen))
    for node, (x, y) in places.items():
        mine = node in taken
        if node:
            left, top = places[int(tree.parent[node])]
            ax.plot(
                (left, left + 0.25, x - 0.25, x),
                (top, top, y, y),
                color="black" if mine else "0.75",
                linewidth=0.6 + 5 * share[node],
                solid_joinstyle="round",
                zorder=1.5 if mine else 1,
            )
        ax.scatter(
            x,
            y,
            s=18 + 260 * share[node],
            color=unit(SEES if not node else OVER if tree.chance[node] else DREAMS),
            edgecolor="black" if mine else "white",
            marker="D" if tree.chance[node] else "o",
            zorder=2,
        )
        text = f"{tree.visits[node]}  {tree.q[node]:.3g}" + " …" * (node in cut)
        radius = float(np.sqrt(18 + 260 * share[node])) / 2
        ax.annotate(
            f"{_short(tree.name[node])}:  {text}" if node else text,
            (x, y),
            (radius + 4, 0) if node not in inside else (0 if node else -radius, radius + 2),
            textcoords="offset points",
            ha="center" if node and node in inside else "left",
            va="bottom" if node in inside else "center",
            fontsize=8,
            fontweight="bold" if mine else "normal",
            bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.7, "pad": 0.3},
            zorder=3,
        )


def _bars(ax: Any, found: SearchReport, ranking: list[int]) -> None:
    lines = np.arange(len(ranking))
    bars = ((-0.19, found.prior, OVER, "prior", "left"), (0.19, found.policy, DREAMS, "improved policy", "right"))
    for offset, values, colour, name, side in bars:
        ax.barh(lines + offset, values[ranking], 0.36, color=unit(colour))
        corner = (float(side == "right"), 1)
        ax.annotate(name, corner, (0, 24), "axes fraction", "offset points", fontsize=9, color=unit(colour), ha=side)
    ax.set_yticks(lines, [_short(found.actions[a]) for a in ranking], fontsize=8)
    for label, action in zip(ax.get_yticklabels(), ranking, strict=True):
        label.set_fontweight("bold" if action == found.chosen else "normal")
    ax.set_xlim(0, 1)
    ax.xaxis.tick_top()
    ax.tick_params(labelsize=8)
    ax.spines[["bottom", "right"]].set_visible(False)
    ax.spines["left"].set_bounds(-0.5, len(ranking) - 0.5)


def _short(name: str) -> str:
    """Names of long vectors are cut: there is room for two numbers. The table has them in full."""
    return name if len(name) <= 14 else f"{name[:13]}…"
