"""The values of a run that are not the algorithm's own: frozen, typed, each number within its range.

The bases of `RunConfig` are the groups of flags in `--help`.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import Annotated, Literal

from reverie.fields import (
    INT32,
    TINY,
    ConfigError,
    Count,
    Number,
    Seed,
    Share,
    Steps,
    Weight,
    Within,
    check,
    json_object,
    plain_size,
)


@dataclass(frozen=True, kw_only=True)
class Environment:
    """The env, and how it is stepped."""

    env: str = ""
    """A Gymnasium id (CartPole-v1), an id of a family (pgx:connect_four; see `reverie list`), module:EnvClass,
    module:make_fn, or path/to/file.py:MyEnv."""
    env_kwargs: str = "{}"
    """Keyword arguments of the env, as a JSON object."""
    action_repeat: Count = 1
    """How often every action is taken; the rewards are summed."""
    time_limit: Number = 0
    """Env steps (before action repeat) after which an episode is truncated. 0: its own limit."""
    image_size: Annotated[int | tuple[int, int], Within(0, 8192)] = 0
    """Images are resized in the env: to squares with sides of this length, or to this height and width. 0 leaves them
    as they are, and networks that do not take their size resize them on their way in."""
    gray: bool = False
    """Turn colour images into gray ones."""
    obs_keys: str = ""
    """Which observations of a Dict the agent sees: names or patterns (camera/*), separated by commas; !name leaves one
    out. What is left out may be text or a sequence. Empty: all."""
    obs_scale: str = "{}"
    """JSON object: for vectors that are seen, what networks subtract from every element and divide it by:
    '{"vector": [[0, 5], [1, 0.07]]}'. What hardly moves, or lies far from 0, is otherwise hard to see."""
    targets: Literal["none", "proprio"] = "none"
    """Targets of a world model besides what it sees. proprio: positions and velocities of the joints, poses and
    velocities of the end effectors, of an env that has a body (MuJoCo, dm_control)."""
    envs: Annotated[int, Within(1, 2**20)] = 4
    """Environments stepped together."""
    groups: Annotated[int, Within(1, 2**20)] = 1
    """Stepped alternately in this many groups, so that the device never waits for all of them. It changes
    the numbers: rows come, and random keys are drawn, in another order."""
    workers: Literal["auto", "inline", "process"] = "auto"
    """In this process, in one supervised process each, or what is measured to be cheaper."""
    scan: Annotated[int, Within(1, 2**20)] = 16
    """Steps that envs on the device (pgx:, brax:, device: and others) take together in one compiled call. Host envs:
    unused."""
    deadline: Annotated[float, Within(TINY, 1e9)] = 60.0
    """Seconds that a reset or a step may take before the env is killed and rebuilt."""
    worker_memory: Annotated[float, Within(0, 1e9)] = 0.0
    """Gigabytes (10^9 bytes) that the process of an env may take. If it has more after a step, that env is rebuilt and
    its episode cut, as when it fails. 0: no limit."""


@dataclass(frozen=True, kw_only=True)
class Training:
    """How much is learned, and from what."""

    steps: Annotated[int, Within(1, 10**12 - 1)] = 100_000
    """Env steps of the whole run, over all envs."""
    stop_return: Annotated[float | None, Within()] = None
    """End the run early, once an evaluation reaches this mean return. None: never."""
    seed: Seed = 0
    """Seed of everything random: parameters, actions, replay and envs."""
    replay_ratio: Weight = 32.0
    """Replayed steps trained on per env step: updates = steps * ratio / (batch * length). In the MuZero family, roots
    per env step: updates = steps * ratio / batch."""
    updates_per_dispatch: Annotated[int, Within(1, 1024)] = 1
    """Updates that the device is given at once, wherever so many are due between two env steps; the rest go one by one.
    It changes the numbers: their batches are drawn before the first of them, and their results are written to replay
    after the last. For a GPU whose updates take less time than the host needs for each."""
    batch: Annotated[int, Within(1, 2**20)] = 16
    """Sequences in a batch."""
    length: Annotated[int, Within(2, 2**20)] = 64
    """Trained rows of a sequence. The MuZero family derives its own from --unroll and --n-step."""
    warmup: Steps = 1024
    """Env steps with random actions before the first update."""
    max_nonfinite: Count = 20
    """Updates in a row with a NaN or infinite loss that end the run. Each of them is skipped."""
    schedule: Literal["together", "model-then-policy"] = "together"
    """together: envs, model and policy in turns. model-then-policy: first --steps with random actions, then
    --model-updates of the model alone, then --policy-updates of the policy in the model's imagination, with no env
    step; --replay-ratio and --warmup do not count. Dreamers only."""
    model_updates: Number = 10_000
    """With --schedule model-then-policy: updates of the model. With --offline alone: updates of everything."""
    policy_updates: Number = 10_000
    """With --schedule model-then-policy: updates of actor and critic."""
    collector: str = ""
    """With --schedule model-then-policy: who collects, instead of random actions. module:function or
    path/to/file.py:function, of one observation (key -> array) and a numpy random generator; it returns an action, a
    vector in [-1, 1] or a class number, or a dict of these."""
    offline: str = ""
    """The directory of a finished run in the same env. Its replay is learned from and no env step taken, whatever
    --steps says. A Dreamer learns from the run of any algorithm, the MuZero family from one that searched too. Or a
    folder of .npz episodes, or minari:ID: a Dreamer learns from these as well (see `reverie import`)."""


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Size and content of replay."""

    replay_size: Annotated[int, Within(1, 10**12)] = 1_000_000
    """Env steps that replay holds at most."""
    replay_gb: Annotated[float, Within(TINY, 1e9)] = 4.0
    """Gigabytes (10^9 bytes) that replay holds at most; the smaller of the two bounds counts."""
    replay_on: Literal["host", "device"] = "host"
    """host: replay lies in the memory of the machine. device: observations, actions and latents lie in that of the GPU,
    all of it taken as the run begins, and no batch crosses over. The numbers are the same, and a run may be continued
    with the other."""
    online: bool = True
    """Train on every new sequence once as soon as it is complete, before uniform draws. With priorities, the new ones
    are drawn first as it is, and nothing is served outside the draw."""
    within_episodes: bool = False
    """Draw only sequences that lie inside one episode."""
    rare_share: Share = 0.0
    """Share of the sequences of a batch that hold a rare event, as long as there are any: an end of the episode by
    itself, a reward of half the largest or more, or of half the lowest or less, if fewer than one step in a hundred has
    it. Not with priorities."""
    priority_alpha: Share = 1.0
    """Sequences are drawn in proportion to this power of their priority, where the algorithm has priorities. 0:
    uniformly."""
    priority_beta: Share = 1.0
    """Power of the importance weights that make up for it. 0: none."""
    priority_anneal: Number = 0
    """Updates over which that power rises from --priority-beta to 1, evenly. 0: it stays."""


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """When the run is measured and saved; all in env steps, 0 for never."""

    log_every: Steps = 1000
    """Metrics are averaged over this many steps."""
    eval_every: Steps = 10_000
    """Evaluation, see --eval-mode."""
    eval_episodes: Annotated[int, Within(0, 10**6)] = 10
    """Episodes of an evaluation. The run also ends with one. 0 for none at all."""
    eval_mode: Literal["greedy", "sample"] = "greedy"
    """Actions of evaluations: the most probable, or one drawn from the policy (of the search, where one searches), as
    the reference of DreamerV3 does; without the noise that training adds to explore."""
    eval_envs: Annotated[int, Within(1, 2**20)] = 4
    """Environments stepped together in an evaluation."""
    opponent: str = "random"
    """The opponent of evaluations, in games of two: random, perfect (small games), or mcts:N with N rollouts a move."""
    report_every: Steps = 10_000
    """Open-loop error of the model on replayed sequences."""
    video_every: Steps = 50_000
    """Dreams to look at, videos or plots, in the run's videos/ and TensorBoard; also made at the end."""
    checkpoint_every: Steps = 10_000
    """Everything is saved, so that the same command goes on from here; also done at the end."""
    keep: Annotated[int, Within(2, INT32)] = 2
    """Checkpoints kept."""
    logger: Literal["none", "wandb", "trackio"] = "none"
    """Where metrics go besides metrics.jsonl and TensorBoard. wandb and trackio are extras."""


@dataclass(frozen=True, kw_only=True)
class Machine:
    """Devices and precision."""

    device: Literal["auto", "cpu", "gpu"] = "auto"
    """auto: the GPU if JAX sees one."""
    devices: Annotated[int, Within(0, 2**16)] = 1
    """Devices of this kind that share every batch. 0: all that JAX sees. A run may continue on another number; sums
    are then rounded in another order."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Precision of matrix products. auto: bfloat16 on a GPU, float32 on a CPU. bfloat16 on a CPU: linear layers round
    what an update multiplies, which takes half the time where the CPU has instructions for it (AVX512-BF16); their
    gradients by weights and convolutions stay as they are. Parameters are always float32."""
    debug: bool = False
    """Run without jit and with envs in this process, so that a breakpoint in a loss works. Slow."""


@dataclass(frozen=True, kw_only=True)
class RunConfig(Environment, Training, Memory, Schedule, Machine):
    """Everything about a run that is not the algorithm's own."""

    def __post_init__(self) -> None:
        check(self)
        if isinstance(self.image_size, tuple):
            object.__setattr__(self, "image_size", plain_size(self.image_size))
        if self.envs % self.groups:
            raise ConfigError(f"--groups {self.groups} must divide --envs {self.envs}, so that all are equal")
        if self.collector and self.schedule == "together":
            raise ConfigError(f"--collector {self.collector} needs --schedule model-then-policy")
        if self.collector and self.offline:
            raise ConfigError(
                "--collector takes env steps and --offline none: leave one of them out; where a preset brought the "
                "collector, type --collector ''"
            )
        if self.updates_per_dispatch > 1 and (self.offline or self.schedule != "together"):
            apart = "--offline" if self.offline else f"--schedule {self.schedule}"
            raise ConfigError(
                f"--updates-per-dispatch {self.updates_per_dispatch} is for updates between two env steps, and with "
                f"{apart} there are none: leave it out"
            )
        if self.devices and self.batch % self.devices:
            fewer, more = math.gcd(self.devices, self.batch), self.batch + -self.batch % self.devices
            raise ConfigError(
                f"--devices {self.devices} must divide --batch {self.batch}, so that all have equal shares: try "
                f"--devices {fewer}, or --batch {more}"
            )
        if self.devices > 1 and self.replay_on == "device":
            raise ConfigError(
                f"--replay-on device is for one device, and --devices {self.devices} would share its batches: type "
                "--replay-on host, or --devices 1"
            )
        if self.devices > 1 and self.debug:
            raise ConfigError(f"--debug computes on one device: type --devices 1 instead of --devices {self.devices}")
        kwargs = json_object(self.env_kwargs, "env_kwargs", '{"size": 5}')
        # In one form, so that two texts are equal if what they say is.
        object.__setattr__(self, "env_kwargs", json.dumps(kwargs, sort_keys=True))
