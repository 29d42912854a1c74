"""An exported agent acts as the one it was made of, where there is no Reverie."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_actor import QUICK, Rich, rich

import reverie
from reverie import algos

ALONE = """
import sys
class Nobody:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("reverie", "equinox", "optax", "gymnasium"):
            raise ImportError(name)
sys.meta_path.insert(0, Nobody())
"""

ACTS = """
given = np.load(here / "given.npz")
told, carry = [], begin(np.uint32(0))
for t in range(4):
    obs = {k: given[k][t][None] for k in given}
    action, carry = act(parameters, carry, obs)
    told.append({k: np.asarray(x)[0].tolist() for k, x in action.items()})
print(json.dumps([told, sorted(sys.modules)]))
"""


def alone(path: Path, given: dict[str, np.ndarray]) -> tuple[list[dict[str, Any]], list[str]]:
    """What the exported agent does with observations `[T, ...]`, in a process that cannot import Reverie."""
    np.savez(path / "given.npz", **given)
    code = ALONE + (path / "example.py").read_text().replace("__file__", repr(str(path / "example.py"))) + ACTS
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=path)
    assert done.returncode == 0, done.stderr
    told, modules = json.loads(done.stdout.splitlines()[-1])
    assert "reverie" not in modules
    return told, modules


def test_it_acts_alone_in_the_envs_own_words(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(algos.ALGORITHMS, "fake", "fakes")
    agent = reverie.train("fake", env=Rich, run=tmp_path / "run", **QUICK).load()
    path = agent.export(tmp_path / "out", mode="train")
    assert {x.name for x in path.iterdir()} == {
        "act.stablehlo", "begin.stablehlo", "example.py", "parameters.npz", "spaces.json"
    }  # fmt: skip
    assert list(np.load(path / "parameters.npz")) == ["weights"], "and nothing that only training reads"
    spaces = json.loads((path / "spaces.json").read_text())
    assert spaces["action"]["move"] | {"classes": []} == {
        "kind": "vector", "shape": [2], "classes": [], "dtype": "float32", "low": [-2, -2], "high": [4, 4]
    }  # fmt: skip
    assert spaces["action"]["say"]["start"] == 5
    assert spaces["obs"]["arm/grip"]["start"] == 1
    seen = rich()
    flat = {
        "eye": seen["eye"],
        "arm/angle": seen["arm"]["angle"],
        "arm/grip": np.int32(1),
        "pair/0": seen["pair"][0].astype(np.int32),
        "pair/1": seen["pair"][1].astype(np.int32),
    }
    told, _ = alone(path, {k: np.stack([x] * 4) for k, x in flat.items()})
    carry = None
    for done in told:
        action, carry = agent.act(seen, carry, "train", seed=0 if carry is None else None)
        np.testing.assert_allclose(done["move"], action["move"], rtol=1e-6)
        assert done["say"] == action["say"]


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", ["dreamer_v3", "gumbel_muzero"])
def test_every_kind_of_agent_can_be_exported(tmp_path: Path, algorithm: str) -> None:
    small = {"steps": 4, "warmup": 100, "envs": 1, "workers": "inline", "eval_every": 0, "eval_episodes": 0}
    small |= {"preset": "none"}
    agent = reverie.train(algorithm, env="CartPole-v1", run=tmp_path / "run", **small).load()
    path = agent.export(tmp_path / "out")
    assert not [name for name in np.load(path / "parameters.npz") if "opt" in name]
    states = np.random.default_rng(0).uniform(-0.2, 0.2, (4, 4)).astype(np.float32)
    told, _ = alone(path, {"vector": states})
    carry, own = None, []
    for state in states:
        action, carry = agent.act(state, carry, seed=0 if carry is None else None)
        own.append({"action": action})
    assert told == own


@pytest.mark.parametrize(("given", "message"), [({"mode": "sample", "envs": 0}, "envs must be 1 or more, got 0")])
def test_what_cannot_be_exported(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, given: dict[str, Any], message: str
) -> None:
    monkeypatch.setitem(algos.ALGORITHMS, "fake", "fakes")
    agent = reverie.train("fake", env="CartPole-v1", run=tmp_path / "run", **QUICK).load()
    with pytest.raises(ValueError, match=message):
        agent.export(tmp_path / "out", **given)
    assert not (tmp_path / "out").exists()
