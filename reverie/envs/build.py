"""Envs, built: what a spec names, translated and wrapped."""

from __future__ import annotations

import difflib
import importlib
import inspect
import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import gymnasium
from gymnasium.error import DependencyNotInstalled

from reverie.envs import code, options
from reverie.envs.base import DeviceEnv, Env
from reverie.envs.code import UnusableEnv
from reverie.envs.gym import GymEnv
from reverie.envs.opposed import OpponentWrapper
from reverie.envs.spec import (
    DEVICE,
    GYMNASIUM,
    ROBOTICS,
    EnvLike,
    EnvSpec,
    can_draw,
    env_spec,
    family_of,
    load_entry_point,
    on_device,
    own_code,
)
from reverie.envs.wrappers import ActionRepeat, GrayImages, ObsKeys, ResizeImages, TimeLimit
from reverie.fields import did_you_mean, flag


def make_env(env: EnvLike, seed: int = 0) -> Env:
    """Builds an env: adapter inside, wrappers around it.

    Args:
      seed: of its first reset, if that is known.

    Raises:
      UnusableEnv: (a ValueError) unknown id, missing package, unsupported space, not an env.
      Exception: whatever the env's own constructor raises.
    """
    spec = env_spec(env)
    if (on_device := device_env(spec)) is not None:
        return adapt(on_device, spec.id)
    raw = build(spec)
    base_env = adapt(raw, spec.id, spec.obs_keys, seed)
    try:
        # The clock counts the env's own steps, so it sits inside the action repeat.
        if spec.time_limit:
            _lengthen(raw, spec.time_limit)
            base_env = TimeLimit(base_env, spec.time_limit)
        if spec.action_repeat > 1:
            base_env = ActionRepeat(base_env, spec.action_repeat)
        if spec.image_size:
            base_env = ResizeImages(base_env, spec.image_size)
        if spec.gray:
            base_env = GrayImages(base_env)
        if spec.targets != "none":
            base_env = _with_body(base_env, raw)
        if spec.opponent:
            base_env = OpponentWrapper(base_env, spec.opponent, spec.seat)
    except ValueError as error:
        base_env.close()
        raise UnusableEnv(f"{spec.id}: {error}") from error
    return base_env


def _with_body(env: Env, raw: Any) -> Env:
    """`env` with the body of `raw`, the innermost of it, as targets; raises ValueError if it has none."""
    if GYMNASIUM[-1].is_installed:
        from reverie.envs.mujoco import Body, physics_of

        if (physics := physics_of(raw)) is not None:
            return Body(env, *physics)
    raise ValueError("it has no body to predict (only envs of MuJoCo and dm_control do): leave --targets out")


def device_env(env: EnvLike) -> DeviceEnv | None:
    """The env as pure functions, its time limit included; None if it is one of the host.

    Only the name decides, so that nothing of a host env is built or imported here.

    Raises:
      UnusableEnv: as `make_env`; or a flag is given that only works on the host.
    """
    spec = env_spec(env)
    if not on_device(spec):
        return None
    for name in ("action_repeat", "image_size", "gray", "obs_keys", "targets"):
        if getattr(spec, name) != getattr(EnvSpec, name):
            raise UnusableEnv(f"{spec.id} lives on the device, where {flag(name)} does not work: leave it out")
    raw = build(spec)
    if not isinstance(raw, DeviceEnv):
        raise UnusableEnv(
            f"{spec.id} built an object of type {type(raw).__name__}, expected a DeviceEnv (reverie.envs.base): init, "
            f"step and row as pure functions. An env of the host is named without {DEVICE}"
        )
    from reverie.envs.device_wrappers import TimeLimit  # brings JAX, which a worker of the host does not need

    while isinstance(raw, TimeLimit) and raw.limit <= spec.time_limit:
        raw = raw.env
    return TimeLimit(raw, spec.time_limit) if spec.time_limit else raw


