"""Atari 2600 games through ale-py, with the protocol of the published agents.

One step of the agent is `repeat` frames of the game under the same action:

    frame      1    2    3    4            sticky: each frame may keep the action of the one before
    reward     r1 + r2 + r3 + r4           summed
    image                max(3, 4)         per pixel: what flickers is drawn in every other frame only

ale-py's own frame skip and sticky actions are off: we do both here, so nothing is done twice, and the
draws come from the episode's seed. (Machado et al., 2018, "Revisiting the Arcade Learning Environment":
sticky actions, 0.25 per frame, full episodes, all 18 actions.)

A game always starts in the same state, whatever ale-py is seeded with; what differs between episodes are
the no-ops at the start and the sticky actions. So the state after one reset is kept and put back: 0.06 ms
in place of the 120 ms that loading the ROM again takes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import ale_py
import gymnasium
import numpy as np
from ale_py import roms
from gymnasium import spaces
from PIL import Image

from reverie.envs.options import Info, own_name
from reverie.fields import Count, Number, Steps


@dataclass(frozen=True)
class Options:
    """Keyword arguments of `ALE/...` ids."""

    size: Count = 64
    """Images are [size, size], averaged over boxes of the screen of 210 x 160."""
    gray: bool = False
    """One channel instead of three."""
    repeat: Count = 4
    """Frames of one step. The image is the maximum of the last two."""
    sticky: float = 0.25
    """Probability, per frame, that the game goes on with the action of the frame before."""
    noops: Number = 30
    """An episode begins with 0 to this many frames without action."""
    actions: Literal["needed", "all"] = "needed"
    """The actions that have an effect in this game, or all 18."""
    lives: Literal["unused", "discount", "reset"] = "unused"
    """A lost life means: nothing; the world ended for the critic, but the game goes on; the episode ended."""
    length: Steps = 108_000
    """Frames after which an episode is truncated: half an hour of play. 0: never."""
    mode: int | None = None
    """Mode of the game, for those that have several. null: its default."""
    difficulty: int | None = None
    """Difficulty of the game, for those that have several. null: its default."""
    deterministic: bool = False
    """No sticky actions and 4 frames a step, whatever `sticky` and `repeat` say. Only the no-ops at the
    start still depend on the seed."""

    def __post_init__(self) -> None:
        if not 0 <= self.sticky < 1:
            raise ValueError(f"option sticky is {self.sticky}, expected 0 or more and less than 1, as 0.25")


def make(name: str, options: Options) -> Atari:
    """The game of a Gymnasium id such as `ALE/Pong-v5`; raises ValueError if there is none."""
    known = {key: spec for key, spec in gymnasium.registry.items() if key.startswith("ALE/")}
    name = own_name(name.removeprefix("ale_py:"), "", known, example="ALE/Pong-v5", kind="game")
    return Atari(known[name].kwargs["game"], options)


class Atari(gymnasium.Env):
    """One game.

    Observation: uint8 `[size, size, 3]`, or 1 channel. Actions: discrete. `info["lives"]` is an int,
    and `info["is_terminal"]` marks a lost life where the episode goes on (see `GymEnv`).

    Args:
      game: the name of its ROM, such as `ms_pacman`.

    Raises:
      ValueError: the game has no such mode or difficulty.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 15}  # noqa: RUF012 (Gymnasium's own form)
    render_mode = "rgb_array"

    def __init__(self, game: str, options: Options = Options()) -> None:
        self._repeat = 4 if options.deterministic else options.repeat
        self._sticky = 0.0 if options.deterministic else options.sticky
        self._options = options
        ale_py.ALEInterface.setLoggerMode(ale_py.LoggerMode.Error)
        self.ale = ale = ale_py.ALEInterface()
        ale.setFloat("repeat_action_probability", 0.0)
        ale.setInt("random_seed", 0)
        rom = roms.get_rom_path(game)
        assert rom is not None, game
        ale.loadROM(rom)
        for what, value, known, choose in (
            ("mode", options.mode, ale.getAvailableModes(), ale.setMode),
            ("difficulty", options.difficulty, ale.getAvailableDifficulties(), ale.setDifficulty),
        ):
            if value is not None and value not in known:
                raise ValueError(f"option {what} is {value}, but {game} has {known}")
            if value is not None:
                choose(value)
        ale.reset_game()
        self._start = ale.cloneSystemState()
        self.actions = ale.getLegalActionSet() if options.actions == "all" else ale.getMinimalActionSet()
        channels = 1 if options.gray else 3
        self.action_space = spaces.Discrete(len(self.actions))
        self.observation_space = spaces.Box(0, 255, (options.size, options.size, channels), np.uint8)
        self._last_action = ale_py.Action.NOOP  # in the last frame
        self._lives = 0

    def reset(self, *, seed: int | None = None, options: Info | None = None) -> tuple[np.ndarray, Info]:
        super().reset(seed=seed)
        self.ale.restoreSystemState(self._start)
        for _ in range(int(self.np_random.integers(self._options.noops, endpoint=True))):
            self.ale.act(ale_py.Action.NOOP)
            if self.ale.game_over():
                self.ale.restoreSystemState(self._start)
        self._last_action = ale_py.Action.NOOP
        self._lives = self.ale.lives()
        return self._picture([self._screen()]), {"lives": self._lives}

    def step(self, action: int | np.integer) -> tuple[np.ndarray, float, bool, bool, Info]:
        ale, chosen, options = self.ale, self.actions[action], self._options
        kept = self.np_random.random(self._repeat) < self._sticky if self._sticky else np.zeros(self._repeat, bool)
        reward, over, screens = 0.0, False, []
        for frame in range(self._repeat):
            self._last_action = self._last_action if kept[frame] else chosen
            reward += ale.act(self._last_action)
            over = ale.game_over() or (options.lives == "reset" and ale.lives() < self._lives)
            if over or frame >= self._repeat - 2:
                screens.append(self._screen())
            if over:
                break
        lost_life, self._lives = ale.lives() < self._lives, ale.lives()
        info = {"lives": self._lives}
        if options.lives == "discount" and lost_life:
            info["is_terminal"] = True
        late = 0 < options.length <= ale.getEpisodeFrameNumber()
        return self._picture(screens), reward, over, late and not over, info

    def render(self) -> np.ndarray:
        return self.ale.getScreenRGB()

    def _screen(self) -> np.ndarray:
        return self.ale.getScreenGrayscale() if self._options.gray else self.ale.getScreenRGB()

    def _picture(self, screens: list[np.ndarray]) -> np.ndarray:
        size, highest = self._options.size, np.maximum(screens[0], screens[-1])
        small = np.asarray(Image.fromarray(highest).resize((size, size), Image.Resampling.BOX))
        return small.reshape(self.observation_space.shape)
