"""Envs by name: what is needed to build the same env again, here or in another process."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import json
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any, NamedTuple

import gymnasium
from gymnasium.error import DependencyNotInstalled

from reverie.envs import code
from reverie.envs.code import UnusableEnv
from reverie.fields import parsed, plain_size, short


class Family(NamedTuple):
    """A family of envs: a line of `reverie list`."""

    name: str
    pattern: str = ""  # regular expression
    key: str = ""  # the name of its extra, and of our module
    package: str = ""  # that comes with the extra, as it is imported
    device: bool = False  # whether its envs are `DeviceEnv`s

    @property
    def extra(self) -> str:
        """The package to `pip install`; empty if there is none."""
        return f"reverie[{self.key}]" if self.key else ""

    @property
    def module(self) -> ModuleType:
        return importlib.import_module(f"reverie.envs.{self.key}")

    @property
    def is_installed(self) -> bool:
        return not self.package or importlib.util.find_spec(self.package) is not None

    def require(self, name: str) -> None:
        """Raises UnusableEnv, for an env of this name, if the package is missing."""
        if not self.is_installed:
            raise UnusableEnv(
                f'{name} needs a package that is not installed ({self.package}): type `pip install "{self.extra}"`'
            )


# By their id. The module has `Options` and `make(id, options)`.
_FAMILIES = (
    Family("Atari: ALE/Pong-v5", r"(ale_py:)?ALE/.*", "atari", "ale_py"),
    Family("DeepMind Control: dmc:walker_walk", r"dmc:[a-z0-9_]*", "dmc", "dm_control"),
    Family("Crafter: crafter:reward", r"crafter(:[a-z]*)?", "crafter", "crafter"),
    Family("MiniGrid, BabyAI: MiniGrid-Empty-8x8-v0", r"(minigrid:)?(MiniGrid|BabyAI)-.*", "minigrid", "minigrid"),
    Family("PettingZoo, games of two: pettingzoo:connect_four_v3", r"pettingzoo:.*", "pettingzoo", "pettingzoo"),
    Family("pgx, on the device: pgx:connect_four, pgx:2048", r"pgx:.*", "pgx", "pgx", True),
    Family("gymnax, on the device: gymnax:CartPole-v1", r"gymnax:.*", "gymnax", "gymnax", True),
    Family("jumanji, on the device: jumanji:Snake-v1", r"jumanji:.*", "jumanji", "jumanji", True),
    Family("brax, on the device: brax:ant", r"brax:.*", "brax", "brax", True),
    Family("Craftax, on the device: craftax:Craftax-Symbolic-v1", r"craftax:.*", "craftax", "craftax", True),
)
DEVICE = "device:"  # before the name of a class of one's own that is a `DeviceEnv`
TOYS = "reverie.envs.device_toy"
# What may be built by whoever names it: these have no other arguments than numbers.
_SAFE = {"reverie.envs.toy:Catch", "reverie.envs.toy:Recall", "reverie.envs.toy:Counting", "reverie.envs.toy:Dummy"}
_SAFE |= {f"{DEVICE}{module}{name}" for name in ("CartPole", "Catch") for module in ("", f"{TOYS}:")}
# By their id, too. The package registers them with Gymnasium when somebody asks for one.
ROBOTICS = Family(
    "Gymnasium Robotics: PointMaze_UMaze-v3, AdroitHandDoor-v1",
    r"(AdroitHand|PointMaze|AntMaze)\w*-v\d+",  # its others do not work with the MuJoCo of today
    "robotics",
    "gymnasium_robotics",
)
# By where Gymnasium's registry says that the class lies. The module may have `wrap(env)`.
GYMNASIUM = (
    Family("Gymnasium Box2D: LunarLander-v3", r"gymnasium\.envs\.box2d\b", "box2d", "Box2D"),
    Family("Gymnasium MuJoCo: HalfCheetah-v5", r"gymnasium\.envs\.mujoco\b", "mujoco", "mujoco"),
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
        return json.dumps({k: x for k, x in vars(self).items() if k != "factory"} | {"kwargs": self.arguments()})

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


def family_of(name: str) -> Family | None:
    """The family that an id is of, if one."""
    return next((family for family in _FAMILIES if re.fullmatch(family.pattern, name)), None)


def own_code(name: str) -> tuple[str, str] | None:
    """The module and the class or function in it of an id that names such; None for one of a family or a registry."""
    module, _, own = name.removeprefix(DEVICE).rpartition(":")
    if name.startswith(DEVICE):
        return module or TOYS, own
    return (module, own) if module and own.replace(".", "").isidentifier() and not family_of(name) else None


def on_device(spec: EnvSpec) -> bool:
    """Whether the name is that of an env on the device."""
    family = family_of(spec.id)
    return spec.factory is None and (spec.id.startswith(DEVICE) or (family is not None and family.device))


def draws(name: str) -> bool:
    """Whether the env of this id draws pictures, as far as its class tells: nothing is built, and True if unsure."""
    if on_device(EnvSpec(name)):
        return False
    if family_of(name):
        return True
    try:
        if own := own_code(name):
            target = code.find(*own)
            tells = inspect.isclass(target) and issubclass(target, gymnasium.Env)
            return not tells or issubclass(target, gymnasium.Wrapper) or can_draw(target)
        return can_draw(gymnasium.spec(name.rpartition(":")[2]).entry_point)
    except (ValueError, ImportError, AttributeError, gymnasium.error.Error):
        return True


def brings(spec: EnvSpec) -> str:
    """The code outside Reverie, a family or Gymnasium's registry that building an env would run, in words; empty
    if nothing. Nothing is imported to tell.

    Arguments from a file reach only constructors that take no names of files or of code: options of a family are
    checked by type, and all others may be numbers and plain words.
    """
    if spec.factory is not None or family_of(spec.id):
        return ""
    module, name = own_code(spec.id) or (spec.id.rpartition(":")[0], "")
    if module and spec.id not in _SAFE:
        return code.wording(module, name, spec.arguments())
    odd = [f"{key}={value!r}" for key, value in spec.arguments().items() if not _is_plain((key, value))]
    return f"hand {', '.join(odd)} to {spec.id}" if odd else ""


def _is_plain(value: Any) -> bool:
    """Whether a JSON value consists of numbers and words, of which none can be a path or name a module's part."""
    if isinstance(value, Mapping):
        return all(_is_plain(item) for item in value.items())
    if isinstance(value, list | tuple):
        return all(_is_plain(item) for item in value)
    return not isinstance(value, str) or re.fullmatch(r"[\w +-]*", value) is not None


