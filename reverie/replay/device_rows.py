"""Rows on a device: whatever is only ever learned from need not cross over with every batch.

The host draws as ever and keeps what it draws by: flags, rewards and priorities, a dozen bytes of a row. All else of a
row lies here, is written once as it comes, and is read and written back by its slots:

    host      draws, ids ------ slots --+                              +-- slots ------ ids of the last update
    device    rows -----------------> gather -> batch --> update --> set --> rows
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

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
        # bfloat16 as integers, as on the host: a CPU's compiler would write all of such a column anew, as float32.
        self._columns: Columns = {k: jnp.zeros((capacity, *f.shape), f.stored) for k, f in fields.items()}
        self._dtypes = tuple((key, np.dtype(f.dtype)) for key, f in fields.items() if f.stored != f.dtype)

    def gather(self, slots: np.ndarray) -> Columns:
        """The rows in `slots` [...]: key -> [..., *shape], on the device."""
        return _gather(self._columns, slots.astype(np.int32), self._dtypes)

    def read(self, slots: np.ndarray, keys: list[str]) -> Row:
        """These keys of the rows in `slots` [n], on the host, in the dtypes that they are stored as."""
        columns = {key: self._columns[key] for key in keys}
        blocks = [
            {key: x[: len(block)] for key, x in jax.device_get(_gather(columns, _whole(block, 0))).items()}
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


@partial(jax.jit, static_argnums=2)
def _gather(columns: Columns, slots: jax.Array, dtypes: tuple[tuple[str, np.dtype], ...] = ()) -> Columns:
    """Rows of these columns; those of the keys in `dtypes` are values that are stored as integers."""
    rows = {key: x.at[slots].get(mode="promise_in_bounds") for key, x in columns.items()}
    return rows | {key: lax.bitcast_convert_type(rows[key], dtype) for key, dtype in dtypes}


@partial(jax.jit, donate_argnums=0)
def _set(columns: Columns, slots: jax.Array, rows: Columns) -> Columns:
    stored = {
        k: v if v.dtype == columns[k].dtype else lax.bitcast_convert_type(v, columns[k].dtype) for k, v in rows.items()
    }
    return {
        key: x.at[slots].set(stored[key].reshape(-1, *x.shape[1:]), mode="drop", unique_indices=True)
        for key, x in columns.items()
    }
