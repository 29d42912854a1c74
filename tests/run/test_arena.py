"""Games between an agent and an opponent, whoever moves next."""

from __future__ import annotations

from typing import Any

import fakes
import jax
import jax.numpy as jnp
import pytest

from reverie.envs.device import DeviceEnvs
from reverie.envs.spec import EnvSpec
from reverie.run.arena import Arena, scores


class Best(fakes.Fake):
    """Plays 2, the best move of the four."""

    def policy(self, state: Any, carry: Any, obs: Any, mode: Any) -> Any:
        return carry, {"action/action": jnp.full(obs["is_first"].shape, 2, jnp.int32)}, {}


@pytest.mark.parametrize(("order", "first", "second"), [("0111", "losses", "wins"), ("0010", "wins", "losses")])
def test_a_player_who_moves_more_often_wins_from_either_seat(order: str, first: str, second: str) -> None:
    spec = EnvSpec("device:four_moves:FourMoves", kwargs={"orders": order})
    envs = DeviceEnvs(spec, 2, seed=0)
    agent = Best(fakes.Config(), envs.obs_space, envs.act_space)
    games = Arena(envs, agent, "perfect").play(None, 4, jax.random.key(0))
    assert games is not None
    told = scores(games)
    assert (told["first"][first], told["second"][second]) == (2, 2)
    assert [game.length for game in games] == [4] * 4
