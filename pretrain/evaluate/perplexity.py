"""Exact bits per byte and perplexity of held-out documents: every token is predicted once, in as much context as fits.

A document longer than the sequence is read in windows that overlap; a token is scored only in the window where it has
at least `context` tokens before it (Baevski and Auli 2019, section 5.3). Axes: B batch · L length.
"""

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterable, Iterator

import gin
import numpy as np

from pretrain.core.batch import Batch
from pretrain.core.errors import check
from pretrain.core.fields import check_fields

WINDOWS_AT_ONCE = 20_000  # packed together; bounds memory, whatever the size of the held-out set


@gin.configurable
@dataclasses.dataclass(frozen=True)
class Perplexity:
    """How held-out documents are read.

    Attributes:
        batch_size: rows per step.
        context: part of the window that is repeated as context when a document goes on, in [0, 1).
    """

    batch_size: int = 16
    context: float = 0.5

    def __post_init__(self):
        check_fields(self)
        check(self.batch_size >= 1, f"Perplexity.batch_size must be >= 1, got {self.batch_size}")
        check(0 <= self.context < 1, f"Perplexity.context must be in [0, 1), got {self.context}")


@dataclasses.dataclass(frozen=True)
class Window:
    """A part of a document: `inputs[i]` predicts `targets[i]`; the first `skip` targets are context, not scored."""

    inputs: np.ndarray
    targets: np.ndarray
    skip: int


def document_windows(tokens: np.ndarray, bos_id: int, length: int, context: int) -> Iterator[Window]:
    """Windows of at most `length` that score each token of a document (its end token included) exactly once."""
    inputs = np.concatenate([[bos_id], tokens[:-1]]).astype(np.int32)
    start = scored = 0
    while scored < len(tokens):
        end = min(start + length, len(tokens))
        yield Window(inputs[start:end], tokens[start:end].astype(np.int32), scored - start)
        scored, start = end, end - context


def packed_rows(windows: Iterable[Window], length: int) -> Iterator[list[Window]]:
    """Windows put together in rows of at most `length`, longest first, each in the fullest row it fits in."""
    space: dict[int, list[list[Window]]] = {}
    for window in sorted(windows, key=lambda w: -len(w.inputs)):
        size = len(window.inputs)
        fits = [left for left, rows in space.items() if left >= size and rows]
        left = min(fits, default=length)
        row = space[left].pop() if fits else []
        row.append(window)
        if left == size:
            yield row
        else:
            space.setdefault(left - size, []).append(row)
    for rows in space.values():
        yield from rows


def rows_to_batch(rows: list[list[Window]], batch_size: int, length: int) -> Batch:
    """A causal batch of `rows`, padded to `batch_size`; weights are 1 on the tokens to score."""
    names = ("tokens", "targets", "segment_ids", "positions")
    batch = {name: np.zeros((batch_size, length), np.int32) for name in names}
    batch["loss_weights"] = np.zeros((batch_size, length), np.float32)
    for index, row in enumerate(rows):
        start = 0
        for segment, window in enumerate(row, start=1):
            span = slice(start, start + len(window.inputs))
            batch["tokens"][index, span] = window.inputs
            batch["targets"][index, span] = window.targets
            batch["segment_ids"][index, span] = segment
            batch["positions"][index, span] = np.arange(len(window.inputs))
            batch["loss_weights"][index, start + window.skip : span.stop] = 1
            start = span.stop
    return batch


def score_documents(
    documents: Iterable[np.ndarray],
    score: Callable[[Batch], float],
    config: Perplexity,
    *,
    bos_id: int,
    length: int,
    on_batch: Callable[[int], None] = lambda tokens: None,
) -> tuple[float, int]:
    """Total negative log-likelihood in nats, and number of tokens, of whole documents.

    Args:
        documents: token ids of each document, its end token included.
        score: sum of weighted nats of a causal batch.
        config: batch size and context.
        bos_id: what the first token of a document is predicted from.
        length: window size.
        on_batch: called with the number of tokens scored, for progress.
    """
    context = int(config.context * length)
    windows = (w for tokens in documents for w in document_windows(tokens, bos_id, length, context))
    nats, count = 0.0, 0
    while block := list(itertools.islice(windows, WINDOWS_AT_ONCE)):
        rows = list(packed_rows(block, length))
        for start in range(0, len(rows), config.batch_size):
            batch = rows_to_batch(rows[start : start + config.batch_size], config.batch_size, length)
            tokens = int(batch["loss_weights"].sum())
            nats += score(batch)
            count += tokens
            on_batch(tokens)
    return nats, count


def summary(nats: float, tokens: int, size: int) -> dict[str, float]:
    """Bits per byte and perplexity per token from total nats, tokens and bytes."""
    return {
        "bits_per_byte": nats / math.log(2) / size,
        "perplexity": math.exp(nats / tokens),
        "tokens": tokens,
        "bytes": size,
    }
