"""Envs by name: what is needed to build the same env again, here or in another process."""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import inspect
import json
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any, NamedTuple

import gymnasium
from gymnasium.error import DependencyNotInstalled

from reverie.envs import code, options
from reverie.envs.base import DeviceEnv, Env
from reverie.envs.code import UnusableEnv
from reverie.envs.gym import GymEnv
from reverie.envs.opposed import Opposed
from reverie.envs.wrappers import ActionRepeat, GrayImages, ObsKeys, ResizeImages, TimeLimit
from reverie.fields import meant, parsed, plain_size, short


class _Known(NamedTuple):
    """A family of envs that needs an extra."""

    name: str  # as `reverie list` shows it
    pattern: str  # regular expression
    extra: str  # of `pip install "reverie[...]"`, and the name of our module
    package: str  # that comes with it, as it is imported
    device: bool = False  # whether its envs are `DeviceEnv`s

    @property
    def module(self) -> ModuleType:
        return importlib.import_module(f"reverie.envs.{self.extra}")


# By their id. The module has `Options` and `make(id, options)`.
_FAMILIES = (
    _Known("Atari: ALE/Pong-v5", r"(ale_py:)?ALE/.*", "atari", "ale_py"),
    _Known("DeepMind Control: dmc:walker_walk", r"dmc:[a-z0-9_]*", "dmc", "dm_control"),
    _Known("Crafter: crafter:reward", r"crafter(:[a-z]*)?", "crafter", "crafter"),
    _Known(
        "MiniGrid, BabyAI: MiniGrid-Empty-8x8-v0",
        r"(minigrid:)?(MiniGrid|BabyAI)-.*",
        "minigrid",
        "minigrid",
    ),
    _Known("PettingZoo, games of two: pettingzoo:connect_four_v3", r"pettingzoo:.*", "pettingzoo", "pettingzoo"),
    _Known("pgx, on the device: pgx:connect_four, pgx:2048", r"pgx:.*", "pgx", "pgx", True),
    _Known("gymnax, on the device: gymnax:CartPole-v1", r"gymnax:.*", "gymnax", "gymnax", True),
)
_DEVICE = "device:"  # before the name of a class of one's own that is a `DeviceEnv`
_TOYS = "reverie.envs.device_toy"
# What may be built by whoever names it: these have no other arguments than numbers.
_SAFE = {"reverie.envs.toy:Catch", "reverie.envs.toy:Recall", "reverie.envs.toy:Counting", "reverie.envs.toy:Dummy"}
_SAFE |= {f"{_DEVICE}{module}{name}" for name in ("CartPole", "Catch") for module in ("", f"{_TOYS}:")}
# By their id, too. The package registers them with Gymnasium when somebody asks for one.
_ROBOTICS = _Known(
    "Gymnasium Robotics: PointMaze_UMaze-v3, AdroitHandDoor-v1",
    r"(AdroitHand|PointMaze|AntMaze)\w*-v\d+",  # its others do not work with the MuJoCo of today
    "robotics",
    "gymnasium_robotics",
)
# By where Gymnasium's registry says that the class lies. The module has `wrap(env)`.
_GYMNASIUM = (
    _Known("Gymnasium Box2D: LunarLander-v3", r"gymnasium\.envs\.box2d\b", "box2d", "Box2D"),
    _Known("Gymnasium MuJoCo: HalfCheetah-v5", r"gymnasium\.envs\.mujoco\b", "mujoco", "mujoco"),
)


