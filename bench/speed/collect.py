"""Steps per second of self-play, and how much of what the networks alone would allow it is.

    taskset -c 0,1 python -m bench.speed.collect
    taskset -c 0,1 python -m bench.speed.collect --tasks connect_four --games 256 --simulations 50

For each task on the device, the same envs, network and recording:

    random      the envs with random legal actions
    prior       a decision of the policy alone: represent, evaluate, sample
    ceiling     and then as many calls of imagine, predict and evaluate as a search makes, without a tree
    search      the real thing: `Rollout`, mode `train`
    replay      the same through `DeviceCollector` into a `Replay`

and for CartPole on the host, `HostCollector` with one batched search for all envs. Prints one JSON line per figure, the
median of several turns in which each is measured once; `ratio` is that to the ceiling, turn by turn. `value` goes by
the clock, `cpu` (steps per second of a core) by the process's own time: it does not mind what else runs there.

The heads of the network are drawn anew: as they begin, every value is 0 and all actions are alike, and trees grow as
flat as they never are again.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple, get_args

import equinox as eqx
import jax
import jax.numpy as jnp
import tyro
from jax import Array, lax

from bench.common import origin, tell
from reverie.algos.muzero.gumbel import Config
from reverie.algos.muzero.model import Model
from reverie.algos.muzero.muzero import MuZero
from reverie.behavior.search import SearchResult
from reverie.behavior.tree import ILLEGAL
from reverie.config import RunConfig
from reverie.envs.device import DeviceEnvs
from reverie.envs.spec import EnvSpec
from reverie.envs.workers import Workers
from reverie.run.collect.base import step
from reverie.run.collect.host import HostCollector
from reverie.run.collect.rollout import DeviceCollector, Rollout
from reverie.run.experience import replay_of
from reverie.run.jitted import JittedAgent


class Task(NamedTuple):
    """An env and the values of the algorithm that are not its own."""

    env: str
    config: Config


SMALL = Config(hidden=64, units=64, layers=1, support=20, simulations=25)
BOARD = Config(hidden=64, units=64, layers=1, channels=32, blocks=2, support=10, simulations=16)
Name = Literal["cartpole", "connect_four", "connect_four/mlp", "host"]
TASKS = {
    "cartpole": Task("device:CartPole", SMALL),
    "connect_four": Task("pgx:connect_four", BOARD),
    "connect_four/mlp": Task("pgx:connect_four", replace(BOARD, network="mlp")),
}
HOST = Task("CartPole-v1", SMALL)


@dataclass(frozen=True)
class Args:
    tasks: tuple[Name, ...] = get_args(Name)
    games: int = 64
    """Of a task on the device."""
    host_envs: tuple[int, ...] = (8, 32, 64)
    simulations: int = 0
    """Of each search; 0: the task's own."""
    scan: int = 16
    """Steps of all games in one call, as in a run."""
    turns: int = 7
    seconds: float = 0.5
    """About how long each is measured in a turn."""


class Treeless(MuZero):
    """Plays by the prior; its search makes the calls of one and keeps nothing."""

    @property
    def calls(self) -> int:
        return self.config.simulations

    def search(
        self, model: Model, root: Any, key: Array, legal: Array | None, temperature: Array | None
    ) -> SearchResult:
        logits, value = model.evaluate(root)

        # What follows depends on all that was predicted, so that nothing of it is left out by the compiler.
        def simulation(at: tuple[Any, Array, Array], _: None) -> tuple[tuple[Any, Array, Array], None]:
            latent, value, action = at
            latent = model.imagine(latent, action, key)
            reward, discount = model.predict(latent)
            logits, ahead = model.evaluate(latent)
            return (latent, value + reward + discount * ahead, jnp.argmax(logits, -1).astype(jnp.int32)), None

        first = jnp.zeros(value.shape, jnp.int32)
        (_, value, last), _ = lax.scan(simulation, (root, value, first), length=self.calls)
        allowed = logits if legal is None else jnp.where(legal, logits, ILLEGAL)
        action = jax.random.categorical(key, allowed).astype(jnp.int32)
        nothing = jnp.zeros_like(logits)
        return SearchResult(action, jax.nn.softmax(allowed, -1), value + last, nothing, nothing, None)  # type: ignore[arg-type]


class Searchless(Treeless):
    """Plays by the prior, and that is all."""

    calls = 0


class Turn(NamedTuple):
    """Steps per second, by the clock and by the process's own time."""

    clock: float
    cpu: float


def drawn(state: Any, key: Array) -> Any:
    """The state with heads of unit variance."""
    outs = lambda s: [s.model.rew.out.weight, s.model.val.out.weight, *(o.weight for o in s.model.pol.outs.values())]
    keys = jax.random.split(key, len(outs(state)))
    fresh = [jax.random.normal(k, w.shape) / w.shape[0] ** 0.5 for k, w in zip(keys, outs(state), strict=True)]
    return eqx.tree_at(outs, state, fresh)


