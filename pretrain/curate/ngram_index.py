"""Which n-grams of benchmark items stand in a text, whatever its spacing, case, punctuation and line breaks.

Texts are compared as letters and digits alone, without spaces. Of each n-gram the first `ANCHOR` bytes are the anchor;
all windows of that length of a text are hashed at once, a bitmap sorts out nearly all, and where an anchor stands the
whole n-gram is compared by its hash. So an n-gram is found wherever its letters are, however they are divided.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from pretrain.curate.benchmark_files import Item
from pretrain.curate.hashing import SpanHashes
from pretrain.curate.simplify import simplify

ANCHOR = 16  # bytes; shorter n-grams are not looked for
MAX_NGRAM_BYTES = 1_024  # of longer ones the beginning is compared
PIECE_BYTES = 1 << 19  # worked on at a time
FILTER_LOAD = 16  # places in the bitmap an anchor


class Matches(NamedTuple):
    """Where n-grams stand: texts, spans in bytes of their letters, and numbers in the index; in the texts' order."""

    text: np.ndarray
    start: np.ndarray
    end: np.ndarray
    ngram: np.ndarray


class NgramIndex:
    """The n-grams of benchmark items.

    Args:
        items: what to look for.
        ngram: words in an n-gram.
        min_words: texts of an item with fewer words than an n-gram count whole, down to this many.

    Attributes:
        items: as given.
        hashes: uint64 [G], of each distinct n-gram.
        item_offsets: int64 [I + 1], item i has item_offsets[i + 1] - item_offsets[i] distinct n-grams; with none it is
            too short to be looked for.
    """

    def __init__(self, items: Sequence[Item], ngram: int, min_words: int):
        self.items = items
        found = [np.unique(_ngrams(item, ngram, min_words), axis=0) for item in items]
        self.item_offsets = np.cumsum([0, *map(len, found)])
        every = np.concatenate([np.zeros((0, 3), np.uint64), *found])
        ngrams, ngram = np.unique(every, axis=0, return_inverse=True)
        ngram = ngram.reshape(-1)
        order = np.argsort(ngram, kind="stable")
        self._owners = np.repeat(np.arange(len(items)), np.diff(self.item_offsets))[order]
        self._owners_first = np.searchsorted(ngram[order], np.arange(len(ngrams) + 1))
        anchors, self.hashes, self._lengths = ngrams[:, 0], ngrams[:, 1], ngrams[:, 2].astype(np.int64)
        self._anchors, first = np.unique(anchors, return_index=True)
        self._first = np.append(first, len(anchors))
        bits = int(np.clip(np.ceil(np.log2(FILTER_LOAD * max(1, len(self._anchors)))), 12, 28))
        self._filter_shift = np.uint64(64 - bits)
        self._filter = np.zeros(1 << bits, bool)
        self._filter[self._anchors >> self._filter_shift] = True

    def items_of(self, ngrams: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Pairs (row, item): item `item` has the n-gram in that row of `ngrams`."""
        counts = self._owners_first[ngrams + 1] - self._owners_first[ngrams]
        rows = np.repeat(np.arange(len(ngrams)), counts)
        within = np.arange(len(rows)) - np.repeat(np.cumsum(counts) - counts, counts)
        return rows, self._owners[self._owners_first[ngrams[rows]] + within]

    def find(self, letters: Sequence[bytes]) -> Matches:
        """All n-grams in texts that are letters alone, as from `letters_of`."""
        empty = [np.zeros(0, np.int64)] * 4
        parts = [empty, *(self._find_in(group) for group in _groups(letters))]
        return Matches(*(np.concatenate(column) for column in zip(*parts, strict=True)))

    def _find_in(self, pieces: list[tuple[int, int, bytes]]) -> list[np.ndarray]:
        joined = b" ".join(content for _, _, content in pieces)
        hashes = SpanHashes(joined)
        windows = hashes.windows(ANCHOR)
        start = np.flatnonzero(self._filter[windows >> self._filter_shift])
        anchor = np.searchsorted(self._anchors, windows[start])
        is_found = anchor < len(self._anchors)
        is_found[is_found] = self._anchors[anchor[is_found]] == windows[start[is_found]]
        start, anchor = start[is_found], anchor[is_found]
        choices = self._first[anchor + 1] - self._first[anchor]  # n-grams that begin alike
        start = np.repeat(start, choices)
        ngram = np.repeat(self._first[anchor] - np.cumsum(choices) + choices, choices) + np.arange(len(start))
        end = start + self._lengths[ngram]
        fits = end <= len(joined)
        start, end, ngram = start[fits], end[fits], ngram[fits]
        is_same = hashes(start, end) == self.hashes[ngram]
        start, end, ngram = start[is_same], end[is_same], ngram[is_same]
        begins = np.cumsum([0, *(len(content) + 1 for _, _, content in pieces)])[:-1]
        piece = np.searchsorted(begins, start, side="right") - 1
        is_own = start - begins[piece] < PIECE_BYTES  # what follows is the next piece's too
        start, end, ngram, piece = start[is_own], end[is_own], ngram[is_own], piece[is_own]
        texts, offsets = (np.array(column, np.int64) for column in list(zip(*pieces, strict=True))[:2])
        moved = offsets[piece] - begins[piece]
        return [texts[piece], start + moved, end + moved, ngram]


def letters_of(texts: Iterable[str]) -> list[bytes]:
    """Texts simplified, without spaces."""
    return [text.translate(None, b" ") for text in simplify(texts)]


def letter_positions(text: str) -> np.ndarray:
    """The character of `text` that each byte of its letters comes from, int64."""
    if text.isascii():
        table = np.array([len(letters) for letters in letters_of(map(chr, range(128)))])
        lengths = table[np.frombuffer(text.encode(), np.uint8)]
    else:
        sizes = {character: len(letters_of([character])[0]) for character in set(text)}
        lengths = np.array([sizes[character] for character in text])
    return np.repeat(np.arange(len(text)), lengths)


def _ngrams(item: Item, ngram: int, min_words: int) -> np.ndarray:
    """(hash of the anchor, hash, bytes) of each n-gram of an item, uint64 [N, 3]."""
    rows = [np.zeros((0, 3), np.uint64)]
    for words in (text.split() for text in simplify(item.texts)):
        if len(words) < min_words:
            continue
        edges = np.cumsum([0, *map(len, words)])
        size = min(ngram, len(words))
        start, end = edges[: len(edges) - size], edges[size:]
        is_long = end - start >= ANCHOR
        start, end = start[is_long], np.minimum(end, start + MAX_NGRAM_BYTES)[is_long]
        if len(start):
            hashes = SpanHashes(b"".join(words))
            anchors = hashes.windows(ANCHOR)[start]
            rows.append(np.stack([anchors, hashes(start, end), (end - start).astype(np.uint64)], axis=1))
    return np.concatenate(rows)


def _groups(letters: Sequence[bytes]) -> Iterator[list[tuple[int, int, bytes]]]:
    """(text, offset, content) in groups of about `PIECE_BYTES`; pieces of a long text overlap by an n-gram."""
    held, size = [], 0
    for text, content in enumerate(letters):
        for offset in range(0, max(1, len(content)), PIECE_BYTES):
            piece = content[offset : offset + PIECE_BYTES + MAX_NGRAM_BYTES]
            held.append((text, offset, piece))
            size += len(piece)
            if size >= PIECE_BYTES:
                yield held
                held, size = [], 0
    if held:
        yield held
