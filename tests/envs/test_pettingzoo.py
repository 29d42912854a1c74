"""Games of PettingZoo, and opponents of games on the host."""

from __future__ import annotations

import copy
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

pytest.importorskip("pettingzoo", reason="pip install reverie[pettingzoo]")

from gymnasium import spaces
from pettingzoo import AECEnv, ParallelEnv

from reverie.envs import opponents, opposed
from reverie.envs.base import Space, Step
from reverie.envs.build import make_env
from reverie.envs.check import check_env
from reverie.envs.opposed import OpponentWrapper, Perfect, TreeSearch, made, opponent
from reverie.envs.spec import EnvSpec, UnusableEnv
from reverie.envs.values import Gate, Malformed

CONNECT_FOUR, TIC_TAC_TOE = "pettingzoo:connect_four_v3", "pettingzoo:tictactoe_v3"


def test_a_game_shows_what_that_of_the_device_shows() -> None:
    """The same moves in both: the same rows, to the last."""
    pytest.importorskip("pgx")
    host, device = make_env(CONNECT_FOUR), make_env("pgx:connect_four")
    assert host.obs_space == device.obs_space
    assert host.act_space == device.act_space
    rng, gate, ends = np.random.default_rng(0), Gate(host.obs_space), []
    for seed in range(6):
        one, other = host.reset(seed), device.reset(seed)
        while True:
            gate.check(one)
            for key in one.obs:
                if key != "legal" or not one.is_last:
                    np.testing.assert_array_equal(one.obs[key], other.obs[key], key)
            assert (one.reward, one.is_first, one.is_last, one.is_terminal) == (
                (other.reward, other.is_first, other.is_last, other.is_terminal)
            )
            if one.is_last:
                assert one.obs["legal"].all()
                ends.append(one.reward)
                break
            move = {"action": np.array(rng.choice(np.flatnonzero(one.obs["legal"])), np.int32)}
            one, other = host.step(move), device.step(move)
    assert set(ends) <= {0.0, 1.0}
    assert 1.0 in ends


def test_check_env_finds_nothing_wrong() -> None:
    assert not [f for f in check_env(TIC_TAC_TOE, steps=60) if f.severity == "error"]


def test_a_copy_goes_on_from_where_the_game_is() -> None:
    game = make_env(CONNECT_FOUR)
    game.reset(0)
    for move in (3, 3, 4):
        made(game, move)
    other = copy.deepcopy(game)
    one, two = made(game, 2), made(other, 2)
    np.testing.assert_array_equal(one.obs["board"], two.obs["board"])
    assert one.obs["board"].sum() == 4
    made(other, 0)
    assert made(game, 1).obs["board"][5, 0].sum() == 0, "what is done in a copy stays there"


def test_pictures_are_not_copied() -> None:
    """They would take twenty times as long as all the rest, and a search copies at every move it tries."""
    for name in (TIC_TAC_TOE, CONNECT_FOUR):
        game: Any = make_env(name)
        game.reset(0)
        game.render()
        screen = game.env.unwrapped.screen
        assert screen is not None
        assert copy.deepcopy(game).env.unwrapped.screen is screen


def test_a_search_on_the_host_sees_a_win_and_a_threat() -> None:
    game, search = make_env(CONNECT_FOUR), TreeSearch(200)
    for moves in ((0, 6, 0, 6, 0, 5), (0, 6, 0, 6, 0)):
        step = game.reset(0)
        for move in moves:
            step = made(game, move)
        board = step.obs["board"].copy()
        assert search.move(game, step, np.random.default_rng(0)) == 0
        np.testing.assert_array_equal(made(copy.deepcopy(game), 2).obs["board"].sum(), board.sum() + 1)


class Sticks:
    """Who takes the last of five sticks wins; one or two at a time. From 3n sticks on the player to move loses."""

    obs_space: Any = {"left": Space("discrete", (), (6,)), "legal": Space("legal", (2,)), "player": Space("player", ())}  # noqa: RUF012
    act_space: Any = {"action": Space("discrete", (), (2,))}  # noqa: RUF012

    def __init__(self, total: int = 5) -> None:
        self.total = total

    def reset(self, seed: int | None = None) -> Step:
        self.left, self.player = self.total, 0
        return self.shown(0.0, True)

    def shown(self, reward: float, first: bool = False) -> Step:
        legal = np.array([True, self.left > 1 or not self.left])
        obs = {"left": np.array(self.left, np.int32), "legal": legal, "player": np.array(self.player, np.int8)}
        return Step(obs, reward, first, self.left == 0, self.left == 0)

    def step(self, action: Any) -> Step:
        self.left -= int(action["action"]) + 1
        self.player = 1 - self.player
        return self.shown(float(self.left == 0))

    def render(self) -> None:
        return None

    def close(self) -> None:
        pass


