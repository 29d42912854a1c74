"""Memory in which envs show what they see."""

import mmap
import os

import numpy as np
import pytest

from reverie.envs.base import Space
from reverie.envs.buffers import Buffers, anonymous_file, views

OBS = {"a": Space("image", (3, 3, 1)), "b": Space("vector", (2,)), "c": Space("discrete", (), (9,))}
ACT = {"x": Space("vector", ())}


def test_arrays_do_not_overlap_and_lie_in_memory_that_others_see() -> None:
    fd = anonymous_file()
    buffers = Buffers(OBS, ACT, 5, fd)
    arrays = [*buffers.obs.values(), *buffers.action.values()]
    for number, array in enumerate(arrays):
        array[...] = number
    for number, array in enumerate(arrays):
        assert (array == number).all()
        assert array.ctypes.data % array.itemsize == 0
    assert [array.shape for array in arrays] == [(5, 3, 3, 1), (5, 2), (5,), (5,)]
    again, _ = views(mmap.mmap(fd, 0), OBS, ACT, 5)
    np.testing.assert_array_equal(again["c"], buffers.obs["c"])
    os.close(fd)


def test_an_action_is_put_again_from_its_bytes() -> None:
    buffers = Buffers(OBS, {**ACT, "y": Space("discrete", (2,), (3, 3))}, 2)
    actions = {"x": np.float32([0.5]), "y": np.int32([[1, 2]])}
    buffers.put(np.array([1]), actions)
    kept = buffers.action_of(1)
    assert len(kept) == 4 + 2 * 4
    buffers.put(np.array([1]), {key: np.zeros_like(x) for key, x in actions.items()})
    buffers.put_again(1, kept)
    assert buffers.action["x"].tolist() == [0, 0.5]
    assert buffers.action["y"].tolist() == [[0, 0], [1, 2]]


def test_a_checksum_is_of_flags_and_observation() -> None:
    buffers, flags = Buffers(OBS, ACT, 2), (1.0, False, False, False)
    before = buffers.crc(1, flags)
    buffers.obs["b"][0] = 1
    assert buffers.crc(1, flags) == before
    assert buffers.crc(1, (1.0, True, False, False)) != before
    buffers.obs["b"][1] = 1
    assert buffers.crc(1, flags) != before


def test_actions_that_are_none_of_the_space_are_refused() -> None:
    buffers = Buffers(OBS, ACT, 2)
    with pytest.raises(ValueError, match="action/x"):
        buffers.check(np.arange(2), {"x": np.float32([0, np.nan])}, [False, False])
