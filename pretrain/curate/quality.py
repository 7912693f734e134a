"""Quality classifiers: how much a document looks like good text, by a linear model over words and pairs of words.

GPT-3 (Brown et al. 2020), CCNet and DataComp-LM (Li et al. 2024) choose web text this way: a classifier is trained to
tell a trusted corpus (encyclopedias, books, answers people voted for) from a random sample of the crawl.
"""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence

import gin
import pyarrow as pa

from pretrain.core.errors import check
from pretrain.core.fields import check_fields
from pretrain.curate import fasttext_models
from pretrain.curate.fasttext_models import BELOW, Classifier
from pretrain.curate.judgement import DROP, check_action, check_fraction

GOOD, RANDOM = "good", "random"


@gin.configurable(module="pretrain.curate")
@dataclasses.dataclass(frozen=True)
class QualityClassifier:
    """Fitted stage that learns to tell two corpora apart, and rejects what looks too little like the good one.

    Attributes:
        good: trusted text: a path, glob or folder as in `Recipe.input`.
        random: text as it comes, about as much of it.
        threshold: lowest probability of being good.
        action: "drop" or "tag"; the score is written as `quality` either way.
        max_characters: judged of each document.
        languages: judge only documents tagged with one of these; empty judges all.
    """

    good: str = ""
    random: str = ""
    threshold: float = 0.5
    action: str = DROP
    max_characters: int = 10_000
    languages: Sequence[str] = ()
    name: str = "quality"

    def __post_init__(self):
        check_fields(self)
        check_action("QualityClassifier", self.action)
        check_fraction("QualityClassifier", "threshold", self.threshold)
        missing = "QualityClassifier needs two corpora: set QualityClassifier.good and QualityClassifier.random"
        check(bool(self.good and self.random), missing)

    @property
    def reference(self) -> dict[str, str]:
        """The corpora to learn from."""
        return {GOOD: self.good, RANDOM: self.random}

    def fit(self, reference: Mapping[str, Iterable[pa.RecordBatch]]) -> Classifier:
        """Trains on all of both corpora."""
        model = fasttext_models.train(reference)
        settings = (self.threshold, BELOW, self.action, self.max_characters)
        return Classifier(self.name, model, GOOD, *settings, languages=tuple(self.languages))


@gin.configurable(module="pretrain.curate")
@dataclasses.dataclass(frozen=True)
class FastTextQuality:
    """Map stage that scores with the user's own fastText model, such as DataComp-LM's.

    Attributes:
        model: path of a `.bin` or `.ftz` file, local or remote.
        label: the good label, with or without "__label__"; DataComp-LM's is "hq", with threshold 0.018112.
        threshold: lowest probability of that label.
        action: "drop" or "tag"; the score is written under the stage's name either way.
        is_normalised: lower case, digits 0 and punctuation apart before scoring; most models want plain text.
    """

    model: str = ""
    label: str = "hq"
    threshold: float = 0.5
    action: str = DROP
    max_characters: int = 100_000
    is_normalised: bool = False
    languages: Sequence[str] = ()
    name: str = "fasttext_quality"

    def __post_init__(self):
        check_fields(self)
        check_action("FastTextQuality", self.action)
        check_fraction("FastTextQuality", "threshold", self.threshold)
        check(bool(self.model), "FastTextQuality needs a model: set FastTextQuality.model to a .bin or .ftz file")

    def decide(self, documents: pa.RecordBatch) -> pa.Table:
        """Loads the model once a process and scores."""
        settings = (self.threshold, BELOW, self.action, self.max_characters, self.is_normalised, tuple(self.languages))
        return Classifier(self.name, self.model, self.label, *settings).decide(documents)
