import pytest
from faulty import FAULTS, Faulty
from four_moves import Alternating, Claims, FourMoves
from hangs import NEVER, hang_here, hang_there

from reverie.envs.check import check_env
from reverie.envs.device_wrappers import HostView
from reverie.envs.spec import EnvSpec

HEAD = """
import gymnasium, numpy as np, time, os, sys, itertools
from gymnasium import spaces
count = itertools.count()
class E(gymnasium.Env):
    observation_space = spaces.Box(-1, 1, (2,), np.float32)
    action_space = spaces.Discrete(2)
    t = 0
    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed); self.t = 0
        return self.obs(), {}
    def obs(self):
        return np.full(2, self.t / 10, np.float32)
    def step(self, action):
        self.t += 1
        return self.obs(), 0.0, self.t == 5, False, {}
"""


def findings(tmp_path, body, steps=60, deadline=NEVER):
    path = tmp_path / "theirs.py"
    path.write_text(HEAD + "class Mine(E):\n" + body)
    return check_env(f"{path}:Mine", steps=steps, deadline=deadline)


def test_a_sound_env_gets_notes_only(tmp_path):
    found = findings(tmp_path, "    pass\n")
    assert {f.severity for f in found} == {"note"}
    assert "10 random episodes, the longest of 5 steps" in [f.what for f in found]
    assert any("cannot be rendered" in f.what for f in found)


def test_shipped_envs_have_no_errors():
    for env in ("CartPole-v1", "reverie.envs.toy:Dummy"):
        assert not [f for f in check_env(env, steps=200) if f.severity == "error"]


@pytest.mark.parametrize("fault", FAULTS)
def test_every_fault_of_the_toy_is_an_error(fault, tmp_path, monkeypatch):
    struck = tmp_path / "struck"
    if fault == "hang":
        hang_there(monkeypatch, struck)
    spec = EnvSpec("faulty:Faulty", kwargs={"script": {"3": fault}, "once": str(struck)})
    found = check_env(spec, steps=30, deadline=NEVER)
    assert found[0].severity == "error"
    assert found[0].what.startswith("step 3 of episode 0: ")
    assert found[0].fix


CASES = {
    "old step": (
        "    def step(self, a): return self.obs(), 0.0, False, {}\n",
        "error",
        "step() returned 4 values, expected five",
    ),
    "old reset": (
        "    def reset(self, *, seed=None, options=None): return self.obs()\n",
        "error",
        "expected two values: obs, info",
    ),
    "no seed": (
        "    def reset(self): return self.obs(), {}\n",
        "error",
        "takes no seed",
    ),
    "no spaces": ("    action_space = None\n", "error", "action_space is None"),
    "unsupported": (
        "    action_space = spaces.Text(3)\n",
        "error",
        "Text spaces are not supported",
    ),
    "unbounded": ("    action_space = spaces.Box(-np.inf, np.inf, (1,))\n", "error", "unbounded"),
    "float64": (
        "    def obs(self): return np.zeros(2)\n",
        "warning",
        "returns float64 where its space declares float32",
    ),
    "reward array": (
        "    def step(self, a): return self.obs(), np.zeros(1), False, False, {}\n",
        "error",
        "expected one number",
    ),
    "endless": (
        "    def step(self, a): return self.obs(), 0.0, False, False, {}\n",
        "note",
        "no episode ended within 60 random steps",
    ),
    "random": (
        "    def obs(self): return np.random.rand(2).astype('f4')\n",
        "warning",
        "the same seed and actions give another episode",
    ),
    "leaking": (
        "    n = 0\n    def obs(self): self.n += 1; return np.full(2, self.n / 999, np.float32)\n",
        "warning",
        "depends on those before it",
    ),
    "exits": ("    def step(self, a): sys.exit('bye')\n", "error", "SystemExit: bye"),
    "crashes": ("    def step(self, a): os.abort()\n", "error", "killed by signal SIGABRT"),
    "constructor": ("    def __init__(self): 1 / 0\n", "error", "ZeroDivisionError"),
    "channels first": (
        "    observation_space = spaces.Box(0, 255, (3, 64, 64), np.uint8)\n"
        "    def obs(self): return np.zeros((3, 64, 64), np.uint8)\n",
        "note",
        "an image [3, 64, 64] has its channels first: it is turned around to [64, 64, 3]",
    ),
    "render": (
        "    metadata = {'render_modes': ['rgb_array']}\n"
        "    def __init__(self, render_mode=None): self.render_mode = render_mode\n"
        "    def render(self): raise OSError('no display')\n",
        "warning",
        "no display",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_what_a_person_gets_wrong_is_found(case, tmp_path):
    body, severity, told = CASES[case]
    found = findings(tmp_path, body)
    assert [f for f in found if f.severity == severity and told in f.what], found
    order = [("error", "warning", "note").index(f.severity) for f in found]
    assert order == sorted(order)


def test_a_slow_step_is_a_warning(tmp_path):
    body = "    def step(self, a): time.sleep(0.06); return super().step(a)\n"
    (slow,) = (f for f in findings(tmp_path, body, steps=8) if "a step takes" in f.what)
    assert slow.severity == "warning"


def test_a_hang_costs_no_more_than_the_deadline(tmp_path):
    found = findings(tmp_path, "    def __init__(self): time.sleep(9999)\n", deadline=0.1)
    assert found[0].what == "building it: no answer within 0.1 s"


def test_an_unknown_env_is_a_finding():
    (finding,) = check_env("CartPole-v11")
    assert finding.severity == "error"
    assert "did you mean CartPole-v1" in finding.what


def test_a_callable_is_examined_here(monkeypatch):
    hang_here(monkeypatch)
    found = check_env(lambda: Faulty({"2": "nan_obs", "4": "hang"}), steps=20, deadline=NEVER)
    assert "element 1 is nan" in found[0].what
    assert "step 4 of episode 0: it hung" in found[1].what


def test_strict_turns_are_kept_where_they_are_promised():
    found = check_env(lambda: HostView(Claims(), "claims"), steps=60)
    told = [f for f in found if f.severity == "error"]
    assert len(told) == 1
    assert "moves twice in a row, expected strict turns" in told[0].what
    assert "alternating" in told[0].fix
    for sound in (FourMoves, Alternating):
        assert not [f for f in check_env(lambda s=sound: HostView(s(), "sound"), steps=60) if f.severity == "error"]
