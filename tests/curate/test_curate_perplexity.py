"""The n-gram model against plain Python and its own definition; buckets; any text in any batches."""

import functools
import pickle
import pydoc_data.topics
import random
from collections import Counter

import numpy as np
import pytest
from corpora import SENTENCE, batch, documents
from hypothesis import given, settings
from hypothesis import strategies as st

from pretrain.core.errors import RunError, UserError
from pretrain.curate.byte_ngrams import DISCOUNT, FOLD, ByteNgrams, train
from pretrain.curate.perplexity import PerplexityBuckets, PerplexityFilter, perplexities
from pretrain.curate.stages import FittedStage, apply

MANUAL = "\n".join(pydoc_data.topics.topics[name] for name in sorted(pydoc_data.topics.topics))
PIECES = [MANUAL[start : start + 2_000] for start in range(0, 400_000, 2_000)]


def reference_probability(text: bytes, order: int, context: bytes, byte: int, lost: set[int]) -> float:
    """Interpolated Kneser-Ney by dictionaries, as it is defined; n-grams that are lost count as never seen."""
    grams = [Counter(text[i : i + n] for i in range(len(text) - n + 1)) for n in range(1, order + 1)]
    for length in range(order - 1, 0, -1):
        grams[length - 1] = Counter(gram[1:] for gram in grams[length])
    probability = (grams[0][bytes([byte])] + 1) / (sum(grams[0].values()) + 256)
    for length in range(2, order + 1):
        before = context[len(context) - length + 1 :]
        counts = {gram[-1]: n for gram, n in grams[length - 1].items() if gram[:-1] == before}
        if counts:
            mass = sum(counts.values())
            is_seen = byte in counts and key(before + bytes([byte])) not in lost
            seen = (counts[byte] - DISCOUNT) / mass if is_seen else 0.0
            left = 1.0 if key(before) in lost else DISCOUNT * len(counts) / mass
            probability = seen + left * probability
    return probability


def key(gram: bytes) -> int:
    """The integer of an n-gram of two bytes or more."""
    return int.from_bytes(gram, "big") | len(gram) << 61 if len(gram) > 1 else -1


@pytest.mark.parametrize("order", [2, 3, 5, 7])
def test_probabilities_are_interpolated_kneser_ney(order):
    text = b"the cat sat on the mat and the rat sat on the cat " * 3 + b"\n" * order
    folded = bytes(FOLD[list(text)])
    model = train(text, order, 1 << 16)
    _, keys, _, _ = model._table
    lost = set(model.keys_N.tolist()) - set(keys.tolist())  # two n-grams of one slot: the rarer one
    assert len(lost) < 0.3 * len(model.keys_N)
    sample = b"the hat sat"
    padded = bytes(FOLD[list(b"\n" * order + sample)])
    expected = [
        reference_probability(folded, order, padded[:end], padded[end], lost) for end in range(order, len(padded))
    ]
    np.testing.assert_allclose(model.bits_per_byte([sample]), [-np.mean(np.log2(expected))], rtol=1e-5)


def test_probabilities_sum_to_one_but_for_what_was_lost():
    model = train(MANUAL[:20_000].encode(), 3, 1 << 20)
    context = b"in the"
    start = model.bits_per_byte([context])[0] * len(context)
    folded = sorted(set(FOLD.tolist()))
    total = [model.bits_per_byte([context + bytes([byte])])[0] * (len(context) + 1) for byte in folded]
    unused = (256 - len(folded)) * model.unigram_V[0]
    assert 0.9 < np.sum(2.0 ** -(np.array(total) - start)) <= 1 + unused


def test_more_context_predicts_better():
    text, held_out = MANUAL[:300_000].encode(), [MANUAL[300_000:310_000].encode()]
    bits = [train(text, order, 1 << 18).bits_per_byte(held_out)[0] for order in (2, 3, 5)]
    assert bits[0] > bits[1] > bits[2]


def test_case_digits_and_white_space_do_not_matter():
    model = train(MANUAL[:50_000].encode(), 4, 1 << 16)
    bits = model.bits_per_byte([b"The year 1999 was", b"the YEAR 2024 was", b"the\tyear\r0000 was"])
    np.testing.assert_array_equal(bits, bits[:1].repeat(3))


@settings(deadline=None, max_examples=40)
@given(st.lists(st.binary(max_size=40), max_size=6), st.integers(0, 6))
def test_each_text_stands_alone(texts, cut):
    model = small_model()
    whole = model.bits_per_byte(texts)
    parts = np.concatenate([model.bits_per_byte(texts[:cut]), model.bits_per_byte(texts[cut:])])
    np.testing.assert_array_equal(whole, parts)
    assert np.all(np.isfinite(whole)) and np.all(whole >= 0)
    assert all(bits == 0 for bits, text in zip(whole, texts, strict=True) if not text)


