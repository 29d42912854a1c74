"""Facts about an env before anything is learned: its spaces, and what comes of random play.

Half of the steps are played with an action drawn anew at every step, half with actions that are repeated for a while
(see `behavior/explore.py`): whether those find more is the one thing about exploration that can be known beforehand.
The same env always gives the same facts, unless it is so slow that the clock ends the look.
"""

from __future__ import annotations

import itertools
import math
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np

from reverie.envs.base import Env, Spaces, Step, from_json, to_json
from reverie.envs.build import make_env
from reverie.envs.guard import guarded
from reverie.envs.process import Child, ChildGone, Hung, send_json
from reverie.envs.spec import EnvSpec, UnusableEnv, on_device
from reverie.envs.values import legally, sample

STEPS = 4000  # of each kind of play
SECONDS = 4.0  # of processor time after which a slow env is left alone, or five times that by the clock
PATIENCE = 60.0  # seconds for everything, building the env included
HOLD = 32  # longest repetition
SIDE = 7  # of pictures, to try whether they can be resized


@dataclass(frozen=True)
class Play:
    """Statistics of random play."""

    steps: int  # taken
    returns: Sequence[float]  # of the episodes that ended
    lengths: Sequence[int]  # of these
    terminated: int  # how many of them ended by themselves, not by a time limit

    @property
    def length(self) -> float:
        """Steps of an episode, on average; all that were taken where none ended."""
        return float(np.mean(self.lengths)) if self.lengths else float(self.steps)


class Variation(NamedTuple):
    """How the elements of a vector varied in random play, `[width]` each."""

    mean: np.ndarray
    std: np.ndarray
    reach: np.ndarray  # the largest distance from the mean
    symlog_std: np.ndarray  # the standard deviation of symlog of it
    levels: np.ndarray  # how many different values it had

    @classmethod
    def of(cls, rows: np.ndarray) -> Variation:
        """The variation of rows `[steps, width]`."""
        rows = rows.astype(np.float64)
        mean = rows.mean(0)
        symlog = np.sign(rows) * np.log1p(abs(rows))
        levels = np.array([len(np.unique(column)) for column in rows.T])
        return cls(mean, rows.std(0), abs(rows - mean).max(0), symlog.std(0), levels)


@dataclass(frozen=True)
class Facts:
    """The facts about an env."""

    obs_space: Spaces
    act_space: Spaces
    plain: Play  # with fresh actions at every step
    held: Play  # with repeated ones
    largest: float  # absolute reward
    variation: Mapping[str, Variation]  # of the vectors that were seen
    seconds: float  # of a step, typically
    device: bool = False  # whether it lives there
    zeros: float = 0.0  # share of the steps that were paid nothing
    large: float = 1.0  # share of the steps that were paid half the largest reward or more, whatever the sign
    # Side of the squares of equal pixels that make an image; none where images cannot be resized.
    blocks: Mapping[str, int] = field(default_factory=dict)

    @property
    def scale(self) -> float:
        """The largest absolute return of an episode, or of the steps played where none ended."""
        returns = (*self.plain.returns, *self.held.returns)
        return max((abs(x) for x in returns), default=self.largest * max(self.plain.length, self.held.length))

    @property
    def monotonous(self) -> bool:
        """All episodes are worth the same, whatever was done: their reward, if there is one, was not found."""
        returns = (*self.plain.returns, *self.held.returns)
        return not returns or max(returns) - min(returns) <= 1e-6 * max(1.0, abs(max(returns)))

    @property
    def repeating_finds(self) -> bool:
        """The best episode with repeated actions beats every other by a tenth of all that was seen."""
        plain, held = self.plain.returns, self.held.returns
        if not held or not plain:
            return bool(held)
        spread = max(*plain, *held) - min(*plain, *held)
        return max(held) - max(plain) > 0.1 * spread


def look(spec: EnvSpec) -> Facts | None:
    """The facts of an env; None if it cannot be played, which training will then explain.

    An env that only this process knows, and one on the device, is played here; any other in a process of its own, where
    it may hang or crash.
    """
    if _is_played_here(spec):
        try:
            with guarded(PATIENCE):
                return _facts(_play(spec))
        except (Exception, SystemExit):  # the border of the user's code
            return None
    with closing(EarlyLook(spec)) as early:
        return early.facts(spec)


class EarlyLook:
    """A look at an env in a process of its own, which goes on while the caller does something else.

    Args:
      spec: the env, as far as it is known. None: nobody knows yet, and nothing is begun.
    """

    def __init__(self, spec: EnvSpec | None) -> None:
        begins = spec is not None and not _is_played_here(spec)
        self._spec = spec if begins else None
        self._child = Child("reverie.envs.facts:serve", {"spec": spec.to_json()}) if spec and begins else None
        self._facts: Facts | None = None

    def facts(self, spec: EnvSpec) -> Facts | None:
        """The facts of the env that it is now known to be, as `look` gives them; of another one than was begun with,
        those of another look."""
        if spec != self._spec:
            self.close()
            self._spec, self._facts = spec, look(spec)
        elif self._child:
            try:
                found = self._child.read_json(time.monotonic() + PATIENCE)
                self._facts = _facts(found) if found else None
            except (Hung, ChildGone):
                pass
            self.close()
        return self._facts

    def close(self) -> None:
        """Ends the process, if it goes on. Idempotent."""
        if self._child:
            self._child.end()
            self._child = None


