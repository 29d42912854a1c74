"""How good the best policy of a small world is, and what it costs to act at random now and then.

    python -m bench.probes.exact >> results/exact.jsonl

Solves the tables of Gymnasium's toy worlds by value iteration, for a discount and a share of even random moves, as an
actor has them that never rules an action out. Prints one JSON line each: the mean return of a greedy episode of that
policy (`value`), of an episode with the random moves in it, and by how much the best action is worth more than the
second in half of the states.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import gymnasium
import numpy as np
import tyro

from bench.common import origin, tell

SWEEPS = 5000


@dataclass(frozen=True)
class Args:
    tasks: tuple[str, ...] = ("FrozenLake8x8-v1", "CliffWalking-v1")
    discounts: tuple[float, ...] = (0.99, 0.997)
    shares: tuple[float, ...] = (0.0, 0.01, 0.1)
    """Of moves that are drawn evenly."""
    steps: int = 200
    """After which an episode is over."""


class World:
    """A table of a world: `reach` [S, A, S] are chances to go on elsewhere, `reward` [S, A] its mean, `start` [S]."""

    def __init__(self, task: str) -> None:
        inner: Any = gymnasium.make(task).unwrapped
        states, actions = inner.observation_space.n, inner.action_space.n
        self.reach, self.reward = np.zeros((states, actions, states)), np.zeros((states, actions))
        for state, action in itertools.product(range(states), range(actions)):
            for chance, after, reward, ends in inner.P[state][action]:
                self.reward[state, action] += chance * reward
                self.reach[state, action, after] += chance * (not ends)
        self.start = np.asarray(inner.initial_state_distrib, np.float64)

    def reachable(self) -> np.ndarray:
        """Bool [S]: where an episode can go on from."""
        there = self.start > 0
        for _ in there:
            there = there | (self.reach[there].sum((0, 1)) > 0)
        return there

    def values(self, discount: float, share: float = 0.0) -> np.ndarray:
        """The values [S, A] of the policy that is best where this share of its moves is even."""
        q = np.zeros_like(self.reward)
        for _ in range(SWEEPS):
            q = self.reward + discount * self.reach @ ((1 - share) * q.max(1) + share * q.mean(1))
        return q

    def play(self, policy: np.ndarray, steps: int) -> float:
        """The mean return of an episode of a policy [S, A]."""
        there, total = self.start, 0.0
        for _ in range(steps):
            done = there[:, None] * policy
            total += float((done * self.reward).sum())
            there = np.einsum("sa,sat->t", done, self.reach)
        return total

    def most(self, steps: int) -> float:
        """The mean return of the best policy that knows how many steps are left."""
        value = np.zeros(len(self.start))
        for _ in range(steps):
            value = (self.reward + self.reach @ value).max(1)
        return float(self.start @ value)


def main(args: Args) -> None:
    for task in args.tasks:
        world = World(task)
        most = world.most(args.steps)
        for discount, share in itertools.product(args.discounts, args.shares):
            q = world.values(discount, share)
            greedy = np.eye(q.shape[1])[q.argmax(1)]
            first, second = np.sort(q[world.reachable()], 1)[:, ::-1][:, :2].T
            tell(
                {
                    "bench": "exact",
                    "name": task,
                    "discount": discount,
                    "random": share,
                    "value": round(world.play(greedy, args.steps), 3),
                    "unit": "mean return",
                    "with_random_moves": round(world.play((1 - share) * greedy + share / q.shape[1], args.steps), 3),
                    "most": round(most, 3),
                    "gap": round(float(np.median(first - second)), 4),
                    **origin(),
                }
            )


if __name__ == "__main__":
    main(tyro.cli(Args))
