"""How well a trained model writes down the recordings of the cache: word error rate on the validation split.

Joins cache, tokenizer, model and objective for `Experiment.evaluate`.
"""

import itertools
from collections.abc import Iterator

import jax
import numpy as np
from jax.sharding import Mesh

from pretrain.core.console import say
from pretrain.core.errors import check
from pretrain.core.storage import Path
from pretrain.data.cache import read_info
from pretrain.data.documents import stored_examples
from pretrain.data.tokenizers import Tokenizer
from pretrain.evaluate.transcripts import transcribe, word_errors
from pretrain.models.functional import FunctionalModel, Params
from pretrain.objectives.transcription import Transcription
from pretrain.sharding.placement import replicated
from pretrain.sharding.rules import use_mesh

BATCH = 50  # recordings heard at once


def score_transcripts(
    model: FunctionalModel, params: Params, objective: Transcription, mesh: Mesh, data: Path, tokenizer: Tokenizer
) -> dict[str, float]:
    """`word_error_rate` (errors a word, over all words), `sentences_right` (share), and how many words there are."""
    write = jax.jit(
        lambda params, samples: transcribe(
            model.module(params), samples, tokenizer.bos_id, tokenizer.eos_id,
            vocab_size=tokenizer.vocab_size, length=objective.text_length,
        )
    )  # fmt: skip
    errors, words, shown, recordings = [], 0, "", _recordings(objective, data, tokenizer)
    while some := list(itertools.islice(recordings, BATCH)):
        samples, texts = zip(*some, strict=True)
        full = np.stack([*samples, *([samples[0]] * (BATCH - len(some)))])  # one shape, hence one program
        with use_mesh(mesh):
            tokens = np.asarray(write(params, jax.device_put(full, replicated(mesh))))
        for text, row in zip(texts, tokens, strict=False):
            end = int(np.argmax(np.append(row, tokenizer.eos_id) == tokenizer.eos_id))
            written = tokenizer.decode(row[:end])
            shown = shown or f'heard "{text}", wrote "{written}"'
            errors.append(word_errors(written.split(), text.split()))
            words += len(text.split())
    check(words > 0, "evaluate: the validation split holds no usable recording with words")
    rate, right = sum(errors) / words, float(np.mean(np.array(errors) == 0))
    say(f"evaluate: word error rate {100 * rate:.1f} % of {words:,} words; {shown}")
    return {"word_error_rate": rate, "sentences_right": right, "words": float(words)}


def _recordings(objective: Transcription, data: Path, tokenizer: Tokenizer) -> Iterator[tuple[np.ndarray, str]]:
    """Samples and text of each usable recording of the validation split; others count in the metric "unusable"."""
    for source, splits in read_info(data / "cache")["sources"].items():
        for record in stored_examples(data / "cache", source, "validation") if "validation" in splits else ():
            try:
                samples = objective.example(record, np.random.default_rng(0))["samples"]
            except ValueError:
                continue
            yield samples, tokenizer.decode(record["tokens"][:-1])