class DeviceSticks:
    """The same as pure functions. The state: sticks left, player to move, and whether any was taken."""

    players, obs_space, act_space = 2, Sticks.obs_space, Sticks.act_space

    def init(self, key: Any) -> Any:
        return jnp.int32(5), jnp.int8(0), jnp.bool_(False)

    def step(self, state: Any, action: Any, key: Any) -> Any:
        return state[0] - action["action"] - 1, 1 - state[1], jnp.bool_(True)

    def row(self, state: Any) -> dict[str, Any]:
        left, player, begun = state
        obs = {"left": left, "legal": jnp.stack([left == left, left != 1]), "player": player}
        flags = {"is_first": ~begun, "is_last": left == 0, "is_terminal": left == 0}
        return {f"obs/{key}": x for key, x in obs.items()} | flags | {"reward": jnp.float32(left == 0)}


def test_a_search_on_the_host_plays_as_that_of_the_device() -> None:
    """They draw other numbers, so that what they do in the same positions may differ, but by chance alone. How often
    they try each move tells far more than which they take in the end."""
    simulations, times = 24, 40
    search, other = TreeSearch(simulations), opponents.TreeSearch(DeviceSticks(), simulations)
    visits = jax.jit(jax.vmap(other.visits))
    game, rng, distances = Sticks(), np.random.default_rng(0), []
    for left in (4, 5, 6, 8):
        for player in (0, 1):
            game.left, game.player = left, player
            step, key = game.shown(0.0), jax.random.key(2 * left + player)
            state = jnp.full(times, left), jnp.full(times, player, jnp.int8), jnp.ones(times, bool)
            one = np.stack([search.visits(game, step, rng) for _ in range(times)])
            two = np.asarray(visits(state, jax.random.split(key, times))[0])
            assert {*one.sum(1), *two.sum(1)} == {simulations}
            distances.append((one - two)[:, 0].mean() ** 2 / ((one[:, 0].var() + two[:, 0].var()) / times))
    assert sum(distances) < len(distances) + 4 * (2 * len(distances)) ** 0.5, "chi-square: its mean, four deviations"


class Forgetful(Sticks):
    def __deepcopy__(self, memo: Any) -> Sticks:
        new = type(self)()
        new.reset()
        return new


def test_perfect_play_is_enumerated() -> None:
    perfect = Perfect(Sticks())
    assert perfect.value == 1
    assert perfect.positions == 8, "5 to 1 sticks, of which the beginner never faces 4 and the other never 5"
    step = (game := Sticks()).reset()
    assert perfect.move(game, step, np.random.default_rng(0)) == 1
    assert Perfect(Sticks(6)).value == -1


@pytest.mark.parametrize("seat", [0, 1])
@pytest.mark.parametrize("name", ["random", "mcts:30", "perfect"])
def test_an_opponent_has_the_other_seat(name: str, seat: int) -> None:
    """All rows are shown; whoever plays 3n against perfect play loses."""
    env, won = OpponentWrapper(Sticks(6 if seat else 5), name, seat), []
    for seed in range(12):
        step, score, mine = env.reset(seed), 0.0, True
        rows = 1
        while not step.is_last:
            mine = step.obs["player"] == seat
            # The agent's own move where it is to move; elsewhere one that would be illegal.
            left = int(step.obs["left"])
            wish = max(left % 3 - 1, 0) if mine else (left == 1)
            step, rows = env.step({"action": np.array(wish, np.int32)}), rows + 1
            score += step.reward if mine else -step.reward
        won.append(score)
        assert rows >= 4
    assert won == [1.0] * 12, "the agent plays well from a won position"


