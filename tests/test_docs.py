"""What docs/metrics.md promises is what a run writes, and the reverse."""

import re
from pathlib import Path

import jax
import jax.numpy as jnp
import planners
import pytest
from dreamer import OBS, random_batch, small_agent

import reverie
from reverie import algos
from reverie.envs.base import Space
from reverie.envs.toy import Counting
from reverie.run import log
from reverie.run.arena import SEATS

PAGE = (Path(__file__).parents[1] / "docs" / "metrics.md").read_text()


class Boastful(Counting):
    """Says of every episode how much it liked it."""

    def step(self, action):
        *row, info = super().step(action)
        return *row, info | {"figures": {"liked": 0.5}}


def documented() -> list[str]:
    """The first column of the tables of metrics; those of the symptoms follow a heading of their own."""
    tables, symptoms = PAGE.split("## Symptoms")
    listed = [f"health/{name}" for name in re.findall(r"^\| `([^`]+)` \|", symptoms, re.M)]
    return re.findall(r"^\| `([^`]+)` \|", tables, re.M) + listed


def pattern(name: str) -> re.Pattern[str]:
    return re.compile(re.sub(r"<[^>]+>", ".+", re.sub(r"[.+]", r"\\\g<0>", name)))


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """Names of a short run of the runner's own, and of everything that the real agents return."""
    path = tmp_path_factory.mktemp("run")
    algos.ALGORITHMS["fake"] = "fakes"
    try:
        reverie.train(
            "fake",
            env=Boastful,
            run=path,
            workers="inline",
            steps=60,
            envs=2,
            batch=2,
            length=4,
            warmup=20,
            log_every=20,
            eval_every=30,
            eval_episodes=2,
            report_every=30,
            checkpoint_every=0,
        )
    finally:
        del algos.ALGORITHMS["fake"]
    own = {"loss", "memory", "error", "reward", "weight"}  # the fake's
    names = {name for record in log.read(path / "metrics.jsonl") for name in record}
    names = {name for name in names if name.removeprefix("report/") not in own}
    agent = small_agent(OBS | {"picture": Space("image", (64, 64, 3))}, planner="puct", simulations=1, improve=1.0)
    batch = random_batch(agent, length=12)
    state = jax.eval_shape(agent.init, jax.random.key(0))
    names |= set(jax.eval_shape(agent.train, state, batch)[2])
    names |= {f"report/{name}" for name in jax.eval_shape(agent.report, state, batch)}
    names |= {f"health/{symptom.name}" for symptom in agent.symptoms}
    for algorithm in planners.FAMILY:
        agent = planners.small_agent(algorithm, reanalyse=0.5)
        batch = planners.random_batch(agent)
        state = jax.eval_shape(agent.init, jax.random.key(0))
        names |= set(jax.eval_shape(agent.train, state, batch)[2])
        longer = {k: jnp.concatenate([v, v], 1) for k, v in batch.items() if k != "weight"}
        names |= {f"report/{name}" for name in jax.eval_shape(agent.report, state, longer)}
        names |= {f"health/{symptom.name}" for symptom in agent.symptoms}
    agent = planners.small_agent("muzero", behavior="actor-critic")
    state = jax.eval_shape(agent.init, jax.random.key(0))
    names |= set(jax.eval_shape(agent.train, state, planners.random_batch(agent))[2])
    # Of games of two players; tests/run/test_rollout.py plays them.
    return names | {f"eval/{seat}/{outcome}" for seat in SEATS for outcome in ("wins", "draws", "losses")}


def test_every_metric_is_documented(written: set[str]) -> None:
    known = [pattern(name) for name in documented()]
    missing = sorted(name for name in written if not any(p.fullmatch(name) for p in known))
    assert not missing, f"not in docs/metrics.md: {missing}"


def test_no_metric_is_documented_that_is_not_written(written: set[str]) -> None:
    assert len(documented()) > 40
    for name in documented():
        assert any(pattern(name).fullmatch(w) for w in written), f"docs/metrics.md names {name}, which no run writes"


@pytest.mark.parametrize("algorithm", ["dreamer_v3", *planners.FAMILY])
def test_symptoms_read_metrics_that_the_agent_writes(algorithm: str) -> None:
    dreamer = algorithm == "dreamer_v3"
    agent = small_agent() if dreamer else planners.small_agent(algorithm)
    batch = random_batch(agent) if dreamer else planners.random_batch(agent)
    state = jax.eval_shape(agent.init, jax.random.key(0))
    figures = dict.fromkeys(jax.eval_shape(agent.train, state, batch)[2], 0.5)
    for symptom in agent.symptoms:
        assert symptom.shows(figures) is not None, f"{symptom.name} finds nothing to read"
