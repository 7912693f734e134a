"""Which pieces of which records fill row r of a source, for every r, epoch after epoch, from record lengths alone.

The cache is in a random order already, so a window is a run of consecutive records of one shard. Each window is packed
by itself; how many rows it fills depends on its lengths only, so the rows of an epoch are counted once. An epoch visits
the windows in a new order, packs each anew and shuffles its rows: any row of any epoch is found by a search in a short
array and by packing one window, and every record is used exactly once per epoch.
"""

import itertools
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pretrain.core.errors import check
from pretrain.core.rng import host_rng, purpose_id
from pretrain.data import packing

WINDOW_ROWS = 2048


class Recent:
    """Keeps the results of the last few calls; threads that ask for the same one wait for it."""

    def __init__(self, size: int):
        self._size, self._kept, self._lock = size, OrderedDict(), threading.RLock()

    def get(self, key: Hashable, make: Callable[[], Any]) -> Any:
        with self._lock:
            if key not in self._kept:
                self._kept[key] = make()
                while len(self._kept) > self._size:
                    self._kept.popitem(last=False)
            self._kept.move_to_end(key)
            return self._kept[key]

    def __getstate__(self) -> int:
        return self._size

    def __setstate__(self, size: int) -> None:
        self.__init__(size)


def ragged_arange(starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """`concatenate([arange(s, s + n) for s, n in zip(starts, lengths)])` without the loop, int64."""
    ends = np.cumsum(lengths, dtype=np.int64)
    return np.arange(ends[-1] if ends.size else 0) + np.repeat(starts - (ends - lengths), lengths)


@dataclass(frozen=True)
class Pieces:
    """Parts of records, in the order in which they stand in their rows.

    Attributes:
        record: int64 [pieces], record number in the source.
        offset: int64 [pieces], where the piece begins in its record, in tokens.
        length: int64 [pieces], tokens taken from the record.
        packed_length: int64 [pieces], tokens in the row, after the objective's `prepare`.
    """

    record: np.ndarray
    offset: np.ndarray
    length: np.ndarray
    packed_length: np.ndarray

    def take(self, which: np.ndarray) -> "Pieces":
        return Pieces(self.record[which], self.offset[which], self.length[which], self.packed_length[which])


@dataclass(frozen=True)
class Window:
    """A packed window: row r holds pieces `starts[r]:starts[r + 1]`."""

    pieces: Pieces
    starts: np.ndarray


@dataclass(frozen=True)
class Epoch:
    """The order of one epoch: `windows[i]` fills rows `rows[i]:rows[i + 1]` and covers cost `cost[i]:cost[i + 1]`."""

    windows: np.ndarray
    rows: np.ndarray
    cost: np.ndarray


class SourcePlan:
    """The rows of one source.

    Args:
        name: of the source; its random choices depend on it and on nothing of the other sources.
        lengths: int [records], tokens of each record.
        shard_starts: int [shards + 1], number of each shard's first record.
        capacity: tokens a row holds.
        prepared_length: what the objective makes of a length; must not fall as the length grows.
        seed: fixes the order of every epoch.
        by: what a row costs in the mixture, "tokens" or "examples" (records).
        window_rows: rows per window, about.

    Attributes:
        rows: rows of one epoch.
        tokens: packed tokens of one epoch.
        cost: cost of one epoch, in tokens or examples.
        piece_length: longest part of a record that fits a row; longer records are split into parts of this length.
    """

    def __init__(
        self,
        name: str,
        lengths: np.ndarray,
        shard_starts: np.ndarray,
        capacity: int,
        prepared_length: Callable[[np.ndarray], np.ndarray],
        seed: int,
        *,
        by: str = "tokens",
        window_rows: int = WINDOW_ROWS,
    ):
        self.name, self._lengths, self._capacity, self._seed = name, lengths.astype(np.int64), capacity, seed
        self._purpose = purpose_id(f"source {name}")
        self._prepared, self.piece_length = _prepared_table(prepared_length, capacity)
        full, rest = np.divmod(self._lengths, self.piece_length)
        prepared = full * self._prepared[self.piece_length] + self._prepared[rest]
        self._bounds = _window_bounds(prepared, shard_starts, window_rows * capacity)
        counted = [packing.count_rows(self._cut(window).packed_length, capacity) for window in range(len(self))]
        self._window_rows = np.array(counted, np.int64)
        totals = np.concatenate([[0], np.cumsum(prepared)])[self._bounds]
        self._window_cost = np.diff(totals if by == "tokens" else self._bounds)
        self.tokens, self.rows, self.cost = int(totals[-1]), int(self._window_rows.sum()), int(self._window_cost.sum())
        self._epochs, self._windows = Recent(4), Recent(4)

    def __len__(self) -> int:
        """Number of windows."""
        return len(self._bounds) - 1

    def epoch(self, number: int) -> Epoch:
        """The order of windows in epoch `number`."""
        return self._epochs.get(number, lambda: self._order(number))

    def window(self, epoch: int, window: int) -> Window:
        """Window `window` (an index into the cache's order) as packed in epoch `epoch`."""
        return self._windows.get((epoch, window), lambda: self._pack(epoch, window))

    def locate(self, rows: np.ndarray) -> list[tuple[int, int, np.ndarray, np.ndarray]]:
        """Groups rows by window.

        Args:
            rows: int64 [n], rising, counted from the start of epoch 0.

        Returns:
            (epoch, window, positions in `rows`, row numbers within the window) for each window touched.
        """
        groups = []
        numbers = rows // self.rows
        for number in np.unique(numbers).tolist():
            chosen = np.flatnonzero(numbers == number)
            order = self.epoch(number)
            within = rows[chosen] - number * self.rows
            place = np.searchsorted(order.rows, within, "right") - 1
            for each in np.unique(place).tolist():
                mine = place == each
                groups.append((number, int(order.windows[each]), chosen[mine], within[mine] - order.rows[each]))
        return groups

    def _order(self, number: int) -> Epoch:
        windows = host_rng(self._seed, "window order", self._purpose, number).permutation(len(self))
        rows, cost = (np.concatenate([[0], np.cumsum(a[windows])]) for a in (self._window_rows, self._window_cost))
        return Epoch(windows, rows, cost)

    def _pack(self, epoch: int, window: int) -> Window:
        pieces = self._cut(window)
        rng = host_rng(self._seed, "packing", self._purpose, epoch, window)
        row = packing.pack(pieces.packed_length, self._capacity, rng)
        order = np.argsort(row * len(row) + rng.permutation(len(row)))  # by row; within a row, at random
        starts = np.concatenate([[0], np.cumsum(np.bincount(row))])
        return Window(pieces.take(order), starts)

    def _cut(self, window: int) -> Pieces:
        """The pieces of a window's records, in the cache's order."""
        records = np.arange(self._bounds[window], self._bounds[window + 1])
        lengths = self._lengths[records]
        count = -(-lengths // self.piece_length)
        record = np.repeat(records, count)
        offset = ragged_arange(np.zeros_like(count), count) * self.piece_length
        length = np.minimum(np.repeat(lengths, count) - offset, self.piece_length)
        return Pieces(record, offset, length, self._prepared[length])


def _prepared_table(prepared_length: Callable, capacity: int) -> tuple[np.ndarray, int]:
    """Prepared lengths of 0..n, where n is the longest that fits `capacity`."""
    lengths = np.arange(4 * capacity + 1)
    prepared = np.asarray(prepared_length(lengths[1:]), np.int64)
    check(prepared.shape == (4 * capacity,), "the objective's prepared_length must return one length for each it gets")
    check(bool(np.all(np.diff(prepared) >= 0)), "the objective's prepared_length must not fall as the length grows")
    check(prepared[0] >= 1, "the objective's prepared_length must be 1 or more")
    longest = int(np.searchsorted(prepared, capacity, "right"))
    check(longest > 0, f"not even a record of one token fits a sequence of {capacity} after the objective's prepare")
    return np.concatenate([[0], prepared[:longest]]), longest


def _window_bounds(prepared: np.ndarray, shard_starts: Sequence[int], tokens: int) -> np.ndarray:
    """Record numbers at which windows of about equal size begin; no window crosses a shard."""
    ends = np.concatenate([[0], np.cumsum(prepared)])
    bounds = [0]
    for first, last in itertools.pairwise(shard_starts):
        count = max(1, round(int(ends[last] - ends[first]) / tokens))
        targets = ends[first] + (ends[last] - ends[first]) * np.arange(1, count + 1) // count
        bounds += np.searchsorted(ends, targets).tolist()
    return np.unique(np.array(bounds, np.int64))
