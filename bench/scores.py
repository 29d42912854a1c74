"""The tables of scores in docs/results.md and README.md, from what `bench/solve.py --out` wrote into results/.

python bench/scores.py     # prints both; tests/test_docs.py holds that the pages have them
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parents[1] / "results"
FIRST = (
    ("CartPole-v1", "dreamer_v3"),
    ("CartPole-v1", "gumbel_muzero"),
    ("Pendulum-v1", "sampled_muzero"),
    ("Catch", "dreamer_v3"),
    ("Catch", "gumbel_muzero"),
)
HEAD = ("env", "algorithm", "greedy return, a seed each", "steps", "minutes", "made again by")


def numbers(values: list[float], digits: int = 0) -> str:
    """Distinct ends of a range, or the one value."""
    low, high = f"{min(values):,.{digits}f}", f"{max(values):,.{digits}f}"
    return low if low == high else f"{low} to {high}"


def score(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.2f}".rstrip("0").rstrip(".")


def rows() -> Iterator[tuple[str, ...]]:
    """One row for every file that holds runs of one command, by env and algorithm."""
    found: list[tuple[str, ...]] = []
    for path in sorted(RESULTS.glob("*.json")):
        data: dict[str, Any] = json.loads(path.read_text())
        if not str(data.get("command")).startswith("python bench/solve.py") or "config" not in data:
            continue
        runs, config = data["runs"], data["config"]
        found.append(
            (
                config["run"]["env"].removeprefix("reverie.envs.toy:"),
                config["algorithm"],
                ", ".join(score(run["value"]) for run in runs),
                numbers([run["steps"] for run in runs]),
                numbers([run["minutes"] for run in runs], 1),
                f"`{data['command']}`",
            )
        )
    yield from sorted(found)


def table() -> str:
    """All of them, with the command that makes each again."""
    return drawn((HEAD, *rows()))


def short() -> str:
    """The first result of each of `FIRST`, for README."""
    every = list(rows())
    return drawn((HEAD[:-1], *(next(row[:-1] for row in every if row[:2] == pair) for pair in FIRST)))


def drawn(lines: Iterable[tuple[str, ...]]) -> str:
    head, *rest = ("| " + " | ".join(line) + " |" for line in lines)
    return "\n".join([head, "|---" * (head.count("|") - 1) + "|", *rest])


if __name__ == "__main__":
    print(short(), table(), sep="\n\n")
