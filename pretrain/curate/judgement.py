"""What judgements share: which part of a document is looked at, and what becomes of it once it has a score.

A judgement always writes its score into the document's metadata. Its action says whether it also rejects: `drop` or
`tag`. Scores are rounded before they are compared, so that what is written is what decided.
"""

import json
from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from pretrain.core.errors import check
from pretrain.curate.stages import rejections, tags

DROP, TAG = "drop", "tag"
DIGITS = 4
WINDOWS = 3


def check_action(stage: str, action: str) -> None:
    """Refuses anything but `drop` and `tag`."""
    check(action in (DROP, TAG), f"{stage}.action must be '{DROP}' or '{TAG}', not {action!r}")


def check_fraction(stage: str, field: str, value: float) -> None:
    """Refuses thresholds outside 0 … 1."""
    check(0 <= value <= 1, f"{stage}.{field} must lie in 0 … 1, not {value}")


def judged(
    ids: pa.Array, name: str, scores: np.ndarray, is_rejected: np.ndarray, threshold: float, action: str
) -> pa.Table:
    """Decisions that tag all `ids` with {name: score} and, if the action is to drop, reject those marked.

    Args:
        ids: N document ids.
        name: of the tag and of the rule.
        scores: [N] float64, rounded.
        is_rejected: [N] bool.
    """
    decisions = [tags(ids, name, pa.array(scores, pa.float64()))]
    if action == DROP:
        row = pa.array(np.flatnonzero(is_rejected))
        decisions.append(rejections(ids.take(row), name, pa.array(scores[is_rejected]), threshold))
    return pa.concat_tables(decisions)


def sample(texts: pa.Array, characters: int) -> list[str]:
    """Each text, or of a longer one equal windows at its start, middle and end, on lines of their own."""
    return [text if len(text) <= characters else _windows(text, characters) for text in texts.to_pylist()]


def _windows(text: str, characters: int) -> str:
    width = max(1, characters // WINDOWS)
    starts = [round(index * (len(text) - width) / (WINDOWS - 1)) for index in range(WINDOWS)]
    return "\n".join(text[start : start + width] for start in starts)


def languages(documents: pa.RecordBatch) -> list[str | None]:
    """What a `Language` stage before wrote about each document; None where there was none."""
    return [json.loads(metadata).get("language") for metadata in documents["metadata"].to_pylist()]


def in_languages(documents: pa.RecordBatch, wanted: Sequence[str]) -> pa.RecordBatch:
    """The documents tagged with one of the languages; all documents if none are wanted."""
    if not wanted:
        return documents
    return documents.filter(pa.array([language in wanted for language in languages(documents)], pa.bool_()))