@dataclass(frozen=True)
class EnvSpec:
    """An env by name.

    Attributes:
      id: a Gymnasium id (`CartPole-v1`, `ALE/Pong-v5`), an id of a family (`dmc:walker_walk`,
        `crafter`; see `families`), or `module:EnvClass`, `module:make_fn`,
        `path/to/file.py:EnvClass`; modules in the current directory are found. A `DeviceEnv` is
        named `device:module:EnvClass`.
      action_repeat: how often every action is taken; rewards are summed.
      time_limit: env steps (before `action_repeat`) after which episodes are truncated, also where a time limit of
        Gymnasium would have come before; 0: that of the env.
      image_size: images become `[image_size, image_size, C]`, or with a pair `[height, width, C]`; 0 leaves them.
      gray: images become `[H, W, 1]`.
      targets: `proprio` adds the body to the observation, for world models to predict (see `mujoco.Body`).
      kwargs: keyword arguments of the env, or options of its family; a dict or its JSON text (kept
        as a dict).
      factory: a callable that no other process can import; such an env can only run inline.
      obs_keys: which observations are seen, patterns as in `fields.chosen`; empty: all.
      opponent, seat: in a game of two, who plays against the agent (random, perfect, mcts:N; empty: the agent itself),
        and whether the agent moves first (0) or second.
    """

    id: str
    action_repeat: int = 1
    time_limit: int = 0
    image_size: int | tuple[int, int] = 0
    gray: bool = False
    targets: str = "none"
    kwargs: Mapping[str, Any] | str = field(default_factory=dict)
    factory: Callable[..., Any] | None = field(default=None, compare=False)
    obs_keys: str = ""
    opponent: str = ""
    seat: int = 0

    def __post_init__(self) -> None:
        if isinstance(self.kwargs, str):
            try:
                kwargs = parsed(self.kwargs or "{}")
            except ValueError as error:
                raise UnusableEnv(
                    f'env kwargs {short(self.kwargs)} is not JSON ({error}), expected for example {{"size": 5}}'
                ) from None
            object.__setattr__(self, "kwargs", kwargs)
        if not isinstance(self.kwargs, Mapping):
            raise UnusableEnv(f'env kwargs {self.kwargs!r}, expected a dict such as {{"size": 5}}')
        if isinstance(self.image_size, tuple):
            try:
                object.__setattr__(self, "image_size", plain_size(self.image_size))
            except ValueError as error:
                raise UnusableEnv(str(error)) from error
        for name, least in (("action_repeat", 1), ("time_limit", 0), ("image_size", 0)):
            if isinstance(getattr(self, name), int) and getattr(self, name) < least:
                raise UnusableEnv(f"{name} is {getattr(self, name)}, expected {least} or more")

    def to_json(self) -> str:
        """Text from which another process builds the same env; UnusableEnv for a `factory`."""
        if self.factory is not None:
            raise UnusableEnv(
                f"{self.id} lives in this process only: move it into a module of its own and pass "
                'it by name, env="my_module:make_env", or run it with workers="inline"'
            )
        names = ("id", "action_repeat", "time_limit", "image_size", "gray", "obs_keys", "targets", "opponent", "seat")
        values: dict[str, Any] = {name: getattr(self, name) for name in names}
        return json.dumps(values | {"kwargs": self.arguments()})

    def arguments(self) -> dict[str, Any]:
        """A copy of `kwargs`."""
        assert isinstance(self.kwargs, Mapping), self.kwargs
        return dict(self.kwargs)

    @classmethod
    def from_json(cls, text: str) -> EnvSpec:
        """Inverse of `to_json`."""
        values = json.loads(text)
        size = values["image_size"]
        return cls(**values | {"image_size": tuple(size) if isinstance(size, list) else size})


EnvLike = EnvSpec | str | Callable[..., Any]


def env_spec(env: object) -> EnvSpec:
    """`env` as an `EnvSpec`. A callable goes by its name if another process can import it.

    Raises UnusableEnv for anything that is neither an id, a spec nor a callable.
    """
    if isinstance(env, EnvSpec):
        return env
    if isinstance(env, str):
        return EnvSpec(env)
    if not callable(env):
        raise UnusableEnv(
            f"env is {env!r}, expected an id such as 'CartPole-v1', 'my_module:MyEnv', or a "
            "function that builds an env (an env that is already built cannot be built again)"
        )
    module, name = getattr(env, "__module__", None), getattr(env, "__qualname__", None)
    if module and name and module != "__main__" and "<" not in name:
        found: Any = sys.modules.get(module)
        for part in name.split("."):
            found = getattr(found, part, None)
        if found is env:
            return EnvSpec(f"{module}:{name}")
    return EnvSpec(f"{module or 'python'}:{name or type(env).__name__}", factory=env)


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
    adapted = adapt(raw, spec.id, spec.obs_keys, seed)
    try:
        # The clock counts the env's own steps, so it sits inside the action repeat.
        if spec.time_limit:
            _lengthened(raw, spec.time_limit)
            adapted = TimeLimit(adapted, spec.time_limit)
        if spec.action_repeat > 1:
            adapted = ActionRepeat(adapted, spec.action_repeat)
        if spec.image_size:
            adapted = ResizeImages(adapted, spec.image_size)
        if spec.gray:
            adapted = GrayImages(adapted)
        if spec.targets != "none":
            adapted = _with_body(adapted, raw)
        if spec.opponent:
            adapted = Opposed(adapted, spec.opponent, spec.seat)
    except ValueError as error:
        adapted.close()
        raise UnusableEnv(f"{spec.id}: {error}") from error
    return adapted


