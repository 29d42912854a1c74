"""Gymnasium's Box2D envs, made to repeat themselves."""

from __future__ import annotations

from typing import Any

import Box2D
import gymnasium


def wrap(env: gymnasium.Env) -> gymnasium.Env:
    """What Gymnasium makes of an id, in a fresh world for every episode."""
    return FreshWorld(env)


class FreshWorld(gymnasium.Wrapper):
    """Every episode in a physical world of its own.

    Gymnasium's BipedalWalker and CarRacing build the next episode into the world of the last one. The
    order in which the solver treats contacts is a leftover of what was there before, and with it the last
    digits of every result: the same seed gives another episode.
    """

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        env: Any = self.unwrapped
        env._destroy()
        env.world = Box2D.b2World(gravity=env.world.gravity)
        return self.env.reset(seed=seed, options=options)
