"""An env that breaks on command, for runs that are too long for a script."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

from faulty import Faulty


class Shaky(Faulty):
    """Counts like `Faulty`, `pause` seconds a step. Of all instances the first one to see a file `orders` takes it away
    and the fault that it names: `order(path, fault)`."""

    def __init__(self, orders: str = "", pause: float = 0.0, length: int = 50) -> None:
        super().__init__(length=length)
        self._orders, self._pause = Path(orders) if orders else None, pause

    def step(self, action: Any) -> tuple[Any, float, bool, bool, Any]:
        time.sleep(self._pause)
        if self._orders and self._orders.exists():
            mine = self._orders.with_name(f"{self._orders.name}.{os.getpid()}")
            try:
                self._orders.rename(mine)  # of several, one is faster
            except FileNotFoundError:
                pass
            else:
                self._script[f"total:{self._total + 1}"] = mine.read_text()
                mine.unlink()
        return super().step(action)


def order(path: Path, fault: str) -> None:
    """A fault of `faulty.FAULTS`, for one step of one env."""
    draft = path.with_name(f"{path.name}.draft")
    draft.write_text(fault)
    draft.rename(path)
