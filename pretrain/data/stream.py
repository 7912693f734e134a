"""In which order the rows of several sources follow each other: exact rates, no history.

Each source lays its rows on a line, each as long as its cost (tokens or examples); a source with share w moves along
its line at speed w. Merging by the time at which the middle of a row is passed gives every source its share at every
moment, to within a row, and what comes after any number of rows is found by a search, not by running through them.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from pretrain.core.errors import check
from pretrain.data.mixing import Phase
from pretrain.data.plan import SourcePlan
from pretrain.data.recent import Recent

BLOCK_ROWS = 4096


class Stream:
    """The merged rows of all sources, numbered from 0 for ever.

    Args:
        plans: by source.
        phases: which shares hold from which row on; the first begins at row 0.

    Attributes:
        sources: names, in the order of the source numbers that `rows` returns.
        plans: in the same order.
    """

    def __init__(self, plans: Mapping[str, SourcePlan], phases: Sequence[Phase]):
        self.sources = sorted({source for phase in phases for source in phase.shares})
        self.plans = [plans[source] for source in self.sources]
        self._starts = np.array([phase.row for phase in phases])
        self._merges, begun = [], np.zeros(len(self.sources), np.int64)
        for number, phase in enumerate(phases):
            self._merges.append(_Merge(self.plans, [phase.shares.get(s, 0.0) for s in self.sources], phase.by, begun))
            if number + 1 < len(phases):
                begun = begun + self._merges[-1].begun(phases[number + 1].row - phase.row)
        self._blocks = Recent(4)

    def rows(self, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        """Source number and row number in that source, int64 [stop - start] each, of rows start..stop."""
        blocks = [self._block(block) for block in range(start // BLOCK_ROWS, -(-stop // BLOCK_ROWS))]
        inside = slice(start % BLOCK_ROWS, start % BLOCK_ROWS + stop - start)
        return np.concatenate([source for source, _ in blocks])[inside], np.concatenate([row for _, row in blocks])[
            inside
        ]

    def end(self, stop: str, epochs: Mapping[str, float]) -> int | None:
        """The row at which the stream ends, as `MixtureConfig.stop` says; None when it never does.

        Args:
            stop: "never", "first" or "all".
            epochs: how often each source is to be read; once where it is not named.
        """
        if stop == "never":
            return None
        ends = []
        for number, (source, plan) in enumerate(zip(self.sources, self.plans, strict=True)):
            row = round(epochs.get(source, 1) * plan.rows)
            ends.append(self._row_of(number, row) if stop == "first" else self._row_of(number, row - 1))
        reached = [end for end in ends if end is not None]
        check(
            stop == "first" or len(reached) == len(ends), "MixtureConfig.stop = 'all' is never reached: a weight is 0"
        )
        check(bool(reached), "MixtureConfig.stop = 'first' is never reached")
        return min(reached) if stop == "first" else max(reached) + 1

    def _block(self, block: int) -> tuple[np.ndarray, np.ndarray]:
        return self._blocks.get(block, lambda: self._make_block(block * BLOCK_ROWS, (block + 1) * BLOCK_ROWS))

    def _make_block(self, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        parts = []
        while start < stop:
            number = self._phase(start)
            end = stop if number + 1 == len(self._starts) else min(stop, int(self._starts[number + 1]))
            parts.append(self._merges[number].rows(start - int(self._starts[number]), end - int(self._starts[number])))
            start = end
        return np.concatenate([source for source, _ in parts]), np.concatenate([row for _, row in parts])

    def _phase(self, row: int) -> int:
        return int(np.searchsorted(self._starts, row, "right")) - 1

    def _row_of(self, source: int, row: int) -> int | None:
        """The row of the stream at which a source's row stands; None when it never comes."""
        for number, merge in enumerate(self._merges):
            place = merge.place(source, row)
            if place is not None and self._phase(int(self._starts[number]) + place) == number:
                return int(self._starts[number]) + place
        return None


class _Merge:
    """One phase: the merged order of the sources from given rows on, numbered from 0."""

    def __init__(self, plans: Sequence[SourcePlan], shares: Sequence[float], by: str, begun: np.ndarray):
        self._plans, self._shares, self._by, self._begun = plans, shares, by, begun
        self._read = [number for number, share in enumerate(shares) if share > 0]
        self._origin = [float(p.position(np.array([b]), by, 0.0)[0]) for p, b in zip(plans, begun, strict=True)]
        # Rows of all sources per unit of time, about; where a search for a row begins.
        self._rate = sum(shares[number] * plans[number].rows / plans[number].cost[by] for number in self._read)

    def rows(self, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        slack = 2 * len(self._read)
        before, after = self._passed(self._time_of(start)), self._passed(self._time_of(stop + slack))
        numbers = np.repeat(np.arange(len(before)), after - before)
        rows = np.concatenate([np.arange(low, high) for low, high in zip(before, after, strict=True)])
        times = np.empty(len(rows))
        for number in self._read:
            times[numbers == number] = self._times(number, rows[numbers == number])
        order = np.lexsort((rows, numbers, times))
        order = order[start - before.sum() :][: stop - start]
        return numbers[order], rows[order] + self._begun[numbers[order]]

    def begun(self, rows: int) -> np.ndarray:
        """How many of the first `rows` merged rows belong to each source, int64 [sources]."""
        passed = self._passed(self._time_of(rows))
        numbers, _ = self.rows(int(passed.sum()), rows)
        return passed + np.bincount(numbers, minlength=len(passed))

    def place(self, source: int, row: int) -> int | None:
        """The merged row at which a source's row stands; None when it came before this phase or is not read."""
        if source not in self._read or row < self._begun[source]:
            return None
        time = self._times(source, np.array([row - self._begun[source]]))[0]
        return int(self._passed(time, source).sum())

    def _times(self, source: int, rows: np.ndarray) -> np.ndarray:
        position = self._plans[source].position(rows + self._begun[source], self._by)
        return (position - self._origin[source]) / self._shares[source]

    def _passed(self, time: float, tie: int = 0) -> np.ndarray:
        """Rows of each source with their middle before `time`, or at it for sources below `tie`; int64 [sources]."""
        passed = np.zeros(len(self._plans), np.int64)
        for number in self._read:
            position = self._origin[number] + time * self._shares[number]
            row = self._plans[number].row_near(position, self._by) - int(self._begun[number])
            near = np.arange(max(row - 2, 0), max(row, 0) + 3)
            passed[number] = near[0] + np.searchsorted(
                self._times(number, near), time, "right" if number < tie else "left"
            )
        return passed

    def _time_of(self, rows: int) -> float:
        """A time before which at most `rows` rows have passed, and fewer by twice the number of sources at most."""
        low, low_count, high = 0.0, 0, (rows + 1) / self._rate
        while (high_count := int(self._passed(high).sum())) <= rows:
            low, low_count, high = high, high_count, 2 * high
        halve = False
        while low_count < rows - 2 * len(self._read):
            part = 0.5 if halve else min(max((rows - low_count) / (high_count - low_count), 0.01), 0.99)
            middle = low + (high - low) * part
            if not low < middle < high:
                break
            count = int(self._passed(middle).sum())
            if count <= rows:
                low, low_count = middle, count
            else:
                high, high_count = middle, count
            halve = not halve
        return low
