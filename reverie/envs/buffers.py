"""Observations and actions of N envs, in memory that their processes may share."""

from __future__ import annotations

import mmap
import os
import struct
import tempfile
import zlib

import numpy as np

from reverie.envs.base import Arrays, Spaces
from reverie.envs.values import may_act

_FLAGS = struct.Struct("<f???")


class Buffers:
    """The newest observation and action of each env.

    Args:
      fd: of `anonymous_file`, which gets its size here; -1: no other process looks at them.
    """

    def __init__(self, obs_space: Spaces, act_space: Spaces, num: int, fd: int = -1) -> None:
        size = num * (_record(act_space).itemsize + _record(obs_space, align=True).itemsize)
        memory: mmap.mmap | bytearray = bytearray(size if fd < 0 else 0)
        if fd >= 0:
            os.ftruncate(fd, size)
            memory = mmap.mmap(fd, size)
        self.obs, self.action = views(memory, obs_space, act_space, num)
        self._actions = np.ndarray(num, _record(act_space), memory)  # the same, all keys side by side
        self._act_space = act_space

    def rows(self, envs: np.ndarray) -> Arrays:
        """`obs/<key>` `[n, ...]` of the envs [n]."""
        return {f"obs/{key}": array[envs] for key, array in self.obs.items()}

    def put(self, envs: np.ndarray, actions: Arrays) -> None:
        """The next actions `[n, ...]` of the envs [n]."""
        for key, array in self.action.items():
            array[envs] = actions[key]

    def action_of(self, env: int) -> bytes:
        return self._actions[env].tobytes()

    def put_again(self, env: int, action: bytes) -> None:
        """Inverse of `action_of`."""
        self._actions[env : env + 1] = np.frombuffer(action, self._actions.dtype)

    def crc(self, env: int, flags: tuple[float, bool, bool, bool]) -> int:
        """The env's whole row: reward and flags, and its observation."""
        crc = zlib.crc32(_FLAGS.pack(*flags))
        for array in self.obs.values():
            crc = zlib.crc32(array[env, ...].data, crc)
        return crc

    def check(self, envs: np.ndarray, actions: Arrays, over: list[bool]) -> None:
        """Raises ValueError for actions `[n, ...]` that are not in their spaces, or not legal for one of the envs [n].

        Args:
          over: by env: its episode is, and no action has an effect.
        """
        n, spaces = len(envs), self._act_space
        if actions.keys() != spaces.keys():
            raise ValueError(f"actions {sorted(actions)}, expected {sorted(spaces)}")
        for key, space in spaces.items():
            value = actions[key]
            if value.shape != (n, *space.shape) or value.dtype != space.dtype:
                raise ValueError(
                    f"action/{key}: {value.dtype} {list(value.shape)}, expected {space.dtype} {[n, *space.shape]}"
                )
            if space.kind == "discrete":
                sound = (value >= 0).all() and (value.reshape(n, -1) < space.classes).all()
            else:
                sound = np.isfinite(value).all()
            if not sound:
                raise ValueError(f"action/{key}: {value} is not in {space.describe()}")
        for at, env in enumerate(envs.tolist() if "legal" in self.obs else ()):
            action, legal = {key: x[at, ...] for key, x in actions.items()}, self.obs["legal"][env]
            if not (over[env] or may_act(action, legal, spaces)):
                taken = {key: x.tolist() for key, x in action.items()}
                raise ValueError(f"env {env}: action {taken}, expected one that is legal: {np.flatnonzero(legal)}")


def views(memory: mmap.mmap | bytearray, obs_space: Spaces, act_space: Spaces, num: int) -> tuple[Arrays, Arrays]:
    """`(obs, action)`: arrays `[num, ...]` over `memory`."""
    actions = np.ndarray(num, _record(act_space), memory)
    seen = np.ndarray(num, _record(obs_space, align=True), memory, actions.nbytes)
    return {key: seen[key] for key in obs_space}, {key: actions[key] for key in act_space}


def _record(spaces: Spaces, align: bool = False) -> np.dtype:
    """The record of one env, an array for each space. Actions, whose elements all have four bytes, need no padding."""
    return np.dtype([(key, space.dtype, space.shape) for key, space in spaces.items()], align)


def anonymous_file() -> int:
    """Shared memory without a name: nothing is left behind, however the processes end."""
    if hasattr(os, "memfd_create"):
        return os.memfd_create("reverie")
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())
