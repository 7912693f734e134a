"""A few plain rules that hold for any text, prose or code: length, control characters, line length, letters.

They catch what is no text at all: fragments, dumps, binary data, minified code, tables of numbers.
"""

import dataclasses

import gin
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pretrain.core.errors import check
from pretrain.core.fields import check_fields
from pretrain.curate.stages import rejections

# Control characters but tab, line feed, form feed and carriage return; what decoders put for bytes they cannot read.
UNPRINTABLE = r"[\x00-\x08\x0b\x0e-\x1f\x7f\x{80}-\x{84}\x{86}-\x{9f}\x{fffd}\x{fffe}\x{ffff}]"


@gin.configurable(module="pretrain.curate")
@dataclasses.dataclass(frozen=True)
class TextRules:
    """Map stage that rejects a document by the first rule it breaks, in the order below. Lengths are in characters.

    Attributes:
        min_characters: shortest document.
        max_characters: longest document.
        max_unprintable_fraction: of characters, control characters and replacement characters (U+FFFD).
        max_line_characters: longest line.
        min_alphabetic_fraction: of characters, letters of any script.
    """

    min_characters: int = 64
    max_characters: int = 10_000_000
    max_unprintable_fraction: float = 0.001
    max_line_characters: int = 20_000
    min_alphabetic_fraction: float = 0.25
    name: str = "text_rules"

    def __post_init__(self):
        check_fields(self)
        check(
            0 <= self.min_characters <= self.max_characters,
            f"TextRules: min_characters ({self.min_characters}) must lie in 0 … max_characters ({self.max_characters})",
        )
        for rule in ("max_unprintable_fraction", "min_alphabetic_fraction"):
            check(0 <= getattr(self, rule) <= 1, f"TextRules.{rule} must lie in 0 … 1, not {getattr(self, rule)}")

    def decide(self, documents: pa.RecordBatch) -> pa.Table:
        """Measures all documents by all rules."""
        texts, ids = documents["text"], documents["id"]
        characters = to_numpy(pc.utf8_length(texts))
        at_least_one = np.maximum(characters, 1)
        measured = {
            "min_characters": characters,
            "max_characters": characters,
            "max_unprintable_fraction": to_numpy(pc.count_substring_regex(texts, UNPRINTABLE)) / at_least_one,
            "max_line_characters": longest_lines(texts),
            "min_alphabetic_fraction": letters(texts) / at_least_one,
        }
        decisions = []
        for rule, values in measured.items():
            threshold = getattr(self, rule)
            broken = values < threshold if rule.startswith("min_") else values > threshold
            row = pa.array(np.flatnonzero(broken))
            decisions.append(rejections(ids.take(row), rule, pa.array(values[broken]), threshold))
        return pa.concat_tables(decisions)


def longest_lines(texts: pa.Array) -> np.ndarray:
    """Characters in each text's longest line, int64."""
    lines = pc.split_pattern(texts, "\n")
    starts = to_numpy(lines.offsets)[:-1] - to_numpy(lines.offsets)[:1]
    lengths = to_numpy(pc.utf8_length(lines.flatten()))
    return np.maximum.reduceat(lengths, starts) if len(starts) else np.zeros(0, np.int64)


def letters(texts: pa.Array) -> np.ndarray:
    """Letters of any script in each text, int64."""
    return to_numpy(pc.utf8_length(pc.replace_substring_regex(texts, r"\P{L}+", "")))


def to_numpy(array: pa.Array) -> np.ndarray:
    """An integer array without nulls as int64."""
    return array.to_numpy(zero_copy_only=False).astype(np.int64)
