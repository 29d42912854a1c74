"""What a person hears while a run goes, and when something is wrong."""

from __future__ import annotations

import io
import json
import re
import time
from pathlib import Path

import gymnasium
import jax.numpy as jnp
import numpy as np
import pytest
from rich.console import Console
from test_cli import TRAIN, answer, here, run  # noqa: F401 (a fixture)

from reverie import cli
from reverie.envs.spec import draws
from reverie.run import counted_jit, log
from reverie.run.clock import Pace
from reverie.run.events import Events
from reverie.view.tree import Branches, SearchReport


class Blind(gymnasium.Env):
    """Draws nothing."""

    observation_space = gymnasium.spaces.Box(-1, 1, (2,))
    action_space = gymnasium.spaces.Discrete(2)


class Around(gymnasium.Wrapper):
    """Somebody's own."""


class Drawn(Blind):
    metadata = {"render_modes": ["rgb_array"]}  # noqa: RUF012


# -------------------------------------------------------------------------------- a plan of nothing


def test_a_plan_of_no_updates_says_so_and_what_to_type(capsys: pytest.CaptureFixture[str]) -> None:
    few = ["train", "fake", "--env", "CartPole-v1", "--steps", "500", "--dry-run"]
    (warning,) = answer(capsys, *few)["warnings"]
    assert warning.startswith("0 updates: nothing would be learned in 500 steps. The first update is due at step 1,056")
    assert "after 1,024 steps with random actions (--warmup)" in warning
    assert "Type --steps 10560" in warning
    _, out, _ = run(capsys, *few)
    assert "0 updates: nothing would be learned" in out
    assert answer(capsys, *few, "--steps", "1056")["warnings"] == []
    assert answer(capsys, *few, "--steps", "1056")["updates"] == 1


def test_it_is_told_what_keeps_the_first_update_away(capsys: pytest.CaptureFixture[str]) -> None:
    few = ["train", "fake", "--env", "CartPole-v1", "--steps", "500", "--dry-run"]
    told = lambda *more: " ".join(answer(capsys, *few, *more)["warnings"])
    assert "when each of 20 envs has filled a sequence of 65 steps" in told("--envs", "20", "--warmup", "10")
    assert "with --replay-ratio 0. Type --replay-ratio 32" in told("--replay-ratio", "0")
    assert "Type --model-updates" in told(
        "--schedule", "model-then-policy", "--model-updates", "0", "--policy-updates", "0"
    )


def test_one_is_told_in_the_singular(capsys: pytest.CaptureFixture[str]) -> None:
    _, out, _ = run(capsys, "train", "fake", "--env", "CartPole-v1", "--steps", "1056", "--dry-run")
    assert "1,056 steps, 1 update\n" in out
    one = ["--steps", "1", "--envs", "1", "--checkpoint-every", "1", "--run", "x"]
    _, out, _ = run(capsys, *TRAIN, *one)
    assert "Done: 1 step, 0 updates" in out
    assert "every 1 step\n" in out
    _, out, _ = run(capsys, "eval", "x", "--episodes", "1")
    assert "after 1 step, 1 greedy episode: mean return" in out


# ------------------------------------------------------------------------------------ errors as JSON


@pytest.mark.parametrize(
    ("argv", "kind", "message", "code"),
    [
        (["train", "fake", "--preset", "none"], "ConfigError", "which env?", 2),
        (["train", "dreamer_v9"], "UnknownAlgorithm", "no algorithm 'dreamer_v9'", 2),
        (["train", "fake", "--env", "CartPole-v7"], "UnusableEnv", "CartPole-v7", 2),
        (["train", "fake", "--enw", "x"], "ConfigError", "--enw", 2),
        (["train", "fake", "--steps", "many"], "ConfigError", "many", 2),
        (["eval", "nothing"], "ConfigError", "no run in nothing", 2),
        (["walk"], "ConfigError", "no verb 'walk'", 2),
    ],
)
def test_with_json_an_error_is_an_object_too(
    capsys: pytest.CaptureFixture[str], argv: list[str], kind: str, message: str, code: int
) -> None:
    given, out, err = run(capsys, *argv, "--json")
    told = json.loads(out.splitlines()[-1])
    assert told == {"error": told["error"], "kind": kind, "exit": code}
    assert message in told["error"]
    assert "│" not in told["error"]
    assert given == code
    assert message in err


def test_with_json_a_fault_of_ours_is_an_object_and_a_traceback(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*args: object) -> int:
        raise ZeroDivisionError("by nobody")

    monkeypatch.setitem(cli.VERBS, "list", broken)
    with pytest.raises(ZeroDivisionError):
        cli.main(["list", "--json"])
    assert json.loads(capsys.readouterr().out)["error"] == "ZeroDivisionError: by nobody"


# ------------------------------------------------------------------------------------ what to type


