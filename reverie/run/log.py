"""Where a run says how it is doing: JSON lines, TensorBoard, and the terminal.

A line of `metrics.jsonl` is one JSON object: `step` (env steps) and numbers; one that is not finite
stands as null. Everything but `time/...` and `memory/...` is the same in every run of the same command.
"""

from __future__ import annotations

import json
import logging
import math
import os
import re
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from reverie.fields import amount
from reverie.files import Folder, Missing
from reverie.run.clock import Pace, duration
from reverie.run.events import Events, append

logger = logging.getLogger("reverie")

PLAIN_EVERY = 5.0  # seconds between lines where there is no terminal
SILENCE = 60.0  # after which there is one even if nothing new was measured
# What the terminal shows, in this order, of the metrics that there are.
SHOWN = {
    "phase": "phase",
    "episode/return": "episode return",
    "episode/length": "episode length",
    "eval/mean_return": "eval return",
    "loss/total": "loss",
    "replay/rows": "replay rows",
    "time/updates_per_second": "updates/s",
    "time/steps_per_second": "env steps/s",
    "nonfinite/total": "skipped updates",
    "env/failures": "env failures",
}


class JsonLines:
    """An append-only file of JSON objects, made if missing.

    Lines that the disk does not take wait in memory, and come before the next one as soon as it does.

    Of a file that is there the first `keep` bytes stay: what lies behind came after the checkpoint that the run
    continues from.
    """

    def __init__(self, path: Path, keep: int = 0) -> None:
        self.path = path
        self._handle = Folder(path.parent).open(path.name, os.O_WRONLY | os.O_CREAT)
        size = os.fstat(self._handle).st_size
        if size < keep:
            logger.warning("%s lost %d bytes; metrics go on behind the gap", path, keep - size)
        self.offset = min(keep, size)
        self._waiting = b""
        os.ftruncate(self._handle, self.offset)

    def write(self, record: Mapping[str, Any]) -> None:
        """Appends one line. A full disk is a warning: metrics are not worth a run."""
        waits = bool(self._waiting)
        self._waiting += json.dumps(record, allow_nan=False).encode() + b"\n"
        if (error := self._append()) and not waits:
            logger.warning("cannot write to %s: %s. Metrics wait in memory until that works again", self.path, error)

    def sync(self) -> None:
        """Makes what was written durable, before a checkpoint refers to it."""
        self._append()
        os.fsync(self._handle)

    def close(self) -> None:
        if error := self._append():
            logger.warning("%s lacks its last %d lines: %s", self.path, self._waiting.count(b"\n"), error)
        os.close(self._handle)

    def _append(self) -> OSError | None:
        """Writes all that waits, or nothing, and says why."""
        try:
            append(self._handle, self._waiting, self.offset)
        except OSError as error:
            return error
        self.offset += len(self._waiting)
        self._waiting = b""
        return None


def read(path: Path, size: int | None = None) -> list[dict[str, Any]]:
    """All records of a file of JSON lines, or of its first `size` bytes. A torn last line is left out; so is, with a
    warning, one that is no record (a bad byte of a disk): it is not worth a run."""
    try:
        lines = Folder(path.parent).read(path.name, size).split(b"\n")
    except Missing:
        return []
    records, faults = [], []
    for number, line in enumerate(lines[:-1], 1):  # behind the last newline: torn
        try:
            records.append(_record(line))
        except (ValueError, RecursionError) as error:
            faults.append(f"line {number} ({error})")
    if faults:
        more = f", and {len(faults) - 1} more lines" if faults[1:] else ""
        logger.warning("%s: %s is no record of metrics and is left out%s", path, faults[0], more)
    return records


def _record(line: bytes) -> dict[str, Any]:
    """A line as the record that it is; ValueError if it is none."""
    record = json.loads(line)
    if not isinstance(record, dict) or "step" not in record:
        raise ValueError("no JSON object with a step")
    for name, value in record.items():
        if value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
            raise ValueError(f"{name} is {type(value).__name__}, expected a number or null")
    return record


