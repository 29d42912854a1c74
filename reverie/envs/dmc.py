"""The DeepMind Control Suite (Tassa et al., 2018): `dmc:DOMAIN_TASK`.

Episodes last 1000 steps of the control and end by the clock (`discount` 1 on the last step): a
truncation. The few tasks that end earlier (`discount` 0) terminate.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

import gymnasium
import numpy as np
from gymnasium import spaces

from reverie.envs import mujoco  # before anything that imports MuJoCo
from reverie.envs.options import Info, own_name
from reverie.fields import Count, Within

# isort: split
from dm_control import suite

TASKS = {f"{domain}_{task}": (domain, task) for domain, task in suite.ALL_TASKS}
# What papers look through where camera 0 shows too little: the one that follows the animal.
_CAMERAS = {"quadruped": 2}
_FILM = 256  # pixels of a frame of a video


@dataclass(frozen=True)
class Options:
    """Keyword arguments of `dmc:...` ids."""

    pixels: bool = False
    """Observe an image in place of the vectors."""
    size: Count = 64
    """Images are [size, size, 3]."""
    camera: Annotated[int, Within(-1)] = -1
    """Which camera. -1: 2 for the quadruped, 0 for all others."""
    fast_render: bool = False
    """Draw without shadows, reflections and smoothed edges: several times faster without a GPU, but other
    pixels than those of the papers. Say so with a result."""


def make(name: str, options: Options) -> Control:
    """The task of an id such as `dmc:walker_walk`; raises ValueError if there is none."""
    task = own_name(name, "dmc:", TASKS, example="walker_walk", kind="task")
    if options.pixels and not mujoco.can_draw():
        raise ValueError(mujoco.HELP)
    return Control(*TASKS[task], options)


class Control(gymnasium.Env):
    """One task.

    Observation: float32 vectors by their name, or with `pixels` one image, uint8 `[size, size, 3]`.
    Action: a vector with the bounds of the task.

    Args:
      domain, task: as dm_control names them.

    Raises:
      ValueError: the task has no such camera.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 40}  # noqa: RUF012 (Gymnasium's own form)

    def __init__(self, domain: str, task: str, options: Options = Options()) -> None:
        # Some tasks draw their model: always the same one, so that an episode depends on its seed alone.
        self._task = env = suite.load(domain, task, task_kwargs={"random": 0})
        self.physics: Any = env.physics  # dm_control's own
        self._options = options
        self._camera = options.camera if options.camera >= 0 else _CAMERAS.get(domain, 0)
        if self._camera >= env.physics.model.ncam:
            raise ValueError(f"option camera is {options.camera}, but {domain} has {env.physics.model.ncam}")
        self._flags: dict[str, bool] = {}
        if options.fast_render:
            env.physics.model.vis.quality.offsamples = 0  # read when the first frame is drawn
            self._flags = {"shadow": False, "reflection": False}
        self.render_mode = "rgb_array" if mujoco.can_draw() else None
        bounds = env.action_spec()
        low, high = (bound.astype(np.float32) for bound in (bounds.minimum, bounds.maximum))
        self.action_space = spaces.Box(low, high, bounds.shape, np.float32)
        image = spaces.Box(0, 255, (options.size, options.size, 3), np.uint8)
        vectors = spaces.Dict(
            {key: spaces.Box(-np.inf, np.inf, x.shape, np.float32) for key, x in env.observation_spec().items()}
        )
        self.observation_space: gymnasium.Space = image if options.pixels else vectors

    def reset(self, *, seed: int | None = None, options: Info | None = None) -> tuple[Any, Info]:
        super().reset(seed=seed)
        self._task.task.random.seed(int(self.np_random.integers(2**32)))
        return self._observe(self._task.reset()), {}

    def step(self, action: np.ndarray) -> tuple[Any, float, bool, bool, Info]:
        moment = self._task.step(action)
        ended = moment.last() and moment.discount == 0
        return self._observe(moment), float(moment.reward), ended, moment.last() and not ended, {}

    def render(self) -> np.ndarray | None:
        return self._draw(_FILM) if self.render_mode else None

    def close(self) -> None:
        self._task.close()

    def _observe(self, moment: Any) -> Any:
        if self._options.pixels:
            return self._draw(self._options.size)
        return {key: np.asarray(value, np.float32) for key, value in moment.observation.items()}

    def _draw(self, size: int) -> np.ndarray:
        return self.physics.render(size, size, camera_id=self._camera, render_flag_overrides=self._flags)
