"""The real envs, each stepping for real where its package is installed."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import importlib.util
import io
import warnings
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pytest

from reverie.envs import options
from reverie.envs.build import make_env
from reverie.envs.check import check_env
from reverie.envs.spec import EnvSpec, UnusableEnv
from reverie.envs.values import Gate, sample
from reverie.envs.workers import Workers


def needs(*packages):
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    return pytest.mark.skipif(bool(missing), reason=f"without {missing}")


atari, dmc, crafter, minigrid, box2d, mujoco = (
    needs(name) for name in ("ale_py", "dm_control", "crafter", "minigrid", "Box2D", "mujoco")
)
MARKS = (atari, dmc, crafter, minigrid)
MODULES = ("atari", "dmc", "crafter", "minigrid")
FAMILIES = [
    pytest.param("ALE/MsPacman-v5", {"lives": "discount"}, 150, marks=atari),
    pytest.param("dmc:walker_walk", {}, 150, marks=dmc),
    pytest.param("crafter", {}, 60, marks=crafter),
    pytest.param("MiniGrid-MemoryS7-v0", {}, 150, marks=minigrid),
    pytest.param("BabyAI-GoToLocal-v0", {"view": "rgb"}, 150, marks=minigrid),
    pytest.param("LunarLander-v3", {}, 300, marks=box2d),
    pytest.param("BipedalWalker-v3", {}, 300, marks=box2d),
    pytest.param("CarRacing-v3", {}, 15, marks=box2d),
    pytest.param("HalfCheetah-v5", {}, 150, marks=mujoco),
]


@pytest.mark.parametrize(("name", "kwargs", "steps"), FAMILIES)
def test_check_env_finds_nothing_wrong(name, kwargs, steps):
    findings = check_env(EnvSpec(name, kwargs=kwargs), steps=steps)
    assert findings
    wrong = [finding for finding in findings if finding.severity != "note"]
    # How long a step takes says as much about who else uses the machine as about the env.
    assert all("a step takes" in finding.what for finding in wrong), wrong


def crcs(workers, steps):
    """A fingerprint of every row of all envs, under actions that depend on the time only."""
    everyone, found = np.arange(workers.num), []
    for t in range(steps):
        rng = np.random.default_rng(t)
        drawn = [sample(workers.act_space, rng) for _ in everyone]
        workers.send(everyone, {key: np.stack([x[key] for x in drawn]) for key in workers.act_space})
        rows, cut = workers.recv(everyone)
        assert not cut.any()
        found.append([zlib.crc32(rows[key].tobytes()) for key in sorted(rows)])
    return found


@pytest.mark.parametrize(("name", "kwargs", "steps"), FAMILIES)
def test_a_resumed_run_finds_the_env_where_it_was(name, kwargs, steps):
    """Each process has its own addresses and its own hashes of text: an order of a set would show."""
    spec = EnvSpec(name, kwargs=kwargs, time_limit=steps // 2 + 10)
    with Workers(spec, 1, seed=5, mode="process") as workers:
        crcs(workers, steps)
        state = workers.state()
        ahead = crcs(workers, 10)
    assert len(state["actions"]) > 0, "an episode is open"
    with Workers(spec, 1, seed=5, mode="process") as workers:
        assert not workers.restore(state).any()
        assert crcs(workers, 10) == ahead


# ------------------------------------------------------------------------------------------ options


@pytest.mark.parametrize(
    ("name", "kwargs", "told"),
    [
        pytest.param("ALE/Pong-v5", {"gary": True}, "no option 'gary': did you mean 'gray'", marks=atari),
        pytest.param("ALE/Pong-v5", {"size": 0}, "size is 0, expected 1 or more", marks=atari),
        pytest.param("ALE/Pong-v5", {"sticky": 1}, "sticky is 1", marks=atari),
        pytest.param("ALE/Pong-v5", {"mode": 9}, "mode is 9, but pong has", marks=atari),
        pytest.param("ALE/Pnog-v5", {}, "did you mean ALE/Pong-v5", marks=atari),
        pytest.param("dmc:walker_wlak", {}, "did you mean dmc:walker_walk", marks=dmc),
        pytest.param("dmc:walker_walk", {"camera": 7}, "camera is 7, but walker has", marks=dmc),
        pytest.param("crafter:rewrd", {}, "did you mean crafter:reward", marks=crafter),
        pytest.param("dmc:walker_walk", {"camera": -2}, "camera is -2, expected -1 or more", marks=dmc),
        pytest.param("crafter", {"size": 8}, "size is 8, expected 9 or more", marks=crafter),
        pytest.param("crafter", {"reward": False}, "no option 'reward'", marks=crafter),
        pytest.param("MiniGrid-Emty-8x8-v0", {}, "did you mean MiniGrid-Empty-8x8-v0", marks=minigrid),
        pytest.param("MiniGrid-Empty-8x8-v0", {"view": "full"}, "expected one of 'symbols', 'rgb'", marks=minigrid),
    ],
)
def test_a_wrong_option_says_what_to_type(name, kwargs, told):
    with pytest.raises(UnusableEnv, match=told):
        make_env(EnvSpec(name, kwargs=kwargs))


@dataclass(frozen=True)
class Some:
    flag: bool = False
    count: int = 1
    share: float = 0.5
    mode: int | None = None
    kind: Literal["a", "b"] = "a"


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"flag": 1}, "flag is 1, expected true or false"),
        ({"count": 1.0}, "count is 1.0, expected a whole number"),
        ({"count": True}, "count is True"),
        ({"share": "x"}, "share is 'x', expected a number"),
        ({"mode": "x"}, "expected a whole number or null"),
        ({"kind": "c"}, "expected one of 'a', 'b'"),
        ({"knid": "a"}, "did you mean 'kind'"),
        ({"zzz": 1}, "no option 'zzz': There are flag, count, share"),
    ],
)
def test_options_are_checked_by_name_and_type(given, told):
    with pytest.raises(ValueError, match=told):
        options.read(Some, given)


def test_options_of_the_right_type_pass():
    given = {"flag": True, "count": 3, "share": 1, "mode": None, "kind": "b"}
    assert options.read(Some, given) == Some(True, 3, 1, None, "b")
    assert options.read(Some, {"mode": 2}).mode == 2


@pytest.mark.parametrize("family", [pytest.param(name, marks=mark) for name, mark in zip(MODULES, MARKS, strict=True)])
def test_every_option_is_documented(family):
    module = importlib.import_module(f"reverie.envs.{family}")
    page = (Path(__file__).parents[2] / "docs" / "envs.md").read_text()
    for field in dataclasses.fields(module.Options):
        assert f"`{field.name}`" in page, f"docs/envs.md does not explain {field.name} of {family}"


# -------------------------------------------------------------------------------------------- Atari


def game(name="ALE/Pong-v5", **kwargs):
    return make_env(EnvSpec(name, kwargs=kwargs))


def press(env, key=0):
    return env.step({"action": np.array(key, np.int32)})


@atari
@pytest.mark.parametrize("gray", [False, True])
def test_atari_repeats_four_frames_once_and_shows_the_brighter_of_the_last_two(gray):
    import ale_py
    from ale_py import roms
    from PIL import Image

    env = game("ALE/MsPacman-v5", sticky=0.0, noops=0, size=96, gray=gray)
    ale = ale_py.ALEInterface()
    ale.setFloat("repeat_action_probability", 0.0)
    ale.loadROM(roms.get_rom_path("ms_pacman"))
    ale.reset_game()
    keys = ale.getMinimalActionSet()
    env.reset(3)
    rng, differ, rewards = np.random.default_rng(0), 0, 0
    for _ in range(100):
        key, reward, screens = int(rng.integers(len(keys))), 0, []
        for _ in range(4):
            reward += ale.act(keys[key])
            screens.append(ale.getScreenGrayscale() if gray else ale.getScreenRGB())
        shown = Image.fromarray(np.maximum(*screens[2:])).resize((96, 96), Image.Resampling.BOX)
        step = press(env, key)
        np.testing.assert_array_equal(step.obs["image"].squeeze(), np.asarray(shown))
        assert step.reward == reward
        assert env.env.ale.getEpisodeFrameNumber() == ale.getEpisodeFrameNumber()
        differ += (screens[2] != screens[3]).any()
        rewards += abs(reward)
    assert differ > 30
    assert rewards > 0
    assert env.obs_space["image"].shape == (96, 96, 1 if gray else 3)


@atari
def test_atari_is_not_repeated_or_resized_twice():
    for wrapper, told in (({"action_repeat": 4}, "repeats every action by itself"), ({"image_size": 96}, '"size": 96')):
        with pytest.raises(UnusableEnv, match=told):
            make_env(EnvSpec("ALE/Pong-v5", **wrapper))
    assert make_env(EnvSpec("ALE/Pong-v5", image_size=64, gray=True)).obs_space["image"].shape == (64, 64, 1)


@atari
def test_a_kept_start_is_what_loading_the_game_again_gives():
    env, again = game("ALE/Breakout-v5"), game("ALE/Breakout-v5")
    env.reset(1)
    for _ in range(50):
        press(env, 1)
    for first, second in zip(
        [env.reset(7)] + [press(env, 2) for _ in range(30)],
        [again.reset(7)] + [press(again, 2) for _ in range(30)],
        strict=True,
    ):
        np.testing.assert_array_equal(first.obs["image"], second.obs["image"])


@atari
def test_noops_are_drawn_by_the_seed_up_to_their_number():
    env = game("ALE/Pong-v5", noops=5)
    begin = game("ALE/Pong-v5", noops=0)
    begin.reset(0)
    zero = begin.env.ale.getEpisodeFrameNumber()
    taken = []
    for seed in range(40):
        env.reset(seed)
        taken.append(env.env.ale.getEpisodeFrameNumber() - zero)
    assert set(taken) == {0, 1, 2, 3, 4, 5}


@atari
def test_sticky_actions_keep_the_last_one_a_quarter_of_the_frames():
    env = game("ALE/Pong-v5", noops=0, length=0)
    pressed = []

    class Spy:
        def __init__(self, ale):
            self._ale = ale

        def act(self, key):
            pressed.append(key)
            return self._ale.act(key)

        def __getattr__(self, name):
            return getattr(self._ale, name)

    env.reset(0)
    env.env.ale = Spy(env.env.ale)
    for t in range(500):
        press(env, 2 + t % 2)  # a new key every step
    first = [pressed[4 * t] != env.env.actions[2 + t % 2] for t in range(500)]
    assert 0.15 < np.mean(first) < 0.35
    calm = game("ALE/Pong-v5", deterministic=True, repeat=7)
    calm.reset(0)
    calm.env.ale = Spy(calm.env.ale)
    pressed.clear()
    for t in range(20):
        press(calm, 2 + t % 2)
    assert pressed == [calm.env.actions[2 + t % 2] for t in range(20) for _ in range(4)]


@atari
def test_deterministic_games_differ_by_their_start_only():
    def run(seed):
        env = game("ALE/MsPacman-v5", deterministic=True, noops=0)
        env.reset(seed)
        return [press(env, t % 9).obs["image"].tobytes() for t in range(40)]

    assert run(0) == run(1)


@atari
def test_lives():
    def lose(lives):
        """Steps until the first sign of a lost life, and one more."""
        env = game("ALE/Breakout-v5", lives=lives, noops=0, sticky=0.0)
        env.reset(0)
        for t in range(400):
            step = press(env, 1)  # FIRE: the ball falls past the paddle
            if step.is_terminal or env.env.ale.lives() < 5:
                return t, step, env
        raise AssertionError("no life was lost")

    t, step, env = lose("unused")
    assert (step.is_last, step.is_terminal) == (False, False)
    discounted, step, env = lose("discount")
    assert discounted == t
    assert (step.is_last, step.is_terminal) == (False, True)
    step = press(env, 1)
    assert (step.is_last, step.is_terminal) == (False, False), "once a life"
    assert env.env.ale.lives() == 4, "the game goes on"
    resetting, step, env = lose("reset")
    assert resetting == t
    assert (step.is_last, step.is_terminal) == (True, True)
    env.reset(1)
    assert env.env.ale.lives() == 5
    env = game("ALE/Breakout-v5", noops=0, sticky=0.0)
    env.reset(0)
    while not (step := press(env, 1)).is_last:
        pass
    assert (step.is_terminal, env.env.ale.lives()) == (True, 0)


@atari
def test_actions_and_length():
    assert game("ALE/Pong-v5").act_space["action"].classes == (6,)
    assert game("ALE/Pong-v5", actions="all").act_space["action"].classes == (18,)
    env = game("ALE/Pong-v5", length=41, noops=0)
    env.reset(0)
    shown = [press(env) for _ in range(11)]
    assert [s.is_last for s in shown] == [False] * 10 + [True]
    assert not shown[-1].is_terminal
    assert env.render().shape == (210, 160, 3)


# ------------------------------------------------------------------------------------- DeepMind Control


@dmc
def test_control_shows_vectors_and_ends_by_the_clock():
    env = make_env("dmc:walker_walk")
    assert {k: s.shape for k, s in env.obs_space.items()} == {"orientations": (14,), "height": (), "velocity": (9,)}
    assert env.act_space["action"].shape == (6,)
    step, steps = env.reset(0), 0
    while not step.is_last:
        step = env.step({"action": np.zeros(6, np.float32)})
        steps += 1
    assert (steps, step.is_terminal) == (1000, False)


@dmc
def test_control_terminates_where_the_task_does():
    import dm_env

    env = make_env("dmc:cartpole_balance")
    env.reset(0)
    env.env._task.step = lambda action: dm_env.termination(
        1.0, env.env._task.task.get_observation(env.env._task.physics)
    )
    step = env.step({"action": np.zeros(1, np.float32)})
    assert (step.is_last, step.is_terminal) == (True, True)


@dmc
def test_every_task_can_be_built_by_name():
    from reverie.envs.dmc import TASKS

    assert {"ball_in_cup_catch", "quadruped_walk", "humanoid_CMU_run"} <= TASKS.keys()
    for name in ("ball_in_cup_catch", "finger_turn_hard", "point_mass_easy"):
        assert make_env(f"dmc:{name}").reset(0).is_first


@dmc
def test_control_draws_what_the_camera_sees():
    from reverie.envs import mujoco

    if not mujoco.can_draw():
        pytest.skip("there is neither EGL nor OSMesa")
    pictures = {}
    for name, kwargs in (("plain", {}), ("fast", {"fast_render": True}), ("other", {"camera": 1})):
        env = make_env(EnvSpec("dmc:walker_walk", kwargs={"pixels": True, **kwargs}))
        assert {k: s.shape for k, s in env.obs_space.items()} == {"image": (64, 64, 3)}
        pictures[name] = env.reset(0).obs["image"].astype(int)
        assert pictures[name].std() > 10, "not one colour"
        env.close()
    assert 0 < abs(pictures["plain"] - pictures["fast"]).mean() < 15, "the same scene, other pixels"
    assert abs(pictures["plain"] - pictures["other"]).mean() > 15, "another camera"
    four = make_env(EnvSpec("dmc:quadruped_walk", kwargs={"pixels": True}))
    assert four.env._camera == 2


@dmc
def test_without_a_way_to_draw_a_message_says_what_to_install(monkeypatch):
    import reverie.envs.dmc  # noqa: F401 (dm_control looks for a way to draw once: not while this test pretends)
    from reverie.envs import mujoco

    monkeypatch.delenv("MUJOCO_GL", raising=False)
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    monkeypatch.setattr(mujoco, "_egl_works", lambda: False)
    with monkeypatch.context() as patch:
        patch.setattr("ctypes.util.find_library", {"OSMesa": "libOSMesa.so.8"}.get)
        assert mujoco.choose() == "osmesa"
    monkeypatch.delenv("MUJOCO_GL")
    monkeypatch.setattr("ctypes.util.find_library", lambda name: None)
    assert mujoco.choose() == "disabled"
    with pytest.raises(UnusableEnv, match="apt-get install libegl1"):
        make_env(EnvSpec("dmc:walker_walk", kwargs={"pixels": True}))
    assert make_env("dmc:walker_walk").render() is None
    monkeypatch.setenv("MUJOCO_GL", "glfw")
    assert mujoco.choose() == "glfw", "a person's choice stands"


# ------------------------------------------------------------------------------------------- Crafter


@crafter
def test_crafter_tells_which_achievements_an_episode_unlocked():
    from reverie.envs.crafter import ACHIEVEMENTS

    with Workers(EnvSpec("crafter", kwargs={"length": 40}), 1, seed=1, mode="inline") as workers:
        crcs(workers, 41)
        (figures,) = workers.figures
    assert figures.keys() == {f"achievement/{name}" for name in ACHIEVEMENTS}
    assert set(figures.values()) <= {0.0, 1.0}
    env = make_env(EnvSpec("crafter", kwargs={"length": 3}))
    env.reset(0)
    env.env._game._player.achievements["collect_wood"] = 2
    shown = [env.step({"action": np.array(0, np.int32)}) for _ in range(3)]
    assert [s.is_last for s in shown] == [False, False, True]
    assert not shown[-1].is_terminal
    assert shown[-1].figures["achievement/collect_wood"] == 1.0
    assert shown[0].reward == 1.0
    env.reset(0)
    env.env._game._player.health = 0
    step = env.step({"action": np.array(0, np.int32)})
    assert (step.is_last, step.is_terminal) == (True, True)


@crafter
def test_crafter_removes_creatures_in_the_order_in_which_they_came(monkeypatch):
    """The package picks from a set, whose order is that of addresses: different in every process."""
    import crafter as package

    env = make_env("crafter")
    env.reset(0)
    world = env.env._game._world
    came = [one for one in world._objects if one]
    given = []
    monkeypatch.setattr(package.Env, "_balance_object", lambda self, chunk, objs, *args: given.extend(objs))
    env.env._game._balance_object(None, set(came), "the rest")
    assert given == came
    assert len(came) > 10


@crafter
def test_the_crafter_score_is_the_geometric_mean_of_the_papers():
    from reverie.envs.crafter import ACHIEVEMENTS, score

    assert score(dict.fromkeys(ACHIEVEMENTS, 0.0)) == 0
    assert score(dict.fromkeys(ACHIEVEMENTS, 1.0)) == pytest.approx(100)
    half = dict.fromkeys(ACHIEVEMENTS, 0.0) | dict.fromkeys(ACHIEVEMENTS[:11], 1.0)
    assert score(half) == pytest.approx(101**0.5 - 1)
    with pytest.raises(ValueError, match="expected all of"):
        score({"collect_wood": 1.0})


# ------------------------------------------------------------------------------------------ MiniGrid


@minigrid
def test_a_partial_view_of_symbols_or_pixels():
    env = make_env("MiniGrid-Empty-8x8-v0")
    cells, direction = env.obs_space["cells"], env.obs_space["direction"]
    assert set(env.obs_space) == {"cells", "direction"}
    assert (cells.shape, cells.classes[:3], cells.width) == ((7, 7, 3), (11, 6, 3), 49 * 20)
    assert direction.classes == (4,)
    step = env.reset(0)
    np.testing.assert_array_equal(step.obs["cells"], env.env.unwrapped.gen_obs()["image"])
    turned = env.step({"action": np.array(1, np.int32)}).obs["direction"]
    assert turned == (step.obs["direction"] + 1) % 4
    rgb = make_env(EnvSpec("MiniGrid-Empty-8x8-v0", kwargs={"view": "rgb"}))
    image = rgb.reset(0).obs["image"]
    assert image.shape == (64, 64, 3)
    assert not image[63:].any(), "whole cells: 7 x 9 pixels"
    assert image[:63, :63].any(2).mean() > 0.1


@minigrid
def test_moving_is_three_actions():
    assert make_env("MiniGrid-Empty-8x8-v0").act_space["action"].classes == (7,)
    env = make_env(EnvSpec("MiniGrid-Empty-8x8-v0", kwargs={"actions": "move"}))
    assert env.act_space["action"].classes == (3,)
    env.reset(0)
    for key in [2] * 5 + [1] + [2] * 5:  # forward to the wall, right, forward to the goal
        step = env.step({"action": np.array(key, np.int32)})
    assert step.is_terminal
    assert step.reward > 0.9


@minigrid
def test_missions_are_words_where_they_differ():
    from reverie.envs.minigrid import LENGTH, WORDS, tokens

    assert "mission" not in make_env("MiniGrid-MemoryS7-v0").obs_space
    for name in ("BabyAI-GoToObj-v0", "MiniGrid-Fetch-5x5-N2-v0"):
        env = make_env(name)
        shown = {env.reset(seed).obs["mission"].tobytes() for seed in range(10)}
        assert len(shown) > 1, name
        assert env.obs_space["mission"].classes == (len(WORDS) + 1,) * LENGTH
    none = make_env(EnvSpec("BabyAI-GoToObj-v0", kwargs={"mission": "none"}))
    assert set(none.obs_space) == {"cells", "direction"}
    ids = tokens("Go to the red ball, then open a door")
    assert [WORDS[i - 1] for i in ids if i] == ["go", "to", "the", "red", "ball", ",", "then", "open", "a", "door"]
    with pytest.raises(ValueError, match="unknown of them: \\['dragon'\\]"):
        tokens("find the dragon")


@minigrid
def test_every_mission_can_be_said():
    import gymnasium
    import minigrid as package

    from reverie.envs.minigrid import tokens

    assert package.__version__
    names = [x for x in gymnasium.registry if x.startswith(("MiniGrid-", "BabyAI-")) and "WFC" not in x]
    assert len(names) > 100
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # older versions of an env are good enough here
        for name in names:
            env = gymnasium.make(name, disable_env_checker=True)
            for seed in range(2):
                tokens(env.reset(seed=seed)[0]["mission"])


# ------------------------------------------------------------------------------------------ bodies


@pytest.mark.parametrize(
    "name", [pytest.param("Walker2d-v5", marks=mujoco), pytest.param("dmc:walker_walk", marks=dmc)]
)
def test_a_body_is_told_as_targets_and_the_simulation_is_not_touched(name):
    plain, told = make_env(name), make_env(EnvSpec(name, action_repeat=2, targets="proprio"))
    shapes = {key: space.shape for key, space in told.obs_space.items() if space.kind == "target"}
    assert shapes == {
        "joint_positions": (10,),  # the torso turns freely
        "joint_velocities": (9,),
        "effector_poses": (2, 12),  # two feet
        "effector_velocities": (2, 6),
    }
    rng = np.random.default_rng(0)
    rows = [plain.reset(3)], [told.reset(3)]
    for _ in range(20):
        action = sample(plain.act_space, rng)
        first = plain.step(action)
        rows[0].append(first if first.is_last else plain.step(action))
        rows[1].append(told.step(action))
        if rows[1][-1].is_last:
            break
    assert len(rows[1]) > 5
    for a, b in zip(*rows, strict=True):
        for key in plain.obs_space:
            np.testing.assert_array_equal(a.obs[key], b.obs[key])
    before, after = rows[1][-2].obs, rows[1][-1].obs
    assert all(after[key].dtype == np.float32 and (before[key] != after[key]).any() for key in shapes)
    turns = after["effector_poses"][:, 3:].reshape(2, 3, 3)
    np.testing.assert_allclose(turns @ turns.transpose(0, 2, 1), [np.eye(3)] * 2, atol=1e-5)


@mujoco
def test_the_same_picture_is_the_same_pose():
    """Full turns of a hinge and the sign of a quaternion are nothing to see."""
    from reverie.envs.mujoco import Body  # before MuJoCo, which looks for a way to draw
    import mujoco as library  # isort: skip

    everything = """<mujoco><worldbody>
        <body><joint type="free"/><geom size="1"/></body>
        <body><joint type="ball"/><geom size="1"/></body>
        <body><joint type="hinge" axis="0 1 0"/><geom size="1"/></body>
        <body><joint type="hinge" range="-9 9" limited="true"/><geom size="1"/></body>
        <body><joint type="slide"/><geom size="1"/></body>
    </worldbody></mujoco>"""
    model = library.MjModel.from_xml_string(everything)
    data = library.MjData(model)
    body = Body(make_env("CartPole-v1"), model, data)
    half = np.sqrt(0.5)
    places = np.array([1, 2, 3, half, half, 0, 0, half, 0, half, 0, 0.7, 5.0, 6.0])
    data.qpos[:] = places
    once = body.observation({})
    quarter = [1, 0, 0, 0, 0, -1, 0, 1, 0], [0, 0, 1, 0, 1, 0, -1, 0, 0]  # about x, and about y
    expected = [1, 2, 3, *quarter[0], *quarter[1], np.sin(0.7), np.cos(0.7), 5, 6]
    np.testing.assert_allclose(once["joint_positions"], expected, atol=1e-6)
    data.qpos[:] = places * [1, 1, 1, *8 * [-1], 1, 1, 1] + [*11 * [0], 2 * np.pi, 0, 0]
    for key, value in body.observation({}).items():
        np.testing.assert_allclose(value, once[key], atol=1e-6)


@mujoco
def test_velocities_of_a_finger_are_the_changes_of_its_position():
    env = make_env(EnvSpec("Reacher-v5", targets="proprio"))
    env.reset(0)
    rng, places, speeds = np.random.default_rng(0), [], []
    for _ in range(40):
        obs = env.step({"action": 0.2 * sample(env.act_space, rng)["action"]}).obs
        places.append(obs["effector_poses"][:, :3])
        speeds.append(obs["effector_velocities"][:, :3])
    moved = np.diff(places, axis=0) / 0.02  # seconds of a step
    mean = (np.array(speeds[1:]) + speeds[:-1]) / 2
    np.testing.assert_allclose(moved, mean, atol=0.05 * np.abs(mean).max())


def test_what_has_no_body_says_so():
    with pytest.raises(UnusableEnv, match=r"no body to predict .* leave --targets out"):
        make_env(EnvSpec("CartPole-v1", targets="proprio"))


@box2d
@pytest.mark.parametrize("action", [1, 2, 3])
def test_a_lander_that_turns_over_or_flies_away_breaks_no_rule(action):
    """The bounds that Gymnasium declares have room for one turn, and end above the picture."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # SWIG's; as an error it takes the interpreter down
        env = make_env(EnvSpec("LunarLander-v3"))
    gate = Gate(env.obs_space)
    for seed in range(4):
        step = env.reset(seed)
        while not step.is_last:
            gate.check(step := env.step({"action": np.array(action, np.int32)}))
    env.close()


@box2d
@pytest.mark.parametrize("side", [-1, 1])
def test_the_driver_by_hand_steers_to_the_road_and_uses_the_whole_range(side):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # SWIG's; as an error it takes the interpreter down
        from reverie.envs.box2d import drive

    image = np.full((64, 64, 3), (100, 200, 100), np.uint8)  # grass
    road = slice(40, 60) if side > 0 else slice(4, 24)
    image[:, road] = 105
    actions = np.stack([drive({"image": image}, np.random.default_rng(seed)) for seed in range(500)])
    assert actions.dtype == np.float32
    assert actions.shape == (500, 3)
    assert (abs(actions) <= 1).all()
    assert side * actions[:, 0].mean() > 0.4
    away, full = -side * actions[:, 0] == 1, actions[:, 1] == 1
    assert away.any(), "the wheel is turned all the way to the wrong side, too"
    assert 0.15 < full.mean() < 0.3
    assert (actions[full, 2] == -1).all(), "nobody brakes on full gas"
    np.testing.assert_array_equal(actions[7], drive({"image": image}, np.random.default_rng(7)))