def _with_body(env: Env, raw: Any) -> Env:
    """`env` with the body of `raw`, the innermost of it, as targets; raises ValueError if it has none."""
    if _installed(_GYMNASIUM[-1]):
        from reverie.envs.mujoco import Body, physics_of

        if (physics := physics_of(raw)) is not None:
            return Body(env, *physics)
    raise ValueError("it has no body to predict (only envs of MuJoCo and dm_control do): leave --targets out")


def on_device(spec: EnvSpec) -> bool:
    """Whether the name is that of an env on the device."""
    families = (family for family in _FAMILIES if family.device)
    named = spec.id.startswith(_DEVICE) or any(re.fullmatch(family.pattern, spec.id) for family in families)
    return spec.factory is None and named


def device_env(env: EnvLike) -> DeviceEnv | None:
    """The env as pure functions, its time limit included; None if it is one of the host.

    Only the name decides, so that nothing of a host env is built or imported here.

    Raises:
      UnusableEnv: as `make_env`; or a flag is given that only works on the host.
    """
    spec = env_spec(env)
    if not on_device(spec):
        return None
    given = {"--action-repeat": spec.action_repeat > 1, "--image-size": spec.image_size != 0, "--gray": spec.gray}
    given |= {"--obs-keys": bool(spec.obs_keys), "--targets": spec.targets != "none"}
    for flag in (flag for flag, wanted in given.items() if wanted):
        raise UnusableEnv(f"{spec.id} lives on the device, where {flag} does not work: leave it out")
    raw = build(spec)
    if not isinstance(raw, DeviceEnv):
        raise UnusableEnv(
            f"{spec.id} built an object of type {type(raw).__name__}, expected a DeviceEnv (reverie.envs.base): init, "
            f"step and row as pure functions. An env of the host is named without {_DEVICE}"
        )
    from reverie.envs.device import TimeLimit  # brings JAX, which a worker of the host does not need

    while isinstance(raw, TimeLimit) and raw.limit <= spec.time_limit:
        raw = raw.env
    return TimeLimit(raw, spec.time_limit) if spec.time_limit else raw


def draws(name: str) -> bool:
    """Whether the env of this id draws pictures, as far as its class tells: nothing is built, and True if unsure."""
    if name.startswith(_DEVICE) or any(x.device and re.fullmatch(x.pattern, name) for x in _FAMILIES):
        return False
    if any(re.fullmatch(x.pattern, name) for x in _FAMILIES):
        return True
    module, _, own = name.rpartition(":")
    try:
        if module and _is_name(own):
            target = code.find(module, own)
            return not (inspect.isclass(target) and issubclass(target, gymnasium.Env)) or _can_draw(target)
        return _can_draw(gymnasium.spec(own).entry_point)
    except (ValueError, ImportError, AttributeError, gymnasium.error.Error):
        return True


def build(spec: EnvSpec) -> Any:
    """The bare object that the id names: a `gymnasium.Env`, an `Env` or a `DeviceEnv`, if all is well."""
    if spec.factory is not None:
        return spec.factory(**spec.arguments())
    if spec.id.startswith(_DEVICE):
        module, _, name = spec.id.removeprefix(_DEVICE).rpartition(":")
        return _call(code.find(module or _TOYS, name), spec)
    for family in _FAMILIES:
        if re.fullmatch(family.pattern, spec.id):
            return _of_family(family, spec)
    module, _, name = spec.id.rpartition(":")
    if module and _is_name(name):
        return _call(code.find(module, name), spec)
    return _registered(spec)


