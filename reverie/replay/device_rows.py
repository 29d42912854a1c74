"""Rows on a device: whatever is only ever learned from need not cross over with every batch.

The host draws as ever and keeps what it draws by: flags, rewards and priorities, a dozen bytes of a row. All else of a
row lies here, is written once as it comes, and is read and written back by its slots:

    host      draws, ids ------ slots --+                              +-- slots ------ ids of the last update
    device    rows -----------------> take --> batch --> update --> set --> rows
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from reverie.replay.rows import Field, Row

BLOCK = 1024  # rows that cross over at once, so that the whole of replay is never there twice
Columns = dict[str, jax.Array]


class DeviceRows:
    """The keys `fields` of `capacity` rows, zeros at first, on JAX's default device. All its memory is taken at once.

    Every shape is compiled once, so rows that come in any number come in blocks, filled up to a power of two.
    """

    def __init__(self, fields: Mapping[str, Field], capacity: int) -> None:
        assert capacity < 2**31 - 2**20, f"{capacity} rows: a device counts up to 2^31"
        self.fields, self.capacity = dict(fields), capacity
        self._columns: Columns = {k: jnp.zeros((capacity, *f.shape), f.dtype) for k, f in fields.items()}

    def take(self, slots: np.ndarray) -> Columns:
        """The rows in `slots` [...]: key -> [..., *shape], on the device."""
        return _take(self._columns, slots.astype(np.int32))

    def read(self, slots: np.ndarray, keys: list[str]) -> Row:
        """These keys of the rows in `slots` [n], on the host."""
        columns = {key: self._columns[key] for key in keys}
        blocks = [
            {key: x[: len(block)] for key, x in jax.device_get(_take(columns, _whole(block, 0))).items()}
            for block in _blocks(slots)
        ]
        return {key: np.concatenate([block[key] for block in blocks]) for key in keys}

    def set(self, slots: np.ndarray, rows: Mapping[str, jax.Array | np.ndarray]) -> None:
        """Writes some keys of rows, key -> [..., *shape], to `slots` [n]; those of `capacity` or more are left out.
        Where a slot stands twice, the last counts."""
        last = np.zeros(slots.size, bool)
        last[slots.size - 1 - np.unique(slots[::-1], return_index=True)[1]] = True
        # A device may write in any order, so every slot must be another; beyond the end, nothing is written.
        places = np.where(last & (slots < self.capacity), slots, self.capacity + np.arange(slots.size))
        columns = {key: self._columns[key] for key in rows}
        self._columns |= _set(columns, places.astype(np.int32), dict(rows))

    def fill(self, slots: np.ndarray, rows: Row) -> None:
        """`set` of rows of the host, [n, *shape], of any number."""
        for number, block in enumerate(_blocks(slots)):
            part = slice(number * BLOCK, number * BLOCK + BLOCK)
            self.set(_whole(block, self.capacity), {key: _whole(x[part], 0) for key, x in rows.items()})


def _blocks(slots: np.ndarray) -> list[np.ndarray]:
    return [slots[at : at + BLOCK] for at in range(0, max(1, slots.size), BLOCK)]


def _whole(rows: np.ndarray, value: int) -> np.ndarray:
    """`rows` [n, ...], followed by `value` up to the next power of two."""
    missing = (1 << (len(rows) - 1).bit_length() if len(rows) else 1) - len(rows)
    return np.concatenate([rows, np.full((missing, *rows.shape[1:]), value, rows.dtype)]) if missing else rows


@jax.jit
def _take(columns: Columns, slots: jax.Array) -> Columns:
    return {key: x.at[slots].get(mode="promise_in_bounds") for key, x in columns.items()}


@partial(jax.jit, donate_argnums=0)
def _set(columns: Columns, slots: jax.Array, rows: Columns) -> Columns:
    return {
        key: x.at[slots].set(rows[key].reshape(-1, *x.shape[1:]), mode="drop", unique_indices=True)
        for key, x in columns.items()
    }
