"""Repeated n-grams of words inside each text of a batch, exactly: for Gopher's repetition rules.

An n-gram can only repeat if both of its (n-1)-grams do, so each length looks at what the last one left. Two n-grams
are equal if the names of both their (n-1)-grams are, names being numbers out of a dictionary: nothing is hashed.
W is the number of words of all texts, D that of texts, G that of places where an n-gram starts that its text repeats.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import pyarrow.compute as pc

from pretrain.curate.lines import is_new, name
from pretrain.curate.words import Words, offsets


class Repeats(NamedTuple):
    """Where texts have n-grams that they have more than once.

    Attributes:
        n: words of an n-gram.
        starts_G: the word each starts at, rising.
        names_G: equal for equal n-grams of one text.
        is_later_G: bool; not the first of its name.
    """

    n: int
    starts_G: np.ndarray
    names_G: np.ndarray
    is_later_G: np.ndarray


class Texts:
    """The words of D texts with their lengths, as a ground to look for n-grams on."""

    def __init__(self, words: Words):
        characters_V = pc.utf8_length(words.vocabulary).to_numpy()
        self.words = words
        self.text_W = np.repeat(np.arange(len(words.starts_D1) - 1), np.diff(words.starts_D1))
        self.places_W1 = offsets(characters_V[words.ids_W])  # characters before each word, white space not counted

    def repeats(self, longest: int) -> Iterator[Repeats]:
        """Repeated n-grams for n = 1, 2, … `longest`."""
        keys, starts = self.text_W * len(self.words.vocabulary) + self.words.ids_W, np.arange(len(self.text_W))
        for n in range(1, longest + 1):
            names = name(keys)
            is_repeated = np.bincount(names, minlength=1)[names] > 1
            found = Repeats(n, starts[is_repeated], names[is_repeated], ~is_new(names)[is_repeated])
            yield found
            has_next = np.flatnonzero(np.diff(found.starts_G) == 1)
            if n == 1:
                has_next = has_next[self.text_W[found.starts_G[has_next]] == self.text_W[found.starts_G[has_next + 1]]]
            starts = found.starts_G[has_next]
            keys = found.names_G[has_next] * (len(self.text_W) + 1) + found.names_G[has_next + 1]

    def lengths(self, starts: np.ndarray, n: int) -> np.ndarray:
        """Characters of the n-grams that start at some words, without white space."""
        return self.places_W1[starts + n] - self.places_W1[starts]

    def top_characters(self, found: Repeats) -> np.ndarray:
        """Characters of each text that its most frequent n-gram takes up, with single spaces between its words.

        Of several equally frequent ones the first counts; where none repeats, the text's first n-gram.
        """
        first_D, counts_D = self.words.starts_D1[:-1], np.diff(self.words.starts_D1)
        row = np.flatnonzero(counts_D >= found.n)
        total_D = np.zeros(len(first_D), np.int64)
        total_D[row] = self.lengths(first_D[row], found.n) + found.n - 1
        if len(found.starts_G):
            _, first, counts = np.unique(found.names_G, return_index=True, return_counts=True)
            start = found.starts_G[first]
            order = np.lexsort((start, -counts, self.text_W[start]))
            start, counts = start[order], counts[order]
            best = np.flatnonzero(np.append(True, np.diff(self.text_W[start]) > 0))
            lengths = self.lengths(start[best], found.n) + found.n - 1
            total_D[self.text_W[start[best]]] = lengths * counts[best]
        return total_D

    def repeated_characters(self, found: Repeats, limit_D: np.ndarray) -> np.ndarray:
        """Characters of each text in n-grams that came before, going from left to right and past each that is found.

        Exact where it is above `limit_D`; elsewhere it may be an upper bound, which is found without a loop.
        """
        later = found.starts_G[found.is_later_G]
        ends = np.minimum(later + found.n, np.append(later[1:], np.iinfo(np.int64).max))
        covered = self.places_W1[ends] - self.places_W1[later]
        total_D = np.bincount(self.text_W[later], covered, len(limit_D)).astype(np.int64)
        marks = np.searchsorted(found.starts_G, self.words.starts_D1)
        for text in np.flatnonzero(total_D > limit_D):
            part = slice(marks[text], marks[text + 1])
            starts = found.starts_G[part]
            total_D[text] = _walk(starts, found.names_G[part], self.lengths(starts, found.n), found.n)
        return total_D


def _walk(starts: np.ndarray, names: np.ndarray, lengths: np.ndarray, n: int) -> int:
    seen, free, total = set(), 0, 0
    for start, key, length in zip(starts.tolist(), names.tolist(), lengths.tolist(), strict=True):
        if start < free:
            continue
        if key in seen:
            total += length
            free = start + n
        else:
            seen.add(key)
    return total
