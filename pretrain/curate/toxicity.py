"""Toxicity: listed words of the document's language, and a classifier trained on the user's examples.

Word lists catch obscene and insulting text and no other; a classifier learns what its examples show. Both remove more
text by and about some groups of people than of others (Dodge et al. 2021), so look at what they dropped.
"""

import dataclasses
import functools
import importlib.resources
import re
from collections.abc import Iterable, Mapping, Sequence

import gin
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pretrain.core import storage
from pretrain.core.errors import UserError, check
from pretrain.core.fields import check_fields
from pretrain.curate import fasttext_models
from pretrain.curate.fasttext_models import ABOVE, Classifier, Training
from pretrain.curate.judgement import DIGITS, DROP, check_action, check_fraction, judged, languages

TOXIC, CLEAN = "toxic", "clean"
TRAINING = Training(epochs=10, learning_rate=0.2, character_ngrams=(3, 5))  # examples are few, and words inflected
FOLDER = importlib.resources.files("pretrain.curate") / "wordlists"


@gin.configurable(module="pretrain.curate")
@dataclasses.dataclass(frozen=True)
class ToxicWords:
    """Map stage that tags documents with the share of their words that are listed, and rejects those above a threshold.

    Attributes:
        lists: {language: path of your own list}, which takes the place of ours; there a line is a word or phrase, a
            star at its end stands for any ending, and lines that start with # are comments.
        default_language: of documents that no `Language` stage has tagged.
        threshold: highest share of listed words.
        min_words: listed words below which a document is kept whatever the share.
        action: "drop" or "tag"; the share is written as `toxic_words` either way.
    """

    lists: Mapping[str, str] = dataclasses.field(default_factory=dict)
    default_language: str = "en"
    threshold: float = 0.01
    min_words: int = 1
    action: str = DROP
    name: str = "toxic_words"

    def __post_init__(self):
        check_fields(self)
        check_action("ToxicWords", self.action)
        check_fraction("ToxicWords", "threshold", self.threshold)

    def decide(self, documents: pa.RecordBatch) -> pa.Table:
        """Counts the listed words of each document's language; documents of other languages have none."""
        texts = documents["text"]
        found = np.array([language or self.default_language for language in languages(documents)], object)
        listed, words = np.zeros(len(texts), np.int64), np.ones(len(texts), np.int64)
        for language in sorted(set(found)):
            prefilter, pattern = word_pattern(language, self.lists.get(language, ""))
            if not pattern.pattern:
                continue
            rows = np.flatnonzero(found == language)
            for row in rows[np.flatnonzero(pc.match_substring_regex(texts.take(pa.array(rows)), prefilter))].tolist():
                text = texts[row].as_py().lower()
                listed[row], words[row] = sum(1 for _ in pattern.finditer(text)), max(1, len(text.split()))
        scores = np.round(np.minimum(1.0, listed / words), DIGITS)
        is_rejected = (scores > self.threshold) & (listed >= self.min_words)
        return judged(documents["id"], self.name, scores, is_rejected, self.threshold, self.action)


@functools.lru_cache(maxsize=128)
def word_pattern(language: str, path: str = "") -> tuple[str, re.Pattern]:
    """What Arrow looks for in texts of any case, and then Python in lower-case ones, as whole words.

    Raises:
        UserError: there is no such list, or it is empty.
    """
    words = word_list(language, path)
    roots = [(re.escape(word.removesuffix("*")), word.endswith("*")) for word in words]
    prefilter = "|".join(_edge(root[0]) + root + ("" if is_open else _edge(root[-1])) for root, is_open in roots)
    whole = "|".join(rf"{root}\w*" if is_open else root for root, is_open in roots)
    return f"(?i)(?:{prefilter})", re.compile(rf"(?<!\w)(?:{whole})(?!\w)" if words else "")


def _edge(character: str) -> str:
    """The edge of a word for Arrow, which knows letters of ASCII only: too many texts pass rather than too few."""
    return r"\b" if character.isascii() else ""


def word_list(language: str, path: str = "") -> list[str]:
    """The entries for a language: of the list at `path`, or of ours; none for a language that we have no list for.

    Raises:
        UserError: there is no such list, or it is empty.
    """
    if path:
        check(storage.Path(path).exists(), f"ToxicWords.lists: no such file: {path}")
        lines = storage.Path(path).read_text().splitlines()
    else:
        ours = FOLDER / f"{language}.txt"
        lines = ours.read_text(encoding="utf-8").splitlines() if ours.is_file() else []
    words = sorted({line.strip().lower() for line in lines if line.strip() and not line.startswith("#")})
    if path and not words:
        raise UserError(f"ToxicWords.lists: {path} lists no words; write one a line")
    return words


@gin.configurable(module="pretrain.curate")
@dataclasses.dataclass(frozen=True)
class ToxicityClassifier:
    """Fitted stage that learns to tell toxic text from other text, and rejects what looks too much like it.

    Attributes:
        toxic: examples of toxic text: a path, glob or folder as in `Recipe.input`.
        clean: text that is none, of the same kind and about as much.
        threshold: highest probability of being toxic.
        action: "drop" or "tag"; the score is written as `toxicity` either way.
        max_characters: judged of each document.
        languages: judge only documents tagged with one of these; empty judges all.
    """

    toxic: str = ""
    clean: str = ""
    threshold: float = 0.5
    action: str = DROP
    max_characters: int = 10_000
    languages: Sequence[str] = ()
    name: str = "toxicity"

    def __post_init__(self):
        check_fields(self)
        check_action("ToxicityClassifier", self.action)
        check_fraction("ToxicityClassifier", "threshold", self.threshold)
        missing = "ToxicityClassifier needs two corpora: set ToxicityClassifier.toxic and ToxicityClassifier.clean"
        check(bool(self.toxic and self.clean), missing)

    @property
    def reference(self) -> dict[str, str]:
        """The corpora to learn from."""
        return {TOXIC: self.toxic, CLEAN: self.clean}

    def fit(self, reference: Mapping[str, Iterable[pa.RecordBatch]]) -> Classifier:
        """Trains on all of both corpora."""
        model = fasttext_models.train(reference, TRAINING)
        settings = (self.threshold, ABOVE, self.action, self.max_characters)
        return Classifier(self.name, model, TOXIC, *settings, languages=tuple(self.languages))