def families() -> list[Family]:
    """The kinds of env that can be named, and whether they can be used as things are installed."""
    return [
        Family("Gymnasium classic control: CartPole-v1"),
        *_FAMILIES,
        *GYMNASIUM,
        ROBOTICS,
        Family("your own: module:EnvClass, path/to/file.py:EnvClass"),
        Family("your own, on the device: device:module:EnvClass"),
        Family("toys: reverie.envs.toy:Catch, Recall; on the device: device:CartPole, Catch, Constant"),
    ]


def summary(env: EnvLike, means: Mapping[str, float]) -> dict[str, float]:
    """A family's own score of the mean figures of many episodes, such as Crafter's; often none."""
    family = family_of(env_spec(env).id)
    if not (means and family):
        return {}
    make: Callable[..., dict[str, float]] = getattr(family.module, "summary", lambda means: {})
    return make(means)


def can_draw(entry_point: Any) -> bool:
    """Whether an env class, or the text that leads to it, offers pictures; False if unsure."""
    try:
        entry_point = load_entry_point(entry_point)
    except (ImportError, AttributeError, DependencyNotInstalled):
        return False  # `gymnasium.make` meets the same error and explains it
    metadata = getattr(entry_point, "metadata", None)
    # Of a class of wrappers, what it wraps tells: a property.
    return isinstance(metadata, Mapping) and "rgb_array" in metadata.get("render_modes", ())


def load_entry_point(entry_point: Any) -> Any:
    return gymnasium.envs.registration.load_env_creator(entry_point) if isinstance(entry_point, str) else entry_point
