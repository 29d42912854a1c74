"""From a config to an agent: what `--obs-scale` may say."""

from __future__ import annotations

import pytest

from reverie.assembly import with_scale
from reverie.config import ConfigError
from reverie.envs import base
from reverie.envs.base import Space

SPACES = {"speed": Space("vector", (2,)), "image": Space("image", (8, 8, 3))}


def test_a_scale_becomes_part_of_the_space_it_names() -> None:
    found = with_scale(SPACES, '{"speed": [[0, 5], [1, 0.07]]}')
    assert (found["speed"].center, found["speed"].spread) == ((0.0, 5.0), (1.0, 0.07))
    assert found["image"] == SPACES["image"]
    assert base.from_json(base.to_json(found)) == found
    assert with_scale(SPACES, "{}") == SPACES


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[1]", "expected an object"),
        ("{", "Expecting"),
        ('{"sped": [[0, 0], [1, 1]]}', "no vector 'sped' is seen: did you mean 'speed'"),
        ('{"image": [[0, 0], [1, 1]]}', "no vector 'image'"),
        ('{"speed": [[0], [1]]}', "has 2 elements: expected two lists of 2 numbers"),
        ('{"speed": [0, 1]}', "expected two lists"),
        ('{"speed": [[0, 0], [1, true]]}', "expected two lists"),
        ('{"speed": [[0, 0], [1, 1e400]]}', "expected two lists"),
        ('{"speed": [[0, 0], [1, 0]]}', "a spread of 0, expected numbers above 0"),
        ('{"speed": [[0, 0], [1, NaN]]}', "NaN is no JSON"),
    ],
)
def test_a_scale_that_does_not_fit_is_refused(text: str, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        with_scale(SPACES, text)


def test_where_no_vector_is_seen_there_is_no_scale() -> None:
    with pytest.raises(ConfigError, match="no vector 'x' is seen: leave it out"):
        with_scale({}, '{"x": [[0], [1]]}')
