"""Bin packing of items with one length, or with several that are packed side by side.

The number of rows is a function of the lengths alone, so that rows can be counted once and packed anew every epoch.

One feature: best-fit decreasing on the histogram of lengths. Items of equal length are interchangeable, so the search
runs over distinct lengths and ranges of rows; after Krell et al. 2021, "Efficient Sequence Packing without
Cross-contamination" (arXiv:2107.02027). Several (an encoder's inputs, a decoder's targets): one row after another, each
time with the item that leaves the least room in the norm of Panigrahy et al. 2011, "Heuristics for Vector Bin Packing".
"""

from collections.abc import Sequence

import numpy as np


def count_rows(lengths: np.ndarray, capacity: Sequence[int]) -> int:
    """Number of rows that `pack` fills with items of these lengths."""
    sizes, counts, _ = _histogram(lengths, capacity)
    return _place(sizes, counts, capacity)[0]


def pack(lengths: np.ndarray, capacity: Sequence[int], rng: np.random.Generator) -> np.ndarray:
    """Assigns items to rows so that no row's lengths add up to more than `capacity` in any feature.

    Args:
        lengths: int [items, features]; no item is larger than an empty row, and none is 0 in every feature.
        capacity: elements a row holds, per feature.
        rng: decides which of several items of one length goes where, and the order of rows.

    Returns:
        int64 [items], the row of each item; rows are numbered from 0 without gaps.
    """
    sizes, counts, rank = _histogram(lengths, capacity)
    rows, placed = _place(sizes, counts, capacity)
    # `placed` takes items from the largest down; the permutation makes the order among equals random.
    shuffled = rng.permutation(len(lengths))
    largest_first = shuffled[np.argsort(rank[shuffled], kind="stable")]
    row_of_item = np.empty(len(lengths), np.int64)
    row_of_item[largest_first] = placed
    return rng.permutation(rows)[row_of_item]


def _histogram(lengths: np.ndarray, capacity: Sequence[int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Distinct sizes, falling in the first feature; how many items have each; and each item's place in that order."""
    keys = np.zeros(len(lengths), np.int64)
    for column, limit in zip(lengths.T, capacity, strict=True):
        keys = keys * (limit + 1) + column
    _, where, inverse, counts = np.unique(keys, return_index=True, return_inverse=True, return_counts=True)
    return lengths[where[::-1]], counts[::-1], len(counts) - 1 - inverse


def _place(sizes: np.ndarray, counts: np.ndarray, capacity: Sequence[int]) -> tuple[int, np.ndarray]:
    """The number of rows, and the row of each item, int64 [items], in the order of `sizes`."""
    if sizes.shape[1] == 1:
        return _best_fit(sizes[:, 0].tolist(), counts.tolist(), capacity[0])
    return _fill_rows(sizes, counts, capacity)


def _best_fit(sizes: list[int], counts: list[int], capacity: int) -> tuple[int, np.ndarray]:
    """Packs `counts[i]` items of `sizes[i]` (falling), each into the row with the least room in which it fits."""
    rows, runs = 0, []  # runs of items: first row, items per row, items
    free: dict[int, list[tuple[int, int]]] = {}  # room -> ranges of rows that have it: first row, rows
    rooms = 0  # bit r is set where `free[r]` holds something

    def give(room: int, first: int, count: int) -> None:
        nonlocal rooms
        if room and count:
            free.setdefault(room, []).append((first, count))
            rooms |= 1 << room

    for size, left in zip(sizes, counts, strict=True):
        while left:
            if fitting := rooms >> size << size:
                room = (fitting & -fitting).bit_length() - 1
                first, available = free[room].pop()
                if not free[room]:
                    del free[room]
                    rooms &= ~(1 << room)
                per_row = min(left, room // size)
            else:
                room, first, per_row = capacity, rows, min(left, capacity // size)
                available = left // per_row
                rows += available
            used = min(available, left // per_row)
            runs.append((first, per_row, used * per_row))
            left -= used * per_row
            give(room - per_row * size, first, used)
            give(room, first + used, available - used)
    first_row, per_row, items = np.array(runs, np.int64).reshape(-1, 3).T
    within = np.arange(items.sum()) - np.repeat(np.cumsum(items) - items, items)
    return rows, np.repeat(first_row, items) + within // np.repeat(per_row, items)


def _fill_rows(sizes: np.ndarray, counts: np.ndarray, capacity: Sequence[int]) -> tuple[int, np.ndarray]:
    """Fills one row after another, from the largest item that is left.

    What is added next leaves the smallest sum over features of scarcity * (room / capacity) ** 2; a feature is as
    scarce as its share of what is still to be packed. About 15 microseconds an item.
    """
    capacities = [float(limit) for limit in capacity]
    columns = list(np.ascontiguousarray(sizes[::-1].T, np.float64))  # whole numbers, rising in the first feature
    left, to_pack = counts[::-1].tolist(), [float(column @ counts[::-1]) for column in columns]
    by_size = iter(
        np.argsort(-np.max([c / k for c, k in zip(columns, capacities, strict=True)], axis=0), kind="stable")
    )
    fits = [column.copy() for column in columns]  # far too large once no item of a size is left
    rows, placed, item = 0, [], int(next(by_size))
    while True:
        while not left[item]:
            if (following := next(by_size, None)) is None:
                order = np.argsort([-which for which, _ in placed], kind="stable")
                return rows, np.array([row for _, row in placed], np.int64)[order]
            item = int(following)
        room, begin = list(capacities), item
        scarcity = [total / limit**3 for total, limit in zip(to_pack, capacities, strict=True)]
        while True:
            placed.append((item, rows))
            left[item] -= 1
            for feature, column in enumerate(columns):
                room[feature] -= column[item]
                to_pack[feature] -= column[item]
            if not left[item]:
                fits[-1][item] = 2.0**60
            best = _tightest(fits, room, scarcity)
            if best is None:
                break
            item = best
        rows, item = rows + 1, begin


def _tightest(fits: list[np.ndarray], room: list[float], scarcity: list[float]) -> int | None:
    """The size that fits into `room` and leaves the least of it; None where none fits."""
    stop = int(fits[0].searchsorted(room[0], "right"))  # the first feature rises: what fits comes first
    if not stop:
        return None
    score = room[0] - fits[0][:stop]
    score *= score
    score *= scarcity[0]
    for column, free, weight in zip(fits[1:], room[1:], scarcity[1:], strict=True):
        rest = free - column[:stop]
        misfit = rest < 0
        rest *= rest
        rest *= weight
        score += rest
        score[misfit] = np.inf
    best = int(score.argmin())
    return None if score[best] == np.inf else best
