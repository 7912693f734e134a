"""How fast tokens are hidden, on one core: packed rows to a finished batch, without reading.

    python benchmarks/masking_rates.py

Rows of 512 tokens in documents of 20 to 400, in groups as the loader hands them out: a batch
of 64 rows and more is cut into 64 groups, one of 256 rows comes 4 at a time.
"""

import time

import numpy as np

from pretrain.core.objective import Vocabulary
from pretrain.objectives.masked import Masked
from pretrain.objectives.next_sentence import NextSentence
from pretrain.objectives.replaced import ReplacedTokens

LENGTH, SIZE = 512, 32_128
VOCABULARY = Vocabulary(SIZE, num_sentinels=1, starts_word=np.random.default_rng(0).random(SIZE) < 0.6)
OBJECTIVES = {
    "tokens": Masked(),
    "whole words": Masked(whole_words=True),
    "spans of whole words": Masked(whole_words=True, span_p=0.2),
    "next sentence": NextSentence(),
    "replaced tokens": ReplacedTokens(),
}


def packed(rows: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Full rows of documents."""
    segments, positions = np.zeros((rows, LENGTH), np.int32), np.zeros((rows, LENGTH), np.int32)
    for row in range(rows):
        starts = np.cumsum(np.append(0, rng.integers(20, 400, 40)))
        segments[row] = np.searchsorted(starts, np.arange(LENGTH), "right")
        positions[row] = np.arange(LENGTH) - starts[segments[row] - 1]
    tokens = rng.integers(3, SIZE - 1, (rows, LENGTH), np.int32)
    return {"tokens": tokens, "segment_ids": segments, "positions": positions}


def rate(objective: Masked, rows: int, seconds: float = 1.0) -> float:
    """Tokens a second, the best of three."""
    rng = np.random.default_rng(0)
    groups, found = [packed(rows, rng) for _ in range(8)], 0.0
    for _ in range(3):
        start, tokens = time.perf_counter(), 0
        while time.perf_counter() - start < seconds / 3:
            for group in groups:
                objective.finish(group, rng)
                tokens += rows * LENGTH
        found = max(found, tokens / (time.perf_counter() - start))
    return found


if __name__ == "__main__":
    print("million tokens a second, by rows of a group")
    print(f"{'':24}{1:>8}{4:>8}{16:>8}")
    for name, objective in OBJECTIVES.items():
        bound = objective.bind(VOCABULARY)
        print(f"{name:24}" + "".join(f"{rate(bound, rows) / 1e6:8.1f}" for rows in (1, 4, 16)))