def _is_played_here(spec: EnvSpec) -> bool:
    return spec.factory is not None or on_device(spec)


def serve(read: int, write: int, fds: list[int], values: dict[str, Any]) -> None:
    """The process that plays. Of an env that fails it says nothing: building it in earnest meets the same fault."""
    try:
        found = _play(EnvSpec.from_json(values["spec"]))
    except (Exception, SystemExit):  # the border of the user's code
        found = None
    send_json(write, found)


def _facts(found: dict[str, Any]) -> Facts:
    """Facts out of plain JSON values."""
    spaces = {name: from_json(found[name]) for name in ("obs_space", "act_space")}
    plays = {name: Play(**found[name]) for name in ("plain", "held")}
    variation = {key: Variation(*map(np.array, values)) for key, values in found["variation"].items()}
    return Facts(**found | spaces | plays | {"variation": variation})


def _play(spec: EnvSpec) -> dict[str, Any]:
    """Facts as plain JSON values."""
    env = make_env(spec)
    vectors = {key: list[np.ndarray]() for key, space in env.obs_space.items() if space.kind == "vector"}
    blocks = {key: 0 for key, space in env.obs_space.items() if space.kind == "image"}
    rewards: list[float] = []
    times: list[float] = []

    def note(step: Step, seconds: float) -> None:
        rewards.append(float(step.reward))
        times.append(seconds)
        for key, rows in vectors.items():
            rows.append(step.obs[key].flatten())
        for key, before in blocks.items():
            blocks[key] = block_of(step.obs[key], before)

    plays = {name: _episodes(env, hold, note) for name, hold in (("plain", 1), ("held", HOLD))}
    env.close()
    blocks = {key: math.gcd(k, *env.obs_space[key].shape[:2]) if k else 1 for key, k in blocks.items()}
    variation = {key: Variation.of(np.array(rows)) for key, rows in vectors.items() if rows}
    largest = max(map(abs, rewards), default=0.0)
    return {
        "obs_space": to_json(env.obs_space),
        "act_space": to_json(env.act_space),
        **plays,
        "largest": largest,
        "zeros": rewards.count(0) / max(1, len(rewards)),
        "large": sum(abs(x) >= largest / 2 for x in rewards) / max(1, len(rewards)),
        "variation": {key: [x.tolist() for x in values] for key, values in variation.items()},
        "blocks": blocks if max(blocks.values(), default=1) > 1 and _resizes(spec) else {},
        "seconds": statistics.median(times or [0.0]),
        "device": on_device(spec),
    }


def _resizes(spec: EnvSpec) -> bool:
    """Whether its pictures can be resized: not on the device, nor where a family has a size of its own for them."""
    try:
        make_env(replace(spec, image_size=SIDE)).close()
    except UnusableEnv:
        return False
    return not on_device(spec)


def block_of(image: np.ndarray, before: int = 0) -> int:
    """The side of the largest squares of equal pixels in which images `[H, W, C]` are drawn: this one, and those whose
    squares had the side `before`. 0: they have one colour each."""
    if before != 1:
        for axis in (0, 1):
            edges = np.flatnonzero((np.diff(image, axis=axis) != 0).any((1 - axis, 2))) + 1
            before = math.gcd(before, *edges.tolist())
    return before


def _episodes(env: Env, hold: int, note: Callable[[Step, float], None]) -> dict[str, Any]:
    """A `Play` as plain JSON values; every step is noted, with the seconds that it took."""
    cpu_start, began = time.process_time(), time.monotonic()
    returns: list[float] = []
    lengths: list[int] = []
    steps = terminated = length = 0
    total = 0.0
    for step, seconds in wander(env, [2**x for x in range(1 + int(math.log2(hold)))]):
        note(step, seconds)
        steps, length, total = steps + 1, length + 1, total + float(step.reward)
        if step.is_last:
            returns.append(total)
            lengths.append(length)
            terminated += step.is_terminal
            total, length = 0.0, 0
        if steps >= STEPS or time.process_time() > cpu_start + SECONDS or time.monotonic() > began + 5 * SECONDS:
            break
    return {"steps": steps, "returns": returns, "lengths": lengths, "terminated": terminated}


def wander(env: Env, bounds: Sequence[int]) -> Iterator[tuple[Step, float]]:
    """Random play without end: what every step showed, and how many seconds it took.

    Args:
      bounds: most steps for which a random action is taken; every episode draws one of these.
    """
    rng = np.random.default_rng(0)
    for episode in itertools.count():
        step, left, action = env.reset(episode), 0, {}
        bound = int(rng.choice(bounds))
        while not step.is_last:
            if left <= 0:
                action, left = sample(env.act_space, rng), int(rng.integers(1, bound + 1))
            action = legally(action, step.obs.get("legal"), env.act_space, rng)
            before = time.perf_counter()
            step = env.step(action)
            left -= 1
            yield step, time.perf_counter() - before
