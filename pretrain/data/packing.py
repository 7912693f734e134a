"""Best-fit-decreasing bin packing on the histogram of lengths.

Items of equal length are interchangeable, so the search runs over distinct lengths and ranges of bins instead of items:
its cost depends on the row length, not on the number of items, and the number of rows is a function of the histogram
alone. After Krell et al. 2021, "Efficient Sequence Packing without Cross-contamination" (arXiv:2107.02027).
"""

from collections import defaultdict

import numpy as np


def count_rows(lengths: np.ndarray, capacity: int) -> int:
    """Number of rows that `pack` fills with items of these lengths."""
    return _place(*_histogram(lengths), capacity)[0]


def pack(lengths: np.ndarray, capacity: int, rng: np.random.Generator) -> np.ndarray:
    """Assigns items to rows so that no row's lengths add up to more than `capacity`.

    Args:
        lengths: int [items], each in 1..capacity.
        capacity: tokens a row holds.
        rng: decides which of several items of one length goes where, and the order of rows.

    Returns:
        int64 [items], the row of each item; rows are numbered from 0 without gaps.
    """
    rows, placed = _place(*_histogram(lengths), capacity)
    first_bin, per_bin, items = np.array(placed, np.int64).reshape(-1, 3).T
    # `placed` takes items from the longest down; the permutation makes the order among equals random.
    shuffled = rng.permutation(len(lengths))
    longest_first = shuffled[np.argsort(-lengths[shuffled].astype(np.int64), kind="stable")]
    within = np.arange(len(lengths)) - np.repeat(np.cumsum(items) - items, items)
    row_of_item = np.empty(len(lengths), np.int64)
    row_of_item[longest_first] = np.repeat(first_bin, items) + within // np.repeat(per_bin, items)
    return rng.permutation(rows)[row_of_item]


def _histogram(lengths: np.ndarray) -> tuple[list[int], list[int]]:
    counts = np.bincount(lengths)
    sizes = np.flatnonzero(counts)[::-1]
    return sizes.tolist(), counts[sizes].tolist()


def _place(sizes: list[int], counts: list[int], capacity: int) -> tuple[int, list[tuple[int, int, int]]]:
    """Packs `counts[i]` items of `sizes[i]`, sizes falling, each into the fullest row that still takes it.

    Returns:
        The number of rows, and for each run of items in order: (first row, items per row, items).
    """
    rows, placed = 0, []
    free = defaultdict(list)  # room left -> ranges of rows (first, count) with exactly that room
    rooms = 0  # bit r is set when free[r] is not empty
    for size, left in zip(sizes, counts, strict=True):
        while left:
            fitting = rooms >> size
            if fitting:
                room = size + (fitting & -fitting).bit_length() - 1
                first, available = free[room].pop()
                if not free[room]:
                    rooms &= ~(1 << room)
            else:
                room, first = capacity, rows
                available = max(1, left // (capacity // size))
                rows += available
            per_row = min(room // size, left)
            used = min(available, left // per_row)
            placed.append((first, per_row, used * per_row))
            left -= used * per_row
            for rest, start, count in ((room - per_row * size, first, used), (room, first + used, available - used)):
                if rest and count:
                    free[rest].append((start, count))
                    rooms |= 1 << rest
    return rows, placed
