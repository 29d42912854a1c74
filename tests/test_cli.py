"""The command line, in this process, with a fake algorithm."""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from reverie import algos, cli, config, fields
from reverie.envs.workers import Workers
from reverie.run import evaluation, loop
from reverie.run.directory import RunDirectory

TRAIN = ["train", "fake", "--preset", "quick", "--steps", "40", "--warmup", "20", "--envs", "2"]
TRAIN += ["--env", "reverie.envs.toy:Catch", "--workers", "inline", "--eval-episodes", "2"]


@pytest.fixture(autouse=True)
def here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setitem(algos.ALGORITHMS, "fake", "fakes")
    monkeypatch.delenv("REVERIE_DEBUG", raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(capsys: pytest.CaptureFixture[str], *argv: str) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of a command."""
    try:
        code = cli.main(argv)
    except SystemExit as stop:
        code = int(stop.code or 0)
    out, err = capsys.readouterr()
    return code, out, err


def answer(capsys: pytest.CaptureFixture[str], *argv: str) -> Any:
    """The object that a command with `--json` prints, which is all that stdout gets."""
    code, out, err = run(capsys, *argv, "--json")
    assert code == 0, err
    assert out.count("\n") == 1, out
    return json.loads(out)


def test_train_then_the_same_command_then_eval(capsys: pytest.CaptureFixture[str]) -> None:
    first = answer(capsys, *TRAIN, "--run", "runs/x")
    assert first["path"] == "runs/x"
    assert (first["steps"], first["updates"], first["stopped"]) == (40, 32 * 20 // 8, None)
    assert set(first["evaluation"]) == {"mean_return", "std_return", "returns", "lengths"}
    assert answer(capsys, *TRAIN, "--run", "runs/x") == first
    more = [*TRAIN, "--run", "runs/x", "--steps", "60"]
    assert answer(capsys, *more)["steps"] == 60

    played = answer(capsys, "eval", "runs/x", "--episodes", "3", "--video", "out.gif")
    assert len(played["returns"]) == len(played["lengths"]) == 3
    assert played["mean_return"] == pytest.approx(np.mean(played["returns"]))
    assert played["std_return"] == pytest.approx(np.std(played["returns"]))
    assert Path("out.gif").stat().st_size > 1000


def test_dream_draws_and_tells_the_errors(capsys: pytest.CaptureFixture[str]) -> None:
    answer(capsys, *TRAIN, "--run", "x")
    told = answer(capsys, "dream", "x", "--out", "new/d.gif", "--dreamt", "6")
    assert (told["path"], told["step"], told["seen"]) == ("new/d.gif", 40, 5)
    assert set(told["errors"]) == {"image", "reward"}
    assert set(told["errors"]["image"]) == {"horizons", "unexplained"}
    assert set(told["errors"]["image"]["horizons"]) == {"1", "5"}
    assert told["errors"]["image"]["horizons"]["1"] > 0, "the ball falls, and the fake does not know it"
    assert Path("new/d.gif").stat().st_size > 1000
    # The image unless told otherwise.
    assert answer(capsys, "dream", "x")["path"].startswith("x/videos/dream-000000040.")
    plots = [["--key", "reward"], ["--out", "d.png"], ["--out", "d.png", "--key", "reward", "--fresh"]]
    for flags in plots:
        path = Path(answer(capsys, "dream", "x", *flags)["path"])
        assert path.read_bytes().startswith(b"\x89PNG"), flags
    code, _, err = run(capsys, "dream", "x", "--policy")
    assert (code, "fake cannot show what it imagines" in err) == (2, True), err
    code, out, _ = run(capsys, "dream", "x", "--fresh", "--sequences", "1")
    assert code == 0
    assert "1 dream, 5 rows seen and 45 imagined" in out
    (columns,) = (line for line in out.splitlines() if "error / variance" in line)
    assert columns.split()[3:] == ["after", "1"], "an episode of Catch is over before five rows are imagined"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--out", "d.avi"], "expected a name that ends in .mp4, .gif, .webp for an image, or .png"),
        (["--out", "d.png", "--key", "image"], "an image makes a video, --out dream.mp4"),
        (["--out", "d.mp4", "--key", "reward"], "it makes a plot, --out dream.png"),
        (["--key", "imgae"], "Expected --key image or reward"),
        (["--dreamt", "0"], "--dreamt must be 1 or more"),
        (["--seen", "0"], "--seen must be 1 or more"),
        (["--sequences", "0"], "sequences must be 1 or more"),
    ],
)
def test_a_dream_that_cannot_be_drawn(capsys: pytest.CaptureFixture[str], flags: list[str], message: str) -> None:
    answer(capsys, *TRAIN, "--run", "x")
    code, _, err = run(capsys, "dream", "x", *flags)
    assert code == 2, err
    assert message in err
    assert not list(Path().glob("d.*"))


def test_an_env_without_images_is_dreamt_as_a_plot(capsys: pytest.CaptureFixture[str]) -> None:
    blind = [*TRAIN, "--run", "x", "--env", "reverie.envs.toy:Counting"]
    answer(capsys, *blind)
    assert answer(capsys, "dream", "x")["path"] == "x/videos/dream-000000040.png"
    code, _, err = run(capsys, "dream", "x", "--out", "d.mp4")
    assert code == 2
    assert "--out dream.png" in err


@pytest.mark.parametrize("flags", [["--env", "CartPol-v1"], ["--env", "device:CartPole", "--groups", "2"]])
def test_what_is_refused_leaves_nothing(capsys: pytest.CaptureFixture[str], flags: list[str]) -> None:
    """The second is refused late, by the session that would have trained."""
    code, _, _ = run(capsys, "train", "gumbel_muzero", "--run", "x", *SMALL, *flags)
    assert code == 2
    assert not Path("x").exists()


def test_a_model_that_decodes_nothing_dreams_of_rewards_and_values(capsys: pytest.CaptureFixture[str]) -> None:
    answer(capsys, "train", "muzero", "--env", "reverie.envs.toy:Catch", "--run", "x", *SMALL)
    told = answer(capsys, "dream", "x")
    assert (told["path"], set(told["errors"])) == ("x/videos/dream-000000008.png", {"reward", "value"})
    assert answer(capsys, "dream", "x", "--key", "value", "--out", "v.png")["path"] == "v.png"
    for flags in (["--key", "image"], ["--out", "d.mp4"]):
        code, _, err = run(capsys, "dream", "x", *flags)
        assert code == 2, err
        assert "value" in err


SMALL = ["--hidden", "8", "--units", "8", "--support", "5", "--simulations", "4", "--envs", "2", "--workers", "inline"]
SMALL += ["--steps", "8", "--warmup", "100", "--eval-every", "0", "--eval-episodes", "1", "--preset", "paper"]


def test_brackets_in_a_path_are_told_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    run = "runs/[bold]x[/]"
    assert cli.main([*TRAIN, "--run", run]) == 0
    assert capsys.readouterr().out.count(run) >= 4
    assert cli.main(["eval", run, "--episodes", "1", "--video", "[red]out.gif"]) == 0
    assert "video: [red]out.gif" in capsys.readouterr().out
    assert cli.main(["diff", run, "dreamer_v3"]) == 0
    assert run in capsys.readouterr().out


def test_an_env_that_can_be_built_no_more_is_told_in_a_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    code = (
        "from pathlib import Path\nfrom reverie.envs.toy import Catch\n\nclass Mine(Catch):\n    def __init__(self):\n"
    )
    Path("mine.py").write_text(
        code + "        assert not Path('broken').exists(), 'no assets'\n        super().__init__()\n"
    )
    own = ["--env", "mine.py:Mine"]
    assert cli.main([*TRAIN, *own, "--run", "x"]) == 0
    Path("broken").touch()
    for argv in (["eval", "x", *own], ["dream", "x", *own], ["think", "x", *own], [*TRAIN, *own, "--dry-run"]):
        capsys.readouterr()
        assert cli.main(argv) == 1
        assert capsys.readouterr().err == "reverie: mine.py:Mine could not be built: AssertionError: no assets\n"


@pytest.fixture(scope="module")
def untrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs of a small search that have learned nothing."""
    folder = tmp_path_factory.mktemp("runs")
    for name, env in (("pole", "CartPole-v1"), ("board", "pgx:tic_tac_toe")):
        flags = ["--env", env, "--run", str(folder / name), "--network", "mlp"]
        assert cli.main(["train", "gumbel_muzero", *flags, *SMALL]) == 0
    return folder


def test_think_tells_and_draws_a_search(capsys: pytest.CaptureFixture[str], untrained: Path) -> None:
    pole = str(untrained / "pole")
    told = answer(capsys, "think", pole, "--step", "3")
    assert told["path"] == f"{pole}/videos/think-3.png"
    assert Path(told["path"]).read_bytes().startswith(b"\x89PNG")
    assert (told["trained"], told["step"], told["player"]) == (8, 3, None)
    assert sorted(a["action"] for a in told["actions"]) == ["0", "1"]
    assert sum(a["visits"] for a in told["actions"]) == 4
    for key in ("prior", "policy"):
        assert sum(a[key] for a in told["actions"]) == pytest.approx(1)
    assert set(told["value"]) == {"raw", "searched"}
    assert all(a["q"] is not None for a in told["actions"])
    code, out, _ = run(capsys, "think", pole, "--out", "new/t.svg", "--simulations", "9", "--depth", "1")
    assert code == 0
    assert "9 simulations" in out
    assert ["action", "prior", "visits", "Q", "improved", "policy"] in [line.split() for line in out.splitlines()]
    assert "the picture shows 3 of 10 nodes; left out: 7 deeper than 1 step\n" in out
    assert "10" in Path("new/t.svg").read_text()


def test_think_of_a_game_moves_for_both(capsys: pytest.CaptureFixture[str], untrained: Path) -> None:
    board = str(untrained / "board")
    taken: list[str] = []
    for step in range(3):
        told = answer(capsys, "think", board, "--step", str(step), "--out", "t.png")
        assert told["player"] == step % 2
        free = {str(a) for a in range(9)} - set(taken)
        assert {a["action"] for a in told["actions"]} == free, "only legal moves are thought of"
        taken.append(told["action"])
    assert len(set(taken)) == 3


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--out", "t.gif"], "expected a name that ends in .png or .svg, for example t.svg"),
        (["--out", "file/t.svg"], "file is a file, expected a directory"),
        (["--step", "9"], "type --step 0 to"),
        (["--step", "-1"], "--step must be 0 or more"),
        (["--depth", "0"], "--depth must be 1 or more"),
        (["--simulations", "0"], "--simulations must be 1 or more"),
    ],
)
def test_a_thought_that_cannot_be_drawn(
    capsys: pytest.CaptureFixture[str], untrained: Path, flags: list[str], message: str
) -> None:
    Path("file").touch()
    code, _, err = run(capsys, "think", str(untrained / "board"), *flags)
    assert code == 2, err
    assert message in err
    assert not list(Path().glob("t.*"))


