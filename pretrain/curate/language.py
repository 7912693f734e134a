"""Language identification: which language a document is in, how sure that is, and which languages are kept.

The model is py3langid's (Lui & Baldwin 2012, langid.py), which ships inside its package: naive Bayes over byte n-grams
chosen to tell languages and not domains apart, with a probability calibrated by length; `langid.py` asks it about many
texts at once. It was chosen over fastText's lid.176.ftz by measurement (docs/curation_judgements.md). A fastText
identification model can take its place.
"""

import dataclasses
import functools
import re
from collections.abc import Callable, Sequence

import gin
import numpy as np
import pyarrow as pa

from pretrain.core.errors import check
from pretrain.core.fields import check_fields
from pretrain.curate import fasttext_models
from pretrain.curate.judgement import DIGITS, DROP, check_action, check_fraction, sample
from pretrain.curate.stages import rejections, tags

PY3LANGID = "py3langid"
UNDETERMINED = "und"  # ISO 639-2: a document without letters
LETTER = re.compile(r"[^\W\d_]")
Identify = Callable[[Sequence[str]], list[tuple[str, float]]]


@gin.configurable(module="pretrain.curate")
@dataclasses.dataclass(frozen=True)
class Language:
    """Map stage that tags documents with `language` and `language_score`, and rejects those not surely in `keep`.

    Attributes:
        keep: languages to keep, as the model names them (ISO 639-1 where there is one); empty keeps all.
        threshold: lowest probability of the language.
        action: "drop" or "tag"; "tag" rejects nothing.
        sample_characters: looked at of each document, in equal parts from its start, middle and end.
        model: "py3langid", or the path of a fastText model with a label for each language (lid.176.bin, GlotLID).
    """

    keep: Sequence[str] = ()
    threshold: float = 0.65
    action: str = DROP
    sample_characters: int = 600
    model: str = PY3LANGID
    name: str = "language"

    def __post_init__(self):
        check_fields(self)
        check_action("Language", self.action)
        check_fraction("Language", "threshold", self.threshold)
        check(self.sample_characters >= 1, f"Language.sample_characters must be positive, not {self.sample_characters}")
        check(not isinstance(self.keep, str), f"Language.keep must be a list of languages, not {self.keep!r}")

    def decide(self, documents: pa.RecordBatch) -> pa.Table:
        """Tags all; rejects by rule `language_score`, or by `language_xx` for a sure language that is not kept."""
        judged = identifier(self.model, tuple(self.keep))(sample(documents["text"], self.sample_characters))
        found = [language for language, _ in judged]
        scores = np.round(np.array([score for _, score in judged], np.float64), DIGITS)
        ids = documents["id"]
        decisions = [tags(ids, "language", pa.array(found, pa.string())), tags(ids, "language_score", pa.array(scores))]
        if self.action == DROP:
            is_unsure = scores < self.threshold
            is_other = np.array([bool(self.keep) and language not in self.keep for language in found], bool)
            rejected = pa.array(np.flatnonzero(is_unsure | is_other))
            rules = np.where(is_unsure, "language_score", [f"language_{language}" for language in found])
            reasons = pa.array(rules.astype(object), pa.string()).take(rejected)
            decisions.append(rejections(ids.take(rejected), reasons, pa.array(scores).take(rejected), self.threshold))
        return pa.concat_tables(decisions)


@functools.lru_cache(maxsize=4)
def identifier(model: str = PY3LANGID, keep: tuple[str, ...] = ()) -> Identify:
    """The function from texts to the language of each and that language's probability, loaded once a process.

    Raises:
        UserError: the model is no such file, or does not know a language that is to be kept.
    """
    identify, known = _py3langid() if model == PY3LANGID else _fasttext(model)
    unknown = sorted(set(keep) - known)
    check(not unknown, f"Language.keep: {unknown} unknown to {model}; it knows {' '.join(sorted(known))}")

    def of(texts: Sequence[str]) -> list[tuple[str, float]]:
        answers = identify(texts)
        return [a if LETTER.search(text) else (UNDETERMINED, 0.0) for a, text in zip(answers, texts, strict=True)]

    return of


def _py3langid() -> tuple[Identify, set[str]]:
    from pretrain.curate.langid import BatchIdentifier

    model = BatchIdentifier()
    return model, model.labels


def _fasttext(path: str) -> tuple[Identify, set[str]]:
    model = fasttext_models.from_file(path)

    def identify(text: str) -> tuple[str, float]:
        labels, probabilities = model.predict(" ".join(text.split()))
        return labels[0].removeprefix(fasttext_models.LABEL), min(1.0, float(probabilities[0]))

    known = {label.removeprefix(fasttext_models.LABEL) for label in model.get_labels()}
    return lambda texts: [identify(text) for text in texts], known
