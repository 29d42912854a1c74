"""What the pages promise is so: metrics are what a run writes, the Dreamers what they are, every fault has its test."""

import ast
import dataclasses
import re
from pathlib import Path
from typing import get_args, get_type_hints

import equinox as eqx
import jax
import jax.numpy as jnp
import planners
import pytest
from dreamer import OBS, random_batch, small_agent

import reverie
from reverie import algos, config
from reverie.algos.dreamer import ppo as dream_ppo
from reverie.envs.base import Space
from reverie.envs.toy import Counting
from reverie.model.rssm import BlockGRU, DenseGRU, PlainGRU
from reverie.model.stoch import Gaussian
from reverie.nn.norm import LayerNorm, RMSNorm
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
    names |= {"phase", "memory/worker_mb"}  # tests/run/test_phases.py and test_loop.py read them
    names = {name for name in names if name.removeprefix("report/") not in own}
    seen = OBS | {"picture": Space("image", (64, 64, 3)), "legal": Space("legal", (3,))}
    agent = small_agent(seen, planner="puct", simulations=1, improve=1.0)
    batch = random_batch(agent, length=12)
    state = jax.eval_shape(agent.init, jax.random.key(0))
    names |= set(jax.eval_shape(agent.train, state, batch)[2])
    names |= {f"report/{name}" for name in jax.eval_shape(agent.report, state, batch)}
    names |= {f"health/{symptom.name}" for symptom in agent.symptoms}
    practising = dream_ppo.make_agent(dream_ppo.Config(size="200k"), OBS, agent.act_space, precision="float32")
    batch, state = random_batch(practising, 4), jax.eval_shape(practising.init, jax.random.key(0))
    names |= set(jax.eval_shape(practising.train, state, batch)[2])
    for algorithm in planners.FAMILY:
        agent = planners.small_agent(algorithm, reanalyse=0.5)
        batch = planners.random_batch(agent)
        state = jax.eval_shape(agent.init, jax.random.key(0))
        names |= set(jax.eval_shape(agent.train, state, batch)[2])
        longer = {k: jnp.concatenate([v, v], 1) for k, v in batch.items() if k != "weight"}
        names |= {f"report/{name}" for name in jax.eval_shape(agent.report, state, longer)}
        names |= {f"health/{symptom.name}" for symptom in agent.symptoms}
    boards = planners.small_agent("muzero", planners.BOARD | {"player": Space("player", ())}, decode_scale=1.0)
    for agent in (boards, planners.small_agent("muzero", behavior="actor-critic")):
        state = jax.eval_shape(agent.init, jax.random.key(0))
        names |= set(jax.eval_shape(agent.train, state, planners.random_batch(agent))[2])
    # Of games of two players; tests/run/collect/test_rollout.py plays them.
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


# ------------------------------------------------------------------------- the Dreamers side by side

DREAMERS = {
    "V1": ("dreamer_v1", ""),
    "V2": ("dreamer_v2", ""),
    "V3 (2023)": ("dreamer_v3_2023", "v3-2023"),
    "V3 (final)": ("dreamer_v3", "v3-nature"),
}
BOTH = {"discrete": Space("discrete", (), (6,)), "box": Space("vector", (2,), low=(-1.0,) * 2, high=(1.0,) * 2)}


