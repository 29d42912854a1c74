"""Metrics on disk and in the terminal."""

from __future__ import annotations

import io
import json
import logging
import math
import os
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from reverie.run import log
from reverie.run.events import Events


def test_lines_round_trip(tmp_path: Path) -> None:
    lines = log.JsonLines(tmp_path / "m.jsonl")
    lines.write({"step": 1, "a": 0.5})
    lines.write({"step": 2, "a": None})
    lines.sync()
    lines.close()
    assert log.read(tmp_path / "m.jsonl") == [{"step": 1, "a": 0.5}, {"step": 2, "a": None}]
    assert log.read(tmp_path / "none.jsonl") == []


def test_a_torn_last_line_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n{"ste')
    assert log.read(path) == [{"step": 1}, {"step": 2}]


def test_what_came_after_the_checkpoint_is_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n{"ste')
    lines = log.JsonLines(path, keep=len('{"step": 1}\n'))
    lines.write({"step": 3})
    lines.close()
    assert log.read(path) == [{"step": 1}, {"step": 3}]


def test_a_file_shorter_than_the_checkpoint_says_goes_on(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "reverie"):
        lines = log.JsonLines(tmp_path / "m.jsonl", keep=100)
    lines.write({"step": 3})
    lines.close()
    assert "lost 100 bytes" in caplog.text
    assert log.read(tmp_path / "m.jsonl") == [{"step": 3}]


def test_a_full_disk_tears_no_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    lines = log.JsonLines(tmp_path / "m.jsonl")
    lines.write({"step": 1})
    original = os.pwrite

    def full(handle: int, data: bytes, at: int) -> int:
        if at == lines.offset:
            return original(handle, data[:4], at)  # four bytes still fit
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch, caplog.at_level(logging.WARNING, "reverie"):
        patch.setattr(os, "pwrite", full)
        lines.write({"step": 2})
        lines.write({"step": 3})
        assert lines.offset == len('{"step": 1}\n'), "what a checkpoint refers to"
    assert log.read(tmp_path / "m.jsonl") == [{"step": 1}]
    lines.sync()
    assert log.read(tmp_path / "m.jsonl") == [{"step": 1}, {"step": 2}, {"step": 3}]
    assert lines.offset == (tmp_path / "m.jsonl").stat().st_size
    assert caplog.text.count("No space left on device. Metrics wait in memory") == 1
    with monkeypatch.context() as patch, caplog.at_level(logging.WARNING, "reverie"):
        patch.setattr(os, "pwrite", full)
        lines.write({"step": 4})
        lines.close()
    assert "lacks its last 1 lines" in caplog.text


@pytest.mark.parametrize(
    "bad",
    [b'{"step": 2, "a": 0.\xff}', b'{"step": 2, "a": [0]}', b'{"stop": 2}', b"2", b'{"step": true}', b"[" * 10**5, b""],
)
def test_a_bad_byte_costs_a_line_and_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture, bad: bytes) -> None:
    path = tmp_path / "m.jsonl"
    path.write_bytes(b'{"step": 1}\n' + bad + b'\n{"step": 3, "a": null}\n')
    with caplog.at_level(logging.WARNING, "reverie"):
        assert log.read(path) == [{"step": 1}, {"step": 3, "a": None}]
    assert f"{path}: line 2 (" in caplog.text
    assert len(caplog.records) == 1


def test_many_bad_lines_are_told_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "m.jsonl").write_bytes(b"\0\n" * 5)
    with caplog.at_level(logging.WARNING, "reverie"):
        assert log.read(tmp_path / "m.jsonl") == []
    (told,) = caplog.messages
    assert "line 1 (" in told
    assert "and 4 more lines" in told


def record(tmp_path: Path, terminal: bool) -> str:
    text = io.StringIO()
    console = Console(file=text, force_terminal=terminal, width=100)
    with log.Log(log.JsonLines(tmp_path / "m.jsonl"), Events(tmp_path / "tb"), log.display(console, 2000)) as sinks:
        sinks.display.update(1000)
        values: dict[str, Any] = {"episode/return": 12.5, "loss/total": math.nan, "replay/rows": 10}
        sinks.write(1000, values)
        sinks.display.update(1001)
    return text.getvalue()


@pytest.mark.parametrize("terminal", [True, False])
def test_every_sink_gets_a_record(tmp_path: Path, terminal: bool) -> None:
    text = record(tmp_path, terminal)
    assert "episode return" in text
    assert "12.5" in text
    assert "not finite" in text
    line = (tmp_path / "m.jsonl").read_text()
    assert json.loads(line) == {
        "step": 1000, "episode/return": 12.5, "loss/total": None, "replay/rows": 10.0,
    }  # fmt: skip
    (events,) = (tmp_path / "tb").iterdir()
    assert b"episode/return" in events.read_bytes()


def test_plain_lines_are_seconds_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    text, now = io.StringIO(), [0.0]
    monkeypatch.setattr(log.time, "monotonic", lambda: now[0])
    plain = log.Plain(Console(file=text, width=200), steps=100)
    for step in range(100):
        now[0] = 0.1 * step
        if step < 80:
            plain.metrics(step, {"step": step, "loss/total": 2.0})
        plain.update(step)
    assert text.getvalue().count("\n") == 2
    assert "step 0 of 100" in text.getvalue()


def test_plain_lines_say_nothing_twice() -> None:
    text = io.StringIO()
    plain = log.Plain(Console(file=text, width=200), steps=100)
    plain.metrics(1, {"step": 1, "loss/total": 2.0})
    plain.update(1)
    plain._next = 0.0
    plain.update(2)
    assert text.getvalue().count("\n") == 1


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0"),
        (12345678.0, "12,345,678"),
        (0.12345, "0.1235"),
        (1234.5, "1,234"),
        (None, "not finite"),
    ],
)
def test_numbers_for_people(value: float | None, text: str) -> None:
    assert log.show(value) == text