def test_what_does_not_search_has_no_thoughts(capsys: pytest.CaptureFixture[str]) -> None:
    answer(capsys, *TRAIN, "--run", "x")
    code, _, err = run(capsys, "think", "x")
    assert code == 2
    assert "fake does not search" in err
    assert "reverie dream x" in err
    for verb in ("eval", "think"):
        code, _, err = run(capsys, verb, "x", "--planner", "gumbel")
        assert code == 2
        assert "fake has no planner" in err


def test_without_json_people_get_stdout_and_the_next_command(
    capsys: pytest.CaptureFixture[str],
) -> None:
    code, out, _ = run(capsys, *TRAIN)
    assert code == 0
    assert "3 parameters" in out
    assert "reverie eval runs/fake-reverie.envs.toy-Catch-0" in out
    code, out, _ = run(capsys, *TRAIN)
    assert "reverie eval runs/fake-reverie.envs.toy-Catch-0-2" in out, "a run of its own"


def test_a_contradicting_flag_is_named_and_nothing_happens(
    capsys: pytest.CaptureFixture[str],
) -> None:
    answer(capsys, *TRAIN, "--run", "x")
    before = Path("x/config.json").read_text()
    code, out, err = run(capsys, *TRAIN, "--run", "x", "--rate", "0.7", "--batch", "3")
    assert (code, out) == (2, "")
    assert "--rate   saved 0.5, given 0.7" in err
    assert "--batch  saved 2, given 3" in err
    assert Path("x/config.json").read_text() == before


