"""Best-fit-decreasing bin packing on the histogram of lengths.

Items of equal length are interchangeable, so the search runs over distinct lengths and ranges of rows instead of items:
its cost depends on the row length, not on the number of items, and the number of rows is a function of the histogram
alone. After Krell et al. 2021, "Efficient Sequence Packing without Cross-contamination" (arXiv:2107.02027), here for
any number of features packed side by side (an encoder's inputs and a decoder's targets).
"""

from collections import defaultdict
from collections.abc import Sequence
from operator import floordiv, ge

import numpy as np

Sizes = tuple[int, ...]  # one length per feature
LEVELS = 128  # how many different amounts of room in the first feature are tried before a new row is opened


def count_rows(lengths: np.ndarray, capacity: Sequence[int]) -> int:
    """Number of rows that `pack` fills with items of these lengths."""
    sizes, counts, _ = _histogram(lengths, capacity)
    return _place(sizes, counts, tuple(capacity))[0]


def pack(lengths: np.ndarray, capacity: Sequence[int], rng: np.random.Generator) -> np.ndarray:
    """Assigns items to rows so that no row's lengths add up to more than `capacity` in any feature.

    Args:
        lengths: int [items, features]; each at least 1, and no item larger than an empty row.
        capacity: elements a row holds, per feature.
        rng: decides which of several items of one length goes where, and the order of rows.

    Returns:
        int64 [items], the row of each item; rows are numbered from 0 without gaps.
    """
    sizes, counts, rank = _histogram(lengths, capacity)
    rows, placed = _place(sizes, counts, tuple(capacity))
    first_row, per_row, items = np.array(placed, np.int64).reshape(-1, 3).T
    # `placed` takes items from the largest down; the permutation makes the order among equals random.
    shuffled = rng.permutation(len(lengths))
    largest_first = shuffled[np.argsort(rank[shuffled], kind="stable")]
    within = np.arange(len(lengths)) - np.repeat(np.cumsum(items) - items, items)
    row_of_item = np.empty(len(lengths), np.int64)
    row_of_item[largest_first] = np.repeat(first_row, items) + within // np.repeat(per_row, items)
    return rng.permutation(rows)[row_of_item]


def _histogram(lengths: np.ndarray, capacity: Sequence[int]) -> tuple[list[Sizes], list[int], np.ndarray]:
    """Distinct sizes from the largest down, how many items have each, and each item's place in that order."""
    keys = np.zeros(len(lengths), np.int64)
    for column, limit in zip(lengths.T, capacity, strict=True):
        keys = keys * (limit + 1) + column
    _, where, inverse, counts = np.unique(keys, return_index=True, return_inverse=True, return_counts=True)
    sizes = lengths[where]
    fullest = np.max(sizes / np.asarray(capacity), axis=1)
    order = np.lexsort((-np.arange(len(sizes)), -fullest))
    rank = np.empty(len(order), np.int64)
    rank[order] = np.arange(len(order))
    return [tuple(size) for size in sizes[order].tolist()], counts[order].tolist(), rank[inverse]


def _place(sizes: list[Sizes], counts: list[int], capacity: Sizes) -> tuple[int, list[tuple[int, int, int]]]:
    """Packs `counts[i]` items of `sizes[i]`, each into the row with the least room in which it fits.

    Returns:
        The number of rows, and for each run of items in order: (first row, items per row, items).
    """
    rows, placed, free = 0, [], _Free()
    for size, left in zip(sizes, counts, strict=True):
        while left:
            found = free.take(size)
            if found:
                room, first, available = found
                per_row = min(left, *map(floordiv, room, size))
            else:
                room, first = capacity, rows
                per_row = min(left, *map(floordiv, room, size))
                available = left // per_row
                rows += available
            used = min(available, left // per_row)
            placed.append((first, per_row, used * per_row))
            left -= used * per_row
            free.give(tuple([r - per_row * s for r, s in zip(room, size, strict=True)]), first, used)
            if available > used:
                free.give(room, first + used, available - used)
    return rows, placed


class _Free:
    """Ranges of rows by the room left in them; the first feature's room is found by the bits of one integer."""

    def __init__(self):
        self._ranges = defaultdict(dict)  # room in the first feature -> room -> [(first row, rows)]
        self._rooms = 0

    def give(self, room: Sizes, first: int, rows: int) -> None:
        if min(room):
            self._ranges[room[0]].setdefault(room, []).append((first, rows))
            self._rooms |= 1 << room[0]

    def take(self, size: Sizes) -> tuple[Sizes, int, int] | None:
        """Removes a range of rows with the least room that is enough for `size`."""
        fitting = self._rooms >> size[0] << size[0]
        for _ in range(LEVELS):
            if not fitting:
                return None
            lowest = (fitting & -fitting).bit_length() - 1
            candidates = self._ranges[lowest]
            for room, ranges in candidates.items():
                if all(map(ge, room, size)):
                    found = room, *ranges.pop()
                    if not ranges:
                        del candidates[room]
                        if not candidates:
                            self._rooms &= ~(1 << lowest)
                    return found
            fitting &= fitting - 1
        return None
