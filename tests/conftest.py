"""What every test runs under: the CPU, no rank promotion, annotations checked at every call."""

from __future__ import annotations

import gc
import json
import os
import time
import typing
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["MPLBACKEND"] = "Agg"
# Most programs here run once or twice, so the compiler need not try hard: XLA's older code generator for the CPU, and
# no optimisation behind it, compile an update in a fifth of the time. Children of tests inherit it.
os.environ["XLA_FLAGS"] = " ".join(
    [
        "--xla_cpu_use_fusion_emitters=false --xla_backend_optimization_level=0",
        "--xla_cpu_parallel_codegen_split_count=1",  # in one piece: two cores have two processes to run
        os.environ.get("XLA_FLAGS", ""),
    ]
)

import hypothesis
import jax
import numpy as np
import pytest
from annotations import check_every_call

# A first call compiles; on busy cores that is no measure of a test, nor is how long it takes to draw examples.
hypothesis.settings.register_profile("reverie", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow])
hypothesis.settings.load_profile("reverie")

jax.config.update("jax_numpy_rank_promotion", "raise")
check_every_call()  # before anything imports reverie

import reverie.agent  # noqa: E402

# An argument annotated with a protocol is checked by `isinstance`, which protocols must opt into.
for protocol in (reverie.agent.Agent, reverie.agent.WorldModel):
    typing.runtime_checkable(protocol)


class NoLook:
    """In place of a command's look at its env."""

    def facts(self, spec: object) -> None:
        pass

    def close(self) -> None:
        pass


@pytest.fixture(autouse=True)
def nothing_chosen(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """Tests say what they want: nothing is chosen by what an env shows, but where that is what is tested."""
    if "looks" not in request.fixturenames:
        monkeypatch.setattr("reverie.defaults.look", lambda spec: None)
        monkeypatch.setattr("reverie.cli._early_look", lambda argv: NoLook())


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> None:
    """An env without a preset is looked at, as it is for a user; in this process, and not for long."""
    monkeypatch.setattr("reverie.envs.facts.STEPS", 1000)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--part", default="1/1", metavar="K/N", help="Run only part K of N of the selected tests.")
    parser.addoption("--times", default="", metavar="FILE", help="Add a JSON line: seconds of every room of tests/.")


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """`--part 2/4` keeps the second test of every four: long ones lie side by side in a file."""
    part, parts = map(int, config.getoption("part").split("/"))
    if not 1 <= part <= parts:
        raise pytest.UsageError(f"--part {part}/{parts}: expected for example 2/4, the second of four")
    items[:] = items[part - 1 :: parts]


ROOMS, BEGAN = Counter[str](), time.monotonic()


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    room = report.nodeid.split("/")[1]
    ROOMS["." if "::" in room else room] += round(report.duration * 1000)


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Rooms take seconds of a process; several processes work at once."""
    path = session.config.getoption("times")
    if path and not hasattr(session.config, "workerinput"):
        rooms = {room: round(thousandths / 1000, 1) for room, thousandths in sorted(ROOMS.items())}
        minutes = round((time.monotonic() - BEGAN) / 60, 2)
        with Path(path).open("a") as file:
            file.write(json.dumps({"bench": "tests", "minutes": minutes, "seconds": rooms}) + "\n")


def pytest_collection_finish(session: pytest.Session) -> None:
    # Tracing makes millions of objects and few cycles. Looking for those again and again, in all that was imported,
    # took a sixth of the time that it takes to trace.
    gc.freeze()
    gc.set_threshold(100_000, 20, 20)


def pytest_configure(config: pytest.Config) -> None:
    # Compiled programs outlive a test run (`pytest --cache-clear` drops them): on two cores an
    # update of the smallest Dreamer compiles in 9 s and loads in 0.6 s. Only for this process: a
    # child that is killed while it writes would leave half an entry behind.
    if config.pluginmanager.hasplugin("cacheprovider"):
        worker = os.environ.get("PYTEST_XDIST_WORKER", "")  # each its own: JAX writes entries in place
        jax.config.update("jax_compilation_cache_dir", str(config.cache.mkdir(f"jax{worker}")))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
        # What children of tests keep (`reverie.compile_cache`) is nobody's home directory's business.
        os.environ["XDG_CACHE_HOME"] = str(config.cache.mkdir("home"))
    # Half an entry (this process was killed) is no fault of a test: jax says so and compiles again.
    config.addinivalue_line("filterwarnings", "ignore:Error reading persistent compilation cache")


@dataclass(frozen=True)
class Golden:
    """Inputs and outputs of a reference function. Outputs were computed there in float64."""

    spec: dict[str, Any]
    inputs: dict[str, jax.Array]  # float32, int32, bool
    outputs: dict[str, np.ndarray]  # float64, int32, bool
    floor: dict[str, float]  # per output: the error of the reference itself when run in float32

    def check(self, name: str, actual: Any, tolerance: float = 1e-5) -> None:
        """Fails unless `actual` is the output `name` within `tolerance`, relative.

        Relative to each element; for elements near zero, to the largest of the array (or to 1, if
        that is smaller). Where the reference's own float32 result is further than that from its
        float64 result, twice that distance is allowed.
        """
        expected, actual = self.outputs[name], np.asarray(actual)
        assert actual.shape == expected.shape, (name, actual.shape, expected.shape)
        if expected.dtype != np.float64:
            np.testing.assert_array_equal(actual, expected, err_msg=name)
            return
        if self.floor.get(name, 0.0) > tolerance:
            tolerance = 2 * self.floor.get(name, 0.0)
        near_zero = min(1.0, np.abs(expected).max(initial=0.0))
        allowed = tolerance * np.maximum(np.abs(expected), near_zero)
        error = np.abs(actual.astype(np.float64) - expected)
        worst = np.unravel_index(np.argmax(error - allowed), error.shape)
        assert (error <= allowed).all(), (
            f"{name}{list(map(int, worst))}: {actual[worst]!r} is not {expected[worst]!r},"
            f" error {error[worst]:.3g} > {allowed[worst]:.3g}"
        )


@pytest.fixture(scope="session")
def golden() -> Callable[[str], Golden]:
    """Loads `tests/golden/*/<name>.json`."""
    floats = {"inputs": np.float32, "outputs": np.float64}

    def load(name: str) -> Golden:
        [path] = (Path(__file__).parent / "golden").glob(f"*/{name}.json")
        content = json.loads(path.read_text())
        arrays = {
            part: {
                key: np.array(
                    value["data"],
                    {"float": kind, "int": np.int32, "bool": np.bool_}[value["dtype"]],
                ).reshape(value["shape"])
                for key, value in content[part].items()
            }
            for part, kind in floats.items()
        }
        floor = content.get("float32_vs_float64_max_rel_err") or content.get("float32_vs_float64_max_abs_err") or {}
        inputs = {key: jax.numpy.asarray(value) for key, value in arrays["inputs"].items()}
        return Golden(content["spec"], inputs, arrays["outputs"], floor)

    return load