def test_another_algorithm_cannot_continue_a_run(capsys: pytest.CaptureFixture[str]) -> None:
    answer(capsys, *TRAIN, "--run", "x")
    for more in ([], ["--env", "CartPole-v1"]):
        code, _, err = run(capsys, "train", "dreamer_v3", "--run", "x", *more)
        assert code == 2
        assert "begun with fake, and dreamer_v3 cannot continue it. Type fake in place of dreamer_v3" in err
        assert "--algorithm" not in err, "there is no such flag"


def test_dry_run_promises_what_the_run_does(capsys: pytest.CaptureFixture[str]) -> None:
    plan = answer(capsys, *TRAIN, "--dry-run")
    assert not Path("runs").exists()
    assert plan["parameters"] == {"total": 3, "modules": {"weights": 3}}
    assert (plan["device"], plan["precision"], plan["size"]) == ("cpu", "float32", "tiny")
    assert plan["replay_bytes"] > 40 * 64 * 64 * 3
    assert plan["updates"] == answer(capsys, *TRAIN)["updates"]


def test_dry_run_of_a_run_that_is_there_says_where_it_goes_on(capsys: pytest.CaptureFixture[str]) -> None:
    answer(capsys, *TRAIN, "--run", "x")
    files = {path: path.stat().st_mtime_ns for path in Path("x").rglob("*")}
    _, out, _ = run(capsys, *TRAIN, "--run", "x", "--steps", "60", "--dry-run")
    assert "run          x, continued from step 40 and 80 updates" in out
    assert {path: path.stat().st_mtime_ns for path in Path("x").rglob("*")} == files
    _, out, _ = run(capsys, *TRAIN, "--run", "y", "--dry-run")
    assert "continued" not in out


