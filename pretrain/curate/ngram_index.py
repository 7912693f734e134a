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
FILTER_LOAD = 32  # places in the bitmap an anchor


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
        item, hashes, anchors, lengths = _ngrams(items, ngram, min_words)
        order = np.lexsort((hashes, item))
        order = order[np.append(True, (np.diff(item[order]) != 0) | (np.diff(hashes[order]) != 0))[: len(order)]]
        item, hashes, anchors, lengths = (column[order] for column in (item, hashes, anchors, lengths))
        self.item_offsets = np.searchsorted(item, np.arange(len(items) + 1))
        # One row an n-gram, sorted by anchor; `_owners` are the items of each.
        order = np.lexsort((item, hashes, anchors))
        is_new = np.append(True, np.diff(hashes[order]) != 0)[: len(order)]
        self._owners, self._owners_first = item[order], np.append(np.flatnonzero(is_new), len(order))
        self.hashes, anchors, self._lengths = (column[order][is_new] for column in (hashes, anchors, lengths))
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
        start = np.flatnonzero(self._filter[(windows >> self._filter_shift).view(np.int64)])
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


def _ngrams(items: Sequence[Item], ngram: int, min_words: int) -> list[np.ndarray]:
    """(item, hash, hash of the anchor, bytes) of each n-gram, with repetitions, in four columns."""
    rows = [[np.zeros(0, np.int64), np.zeros(0, np.uint64), np.zeros(0, np.uint64), np.zeros(0, np.int64)]]
    held: list[tuple[int, list[bytes]]] = []
    size = 0
    for number, item in enumerate(items):
        for words in (text.split() for text in simplify(item.texts)):
            if len(words) >= min_words:
                held.append((number, words))
                size += sum(map(len, words))
        if held and (size >= PIECE_BYTES or number == len(items) - 1):
            rows.append(_hashed(held, ngram))
            held, size = [], 0
    return [np.concatenate(column) for column in zip(*rows, strict=True)]


def _hashed(texts: list[tuple[int, list[bytes]]], ngram: int) -> list[np.ndarray]:
    owners, starts, ends, base = [], [], [], 0
    for owner, words in texts:
        edges = base + np.cumsum([0, *map(len, words)])
        size = min(ngram, len(words))
        starts.append(edges[: len(edges) - size])
        ends.append(edges[size:])
        owners.append(np.full(len(edges) - size, owner))
        base = edges[-1]
    owner, start, end = (np.concatenate(column) for column in (owners, starts, ends))
    is_long = end - start >= ANCHOR
    owner, start, end = owner[is_long], start[is_long], np.minimum(end, start + MAX_NGRAM_BYTES)[is_long]
    hashes = SpanHashes(b"".join(b"".join(words) for _, words in texts))
    return [owner, hashes(start, end), hashes.windows(ANCHOR)[start], end - start]


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
