"""Perplexity under a language model of clean text, and the head, middle and tail of a corpus by it.

CCNet (Wenzek et al. 2020) trains an n-gram model on Wikipedia, sorts a crawl's documents by their perplexity and cuts
at fixed shares of each language. Here the model is of bytes, and the perplexity is per byte.
"""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence

import gin
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pretrain.core.errors import RunError, check
from pretrain.core.fields import check_fields
from pretrain.curate import byte_ngrams
from pretrain.curate.judgement import DIGITS, DROP, TAG, check_action, check_fraction, in_languages, sample
from pretrain.curate.stages import rejections, tags

HEAD, MIDDLE, TAIL = "head", "middle", "tail"
BUCKETS = (HEAD, MIDDLE, TAIL)
CLEAN, CORPUS = "clean", "corpus"
HELD_OUT = 10  # every tenth clean document, where no corpus is given to set the limits
GROUP_DOCUMENTS = 32  # scored at a time, so that the arrays stay in the cache


@gin.configurable(module="pretrain.curate")
@dataclasses.dataclass(frozen=True)
class PerplexityFilter:
    """Fitted stage that tags documents with `perplexity` and `perplexity_bucket`, and rejects the buckets not wanted.

    Attributes:
        clean: text to train on: a path, glob or folder as in `Recipe.input`.
        corpus: a sample of what is curated, whose quantiles are the limits; empty takes every tenth clean document.
        head: share of the corpus in the head.
        middle: share of the corpus in the middle; the rest is the tail.
        drop: buckets that are rejected if the action is to drop.
        action: "drop" or "tag".
        order: bytes in the longest n-gram, 2 … 7.
        max_ngrams: n-grams in the model, 16 bytes each.
        max_training_bytes: of clean text that is learned from; the rest is not read.
        sample_characters: scored of each document, in equal parts from its start, middle and end.
        languages: judge only documents tagged with one of these; empty judges all.
    """

    clean: str = ""
    corpus: str = ""
    head: float = 0.3
    middle: float = 0.3
    drop: Sequence[str] = (TAIL,)
    action: str = TAG
    order: int = 6
    max_ngrams: int = 1 << 20
    max_training_bytes: int = 32 << 20
    sample_characters: int = 4_000
    languages: Sequence[str] = ()
    name: str = "perplexity"

    def __post_init__(self):
        check_fields(self)
        check_action("PerplexityFilter", self.action)
        check_fraction("PerplexityFilter", "head", self.head)
        check_fraction("PerplexityFilter", "head + middle", self.head + self.middle)
        check(bool(self.clean), "PerplexityFilter needs clean text to train on: set PerplexityFilter.clean")
        orders = (2, byte_ngrams.MAX_ORDER)
        check(
            orders[0] <= self.order <= orders[1],
            f"PerplexityFilter.order must be {orders[0]} … {orders[1]}, not {self.order}",
        )
        for field in ("max_ngrams", "max_training_bytes", "sample_characters"):
            check(getattr(self, field) >= 1, f"PerplexityFilter.{field} must be positive, not {getattr(self, field)}")
        check(
            set(self.drop) <= set(BUCKETS),
            f"PerplexityFilter.drop must be some of {' '.join(BUCKETS)}, not {self.drop}",
        )

    @property
    def reference(self) -> dict[str, str]:
        """The corpora to learn from."""
        return {CLEAN: self.clean} | ({CORPUS: self.corpus} if self.corpus else {})

    def fit(self, reference: Mapping[str, Iterable[pa.RecordBatch]]) -> "PerplexityBuckets":
        """Trains on clean text and takes the quantiles.

        Raises:
            RunError: there is too little text.
        """
        training, held_out = _training_text(reference[CLEAN], self.max_training_bytes, self.sample_characters)
        if len(training) < self.order or not (held_out or CORPUS in reference):
            raise RunError(
                f"PerplexityFilter.clean ({self.clean}) holds too little text to learn from; give more documents"
            )
        model = byte_ngrams.train(training, self.order, self.max_ngrams)
        if CORPUS in reference:
            shown = (text for batch in reference[CORPUS] for text in sample(batch["text"], self.sample_characters))
            held_out = [text for text in shown if text]
            check(bool(held_out), f"PerplexityFilter.corpus ({self.corpus}) has no text")
        limits = np.quantile(perplexities(model, held_out), [self.head, min(1.0, self.head + self.middle)])
        return PerplexityBuckets(self, model, *np.round(limits, DIGITS).tolist())


@dataclasses.dataclass(frozen=True, eq=False)
class PerplexityBuckets:
    """What `PerplexityFilter` becomes: head up to `head_limit`, middle up to `middle_limit`, then the tail."""

    settings: PerplexityFilter
    model: byte_ngrams.ByteNgrams
    head_limit: float
    middle_limit: float

    @property
    def name(self) -> str:
        """The stage's name in the recipe."""
        return self.settings.name

    def decide(self, documents: pa.RecordBatch) -> pa.Table:
        """Tags all that have text; rejects by rule `perplexity_head`, `perplexity_middle` or `perplexity_tail`."""
        documents = in_languages(documents, self.settings.languages)
        documents = documents.filter(pc.greater(pc.binary_length(documents["text"]), 0))
        ids = documents["id"]
        scores = np.round(perplexities(self.model, sample(documents["text"], self.settings.sample_characters)), DIGITS)
        bucket = np.searchsorted([self.head_limit, self.middle_limit], scores)
        decisions = [
            tags(ids, self.name, pa.array(scores)),
            tags(ids, f"{self.name}_bucket", pa.array([BUCKETS[index] for index in bucket], pa.string())),
        ]
        if self.settings.action == DROP:
            limits = (0.0, self.head_limit, self.middle_limit)
            for index in (BUCKETS.index(name) for name in self.settings.drop):
                row = np.flatnonzero(bucket == index)
                rule = f"{self.name}_{BUCKETS[index]}"
                decisions.append(rejections(ids.take(pa.array(row)), rule, pa.array(scores[row]), limits[index]))
        return pa.concat_tables(decisions)


def perplexities(model: byte_ngrams.ByteNgrams, texts: list[str]) -> np.ndarray:
    """Perplexity of each text per byte, float64; 1 for an empty one."""
    groups = [texts[start : start + GROUP_DOCUMENTS] for start in range(0, len(texts), GROUP_DOCUMENTS)]
    bits = [model.bits_per_byte([text.encode() for text in group]) for group in groups]
    return 2.0 ** np.concatenate([np.zeros(0), *bits])


def _training_text(batches: Iterable[pa.RecordBatch], max_bytes: int, characters: int) -> tuple[bytes, list[str]]:
    """Up to `max_bytes` of documents to train on, and a sample of each tenth document, which is not among them."""
    training, held_out, size, number = [], [], 0, 0
    for batch in batches:
        for text, shown in zip(batch["text"].to_pylist(), sample(batch["text"], characters), strict=True):
            number += 1
            if number % HELD_OUT == 0:
                held_out += [shown] if shown else []
            elif text:
                training.append(text.encode())
                size += len(training[-1]) + 1
        if size >= max_bytes:
            break
    return b"\n".join(training)[:max_bytes], held_out
