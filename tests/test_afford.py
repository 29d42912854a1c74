"""What a person is told of a model that the machine can hardly bear."""

from __future__ import annotations

import jax
import pytest

from reverie import afford, algos, config, memory
from reverie.agent import Agent
from reverie.assembly import make_agent
from reverie.config import Config, ConfigError
from reverie.envs.base import Space
from reverie.run import experience
from reverie.run.cost import of_update

SPACES = {"vector": Space("vector", (4,), (), (-1.0,) * 4, (1.0,) * 4)}, {"action": Space("discrete", (), (2,))}
LARGE = "small"  # the larger of the fake's sizes


@pytest.fixture(autouse=True)
def fake(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(algos.ALGORITHMS, "fake", "fakes")
    monkeypatch.setattr(afford, "LARGE", 0)
    monkeypatch.setattr(afford, "products_per_second", lambda precision: 1e12)


def make(conf: Config) -> Agent:
    return make_agent(conf, *SPACES)


def told(conf: Config, updates: int = 100) -> list[str]:
    return afford.warnings(conf, make(conf), jax.devices(), updates, make)


def of(size: str) -> Config:
    return config.override(config.default("fake"), env="x", size=size, precision="float32")


def test_what_can_be_borne_is_not_spoken_of() -> None:
    assert told(of(LARGE)) == []


def test_an_update_that_does_not_fit_names_the_size_that_does(monkeypatch: pytest.MonkeyPatch) -> None:
    large, small = (
        of_update(agent, experience.shapes(conf.run, agent)).bytes
        for conf in (of(LARGE), of("tiny"))
        for agent in [make(conf)]
    )
    assert small < large
    monkeypatch.setattr(memory, "limit", lambda: int((small + large) / 2 / afford.SHARE))
    (warning,) = told(of(LARGE))
    assert "it would be killed. Instead: type --size tiny" in warning
    assert told(of("tiny")) == []
    assert told(of(LARGE), updates=0) == [], "where nothing is learned nothing is needed"
    monkeypatch.setattr(memory, "limit", lambda: int(small / 2))
    assert "Instead: lower --batch, --length" in told(of(LARGE))[0]
    monkeypatch.setattr(memory, "limit", lambda: 10)
    with pytest.raises(
        ConfigError, match=r"parameters, optimizer and gradients would take .* GB, and this process may"
    ):
        told(of(LARGE))


def test_an_update_that_takes_minutes_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    conf = of(LARGE)
    agent = make(conf)
    flops = of_update(agent, experience.shapes(conf.run, agent)).flops
    monkeypatch.setattr(afford, "products_per_second", lambda precision: flops / 273)
    (warning,) = told(conf)
    assert warning.startswith("An update takes 5 min here at best")
    assert "all 100 of them 7.6 h" in warning
