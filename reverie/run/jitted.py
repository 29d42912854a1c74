"""An agent's functions, compiled: by mode, by part, and together with envs of the device."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, get_args

import jax
import jax.numpy as jnp

from reverie.agent import Agent, Carry, Metrics, Mode, Part, State, as_two_phase
from reverie.envs.device import DeviceEnvs
from reverie.replay.rows import Row
from reverie.run.arena import Arena
from reverie.run.collect.rollout import Rollout
from reverie.run.counted_jit import CountedJit, decision_options, gradient_options, seldom_options
from reverie.run.placement import Placement


class JittedAgent:
    """The functions of an agent under jit. `devices` share the batches of `train`, whose products have this precision;
    the rest is done by the first of them, with `place.local(state)`.

    Attributes:
      policy: mode -> `(state, carry, obs) -> (carry, action, out)`.
      names: of the metrics of `train`, by part.
      init: `key -> state`.
      report: `(state, batch) -> metrics`.
      dream: `(state, batch) -> Dream`.
    """

    def __init__(self, agent: Agent, devices: Sequence[jax.Device] = (), precision: str = "float32") -> None:
        self.agent, self.precision = agent, precision
        self.place = Placement(devices)
        self.names: dict[Part, list[str]] = {}
        seldom = {"compiler_options": seldom_options(), **self.place.alone}
        acts = {"compiler_options": decision_options(), **self.place.alone}
        self.policy: dict[Mode, CountedJit] = {
            mode: CountedJit(
                f"policy/{mode}",
                partial(agent.policy, mode=mode),
                same_state=True,
                **(seldom if mode == "random" else acts),  # random: in warm-up, a thousand steps
            )
            for mode in get_args(Mode)
        }
        self._trains: dict[tuple[Part, int], CountedJit] = {}
        self.init = CountedJit("init", agent.init, compiler_options=seldom_options())
        self.report = CountedJit("report", agent.report, **seldom)
        self.dream = CountedJit("dream", agent.dream, **seldom)
        self._rollouts: dict[tuple[DeviceEnvs, int], Rollout] = {}
        self._arenas: dict[tuple[DeviceEnvs, str, Mode], Arena] = {}

    def decide(self, state: State, mode: Mode, carry: Carry, rows: Row) -> tuple[Carry, Any, Any]:
        """A decision for envs of the host, which nobody has waited for: `(carry, action, out)`."""
        carry, action, out = self.policy[mode](state, carry, rows)
        return carry, action, out

    def update(self, part: Part = "all", count: int = 1) -> CountedJit:
        """The function `state, batch -> (state, out, metrics)` that makes one update. The state is donated. Metrics
        come as one float32 vector, so that keeping them costs nothing until somebody looks; `names` says what its
        elements are. With a `count` above 1 it makes as many, one after the other: of batches, with outs and metrics
        that all have one more axis in front."""
        if (part, count) not in self._trains:
            name, train = "train", self.agent.train
            if part != "all":
                agent = as_two_phase(self.agent)
                assert agent is not None, self.agent
                name, train = f"train/{part}", partial(agent.train, part=part)
            train = precise(train, self.precision)

            def pack(result: tuple[State, Any, Metrics]) -> tuple[State, Any, jax.Array]:
                state, out, metrics = result
                names = self.names[part] = sorted(metrics)
                return state, out, jnp.stack([jnp.float32(metrics[name]) for name in names])

            def one(state: State, batch: Any) -> tuple[State, list[Any]]:
                state, *results = pack(train(state, batch))
                return state, results

            def several(state: State, batches: Any) -> tuple[State, Any, jax.Array]:
                state, (out, metrics) = jax.lax.scan(one, state, batches)
                return state, out, metrics

            options: dict[str, Any] = {"compiler_options": gradient_options(), "donate_argnums": 0}
            self._trains[part, count] = (
                CountedJit(name, train, pack, **options, **self.place.train)
                if count == 1
                else CountedJit(f"{name} x {count}", several, **options, **self.place.trains)
            )
        return self._trains[part, count]

    def rollout(self, envs: DeviceEnvs, steps: int) -> Rollout:
        """The policy and `envs`, `steps` steps in one call; the same one whenever it is asked for again."""
        if (envs, steps) not in self._rollouts:
            self._rollouts[envs, steps] = Rollout(envs, self.agent, steps, **self.place.alone)
        return self._rollouts[envs, steps]

    def arena(self, envs: DeviceEnvs, opponent: str, mode: Mode) -> Arena:
        """The policy against an opponent, in the games `envs`; as `rollout`."""
        if (envs, opponent, mode) not in self._arenas:
            self._arenas[envs, opponent, mode] = Arena(envs, self.agent, opponent, mode, **self.place.alone)
        return self._arenas[envs, opponent, mode]

    @property
    def compiling(self) -> float:
        """Seconds that the first calls of `train` took, all but an update of them for its compilation."""
        return sum(f.compiling for f in self._trains.values())

    @property
    def traces(self) -> dict[str, int]:
        functions = [*self.policy.values(), *self._trains.values(), self.report, self.dream]
        functions += [f for rollout in self._rollouts.values() for f in rollout.traced.values()]
        functions += [arena.policy for arena in self._arenas.values()]
        return {f.name: f.traces for f in functions}


def compute_dtype(precision: str) -> str:
    """The dtype of an agent's arrays for this precision, by the device at hand.

    A CPU may have instructions for products of bfloat16, and has none for anything else in it: arrays that are of this
    dtype themselves, as on a GPU, cost more time than they save (docs/notebook.md).
    """
    return "float32" if jax.default_backend() == "cpu" else precision


def precise(function: Callable[..., Any], precision: str) -> Callable[..., Any]:
    """`function`, whose products have this precision.

    On a CPU, bfloat16 is for the operands of linear layers' products (`nn.layers.product`); their sums and all else
    stay float32. Elsewhere `compute_dtype` says it all.
    """
    if precision != "bfloat16" or jax.default_backend() != "cpu":
        return function

    def rounded(*args: Any) -> Any:
        with jax.default_matmul_precision("BF16_BF16_F32"):
            return function(*args)

    return rounded
