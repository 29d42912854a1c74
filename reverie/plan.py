"""The plan of a run, printed before it begins: its size, its updates, its memory, and likely mistakes."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
from rich.console import Console
from rich.text import Text

from reverie import afford, memory
from reverie.agent import Agent, as_two_phase
from reverie.assembly import describe_devices, make_agent, spec_of
from reverie.config import Config, ConfigError, RunConfig
from reverie.envs.spec import on_device, own_code
from reverie.fields import amount
from reverie.replay.rows import bytes_per_row
from reverie.run import callbacks, experience, phases
from reverie.run.collect import offline
from reverie.run.collect.script import Script


@dataclass(frozen=True)
class Plan:
    """The choices that matter, and what they cost."""

    parameters: dict[str, Any]  # `{"total": n, "modules": {name: n}}`
    replay_bytes: int  # memory that replay takes by the end of the run
    replay_rows: int
    device: str
    precision: str
    size: str | None
    updates: int  # that the run does in all
    env_steps: int  # that it takes in all, evaluations aside
    images: tuple[str, ...]  # what is done to images on their way to the networks, a sentence each
    warnings: list[str]  # what a person may not have meant, sentences that say what to type

    def tell(
        self, console: Console, conf: Config, path: Path, workers: str, since: phases.Progress | None = None
    ) -> None:
        """Prints the plan of a run in `path`, which begins or goes on from `since`."""
        run, place = conf.run, str(path)
        if since and since != phases.Progress():
            place += f", continued from step {since.step:,} and {amount(since.updates, 'update')}"
        size = f"size {self.size}, " if self.size else ""
        constants = json.loads(getattr(conf.agent, "choices", "{}")).items()
        if phases.apart(run):
            first = f"replay of {run.offline}" if run.offline else "env steps"
            updates = amount(run.model_updates, "update")
            if run.schedule == "model-then-policy":
                updates = f"{amount(run.model_updates, 'model update')}, {amount(run.policy_updates, 'policy update')}"
            learned = "schedule", f"{first}, {updates}"
        else:
            unit = "roots" if hasattr(conf.agent, "n_step") else "trained steps"
            learned = "replay ratio", f"{run.replay_ratio:g} {unit} per env step"
        kernel = ", --observe fused" if getattr(conf.agent, "observe", "scan") == "fused" else ""
        wanted = min(run.replay_size, self.env_steps or self.replay_rows)
        bound = f" (of {wanted:,}: raise --replay-gb for more)" if self.replay_rows < wanted else ""
        here = " of the device" if run.replay_on == "device" else ""
        lines = [
            ("run", place),
            ("model", f"{size}{self.parameters['total']:,} parameters"),
            *(("" if n else "choices", f"{name} {value}") for n, (name, value) in enumerate(constants)),
            ("device", f"{self.device}, {self.precision}{kernel}"),
            ("envs", f"{run.envs} ({workers})"),
            *(("images", image) for image in self.images),
            learned,
            ("replay", f"{amount(self.replay_rows, 'step')}, {self.replay_bytes / 1e6:,.0f} MB{here}{bound}"),
            ("checkpoint", f"every {amount(run.checkpoint_every, 'step')}" if run.checkpoint_every else "at the end"),
        ]
        console.print(
            Text.assemble((conf.algorithm, "bold"), " on ", (run.env, "bold")),
            f": {amount(self.env_steps, 'step')}, {amount(self.updates, 'update')}",
            *(f"\n  {label:12} {text}" for label, text in lines),
            sep="",
            highlight=False,
            soft_wrap=True,
        )
        for warning in self.warnings:
            console.print(warning, style="yellow", markup=False, highlight=False, soft_wrap=True)


def plan(conf: Config, agent: Agent, devices: Sequence[jax.Device]) -> Plan:
    """The plan of `conf`.

    Raises:
      ConfigError: replay cannot hold what it must, or more than the machine has; a batch cannot be split; the model is
        to be learned first, and the algorithm cannot do that; or the run to learn from lived in another env.
      UnusableEnv: there is no such collector.
    """
    run = conf.run
    if run.schedule == "model-then-policy" and as_two_phase(agent) is None:
        raise ConfigError(
            f"--schedule {run.schedule}, but in {conf.algorithm} one loss trains model and policy: neither can wait "
            "for the other. Leave it out, or choose a Dreamer, such as `reverie train dreamer_v3`"
        )
    modules = agent.parameters(jax.eval_shape(agent.init, jax.random.key(0)))
    fields, window = experience.fields(agent), experience.window(run, agent)
    capacity, width = experience.capacity(run, fields), bytes_per_row(fields)
    if capacity // run.envs < window:
        raise ConfigError(
            f"replay may hold {amount(capacity, 'step')}, {capacity // run.envs} of each env, and a sequence "
            f"has {window}: raise --replay-size or --replay-gb, or lower --length or --envs"
        )
    rows = min(capacity, run.steps)
    if run.batch % agent.minibatches:
        raise ConfigError(
            f"--batch {run.batch} cannot be split into {agent.minibatches} equal minibatches, as an update of "
            f"{conf.algorithm} does: try --batch {run.batch + -run.batch % agent.minibatches}"
        )
    if run.offline:
        source = offline.source(run.offline, spec_of(run), run.envs)
        # What a Dreamer stores beside a step it can do without; the others learn from what their search stored.
        source.check(fields, run.envs, search_keys=as_two_phase(agent) is None)
        rows = min(capacity, source.rows)
    if run.collector:
        Script(run.collector, agent.act_space, run.seed)  # tells of a wrong name before anything is begun
    callbacks.require(run.logger)
    if run.opponent != RunConfig.opponent and not any(x.kind == "player" for x in agent.obs_space.values()):
        raise ConfigError(f"--opponent {run.opponent}, but {run.env} is no game of two players: type --opponent random")
    replay_bytes = _replay_bytes(run, rows, capacity, width, devices[0])
    updates = phases.all_updates(run) if phases.apart(run) else experience.ratio(run, agent).total(run.steps)
    # Code of one's own may be of either kind: the run that makes the env asks again.
    experience.check_dispatch(run, agent, on_device(spec_of(run)) or own_code(run.env) is not None)
    make = lambda other: make_agent(other, agent.obs_space, agent.act_space)
    reserve = replay_bytes if run.replay_on == "device" else 0
    warnings = [x for x in (idle(run, agent), interpretation(conf, devices)) if x]
    warnings += afford.warnings(conf, agent, devices, updates, make, reserve)
    return Plan(
        parameters={"total": sum(modules.values()), "modules": modules},
        replay_bytes=replay_bytes,
        replay_rows=rows,
        device=describe_devices(devices, run.batch),
        precision=run.precision,
        size=getattr(conf.agent, "size", None),
        updates=updates,
        env_steps=phases.env_steps(run),
        images=tuple(_image_notes(agent)),
        warnings=warnings,
    )


def _replay_bytes(run: RunConfig, rows: int, capacity: int, width: int, device: jax.Device) -> int:
    """Memory that replay takes by the end of a run of so many rows: a device gives that of its `capacity` at once.

    Raises:
      ConfigError: there is less.
    """
    if run.replay_on == "device":
        needed, room = capacity * width, afford.limit(device)
        has = f"{device.device_kind} has {room / 1e9:.1f} GB"
        advice = "lower --replay-gb or --replay-size, or type --replay-on host"
    else:
        needed, room = rows * width, memory.limit()
        has = f"this process may take {room / 1e9:.1f} GB"
        has += " (what the machine has, or less if its container or `ulimit -v` says so)"
        advice = "lower --replay-gb or --replay-size"
    if needed > 0.9 * room:
        raise ConfigError(f"replay would take {needed / 1e9:.1f} GB, and {has}: {advice}")
    return needed


def idle(run: RunConfig, agent: Agent) -> str:
    """Why a run would not learn anything, and what to type; empty if it learns."""
    if phases.apart(run):
        return "" if phases.all_updates(run) else "0 updates: nothing would be learned. Type --model-updates 10000"
    ratio = experience.ratio(run, agent)
    if ratio.total(run.steps):
        return ""
    if (first := ratio.first) is None:
        return f"0 updates: nothing would be learned with --replay-ratio {run.replay_ratio:g}. Type --replay-ratio 32"
    waiting = (
        f"after {amount(run.warmup, 'step')} with random actions (--warmup)"
        if run.warmup >= run.envs * experience.window(run, agent)
        else f"when each of {amount(run.envs, 'env')} has filled a sequence of {experience.window(run, agent)} steps"
    )
    return (
        f"0 updates: nothing would be learned in {amount(run.steps, 'step')}. The first update is due at step "
        f"{first:,}, {waiting}. Type --steps {10 * first} for a run that learns"
    )


def interpretation(conf: Config, devices: Sequence[jax.Device]) -> str:
    """That a kernel is interpreted; empty if it is not."""
    if getattr(conf.agent, "observe", "scan") != "fused" or devices[0].platform != "cpu":
        return ""
    return "--observe fused is a GPU kernel, and a CPU interprets it: for tests, and slower than scan"


def _image_notes(agent: Agent) -> Iterator[str]:
    """The changes to images on their way to the networks, a sentence each."""
    for key, space in agent.obs_space.items():
        if space.channels_first:
            yield f"{key}: the env shows channels first, turned around to height, width, channels"
    for key, (height, wide) in agent.resized.items():
        own = agent.obs_space[key].shape[:2]
        size = f"{height}" if height == wide else f"{height} {wide}"
        cheaper = f"; --image-size {size} does that in the env, once, and replay takes less"
        yield (
            f"{key}: {own[0]} x {own[1]}, resized to {height} x {wide} by the networks"
            + (cheaper if own[0] > height and own[1] > wide else "")
        )