def of_dreamer(algorithm: str, preset: str) -> dict[str, str]:
    """A column of the table in docs/dreamers.md, read off the agent that the preset makes."""
    conf = config.default(algorithm, preset or config.PAPER)
    agent = algos.load(algorithm).make_agent(
        conf.agent, {"image": Space("image", (64, 64, 3))}, BOTH, precision="float32"
    )
    state, own, run = jax.eval_shape(agent.init, jax.random.key(0)), conf.agent, conf.run
    dyn, gamma = state.model.dyn, getattr(own, "gamma", 1 - 1 / getattr(own, "horizon", 1))
    kind = dyn.kind
    latent = f"{dyn.stoch} Gaussian" if isinstance(kind, Gaussian) else f"{dyn.stoch} x {kind.classes} categorical"
    latent += f", unimix {kind.unimix:g}" if getattr(kind, "unimix", 0) else ""
    cores = {PlainGRU: "GRU", DenseGRU: "LayerNorm GRU", BlockGRU: "GRU of 8 blocks"}
    norms = {eqx.nn.Identity: "none", LayerNorm: "LayerNorm", RMSNorm: "RMSNorm"}
    painter = state.model.enc.coding.painter
    acts = dict.fromkeys({"elu": "ELU", "relu": "ReLU", "silu": "SiLU"}[x] for x in (dyn.act, painter.act))
    batch = random_batch(agent, 3)
    losses = jax.eval_shape(agent.world_loss, state.model, batch, state.key)[0]
    when = "of the mean" if losses["dynamics"].shape == () else "at every step"
    ways = {"score": sorted(BOTH.keys() - agent.differentiable), "dynamics": sorted(agent.differentiable)}
    slow = {
        "dreamer_v1": "the critic itself",
        "dreamer_v2": f"a copy, every {getattr(own, 'slow_every', 0)} updates",
        "dreamer_v3": f"the critic itself, held by a moving average ({getattr(own, 'slow_rate', 0):g})",
    }[algorithm.removesuffix("_2023")]
    slow += ", and on replay" if getattr(own, "replay_value_scale", 0) else ""
    rates = [own.learning_rate]
    rates += [getattr(own, n) for n in ("actor_learning_rate", "critic_learning_rate") if hasattr(own, n)]
    if algorithm == "dreamer_v3_2023":
        rates += [own.behavior_learning_rate] * 2
    optimizer = "Adam x 3" if len(rates) == 3 else "LaProp, AGC"
    optimizer += ", weight decay" if getattr(own, "decay", 0) else ""
    return {
        "latent": latent,
        "recurrence": f"{cores[type(dyn.core)]}, {dyn.deter}",
        "norm / activation": f"{norms[type(dyn.post_norm)]} / {', '.join(acts)}",
        "KL, dynamics / representation": f"{agent.scales['dynamics']:.1g} / {agent.scales['representation']:.1g}",
        "free nats": f"{own.free_nats:g} {when}" if own.free_nats else "none",
        "reward and value": state.model.rew.kind.replace("_", " "),
        "continue head": "none" if state.model.con is None else "knows gamma" if state.model.gamma == 1 else "a flag",
        "continuous policy": f"{state.model.pol.continuous} normal",
        "actor's gradient": "; ".join(f"{way}: {', '.join(names) or 'none'}" for way, names in ways.items()),
        "value target": slow,
        "return scale": "percentiles" if algorithm.startswith("dreamer_v3") else "none",
        "optimizer": f"{optimizer}, {' / '.join(f'{r:g}' for r in rates)}",
        "gamma": f"{gamma:.3g}",
        "a replayed sequence starts from": {"zeros": "zeros"}.get(getattr(own, "initial", "zeros"), "its stored latent")
        if algorithm != "dreamer_v3_2023"
        else "a learned state",
        "batch": f"{run.batch} x {run.length}",
        "parameters, 64 x 64 pixels": f"{sum(agent.parameters(state).values()) / 1e6:.1f} M",
    }


def test_the_table_of_the_dreamers_is_read_off_their_presets() -> None:
    columns = {name: of_dreamer(*given) for name, given in DREAMERS.items()}
    rows = ["| | " + " | ".join(columns) + " |", "|---" * (1 + len(columns)) + "|"]
    for name in columns["V1"]:
        rows.append(f"| {name} | " + " | ".join(column[name] for column in columns.values()) + " |")
    page = (Path(__file__).parents[1] / "docs" / "dreamers.md").read_text()
    assert "\n".join(rows) in page, "docs/dreamers.md should hold this table:\n" + "\n".join(rows)


