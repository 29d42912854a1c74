"""Dreams a person can look at: pictures side by side, and curves over each other."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from reverie.agent import CONTEXT_ROWS, HORIZONS, Dream

SHOWN = 4  # sequences
FPS = 10.0  # rows per second: 45 dreamt ones take as long as one wants to look
# Borders of the dream: what it is made from.
SEES, DREAMS, OVER = (40, 160, 90), (235, 130, 30), (90, 90, 90)
BACKGROUND, TEXT = (20, 20, 20), (220, 220, 220)
CURVES = 12  # elements that a plot has room for


def pictures(dream: Dream) -> list[str]:
    """The keys that are images."""
    return [k for k, x in dream.dream.items() if x.ndim == 5]


def curves(dream: Dream) -> list[str]:
    """The keys that are not, the reward last."""
    return [k for k, x in dream.dream.items() if x.ndim != 5 and k != "reward"] + ["reward"]


def errors(dream: Dream, seen: int = CONTEXT_ROWS) -> dict[str, dict[str, Any]]:
    """How far the dreams are from the truth, by key without `obs/`, as JSON-able values.

    `horizons`: steps after the last row seen -> mean squared error of an element, in the units of `Dream` (of discrete
    values: the share that is wrong) over all dreams that last so long; None if none does.
    `unexplained`: the error of all dreamt rows as a share of the truth's variance in time (`Dream.squares`); None for
    discrete values, and where nothing moves.
    """
    found: dict[str, dict[str, Any]] = {}
    for key in pictures(dream) + curves(dream):
        truth, dreamt = dream.truth[key], dream.dream[key]
        classes = np.issubdtype(truth.dtype, np.integer)
        horizons: dict[str, float | None] = {}
        for h in (h for h in HORIZONS if seen + h <= truth.shape[1]):
            there = dream.valid[:, seen + h - 1]
            a, b = truth[there, seen + h - 1], dreamt[there, seen + h - 1]
            horizons[str(h)] = float(np.mean(a != b if classes else np.square(a - b))) if there.any() else None
        error, variance = (float(x.sum()) for x in dream.squares(key, seen))
        share = error / variance if variance > 0 and not classes else None
        found[key.removeprefix("obs/")] = {"horizons": horizons, "unexplained": share}
    return found


def frames(dream: Dream, key: str, seen: int = CONTEXT_ROWS, height: int = 128) -> list[np.ndarray]:
    """Truth, dream and difference side by side, one line per sequence and one frame per row.

    The four sequences with the longest dreams are shown, until the last of them is over. The border is green around
    what was seen, orange around what is imagined, and the dream turns gray where an episode ends it. In the difference
    gray means equal, and brighter is a dream too bright.

    Args:
      dream: of numpy arrays, `key` one of `pictures`.
      height: of a picture, about: it is enlarged by a whole number to reach it.

    Returns:
      uint8 `[H, W, 3]` per row.
    """
    order = _longest(dream.valid)
    truth, dreamt = _colour(dream.truth[key][order]), _colour(dream.dream[key][order])
    valid = dream.valid[order]
    difference = (dreamt - truth + 1) / 2
    gray = ~valid[..., None, None, None]
    pixels = [_pixels(x, height) for x in (truth, np.where(gray, 0.25, dreamt), np.where(gray, 0.25, difference))]
    made = []
    for t in range(int(valid.sum(1).max())):
        border = [_border(t, seen, bool(there)) for there in valid[:, t]]
        names = ("truth", _state(t, seen), "difference")
        made.append(_frame([x[:, t] for x in pixels], [[BACKGROUND] * len(order), border, border], names))
    return made


def driven(drive: Mapping[str, np.ndarray], key: str, seen: int = CONTEXT_ROWS, height: int = 192) -> list[np.ndarray]:
    """A drive in imagination: the four longest sequences side by side, with the reward gained in each since it is
    imagined; borders, gray, height and what is returned as of `frames`.

    Args:
      drive: of `LoadedAgent.drive`, `key` one of its images.
    """
    order = _longest(drive["valid"])
    valid = drive["valid"][order]
    pixels = _pixels(np.where(valid[..., None, None, None], _colour(drive[key][order]), 0.25), height)
    imagined = valid & (np.arange(valid.shape[1]) >= seen)[None]
    dream_return = np.where(imagined, drive["reward"][order], 0).cumsum(1)
    made = []
    for t in range(int(valid.sum(1).max())):
        borders = [[_border(t, seen, bool(there))] for there in valid[:, t]]
        names = [f"{_state(t, seen)}, reward {gain:.1f}" for gain in dream_return[:, t]]
        made.append(_frame([x[None, t] for x in pixels], borders, names))
    return made


def _pixels(images: np.ndarray, height: int) -> np.ndarray:
    """Images `[N, T, H, W, 3]` in [0, 1] as uint8, enlarged by a whole number to about `height`."""
    scale = max(1, round(height / images.shape[2]))
    return np.rint(255 * images.clip(0, 1)).astype(np.uint8).repeat(scale, 2).repeat(scale, 3)


def _border(t: int, seen: int, valid: bool) -> tuple[int, int, int]:
    return SEES if t < seen else DREAMS if valid else OVER


def _state(t: int, seen: int) -> str:
    return f"seen {t + 1}" if t < seen else f"dreamt {t - seen + 1}"


def _frame(panels: list[np.ndarray], borders: list[list[tuple[int, int, int]]], names: Sequence[str]) -> np.ndarray:
    """One picture of columns `[N, H, W, 3]`: the border of every panel, and a name over every column."""
    edge, head = 3, 16
    count, high, wide, _ = panels[0].shape
    cell_high, cell_wide = high + 2 * edge, wide + 2 * edge
    canvas = np.full((head + count * cell_high, len(panels) * cell_wide, 3), BACKGROUND, np.uint8)
    for column, panel in enumerate(panels):
        for row in range(count):
            top, left = head + row * cell_high, column * cell_wide
            canvas[top : top + cell_high, left : left + cell_wide] = borders[column][row]
            canvas[top + edge : top + edge + high, left + edge : left + edge + wide] = panel[row]
    image = Image.fromarray(canvas)
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(size=10)
    for column, name in enumerate(names):
        draw.text((column * cell_wide + edge, 2), name, TEXT, font)
    return np.asarray(image)


def plot(dream: Dream, key: str | None = None, seen: int = CONTEXT_ROWS) -> bytes:
    """Truth against dream over time, as a PNG: a line per element, a column per sequence.

    The four sequences with the longest dreams are shown, and of many elements those that vary most. The figure beside
    an element is its error in all dreams as a share of its variance in time (`Dream.squares`).

    Args:
      dream: of numpy arrays.
      key: one of `curves`; None for all of them.
    """
    from matplotlib.figure import Figure  # takes a second to import: not every run draws

    elements = [e for k in ([key] if key else curves(dream)) for e in _elements(dream, k, seen)]
    shown = sorted(sorted(range(len(elements)), key=lambda i: -elements[i][3])[:CURVES])
    order = _longest(dream.valid).tolist()
    figure = Figure(figsize=(2.6 * len(order) + 1.5, 1.15 * len(shown) + 0.8), dpi=100, layout="constrained")
    axes = figure.subplots(len(shown), len(order), sharex=True, sharey="row", squeeze=False)
    for line, index in zip(axes, shown, strict=True):
        name, place, error_share, _ = elements[index]
        for ax, sequence in zip(line, order, strict=True):
            _curve(ax, dream, place, sequence, seen)
        line[0].set_ylabel(name, rotation=0, ha="right", va="center")
        line[-1].yaxis.set_label_position("right")
        line[-1].set_ylabel(error_share, rotation=0, ha="left", va="center")
    for ax in axes[-1]:
        ax.set_xlabel("row")
    handles, labels = axes[0][-1].get_legend_handles_labels()  # of the shortest dream: if one is over, it is this one
    left_out = f"   ({len(shown)} of {len(elements)} elements, those that vary most)" * (len(shown) < len(elements))
    figure.legend(handles, labels, loc="outside upper left", ncols=4, frameon=False)
    figure.suptitle(f"right: error / variance{left_out}", fontsize=9, ha="right", x=0.99)
    png = io.BytesIO()
    figure.savefig(png, format="png")
    return png.getvalue()


def _elements(dream: Dream, key: str, seen: int) -> list[tuple[str, Any, str, float]]:
    """Every element of a key: its name, where it lies, its error in words, and how much it varies."""
    truth = dream.truth[key]
    error, variance = (np.asarray(x, np.float64) for x in dream.squares(key, seen))
    if np.issubdtype(truth.dtype, np.integer):  # classes have no distances
        valid = dream.valid[:, seen:].reshape(*dream.valid[:, seen:].shape, *[1] * (truth.ndim - 2))
        wrong = (valid & (truth != dream.dream[key])[:, seen:]).sum((0, 1)) / max(1, valid.sum())
        texts = np.vectorize("{:.0%} wrong".format, otypes=[object])(wrong)
    else:
        with np.errstate(divide="ignore", invalid="ignore"):
            texts = np.vectorize("{:.1%}".format, otypes=[object])(error / variance)
        texts = np.where(variance > 0, texts, "constant")
    spread = variance / max(float(np.square(truth).mean()), 1e-12)  # of keys of any unit
    name = key.removeprefix("obs/")
    return [
        (name + "".join(f"[{i}]" for i in place), (key, place), str(texts[place]), float(spread[place]))
        for place in np.ndindex(truth.shape[2:])
    ]


def _curve(ax: Any, dream: Dream, at: tuple[str, tuple[int, ...]], sequence: int, seen: int) -> None:
    """One element of one sequence."""
    key, place = at
    truth, dreamt = (x[key][(sequence, slice(None), *place)] for x in (dream.truth, dream.dream))
    end = int(dream.valid[sequence].sum())
    rows = np.arange(1, len(truth) + 1)
    ax.axvspan(1, seen, color=unit(SEES), alpha=0.15, linewidth=0, label="seen")
    if end < len(truth):
        ax.axvspan(end, len(truth), color=unit(OVER), alpha=0.3, linewidth=0, label="over")
    ax.plot(rows[:end], truth[:end], color="black", linewidth=1.2, label="truth")
    ax.plot(rows[:end], dreamt[:end], color=unit(DREAMS), linewidth=1.2, label="dream")
    ax.tick_params(labelsize=7)
    ax.spines[["top", "right"]].set_visible(False)


def _longest(valid: np.ndarray) -> np.ndarray:
    """The sequences with the longest dreams."""
    return np.argsort(-valid.sum(1), kind="stable")[:SHOWN]


def _colour(images: np.ndarray) -> np.ndarray:
    """`[..., C]` as RGB. Whatever is neither RGB nor gray is a stack of gray images: the last one, the newest."""
    return images if images.shape[-1] == 3 else images[..., -1:].repeat(3, -1)


def unit(colour: tuple[int, int, int]) -> tuple[float, ...]:
    return tuple(c / 255 for c in colour)