def test_list(capsys: pytest.CaptureFixture[str]) -> None:
    listed = answer(capsys, "list")
    quick = {"batch": 2, "length": 4, "rate": 0.5}
    assert listed["algorithms"]["fake"] == {"sizes": ["tiny", "small"], "presets": {"quick": quick}}
    dreamer = listed["algorithms"]["dreamer_v3"]
    assert {"400m", "XS"} <= set(dreamer["sizes"])
    assert dreamer["presets"]["v3-nature/atari100k"]["replay_ratio"] == 128
    assert all(set(family) == {"extra", "installed"} for family in listed["envs"].values())
    code, out, _ = run(capsys, "list")
    assert code == 0
    assert "tiny small" in out
    assert "v3-nature/atari100k" in out
    assert "replay_ratio" not in out, "presets by name only"
    assert len(out.splitlines()) < 80


def test_list_of_one_preset_prints_every_value(capsys: pytest.CaptureFixture[str]) -> None:
    assert answer(capsys, "list", "quick") == {
        "preset": "quick",
        "values": config.default("fake", "quick").values(),
    }
    _, out, _ = run(capsys, "list", "quick")
    assert ["max_nonfinite", "20"] in [line.split() for line in out.splitlines()]


def test_diff_prints_what_differs_between_presets_and_runs(capsys: pytest.CaptureFixture[str]) -> None:
    assert answer(capsys, "diff", "fake", "quick") == {
        "a": "fake",
        "b": "quick",
        "differences": {"batch": [16, 2], "length": [64, 4], "rate": [0.1, 0.5]},
    }
    answer(capsys, *TRAIN, "--run", "x", "--device", "cpu")
    found = answer(capsys, "diff", "quick", "x")["differences"]
    assert found["steps"] == [100_000, 40]
    assert "rate" not in found
    _, out, _ = run(capsys, "diff", "v3-2023", "v3-nature")
    assert ["algorithm", "dreamer_v3_2023", "dreamer_v3"] in [line.split() for line in out.splitlines()]
    assert ["recurrence", "dense", "block"] in [line.split() for line in out.splitlines()]
    _, out, _ = run(capsys, "diff", "quick", "quick")
    assert "same values" in out
    other = answer(capsys, "diff", "quick", "cartpole")["differences"]
    assert other["algorithm"] == ["fake", "dreamer_v3"]
    assert other["rate"] == [0.5, None]


