"""MiniGrid and BabyAI (Chevalier-Boisvert et al., 2023): grid worlds seen through a window of 7 x 7 cells.

The package shows a cell as three numbers in a uint8 array that only looks like an image, and the mission
as text. Here cells are symbols or real pixels, and the mission, where it says anything, is words.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import re
from dataclasses import dataclass
from typing import Any, Literal, cast

import gymnasium
import minigrid
import numpy as np
from gymnasium import spaces
from minigrid.core.constants import COLOR_TO_IDX, OBJECT_TO_IDX, STATE_TO_IDX
from minigrid.core.mission import MissionSpace

from reverie.envs.options import Info, own_name

# All words of all missions, in a fixed order: an agent's weights depend on it, so only append.
_WORDS = """
, a after and at avoid ball behind blue box door end fetch find from front get go goal green grey hallway in key lava
left matching must near next object of on open opening pick purple put reach red right room rooms square the then to
traverse unlock up use yellow you your
"""
WORDS = _WORDS.split()
LENGTH = 48  # words of a mission; the longest that BabyAI builds has about 40
_NUMBER = {word: i for i, word in enumerate(WORDS, 1)}  # 0: no word


@dataclass(frozen=True)
class Options:
    """Keyword arguments of `MiniGrid-...` and `BabyAI-...` ids."""

    view: Literal["symbols", "rgb"] = "symbols"
    """View of the cells in front of the agent: of each its object, colour and state as classes
    (fast), or a picture of them."""
    size: int = 64
    """Pictures are [size, size, 3]: whole cells, and a black rest below and to the right."""
    actions: Literal["all", "move"] = "all"
    """All 7, or the 3 that move: left, right, forward."""
    mission: Literal["auto", "words", "none"] = "auto"
    """The mission as numbers of words, or left out. auto: words where it differs between episodes."""

    def __post_init__(self) -> None:
        if self.size < 7:
            raise ValueError(f"option size is {self.size}, expected 7 or more, a pixel a cell")


def make(name: str, options: Options) -> Grid:
    """The env of an id such as `MiniGrid-Empty-8x8-v0`; raises ValueError if there is none."""
    known = [key for key in gymnasium.registry if key.startswith(("MiniGrid-", "BabyAI-"))]
    name = own_name(name.removeprefix(f"{minigrid.__name__}:"), "", known, example="MiniGrid-Empty-8x8-v0")
    return Grid(gymnasium.make(name, render_mode="rgb_array", disable_env_checker=True), options)


def varies(space: MissionSpace) -> bool:
    """Whether there is more than one mission: one without blanks to fill in is the same text in every episode, but
    BabyAI has spaces of its own."""
    return type(space) is not MissionSpace or bool(space.ordered_placeholders)


def is_mission(space: MissionSpace) -> bool:
    """Whether missions differ and consist of words that are known here."""
    if type(space) is not MissionSpace:
        return True
    blanks = space.ordered_placeholders or []
    try:
        for phrase_parts in itertools.zip_longest(*blanks):
            tokens(space.mission_func(*(word or words[0] for word, words in zip(phrase_parts, blanks, strict=True))))
    except ValueError:
        return False
    return varies(space)


def tokens(mission: str) -> np.ndarray:
    """The words of a mission as numbers from 1 in `WORDS`, int64 `[LENGTH]`, filled up with 0.

    Raises ValueError for a word that is not in `WORDS`, or more than `LENGTH` of them.
    """
    words = re.findall(r"\w+|,", mission.lower())
    unknown = [word for word in words if word not in _NUMBER]
    if unknown or len(words) > LENGTH:
        raise ValueError(
            f"mission {mission!r} has {len(words)} words, unknown of them: {unknown}; expected {LENGTH} or fewer "
            "known ones"
        )
    return np.pad([_NUMBER[word] for word in words], (0, LENGTH - len(words)))


class Grid(gymnasium.Wrapper):
    """One env.

    Observation: `cells`, classes `[7, 7, 3]` (object, colour, state), or `image`, uint8
    `[size, size, 3]`; `direction`, 4 classes; `mission`, classes `[LENGTH]`, see `tokens`.

    Args:
      env: of the package, without wrappers that change its observation.
    """

    def __init__(self, env: gymnasium.Env, options: Options = Options()) -> None:
        super().__init__(env)
        self._options = options
        self._grid = cast(Any, env.unwrapped)  # has what gymnasium.Env does not promise
        mission_space = self._grid.observation_space["mission"]
        self._mission = options.mission == "words" or (options.mission == "auto" and varies(mission_space))
        self._cells = int(self._grid.agent_view_size)
        parts: dict[str, gymnasium.Space] = {}
        if options.view == "rgb":
            parts["image"] = spaces.Box(0, 255, (options.size, options.size, 3), np.uint8)
        else:
            classes = [len(OBJECT_TO_IDX), len(COLOR_TO_IDX), len(STATE_TO_IDX)]
            parts["cells"] = spaces.MultiDiscrete(np.tile(classes, (self._cells, self._cells, 1)))
        parts["direction"] = spaces.Discrete(4)
        if self._mission:
            parts["mission"] = spaces.MultiDiscrete([len(WORDS) + 1] * LENGTH)
        self.observation_space = spaces.Dict(parts)
        self.action_space = spaces.Discrete(3 if options.actions == "move" else int(self._grid.action_space.n))

    def reset(self, *, seed: int | None = None, options: Info | None = None) -> tuple[dict[str, Any], Info]:
        with contextlib.redirect_stdout(io.StringIO()):  # BabyAI prints every layout it rejects
            obs, info = self.env.reset(seed=seed, options=options)
        return self._observation(obs), info

    def step(self, action: int | np.integer) -> tuple[dict[str, Any], float, bool, bool, Info]:
        obs, reward, terminated, truncated, info = self.env.step(int(action))
        return self._observation(obs), float(reward), terminated, truncated, info

    def _observation(self, obs: dict[str, Any]) -> dict[str, Any]:
        seen: dict[str, Any] = {"direction": int(obs["direction"])}
        if self._options.view == "rgb":
            seen["image"] = self._picture()
        else:
            seen["cells"] = obs["image"].astype(np.int64)
        if self._mission:
            try:
                seen["mission"] = tokens(obs["mission"])
            except ValueError as error:
                raise ValueError(f'{error}. Type --env-kwargs \'{{"mission": "none"}}\' to leave it out') from None
        return seen

    def _picture(self) -> np.ndarray:
        size, tile = self._options.size, self._options.size // self._cells
        cells = self._grid.get_frame(tile_size=tile, agent_pov=True)
        image = np.zeros((size, size, 3), np.uint8)
        image[: cells.shape[0], : cells.shape[1]] = cells
        return image
