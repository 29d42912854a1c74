"""Rows, turned into pieces of episodes as other libraries know them: transitions, padded and masked."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from reverie.agent import select
from reverie.replay.rows import Row


@dataclass(frozen=True)
class Chunk:
    """B pieces of episodes, in transitions. Zero where `mask` is false.

        position p      0       1       2       3
        obs             o0      o1      o2      0        next_obs: o3
        action          a0      a1      a2      0
        reward          r1      r2      r3      0        reward_p arrived AFTER action_p
        terminated                      1?      0        the world ended with o3
        truncated                       1?      0        the episode did, the world did not
        mask            1       1       1       0

    Attributes:
      obs: `[B, T, ...]` per key.
      action: `[B, T, ...]` per key.
      reward: float32 [B, T].
      terminated, truncated: bool [B, T], true only at the last real position - but that a life lost in the middle of
        an episode may be terminal, too.
      mask: bool [B, T]: the position is real, its action had an effect.
      next_obs: `[B, ...]` per key, what followed the last real position; for bootstrapping.
      is_first: bool [B], the piece begins its episode.
    """

    obs: Row
    action: Row
    reward: np.ndarray
    terminated: np.ndarray
    truncated: np.ndarray
    mask: np.ndarray
    next_obs: Row
    is_first: np.ndarray


def chunks(rows: Iterable[tuple[np.ndarray, Row]], length: int, batch: int) -> Iterator[Chunk]:
    """Cuts committed rows into pieces that end with their episode, or after `length` positions.

    Args:
      rows: what a `Collector` gives to `add`: `(envs [n], rows [n, ...])`, in order.
      length: T.
      batch: B.

    Yields:
      Chunks of B pieces in the order in which the pieces ended. When `rows` is exhausted, the
      pieces still open follow; a last chunk with fewer than B is filled up with pieces that are
      all padding.

    Every transition appears exactly once. A row that is last has none of its own: its action had no
    effect. That holds for the last row of an episode that a failing env cut, too.
    """
    if length < 1 or batch < 1:
        raise ValueError(f"length is {length} and batch is {batch}, expected 1 or more of both")
    last: dict[int, Row] = {}  # env -> its newest row
    open_: dict[int, list[tuple[Row, Row]]] = {}  # env -> (row, its successor), one per position
    ready: list[list[tuple[Row, Row]]] = []
    for envs, many in rows:
        for at, env in enumerate(envs.tolist()):
            row = {key: value[at] for key, value in many.items()}
            before = last.get(env)
            last[env] = row
            if before is None or before["is_last"]:
                continue
            if row["is_first"]:
                raise ValueError(f"env {env}: an episode begins before the one before it ended")
            piece = open_.setdefault(env, [])
            piece.append((before, row))
            if row["is_last"] or len(piece) == length:
                ready.append(open_.pop(env))
            if len(ready) == batch:
                yield _chunk(ready, length, batch)
                ready = []
    ready += open_.values()
    for begin in range(0, len(ready), batch):
        yield _chunk(ready[begin : begin + batch], length, batch)


def _chunk(pieces: list[list[tuple[Row, Row]]], length: int, batch: int) -> Chunk:
    like = pieces[0][0][0]
    full = {key: np.zeros((batch, length, *x.shape), x.dtype) for key, x in like.items()}
    tail = {key: np.zeros((batch, *x.shape), x.dtype) for key, x in like.items()}
    mask = np.zeros((batch, length), bool)
    terminated, truncated = np.zeros_like(mask), np.zeros_like(mask)
    for b, piece in enumerate(pieces):
        mask[b, : len(piece)] = True
        for p, (row, after) in enumerate(piece):
            for key, value in row.items():
                full[key][b, p] = value
            full["reward"][b, p] = after["reward"]
        for key, value in after.items():
            tail[key][b] = value
        terminated[b, p] = after["is_terminal"]
        truncated[b, p] = after["is_last"] and not after["is_terminal"]
    return Chunk(
        obs=select(full, "obs/"),
        action=select(full, "action/"),
        reward=full["reward"],
        terminated=terminated,
        truncated=truncated,
        mask=mask,
        next_obs=select(tail, "obs/"),
        is_first=full["is_first"][:, 0],
    )
