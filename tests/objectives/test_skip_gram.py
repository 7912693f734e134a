"""Skip-gram and CBOW: which words stay, which pairs count, and the loss against loops in numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import packed_rows

from pretrain.core.errors import UserError
from pretrain.core.objective import Vocabulary
from pretrain.models.build import build_model
from pretrain.models.config import TransformerConfig
from pretrain.objectives.skip_gram import ContinuousBagOfWords, SkipGram, around, keep_probabilities

COUNTS = np.array([0, 0, 0, 0, *np.maximum(1000 // np.arange(1, 61), 1)])
VOCABULARY = Vocabulary(64, counts=COUNTS)
LENGTHS = [[20, 9], [17], [], [30]]
MODEL = build_model(TransformerConfig(architecture="embeddings", vocab_size=64, embed_dim=8))


def made(kind, **fields):
    fields = {"window": 3, "block": 8, "noise": 6, "subsample": 0.0, **fields}
    return kind(**fields).bind(VOCABULARY)


def tables():
    rng = np.random.default_rng(0)
    return {name: rng.normal(size=(64, 8)).astype(np.float32) for name in ("words", "contexts")}


def softplus(x):
    return np.logaddexp(0, x)


def contexts_of(batch, row, place):
    """Places in the window of a centre, by the definition."""
    segments, width = batch["segment_ids"][row], batch["windows"][row, place]
    near = range(max(0, place - width), min(len(segments), place + width + 1))
    return [other for other in near if other != place and segments[other] == segments[place] > 0]


def expected(objective, batch, tables):
    """Sum and weight of the loss, pair by pair."""
    total, weight = 0.0, 0
    for row, words in enumerate(batch["tokens"]):
        for place, word in enumerate(words):
            others = contexts_of(batch, row, place)
            if not others:
                continue
            if isinstance(objective, SkipGram):
                inside, outside = tables["words"][word], tables["contexts"][words[others]]
            else:
                inside, outside = tables["words"][words[others]].mean(0), tables["contexts"][[word]]
            noise = tables["contexts"][batch["noise"][row, place // objective.block]]
            total += softplus(-outside @ inside).sum()
            total += len(outside) * objective.negatives * softplus(noise @ inside).mean()
            weight += len(outside)
    return total, weight


@pytest.mark.parametrize("kind", [SkipGram, ContinuousBagOfWords])
@pytest.mark.parametrize("length", [30, 32])
def test_loss_is_the_sum_over_pairs(kind, length):
    objective, values = made(kind), tables()
    batch = objective.finish(packed_rows(LENGTHS, length), np.random.default_rng(1))
    module = MODEL.module(jax.tree.map(jnp.asarray, values))
    terms, _ = objective.loss(objective.forward(module, batch).hidden, batch)
    total, weight = expected(objective, batch, values)
    np.testing.assert_allclose(terms["negative_sampling"].sum, total, rtol=1e-5)
    assert terms["negative_sampling"].weight == weight > 0


def test_keep_probability_is_that_of_word2vec():
    counts = np.array([0, 900, 99, 1])
    found = keep_probabilities(counts, 1e-2)
    frequency = np.array([0.9, 0.099])
    np.testing.assert_allclose(found[1:3], np.sqrt(0.01 / frequency) + 0.01 / frequency, rtol=1e-6)
    assert found[0] == 0 and found[3] == 1
    assert keep_probabilities(counts, 0).tolist() == [0, 1, 1, 1]


def test_words_stay_as_often_as_they_should_and_in_their_order():
    objective = made(SkipGram, subsample=1e-2)
    length = 4000
    columns = objective.packed_length(length)
    assert columns > 1.2 * length
    rng = np.random.default_rng(3)
    rows = packed_rows([[columns]] * 8, columns)
    rows["tokens"] = rng.choice(64, (8, columns), p=COUNTS / COUNTS.sum()).astype(np.int32)
    batch = objective.finish(rows, rng)
    assert batch["tokens"].shape == (8, length)
    stayed, seen = (
        np.bincount(batch["tokens"][batch["segment_ids"] > 0], minlength=64),
        np.bincount(rows["tokens"].flat),
    )
    keep = keep_probabilities(COUNTS, 1e-2)
    np.testing.assert_allclose(stayed[4:10] / seen[4:10], keep[4:10], rtol=0.08)
    assert (batch["segment_ids"] > 0).mean() > 0.97
    kept = batch["tokens"][0][batch["segment_ids"][0] > 0].tolist()
    words = iter(rows["tokens"][0].tolist())
    assert all(any(word == other for other in words) for word in kept), "not a subsequence"


def test_end_of_document_is_no_word():
    rows = packed_rows([[8]], 8)
    rows["tokens"][0, 5] = 2
    batch = made(SkipGram).finish(rows, np.random.default_rng(0))
    assert 2 not in batch["tokens"] and (batch["segment_ids"] > 0).sum() == 7


def test_noise_and_windows_have_their_distributions():
    objective = made(SkipGram, noise=200, exponent=0.75)
    batch = objective.finish(packed_rows([[800]] * 8, 800), np.random.default_rng(0))
    share = np.bincount(batch["noise"].flat, minlength=64) / batch["noise"].size
    wanted = np.where(COUNTS > 0, COUNTS**0.75, 0)
    np.testing.assert_allclose(share, wanted / wanted.sum(), atol=0.003)
    widths = np.bincount(batch["windows"].flat) / batch["windows"].size
    np.testing.assert_allclose(widths, [0, 1 / 3, 1 / 3, 1 / 3], atol=0.02)


def test_around_gives_each_block_its_neighbours():
    found = around(jnp.arange(1, 13)[None], block=4, window=2)[0]
    assert found.tolist() == [[0, 0, 1, 2, 3, 4, 5, 6], [3, 4, 5, 6, 7, 8, 9, 10], [7, 8, 9, 10, 11, 12, 0, 0]]


def test_a_tokenizer_without_counts_is_refused():
    with pytest.raises(UserError, match="kind = 'words'"):
        SkipGram().bind(Vocabulary(64))
    with pytest.raises(UserError, match="block"):
        SkipGram(block=4)
    with pytest.raises(UserError, match=r"SkipGram\.window"):
        SkipGram(window=0)
