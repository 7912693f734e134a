"""Held-out scores of a trained model: bits per byte of text where it continues text, else its objective's own numbers.

Joins data, model and objective for `Experiment.evaluate`.
"""

from collections.abc import Callable, Iterable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from pretrain.core.batch import ArraySpec, Batch
from pretrain.core.console import Progress
from pretrain.core.errors import check
from pretrain.core.storage import Path
from pretrain.data.cache import read_info
from pretrain.data.documents import stored_tokens, texts
from pretrain.data.tokenizers import Tokenizer
from pretrain.data.word_tokenizer import Words
from pretrain.evaluate.baselines import compressor_baselines
from pretrain.evaluate.perplexity import Perplexity, score_documents, summary
from pretrain.evaluate.word_vectors import WordVectors
from pretrain.models.functional import FunctionalModel, Params
from pretrain.objectives.causal import Causal
from pretrain.sharding.placement import batch_shardings, place_whole_batch
from pretrain.sharding.rules import use_mesh
from pretrain.train.step import objective_totals, summarize


def held_out_counts(data: Path) -> tuple[int, int]:
    """Tokens and bytes of the validation documents under `data`.

    Raises:
        UserError: there are none.
    """
    sources = read_info(data / "cache")["sources"].values()
    found = [splits["validation"] for splits in sources if "validation" in splits]
    check(
        any(entry["tokens"] for entry in found),
        "there are no validation documents: raise VALIDATION_FRACTION and curate again, or give the seqio tasks a "
        "validation split",
    )
    return sum(entry["tokens"] for entry in found), sum(entry["bytes"] for entry in found)


def score_text(
    model: FunctionalModel, params: Params, mesh: Mesh, data: Path, tokenizer: Tokenizer, length: int, chunks: int
) -> dict[str, Any]:
    """Bits per byte and perplexity of the validation documents, beside baselines, by a model that continues text."""
    config, objective = Perplexity(), Causal()
    check(
        config.batch_size % mesh.size == 0,
        f"Perplexity.batch_size ({config.batch_size}) must be a multiple of {mesh.size} devices",
    )
    shardings = batch_shardings(objective.batch_spec(config.batch_size, length), mesh)

    @jax.jit
    def nats_of(params, batch):
        return objective_totals(model, objective, params, batch, chunks)[0]["cross_entropy"].sum

    def score(batch: Batch) -> float:
        with use_mesh(mesh):
            return float(nats_of(params, place_whole_batch(batch, shardings)))

    tokens, size = held_out_counts(data)
    documents = stored_tokens(data / "cache", "validation")
    with Progress(tokens, "evaluate", "token") as progress:
        nats, tokens = score_documents(
            documents, score, config, bos_id=tokenizer.bos_id, length=length, on_batch=progress.update
        )
    baselines = compressor_baselines(texts(data / "cache", data / "corpus", "validation"))
    return {**summary(nats, tokens, size), "baselines": baselines}


def score_objective(
    evaluate: Callable[[Params, Batch], Any], spec: dict[str, ArraySpec], params: Params, mesh: Mesh,
    batches: Iterable[Batch],
) -> dict[str, float]:  # fmt: skip
    """The loss, its terms and metrics of an objective over held-out batches, which are laid out as `spec` says."""
    totals, compiled, shardings = None, jax.jit(evaluate), batch_shardings(spec, mesh)
    for batch in batches:
        with use_mesh(mesh):
            new = compiled(params, place_whole_batch(batch, shardings))
        totals = new if totals is None else jax.tree.map(lambda a, b: a + b, totals, new)
    check(totals is not None, "there is no whole batch of validation documents: lower BATCH_SIZE")
    return {name: float(value) for name, value in summarize(*totals).items()}


def word_vectors(tokenizer: Tokenizer, params: Params) -> WordVectors:
    """The vectors of a vocabulary of words, without those of special ids.

    Raises:
        UserError: the run has trained no word vectors.
    """
    check(
        isinstance(tokenizer, Words) and "words" in params,
        "this run holds no word vectors: train some, e.g. with gin_configs/runs/word2vec_quickstart.gin",
    )
    rows = slice(tokenizer.num_special, tokenizer.base_size)
    return WordVectors(tokenizer.words[rows], np.asarray(params["words"], np.float32)[rows])
