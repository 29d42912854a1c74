"""Action masks become `legal`, in whichever way an env tells them.

There are three: a leaf `action_mask` of a Dict observation (as in PettingZoo), `info["action_mask"]` of reset and step,
or a method `action_masks()` (as in sb3-contrib). It is bool or 0 and 1, one flag for each class of the one discrete
action; those of a MultiDiscrete side by side.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

from reverie.envs.base import Spaces
from reverie.envs.values import Malformed

MASK, METHOD = "action_mask", "action_masks"  # as Gymnasium and PettingZoo, and as sb3-contrib call it
# Where an env tells it, in words.
LEAF, INFO, METHOD_CALL = f"obs/{MASK}", f'info["{MASK}"]', f"{METHOD}()"


def mask_width(act_space: Spaces, source: str = MASK) -> int:
    """Flags of a mask of these actions; raises ValueError unless they are one discrete choice, or several in one."""
    if len(act_space) != 1 or any(space.kind != "discrete" for space in act_space.values()):
        kinds = {key: space.describe() for key, space in act_space.items()}
        raise ValueError(
            f"{source} masks one Discrete or MultiDiscrete action, and the actions are {kinds}; make one MultiDiscrete "
            "space of them"
        )
    (space,) = act_space.values()
    return space.width


def without_mask(space: gymnasium.Space) -> gymnasium.Space:
    """A Dict observation space without its `action_mask`; a rest of one leaf called `observation` keeps its name."""
    assert isinstance(space, spaces.Dict), space
    return spaces.Dict({key: sub for key, sub in space.spaces.items() if key != MASK})


def apart(raw: Any) -> tuple[Any, Any]:
    """A Dict observation without its mask, and that; of anything else, and for what lacks it, None."""
    if not isinstance(raw, Mapping):
        return raw, None
    return {key: value for key, value in raw.items() if key != MASK}, raw.get(MASK)


def legal_of(mask: Any, act_space: Spaces, source: str, last: bool) -> np.ndarray:
    """A mask as bool `[A]`. Where an episode has ended nothing is taken any more: without a mask, all is legal.

    Raises Malformed for one that is missing, or of another length or dtype, or that leaves no choice.
    """
    (space,) = act_space.values()
    width = space.width
    if last and mask is None:
        return np.ones(width, bool)
    expected = f"expected bool [{width}] (or int8 of 0 and 1), a flag for each class of the action"
    if mask is None:
        raise Malformed(f"{source} is missing, {expected}, with every reset and step")
    array = np.asarray(mask)
    if array.shape != (width,):
        raise Malformed(f"{source} is {array.dtype} {list(array.shape)}, {expected}")
    if array.dtype.kind not in "biu" or (array.dtype != bool and ((array < 0) | (array > 1)).any()):
        raise Malformed(f"{source} is {array.dtype} {array.tolist()}, {expected}")
    array = array.astype(bool)
    parts = np.split(array, np.cumsum(space.classes)[:-1])
    if not all(part.any() for part in parts):
        if last:
            return np.ones(width, bool)
        raise Malformed(f"{source} allows no action, expected one at least: end the episode where nothing can be done")
    return array
