"""Toys that live on the device: the tasks of the host, step for step, as `DeviceEnv`s."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from reverie.envs.base import Space, Spaces


class CartPole:
    """Gymnasium's `CartPole-v1` (Barto, Sutton and Anderson, 1983) in float32, truncated after `length` steps.

    Observation: `obs`, float32 [4]: position, velocity, angle, angular velocity. Actions: push left, push right.
    Reward 1 a step.
    """

    players = 1
    obs_space: Spaces = {"obs": Space("vector", (4,))}  # noqa: RUF012 (a constant of the protocol)
    act_space: Spaces = {"action": Space("discrete", (), classes=(2,))}  # noqa: RUF012

    def __init__(self, length: int = 500) -> None:
        if length < 1:
            raise ValueError(f"length is {length}, expected 1 or more")
        self._length = length

    def init(self, key: Any) -> PoleState:
        return PoleState(jax.random.uniform(key, (4,), minval=-0.05, maxval=0.05), jnp.int32(0))

    def step(self, state: PoleState, action: Any, key: Any) -> PoleState:
        _, speed, angle, spin = state.body
        force = jnp.where(action["action"] == 1, 10.0, -10.0)
        cos, sin = jnp.cos(angle), jnp.sin(angle)
        # A cart of 1 kg, a pole of 0.1 kg and 2 * 0.5 m; Euler steps of 0.02 s.
        push = (force + 0.05 * spin**2 * sin) / 1.1
        spinning = (9.8 * sin - cos * push) / (0.5 * (4 / 3 - 0.1 * cos**2 / 1.1))
        speeding = push - 0.05 * spinning * cos / 1.1
        rates = jnp.stack([speed, speeding, spin, spinning])
        return PoleState(state.body + 0.02 * rates, state.taken + 1)

    def row(self, state: PoleState) -> dict[str, Any]:
        fallen = (jnp.abs(state.body[0]) > 2.4) | (jnp.abs(state.body[2]) > 12 * 2 * math.pi / 360)
        late = state.taken >= self._length
        flags = {"is_first": state.taken == 0, "is_last": fallen | late, "is_terminal": fallen}
        return {"obs/obs": state.body, "reward": (state.taken > 0).astype(jnp.float32), **flags}


class PoleState(NamedTuple):
    body: Any  # float32 [4], what is observed
    taken: Any  # int32, steps of this episode


class Catch:
    """`reverie.envs.toy:Catch` on the device, with the cells in place of pixels.

    Observation: `cells`, planes [cells, cells, 2]: where the paddle is, where the ball is. Actions: left, stay, right.
    """

    players = 1
    act_space: Spaces = {"action": Space("discrete", (), classes=(3,))}  # noqa: RUF012

    def __init__(self, cells: int = 8) -> None:
        if cells < 2:
            raise ValueError(f"cells is {cells}, expected 2 or more")
        self.obs_space: Spaces = {"cells": Space("planes", (cells, cells, 2))}
        self._cells = cells

    def init(self, key: Any) -> CatchState:
        return CatchState(jnp.int32(self._cells // 2), jnp.int32(0), jax.random.randint(key, (), 0, self._cells))

    def step(self, state: CatchState, action: Any, key: Any) -> CatchState:
        paddle = jnp.clip(state.paddle + action["action"] - 1, 0, self._cells - 1)
        return CatchState(paddle, state.height + 1, state.column)

    def row(self, state: CatchState) -> dict[str, Any]:
        over = state.height == self._cells - 1
        cells = jnp.zeros(self.obs_space["cells"].shape, jnp.uint8)
        cells = cells.at[-1, state.paddle, 0].set(1).at[state.height, state.column, 1].set(1)
        caught = jnp.where(state.column == state.paddle, 1.0, -1.0)
        flags = {"is_first": state.height == 0, "is_last": over, "is_terminal": over}
        return {"obs/cells": cells, "reward": jnp.where(over, caught, 0.0), **flags}


class CatchState(NamedTuple):
    paddle: Any  # int32, its column
    height: Any  # int32, the ball's row, from the top
    column: Any  # int32, of the ball


class Constant:
    """Every step looks the same and pays 1, whatever is done, until the episode is truncated after `length` steps.

    So the value of every state is 1 / (1 - discount), and who learns anything else has a fault in its targets.
    Observation: `obs`, float32 [1], always 1. Actions: two classes.
    """

    players = 1
    obs_space: Spaces = {"obs": Space("vector", (1,))}  # noqa: RUF012
    act_space: Spaces = {"action": Space("discrete", (), classes=(2,))}  # noqa: RUF012

    def __init__(self, length: int = 10) -> None:
        if length < 1:
            raise ValueError(f"length is {length}, expected 1 or more")
        self._length = length

    def init(self, key: Any) -> Any:
        return jnp.int32(0)

    def step(self, state: Any, action: Any, key: Any) -> Any:
        return state + 1

    def row(self, state: Any) -> dict[str, Any]:
        flags = {"is_first": state == 0, "is_last": state >= self._length, "is_terminal": jnp.zeros((), bool)}
        return {"obs/obs": jnp.ones(1), "reward": (state > 0).astype(jnp.float32), **flags}