def test_the_table_of_the_muzero_family_is_what_its_members_have() -> None:
    page = (Path(__file__).parents[1] / "docs" / "muzero.md").read_text()
    lines = [line.strip("| ").split(" | ") for line in page.split("## ")[1].splitlines() if line.startswith("|")]
    (_, *names), _, *rows = lines
    assert names == list(planners.FAMILY)
    assert len(rows) > 10
    values = {name: config.default(name).values() for name in names}
    for flag, *told in rows:
        key = flag.strip("`").removeprefix("--").replace("-", "_")
        assert told == [str(values[name][key]) for name in names], flag


def test_the_constants_of_the_muzero_family_are_those_of_its_choices() -> None:
    page = (Path(__file__).parents[1] / "docs" / "choices.md").read_text()
    section = page.partition("## Constants of the MuZero family\n")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| `(\w+)` \| ([^|]+) \| [^|]+ \| [^|]+ \|$", section, re.M)
    constants = config.default("efficientzero").agent.paper()  # those of all the others, and its own
    kinds = get_type_hints(type(constants))
    assert [name for name, _ in rows] == [field.name for field in dataclasses.fields(constants)]
    for name, told in rows:
        default, names = getattr(constants, name), get_args(kinds[name])
        assert told == ", ".join(f"`{x}`" for x in names) if names else told.startswith(f"{default}; "), name
        assert not names or names[0] == default
    for algorithm in planners.FAMILY:
        own = {field.name for field in dataclasses.fields(config.default(algorithm).agent.paper())}
        assert ("root_alpha" in own) == (algorithm != "gumbel_muzero")
        assert ("projection" in own) == (algorithm == "efficientzero")


@pytest.mark.parametrize("page", sorted(Path(__file__).parents[1].glob("docs/*.md")), ids=lambda page: page.stem)
def test_the_lines_of_a_table_have_as_many_cells_as_its_head(page: Path) -> None:
    head = 0
    for line in re.sub(r"`[^`\n]*`", "code", page.read_text()).splitlines():
        cells = line.count("|") - line.count(r"\|") if line.startswith("|") else 0
        assert not head or not cells or cells == head, line
        head = cells


# ------------------------------------------------------------------------------- faults and their tests

TESTS = Path(__file__).parent
ROWS = re.findall(
    r"^\| (\d+) \| (.+) \| (.+) \| (.+) \|$", (TESTS.parent / "docs" / "reliability.md").read_text(), re.M
)


def test_forty_faults_are_listed_each_with_a_promise() -> None:
    assert sorted(int(number) for number, *_ in ROWS) == list(range(1, 41))


@pytest.mark.parametrize("row", ROWS, ids=[row[0] for row in ROWS])
def test_the_tests_of_a_fault_exist(row: tuple[str, ...]) -> None:
    named = re.findall(r"`([\w/]+\.py)::(\w+)`", row[-1])
    assert named or row[-1].startswith("none:"), "a row names its tests, or says why there is none"
    for file, name in named:
        body = ast.parse((TESTS / file).read_text()).body
        assert name in {x.name for x in body if isinstance(x, ast.FunctionDef)}, f"tests/{file} has no {name}"


# ------------------------------------------------------------------------------------------- results


def test_the_tables_are_what_results_and_bench_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    root = Path(__file__).parents[1]
    monkeypatch.syspath_prepend(str(root))
    from bench.pages import scores

    assert scores.table() in (root / "docs" / "results.md").read_text(), f"docs/results.md should hold {scores.table()}"
    solved = scores.suite()
    assert solved in (root / "docs" / "defaults.md").read_text(), f"docs/defaults.md should hold {solved}"
    asked = scores.measurements()
    assert asked in (root / "docs" / "results.md").read_text(), f"docs/results.md should hold {asked}"
    assert scores.short() in (root / "README.md").read_text(), f"README.md should hold {scores.short()}"