def build(spec: EnvSpec) -> Any:
    """The bare object that the id names: a `gymnasium.Env`, an `Env` or a `DeviceEnv`, if all is well."""
    if spec.factory is not None:
        return spec.factory(**spec.arguments())
    if family := family_of(spec.id):
        family.require(spec.id)
        try:
            given = options.read(family.module.Options, spec.arguments())
            _once(given, spec)
            return family.module.make(spec.id, given)
        except (ValueError, DependencyNotInstalled) as error:
            raise UnusableEnv(f"{spec.id}: {error}") from error
    if own := own_code(spec.id):
        return _call(code.find(*own), spec)
    return _from_registry(spec)


def adapt(raw: Any, name: str, obs_keys: str = "", seed: int = 0) -> Env:
    """`raw`, whose first reset is with `seed`, as an `Env` that shows what `obs_keys` chooses.

    Raises UnusableEnv if it cannot be one.
    """
    if count := getattr(raw, "num_envs", 0):
        raise UnusableEnv(
            f"{name} is a vector env, a {type(raw).__name__} of {count} envs, expected a single one: return one of "
            f"them, and type --envs {count} for as many copies of it"
        )
    try:
        env = _translate(raw, name, obs_keys, seed)
        for what, spaces in (("observation", env.obs_space), ("action", env.act_space)):
            for key, space in spaces.items():
                if not space.width:
                    leave = f", or leave it out: --obs-keys '!{key}'" if what == "observation" else ""
                    raise ValueError(f"{what} {key!r} holds no number: it is {space.describe()}. Give it a size{leave}")
    except ValueError as error:
        if isinstance(raw, gymnasium.Env):
            raw.close()
        raise error if isinstance(error, UnusableEnv) else UnusableEnv(f"{name}: {error}") from error
    return env


def _translate(raw: Any, name: str, obs_keys: str, seed: int) -> Env:
    if isinstance(raw, gymnasium.Env):
        return GymEnv(raw, obs_keys, seed)
    if any(cls.__module__.partition(".")[0] == "pettingzoo" for cls in type(raw).__mro__):
        from reverie.envs.pettingzoo import Game

        raw = Game(raw)
    if isinstance(raw, Env):
        return ObsKeys(raw, obs_keys) if obs_keys else raw
    if isinstance(raw, DeviceEnv):
        from reverie.envs.device_wrappers import HostView

        return HostView(raw, name)
    if any(cls.__module__.partition(".")[0] == "gym" for cls in type(raw).__mro__):
        raise UnusableEnv(
            f"{name} is an env of the old `gym` package, expected gymnasium: write `import gymnasium as gym`, return "
            "obs, info from reset(seed=...) and five values from step(); or wrap it with the package shimmy"
        )
    raise UnusableEnv(
        f"{name} built an object of type {type(raw).__name__}, expected a gymnasium.Env: `class MyEnv(gymnasium.Env):`"
    )


def _lengthen(env: Any, limit: int) -> None:
    """Lets every time limit of Gymnasium around `env` that is shorter than `limit` wait as long."""
    while isinstance(env, gymnasium.Wrapper):
        if isinstance(env, gymnasium.wrappers.TimeLimit):
            env._max_episode_steps = max(env._max_episode_steps, limit)
        env = env.env


def _once(given: Any, spec: EnvSpec) -> None:
    """Raises ValueError where a wrapper would do again what the family does by itself."""
    if hasattr(given, "repeat") and spec.action_repeat > 1:
        raise ValueError(
            f"it repeats every action by itself, {given.repeat} times: leave --action-repeat out, or change that "
            f"with --env-kwargs '{{\"repeat\": {spec.action_repeat}}}'"
        )
    if hasattr(given, "size") and spec.image_size not in (0, given.size):
        another = f", and type --env-kwargs '{{\"size\": {spec.image_size}}}' for another"
        raise ValueError(
            f"it makes images of {given.size} by itself: leave --image-size out"
            + (another if isinstance(spec.image_size, int) else "")
        )