def test_what_an_opponent_needs_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UnusableEnv, match="goes on differently"):
        opponent("mcts:5", Forgetful())
    opponent("random", Forgetful())
    with pytest.raises(UnusableEnv, match="random, perfect or mcts:N"):
        opponent("chess", Sticks())
    with pytest.raises(UnusableEnv, match="a game of two players"):
        make_env(EnvSpec("CartPole-v1", opponent="random"))
    monkeypatch.setattr(opposed, "MOST", 100)
    with pytest.raises(UnusableEnv, match="more than 100 positions"):
        make_env(EnvSpec(CONNECT_FOUR, opponent="perfect"))


class Own(AECEnv):
    """Sticks as somebody might write it for PettingZoo."""

    metadata = {"name": "sticks"}  # noqa: RUF012
    sum = 0.0

    def __init__(self, agents: int = 2) -> None:
        super().__init__()
        self.possible_agents = [f"p{i}" for i in range(agents)]
        self.render_mode = None

    def observation_space(self, agent: str) -> spaces.Space:
        return spaces.Box(0, 5, (1,), np.float32)

    def action_space(self, agent: str) -> spaces.Space:
        return spaces.Discrete(2)

    def reset(self, seed: int | None = None, options: Any = None) -> None:
        self.agents, self.left = self.possible_agents[:], 5
        self.agent_selection = self.agents[0]
        self.terminations = self.truncations = dict.fromkeys(self.agents, False)
        self.infos = {agent: {"action_mask": self.mask()} for agent in self.agents}

    def mask(self) -> np.ndarray:
        return np.array([self.left > 0, self.left > 1], np.int8)

    def observe(self, agent: str) -> np.ndarray:
        return np.array([self.left], np.float32)

    def step(self, action: int) -> None:
        self.left -= action + 1
        other = self.agents[1 - self.agents.index(self.agent_selection)]
        won = float(self.left == 0)
        self.rewards = {self.agent_selection: won, other: self.sum - won}
        self.terminations = dict.fromkeys(self.agents, self.left == 0)
        self.infos = {agent: {"action_mask": self.mask()} for agent in self.agents}
        self.agent_selection = other


def test_a_game_of_ones_own_is_played_as_it_is() -> None:
    env = make_env(Own)
    assert env.obs_space["player"] == Space("player", ())
    assert [made(env, m).reward for m in (1, 1, 0)] == [0, 0, 1] if env.reset(0) else None
    assert Perfect(make_env(Own)).value == 1


def test_what_is_no_game_of_two_is_refused() -> None:
    with pytest.raises(UnusableEnv, match="3 agents take part, expected 2"):
        make_env(lambda: Own(3))
    with pytest.raises(UnusableEnv, match="did you mean pettingzoo:connect_four_v3"):
        make_env("pettingzoo:connectfour_v3")

    class AtOnce(ParallelEnv):
        def close(self) -> None:
            pass

    with pytest.raises(UnusableEnv, match="agents act at once"):
        make_env(AtOnce)

    class Generous(Own):
        sum = 1.0

    env = make_env(Generous)
    env.reset(0)
    with pytest.raises(Malformed, match="what one wins the other loses"):
        made(env, 0)


def test_the_agent_learns_and_is_measured_on_the_host(tmp_path: Any) -> None:
    """Through the loop, with evaluations from both seats; and again from Python."""
    import planners

    import reverie

    own = planners.SMALL | {"network": "mlp", "steps": 40, "envs": 2, "batch": 4, "warmup": 10, "replay_ratio": 1.0}
    rare = {"report_every": 0, "video_every": 0, "log_every": 20, "eval_every": 40, "eval_episodes": 3, "eval_envs": 1}
    run = reverie.train(
        "gumbel_muzero", env=TIC_TAC_TOE, run=tmp_path / "run", workers="inline", preset="none", **own, **rare
    )
    told = run.evaluation
    assert told is not None
    assert told.opponent == "random"
    assert {seat: sum(n.values()) for seat, n in told.seats.items()} == {"first": 2, "second": 1}
    again = reverie.evaluate(run.path, 4, opponent="mcts:3")
    assert again.opponent == "mcts:3"
    assert again.returns == [np.sign(x) for x in again.returns]
    assert {seat: sum(n.values()) for seat, n in again.seats.items()} == {"first": 2, "second": 2}
    assert jax.tree.leaves(again.seats)
