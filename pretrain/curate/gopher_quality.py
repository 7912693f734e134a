"""Gopher's quality rules: documents that are no prose, by their words and signs.

Rae et al., "Scaling Language Models: Methods, Analysis & Insights from Training Gopher" (2021), appendix A.1.1.
"""

import dataclasses

import gin
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pretrain.core.errors import check
from pretrain.core.fields import check_fields
from pretrain.curate import lines, marks
from pretrain.curate.checks import Checks, check_fractions, in_parts
from pretrain.curate.lines import to_numpy
from pretrain.curate.words import Words, split_words

STOP_WORDS = ("the", "be", "to", "of", "and", "that", "have", "with")
IS_NO_SYMBOL = rf"[^{marks.in_class(marks.SYMBOLS)}\x00-\x08\x0b\x0c\x0d-\x1f\x7f-\x{{9f}}]"


@gin.configurable(module="pretrain.curate")
@dataclasses.dataclass(frozen=True)
class GopherQuality:
    """Map stage that rejects a document by the first rule it breaks, in the order below.

    Attributes:
        min_words: words that are not symbols alone.
        max_words: the same.
        min_mean_word_length: characters, of those words.
        max_mean_word_length: the same.
        max_hashes_per_word: "#" signs to words of all kinds.
        max_ellipses_per_word: "..." and "…" to words of all kinds.
        max_bullet_lines: fraction of lines that start with "•" or "-".
        max_ellipsis_lines: fraction of lines that end in an ellipsis.
        min_alphabetic_words: fraction of words with a letter in them.
        min_stop_words: how many different ones of `stop_words`.
        stop_words: case matters.
    """

    min_words: int = 50
    max_words: int = 100_000
    min_mean_word_length: float = 3
    max_mean_word_length: float = 10
    max_hashes_per_word: float = 0.1
    max_ellipses_per_word: float = 0.1
    max_bullet_lines: float = 0.9
    max_ellipsis_lines: float = 0.3
    min_alphabetic_words: float = 0.8
    min_stop_words: int = 2
    stop_words: tuple[str, ...] = STOP_WORDS
    name: str = "gopher_quality"

    def __post_init__(self):
        check_fields(self)
        check(0 <= self.min_words <= self.max_words, "GopherQuality: min_words must lie in 0 … max_words")
        check_fractions(self, "max_bullet_lines", "max_ellipsis_lines", "min_alphabetic_words")
        many = self.min_stop_words > len(self.stop_words)
        check(not many, f"GopherQuality.min_stop_words is {self.min_stop_words}, of {len(self.stop_words)} stop words")

    def decide(self, documents: pa.RecordBatch) -> pa.Table:
        """Measures all documents by all rules."""
        return in_parts(self._decide, documents)

    def _decide(self, documents: pa.RecordBatch) -> pa.Table:
        texts, checks = documents["text"], Checks(documents["id"])
        words = split_words(texts)
        is_word_V = matches(words.vocabulary, IS_NO_SYMBOL)
        counted = words.total(is_word_V)
        characters = words.total(is_word_V * to_numpy(pc.utf8_length(words.vocabulary)))
        all_words = np.maximum(words.counts(), 1)
        checks.at_least(self, "min_words", counted)
        checks.at_most(self, "max_words", counted)
        checks.at_least(self, "min_mean_word_length", characters / np.maximum(counted, 1))
        checks.at_most(self, "max_mean_word_length", characters / np.maximum(counted, 1))
        ellipses = to_numpy(pc.count_substring_regex(texts, r"\.\.\.")) + to_numpy(pc.count_substring_regex(texts, "…"))
        checks.at_most(self, "max_hashes_per_word", to_numpy(pc.count_substring_regex(texts, "#")) / all_words)
        checks.at_most(self, "max_ellipses_per_word", ellipses / all_words)
        split = lines.split_lines(texts)
        all_lines = np.maximum(split.counts(), 1)
        trimmed = pc.utf8_trim_whitespace(split.strings)
        checks.at_most(self, "max_bullet_lines", split.total(matches(trimmed, "^[•-]")) / all_lines)
        checks.at_most(self, "max_ellipsis_lines", split.total(ends(trimmed, "...", "…")) / all_lines)
        checks.at_least(self, "min_alphabetic_words", words.total(matches(words.vocabulary, r"\p{L}")) / all_words)
        checks.at_least(self, "min_stop_words", self._stop_words(words))
        return checks.rejected()

    def _stop_words(self, words: Words) -> np.ndarray:
        """How many different stop words each text has."""
        number_V = pc.index_in(words.vocabulary, pa.array(self.stop_words, pa.large_string())).fill_null(-1).to_numpy()
        place_W = np.flatnonzero(number_V[words.ids_W] >= 0)
        text = np.searchsorted(words.starts_D1, place_W, "right") - 1
        has = np.zeros((len(words.starts_D1) - 1, len(self.stop_words)), bool)
        has[text, number_V[words.ids_W[place_W]]] = True
        return has.sum(1)


def matches(strings: pa.Array, pattern: str) -> np.ndarray:
    """1 where a pattern (of RE2) is found, else 0, int64."""
    return to_numpy(pc.match_substring_regex(strings, pattern))


def ends(strings: pa.Array, *endings: str) -> np.ndarray:
    """1 where a string ends in one of some endings, else 0, int64."""
    return to_numpy(np.logical_or.reduce([to_numpy(pc.ends_with(strings, ending)) for ending in endings]))
