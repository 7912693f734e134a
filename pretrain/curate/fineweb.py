"""FineWeb's quality rules: documents that are lists, menus or repeated boilerplate, by their lines.

Penedo et al., "The FineWeb Datasets: Decanting the Web for the Finest Text Data at Scale" (2024), section 3.6.
"""

import dataclasses

import gin
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pretrain.core.fields import check_fields
from pretrain.curate import lines, marks
from pretrain.curate.checks import Checks, check_fractions, in_parts
from pretrain.curate.lines import to_numpy
from pretrain.curate.words import split_words


@gin.configurable(module="pretrain.curate")
@dataclasses.dataclass(frozen=True)
class FineWebQuality:
    """Map stage that rejects a document by the first rule it breaks, in the order below; blank lines are no lines.

    Attributes:
        min_punctuated_lines: fraction of lines that end in a character that ends a sentence.
        max_short_lines: fraction of lines of at most `short_line` characters.
        short_line: characters.
        max_repeated_line_characters: fraction of characters (line feeds not counted) in lines that came before.
        max_line_feeds_per_word: line feeds to words.
    """

    min_punctuated_lines: float = 0.12
    max_short_lines: float = 0.67
    short_line: int = 30
    max_repeated_line_characters: float = 0.01
    max_line_feeds_per_word: float = 0.3
    name: str = "fineweb"

    def __post_init__(self):
        check_fields(self)
        check_fractions(self, "min_punctuated_lines", "max_short_lines", "max_repeated_line_characters")

    def decide(self, documents: pa.RecordBatch) -> pa.Table:
        """Measures all documents by all rules."""
        return in_parts(self._decide, documents)

    def _decide(self, documents: pa.RecordBatch) -> pa.Table:
        texts, checks = documents["text"], Checks(documents["id"])
        split = lines.split(texts)
        split = split.filter(to_numpy(pc.binary_length(pc.utf8_ltrim_whitespace(split.strings))) > 0)
        lengths, counts = split.characters(), split.counts()
        at_least_one = np.maximum(counts, 1)
        checks.broken("empty", counts == 0, counts, 1)
        last = pc.utf8_slice_codeunits(split.strings, -1, None)
        is_punctuated = to_numpy(pc.is_in(last, pa.array(list(marks.TERMINAL), pa.large_string())))
        checks.at_least(self, "min_punctuated_lines", split.total(is_punctuated) / at_least_one)
        checks.at_most(self, "max_short_lines", split.total(lengths <= self.short_line) / at_least_one)
        line_feeds = to_numpy(pc.count_substring_regex(texts, "\n"))
        characters = np.maximum(to_numpy(pc.utf8_length(texts)) - line_feeds, 1)
        checks.at_most(self, "max_repeated_line_characters", split.total(split.repeated() * lengths) / characters)
        left = np.flatnonzero(~checks.is_broken)
        words = np.full(len(texts), np.iinfo(np.int64).max)
        words[left] = split_words(texts.take(pa.array(left))).counts()
        checks.at_most(self, "max_line_feeds_per_word", line_feeds / np.maximum(words, 1))
        return checks.rejected()
