"""Search trees become pictures that tell the visits, and what they leave out."""

from __future__ import annotations

import io
import re

import numpy as np
import pytest
from PIL import Image

from reverie.view import tree as view

# root - 0 - 2 - 5
#    |   ' - 4
#    ` - 1 - 3            node 3 is chance
PARENT = np.array([-1, 0, 0, 2, 1, 1, 4])


def some_thought(name: str = "left", chance: bool = True) -> view.SearchReport:
    """Two actions of three are tried; the one in the middle is not legal."""
    branches = view.Branches(
        parent=PARENT,
        action=np.array([-1, 2, 0, 1, 0, 2, 1]),
        name=["", "right", name, "c1", name, "right", "up"],
        visits=np.array([7, 4, 2, 1, 2, 1, 1]),
        q=np.array([0.1, 0.25, -0.5, 0.125, 12.5, 3.25, 1000.0]),
        chance=np.array([False, False, chance, False, False, False, False]),
    )
    return view.SearchReport(
        actions=[name, "up", "right"],
        legal=np.array([True, False, True]),
        prior=np.array([0.75, 0.0, 0.25]),
        policy=np.array([0.4, 0.0, 0.6]),
        visits=np.array([2, 0, 4]),
        q=np.array([-0.5, 0.0, 0.25]),
        chosen=2,
        player=None,
        raw=0.2,
        value=0.1,
        tree=branches,
    )


def texts(thought: view.SearchReport, **limits: int) -> list[str]:
    svg = view.draw(thought, "a title", ".svg", **limits).decode()
    return re.findall(r"<text[^>]*>([^<]*)</text>", svg)


def test_a_png_and_an_svg_of_the_same_tree() -> None:
    with Image.open(io.BytesIO(view.draw(some_thought(), "a title"))) as image:
        assert image.format == "PNG"
        colours = {tuple(pixel) for pixel in np.asarray(image.convert("RGB")).reshape(-1, 3).tolist()}
    assert {view.SEES, view.DREAMS, view.OVER} <= colours
    one, other = (view.draw(some_thought(), "a title", ".svg") for _ in range(2))
    assert one.startswith(b"<?xml")
    assert one == other


def test_every_node_tells_its_action_visits_and_value() -> None:
    drawn = texts(some_thought())
    for text in ("7  0.1", "right:  4  0.25", "left:  2  -0.5", "c1:  1  0.125", "left:  2  12.5", "up:  1  1e+03"):
        assert text in drawn, drawn
    assert "a title" in drawn
    assert any("diamonds: chance" in text for text in drawn)
    assert not any("diamonds" in text for text in texts(some_thought(chance=False)))
    assert not any("left out" in text for text in drawn)


def test_what_is_left_out_is_told() -> None:
    drawn = texts(some_thought(), depth=2)
    assert "6 of 7 nodes; left out: 1 deeper than 2 steps" in drawn
    assert "left:  2  12.5 …" in drawn
    assert "right:  4  0.25" in drawn, "its children are all there"
    drawn = texts(some_thought(), depth=2, most=4)
    assert "4 of 7 nodes; left out: 1 deeper than 2 steps, 2 visited least" in drawn
    assert "right:  4  0.25 …" in drawn
    assert "right:  1  3.25" not in drawn


def test_the_most_visited_are_shown_and_their_parents_with_them() -> None:
    rng = np.random.default_rng(0)
    parent = np.array([-1, *(int(rng.integers(0, n)) for n in range(1, 200))])
    visits = np.ones(200, int)
    for node in range(199, 0, -1):
        visits[parent[node]] += visits[node]
    branches = some_thought().tree._replace(parent=parent, visits=visits)
    for depth, most in ((1, 60), (3, 60), (50, 60), (50, 500)):
        nodes, deeper, rarer = view.shown(branches, depth, most)
        assert len(nodes) <= most
        assert len(nodes) + deeper + rarer == 200
        assert set(parent[nodes]) - {-1} <= set(nodes)
        assert rarer == 0 or len(nodes) == most
    assert view.shown(branches, 1, 500)[0].tolist() == [0, *np.flatnonzero(parent == 0)]


def test_nodes_do_not_lie_on_each_other() -> None:
    places = view._places(some_thought().tree, np.arange(7))
    assert len(set(places.values())) == 7
    assert [places[node][0] for node in range(7)] == [0, 1, 1, 2, 2, 2, 3]
    assert places[1][1] < places[2][1], "the most visited comes first"
    assert places[4][1] == places[6][1], "an only child stands beside its parent"


def test_bars_rank_the_legal_actions(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = []
    original = view._bars
    monkeypatch.setattr(view, "_bars", lambda ax, *args: (original(ax, *args), drawn.append(ax))[0])
    view.draw(some_thought("a very long name"), "a title")
    (ax,) = drawn
    assert [label.get_text() for label in ax.get_yticklabels()] == ["right", "a very long n…"]
    assert [bar.get_width() for bar in ax.patches] == [0.25, 0.75, 0.6, 0.4]
    many = some_thought()._replace(
        actions=[str(a) for a in range(40)], legal=np.ones(40, bool), prior=np.full(40, 1 / 40),
        policy=np.linspace(1, 0, 40), visits=np.zeros(40, int), q=np.zeros(40), chosen=0,
    )  # fmt: skip
    assert "bars: 20 of 40 actions" in texts(many)
