"""The tables in docs/ and README.md: scores, from the records of runs in results/, and what is measured.

python -m bench.pages.scores     # prints all; tests/test_docs.py holds that the pages have them
"""

from __future__ import annotations

import ast
from collections.abc import Iterable
from pathlib import Path

from bench.common import Record, records

RUNS = Path(__file__).parents[2] / "results" / "runs.jsonl"
FIRST = (
    ("CartPole-v1", "dreamer_v3"),
    ("CartPole-v1", "gumbel_muzero"),
    ("Pendulum-v1", "sampled_muzero"),
    ("Catch", "dreamer_v3"),
    ("Catch", "gumbel_muzero"),
)
HEAD = ("env", "algorithm", "greedy return, a seed each", "steps", "minutes", "made again by")


def commands(path: Path = RUNS) -> list[list[Record]]:
    """The runs of each command, seed by seed, by env and algorithm; plain commands before those with many flags."""
    found: dict[tuple[str, str, str], list[Record]] = {}
    for run in records(path):
        if run.unit != Record.unit:
            continue  # shares of games won
        found.setdefault((name(run), run.algorithm, run.command), []).append(run)
    return [found[key] for key in sorted(found, key=lambda key: (*key[:2], len(key[2])))]


def name(run: Record) -> str:
    """The env, in a table."""
    return run.env.removeprefix("reverie.envs.toy:")


def row(runs: list[Record]) -> tuple[str, ...]:
    """The cells of one command."""
    return (
        name(runs[0]),
        runs[0].algorithm,
        ", ".join(score(run.value) for run in runs),
        numbers([run.steps for run in runs]),
        numbers([run.minutes for run in runs], 1),
        f"`{runs[0].command}`",
    )


def table() -> str:
    """All of them, with the command that makes each again."""
    return drawn((HEAD, *map(row, commands())))


def short() -> str:
    """The first result of each of `FIRST`, for README."""
    every = [row(runs)[:-1] for runs in commands()]
    return drawn((HEAD[:-1], *(next(cells for cells in every if cells[:2] == pair) for pair in FIRST)))


def suite() -> str:
    """The runs of the suite, as far as there are any: returns and env steps, a seed each."""
    found: dict[tuple[str, str], list[Record]] = {}
    for run in records(RUNS.with_name("suite.jsonl")):
        found.setdefault((name(run), run.algorithm), []).append(run)
    lines = [
        ("env", "algorithm", "solved at", "greedy return, a seed each", "env steps", "minutes of a core", "commit")
    ]
    for (env, algorithm), runs in sorted(found.items()):
        returns = ", ".join(f"**{score(run.value)}**" if run.solved else score(run.value) for run in runs)
        steps, minutes = numbers([run.steps for run in runs]), numbers([run.minutes for run in runs], 1)
        made = ", ".join(sorted({run.commit[:7] for run in runs}))
        lines.append((env, algorithm, score(runs[0].threshold), returns, steps, minutes, made))
    return drawn(lines)


def measurements() -> str:
    """Every command of bench/, with the first sentence of its own help."""
    lines = [("command", "what it says")]
    for file in sorted(Path(__file__).parents[1].glob("*/[!_]*.py")):
        said = ast.get_docstring(ast.parse(file.read_text())) or ""
        lines.append((f"`python -m bench.{file.parent.name}.{file.stem}`", " ".join(said.split("\n\n")[0].split())))
    return drawn(lines)


def numbers(values: list[float], digits: int = 0) -> str:
    """Distinct ends of a range, or the one value."""
    low, high = f"{min(values):,.{digits}f}", f"{max(values):,.{digits}f}"
    return low if low == high else f"{low} to {high}"


def score(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.2f}".rstrip("0").rstrip(".")


def drawn(lines: Iterable[tuple[str, ...]]) -> str:
    head, *rest = ("| " + " | ".join(line) + " |" for line in lines)
    return "\n".join([head, "|---" * (head.count("|") - 1) + "|", *rest])


if __name__ == "__main__":
    print(short(), table(), suite(), measurements(), sep="\n\n")
