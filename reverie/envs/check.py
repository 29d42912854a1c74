"""Everything that can be wrong with an env, found before training instead of during it.

The env is examined in a process of its own with a deadline, so that one that hangs or crashes is a
finding like any other.
"""

from __future__ import annotations

import inspect
import statistics
import time
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import gymnasium
import numpy as np
from gymnasium import spaces

from reverie.envs import host
from reverie.envs.base import Env, Spaces, Step, from_json, to_json
from reverie.envs.build import adapt, build, make_env
from reverie.envs.guard import Fault, guarded
from reverie.envs.process import Child, ChildGone, Hung, send_json
from reverie.envs.spaces import channels_first, left_out, turned_around
from reverie.envs.spec import EnvLike, EnvSpec, UnusableEnv, env_spec
from reverie.envs.values import Gate, Malformed, legally, sample
from reverie.envs.wrappers import innermost
from reverie.fields import amount

REPEAT_SEED = 7  # seed of the episode that is repeated
SLOW = 0.05  # seconds a step: training waits for the env most of the time


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong, doubtful, or good to know.

    Attributes:
      severity: `error`, training would fail or cut episodes; `warning`, it works but surprises;
        `note`, a fact.
      what: was found.
      fix: what to do about it; empty if nothing.
      algorithms: whom alone it concerns; empty: everybody.
    """

    severity: Literal["error", "warning", "note"]
    what: str
    fix: str = ""
    algorithms: tuple[str, ...] = ()


# Of an examination, in order: the name of each phase before it, what was found in it, and once they are known both
# spaces, as JSON values.
_Item = str | Finding | dict[str, Any]


def check_env(env: EnvLike, *, steps: int = 1000, deadline: float = 60.0) -> list[Finding]:
    """The findings of `examine`. Without an `error` among them the env itself is sound."""
    return examine(env, steps=steps, deadline=deadline)[0]


def examine(
    env: EnvLike, *, steps: int = 1000, deadline: float = 60.0
) -> tuple[list[Finding], tuple[Spaces, Spaces] | None]:
    """Examines an env the way training will use it. Arguments: those of `reverie.check_env`.

    Returns:
      `(findings, spaces)`: errors first; `obs_space` and `act_space`, or None where the env could not be built.
    """
    spec = env_spec(env)
    found: list[Finding] = []
    both_spaces = None
    phase = "building it"
    try:
        for item in (_here if spec.factory else _apart)(spec, steps, deadline):
            if isinstance(item, str):
                phase = item
            elif isinstance(item, dict):
                both_spaces = from_json(item["obs_space"]), from_json(item["act_space"])
            elif item not in found:
                found.append(item)
    except (Hung, Fault) as fault:  # a hang: an exception of the env has become a finding before
        fix = "find out what it waits for; a slow constructor may need a longer --deadline"
        found.append(Finding("error", f"{phase}: {fault}", fix))
    except ChildGone as gone:
        found.append(Finding("error", f"{phase}: {gone}", "run the env alone to see where it crashes"))
    return by_severity(found), both_spaces


def by_severity(findings: list[Finding]) -> list[Finding]:
    """Errors first."""
    order = ("error", "warning", "note")
    return sorted(findings, key=lambda finding: order.index(finding.severity))


# ---------------------------------------------------------------------------- where it is examined


def _here(spec: EnvSpec, steps: int, deadline: float) -> Iterator[_Item]:
    """In this process, for a callable that no other one can import."""
    items = _examine(spec, steps)
    while True:
        with guarded(deadline):
            item = next(items, None)
        if item is None:
            return
        yield item


def _apart(spec: EnvSpec, steps: int, deadline: float) -> Iterator[_Item]:
    """In a process. It sends every item as it comes, and null at the end; silence means that it hangs."""
    child = Child("reverie.envs.check:serve", {"spec": spec.to_json(), "steps": steps})
    try:
        while (item := child.read_json(time.monotonic() + deadline)) is not None:
            yield Finding(*item) if isinstance(item, list) else item
    except Hung:
        raise Hung(f"no answer within {deadline:g} s") from None
    finally:
        child.end()


def serve(read: int, write: int, fds: list[int], values: dict[str, Any]) -> None:
    """The examining process."""
    for item in _examine(EnvSpec.from_json(values["spec"]), values["steps"]):
        send_json(write, [item.severity, item.what, item.fix] if isinstance(item, Finding) else item)
    send_json(write, None)


# ------------------------------------------------------------------------------- what is examined


def _examine(spec: EnvSpec, steps: int) -> Iterator[_Item]:
    yield "building it"
    fix = "fix the constructor"
    try:
        raw = build(spec)
        if isinstance(raw, gymnasium.Env):
            yield from _interface(raw)
            for name in ("observation_space", "action_space"):
                if not isinstance(getattr(raw, name, None), gymnasium.Space):
                    declare = f"set self.{name} in __init__, to one of gymnasium.spaces"
                    yield Finding("error", f"{name} is {getattr(raw, name, 'not set')}", declare)
                    return
        yield "the first reset"  # which tells whether there are action masks
        fix = "fix the exception"
        adapt(raw, spec.id, spec.obs_keys).close()
        env = make_env(spec)
    except UnusableEnv as error:
        yield Finding("error", str(error))
        return
    except (Exception, SystemExit) as error:  # the border of the user's code
        yield Finding("error", f"building it: {host.explain(error)}", fix)
        return
    yield {"obs_space": to_json(env.obs_space), "act_space": to_json(env.act_space)}
    if isinstance(raw, gymnasium.Env):
        for name in left_out(raw.observation_space, spec.obs_keys):
            yield Finding("note", f"{name!r} is not seen")
    episodes = _Episodes(env)
    yield from episodes.play(steps)
    if not episodes.faults:
        yield from _repeats(spec, env)
        yield from _picture(env)
    env.close()


def _interface(raw: gymnasium.Env) -> Iterator[Finding]:
    """The findings that need no call of the env."""
    parameters = inspect.signature(raw.unwrapped.reset).parameters
    if "seed" not in parameters and not any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values()):
        yield Finding(
            "error",
            f"reset({', '.join(parameters)}) takes no seed",
            "write `def reset(self, *, seed=None, options=None):` and begin it with `super().reset(seed=seed)`",
        )
    space = getattr(raw, "observation_space", None)
    for part in space.spaces.values() if isinstance(space, spaces.Dict) else [space]:
        if isinstance(part, spaces.Box):
            yield from _looks_like_an_image(part)


def _looks_like_an_image(box: spaces.Box) -> Iterator[Finding]:
    if box.dtype == np.uint8 and len(box.shape) == 3:
        if channels_first(box.shape):
            seen = list(turned_around(box.shape))
            yield Finding("note", f"an image {list(box.shape)} has its channels first: it is turned around to {seen}")
    elif box.dtype == np.uint8 and len(box.shape) == 2 and min(box.shape) >= 16:
        yield Finding(
            "warning",
            f"uint8 {list(box.shape)} is taken as a vector, but looks like a gray image",
            f"declare and return [{box.shape[0]}, {box.shape[1]}, 1]",
        )
    elif len(box.shape) == 3 and box.shape[2] in (1, 3, 4) and min(box.shape[:2]) >= 16:
        yield Finding(
            "warning",
            f"{box.dtype} {list(box.shape)} is taken as a vector, but looks like an image",
            "declare and return it as uint8 from 0 to 255",
        )


class _Episodes:
    """Random episodes, step by step; each kind of fault is told once."""

    def __init__(self, env: Env) -> None:
        self._env = env
        self._inside = innermost(env)
        self._gate = Gate(env.obs_space)
        self.faults: set[str] = set()  # kinds of them
        self._mover = -1  # whose turn it was at the last step

    def play(self, steps: int) -> Iterator[str | Finding]:
        rng = np.random.default_rng(0)
        times: list[float] = []
        lengths: list[int] = []  # of the episodes so far
        ended, last = 0, True
        legal: np.ndarray | None = None
        for _ in range(steps):
            phase = "reset" if last else f"step {lengths[-1] + 1} of episode {len(lengths) - 1}"
            yield phase
            began = time.perf_counter()
            try:
                if last:
                    step = self._env.reset(len(lengths))
                    lengths.append(0)
                else:
                    step = self._env.step(legally(sample(self._env.act_space, rng), legal, self._env.act_space, rng))
                    lengths[-1] += 1
                    times.append(time.perf_counter() - began)
            except Malformed as error:
                yield from self._tell(phase, str(error), "return what the message expects")
                return
            except (Exception, SystemExit) as error:  # the border of the user's code
                yield from self._tell(phase, host.explain(error), "fix the exception")
                return
            yield from self._judge(phase, step, first=last)
            last, legal = step.is_last, step.obs.get("legal")
            ended += last
        yield from self._summary(steps, ended, max(lengths, default=0), times)

    def _judge(self, phase: str, step: Step, first: bool) -> Iterator[Finding]:
        problems = self._gate.problems(step)
        fix = "make the space and what reset() and step() return agree; while training, such a step cuts the episode"
        for problem in problems:
            yield from self._tell(phase, problem, fix)
        yield from self._turns(phase, step, first)
        if step.is_first != first:
            yield from self._tell(phase, f"is_first: {step.is_first}", "set it on reset only")
        if self._inside is not None and not problems:
            for given, declared_dtype in _casts(self._inside.env.observation_space, self._inside.shown):
                yield Finding(
                    "warning",
                    f"it returns {given} where its space declares {declared_dtype}; it is cast",
                    f"return {declared_dtype}, or declare {given}",
                )

    def _turns(self, phase: str, step: Step, first: bool) -> Iterator[Finding]:
        """Whether strict turns are kept where the space says so. Whose turn it is at the end of a game is nobody's."""
        space = self._env.obs_space.get("player")
        if space is None or step.obs.get("player") is None:
            return
        before, self._mover = self._mover, int(step.obs["player"])
        if space.alternating and self._mover == before and not first and not step.is_last:
            problem = f"obs/player: {before} moves twice in a row, expected strict turns"
            yield from self._tell(phase, problem, 'leave `alternating` out of Space("player", ())')

    def _tell(self, phase: str, problem: str, fix: str) -> Iterator[Finding]:
        kind = problem.partition(":")[0] + problem.partition(",")[2]
        if kind not in self.faults:
            self.faults.add(kind)
            yield Finding("error", f"{phase}: {problem}", fix)

    def _summary(self, steps: int, ended: int, longest: int, times: list[float]) -> Iterator[Finding]:
        if ended:
            yield Finding("note", f"{amount(ended, 'random episode')}, the longest of {amount(longest, 'step')}")
        else:
            fix = "if it never ends by itself, give it --time-limit"
            yield Finding("note", f"no episode ended within {amount(steps, 'random step')}", fix)
        if times:
            typical = statistics.median(times)
            takes, fix = f"a step takes {typical * 1e6:.0f} us", "profile step(); training waits for it"
            yield Finding("warning", takes, fix) if typical > SLOW else Finding("note", takes)


