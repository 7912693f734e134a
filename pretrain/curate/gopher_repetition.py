"""Gopher's repetition rules: documents that say the same again and again, in lines, paragraphs or n-grams of words.

Rae et al., "Scaling Language Models: Methods, Analysis & Insights from Training Gopher" (2021), table A1.
"""

import dataclasses

import gin
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pretrain.core.errors import check
from pretrain.core.fields import check_fields
from pretrain.curate import lines
from pretrain.curate.checks import Checks, check_fractions, in_parts
from pretrain.curate.lines import Lines, to_numpy
from pretrain.curate.ngrams import Texts
from pretrain.curate.words import split_words


@gin.configurable(module="pretrain.curate")
@dataclasses.dataclass(frozen=True)
class GopherRepetition:
    """Map stage that rejects a document by the first rule it breaks, in the order below.

    All but the first two of each kind are fractions of the document's characters.

    Attributes:
        max_repeated_paragraphs: fraction of paragraphs (parted by empty lines) that came before.
        max_repeated_paragraph_characters: characters in them.
        max_repeated_lines: fraction of lines (empty ones not counted) that came before.
        max_repeated_line_characters: characters in them.
        max_top_ngrams: {n: characters in all places of the most frequent n-gram of words}.
        max_repeated_ngrams: {n: characters in n-grams of words that came before}.
    """

    max_repeated_paragraphs: float = 0.30
    max_repeated_paragraph_characters: float = 0.20
    max_repeated_lines: float = 0.30
    max_repeated_line_characters: float = 0.20
    max_top_ngrams: tuple[tuple[int, float], ...] = ((2, 0.20), (3, 0.18), (4, 0.16))
    max_repeated_ngrams: tuple[tuple[int, float], ...] = (
        *((5, 0.15), (6, 0.14), (7, 0.13)),
        *((8, 0.12), (9, 0.11), (10, 0.10)),
    )
    name: str = "gopher_repetition"

    def __post_init__(self):
        check_fields(self)
        check_fractions(self, "max_repeated_paragraphs", "max_repeated_paragraph_characters")
        check_fractions(self, "max_repeated_lines", "max_repeated_line_characters")
        for rule in ("max_top_ngrams", "max_repeated_ngrams"):
            lengths = [n for n, _ in getattr(self, rule)]
            sound = lengths == sorted(set(lengths)) and all(n >= 1 for n in lengths)
            check(sound, f"GopherRepetition.{rule} must name rising n-gram lengths, not {lengths}")

    def decide(self, documents: pa.RecordBatch) -> pa.Table:
        """Measures all documents by lines, then those left by n-grams."""
        return in_parts(self._decide, documents)

    def _decide(self, documents: pa.RecordBatch) -> pa.Table:
        texts, checks = documents["text"], Checks(documents["id"])
        characters = to_numpy(pc.utf8_length(texts))
        checks.broken("empty", characters == 0, characters, 1)
        at_least_one = np.maximum(characters, 1)
        for unit, pieces in (("paragraph", lines.split_paragraphs(texts)), ("line", full_lines(texts))):
            is_repeated = pieces.repeated()
            checks.at_most(self, f"max_repeated_{unit}s", pieces.total(is_repeated) / np.maximum(pieces.counts(), 1))
            repeated_characters = pieces.total(is_repeated * pieces.characters())
            checks.at_most(self, f"max_repeated_{unit}_characters", repeated_characters / at_least_one)
        left = np.flatnonzero(~checks.is_broken)
        ngrams = Texts(split_words(texts.take(pa.array(left))))
        limits = {"top": dict(self.max_top_ngrams), "repeated": dict(self.max_repeated_ngrams)}
        for found in ngrams.repeats(max([0, *limits["top"], *limits["repeated"]])):
            for kind, measure in (("top", ngrams.top_characters), ("repeated", ngrams.repeated_characters)):
                if found.n in limits[kind]:
                    values = np.zeros(len(texts))
                    limit = limits[kind][found.n]
                    bound = () if kind == "top" else (limit * characters[left],)
                    values[left] = measure(found, *bound) / at_least_one[left]
                    checks.broken(f"max_{kind}_{found.n}_gram", values > limit, values, limit)
        return checks.rejected()


def full_lines(texts: pa.Array) -> Lines:
    """Lines that are not empty, and an empty one before or after them where the text starts or ends with line feeds."""
    split = lines.split(texts)
    is_kept = to_numpy(pc.binary_length(split.strings)) > 0
    is_kept[split.starts_D1[:-1]] = is_kept[split.starts_D1[1:] - 1] = True
    return split.filter(is_kept)
