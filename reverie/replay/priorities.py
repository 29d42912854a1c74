"""Draws in proportion to priorities (Schaul et al. 2016, "Prioritized Experience Replay"; MuZero, Appendix G).

A place is drawn with probability P = p^alpha / sum of p^alpha, and its weight (N P)^-beta makes up for that: with
beta = 1 a weighted mean over draws is the plain mean over all N places. Weights are divided by the largest of their
batch, so that they only ever make an update smaller; N and the sum cancel by that.

The powers are the leaves of a tree whose every other node is the sum of two:

                    1: 10
            2: 7            3: 3           n = 5 places: leaves n .. 2n-1, children of i: 2i, 2i+1
        4: 6    5: 1    6: 2    7: 1       A mass in [0, 10) walks down to one leaf: left while it is
      8: 4  9: 2                           less than the left sum, else right with the rest.

A node is always computed anew as left + right and never adjusted by a difference: all sums follow from the leaves
alone, to the bit, so nothing of the tree needs to be saved.
"""

from __future__ import annotations

import numpy as np

BYTES = 2 * 8  # of the tree, per place: a leaf and, but for one, an inner node
LEAST = 1e-6  # a priority of zero would never be drawn again, and so never be corrected


def check(priorities: np.ndarray) -> None:
    """Raises ValueError unless all are 0 or more and finite: one that is not would be the only one ever drawn."""
    wrong = ~((priorities >= 0) & (priorities < np.inf))
    if wrong.any():
        raise ValueError(f"a priority must be 0 or more and finite, given {priorities[wrong][:3].tolist()}")


class SumTree:
    """`size` leaves, float64, not negative, with O(log size) changes and draws."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.nodes = np.zeros(2 * size)  # of which the first means nothing
        self.leaves = self.nodes[size:]  # a view to read from
        self._left, self._right = self.nodes[0::2], self.nodes[1::2]  # [i]: the children of i
        self._depth = (2 * size - 1).bit_length() - 1  # of the deepest leaf; no leaf is higher by more than one

    @property
    def total(self) -> float:
        return float(self.nodes[1])

    def set(self, places: np.ndarray, values: np.ndarray | float) -> None:
        """Changes the leaves `places` [n] to `values` [n]. Where a place stands twice, the last counts."""
        self.leaves[places] = values
        if places.size * self._depth > self.size:
            high = self.size
            while high > 1:  # nodes low .. high - 1, whose children are all at high or beyond
                low = (high + 1) // 2
                self.nodes[low:high] = self._left[low:high] + self._right[low:high]
                high = low
            return
        node = places + self.size
        for _ in range(self._depth):  # a leaf that is not as deep waits at the root for the others
            node = np.maximum(node >> 1, 1)
            self.nodes[node] = self._left[node] + self._right[node]

    def find(self, mass: np.ndarray) -> np.ndarray:
        """The places at which `mass` [n], float64 in [0, total], lies: never one whose leaf is zero, as long as
        any is not."""
        node = np.ones(mass.shape, np.int64)
        for step in range(self._depth):
            if step == self._depth - 1:  # some have arrived
                down = np.flatnonzero(node < self.size)
                node[down] = self._down(node[down], mass[down])[0]
            else:
                node, mass = self._down(node, mass)
        return node - self.size

    def _down(self, node: np.ndarray, mass: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The children of the inner nodes [n] at which mass [n] lies, and what of it lies in them."""
        left = self._left[node]
        # Differences round: a mass may stand at the very end of its node, and there may be nothing on the right.
        right = (mass >= left) & (self._right[node] > 0)
        return 2 * node + right, mass - left * right


class Priorities:
    """The priorities of `size` places, of which those that are `set`, and not dropped again, are drawn: by the power
    `alpha`, 0 to 1; 0 draws uniformly."""

    def __init__(self, size: int, alpha: float) -> None:
        self.alpha = alpha
        self.highest = 1.0  # priority known so far. What is new gets it, so that it is soon drawn
        self._tree = SumTree(size)

    def set(self, places: np.ndarray, priorities: np.ndarray) -> None:
        """From now on, `places` [n] are drawn by `priorities` [n]; at least `LEAST` counts. ValueError: see `check`."""
        self._tree.set(places, self._power(priorities))

    def drop(self, places: np.ndarray) -> None:
        """`places` [n] are not drawn any more."""
        self._tree.set(places, 0.0)

    def reset(self, places: np.ndarray, priorities: np.ndarray) -> None:
        """`set`, with all others dropped; `places` differ."""
        leaves = np.zeros(self._tree.size)
        leaves[places] = self._power(priorities)
        self._tree.set(np.arange(self._tree.size), leaves)

    def change(self, places: np.ndarray, priorities: np.ndarray) -> None:
        """`set` for those of `places` that can be drawn; the others stay dropped."""
        drawn = self._tree.leaves[places] > 0
        self.set(places[drawn], priorities[drawn])

    def learn(self, column: np.ndarray, slots: np.ndarray, held: np.ndarray) -> np.ndarray:
        """`change` to what training wrote to `slots` [n] of `column`, float32 [size], all priorities. Returns other
        slots, changed there, too: rows not trained on yet (of those `held`, bool [size]), where the largest priority
        known has risen.

        What that was when they came says nothing: a warm-up is over before any priority is known. Left at 1, where the
        others have hundreds, its rows would never be drawn. They are those that have the largest.
        """
        before, highest = np.float32(self.highest), float(column[slots].max())
        self.change(slots, column[slots])
        if highest <= self.highest:
            return np.zeros(0, np.int64)
        self.highest = highest
        waiting = held & (column == before)
        waiting[slots] = False
        risen = np.flatnonzero(waiting)
        column[risen] = highest
        self.change(risen, column[risen])
        return risen

    def draw(self, count: int, rng: np.random.Generator, beta: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
        """(places int64 [count], weights float32 [count], the largest of them 1).

        Stratified: the range of the sums is cut into `count` equal parts, and one draw is made from each. Every place
        is drawn as often as by independent draws, on average, but a batch has fewer of the same. The parts come in
        random order, so that some of the draws are a fair sample of the places, like all of them. `beta`: 0 to 1; 0
        leaves all weights at 1.
        """
        part = self._tree.total / count
        places = self._tree.find((rng.permutation(count) + rng.random(count)) * part)
        powers = self._tree.leaves[places]
        return places, ((powers.min() / powers) ** beta).astype(np.float32)

    def _power(self, priorities: np.ndarray) -> np.ndarray:
        check(priorities)
        return np.maximum(priorities.astype(np.float64), LEAST) ** self.alpha
