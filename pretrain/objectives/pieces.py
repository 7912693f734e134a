"""Packed rows taken apart into pieces and put together again, without a loop over either.

A piece is a document, or a part of one, in a row. Axes: R rows, L length, P pieces; "flat" arrays, of axis T, hold all
pieces one after another.
"""

from typing import NamedTuple

import numpy as np


class Pieces(NamedTuple):
    """Texts one after another.

    Attributes:
        tokens_T: int32, of all pieces.
        lengths_P: int64, tokens of each.
        rows_P: int64, the row each stands in, rising.
        segments_P: int64, number of each in its row, from 1.
    """

    tokens_T: np.ndarray
    lengths_P: np.ndarray
    rows_P: np.ndarray
    segments_P: np.ndarray

    @property
    def starts_P(self) -> np.ndarray:
        """Where each piece begins in the flat array, int64."""
        return np.cumsum(self.lengths_P) - self.lengths_P

    def keep(self, kept_P: np.ndarray) -> "Pieces":
        """The pieces where `kept_P` (bool) holds."""
        return Pieces(self.tokens_T[np.repeat(kept_P, self.lengths_P)], *(each[kept_P] for each in self[1:]))


def take_apart(tokens_RL: np.ndarray, segment_ids_RL: np.ndarray) -> Pieces:
    """The pieces of packed rows, in order; `segment_ids_RL` is 0 where there is no text."""
    row_T, place_T = np.nonzero(segment_ids_RL)
    segment_T = segment_ids_RL[row_T, place_T].astype(np.int64)
    changed_T = np.ones(len(row_T) + 1, bool)
    changed_T[1:-1] = (np.diff(row_T) != 0) | (np.diff(segment_T) != 0)
    starts_P = np.flatnonzero(changed_T)
    firsts_P = starts_P[:-1]
    return Pieces(tokens_RL[row_T, place_T].astype(np.int32), np.diff(starts_P), row_T[firsts_P], segment_T[firsts_P])


def within(lengths_P: np.ndarray) -> np.ndarray:
    """Places 0, 1, ... of the tokens of each piece, flat, int64."""
    return np.arange(int(lengths_P.sum())) - np.repeat(np.cumsum(lengths_P) - lengths_P, lengths_P)


def before_in_group(values_P: np.ndarray, groups_P: np.ndarray) -> np.ndarray:
    """Sum of the values before each one in its group, int64; groups are numbers that rise."""
    ends_P = np.cumsum(values_P)
    starts_P = ends_P - values_P
    first_P = np.searchsorted(groups_P, groups_P, "left")
    return starts_P - starts_P[first_P] if len(values_P) else starts_P


def put_together(pieces: Pieces, shape: tuple[int, int], prefix: str = "") -> dict[str, np.ndarray]:
    """Rows of pieces: `tokens`, `segment_ids` and `positions`, int32 [rows, length], 0 where a row is not full.

    Args:
        pieces: what stands in the rows, in order; no row holds more than its length.
        shape: rows and length.
        prefix: "inputs_" and the like; the tokens are then called `inputs`.
    """
    lengths_P, rows_P = pieces.lengths_P, pieces.rows_P
    positions_T = within(lengths_P)
    first_P = rows_P * shape[1] + before_in_group(lengths_P, rows_P)
    places_T = np.repeat(first_P, lengths_P) + positions_T
    rows = {}
    for name, values_T in (
        (prefix.rstrip("_") or "tokens", pieces.tokens_T),
        (f"{prefix}segment_ids", np.repeat(pieces.segments_P, lengths_P)),
        (f"{prefix}positions", positions_T),
    ):
        flat = np.zeros(shape[0] * shape[1], np.int32)
        flat[places_T] = values_T
        rows[name] = flat.reshape(shape)
    return rows


def join(first: Pieces, second: Pieces) -> Pieces:
    """Each piece of `first` followed by that of `second`; both have the same pieces."""
    counts = np.stack([first.lengths_P, second.lengths_P], axis=1).reshape(-1)
    is_second_T = np.repeat(np.tile([False, True], len(first.lengths_P)), counts)
    tokens_T = np.empty(len(is_second_T), np.int32)
    tokens_T[~is_second_T], tokens_T[is_second_T] = first.tokens_T, second.tokens_T
    return Pieces(tokens_T, first.lengths_P + second.lengths_P, *first[2:])
