"""Which pieces of which records fill row r of a source, for every r, epoch after epoch, from record lengths alone.

The cache is in a random order already, so a window is a run of consecutive records of one shard. Each window is packed
by itself; how many rows it fills depends on its lengths only, so the rows of an epoch are counted once. An epoch visits
the windows in a new order, packs each anew and shuffles its rows: any row of any epoch is found by a search in a short
array and by packing one window, and every record is used exactly once per epoch.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pretrain.core.errors import UserError
from pretrain.core.rng import host_rng, purpose_id
from pretrain.data import packing
from pretrain.data.lengths import Lengths, can_split
from pretrain.data.recent import Recent

PLAN_VERSION = 5  # part of fingerprints: raise it when the same inputs give other batches
# A window is what is shuffled together: with short rows, many of them, or the steps of a while would all see the pieces
# of a few long documents.
WINDOW_ROWS, WINDOW_ELEMENTS = 1024, 1 << 21
WINDOW_PAIRS = 2000  # records of a window at most, where several features are packed side by side, which takes longer


def ragged_arange(starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """`concatenate([arange(s, s + n) for s, n in zip(starts, lengths)])` without the loop, int64."""
    ends = np.cumsum(lengths, dtype=np.int64)
    return np.arange(ends[-1] if ends.size else 0) + np.repeat(starts - (ends - lengths), lengths)


@dataclass(frozen=True)
class Pieces:
    """Parts of records.

    Attributes:
        record: int64 [pieces], record number in the source.
        offset: int64 [pieces], elements of the record before the piece.
        length: int64 [pieces, features], elements taken from the record.
        packed: int64 [pieces, packed features], elements in the row, after the objective's `prepare`.
    """

    record: np.ndarray
    offset: np.ndarray
    length: np.ndarray
    packed: np.ndarray

    def take(self, which: np.ndarray) -> "Pieces":
        return Pieces(self.record[which], self.offset[which], self.length[which], self.packed[which])


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
    cost: dict[str, np.ndarray]

    def place(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Which of `windows` each row of the epoch belongs to, and its number within that window."""
        place = np.searchsorted(self.rows, rows, "right") - 1
        return place, rows - self.rows[place]