def test_check_env(capsys: pytest.CaptureFixture[str]) -> None:
    good = answer(capsys, "check-env", "reverie.envs.toy:Catch", "--image-size", "7", "9", "--algorithm", "dreamer_v3")
    assert good["ok"]
    assert good["algorithms"] == ["dreamer_v3"]
    code, out, err = run(capsys, "check-env", "Pendulum-v1", "--algorithm", "muzero")
    assert code == 1, err
    assert "error for muzero: this search tries every action" in out
    script = ["--env-kwargs", '{"script": {"3": "nan_obs"}}']
    code, out, err = run(capsys, "check-env", "faulty:Faulty", *script, "--json")
    assert code == 1, err
    found = json.loads(out)
    assert not found["ok"]
    assert any(f["severity"] == "error" for f in found["findings"])


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["tarin"], "no verb 'tarin'"),
        (["train"], "which algorithm?"),
        (["train", "faek"], "did you mean 'fake'"),
        (["train", "fake"], "--env CartPole-v1"),
        (
            [*TRAIN, "--stpes", "3"],
            "there is no --stpes: did you mean '--steps'?\nIt is `reverie train fake --env",
        ),
        ([*TRAIN, "--steps", "many"], "--steps is 'many', expected a whole number\n"),
        ([*TRAIN, "--size", "huge"], "--size is 'huge', expected one of 'tiny', 'small'\n"),
        ([*TRAIN, "--envs", "0"], "--envs must be 1 or more"),
        ([*TRAIN, "--rate", "-1"], "--rate must be positive"),
        ([*TRAIN, "--preset", "quikc"], "did you mean 'quick'"),
        ([*TRAIN, "--replay-size", "3"], "raise --replay-size"),
        ([*TRAIN, "--device", "gpu"], "--device cpu"),
        ([*TRAIN, "--env", "CartPol-v1"], "CartPole-v1"),
        ([*TRAIN, "--env", "no_such_module:Env"], "no_such_module"),
        (["train", "dreamer_v3", "--env", "CartPole-v1", "--actor-gradient", "dynamics"], "--actor-gradient auto"),
        ([*TRAIN, "--image-size", "64", "0"], "--image-size must be a height and a width"),
        (
            ["train", "dreamer_v3", "--env", "CartPole-v1", "--choices", '{"kernel": 4}'],
            "--choices: kernel must be 3 or 5 with convolutions",
        ),
        (
            ["train", "dreamer_v3", "--env", "CartPole-v1", "--no-straight-through"],
            """there is no --no-straight-through any more: type --choices '{"straight_through": false}'""",
        ),
        (
            ["train", "efficientzero", "--env", "CartPole-v1", "--projection=64"],
            """there is no --projection any more: type --choices '{"projection": 64}'""",
        ),
        (
            ["train", "dreamer_v3", "--optimizer", "adam"],
            "there is no --optimizer any more: the first paper is dreamer_v3_2023",
        ),
        (["train", "dreamer_v3", "--preset", "v3-2023"], "has no preset 'v3-2023': it is one of dreamer_v3_2023"),
        (["train", "dream_ppo", "--env", "CartPole-v1", "--batch", "6"], "try --batch 8"),
        ([*TRAIN, "--collector", "a:b"], "--schedule model-then-policy"),
        ([*TRAIN, "--schedule", "model-then-policy", "--collector", "a:b"], "no module 'a'"),
        ([*TRAIN, "--schedule", "model-then-policy", "--offline", "nowhere"], "there is no run"),
        (["diff", "v3-natur", "quick"], "did you mean 'v3-nature'?"),
        (["diff", "quick", "runs/nowhere"], "no run's directory"),
        (["list", "quikc"], "did you mean 'quick'?"),
        (["train", "dreamer_v3", "--preset", "v3-natur/crafter"], "did you mean 'v3-nature/crafter'?"),
        (["eval", "nowhere"], "no run in nowhere"),
        (["eval"], "RUN is missing\nIt is `reverie eval RUN [flags]`, and `reverie eval --help-all` has"),
        (["import", "x"], "--run and --env are missing\n"),
        (["eval", "x", "--seed"], "--seed has no value, expected a whole number\n"),
        (["train", "fake", "--env", "x", "--preset", "--dry-run"], "--preset has no value, expected a text\n"),
        (["eval", "x", "--planner=tall"], "--planner is 'tall', expected one of 'none', 'gumbel', 'puct', 'mppi'\n"),
        (["eval", "x", "--planner-scale", "1.5e"], "--planner-scale is '1.5e', expected a number\n"),
        (["eval", "x", "y"], "'y' belongs to no flag\n"),
        (["check-env", "x", "--gray=3"], "--gray takes no value, got '3'\n"),
        (["check-env", "x", "--image-size", "big"], "is 'big', expected a whole number or a pair of whole numbers\n"),
        (["check-env", "--image-size", "64", "32", "x", "--gray=3"], "--gray takes no value"),
        (["check-env", "--image-size", "64", "x", "--gray=3"], "--gray takes no value"),
        (["dream", "nowhere"], "no run in nowhere"),
        (["think", "nowhere"], "no run in nowhere"),
    ],
)
def test_mistakes_exit_2_without_traceback(capsys: pytest.CaptureFixture[str], argv: list[str], message: str) -> None:
    code, out, err = run(capsys, *argv)
    assert code == 2, err
    assert message in err
    assert err.startswith("reverie: ")
    assert "Traceback" not in err + out
    assert not set("╭│") & set(err), "a sentence in no box"


