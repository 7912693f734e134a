"""How well a trained model writes down the recordings of the cache: word error rate on the validation split.

Joins cache, tokenizer, model and objective for `Experiment.evaluate`.
"""

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
    rng, samples, texts = np.random.default_rng(0), [], []
    for source in read_info(data / "cache")["sources"]:
        for record in stored_examples(data / "cache", source, "validation"):
            try:
                samples.append(objective.example(record, rng)["samples"])
            except ValueError:
                continue  # counted in the metric "unusable"
            texts.append(tokenizer.decode(record["tokens"][:-1]))
    check(len(texts) > 0, "evaluate: the validation split holds no usable recording")
    write = jax.jit(
        lambda params, samples: transcribe(
            model.module(params),
            samples,
            tokenizer.bos_id,
            tokenizer.eos_id,
            vocab_size=tokenizer.vocab_size,
            length=objective.text_length,
        )
    )
    written = []
    for start in range(0, len(samples), BATCH):
        some = samples[start : start + BATCH]
        full = np.stack([*some, *([some[0]] * (BATCH - len(some)))])  # one shape, hence one program
        with use_mesh(mesh):
            tokens = np.asarray(write(params, jax.device_put(full, replicated(mesh))))[: len(some)]
        written += [tokenizer.decode(row[: int(np.argmax(np.append(row, tokenizer.eos_id) == tokenizer.eos_id))])
                    for row in tokens]  # fmt: skip
    errors = [word_errors(found.split(), text.split()) for found, text in zip(written, texts, strict=True)]
    words = sum(len(text.split()) for text in texts)
    rate, right = sum(errors) / words, float(np.mean(np.array(errors) == 0))
    say(f'evaluate: word error rate {100 * rate:.1f} % of {words:,} words; heard "{texts[0]}", wrote "{written[0]}"')
    return {"word_error_rate": rate, "sentences_right": right, "words": float(words)}
