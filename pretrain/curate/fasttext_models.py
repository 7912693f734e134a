"""fastText classifiers (Joulin et al. 2017): trained here from labelled text, or the user's own `.bin` or `.ftz`.

The library is fasttext-community, the maintained build of Meta's. Training uses one thread, so that the same text gives
the same model. A trained model is kept as bytes, which a stage can carry to its workers.
"""

import dataclasses
import functools
import mmap
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pretrain.core import storage
from pretrain.core.errors import RunError, UserError, check
from pretrain.curate.judgement import DIGITS, check_action, check_fraction, in_languages, judged

LABEL = "__label__"
CHUNK_CHARACTERS = 2_000  # a training example: documents are as long as they like, and judged in any length
BELOW, ABOVE = "below", "above"


@dataclasses.dataclass(frozen=True)
class Training:
    """How a classifier is trained; linear, so a few dimensions do as well as many.

    Attributes:
        word_ngrams: longest word n-gram that is a feature.
        character_ngrams: shortest and longest character n-gram that is one; (0, 0) for none.
        buckets: slots for the hashes of n-grams.
    """

    dimensions: int = 4
    epochs: int = 5
    learning_rate: float = 0.5
    word_ngrams: int = 2
    character_ngrams: tuple[int, int] = (0, 0)
    buckets: int = 1 << 18
    min_count: int = 3
    seed: int = 1


@dataclasses.dataclass(frozen=True)
class Classifier:
    """Map stage that tags documents with the probability of a label and rejects those on the wrong side of a threshold.

    Attributes:
        name: of the stage, the tag and the rule.
        model: the model's bytes, or its path.
        label: whose probability is the score, without "__label__".
        rejects: "below" or "above" the threshold.
        is_normalised: give the model text as `normalise` makes it, as models trained here were.
        languages: judge only documents tagged with one of these; empty judges all.
    """

    name: str
    model: bytes | str
    label: str
    threshold: float
    rejects: str
    action: str
    max_characters: int
    is_normalised: bool = True
    languages: tuple[str, ...] = ()

    def __post_init__(self):
        check_action(self.name, self.action)
        check_fraction(self.name, "threshold", self.threshold)

    def decide(self, documents: pa.RecordBatch) -> pa.Table:
        """Scores the first `max_characters` of each document."""
        documents = in_languages(documents, self.languages)
        texts = pc.utf8_slice_codeunits(documents["text"], 0, self.max_characters)
        texts = normalise(texts) if self.is_normalised else one_line(texts)
        model = from_file(self.model) if isinstance(self.model, str) else from_bytes(self.model)
        scores = np.round(probabilities(model, texts, self.label), DIGITS)
        is_rejected = scores < self.threshold if self.rejects == BELOW else scores > self.threshold
        return judged(documents["id"], self.name, scores, is_rejected, self.threshold, self.action)


def one_line(texts: pa.Array) -> pa.Array:
    """Texts without the characters that end an example for fastText."""
    return pc.replace_substring_regex(texts, r"[\n\x00]+", " ")


def normalise(texts: pa.Array) -> pa.Array:
    """Lower case, digits 0, punctuation apart from words, on one line."""
    lower = pc.replace_substring_regex(pc.utf8_lower(texts), r"[0-9]", "0")
    return one_line(pc.replace_substring_regex(lower, r"([\p{P}\p{S}])", r" \1 "))


def train(corpora: Mapping[str, Iterable[pa.RecordBatch]], settings: Training = Training()) -> bytes:
    """Trains a classifier with a label for each corpus; returns the model file's bytes.

    Raises:
        RunError: a corpus has no text.
    """
    import fasttext

    with tempfile.TemporaryDirectory(prefix="pretrain-fasttext-") as folder:
        examples, model_file = os.path.join(folder, "examples.txt"), os.path.join(folder, "model.bin")
        _write_examples(corpora, examples, settings.seed)
        model = fasttext.train_supervised(
            examples,
            dim=settings.dimensions,
            epoch=settings.epochs,
            lr=settings.learning_rate,
            wordNgrams=settings.word_ngrams,
            minn=settings.character_ngrams[0],
            maxn=settings.character_ngrams[1],
            bucket=settings.buckets,
            minCount=settings.min_count,
            seed=settings.seed,
            thread=1,
            verbose=0,
        )
        model.save_model(model_file)
        with open(model_file, "rb") as file:
            return file.read()


def _write_examples(corpora: Mapping[str, Iterable[pa.RecordBatch]], path: str, seed: int) -> None:
    """Writes all examples in random order, without which the corpus read last would win; only offsets are in memory."""
    ends = [0]
    with open(path + ".ordered", "wb") as file:
        for label, batches in corpora.items():
            before = len(ends)
            for line in (line for batch in batches for line in _examples(label, batch)):
                file.write(line)
                ends.append(ends[-1] + len(line))
            if len(ends) == before:
                raise RunError(f"the reference corpus '{label}' has no text; give one with documents")
    order = np.random.default_rng(seed).permutation(len(ends) - 1)
    with open(path + ".ordered", "rb") as ordered, open(path, "wb") as file:
        content = mmap.mmap(ordered.fileno(), 0, access=mmap.ACCESS_READ)
        file.writelines(content[ends[index] : ends[index + 1]] for index in order)


def _examples(label: str, batch: pa.RecordBatch) -> Iterator[bytes]:
    for text in normalise(batch["text"]).to_pylist():
        for start in range(0, len(text), CHUNK_CHARACTERS):
            words = text[start : start + CHUNK_CHARACTERS].split()
            if words:
                yield f"{LABEL}{label} {' '.join(words)}\n".encode()


@functools.lru_cache(maxsize=4)
def from_bytes(model: bytes) -> Any:
    """The model of bytes that `train` returned, loaded once a process."""
    with tempfile.TemporaryDirectory(prefix="pretrain-fasttext-") as folder:
        path = os.path.join(folder, "model.bin")
        with open(path, "wb") as file:
            file.write(model)
        return _load(path)


@functools.lru_cache(maxsize=4)
def from_file(path: str) -> Any:
    """The model of a `.bin` or `.ftz` file, local or remote, loaded once a process.

    Raises:
        UserError: there is no such file, or it is no fastText model.
    """
    check(storage.Path(path).exists(), f"no such fastText model: {path}")
    return _load(storage.local_copy(path))


def _load(path: str) -> Any:
    import fasttext

    try:
        return fasttext.load_model(path)
    except ValueError as error:
        raise UserError(f"{path} is no fastText model ({error}); give a .bin or .ftz file") from error


def probabilities(model: Any, texts: pa.Array, label: str) -> np.ndarray:
    """The probability of `label` for each text of one line, float64 in 0 … 1; 0 for a text without a known feature.

    Raises:
        UserError: the model has no such label.
    """
    known = model.get_labels()
    wanted = LABEL + label.removeprefix(LABEL)
    check(wanted in known, f"the model has no label {label!r}; it has {' '.join(known[:20])}")
    if not len(texts):
        return np.zeros(0)
    labels, values = model.predict(texts.to_pylist(), k=len(known))
    found = [dict(zip(names, row, strict=True)).get(wanted, 0.0) for names, row in zip(labels, values, strict=True)]
    return np.clip(np.array(found, np.float64), 0.0, 1.0)
