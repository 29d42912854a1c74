"""How many updates are due: replayed steps per env step, exact over the whole run."""

from __future__ import annotations

import math
from fractions import Fraction


class Ratio:
    """Counts updates so that, at any time, `done == floor(ratio * max(0, steps - start) /
    batch_steps)`.

    Args:
      replayed_per_step: rows trained on per env step, taken as the decimal number it is written as
        (0.1 is one tenth), so that a long run does not drift.
      batch_steps: trained rows of one update, `B * T`.
      start: env steps before the first update can be due.

    Raises ValueError for a negative ratio, an empty batch or a negative start.
    """

    def __init__(self, replayed_per_step: float, batch_steps: int, start: int) -> None:
        if not 0 <= replayed_per_step < float("inf"):
            raise ValueError(f"the replay ratio is a number >= 0, e.g. 32; given {replayed_per_step}")
        if batch_steps < 1 or start < 0:
            raise ValueError(
                f"a batch has at least one trained row and the start is >= 0; given "
                f"batch_steps={batch_steps}, start={start}"
            )
        self._updates_per_step = Fraction(str(replayed_per_step)) / batch_steps
        self._start = start
        self.done = 0

    def total(self, steps: int) -> int:
        """Updates that a run of `steps` env steps does in all."""
        return int(self._updates_per_step * max(0, steps - self._start))

    @property
    def first(self) -> int | None:
        """Env steps after which the first update is due; None if there is never one."""
        return self._start + math.ceil(1 / self._updates_per_step) if self._updates_per_step else None

    def due(self, steps: int) -> int:
        """Updates to do now that `steps` env steps are taken; they count as done from here on."""
        due = self.updates_due(steps)
        self.done += due
        return due

    def updates_due(self, steps: int) -> int:
        """Updates that are not done yet of those due now."""
        return max(0, self.total(steps) - self.done)

    def state(self) -> dict[str, int]:
        """JSON-able state. With it, a resumed run owes exactly what the interrupted one owed: no
        burst."""
        return {"done": self.done}

    def restore(self, state: dict[str, int]) -> None:
        self.done = int(state["done"])
