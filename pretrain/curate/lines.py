"""Lines and paragraphs of a batch of texts, and which of them repeat an earlier one of the same text."""

from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pretrain.curate.words import offsets

# What ends a line in Unicode besides the line feed.
OTHER_ENDS = r"[\r\x{0b}\x{0c}\x{1c}-\x{1e}\x{85}\x{2028}\x{2029}]"


class Lines(NamedTuple):
    """Lines (or paragraphs) of D texts, L in all.

    Attributes:
        strings: large strings, L of them, without what ends them.
        starts_D1: int64; those of text d are from starts_D1[d] to starts_D1[d + 1].
    """

    strings: pa.LargeStringArray
    starts_D1: np.ndarray

    def counts(self) -> np.ndarray:
        """How many each text has, int64."""
        return np.diff(self.starts_D1)

    def total(self, values_L: np.ndarray | pa.Array) -> np.ndarray:
        """Sums over each text of a value of each line, int64."""
        return np.diff(offsets(to_numpy(values_L))[self.starts_D1])

    def filter(self, is_kept_L: np.ndarray) -> "Lines":
        """Those marked."""
        return Lines(self.strings.filter(pa.array(is_kept_L)), offsets(is_kept_L)[self.starts_D1])

    def characters(self) -> np.ndarray:
        """Lengths, int64."""
        return to_numpy(pc.utf8_length(self.strings))

    def repeated(self) -> np.ndarray:
        """bool of L: equal to an earlier one of the same text."""
        names_L = to_numpy(self.strings.dictionary_encode().indices)
        text_L = np.repeat(np.arange(len(self.starts_D1) - 1), self.counts())
        return repeated(text_L * len(self.strings) + names_L)


def split(texts: pa.Array, separator: str = "\n") -> Lines:
    """Texts (large strings) cut at every separator, as `str.split` does."""
    pieces = pc.split_pattern(texts, separator)
    return Lines(pieces.flatten(), to_numpy(pieces.offsets) - pieces.offsets[0].as_py())


def split_paragraphs(texts: pa.Array) -> Lines:
    """Texts, less white space around them, cut where lines are left empty."""
    trimmed = pc.utf8_trim_whitespace(texts)
    pieces = pc.split_pattern_regex(trimmed, r"\n{2,}")
    return Lines(pieces.flatten(), to_numpy(pieces.offsets) - pieces.offsets[0].as_py())


def split_lines(texts: pa.Array) -> Lines:
    """Texts cut where a line ends, as `str.splitlines` does, but that a carriage return before a line feed stays."""
    lines = split(line_feeds(texts))
    is_last = np.zeros(len(lines.strings), bool)
    is_last[lines.starts_D1[1:] - 1] = True
    return lines.filter(~(is_last & (to_numpy(pc.binary_length(lines.strings)) == 0)))


def line_feeds(texts: pa.Array) -> pa.Array:
    """Texts of the same lengths in which every line ends in a line feed."""
    if not pc.any(pc.match_substring_regex(texts, OTHER_ENDS)).as_py():
        return texts
    return pc.replace_substring_regex(pc.replace_substring(texts, "\r\n", " \n"), OTHER_ENDS, "\n")


def repeated(keys: np.ndarray) -> np.ndarray:
    """bool: equal to an earlier key. Keys are int64; a dictionary numbers them as they come up, so new ones rise."""
    return ~is_new(name(keys))


def name(keys: np.ndarray) -> np.ndarray:
    """Equal keys get equal numbers, from 0 on in the order in which they first come up; int64."""
    return to_numpy(pa.array(keys).dictionary_encode().indices)


def is_new(names: np.ndarray) -> np.ndarray:
    """bool: the first of its name, names being as `name` gives them."""
    highest = np.maximum.accumulate(names)
    return np.append(True, highest[1:] > highest[:-1])[: len(names)]


def to_numpy(array: pa.Array | np.ndarray) -> np.ndarray:
    """A column of numbers or truth values without nulls, as int64."""
    if not isinstance(array, np.ndarray):
        array = array.to_numpy(zero_copy_only=False)
    return array.astype(np.int64, copy=False)
