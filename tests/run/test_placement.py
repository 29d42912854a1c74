"""Several devices: what they compute together is what one computes alone, and a run may change their number."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import fakes
import numpy as np
import pytest

import reverie
from reverie import algos, api, config, fields
from reverie.config import ConfigError
from reverie.run import log
from reverie.run.checkpoint import Checkpoints

HERE = Path(__file__).parent
RUN: dict[str, Any] = {
    "memory": "float32",  # bfloat16 makes of a sum in another order a number that differs by 1 in 256
    "env": "reverie.envs.toy:Counting",
    "env_kwargs": '{"episodes": false}',
    "workers": "inline",
    "envs": 2,
    "batch": 4,
    "length": 4,
    "warmup": 30,
    "replay_ratio": 4.0,
    "log_every": 20,
    "eval_every": 40,
    "eval_episodes": 2,
    "report_every": 40,
    "checkpoint_every": 40,
}


@pytest.fixture(autouse=True)
def fake(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(algos.ALGORITHMS, "fake", "fakes")


def child(*argv: str) -> subprocess.CompletedProcess[str]:
    """A Python that sees four CPUs."""
    flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=4"
    path = f"{Path(reverie.__file__).parents[1]}:{HERE.parent}"
    env = {**os.environ, "XLA_FLAGS": flags, "PYTHONPATH": path, "PYTHONWARNINGS": "error"}
    done = subprocess.run([sys.executable, *argv], capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr
    return done


def train_on_four(path: Path, **values: Any) -> str:
    """What the run says about itself."""
    flags = {**RUN, "devices": 4, **values, "run": str(path)}
    argv = [x for k, v in flags.items() for x in (fields.flag(k), str(v))]
    return child(str(Path(fakes.__file__)), "train", "fake", *argv).stdout


@pytest.mark.slow
@pytest.mark.parametrize("obs", ["vector", "image"])
def test_four_devices_compute_what_one_does(tmp_path: Path, obs: str) -> None:
    child(str(HERE / "several_devices.py"), str(tmp_path), obs)
    one, four = (dict(np.load(tmp_path / f"{name}.npz")) for name in ("one", "four"))
    assert one.keys() == four.keys()
    assert {f"0/loss/decode/{obs}", "2/out/deter", "state/model/pol/mlp/linears/0/weight"} <= one.keys()
    for name, expected in one.items():
        got = four[name]
        assert (got.shape, got.dtype) == (expected.shape, expected.dtype), name
        if expected.dtype == np.float32:
            assert np.isfinite(expected).all(), name
            np.testing.assert_allclose(got, expected, rtol=1e-4, atol=5e-5, err_msg=name)
        elif expected.dtype.kind in "iu":
            np.testing.assert_array_equal(got, expected, err_msg=name)
    assert one["2/nonfinite/total"] == 0
    model = [k.removeprefix("first/") for k in one if k.startswith("first/model/") and k.endswith("weight")]
    assert [k for k in model if np.array_equal(one[f"first/{k}"], one[f"state/{k}"])] == []


def averages(path: Path) -> dict[tuple[int, str], float]:
    """All metrics that are not about time, by step and name."""
    records = log.read(path / "metrics.jsonl")
    return {(r["step"], k): v for r in records for k, v in r.items() if not k.startswith(("time/", "memory/"))}


def arrays(path: Path) -> dict[str, np.ndarray]:
    checkpoint = Checkpoints(path / "checkpoints").load_latest()
    assert checkpoint is not None
    return checkpoint.arrays


@pytest.mark.slow
@pytest.mark.parametrize("first", [1, 4])
def test_a_run_goes_on_with_another_number_of_devices(tmp_path: Path, first: int) -> None:
    straight, changed = tmp_path / "straight", tmp_path / "changed"
    train = lambda path, **values: reverie.train("fake", run=path, **RUN, **values)
    train(straight, steps=120)
    if first == 4:
        told = train_on_four(changed, steps=60)
        assert "4 x cpu, 1 of 4 sequences each, float32" in told
        assert json.loads((changed / "config.json").read_text())["run"]["devices"] == 4
        train(changed, steps=120, devices=1)
    else:
        train(changed, steps=60)
        train_on_four(changed, steps=120, devices=0)  # all of them
    assert json.loads((changed / "config.json").read_text())["run"]["devices"] == (1 if first == 4 else 4)
    assert log.read(changed / "metrics.jsonl")[-1]["time/traces"] <= 5
    expected, got = averages(straight), averages(changed)
    late = {k for k in expected if k[0] > 60}  # at 60, one run ended and measured once more
    assert late <= got.keys()
    assert any(name == "loss/total" for _, name in late)
    for key in late:
        assert got[key] == pytest.approx(expected[key], rel=1e-4, abs=1e-6), key
    one, other = arrays(straight), arrays(changed)
    assert one.keys() == other.keys()
    for name in one:
        assert (one[name].shape, one[name].dtype) == (other[name].shape, other[name].dtype), name
    np.testing.assert_allclose(one["agent/weights"], other["agent/weights"], rtol=1e-4)


@pytest.mark.slow
def test_four_devices_make_several_updates_at_once(tmp_path: Path) -> None:
    values = {"steps": 60, "replay_ratio": 32.0, "updates_per_dispatch": 2}
    reverie.train("fake", run=tmp_path / "one", **RUN | values)
    train_on_four(tmp_path / "four", **values)
    one, four = arrays(tmp_path / "one"), arrays(tmp_path / "four")
    assert four["agent/updates"] == 2 * (60 - 30)
    for name in ("agent/weights", "late/out/memory"):
        np.testing.assert_allclose(four[name].astype(float), one[name].astype(float), rtol=1e-4, atol=1e-6)


def test_more_devices_than_there_are(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--devices 2, but JAX sees 1 \(cpu\): type --devices 0 .* XLA_FLAGS"):
        reverie.train("fake", run=tmp_path / "x", **RUN, devices=2)
    assert not (tmp_path / "x" / "config.json").exists()


def test_replay_on_a_device_is_not_shared(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--replay-on device is for one device, .* or --devices 1"):
        reverie.train("fake", run=tmp_path, **RUN, devices=2, replay_on="device")


def test_one_device_is_nothing_special() -> None:
    given = config.override(config.default("fake"), **RUN, devices=0)
    with api.computing(given) as (devices, conf):
        assert (len(devices), conf.run.devices) == (1, 1)
