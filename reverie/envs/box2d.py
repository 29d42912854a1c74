"""Gymnasium's Box2D envs, made to repeat themselves, with observation spaces that hold what they return."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import Box2D
import gymnasium
import numpy as np


class FreshWorld(gymnasium.Wrapper):
    """Every episode in a physical world of its own.

    Gymnasium's BipedalWalker and CarRacing build the next episode into the world of the last one. The
    order in which the solver treats contacts is a leftover of what was there before, and with it the last
    digits of every result: the same seed gives another episode.

    Their vectors have no bounds here. Those that LunarLander declares are estimates: a lander that has turned once
    around, or flies above the picture, is out of them, and that is no fault of the episode.
    """

    def __init__(self, env: gymnasium.Env) -> None:
        super().__init__(env)
        space = env.observation_space
        if isinstance(space, gymnasium.spaces.Box) and space.dtype == np.float32:
            self.observation_space = gymnasium.spaces.Box(-np.inf, np.inf, space.shape, np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        env: Any = self.unwrapped
        env._destroy()
        env.world = Box2D.b2World(gravity=env.world.gravity)
        return self.env.reset(seed=seed, options=options)


wrap = FreshWorld  # around every Box2D env of Gymnasium


def drive(obs: Mapping[str, np.ndarray], rng: np.random.Generator) -> np.ndarray:
    """A driver for CarRacing-v3 by hand, for `--collector`: to the middle of the road ahead with much noise, so that
    what it leaves behind shows mistakes as well and ways out of them.

    Gas and brake know nothing of the speed. Of a driver who lets go of the gas when the car is fast a model learns that
    no gas makes it fast, and a policy that no real car moves by. They have their whole range, and now and then it is
    full gas or the wheel turned all the way, which sends the car off the road and into a spin: a policy goes to the
    ends, and of what nobody has ever done a model dreams what pleases.

    Args:
      obs: `image`, uint8 `[64, 64, 3]`.

    Returns:
      float32 [3], steering, gas and brake, in [-1, 1].
    """
    if rng.random() < 0.25:
        return rng.uniform(-1, 1, 3).astype(np.float32)
    image = obs["image"].astype(np.int32)
    road = image[..., 1] - image[..., 0] < 40  # grass is green

    def middle(rows: slice) -> float:
        """Place of the road in these rows, in pixels right of the car."""
        columns = np.nonzero(road[rows])[1]
        return float(columns.mean()) - 31.5 if columns.size else 0.0

    steering = 0.06 * middle(slice(24, 30)) + 0.03 * middle(slice(36, 40))
    brake = rng.uniform(-1, 1) if rng.random() < 0.2 else -1.0
    action = np.array([steering + 0.5 * rng.normal(), rng.uniform(-1, 1), brake])
    if rng.random() < 0.3:
        action[1:] = 1.0, -1.0
    if rng.random() < 0.05:
        action[0] = rng.choice([-1.0, 1.0])
    return action.clip(-1, 1).astype(np.float32)
