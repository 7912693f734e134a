"""In which order rows of several sources follow each other: exact rates, no history.

Each source lays its rows on a line, each as long as its cost (tokens or examples); a source of weight w moves along its
line at speed w. Merging by the time at which a row's middle is passed gives every source its share at every moment, to
within a row, and the position after any number of rows is found by bisection instead of by running through them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import gin
import numpy as np

from pretrain.core.errors import check
from pretrain.data.plan import Recent, SourcePlan

BLOCK_ROWS = 4096


@gin.configurable
@dataclass(frozen=True)
class MixtureConfig:
    """What share of the training stream each source gets.

    Attributes:
        weights: source -> share, any positive scale; a source left out or with weight 0 is not read. None: by size.
        by: what the shares count, "tokens" or "examples".
        temperature: without weights, shares are size ** (1 / temperature) (mT5, arXiv:2010.11934).
    """

    weights: Mapping[str, float] | None = None
    by: str = "tokens"
    temperature: float = 1.0

    def __post_init__(self):
        check(self.by in ("tokens", "examples"), f"MixtureConfig.by = {self.by!r}: 'tokens' or 'examples'")
        check(self.temperature > 0, f"MixtureConfig.temperature = {self.temperature} must be positive")
        for source, weight in (self.weights or {}).items():
            check(
                0 <= weight < float("inf"), f"MixtureConfig.weights: {source} has weight {weight}; it must be 0 or more"
            )
        check(self.weights is None or sum(self.weights.values()) > 0, "MixtureConfig.weights: every weight is 0")

    def shares(self, sizes: Mapping[str, float]) -> dict[str, float]:
        """Shares that add up to 1, for the sources that are read, in order of name."""
        weights = self.weights
        if weights is None:
            weights = {source: size ** (1 / self.temperature) for source, size in sizes.items()}
        unknown = sorted(set(weights) - set(sizes))
        check(not unknown, f"MixtureConfig.weights: no source {', '.join(unknown)}; the cache has {', '.join(sizes)}")
        total = sum(weights.values())
        return {source: weights[source] / total for source in sorted(weights) if weights[source] > 0}


@dataclass(frozen=True)
class Merge:
    """The merged order of rows of several sources.

    Attributes:
        plans: one per source.
        shares: speed of each source, adding up to 1.
    """

    plans: Sequence[SourcePlan]
    shares: Sequence[float]
    _blocks: Recent = field(default_factory=lambda: Recent(4), repr=False)

    def rows(self, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        """Source number and row number in the source, int64 [stop - start] each, of the merged rows start..stop."""
        parts = []
        for block in range(start // BLOCK_ROWS, -(-stop // BLOCK_ROWS)):
            source, row = self._blocks.get(block, lambda block=block: self._block(block))
            inside = slice(max(start - block * BLOCK_ROWS, 0), stop - block * BLOCK_ROWS)
            parts.append((source[inside], row[inside]))
        return np.concatenate([source for source, _ in parts]), np.concatenate([row for _, row in parts])

    def counts(self, time: float) -> np.ndarray:
        """Rows of each source before `time`, int64 [sources]."""
        return np.array([_rows_before(plan, share, time) for plan, share in zip(self.plans, self.shares, strict=True)])

    def _block(self, block: int) -> tuple[np.ndarray, np.ndarray]:
        first = block * BLOCK_ROWS
        before = self.counts(self._time_of(first))
        after = self.counts(self._time_of(first + BLOCK_ROWS + 2 * len(self.plans)))
        time, source, row = [], [], []
        for number, (low, high) in enumerate(zip(before, after, strict=True)):
            rows = np.arange(low, high)
            time.append(_times(self.plans[number], self.shares[number], rows))
            source.append(np.full(len(rows), number))
            row.append(rows)
        source, row = np.concatenate(source), np.concatenate(row)
        order = np.lexsort((row, source, np.concatenate(time)))[first - before.sum() :][:BLOCK_ROWS]
        return source[order], row[order]

    def _time_of(self, rows: int) -> float:
        """A time before which at most `rows` rows have passed, and at most twice the number of sources fewer."""
        low, low_count = 0.0, 0
        high = (rows + 1) * sum(s * p.cost / p.rows for s, p in zip(self.shares, self.plans, strict=True))
        while (high_count := self.counts(high).sum()) <= rows:
            low, low_count, high = high, high_count, 2 * high
        halve = False
        while low_count < rows - 2 * len(self.plans):
            part = 0.5 if halve else np.clip((rows - low_count) / (high_count - low_count), 0.01, 0.99)
            middle = low + (high - low) * part
            if not low < middle < high:
                break
            count = self.counts(middle).sum()
            if count <= rows:
                low, low_count = middle, count
            else:
                high, high_count = middle, count
            halve = not halve
        return low


def _times(plan: SourcePlan, share: float, rows: np.ndarray) -> np.ndarray:
    """When the middles of `rows` are passed, float64, rising."""
    times = np.empty(len(rows))
    numbers = rows // plan.rows
    for number in np.unique(numbers).tolist():
        chosen = numbers == number
        order = plan.epoch(number)
        within = rows[chosen] - number * plan.rows
        place = np.searchsorted(order.rows, within, "right") - 1
        fraction = (within - order.rows[place] + 0.5) / (order.rows[place + 1] - order.rows[place])
        cost = order.cost[place] + fraction * (order.cost[place + 1] - order.cost[place])
        times[chosen] = (number * plan.cost + cost) / share
    return times


def _rows_before(plan: SourcePlan, share: float, time: float) -> int:
    """How many rows of the source have their middle before `time`, exactly as `_times` sees it."""
    number, cost = divmod(time * share, plan.cost)
    order = plan.epoch(int(number))
    place = min(int(np.searchsorted(order.cost, cost, "right")) - 1, len(order.windows) - 1)
    rows, width = order.rows[place], order.rows[place + 1] - order.rows[place]
    fraction = (cost - order.cost[place]) / (order.cost[place + 1] - order.cost[place])
    count = int(number) * plan.rows + int(rows + np.clip(np.ceil(fraction * width - 0.5), 0, width))
    near = np.arange(max(count - 1, 0), count + 2)
    return int(near[0] + np.searchsorted(_times(plan, share, near), time))