class SourcePlan:
    """The rows of one source.

    Args:
        name: of the source; its random choices depend on it and on nothing of the other sources.
        record_lengths: int [records, features].
        shard_starts: int [shards + 1], number of each shard's first record.
        lengths: what the objective makes of lengths, and the capacity of a row.
        seed: fixes the order of every epoch.
        window_rows: rows per window, about; by default `WINDOW_ROWS`, or, where records are cut into pieces, what holds
            `WINDOW_ELEMENTS` if that is more.
        counted: rows of each window, where an earlier plan kept them.

    Attributes:
        window_rows: int64 [windows], rows of each window.
        rows: rows of one epoch.
        cost: cost of one epoch by unit: packed "tokens", or "examples" (records).
        empty: records without any element, which are left out.
        split: records longer than a row, which are cut into pieces.

    Raises:
        UserError: a record that cannot be cut is too long for a row.
    """

    def __init__(
        self,
        name: str,
        record_lengths: np.ndarray,
        shard_starts: Sequence[int],
        lengths: Lengths,
        seed: int,
        *,
        window_rows: int | None = None,
        counted: np.ndarray | None = None,
    ):
        self.name, self._lengths, self._seed = name, lengths, seed
        self._records, self._purpose = record_lengths.astype(np.int64), purpose_id(f"source {name}")
        self._split = not lengths.whole and can_split(self._records)
        prepared, examples = self._measure()
        elements = 0 if lengths.whole else WINDOW_ELEMENTS
        window_rows = window_rows or max(WINDOW_ROWS, elements // max(lengths.capacity))
        self._bounds = _window_bounds(prepared, lengths.capacity, shard_starts, window_rows)
        if counted is None or len(counted) != len(self):
            counted = [packing.count_rows(self._cut(window).packed, lengths.capacity) for window in range(len(self))]
        self.window_rows = np.array(counted, np.int64)
        self.rows = int(self.window_rows.sum())
        sums = {"tokens": prepared.sum(axis=1), "examples": examples}
        self._window_cost = {by: np.add.reduceat(values, self._bounds[:-1]) for by, values in sums.items()}
        self.cost = {by: int(values.sum()) for by, values in self._window_cost.items()}
        self._epochs, self._windows = Recent(4), Recent(4)

    def __len__(self) -> int:
        """Number of windows."""
        return len(self._bounds) - 1

    def _measure(self) -> tuple[np.ndarray, np.ndarray]:
        """Packed elements of each record, int64 [records, packed features], and whether it counts as an example."""
        examples = self._records.any(axis=1).astype(np.int64)
        self.empty, self.split = int((examples == 0).sum()), 0
        if self._split:
            table, longest = self._lengths.table, self._lengths.longest
            full, rest = np.divmod(self._records[:, 0], longest)
            self.split = int((self._records[:, 0] > longest).sum())
            return full[:, None] * table[longest] + table[rest], examples
        prepared = self._lengths.prepared(self._records) * examples[:, None]
        long = np.flatnonzero((prepared > self._lengths.capacity).any(axis=1))
        if long.size:
            raise UserError(
                f"source {self.name}: {long.size} of {len(prepared)} records are longer than a row (the first has "
                f"{prepared[long[0]].tolist()}, a row {list(self._lengths.capacity)}) and pairs are never cut: "
                "raise the sequence length or shorten them in the task"
            )
        return prepared, examples

    def epoch(self, number: int) -> Epoch:
        """The order of windows in epoch `number`."""
        return self._epochs.get(number, lambda: self._order(number))

    def window(self, epoch: int, window: int) -> Window:
        """Window `window` (an index into the cache's order) as packed in epoch `epoch`."""
        return self._windows.get((epoch, window), lambda: self._pack(epoch, window))

    def by_epoch(self, rows: np.ndarray) -> list[tuple[int, np.ndarray, np.ndarray]]:
        """Splits rows counted from the start of epoch 0: (epoch, positions in `rows`, row numbers in the epoch)."""
        numbers = rows // self.rows
        groups = ((number, np.flatnonzero(numbers == number)) for number in np.unique(numbers).tolist())
        return [(number, chosen, rows[chosen] - number * self.rows) for number, chosen in groups]

    def locate(self, rows: np.ndarray) -> list[tuple[int, int, np.ndarray, np.ndarray]]:
        """Splits rows by window: (epoch, window, positions in `rows`, row numbers within the window)."""
        groups = []
        for number, chosen, within in self.by_epoch(rows):
            order = self.epoch(number)
            place, inside = order.place(within)
            for each in np.unique(place).tolist():
                mine = np.flatnonzero(place == each)
                groups.append((number, int(order.windows[each]), chosen[mine], inside[mine]))
        return groups

    def position(self, rows: np.ndarray, by: str, part: float = 0.5) -> np.ndarray:
        """Where on the source's line of cost the given part of each row lies, float64, rising with the row."""
        if len(self) == 1:  # every epoch is alike, and a small source may have thousands
            return (rows + part) / self.rows * self.cost[by]
        position = np.empty(len(rows))
        for number, chosen, within in self.by_epoch(rows):
            order = self.epoch(number)
            place, inside = order.place(within)
            cost, size = order.cost[by], self.window_rows[order.windows[place]]
            position[chosen] = (
                number * self.cost[by] + cost[place] + (inside + part) / size * (cost[place + 1] - cost[place])
            )
        return position

    def row_near(self, position: float, by: str) -> int:
        """The row that begins at or before `position`, give or take one for rounding."""
        number, rest = divmod(max(position, 0.0), self.cost[by])
        order = self.epoch(int(number))
        cost = order.cost[by]
        place = min(int(np.searchsorted(cost, rest, "right")) - 1, len(self) - 1)
        size = int(order.rows[place + 1] - order.rows[place])
        inside = min(int((rest - cost[place]) / (cost[place + 1] - cost[place]) * size), size - 1)
        return int(number) * self.rows + int(order.rows[place]) + inside

    def _order(self, number: int) -> Epoch:
        windows = host_rng(self._seed, "window order", self._purpose, number).permutation(len(self))
        rows, tokens, examples = (
            np.concatenate([[0], np.cumsum(values[windows])])
            for values in (self.window_rows, self._window_cost["tokens"], self._window_cost["examples"])
        )
        return Epoch(windows, rows, {"tokens": tokens, "examples": examples})

    def _pack(self, epoch: int, window: int) -> Window:
        pieces = self._cut(window)
        rng = host_rng(self._seed, "packing", self._purpose, epoch, window)
        row = packing.pack(pieces.packed, self._lengths.capacity, rng)
        order = np.argsort(row * len(row) + rng.permutation(len(row)))  # by row; within a row, at random
        return Window(pieces.take(order), np.concatenate([[0], np.cumsum(np.bincount(row))]))

    def _cut(self, window: int) -> Pieces:
        """The pieces of a window's records, in the cache's order."""
        records = np.arange(self._bounds[window], self._bounds[window + 1])
        lengths = self._records[records]
        if not self._split:
            kept = lengths.any(axis=1)
            offset = np.zeros(int(kept.sum()), np.int64)
            return Pieces(records[kept], offset, lengths[kept], self._lengths.prepared(lengths[kept]))
        longest = self._lengths.longest
        count = -(-lengths[:, 0] // longest)
        offset = ragged_arange(np.zeros_like(count), count) * longest
        length = np.minimum(np.repeat(lengths[:, 0], count) - offset, longest)
        packed = self._lengths.table[length]
        return Pieces(np.repeat(records, count), offset, np.repeat(length[:, None], lengths.shape[1], axis=1), packed)


def _window_bounds(prepared: np.ndarray, capacity: Sequence[int], shard_starts: Sequence[int], rows: int) -> np.ndarray:
    """Record numbers at which windows of about `rows` full rows begin; no window crosses a shard or is empty."""
    fullest = int(np.argmax(prepared.sum(axis=0) / capacity))
    ends = np.concatenate([[0], np.cumsum(prepared[:, fullest])])
    bounds = []
    for first, last in itertools.pairwise(shard_starts):
        count = max(1, round(int(ends[last] - ends[first]) / (rows * capacity[fullest])))
        if len(capacity) > 1:
            count = max(count, -(-(last - first) // WINDOW_PAIRS))
        targets = ends[first] + (ends[last] - ends[first]) * np.arange(1, count + 1) // count
        bounds += np.searchsorted(ends, targets).tolist()
    return np.unique([0, *(bound for bound in bounds if ends[bound] > 0)])
