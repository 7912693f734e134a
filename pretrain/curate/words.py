"""Words as quality filters count them: a batch of texts cut into words, all at once, without a loop over words.

Words are what spaCy's English tokenizer makes of a text, which is what the filters' thresholds were set on: runs of
characters between white space, with punctuation taken off both ends, cut at a few marks inside, and the strings of
`english` treated as they are there (see `word_cuts`). The different runs of a batch are few, so each is cut once.
Two words are the same if their ids are, and ids come from a dictionary, not from a hash. The words of the last batch
are remembered, since one filter after another asks for those of the documents that the filter before it left.
"""

from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import xxhash

from pretrain.curate.word_cuts import cut, spans

BLOCK = 1 << 17  # characters cut at once: what fits into a processor's cache
LONGEST_RUN = 10_000  # characters; a longer run is no language and stays one word


class Words(NamedTuple):
    """The words of D texts, W in all.

    Attributes:
        ids_W: int32 index into `vocabulary`, in the order of the text.
        starts_D1: int64; the words of text d are those from starts_D1[d] to starts_D1[d + 1].
        vocabulary: large strings, all different.
    """

    ids_W: np.ndarray
    starts_D1: np.ndarray
    vocabulary: pa.LargeStringArray

    def counts(self) -> np.ndarray:
        """Words of each text, int64."""
        return np.diff(self.starts_D1)

    def take(self, rows: np.ndarray) -> "Words":
        """The words of some of the texts."""
        counts = self.counts()[rows]
        starts = offsets(counts)
        index_W = np.repeat(self.starts_D1[:-1][rows] - starts[:-1], counts) + np.arange(starts[-1])
        return Words(self.ids_W[index_W], starts, self.vocabulary)

    def total(self, values_V: np.ndarray) -> np.ndarray:
        """Sums over each text's words of a value that each word of the vocabulary has, int64."""
        return np.diff(offsets(values_V[self.ids_W])[self.starts_D1])


_last: tuple[dict[bytes, int], Words] = ({}, Words(np.zeros(0, np.int32), np.zeros(1, np.int64), pa.array([""])))


def split_words(texts: pa.Array) -> Words:
    """The words of texts (large strings without nulls)."""
    global _last
    keys = [xxhash.xxh3_128_digest(text) for text in texts.cast(pa.large_binary()).to_pylist()]
    rows, words = _last
    if all(key in rows for key in keys):
        return words.take(np.array([rows[key] for key in keys], np.int64))
    words = _split(texts)
    _last = {key: row for row, key in enumerate(keys)}, words
    return words


def _split(texts: pa.Array) -> Words:
    # Arrow 25.0 reads on beyond the last text where that ends in white space of several bytes, so there must be none.
    runs = pc.utf8_split_whitespace(pc.utf8_rtrim_whitespace(texts))
    starts_D1 = runs.offsets.to_numpy() - runs.offsets[0].as_py()
    encoded = runs.flatten().dictionary_encode()
    pieces, first_R1 = split_runs(encoded.dictionary)
    pieces = pieces.dictionary_encode()
    cut_runs = Words(pieces.indices.to_numpy(), first_R1, pieces.dictionary).take(encoded.indices.to_numpy())
    return cut_runs._replace(starts_D1=cut_runs.starts_D1[starts_D1])


def split_runs(runs: pa.LargeStringArray) -> tuple[pa.LargeStringArray, np.ndarray]:
    """Cuts R runs of characters without white space into words.

    Returns:
        The words of all runs one after another, and int64 offsets of each run's words, R + 1 of them.
    """
    is_long = pc.greater(pc.utf8_length(runs), LONGEST_RUN)
    short = pc.if_else(is_long, "x", runs)  # a long run's place is held by one word
    lengths_R = pc.utf8_length(short).to_numpy()
    pieces, counts = [pa.array([], pa.large_string())], [np.zeros(0, np.int64)]
    for start, end in blocks(lengths_R, BLOCK):
        text = join(short[start:end])
        marks = np.flatnonzero(cut(text, lengths_R[start:end]))
        pieces.append(spans(text, marks))
        counts.append(np.diff(np.searchsorted(marks, offsets(lengths_R[start:end]))))
    first_R1 = offsets(np.concatenate(counts))
    order = np.arange(first_R1[-1])
    places = first_R1[:-1][is_long.to_numpy(zero_copy_only=False)]
    order[places] = len(order) + np.arange(len(places))
    pieces.append(runs.filter(is_long))
    return pa.concat_arrays(pieces).take(order) if len(places) else pa.concat_arrays(pieces), first_R1


def offsets(lengths: np.ndarray) -> np.ndarray:
    """Where each of some things of given lengths starts, and where the last ends, int64."""
    starts = np.zeros(len(lengths) + 1, np.int64)
    np.cumsum(lengths, out=starts[1:])
    return starts


def blocks(sizes: np.ndarray, limit: int) -> list[tuple[int, int]]:
    """Ranges of neighbours whose sizes together are at most `limit`, or single ones that are larger by themselves."""
    ends_N1, ranges, start = offsets(sizes), [], 0
    while start < len(sizes):
        end = max(start + 1, int(np.searchsorted(ends_N1, ends_N1[start] + limit, "right")) - 1)
        ranges.append((start, end))
        start = end
    return ranges


def join(texts: pa.LargeStringArray) -> str:
    """All texts, one after another."""
    return b"".join(texts.cast(pa.large_binary()).to_pylist()).decode()