def rolled(rollout: Rollout, state: Any, mode: Literal["train", "random"]) -> Callable[[], int]:
    """One call of a rollout that goes on where the last one ended; returns the steps it took."""
    num = rollout.envs.num
    at = rollout.envs.begin(), rollout.agent.init_carry(num, jax.random.key(1))

    def call() -> int:
        nonlocal at
        *at, rows = rollout.traced[mode](state, *at)
        jax.block_until_ready(rows)
        return rollout.steps * num

    return call


def collected(rollout: Rollout, state: Any) -> Callable[[], int]:
    """The same with the rows in a replay."""
    num, agent = rollout.envs.num, rollout.agent
    replay = replay_of(RunConfig(envs=num, replay_size=num * 4 * rollout.steps), agent)
    collector = DeviceCollector(rollout, replay.extend)
    collector.carry = [agent.init_carry(num, jax.random.key(1))]
    return lambda: step(collector, state, "train")


def hosted(workers: Workers, agent: MuZero, state: Any) -> Callable[[], int]:
    """One step of envs of the host, their rows in a replay."""
    replay = replay_of(RunConfig(envs=workers.num), agent)
    collector = HostCollector(workers, JittedAgent(agent).decide, replay.add)
    collector.carry = [agent.init_carry(workers.num, jax.random.key(1))]
    return lambda: step(collector, state, "train")


def measure(calls: dict[str, Callable[[], int]], turns: int, seconds: float) -> dict[str, list[Turn]]:
    """Every call for about so many seconds in each turn, one after the other."""
    found: dict[str, list[Turn]] = {name: [] for name in calls}
    for call in calls.values():
        call()  # is compiled
    for _ in range(turns):
        for name, call in calls.items():
            steps, clock, cpu = 0, time.perf_counter(), time.process_time()
            while time.perf_counter() - clock < seconds:
                steps += call()
            found[name].append(Turn(steps / (time.perf_counter() - clock), steps / (time.process_time() - cpu)))
    return found


def show(name: str, turns: list[Turn], ceiling: list[Turn] | None, facts: dict[str, Any]) -> None:
    figure: dict[str, Any] = {
        "bench": "collect",
        "name": name,
        "value": round(statistics.median(turn.clock for turn in turns)),
        "unit": "steps/s",
        "cpu": round(statistics.median(turn.cpu for turn in turns)),
    }
    if ceiling:
        pairs = list(zip(turns, ceiling, strict=True))
        figure["ratio"] = round(statistics.median(one.clock / best.clock for one, best in pairs), 3)
        figure["ratio_cpu"] = round(statistics.median(one.cpu / best.cpu for one, best in pairs), 3)
    tell(figure | facts | origin())


def on_device(name: str, task: Task, args: Args) -> None:
    envs = DeviceEnvs(EnvSpec(task.env), args.games, seed=0)
    config = replace(task.config, simulations=args.simulations or task.config.simulations)
    make = lambda kind: kind(config, envs.obs_space, envs.act_space, "float32")
    rollout = lambda agent: Rollout(envs, agent, args.scan)
    agent = make(MuZero)
    state = drawn(agent.init(jax.random.key(0)), jax.random.key(1))
    real = rollout(agent)
    calls = {
        "random": rolled(real, state, "random"),
        "prior": rolled(rollout(make(Searchless)), state, "train"),
        "ceiling": rolled(rollout(make(Treeless)), state, "train"),
        "search": rolled(real, state, "train"),
        "replay": collected(real, state),
    }
    found = measure(calls, args.turns, args.seconds)
    facts = {"envs": args.games, "simulations": config.simulations, "scan": args.scan}
    for kind, turns in found.items():
        show(f"{name}/{kind}", turns, found["ceiling"] if kind in ("search", "replay") else None, facts)


def on_host(name: str, task: Task, args: Args) -> None:
    config = replace(task.config, simulations=args.simulations or task.config.simulations)
    calls = {}
    for num in args.host_envs:
        workers = Workers(task.env, num, seed=0, mode="inline")
        agent = MuZero(config, workers.obs_space, workers.act_space, "float32")
        state = drawn(agent.init(jax.random.key(0)), jax.random.key(1))
        calls[num] = hosted(workers, agent, state)
    found = measure({str(num): call for num, call in calls.items()}, args.turns, args.seconds)
    for num in args.host_envs:
        show(f"{name}/{num}", found[str(num)], None, {"envs": num, "simulations": config.simulations})


def main(args: Args) -> None:
    for name in args.tasks:
        if name == "host":
            on_host("host", HOST, args)
        else:
            on_device(name, TASKS[name], args)


if __name__ == "__main__":
    main(tyro.cli(Args))
