"""What rule-based filters share: measures of a batch against thresholds, and batches in parts of bounded size."""

from collections.abc import Callable

import numpy as np
import pyarrow as pa

from pretrain.core.errors import check
from pretrain.curate.documents import text_bytes
from pretrain.curate.stages import DECISIONS, rejections
from pretrain.curate.words import blocks

PART_BYTES = 8 << 20


class Checks:
    """Collects for each document of a batch the first rule that it breaks."""

    def __init__(self, ids: pa.Array):
        self.ids, self.is_broken, self._decisions = ids, np.zeros(len(ids), bool), [DECISIONS.empty_table()]

    def at_most(self, stage: object, rule: str, values: np.ndarray) -> None:
        """Breaks `rule` where a value is above the stage's attribute of that name."""
        self.broken(rule, values > getattr(stage, rule), values, getattr(stage, rule))

    def at_least(self, stage: object, rule: str, values: np.ndarray) -> None:
        """Breaks `rule` where a value is below the stage's attribute of that name."""
        self.broken(rule, values < getattr(stage, rule), values, getattr(stage, rule))

    def broken(self, rule: str, where: np.ndarray, values: np.ndarray, threshold: float) -> None:
        """Breaks `rule` for the documents marked, unless they broke one before."""
        row = np.flatnonzero(where & ~self.is_broken)
        self.is_broken[row] = True
        self._decisions.append(rejections(self.ids.take(pa.array(row)), rule, pa.array(values[row]), threshold))

    def rejected(self) -> pa.Table:
        """Decisions that reject every document that broke a rule."""
        return pa.concat_tables(self._decisions)


def in_parts(decide: Callable[[pa.RecordBatch], pa.Table], documents: pa.RecordBatch) -> pa.Table:
    """What `decide` says of all documents, given to it a few megabytes at a time."""
    parts = [
        decide(documents.slice(start, end - start))
        for start, end in blocks(text_bytes(documents).to_numpy(), PART_BYTES)
    ]
    return pa.concat_tables([DECISIONS.empty_table(), *parts])


def check_fractions(stage: object, *names: str) -> None:
    """Raises UserError unless these attributes of a stage lie in 0 … 1."""
    for name in names:
        value = getattr(stage, name)
        check(0 <= value <= 1, f"{type(stage).__name__}.{name} must lie in 0 … 1, not {value}")