class Plain:
    """A line every few seconds, for files and pipes."""

    def __init__(self, console: Console, steps: int, unit: str = "step") -> None:
        self._console, self._steps, self._unit = console, steps, unit
        self._values: dict[str, Any] = {}
        self._newest = 0  # step of the newest values
        self._fresh = False  # they are not shown yet
        self._next = 0.0
        self._pace: Pace | None = None
        self._begun: float | None = None  # since when something is known of the pace and not yet told

    def update(self, step: int, pace: Pace | None = None) -> None:
        now = time.monotonic()
        if pace and pace.updates:
            self._pace, self._begun = pace, now if self._begun is None else self._begun
        quiet = self._begun is not None and now >= max(self._begun, self._next) + (SILENCE if self._values else 0)
        if (self._fresh and now >= self._next) or (quiet and self._pace and self._pace.updates_left):
            self._line(step)

    def metrics(self, step: int, values: Mapping[str, Any]) -> None:
        self._values.update(values)
        self._fresh, self._newest = True, step

    def close(self) -> None:
        if self._fresh:
            self._line(self._newest)

    def _line(self, step: int) -> None:
        self._next, self._fresh = time.monotonic() + PLAIN_EVERY, False
        shown = [f"{text} {show(self._values[k])}" for k, text in SHOWN.items() if k in self._values]
        shown = [*_left(self._pace), *shown]
        self._console.print(f"{self._unit} {step:,} of {self._steps:,}  " + "  ".join(shown), soft_wrap=True)


class Terminal:
    """A progress bar with the time left, and the newest figures below it."""

    def __init__(self, console: Console, steps: int, start: int, unit: str) -> None:
        self._progress = Progress(
            TextColumn(f"{unit}s"),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[left]}"),
            console=console,
        )
        self._task = self._progress.add_task("", total=steps, completed=start, left="")
        self._step = start
        self._pace: Pace | None = None
        self._values: dict[str, Any] = {}
        self._live = Live(console=console, refresh_per_second=2, get_renderable=self._render)
        self._live.start()

    def update(self, step: int, pace: Pace | None = None) -> None:
        self._step, self._pace = step, pace  # drawn when the terminal is

    def metrics(self, step: int, values: Mapping[str, Any]) -> None:
        self._values.update(values)

    def close(self) -> None:
        self._live.stop()

    def _render(self) -> Group:
        self._progress.update(self._task, completed=self._step, left="  ".join(_left(self._pace)))
        table = Table.grid(padding=(0, 3))
        shown = [(text, show(self._values[k])) for k, text in SHOWN.items() if k in self._values]
        half = (len(shown) + 1) // 2
        for left, right in zip(shown[:half], [*shown[half:], ("", "")], strict=False):
            table.add_row(left[0], f"[bold]{left[1]}", right[0], f"[bold]{right[1]}")
        return Group(self._progress, table)


def display(console: Console, steps: int, start: int = 0, unit: str = "step") -> Terminal | Plain:
    """The display of a run of so many steps, as its `unit` is called; `start` of them are done."""
    # A console on stderr is one beside JSON: a program reads along.
    if console.is_terminal and not console.stderr:
        return Terminal(console, steps, start, unit)
    return Plain(console, steps, unit)


@dataclass(frozen=True)
class Log(AbstractContextManager["Log"]):
    """All sinks of one session of a run, closed in the end."""

    lines: JsonLines
    events: Events
    display: Terminal | Plain

    def write(self, step: int, values: Mapping[str, float], moment: int | None = None) -> None:
        """Records one line of metrics after so many env steps, everywhere. Curves go on at the `moment` of the run (see
        `phases`); left out, it is the step."""
        moment = step if moment is None else moment
        numbers = finite(values)
        record = {"step": step, **numbers}
        self.lines.write(record)
        self.events.scalars(moment, {name: value for name, value in numbers.items() if value is not None})
        self.display.metrics(moment, record)

    def __exit__(self, *error: object) -> None:
        self.display.close()
        self.events.close()
        self.lines.close()


def _left(pace: Pace | None) -> list[str]:
    """Updates so far, and the time left, as far as it is known."""
    if pace is None or not pace.updates:
        return []
    left = pace.seconds_left
    words = [amount(pace.earlier + pace.updates, "update")]
    return words if left is None or not (pace.updates_left or pace.steps_left) else [*words, f"{duration(left)} left"]


def show(value: float | None) -> str:
    """A number as a person wants to read it: four digits, no exponent if it can be avoided; 1e30 as 1e30."""
    if value is None or not math.isfinite(value):
        return "not finite"
    if abs(value) >= 1e12:
        return re.sub(r"e\+0*", "e", f"{value:.4g}")
    if value == int(value):
        return f"{int(value):,}"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def finite(values: Mapping[str, float]) -> dict[str, float | None]:
    """The values as a record has them: None where they are not finite, which JSON cannot say."""
    return {k: float(v) if math.isfinite(v) else None for k, v in values.items()}