def test_typos_are_found_before_any_env_is_built(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def built(*args: Any, **values: Any) -> None:
        pytest.fail("an env was built")

    monkeypatch.setattr(Workers, "__init__", built)
    for wrong in (["--stpes", "3"], ["--rate", "x"], ["--envs", "0"], ["--lenght=3"]):
        assert run(capsys, *TRAIN, *wrong)[0] == 2


def test_a_bad_video_name_is_found_before_the_evaluation(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    answer(capsys, *TRAIN, "--run", "x")
    monkeypatch.setattr(evaluation, "evaluate", lambda *args: pytest.fail("an episode was played"))
    code, _, err = run(capsys, "eval", "x", "--video", "out.avi")
    assert code == 2
    assert ".mp4" in err


def test_a_run_in_use_names_its_holder(capsys: pytest.CaptureFixture[str]) -> None:
    with RunDirectory(Path("x").resolve()).with_lock():
        code, _, err = run(capsys, *TRAIN, "--run", "x")
    assert code == 2
    assert str(os.getpid()) in err


def test_an_env_that_cannot_be_built_exits_1_with_its_story(
    capsys: pytest.CaptureFixture[str],
) -> None:
    faulty = ["--env", "faulty:Faulty", "--env-kwargs", '{"script": {"build": "raise"}}']
    code, _, err = run(capsys, *TRAIN, *faulty)
    assert code == 1
    assert "could not be built" in err


@pytest.mark.parametrize(("name", "expected"), [("SIGTERM", 0), ("SIGINT", 130)])
def test_a_signal_saves_says_so_and_exits(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, name: str, expected: int
) -> None:
    original = loop.Training.update

    def signalled(self: loop.Training, *args: Any) -> None:
        original(self, *args)
        if self.progress.step == 30:
            os.kill(os.getpid(), signal.Signals[name])

    monkeypatch.setattr(loop.Training, "update", signalled)
    code, out, err = run(capsys, *TRAIN, "--run", "x", "--json")
    assert code == expected
    assert json.loads(out)["stopped"] == name
    assert json.loads(out)["steps"] == 30
    assert f"{name}: saved at step 30" in err


def test_a_second_ctrl_c_does_not_wait(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def signalled(self: loop.Training, *args: Any) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(loop.Training, "collect", signalled)
    assert run(capsys, *TRAIN, "--run", "x")[0] == 130
    assert not list(Path("x/checkpoints").iterdir())


def test_debug_runs_without_jit(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REVERIE_DEBUG", "1")
    seen = set()
    original = loop.Training.collect

    def looking(self: loop.Training) -> None:
        seen.add((self.compiled.agent.context, jax.config.jax_disable_jit))
        original(self)

    monkeypatch.setattr(loop.Training, "collect", looking)
    assert answer(capsys, *TRAIN, "--run", "x", "--steps", "24")["updates"] == 16
    assert seen == {(1, True)}


def test_help_shows_what_is_used_most_and_help_all_the_rest(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "train", "--help")
    assert code == 0
    assert "continues the run in --run" in out
    assert all(name in out for name in algos.ALGORITHMS)
    assert "--steps INT" in out
    assert "--discount" not in out, "not the flags of any one algorithm"
    code, out, _ = run(capsys, "train", "fake", "--help")
    assert code == 0
    told = " ".join(out.split())
    for text in ("--replay-ratio FLOAT", "--size {tiny,small}", "--help-all prints the others", "(default 100_000)"):
        assert text in told
    assert out.count("\n  --") <= 14
    assert "--rate" not in out
    code, out, _ = run(capsys, "train", "fake", "--help-all")
    assert code == 0
    told = " ".join(out.split())
    for text in ("--replay-ratio FLOAT", "Sequences in a batch.", "--rate FLOAT", "memory options", "fake options"):
        assert text in told
    flags = {fields.flag(name) for name in config.default("fake").values()}
    assert flags <= set(out.replace(",", " ").split())
    asked = [("muzero", "--help"), ("dreamer_v3", "--help"), ("dreamer_v3", "--help-all")]
    shown = ["--simulations INT" in run(capsys, "train", *argv)[1] for argv in asked]
    assert shown == [True, False, True], "where nothing searches, nobody asks how much"
    code, out, _ = run(capsys, "--help")
    assert code == 0
    assert "reverie check-env ENV" in out
    assert len(out.splitlines()) < 24, "one screen"
    assert run(capsys, "--version")[0] == 0


def test_help_is_wrapped_once(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """No line but the last of a text could take the first word of the next one."""
    monkeypatch.setenv("COLUMNS", "90")
    code, out, _ = run(capsys, "--help-all")
    assert code == 0
    for text in ("--depth INT", "--episodes INT", "--learning-rate FLOAT", "--image-size INT|INT INT"):
        assert text in out
    lines = out.splitlines()
    texts = [(a[:27].isspace() and a[27:], b[:27].isspace() and b[27:]) for a, b in itertools.pairwise(lines)]
    inside = [(a, b) for a, b in texts if a and b]
    assert len(inside) > 50
    for line, after in inside:
        assert 27 + len(line) + 1 + len(after.split()[0]) > 90, (line, after)
    assert max(27 + len(after) for _, after in inside) <= 90


@pytest.mark.slow
def test_a_dreamer_drives_in_its_imagination(capsys: pytest.CaptureFixture[str]) -> None:
    small = {"deter": 8, "stoch": 4, "hidden": 8, "units": 8, "depth": 1, "vector-layers": 1, "video-every": 0}
    phases = {"schedule": "model-then-policy", "steps": 40, "model-updates": 1, "policy-updates": 1, "length": 4}
    flags = [x for k, v in (small | phases | {"batch": 2, "run": "x"}).items() for x in (f"--{k}", str(v))]
    told = answer(capsys, "train", "dreamer_v1", "--env", "reverie.envs.toy:Catch", "--workers", "inline", *flags)
    assert (told["steps"], told["updates"]) == (40, 2)
    told = answer(capsys, "dream", "x", "--policy", "--dreamt", "6", "--sequences", "2")
    assert (told["step"], told["seen"], len(told["rewards"])) == (40, 5, 2)
    assert told["path"].startswith("x/videos/drive-000000042.")
    assert Path(told["path"]).stat().st_size > 500
    code, _, err = run(capsys, "dream", "x", "--policy", "--key", "reward")
    assert (code, "--policy draws a video of an image" in err) == (2, True), err


def test_the_program_does_not_wait_for_a_thread_that_compiles_what_nobody_wants() -> None:
    program = """
import sys, threading, time
from reverie import cli
def main():
    threading.Thread(target=time.sleep, args=(1000,), name="unawaited_0").start()
    print("said")
    return 130
cli.main = main
sys.argv = ["reverie", "list"]
cli.program()
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=100)
    assert (done.returncode, done.stdout) == (130, "said\n"), done.stderr
