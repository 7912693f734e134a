"""Which pictures and captions are worth training on: rules on size and shape, on words, and on scores of models.

LAION-5B (Schuhmann et al. 2022) kept pairs by a similarity, tagged what is not safe for work, and dropped captions
below 5 characters. Languages of captions: the stage `Language`, as for any text. Duplicates: `ImageDedup`.
"""

import dataclasses
import json
from typing import Protocol, runtime_checkable

import gin
import numpy as np
import pyarrow as pa

from pretrain.core.errors import check
from pretrain.core.fields import check_fields
from pretrain.core.images import BrokenImage, decode, read_size
from pretrain.curate.checks import Checks
from pretrain.curate.documents import arrays_of
from pretrain.curate.judgement import DIGITS, DROP, check_action
from pretrain.curate.stages import DECISIONS, tags


@gin.configurable(module="pretrain.curate")
@dataclasses.dataclass(frozen=True)
class ImageRules:
    """Map stage that rejects documents without a picture, with a broken one, or with one of the wrong size or shape.

    Rules: "no_image", "broken_image", "min_side", "max_side", "max_aspect". Kept ones are tagged `height` and `width`.

    Attributes:
        min_side, max_side: pixels of the shorter and of the longer side.
        max_aspect: longer over shorter side.
        decode: decode each picture whole; otherwise only its header is read, and damage behind it stays.
        array: the name of the picture.
    """

    min_side: int = 64
    max_side: int = 16_384
    max_aspect: float = 3.0
    decode: bool = True
    array: str = "image"
    name: str = "image_rules"

    def __post_init__(self):
        check_fields(self)
        check(0 < self.min_side <= self.max_side, f"ImageRules: 0 < min_side <= max_side, got {self.min_side}")
        check(self.max_aspect >= 1, f"ImageRules.max_aspect must be 1 or more, got {self.max_aspect}")

    def decide(self, documents: pa.RecordBatch) -> pa.Table:
        """Rejects by the first rule that is broken; the value is the size or the ratio."""
        sizes = np.array([self._size(arrays) for arrays in arrays_of(documents)], np.float64).reshape(-1, 2)
        checks, (height, width) = Checks(documents["id"]), sizes.T
        checks.broken("no_image", height == 0, height, 1)
        checks.broken("broken_image", height < 0, height, 0)
        shorter, longer = sizes.min(axis=1), sizes.max(axis=1)
        checks.at_least(self, "min_side", shorter)
        checks.at_most(self, "max_side", longer)
        checks.at_most(self, "max_aspect", longer / np.maximum(shorter, 1))
        kept = np.flatnonzero(~checks.is_broken)
        ids = documents["id"].take(pa.array(kept))
        return pa.concat_tables([checks.rejected(), tags(ids, "height", height[kept]), tags(ids, "width", width[kept])])

    def _size(self, arrays: dict[str, bytes]) -> tuple[int, int]:
        """Height and width; (0, 0) without a picture, (-1, -1) for a broken one."""
        if self.array not in arrays:
            return 0, 0
        try:
            return decode(arrays[self.array]).shape[:2] if self.decode else read_size(arrays[self.array])
        except BrokenImage:
            return -1, -1


@gin.configurable(module="pretrain.curate")
@dataclasses.dataclass(frozen=True)
class CaptionRules:
    """Map stage that rejects documents by their captions: "no_caption", "min_characters", "min_words", "max_words".

    Attributes:
        min_characters, min_words, max_words: limits; words are what white space divides.
    """

    min_characters: int = 5
    min_words: int = 1
    max_words: int = 256
    name: str = "caption_rules"

    def __post_init__(self):
        check_fields(self)
        check(0 <= self.min_words <= self.max_words, f"CaptionRules: min_words <= max_words, got {self.min_words}")

    def decide(self, documents: pa.RecordBatch) -> pa.Table:
        """Rejects by the first rule that is broken."""
        texts = [text.strip() for text in documents["text"].to_pylist()]
        characters = np.array([len(text) for text in texts], np.float64)
        words = np.array([len(text.split()) for text in texts], np.float64)
        checks = Checks(documents["id"])
        checks.broken("no_caption", characters == 0, characters, 1)
        checks.at_least(self, "min_characters", characters)
        checks.at_least(self, "min_words", words)
        checks.at_most(self, "max_words", words)
        return checks.rejected()


@runtime_checkable
class PairScorer(Protocol):
    """A model that judges pictures with captions: a frozen, gin-configurable dataclass, so that workers can have it."""

    def score(self, pictures: list[bytes], captions: list[str]) -> np.ndarray:
        """One number a pair, float [N]; NaN where it cannot judge."""


@gin.configurable(module="pretrain.curate")
@dataclasses.dataclass(frozen=True)
class PairScore:
    """Map stage for scores of pairs: how well picture and caption fit, how probably they are not safe for work.

    The score is what a scorer says, or what the metadata holds already ("similarity" and "punsafe" in LAION's files).
    Rules: "no_SCORE" (where `required`), "low_SCORE", "high_SCORE". A scorer's scores become tags.

    Attributes:
        score: name of the score: the metadata's field, and the tag.
        scorer: `@YourScorer()`, see `PairScorer`; None reads the metadata.
        least, most: limits; None for none.
        action: "drop", or "tag", which rejects nothing and writes `flagged_SCORE` instead.
        required: documents without the score are rejected.
        array: the name of the picture.
    """

    score: str = "similarity"
    scorer: PairScorer | None = None
    least: float | None = None
    most: float | None = None
    action: str = DROP
    required: bool = False
    array: str = "image"
    name: str = "pair_score"

    def __post_init__(self):
        check_fields(self)
        check_action("PairScore", self.action)

    def decide(self, documents: pa.RecordBatch) -> pa.Table:
        """Tags with what a scorer says, and rejects or flags."""
        if not documents.num_rows:
            return DECISIONS.empty_table()
        scores, ids, tables = self._scores(documents), documents["id"], []
        checks = Checks(ids)
        if self.required:
            checks.broken(f"no_{self.score}", np.isnan(scores), scores, 0.0)
        for rule, limit, is_beyond in (("low", self.least, np.less), ("high", self.most, np.greater)):
            if limit is not None:
                checks.broken(f"{rule}_{self.score}", is_beyond(scores, limit), scores, limit)
        if self.scorer is not None:
            judged = np.flatnonzero(~np.isnan(scores))
            tables.append(tags(ids.take(pa.array(judged)), self.score, scores[judged]))
        if self.action == DROP:
            return pa.concat_tables([*tables, checks.rejected()])
        flagged = ids.take(pa.array(np.flatnonzero(checks.is_broken)))
        return pa.concat_tables([DECISIONS.empty_table(), *tables, tags(flagged, f"flagged_{self.score}", 1.0)])

    def _scores(self, documents: pa.RecordBatch) -> np.ndarray:
        """float64 [N], NaN where there is none."""
        if self.scorer is None:
            found = [json.loads(metadata).get(self.score) for metadata in documents["metadata"].to_pylist()]
            return np.array([float(x) if isinstance(x, int | float) else np.nan for x in found], np.float64)
        pictures = [arrays.get(self.array) for arrays in arrays_of(documents)]
        scores, held = np.full(len(pictures), np.nan), [i for i, picture in enumerate(pictures) if picture]
        captions = documents["text"].to_pylist()
        if held:
            scores[held] = self.scorer.score([pictures[i] for i in held], [captions[i] for i in held])
        return np.round(scores, DIGITS)
