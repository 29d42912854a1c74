"""Open episodes, saved and split again."""

import numpy as np
import pytest

from reverie.envs.tape import Tape, split, to_arrays


def tapes() -> list[Tape]:
    first, second = Tape(), Tape()
    for tape, steps in ((first, 2), (second, 0)):
        tape.begin()
        tape.crcs.append(7)
        for step in range(steps):
            tape.act(bytes([step, step + 1]))
            tape.crcs.append(8 + step)
    return [first, second]


def test_what_is_saved_is_split_by_env_again() -> None:
    saved = to_arrays(tapes(), 2)
    actions, crcs = split(saved, to_arrays([Tape(), Tape()], 2))
    assert [x.tolist() for x in actions] == [[[0, 1], [1, 2]], []]
    assert [x.tolist() for x in crcs] == [[7, 8, 9], [7]]


def test_what_is_of_other_envs_or_cannot_be_is_refused() -> None:
    saved = to_arrays(tapes(), 2)
    with pytest.raises(ValueError, match="of 2 envs with actions of 2 bytes, expected 3 with 2"):
        split(saved, to_arrays([Tape()] * 3, 2))
    with pytest.raises(ValueError, match="2 actions are saved, and counted"):
        split(saved | {"action_counts": np.array([1, 0])}, to_arrays(tapes(), 2))


def test_failures_outside_the_window_are_forgotten() -> None:
    tape = Tape()
    assert [tape.count_failure(10), tape.count_failure(10)] == [1, 2]
    tape.steps = 10
    assert tape.count_failure(10) == 1