def _from_registry(spec: EnvSpec) -> gymnasium.Env:
    module, _, name = spec.id.rpartition(":")
    if module:
        code.load(module)
    _require_name(name)
    kwargs, entry_point = spec.arguments(), gymnasium.spec(name).entry_point
    wrap: Callable[[gymnasium.Env], gymnasium.Env] = lambda env: env
    for family in GYMNASIUM:
        if re.match(family.pattern, str(entry_point)):
            family.require(name)
            wrap = getattr(family.module, "wrap", wrap)
    if "render_mode" not in kwargs and can_draw(entry_point):
        kwargs["render_mode"] = "rgb_array"
    try:
        # Our own gate and `check-env` replace Gymnasium's checker, which costs time at every step.
        with _naming_arguments(spec, entry_point):
            return wrap(gymnasium.make(name, disable_env_checker=True, **kwargs))
    except DependencyNotInstalled as error:
        raise UnusableEnv(f"{spec.id} needs a package that is not installed: {error}") from error


def require_id(spec: EnvSpec) -> None:
    """Raises UnusableEnv for the id of an env that nobody has registered, without importing code of the user's own."""
    if spec.factory is None and not family_of(spec.id) and not own_code(spec.id) and ":" not in spec.id:
        _require_name(spec.id)


def _require_name(name: str) -> None:
    if name not in gymnasium.registry and re.fullmatch(ROBOTICS.pattern, name):
        ROBOTICS.require(name)
        gymnasium.register_envs(importlib.import_module(ROBOTICS.package))
    if name not in gymnasium.registry:
        near = difflib.get_close_matches(name, gymnasium.registry, n=3, cutoff=0.5)
        hint = f"did you mean {' or '.join(near)}?" if near else "is its package imported?"
        raise UnusableEnv(
            f"no env {name!r}: {hint} Expected a Gymnasium id such as CartPole-v1, or "
            "my_module:MyEnv, my_module:make_env, path/to/file.py:MyEnv for one of your own"
        )


@contextmanager
def _naming_arguments(spec: EnvSpec, target: Any) -> Iterator[None]:
    """Raises UnusableEnv where `target`, or what it passes them on to, does not take one of the given arguments, and
    where it needs one that is not given."""
    try:
        yield
    except TypeError as error:
        text, given = str(error), spec.arguments()
        names = re.findall(r"'(\w+)'", text.partition("missing ")[2])
        foreign = [name for name in given if f"unexpected keyword argument '{name}'" in text]
        if not (names or foreign):
            raise
        by_name = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
        parameters = inspect.signature(load_entry_point(target)).parameters.values()
        taken = {p.name: p.default for p in parameters if p.kind in by_name}
        without_default = {name for name, default in taken.items() if default is inspect.Parameter.empty}
        if names and set(names) <= without_default - given.keys():
            example = json.dumps(dict.fromkeys(names, "...")).replace('"..."', "...")
            plural = "arguments" if len(names) > 1 else "argument"
            raise UnusableEnv(
                f"{spec.id} needs the {plural} {', '.join(map(repr, names))}: type --env-kwargs '{example}'"
            ) from error
        if not foreign:
            raise
        it_takes = f"It takes {', '.join(taken) or 'none'}"
        raise UnusableEnv(
            f"{spec.id} takes no argument {foreign[0]!r}: {did_you_mean(foreign[0], taken)}{it_takes}"
        ) from error


def _call(target: Any, spec: EnvSpec) -> Any:
    code.check_builder(target, spec.id)
    kwargs = spec.arguments()
    draws = inspect.isclass(target) and can_draw(target)
    if draws and "render_mode" in inspect.signature(target).parameters:
        kwargs.setdefault("render_mode", "rgb_array")
    with _naming_arguments(spec, target):
        return target(**kwargs)
