"""Which values an env may return. One gate at the border, inline and in processes alike."""

from __future__ import annotations

from typing import Any

import numpy as np

from reverie.envs.base import Arrays, Space, Spaces, Step, action_vector

TOLERANCE = 1e-4  # of max(1, |bound|): float32 rounding is forgiven, a wrong bound is not
_MAX = float(np.finfo(np.float32).max)


class Malformed(ValueError):
    """An env returned something that its own spaces (or Gymnasium's interface) do not allow."""


class Gate:
    """Lets through the steps that obey `obs_space`, so that nothing else ever reaches the replay.

    A vector must be finite and inside its bounds (within `TOLERANCE`), a discrete value inside its
    classes; keys, shapes and dtypes must be those of the space; the reward a finite float32.
    """

    def __init__(self, obs_space: Spaces) -> None:
        self._space = obs_space
        # Infinite bounds become the largest finite float: then one pair of comparisons rejects
        # NaN, infinity and out-of-bounds together.
        self._bounds = {key: _bounds(space) for key, space in obs_space.items()}

    def check(self, step: Step) -> None:
        """Raises `Malformed`, naming every fault of this step."""
        if found := self.problems(step):
            raise Malformed("; ".join(found))

    def problems(self, step: Step) -> list[str]:
        """Every fault of this step, as `what was given, expected ...`; empty if it is sound."""
        missing, foreign = self._space.keys() - step.obs.keys(), step.obs.keys() - self._space.keys()
        found = [
            f"obs/{x}: missing, expected {self._space[x].describe()} as the space declares" for x in sorted(missing)
        ]
        found += [f"obs/{x}: not in the space, expected only {sorted(self._space)}" for x in sorted(foreign)]
        for key, space in self._space.items():
            if key in step.obs and (fault := _fault(step.obs[key], space, self._bounds[key])):
                found.append(f"obs/{key}: {fault}")
        if not (-_MAX <= step.reward <= _MAX):
            found.append(f"reward: {step.reward}, expected a finite float32")
        return found


def sample(spaces: Spaces, rng: np.random.Generator) -> Arrays:
    """One uniformly random element of `spaces`; vectors are drawn from [-1, 1] as actions are."""
    out: Arrays = {}
    for key, space in spaces.items():
        if space.kind == "discrete":
            flat = rng.integers(0, np.asarray(space.classes))
            out[key] = flat.astype(np.int32).reshape(space.shape)
        elif space.kind == "image":
            out[key] = rng.integers(0, 256, space.shape, np.uint8)
        elif space.kind not in ("vector", "target"):
            out[key] = np.asarray(rng.integers(0, 2, space.shape), space.dtype)
        else:
            out[key] = np.asarray(rng.uniform(-1, 1, space.shape), np.float32)
    return out


def problem(action: np.ndarray, space: Space) -> str | None:
    """The fault of an action of this space, as `what was given, expected ...`; vectors are to be in [-1, 1]."""
    space = action_vector(space.shape) if space.kind == "vector" else space
    fault = _fault(action, space, _bounds(space))
    return fault.partition(";")[0] if fault else None  # what follows is advice on observations


def legally(action: Arrays, legal: np.ndarray | None, act_space: Spaces, rng: np.random.Generator) -> Arrays:
    """`action`, but a random legal class in the place of each that `legal` (bool `[width]`) forbids. What is no mask of
    this action is not looked at."""
    if legal is None or len(act_space) != 1:
        return action
    ((key, space),) = act_space.items()
    if legal.dtype != bool or legal.shape != (space.width,):
        return action
    value = action[key].reshape(-1).copy()
    for i, part in enumerate(np.split(legal, np.cumsum(space.classes)[:-1])):
        if part.any() and not part[value[i]]:
            value[i] = rng.choice(np.flatnonzero(part))
    return {key: value.reshape(space.shape)}


def may_act(action: Arrays, legal: np.ndarray, act_space: Spaces) -> bool:
    """Whether `legal` (bool `[width]`) allows every class of the one discrete action."""
    ((key, space),) = act_space.items()
    starts = np.cumsum(space.classes) - space.classes
    return bool(legal[starts + action[key].reshape(-1)].all())


def _bounds(space: Space) -> tuple[np.ndarray, np.ndarray] | None:
    if space.kind in ("image", "legal"):
        return None  # every uint8 is a pixel, every bool a flag
    if space.kind in ("planes", "player"):
        return np.zeros(space.shape, space.dtype), np.ones(space.shape, space.dtype)
    if space.kind == "discrete":
        high = (np.asarray(space.classes, np.int32) - 1).reshape(space.shape)
        return np.zeros_like(high), high
    low = np.asarray(space.low or [-np.inf], np.float64)
    high = np.asarray(space.high or [np.inf], np.float64)
    low = np.maximum(low - TOLERANCE * np.maximum(1, np.abs(low)), -_MAX)
    high = np.minimum(high + TOLERANCE * np.maximum(1, np.abs(high)), _MAX)
    shape = space.shape if space.low else ()
    return low.astype(np.float32).reshape(shape), high.astype(np.float32).reshape(shape)


def _fault(value: Any, space: Space, bounds: tuple[np.ndarray, np.ndarray] | None) -> str | None:
    if not isinstance(value, np.ndarray):
        return f"a {type(value).__name__}, expected a numpy array: {space.describe()}"
    if value.shape != space.shape or value.dtype != space.dtype:
        return f"{value.dtype} {list(value.shape)}, expected {space.describe()}"
    if space.kind == "legal" and not value.any():
        return "no action is legal, expected one at least; where an episode has ended, all of them"
    if bounds is None or ((value >= bounds[0]).all() and (value <= bounds[1]).all()):
        return None
    flat = value.reshape(-1)
    if not np.isfinite(flat).all():
        at = int(np.argmin(np.isfinite(flat)))
        return f"element {at} is {flat[at]}, expected finite values only"
    low, high = (np.broadcast_to(bound, space.shape).reshape(-1) for bound in bounds)
    at = int(np.argmax((flat < low) | (flat > high)))
    return (
        f"element {at} is {flat[at]}, out of bounds: expected {low[at]:.6g} to {high[at]:.6g}; "
        "widen the space or clip the observation"
    )
