"""The tree of sums, what it draws, and what its weights make up for."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reverie.replay.priorities import BYTES, LEAST, Priorities, SumTree


@settings(max_examples=200)
@given(
    size=st.integers(1, 70),
    changes=st.lists(st.integers(0, 90), max_size=12),
    seed=st.integers(0, 10**6),
)
def test_all_sums_follow_from_the_leaves_to_the_bit(size: int, changes: list[int], seed: int) -> None:
    tree, rng, leaves = SumTree(size), np.random.default_rng(seed), np.zeros(size)
    assert tree.nodes.nbytes == BYTES * size
    for count in changes:
        places = rng.integers(size, size=count)
        values = np.where(rng.random(size) < 0.3, 0, rng.lognormal(0, 8, size))[places]
        tree.set(places, values)
        leaves[places] = values
    np.testing.assert_array_equal(tree.leaves, leaves)
    for node in range(1, size):
        assert tree.nodes[node] == tree.nodes[2 * node] + tree.nodes[2 * node + 1]
    assert tree.total == pytest.approx(leaves.sum())
    again = SumTree(size)
    again.set(np.arange(size), leaves)
    np.testing.assert_array_equal(again.nodes[1:], tree.nodes[1:])


@settings(max_examples=200)
@given(size=st.integers(1, 70), seed=st.integers(0, 10**6), zeros=st.floats(0, 0.95))
def test_a_mass_lies_where_the_sums_say_and_never_at_zero(size: int, seed: int, zeros: float) -> None:
    tree, rng = SumTree(size), np.random.default_rng(seed)
    leaves = np.where(rng.random(size) < zeros, 0, rng.integers(1, 9, size)).astype(float)
    leaves[rng.integers(size)] = 3
    tree.set(np.arange(size), leaves)
    # Whole numbers, so nothing rounds: every unit of mass belongs to one leaf, and a leaf owns as many as it says.
    found = tree.find(np.arange(leaves.sum()) + 0.5)
    np.testing.assert_array_equal(np.bincount(found, minlength=size), leaves)
    np.testing.assert_array_equal(np.bincount(tree.find(np.arange(leaves.sum())), minlength=size), leaves)
    assert leaves[tree.find(np.full(1, tree.total))] > 0, "beyond the end is still the end"


def test_rounding_never_leads_to_a_leaf_of_zero() -> None:
    tree, rng = SumTree(1000), np.random.default_rng(0)
    tree.set(np.arange(1000), np.where(rng.random(1000) < 0.7, 0, rng.lognormal(0, 15, 1000)))
    ends = np.cumsum(tree.leaves[tree.leaves > 0])
    mass = np.minimum(np.concatenate([ends, np.nextafter(ends, 0), rng.random(20_000) * tree.total]), tree.total)
    assert (tree.leaves[tree.find(mass)] > 0).all()


def deviation(counts: np.ndarray, expected: np.ndarray) -> float:
    """The statistic of chi-square in standard deviations from its expectation."""
    statistic = ((counts - expected) ** 2 / expected).sum()
    return float((statistic - (counts.size - 1)) / np.sqrt(2 * (counts.size - 1)))


@pytest.mark.parametrize(("alpha", "batch"), [(0.0, 7), (0.0, 64), (0.6, 1), (0.6, 7), (1.0, 64)])
def test_places_are_drawn_by_the_power_of_their_priority(alpha: float, batch: int) -> None:
    rng = np.random.default_rng(batch)
    values = rng.uniform(0.2, 5, 60).astype(np.float32)
    priorities = Priorities(100, alpha)
    places = rng.permutation(100)[:60]
    priorities.set(places, values)
    draws = np.concatenate([priorities.draw(batch, rng)[0] for _ in range(30_000 // batch)])
    counts = np.bincount(draws, minlength=100)
    assert counts[np.setdiff1d(np.arange(100), places)].sum() == 0
    powers = values.astype(float) ** alpha
    assert deviation(counts[places], powers / powers.sum() * draws.size) < 4
    others = [values.astype(float) ** other for other in (0.0, 0.6, 1.0) if other != alpha]
    for other in others:  # the test can fail: it tells the powers apart
        assert deviation(counts[places], other / other.sum() * draws.size) > 40


def test_a_batch_is_spread_over_the_range() -> None:
    priorities, rng = Priorities(8, 1.0), np.random.default_rng(0)
    priorities.set(np.arange(8), np.ones(8, np.float32))
    for _ in range(50):
        assert sorted(priorities.draw(8, rng)[0]) == list(range(8)), "of eight equals, each once"


def test_a_part_of_a_batch_is_a_fair_sample_too() -> None:
    """Reanalysis takes the first rows of a batch, and every place must be among them as often as it is drawn."""
    rng = np.random.default_rng(0)
    values = rng.uniform(0.2, 5, 60).astype(np.float32)
    priorities = Priorities(60, 1.0)
    priorities.set(np.arange(60), values)
    draws = np.stack([priorities.draw(16, rng)[0] for _ in range(4000)])
    for part in (draws[:, :4], draws[:, 12:]):
        assert abs(deviation(np.bincount(part.ravel(), minlength=60), values / values.sum() * part.size)) < 4
    orderly = np.sort(draws, 1)[:, :4]  # the test can fail: in the order of the places it is no fair sample
    assert deviation(np.bincount(orderly.ravel(), minlength=60), values / values.sum() * orderly.size) > 40


def test_weights_make_up_for_the_draw() -> None:
    rng = np.random.default_rng(0)
    values = rng.lognormal(0, 1.5, 500).astype(np.float32)
    figure = np.log(values)  # what is drawn often has large ones
    priorities = Priorities(500, 0.7)
    priorities.set(np.arange(500), values)
    for beta, near in ((1.0, True), (0.0, False)):
        places, weights = priorities.draw(100_000, rng, beta)
        assert (weights.dtype, weights.max()) == (np.float32, 1)
        mean = (weights * figure[places]).sum() / weights.sum()
        assert (abs(mean - figure.mean()) < 0.02) == near
        assert near or mean - figure.mean() > 1
    for beta in (0.5, 0.8):  # annealed, the power is another at every draw
        places, weights = priorities.draw(32, rng, beta)
        exact = (500 * (values**0.7 / (values**0.7).sum())[places]) ** -beta
        np.testing.assert_allclose(weights, exact / exact.max(), rtol=1e-5)


def test_a_priority_of_zero_is_drawn_now_and_then_and_what_is_dropped_never() -> None:
    priorities, rng = Priorities(3, 1.0), np.random.default_rng(0)
    priorities.set(np.arange(3), np.array([0, LEAST, 7], np.float32))
    priorities.drop(np.array([2]))
    priorities.change(np.array([2, 1]), np.array([9, 3 * LEAST], np.float32))  # dropped it stays
    places = priorities.draw(4000, rng)[0]
    np.testing.assert_allclose(np.bincount(places, minlength=3), [1000, 3000, 0], atol=1)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, -1.0])
def test_what_is_no_priority_is_refused_and_changes_nothing(value: float) -> None:
    priorities = Priorities(3, 1.0)
    places = np.arange(3)
    priorities.set(places, np.ones(3))
    for change in (priorities.set, priorities.change, priorities.reset):
        with pytest.raises(ValueError, match=r"must be 0 or more and finite, given \["):
            change(places, np.array([1.0, value, 2.0]))
    assert priorities._tree.leaves.tolist() == [1, 1, 1]
