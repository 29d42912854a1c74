import numpy as np
import pytest

from reverie.envs.base import Space, Step
from reverie.envs.buffers import Buffers
from reverie.envs.host import Host, explain
from reverie.envs.spec import env_spec
from reverie.envs.values import Malformed


class Confused:
    """An `Env` that says `is_first` at every step, and keeps the action it was given."""

    obs_space = act_space = {"x": Space("vector", (1,))}  # noqa: RUF012
    kept: dict | None = None

    def reset(self, seed=None):
        return self.step({})

    def step(self, action):
        self.kept = action
        return Step({"x": np.zeros(1, np.float32)}, 0.0, True, False, False)

    def render(self):
        return None

    def close(self):
        pass


def test_is_first_belongs_to_resets_and_actions_to_the_env():
    host = Host(env_spec(lambda: Confused()))
    buffers = Buffers(host.env.obs_space, host.env.act_space, 1)
    action = buffers.action
    host.bind(buffers.obs, action, 0)
    assert host.reset(0).is_first
    action["x"][:] = 1
    with pytest.raises(Malformed, match="is_first is True, expected it on reset and only there"):
        host.step()
    action["x"][:] = 2
    assert host.env.kept["x"].tolist() == [1]


def test_an_explanation_has_a_traceback_only_where_it_helps():
    assert explain(Malformed("odd")) == "it returned a malformed value: odd"
    with pytest.raises(ZeroDivisionError) as error:
        1 / 0  # noqa: B018
    assert "Traceback" in explain(error.value)
    assert explain(error.value).endswith("ZeroDivisionError: division by zero")
