"""Dreams become pictures in which one sees what was seen, what was dreamt, and where the dream is over."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from reverie.agent import Dream
from reverie.view import dream as view

ROWS, SEEN = 12, 5


def some_dream(ends: tuple[int, ...] = (12, 8), channels: int = 3) -> Dream:
    """Truth is dark, dreams are bright; sequence b is valid for `ends[b]` rows."""
    lead = (len(ends), ROWS)
    rng = np.random.default_rng(0)
    walk = rng.normal(size=(*lead, 2)).cumsum(1).astype(np.float32)
    truth = {
        "reward": np.ones(lead, np.float32),
        "obs/eye": np.full((*lead, 16, 20, channels), 0.2, np.float32),
        "obs/arm": walk,
        "obs/token": rng.integers(0, 4, lead, np.int32),
    }
    dream = {
        "reward": truth["reward"],
        "obs/eye": np.full((*lead, 16, 20, channels), 0.8, np.float32),
        "obs/arm": walk + 0.5,
        "obs/token": (truth["obs/token"] + 1) % 4,
    }
    return Dream(truth, dream, np.arange(ROWS)[None, :] < np.array(ends)[:, None])


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_frames_show_truth_dream_and_difference(channels: int) -> None:
    frames = view.frames(some_dream(channels=channels), "obs/eye", SEEN, height=64)
    assert len(frames) == ROWS
    high, wide = 4 * 16 + 6, 4 * 20 + 6  # enlarged four times, with a border of three
    assert {(f.shape, f.dtype) for f in frames} == {((16 + 2 * high, 3 * wide, 3), np.dtype(np.uint8))}

    def panel(t: int, line: int, column: int) -> list[int]:
        return frames[t][16 + line * high + high // 2, column * wide + wide // 2].tolist()

    def border(t: int, line: int) -> tuple[int, ...]:
        return tuple(frames[t][16 + line * high + 1, wide + wide // 2].tolist())

    assert (panel(2, 0, 0), panel(2, 0, 1), panel(2, 0, 2)) == (3 * [51], 3 * [204], 3 * [204])
    assert (border(SEEN - 1, 0), border(SEEN, 0)) == (view.SEES, view.DREAMS)
    # The second dream is over after eight rows; the truth goes on.
    assert (border(7, 1), border(8, 1), border(8, 0)) == (view.DREAMS, view.OVER, view.DREAMS)
    assert (panel(8, 1, 0), panel(8, 1, 1), panel(8, 1, 2)) == (3 * [51], 3 * [64], 3 * [64])


def test_frames_show_the_longest_dreams_until_the_last_is_over() -> None:
    ends = (6, 9, 10, 7, 5, 8)
    dream = some_dream(ends)
    for b in range(len(ends)):
        dream.truth["obs/eye"][b] = ends[b] / 20
    frames = view.frames(dream, "obs/eye", SEEN)
    assert len(frames) == 10
    cell = (frames[0].shape[0] - 16) // 4
    shown = [int(frames[0][16 + i * cell + cell // 2, 30, 0]) for i in range(4)]
    assert shown == [round(255 * end / 20) for end in (10, 9, 8, 7)]


def test_errors_count_what_is_valid() -> None:
    found = view.errors(some_dream(), SEEN)
    assert list(found) == ["eye", "arm", "token", "reward"]
    assert found["arm"]["horizons"] == {"1": pytest.approx(0.25), "5": pytest.approx(0.25)}
    truth = some_dream().truth["obs/arm"].astype(np.float64)
    pieces = [truth[0, 5:], truth[1, 5:8]]
    variance = sum(((x - x.mean(0)) ** 2).sum() for x in pieces)
    assert found["arm"]["unexplained"] == pytest.approx(0.25 * 2 * 10 / variance, rel=1e-4)
    assert found["token"] == {"horizons": {"1": 1.0, "5": 1.0}, "unexplained": None}
    assert found["reward"] == {"horizons": {"1": 0.0, "5": 0.0}, "unexplained": None}, "a constant explains nothing"
    over = view.errors(some_dream((5, 5)), SEEN)
    assert over["arm"] == {"horizons": {"1": None, "5": None}, "unexplained": None}


def test_a_plot_draws_truth_dream_and_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = []
    original = view._curve
    monkeypatch.setattr(view, "_curve", lambda ax, *args: (drawn.append((ax, *args)), original(ax, *args))[1])
    dream = some_dream()
    png = view.plot(dream, seen=SEEN)
    with Image.open(io.BytesIO(png)) as image:
        assert image.format == "PNG"
        assert np.asarray(image.convert("L")).std() > 10
    assert [(at, s) for _, _, at, s, _ in drawn] == [
        (at, s) for at in (("obs/arm", (0,)), ("obs/arm", (1,)), ("obs/token", ()), ("reward", ())) for s in (0, 1)
    ]
    truth, dreamt = drawn[1][0].lines
    np.testing.assert_array_equal(truth.get_ydata(), dream.truth["obs/arm"][1, :8, 0])
    np.testing.assert_array_equal(dreamt.get_ydata(), dream.dream["obs/arm"][1, :8, 0])


def test_a_plot_has_room_for_the_elements_that_vary_most() -> None:
    dream = some_dream()
    wide = np.zeros((2, ROWS, 40), np.float32)
    wide[..., 7:] = np.linspace(-1, 1, ROWS)[None, :, None]
    full = Dream(dream.truth | {"obs/arm": wide}, dream.dream | {"obs/arm": wide}, dream.valid)
    small, large = (Image.open(io.BytesIO(view.plot(d, "obs/arm", SEEN))).size for d in (dream, full))
    assert large[1] < 8 * small[1], "12 of 40"
    assert Image.open(io.BytesIO(view.plot(dream, "reward", SEEN))).size[1] < small[1]


def test_a_drive_shows_what_is_seen_imagined_and_gained() -> None:
    valid = np.arange(ROWS)[None, :] < np.array([ROWS, 8])[:, None]
    eye = np.full((2, ROWS, 16, 20, 3), 0.8, np.float32)
    drive = {"obs/eye": eye, "reward": np.ones((2, ROWS), np.float32), "valid": valid}
    frames = view.driven(drive, "obs/eye", SEEN, height=64)
    assert len(frames) == ROWS
    high, wide = 4 * 16 + 6, 4 * 20 + 6
    assert {f.shape for f in frames} == {(16 + high, 2 * wide, 3)}

    def panel(t: int, column: int) -> list[int]:
        return frames[t][16 + high // 2, column * wide + wide // 2].tolist()

    def border(t: int, column: int) -> tuple[int, ...]:
        return tuple(frames[t][16 + 1, column * wide + wide // 2].tolist())

    assert (border(SEEN - 1, 0), border(SEEN, 0), border(8, 1)) == (view.SEES, view.DREAMS, view.OVER)
    assert (panel(8, 0), panel(8, 1)) == (3 * [204], 3 * [64])
    name = lambda t, column: frames[t][:16, column * wide : (column + 1) * wide]
    assert (name(SEEN - 1, 0) == name(SEEN - 1, 1)).all(), "nothing is gained by what is seen"
    assert (name(9, 0) != name(9, 1)).any(), "the second one gains nothing any more"