def brings(spec: EnvSpec) -> str:
    """What building an env would run besides Reverie, a family and what is registered with Gymnasium, in words; empty
    if nothing. Nothing is imported to tell.

    Arguments from a file reach only constructors that take no names of files or of code: options of a family are
    checked by type, and all others may be numbers and plain words.
    """
    if spec.factory is not None or any(re.fullmatch(family.pattern, spec.id) for family in _FAMILIES):
        return ""
    on_device = spec.id.startswith(_DEVICE)
    module, _, name = spec.id.removeprefix(_DEVICE).rpartition(":")
    if spec.id not in _SAFE and (module or on_device):
        called = name if on_device or _is_name(name) else ""
        return code.told(module or _TOYS, called, spec.arguments())
    odd = [f"{key}={value!r}" for key, value in spec.arguments().items() if not _is_plain((key, value))]
    return f"hand {', '.join(odd)} to {spec.id}" if odd else ""


def _is_name(text: str) -> bool:
    return text.replace(".", "").isidentifier()


def _is_plain(value: Any) -> bool:
    """Whether a JSON value consists of numbers and words, of which none can be a path or name a module's part."""
    if isinstance(value, Mapping):
        return all(_is_plain(item) for item in value.items())
    if isinstance(value, list | tuple):
        return all(_is_plain(item) for item in value)
    return not isinstance(value, str) or re.fullmatch(r"[\w +-]*", value) is not None


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
        env = _translated(raw, name, obs_keys, seed)
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


def _translated(raw: Any, name: str, obs_keys: str, seed: int) -> Env:
    if isinstance(raw, gymnasium.Env):
        return GymEnv(raw, obs_keys, seed)
    if any(cls.__module__.partition(".")[0] == "pettingzoo" for cls in type(raw).__mro__):
        from reverie.envs.pettingzoo import as_game

        raw = as_game(raw)
    if isinstance(raw, Env):
        return ObsKeys(raw, obs_keys) if obs_keys else raw
    if isinstance(raw, DeviceEnv):
        from reverie.envs.device import HostView

        return HostView(raw, name)
    if any(cls.__module__.partition(".")[0] == "gym" for cls in type(raw).__mro__):
        raise UnusableEnv(
            f"{name} is an env of the old `gym` package, expected gymnasium: write `import gymnasium as gym`, return "
            "obs, info from reset(seed=...) and five values from step(); or wrap it with the package shimmy"
        )
    raise UnusableEnv(
        f"{name} built an object of type {type(raw).__name__}, expected a gymnasium.Env: `class MyEnv(gymnasium.Env):`"
    )


def _lengthened(env: Any, limit: int) -> None:
    """Lets every time limit of Gymnasium around `env` that is shorter than `limit` wait as long."""
    while isinstance(env, gymnasium.Wrapper):
        if isinstance(env, gymnasium.wrappers.TimeLimit):
            env._max_episode_steps = max(env._max_episode_steps, limit)
        env = env.env


class Family(NamedTuple):
    """A line of `reverie list`: `extra` is what to `pip install`, empty if nothing."""

    name: str
    extra: str
    installed: bool


def families() -> list[Family]:
    """The kinds of env that can be named, and whether they can be used as things are installed."""
    return [
        Family("Gymnasium classic control: CartPole-v1", "", True),
        *(Family(x.name, f"reverie[{x.extra}]", _installed(x)) for x in (*_FAMILIES, *_GYMNASIUM, _ROBOTICS)),
        Family("your own: module:EnvClass, path/to/file.py:EnvClass", "", True),
        Family("your own, on the device: device:module:EnvClass", "", True),
        Family("toys: reverie.envs.toy:Catch, Recall; on the device: device:CartPole, Catch, Constant", "", True),
    ]


def summary(env: EnvLike, means: Mapping[str, float]) -> dict[str, float]:
    """What a family makes of the mean figures of many episodes, such as Crafter's score; often nothing."""
    name = env_spec(env).id
    for family in _FAMILIES:
        if means and re.fullmatch(family.pattern, name):
            make: Callable[..., dict[str, float]] = getattr(family.module, "summary", lambda means: {})
            return make(means)
    return {}


# --------------------------------------------------------------------------------------- by family


def _of_family(family: _Known, spec: EnvSpec) -> Any:
    _need(family, spec.id)
    try:
        module = family.module
        given = options.read(module.Options, spec.arguments())
        _once(given, spec)
        return module.make(spec.id, given)
    except (ValueError, DependencyNotInstalled) as error:
        raise UnusableEnv(f"{spec.id}: {error}") from error


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


def _need(family: _Known, name: str) -> None:
    if not _installed(family):
        raise UnusableEnv(
            f"{name} needs a package that is not installed ({family.package}): "
            f'type `pip install "reverie[{family.extra}]"`'
        )


