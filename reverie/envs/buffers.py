"""Observations and actions of N envs, in memory that their processes may share."""

from __future__ import annotations

import math
import mmap
import os
import struct
import tempfile
import zlib
from collections.abc import Iterator

import numpy as np

from reverie.envs.base import Arrays, Space, Spaces
from reverie.envs.values import may_act

_FLAGS = struct.Struct("<f???")


class Buffers:
    """The newest observation and action of each env.

    Args:
      fd: of `anonymous_file`, which gets its size here; -1: no other process looks at them.
    """

    def __init__(self, obs_space: Spaces, act_space: Spaces, num: int, fd: int = -1) -> None:
        size = sum(size for *_, size in _layout(obs_space, act_space, num))
        memory: mmap.mmap | bytearray = bytearray(size if fd < 0 else 0)
        if fd >= 0:
            os.ftruncate(fd, size)
            memory = mmap.mmap(fd, size)
        self.obs, self.action = views(memory, obs_space, act_space, num)
        self._act_space = act_space

    def rows(self, envs: np.ndarray) -> Arrays:
        """`obs/<key>` `[n, ...]` of the envs [n]."""
        return {f"obs/{key}": array[envs] for key, array in self.obs.items()}

    def put(self, envs: np.ndarray, actions: Arrays) -> None:
        """The next actions `[n, ...]` of the envs [n]."""
        for key, array in self.action.items():
            array[envs] = actions[key]

    def action_of(self, env: int) -> bytes:
        return b"".join(array[env].tobytes() for array in self.action.values())

    def put_again(self, env: int, action: bytes) -> None:
        """Inverse of `action_of`."""
        offset = 0
        for array in self.action.values():
            row = array[env, ...]
            flat = np.frombuffer(action, row.dtype, row.size, offset)
            np.copyto(row, flat.reshape(row.shape))
            offset += row.nbytes

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
    arrays: dict[str, Arrays] = {"obs": {}, "action": {}}
    offset = 0
    for group, key, space, size in _layout(obs_space, act_space, num):
        count = num * math.prod(space.shape)
        flat = np.frombuffer(memory, space.dtype, count, offset)
        arrays[group][key] = flat.reshape(num, *space.shape)
        offset += size
    return arrays["obs"], arrays["action"]


def _layout(obs_space: Spaces, act_space: Spaces, num: int) -> Iterator[tuple[str, str, Space, int]]:
    for group, spaces in (("obs", obs_space), ("action", act_space)):
        for key, space in spaces.items():
            size = num * math.prod(space.shape) * space.dtype.itemsize
            yield group, key, space, -(-max(size, 1) // 64) * 64  # each array on its cache line


def anonymous_file() -> int:
    """Shared memory without a name: nothing is left behind, however the processes end."""
    if hasattr(os, "memfd_create"):
        return os.memfd_create("reverie")
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())