def test_commands_that_are_proposed_are_quoted_and_steps_beyond_are_told(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, *TRAIN, "--envs", "3", "--run", "my runs/x")
    assert code == 0
    assert "reverie eval 'my runs/x' --episodes 20 --video 'my runs/x/videos/eval.mp4'" in out
    assert "tensorboard --logdir 'my runs/x'" in out
    assert "Done: 42 steps (of --steps 40: envs that step together end together)" in out
    told = answer(capsys, *TRAIN, "--envs", "3", "--run", "my runs/x")
    assert (told["steps"], told["steps_asked"]) == (42, 40)


def test_no_video_is_proposed_where_nothing_is_drawn(capsys: pytest.CaptureFixture[str]) -> None:
    quick = ["train", "fake", "--preset", "quick", "--steps", "8", "--warmup", "4", "--eval-episodes", "0"]
    code, out, _ = run(capsys, *quick, "--env", "device:Catch", "--run", "x")
    assert code == 0
    assert "reverie eval x --episodes 20\n" in out
    code, _, err = run(capsys, "eval", "x", "--video", "x.mp4", "--episodes", "100000")
    assert code == 2, "at once, and not after the evaluation"
    assert "draws no pictures" in err


def test_whether_an_env_draws_is_told_by_its_name() -> None:
    assert draws("CartPole-v1")
    assert draws("reverie.envs.toy:Catch"), "not told by its class: tried"
    assert draws("test_feedback:Drawn")
    assert not draws("test_feedback:Blind")
    assert draws("test_feedback:Around"), "what is wrapped may draw"
    assert not draws("device:CartPole")
    assert not draws("pgx:tic_tac_toe")


# ----------------------------------------------------------------------------------- while it goes


def test_a_run_that_goes_on_says_from_where(capsys: pytest.CaptureFixture[str]) -> None:
    _, out, _ = run(capsys, *TRAIN, "--run", "x")
    assert "continued" not in out
    _, out, _ = run(capsys, *TRAIN, "--steps", "60", "--run", "x")
    assert re.search(r"run +x, continued from step 40 and \d+ updates\n", out)


def test_time_left_is_told_from_the_first_update_on() -> None:
    text = io.StringIO()
    plain = log.Plain(Console(file=text, width=200), steps=1000)
    plain.update(50, Pace(50, 0, 950, 100, {"envs": 1.0}))
    assert text.getvalue() == ""
    plain.update(51, Pace(51, 1, 949, 99, {"train": 60.0}, compiling=20.0, earlier=70))
    assert text.getvalue() == "step 51 of 1,000  71 updates  66 min left\n", "those of earlier sessions count"
    plain.update(52, Pace(52, 2, 948, 98, {"train": 100.0}, compiling=20.0, earlier=70))
    assert text.getvalue().count("\n") == 1, "and not at every step"
    first = log.Plain(Console(file=text, width=200), steps=1000)
    first.update(51, Pace(51, 1, 949, 99, {"train": 60.0}))
    assert "  1 update  " in text.getvalue()


def test_the_terminal_has_a_bar_and_json_has_none(tmp_path: Path) -> None:
    def shown(stderr: bool) -> str:
        text = io.StringIO()
        console = Console(file=text, force_terminal=True, width=120, stderr=stderr)
        with log.Log(log.JsonLines(tmp_path / "m.jsonl"), Events(tmp_path / "tb"), log.display(console, 1000)) as sinks:
            sinks.display.update(51, Pace(51, 1, 949, 99, {"train": 60.0}, compiling=20.0))
        return text.getvalue()

    assert "66 min left" in shown(stderr=False)
    assert "━" in shown(stderr=False)
    assert "━" not in shown(stderr=True)


def test_a_long_compilation_is_told(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(counted_jit, "PATIENCE", 0.02)
    slow = counted_jit.CountedJit("train", lambda x: time.sleep(0.3) or x + 1)
    with caplog.at_level("INFO", "reverie"):
        slow(jnp.float32(1))
        slow(jnp.float32(2))
    assert caplog.text.count("compiling train, once for this shape") == 1
    assert slow.compiling > 0.3


@pytest.mark.parametrize(
    ("value", "told"),
    [(1e30, "1e30"), (-1e30, "-1e30"), (1.5e12, "1.5e12"), (123456789.0, "123,456,789"), (0.12345, "0.1235")],
)
def test_large_numbers_are_short(value: float, told: str) -> None:
    assert log.show(value) == told


def test_a_search_says_why_it_does_not_take_what_it_prefers() -> None:
    branches = Branches(*(np.zeros(1, int) for _ in range(2)), [""], *(np.zeros(1) for _ in range(3)))
    thought = SearchReport(
        ["left", "right"], np.ones(2, bool), np.array([0.9, 0.1]), np.array([0.7, 0.3]), np.array([1, 4]),
        np.array([0.1, 0.2]), 1, None, 0.0, 0.0, branches,
    )  # fmt: skip
    assert thought.why == (
        "left has more of the improved policy (70.0%, against 30.0%), but was tried 1 time and right 4 times: what is "
        "taken is the best of those that were tried most"
    )
    assert thought._replace(chosen=0).why == ""
    assert thought._replace(policy=np.array([0.5, 0.5]), visits=np.array([2, 2])).why == "", "of equals, the better"