def _installed(family: _Known) -> bool:
    return importlib.util.find_spec(family.package) is not None


# ------------------------------------------------------------------------------------ by Gymnasium


def _registered(spec: EnvSpec) -> gymnasium.Env:
    module, _, name = spec.id.rpartition(":")
    if module:
        code.load(module)
    if name not in gymnasium.registry and re.fullmatch(_ROBOTICS.pattern, name):
        _need(_ROBOTICS, name)
        gymnasium.register_envs(importlib.import_module(_ROBOTICS.package))
    if name not in gymnasium.registry:
        raise UnusableEnv(_unknown(name))
    kwargs, entry_point = spec.arguments(), gymnasium.spec(name).entry_point
    wrap: Callable[[gymnasium.Env], gymnasium.Env] = lambda env: env
    for family in _GYMNASIUM:
        if re.match(family.pattern, str(entry_point)):
            _need(family, name)
            wrap = family.module.wrap
    if "render_mode" not in kwargs and _can_draw(entry_point):
        kwargs["render_mode"] = "rgb_array"
    try:
        # Our own gate and `check-env` replace Gymnasium's checker, which costs time at every step.
        with _naming_arguments(spec, entry_point):
            return wrap(gymnasium.make(name, disable_env_checker=True, **kwargs))
    except DependencyNotInstalled as error:
        raise UnusableEnv(f"{spec.id} needs a package that is not installed: {error}") from error


def _unknown(name: str) -> str:
    near = difflib.get_close_matches(name, gymnasium.registry, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}?" if near else "is its package imported?"
    return (
        f"no env {name!r}: {hint} Expected a Gymnasium id such as CartPole-v1, or "
        "my_module:MyEnv, my_module:make_env, path/to/file.py:MyEnv for one of your own"
    )


def _can_draw(entry_point: Any) -> bool:
    """Whether an env class, or the text that leads to it, offers pictures; False if unsure."""
    try:
        entry_point = _loaded(entry_point)
    except (ImportError, AttributeError, DependencyNotInstalled):
        return False  # `gymnasium.make` meets the same error and explains it
    metadata = getattr(entry_point, "metadata", None) or {}
    return "rgb_array" in metadata.get("render_modes", ())


def _loaded(entry_point: Any) -> Any:
    return gymnasium.envs.registration.load_env_creator(entry_point) if isinstance(entry_point, str) else entry_point


@contextmanager
def _naming_arguments(spec: EnvSpec, target: Any) -> Iterator[None]:
    """Raises UnusableEnv where `target`, or what it passes them on to, does not take one of the given arguments, and
    where it needs one that is not given."""
    try:
        yield
    except TypeError as error:
        _, missing, listed = str(error).partition("missing ")
        names = re.findall(r"'(\w+)'", listed)
        if missing and names and set(names) <= _needed(target) - spec.arguments().keys():
            example = json.dumps(dict.fromkeys(names, "...")).replace('"..."', "...")
            plural = "arguments" if len(names) > 1 else "argument"
            raise UnusableEnv(
                f"{spec.id} needs the {plural} {', '.join(map(repr, names))}: type --env-kwargs '{example}'"
            ) from error
        foreign = [name for name in spec.arguments() if f"unexpected keyword argument '{name}'" in str(error)]
        if not foreign:
            raise
        named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
        taken = [p.name for p in inspect.signature(_loaded(target)).parameters.values() if p.kind in named]
        it_takes = f"It takes {', '.join(taken) or 'none'}"
        raise UnusableEnv(
            f"{spec.id} takes no argument {foreign[0]!r}: {meant(foreign[0], taken)}{it_takes}"
        ) from error


def _needed(target: Any) -> set[str]:
    """Names of the arguments without which an env class or function, or what a text leads to, cannot be called."""
    parameters = inspect.signature(_loaded(target)).parameters.values()
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return {p.name for p in parameters if p.kind in named and p.default is inspect.Parameter.empty}


def _call(target: Any, spec: EnvSpec) -> Any:
    code.check_builder(target, spec.id)
    kwargs = spec.arguments()
    draws = inspect.isclass(target) and _can_draw(target)
    if draws and "render_mode" in inspect.signature(target).parameters:
        kwargs.setdefault("render_mode", "rgb_array")
    with _naming_arguments(spec, target):
        return target(**kwargs)