def _casts(space: gymnasium.Space, value: Any) -> set[tuple[str, str]]:
    """`(given, declared_dtype)` dtypes where a sound observation is cast on its way in."""
    if isinstance(space, spaces.Dict):
        return {cast for key, sub in space.spaces.items() for cast in _casts(sub, value[key])}
    if isinstance(space, spaces.Tuple):
        return {cast for sub, part in zip(space.spaces, value, strict=True) for cast in _casts(sub, part)}
    if isinstance(space, spaces.Box) and (given := np.asarray(value).dtype) != space.dtype:
        return {(str(given), str(space.dtype))}
    return set()


def _repeats(spec: EnvSpec, env: Env) -> Iterator[str | Finding]:
    yield "repeating an episode"
    fix = "draw from self.np_random only, after super().reset(seed=seed)"
    consequence = "a resumed run will cut the open episodes instead of continuing them"
    first, second = (_trace(make_env(spec, REPEAT_SEED)) for _ in range(2))
    if first != second:
        yield Finding("warning", f"the same seed and actions give another episode: {consequence}", fix)
    elif _trace(env) != first:
        yield Finding(
            "warning",
            f"an episode depends on those before it, whatever the seed: {consequence}",
            "reset everything in reset(), counters too",
        )


def _trace(env: Env, steps: int = 100) -> list[int]:
    """A fingerprint of every step of one episode."""
    rng = np.random.default_rng(1)
    step = env.reset(REPEAT_SEED)
    trace = [_fingerprint(step)]
    while not step.is_last and len(trace) < steps:
        step = env.step(legally(sample(env.act_space, rng), step.obs.get("legal"), env.act_space, rng))
        trace.append(_fingerprint(step))
    return trace


def _fingerprint(step: Step) -> int:
    crc = zlib.crc32(repr((step.reward, step.is_last, step.is_terminal)).encode())
    for key in sorted(step.obs):
        crc = zlib.crc32(step.obs[key].tobytes(), crc)
    return crc


def _picture(env: Env) -> Iterator[str | Finding]:
    yield "rendering"
    try:
        frame = env.render()
    except (Exception, SystemExit) as error:  # the border of the user's code
        yield Finding("warning", f"render: {host.explain(error)}", "videos will not work")
        return
    if frame is None:
        yield Finding(
            "note",
            "it cannot be rendered",
            'for videos: metadata = {"render_modes": ["rgb_array"]}, take render_mode in '
            "__init__, and return uint8 [height, width, 3] from render()",
        )
