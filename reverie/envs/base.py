"""The interface of environments for everything above them.

An env speaks in `Step`s. The flags keep apart what Gymnasium's `done` confuses:

    time      t = 0        1        2        3      |  4        5
    obs       o0           o1       o2       o3     |  o4       o5
    reward    0            r1       r2       r3     |  0        r5     reward_t arrived WITH obs_t
    is_first  1            0        0        0      |  1        0
    is_last   0            0        0        1      |  0        0      the episode ends here, for any reason
    is_terminal            0        0        0/1    |  0        0      1: the world ended; 0: only the clock did
    action    a0           a1       a2       (a3)   |  a4       a5     action_t was chosen AFTER seeing obs_t

The action of an `is_last` row has no effect: the next step of that env is a reset.
`is_terminal` without `is_last` marks a loss that counts as an end while the env plays on: a life of several.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np

Kind = Literal["image", "vector", "discrete", "planes", "legal", "player", "target"]
_DTYPES: dict[Kind, str] = {
    "image": "uint8",
    "vector": "float32",
    "discrete": "int32",
    "planes": "uint8",
    "legal": "bool",
    "player": "int8",
    "target": "float32",
}
RULES: frozenset[Kind] = frozenset({"legal", "player"})  # what only a search may look at
UNSEEN: frozenset[Kind] = RULES | {"target"}  # what no network is fed
_SELDOM = ("alternating", "channels_first", "center", "spread")  # not in JSON where they say nothing


@dataclass(frozen=True)
class Space:
    """One array of an observation or of an action.

    Attributes:
      kind: `image` (uint8, `[H, W, C]`, values 0..255), `vector` (float32, any shape),
        `discrete` (int32, any shape, element `i` in `0 .. classes[i] - 1`) or `planes` (uint8 of any
        shape, values 0 and 1: the board of a game, one plane per kind of piece).
        Two kinds are rules of a game rather than something to see, and networks are never fed them:
        `legal` (bool `[A]`, which classes of the one discrete action may be taken now; the classes of one with
        several elements lie side by side) and `player`
        (int8 `[]`, 0 or 1, whose turn it is). And one is told in training only: a `target` (float32, any shape)
        is predicted by a world model that decodes, and never seen.
      shape: the shape of one element, without batch or time axes.
      classes: `discrete` only: the number of classes of every element, flattened.
      low, high: `vector` only: bounds of every element, flattened; may be infinite.
        Vector actions are always in [-1, 1]: the adapter rescales them to the env's own bounds.
      center, spread: `vector` only: networks see every element as `(x - center) / spread`; empty: as it is.
      channels_first: `image` only: the env itself shows it as `[C, H, W]`, and it is turned around on its way in.
      alternating: `player` only: by the rules of the game the players move in strict turns, one move each. Where it is
        not said, a search learns whose turn comes.
    """

    kind: Kind
    shape: tuple[int, ...]
    classes: tuple[int, ...] = ()
    low: tuple[float, ...] = ()
    high: tuple[float, ...] = ()
    alternating: bool = False
    channels_first: bool = False
    center: tuple[float, ...] = ()
    spread: tuple[float, ...] = ()

    @property
    def dtype(self) -> np.dtype:
        return np.dtype(_DTYPES[self.kind])

    @property
    def width(self) -> int:
        """Length of this array as a flat float vector; discrete elements count as one-hots."""
        return sum(self.classes) if self.kind == "discrete" else math.prod(self.shape)

    @property
    def is_picture(self) -> bool:
        """Whether it is looked at as a picture: an image, or the planes of a board (of which the last one is drawn)."""
        return self.kind == "image" or (self.kind == "planes" and len(self.shape) == 3)

    def describe(self) -> str:
        extra = f" classes {self.classes}" if self.kind == "discrete" else ""
        return f"{self.kind} {self.dtype} {list(self.shape)}{extra}"


Spaces = dict[str, Space]
Arrays = dict[str, np.ndarray]


def action_vector(shape: tuple[int, ...]) -> Space:
    """The space of a vector action of this shape: every element in [-1, 1]."""
    size = math.prod(shape)
    return Space("vector", shape, (), (-1.0,) * size, (1.0,) * size)


@dataclass(frozen=True)
class Step:
    """One time step of an env. `obs` holds exactly the keys, shapes and dtypes of `obs_space`.

    `figures` are for the log alone, no agent sees them: name -> value for this episode so far. Those of
    the last step count.
    """

    obs: Arrays
    reward: float
    is_first: bool
    is_last: bool
    is_terminal: bool
    figures: Mapping[str, float] = field(default_factory=dict)


@runtime_checkable
class Env(Protocol):
    """A single environment. Wrappers and adapters speak this, and nothing above `envs` speaks anything else."""

    @property
    def obs_space(self) -> Spaces: ...

    @property
    def act_space(self) -> Spaces: ...

    def reset(self, seed: int | None = None) -> Step:
        """Begins an episode; the same seed and the same actions give the same episode."""

    def step(self, action: Arrays) -> Step:
        """Applies `action` (keys, shapes and dtypes of `act_space`)."""

    def render(self) -> np.ndarray | None:
        """The current picture, uint8 `[H, W, 3]`, or None when the env cannot draw."""

    def close(self) -> None: ...


@runtime_checkable
class DeviceEnv(Protocol):
    """An env as pure functions of JAX arrays, so that thousands are stepped inside one compiled scan.

    All of it is of ONE env, without batch axes; whoever steps many vmaps it. A state is a pytree of arrays whose
    shapes and dtypes never change, and holds everything: what `row` shows is a function of it.

    `step` never begins an episode: after a row with `is_last`, the caller takes `init` instead (`envs.device.advance`).
    """

    obs_space: Spaces
    act_space: Spaces
    players: int  # 2 move in turns, strict or not, and what one wins the other loses: `obs/legal`, `obs/player`

    def init(self, key: Any) -> Any:
        """The state in which an episode begins, drawn with `key`."""

    def step(self, state: Any, action: Mapping[str, Any], key: Any) -> Any:
        """The state after `action` (keys, shapes and dtypes of `act_space`); chance is drawn with `key`."""

    def row(self, state: Any) -> dict[str, Any]:
        """The row of a state: `obs/<key>`, `reward` (float32), `is_first`, `is_last` and `is_terminal` (bool).

        With two players, `reward` is that of the one who acted before; the other gets its negative."""


def to_json(spaces: Spaces) -> dict[str, Any]:
    """Spaces as plain JSON values (infinite bounds as strings), for manifests and for comparing."""
    plain = lambda x: [n if math.isfinite(n) else str(n) for n in x] if isinstance(x, tuple) else x
    return {
        key: {name: plain(x) for name, x in vars(space).items() if x or name not in _SELDOM}
        for key, space in spaces.items()
    }


def from_json(data: dict[str, Any]) -> Spaces:
    """Inverse of `to_json`."""
    native: Any = lambda x: tuple(float(n) if isinstance(n, str) else n for n in x) if isinstance(x, list) else x
    return {key: Space(**{name: native(x) for name, x in values.items()}) for key, values in data.items()}