@functools.cache
def small_model() -> ByteNgrams:
    """The same model for all examples."""
    return train(MANUAL[:30_000].encode(), 4, 1 << 14)


def test_a_pickled_model_scores_alike_and_carries_no_table():
    model = small_model()
    before = model.bits_per_byte([b"some text"])
    pickled = pickle.dumps(model)
    assert len(pickled) < 17 * len(model.keys_N) + 10_000
    np.testing.assert_array_equal(pickle.loads(pickled).bits_per_byte([b"some text"]), before)


@pytest.fixture(scope="module")
def fitted() -> PerplexityBuckets:
    return PerplexityFilter(clean="x", head=0.5, middle=0.4, max_ngrams=1 << 17).fit({"clean": [batch(PIECES)]})


def buckets(stage: PerplexityBuckets, texts: list[str]) -> list[str]:
    return [row["label"] for row in stage.decide(batch(texts)).to_pylist() if row["tag"] == "perplexity_bucket"]


def test_it_is_a_fitted_stage():
    assert isinstance(PerplexityFilter(clean="x"), FittedStage)
    assert PerplexityFilter(clean="a", corpus="b").reference == {"clean": "a", "corpus": "b"}
    assert PerplexityFilter(clean="a").reference == {"clean": "a"}


def test_prose_comes_before_damaged_prose_before_noise(fitted):
    draw = random.Random(0)
    held_out = MANUAL[410_000:414_000]
    damaged = "".join(draw.choice("qxzjkvw#%&") if draw.random() < 0.2 else c for c in held_out)
    noise = "".join(chr(draw.randrange(33, 127)) for _ in range(4_000))
    found = perplexities(fitted.model, [held_out, damaged, noise])
    assert found[0] < 0.6 * found[1] < 0.6 * found[2]
    assert buckets(fitted, [damaged, noise]) == ["tail", "tail"]


def test_limits_are_quantiles_of_the_corpus_given():
    stage = PerplexityFilter(clean="x", corpus="y", head=0.25, middle=0.5, max_ngrams=1 << 16)
    corpus = [MANUAL[start : start + 1_000] for start in range(420_000, 460_000, 1_000)]
    found = Counter(buckets(stage.fit({"clean": [batch(PIECES)], "corpus": [batch(corpus)]}), corpus))
    assert found == {"head": 10, "middle": 20, "tail": 10}


def test_dropping_names_the_bucket_and_its_limit():
    stage = PerplexityFilter(clean="x", action="drop", drop=("tail",), max_ngrams=1 << 16).fit(
        {"clean": [batch(PIECES)]}
    )
    table = documents([PIECES[0], "#%&" * 400, ""])
    kept, rejected, _ = apply(table, stage.decide(table.to_batches()[0]), "perplexity")
    assert kept["id"].to_pylist() == ["id000", "id002"]
    (row,) = rejected.to_pylist()
    assert (row["rule"], row["threshold"]) == ("perplexity_tail", stage.middle_limit) and row["value"] > row[
        "threshold"
    ]


@pytest.mark.parametrize(
    "settings_, words",
    [
        ({}, "PerplexityFilter.clean"),
        ({"order": 9}, "order"),
        ({"head": 0.8, "middle": 0.4}, "head"),
        ({"drop": ["feet"]}, "drop"),
        ({"sample_characters": 0}, "sample_characters"),
        ({"action": "cut"}, "action"),
    ],
)
def test_impossible_settings_are_refused(settings_, words):
    with pytest.raises(UserError, match=words):
        PerplexityFilter(**({"clean": "x"} | settings_ if settings_ else {}))


def test_too_little_text_fails():
    with pytest.raises(RunError, match="too little text"):
        PerplexityFilter(clean="x").fit({"clean": [batch([SENTENCE] * 3)]})


def test_the_reference_is_read_no_further_than_needed():
    read = []

    def batches():
        for index in range(100):
            read.append(index)
            yield batch(PIECES[:20])

    PerplexityFilter(clean="x", max_training_bytes=50_000, max_ngrams=1 << 14).fit({"clean": batches()})
    assert len(read) < 5


@settings(deadline=None, max_examples=40)
@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=80), max_size=70), st.integers(0, 70))
def test_any_text_in_any_batches(fitted, texts, cut):
    ids = [f"id{index:02d}" for index in range(len(texts))]
    whole = fitted.decide(batch(texts, ids)).to_pylist()
    parts = [fitted.decide(batch(texts[part], ids[part])).to_pylist() for part in (slice(0, cut), slice(cut, None))]
    order = lambda row: (row["id"], row["tag"])  # noqa: E731
    assert sorted(parts[0] + parts[1], key=order) == sorted(whole, key=order)
    assert len(whole) == 2 * sum(bool(text) for text in texts)


def test_a_huge_line(fitted):
    assert buckets(fitted, [PIECES[0] * 5_000]) != []
