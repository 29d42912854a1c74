"""The open episode of each env, kept so that it can be acted again and envs come back to where they are."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from reverie.envs.base import Arrays


@dataclass
class Tape:
    """The open episode of one env."""

    episode: int = -1
    ended: bool = True  # the next `send` is a reset
    in_flight: bool = False  # it was told what to do, and its answer is not taken yet
    actions: list[bytes] = field(default_factory=list)  # of the episode
    crcs: list[int] = field(default_factory=list)  # of the rows received: one more than actions, or as many
    steps: int = 0  # rows ever received from this env
    failed_at: deque[int] = field(default_factory=deque)  # `steps` at the failures in the window

    def begin(self) -> None:
        """The next episode is asked for."""
        self.clear()
        self.episode += 1
        self.ended, self.in_flight = False, True

    def act(self, action: bytes) -> None:
        """One more step is asked for."""
        self.actions.append(action)
        self.in_flight = True

    def clear(self) -> None:
        """Nothing is to be acted again."""
        self.actions.clear()
        self.crcs.clear()

    def count_failure(self, window: int) -> int:
        """Notes a failure; returns how many there were within so many steps."""
        self.failed_at.append(self.steps)
        while self.failed_at[0] <= self.steps - window:
            self.failed_at.popleft()
        return len(self.failed_at)


def to_arrays(tapes: Sequence[Tape], width: int) -> Arrays:
    """All tapes, with actions of `width` bytes; but for the failures."""
    actions = b"".join(b"".join(tape.actions) for tape in tapes)
    return {
        "episode": np.array([tape.episode for tape in tapes], np.int64),
        "ended": np.array([tape.ended for tape in tapes], bool),
        "in_flight": np.array([tape.in_flight for tape in tapes], bool),
        "steps": np.array([tape.steps for tape in tapes], np.int64),
        "actions": np.frombuffer(actions, np.uint8).reshape(-1, width).copy(),
        "action_counts": np.array([len(tape.actions) for tape in tapes], np.int64),
        "crcs": np.array([crc for tape in tapes for crc in tape.crcs], np.uint32),
        "crc_counts": np.array([len(tape.crcs) for tape in tapes], np.int64),
    }


def split(saved: Arrays, own: Arrays) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """`(actions, crcs)` of the open episode of each env, `[n, width]` and `[n]`, out of arrays that were saved.

    Args:
      own: such arrays as this session would save.

    Raises:
      ValueError: they are of other envs, or cannot be.
    """
    (num, width), given = (len(own["episode"]), own["actions"].shape[1]), saved["actions"]
    if saved["episode"].shape != (num,) or given.shape[1:] != (width,):
        raise ValueError(
            f"the state is of {len(saved['episode'])} envs with actions of {given.shape[-1]} bytes, expected {num} "
            f"with {width}"
        )
    for key, like in own.items():
        array, skip = saved[key], int(key in ("actions", "crcs"))  # these are as long as the open episodes
        if array.dtype != like.dtype or array.shape[skip:] != like.shape[skip:] or array.ndim != like.ndim:
            raise ValueError(f"{key} is {array.dtype} {list(array.shape)}, expected {like.dtype} {list(like.shape)}")
    for key, counts in (("actions", saved["action_counts"]), ("crcs", saved["crc_counts"])):
        if (counts < 0).any() or counts.sum() != len(saved[key]):
            raise ValueError(f"{len(saved[key])} {key} are saved, and counted {counts.tolist()}")
    actions = np.split(saved["actions"], np.cumsum(saved["action_counts"])[:-1])
    return actions, np.split(saved["crcs"], np.cumsum(saved["crc_counts"])[:-1])
