"""Pieces of episodes, made of committed rows."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_collect import Store, collect, counting

from reverie.run.collect.chunks import chunks


def test_a_chunk_by_hand():
    store, _, _ = collect(counting(length=3, truncate=False), 9, envs=1)
    first, second = chunks(store.added, length=2, batch=2)
    # Rows 0 1 2 3 | 0 1 2 3: three transitions an episode, in pieces of two and one.
    np.testing.assert_array_equal(first.obs["step"][..., 0], [[0, 1], [2, 0]])
    np.testing.assert_array_equal(first.reward, [[1, 2], [3, 0]])
    np.testing.assert_array_equal(first.action["action"], [[0, 1], [0, 0]])
    np.testing.assert_array_equal(first.mask, [[1, 1], [1, 0]])
    np.testing.assert_array_equal(first.terminated, [[0, 0], [1, 0]])
    np.testing.assert_array_equal(first.truncated, np.zeros((2, 2)))
    np.testing.assert_array_equal(first.next_obs["step"], [[2], [3]])
    np.testing.assert_array_equal(first.is_first, [True, False])
    np.testing.assert_array_equal(second.obs["episode"][..., 0], [[1, 1], [1, 0]])
    assert first.obs["step"].dtype == first.reward.dtype == np.float32


def test_the_last_chunk_is_filled_up_with_padding():
    store, _, _ = collect(counting(length=3, truncate=True), 4, envs=1)
    (chunk,) = chunks(store.added, length=5, batch=3)
    np.testing.assert_array_equal(chunk.mask.sum(1), [2, 0, 0])  # open: the end is not known yet
    assert not chunk.truncated.any()
    np.testing.assert_array_equal(chunk.next_obs["step"], [[2], [0], [0]])


@settings(max_examples=25)
@given(
    seed=st.integers(0, 2**16),
    envs=st.integers(1, 3),
    steps=st.integers(2, 60),
    length=st.integers(1, 7),
    batch=st.integers(1, 4),
    fail_every=st.sampled_from([0, 1, 4, 9]),
)
def test_the_mask_says_exactly_which_positions_are_real(seed, envs, steps, length, batch, fail_every):
    store, _, _ = collect(counting(), steps, envs=envs, seed=seed)
    added = _with_cuts(store.added, fail_every)
    real = []
    for chunk in chunks(added, length, batch):
        assert chunk.mask.shape == (batch, length)
        count = chunk.mask.sum(1)
        for b in range(batch):
            n = int(count[b])
            assert (chunk.mask[b] == (np.arange(length) < n)).all()
            step, episode = (chunk.obs[k][b, :, 0] for k in ("step", "episode"))
            assert (step[n:] == 0).all()
            assert (chunk.reward[b, n:] == 0).all()
            if not n:
                continue
            assert (np.diff(step[:n]) == 1).all()  # never across an end of an episode
            assert (episode[:n] == episode[0]).all()
            # The env's reward is its step count: what action p earned is the count after it.
            np.testing.assert_array_equal(chunk.reward[b, :n], step[:n] + 1)
            np.testing.assert_array_equal(chunk.action["action"][b, :n], step[:n] % 2)
            assert chunk.next_obs["step"][b, 0] == step[n - 1] + 1
            assert chunk.next_obs["episode"][b, 0] == episode[0]
            assert chunk.is_first[b] == (step[0] == 0)
            ends = chunk.terminated[b] | chunk.truncated[b]
            assert not (chunk.terminated[b] & chunk.truncated[b]).any()
            assert not np.delete(ends, n - 1).any()
            real += [
                (float(e), float(s), float(r), bool(t), bool(c))
                for e, s, r, t, c in zip(
                    episode[:n],
                    step[:n],
                    chunk.reward[b, :n],
                    chunk.terminated[b, :n],
                    chunk.truncated[b, :n],
                    strict=True,
                )
            ]
    assert sorted(real) == sorted(_transitions(added, envs))


def _with_cuts(added, every):
    """The same rows, as if an env had failed after each `every`-th of its rows that is not last."""
    out, seen = [], {}
    for envs, rows in added:
        rows = {key: x.copy() for key, x in rows.items()}
        for at, env in enumerate(envs.tolist()):
            seen.setdefault(env, [0, False, 0.0])
            number, was_cut, base = seen[env]
            if was_cut:  # what follows a cut is the first row of an episode
                base = rows["obs/step"][at, 0] if not rows["is_first"][at] else 0.0
                rows["is_first"][at] = True
            elif rows["is_first"][at]:
                base = 0.0
            rows["obs/step"][at] -= base
            rows["reward"][at] = rows["obs/step"][at, 0]
            rows["action/action"][at] = int(rows["obs/step"][at, 0]) % 2
            cut = bool(every) and number % every == every - 1 and not rows["is_last"][at]
            rows["is_last"][at] |= cut
            seen[env] = [number + 1, cut, base]
        out.append((envs, rows))
    return out


def _transitions(added, envs):
    """(episode, step, reward, terminated, truncated) of every pair of rows of one episode."""
    store = Store()
    store.added = added
    found = []
    for env in range(envs):
        rows = store.stream(env)
        for t in range(len(rows["reward"]) - 1):
            if rows["is_last"][t]:
                continue
            terminal = bool(rows["is_terminal"][t + 1])
            truncated = bool(rows["is_last"][t + 1]) and not terminal
            found.append(
                (
                    float(rows["obs/episode"][t, 0]),
                    float(rows["obs/step"][t, 0]),
                    float(rows["reward"][t + 1]),
                    terminal,
                    truncated,
                )
            )
    return found


def test_rows_out_of_order_are_refused():
    store, _, _ = collect(counting(length=3), 9, envs=1)
    del store.added[3]  # the last row of the first episode
    with pytest.raises(ValueError, match="begins before the one before it ended"):
        list(chunks(store.added, 4, 1))
    with pytest.raises(ValueError, match="expected 1 or more"):
        next(chunks([], 0, 1))
