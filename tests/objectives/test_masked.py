"""Masked language modelling: which tokens are hidden, what is shown instead, what is learned of them."""

import hypothesis.strategies as st
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from tiny import VOCAB, packed_rows

from pretrain.core.errors import UserError
from pretrain.core.objective import Output, Vocabulary
from pretrain.objectives.masked import Masked
from pretrain.objectives.masking import choose

STARTS = np.arange(VOCAB) % 3 == 0  # every third id begins a word
VOCABULARY = Vocabulary(VOCAB, num_sentinels=2, starts_word=STARTS)
MASK = VOCAB - 1
ROWS = packed_rows([[512]] * 16, 512, vocab=VOCAB - 2)


def finish(rows, seed: int = 0, **fields) -> dict[str, np.ndarray]:
    return Masked(**fields).bind(VOCABULARY).finish(rows, np.random.default_rng(seed))


def original(batch) -> np.ndarray:
    """The text, put together again from what is shown and the targets."""
    tokens, (row, slot) = batch["tokens"].copy(), np.nonzero(batch["loss_weights"])
    tokens[row, batch["target_positions"][row, slot]] = batch["targets"][row, slot]
    return tokens


def hidden(batch) -> np.ndarray:
    """Bool [rows, length]: the hidden places."""
    found, (row, slot) = np.zeros(batch["tokens"].shape, bool), np.nonzero(batch["loss_weights"])
    found[row, batch["target_positions"][row, slot]] = True
    return found


UNITS = [{}, {"whole_words": True}, {"span_p": 0.2}, {"whole_words": True, "span_p": 0.2}]


@pytest.mark.parametrize("units", UNITS)
@settings(max_examples=40, deadline=None)
@given(st.integers(0, 1 << 20), st.floats(0.01, 0.99), st.lists(st.lists(st.integers(1, 12), max_size=5), min_size=1))
def test_the_text_comes_back_and_padding_stays(units, seed, rate, lengths):
    rows = packed_rows(lengths, 64, vocab=VOCAB - 2, seed=seed)
    batch = finish(rows, seed, rate=rate, **units)
    np.testing.assert_array_equal(original(batch), rows["tokens"])
    found = hidden(batch)
    assert not found[rows["segment_ids"] == 0].any()
    assert (found.sum(1) == batch["loss_weights"].sum(1)).all()  # no place twice
    assert (found.sum(1) <= np.rint(rate * (rows["segment_ids"] > 0).sum(1))).all()
    np.testing.assert_array_equal(batch["tokens"][~found], rows["tokens"][~found])


def test_shares_are_those_asked_for():
    batch = finish(ROWS)
    assert (batch["loss_weights"].sum(1) == round(0.15 * 512)).all()
    found = hidden(batch)
    shown, text = batch["tokens"][found], ROWS["tokens"][found]
    assert abs((shown == MASK).mean() - 0.8) < 0.03
    assert abs((shown == text).mean() - 0.1) < 0.03  # and a few of the random ones
    others = shown[(shown != MASK) & (shown != text)]
    assert abs(len(others) / len(shown) - 0.1) < 0.03
    assert others.max() < VOCAB - 2 and not np.isin(others, [0, 1, 2]).any()  # text only: no sentinel, no special id
    assert len(np.unique(others)) > 40
    everything = finish(ROWS, mask=1.0, random=0.0)
    assert (everything["tokens"][hidden(everything)] == MASK).all()


def test_every_place_is_hidden_equally_often_and_every_epoch_differs():
    times = sum(hidden(finish(ROWS, seed)).sum(0) for seed in range(60))
    assert abs(times.mean() / (60 * 16) - 0.15) < 0.001
    assert times.std() < 1.2 * np.sqrt(60 * 16 * 0.15 * 0.85)
    assert not np.array_equal(hidden(finish(ROWS, 0)), hidden(finish(ROWS, 1)))


def test_special_tokens_are_never_hidden():
    rows = {name: array.copy() for name, array in ROWS.items()}
    rows["tokens"][:, ::3] = 2
    rows["tokens"][:, 1::3] = 1
    found = hidden(finish(rows, rate=0.5))
    assert not found[:, ::3].any() and not found[:, 1::3].any() and found[:, 2::3].any()


def words(tokens: np.ndarray, segments: np.ndarray) -> list[slice]:
    """The words of a row, one by one."""
    starts = [i for i in range(len(tokens)) if i == 0 or STARTS[tokens[i]] or segments[i] != segments[i - 1]]
    return [slice(a, b) for a, b in zip(starts, [*starts[1:], len(tokens)], strict=True)]


def test_words_are_hidden_whole():
    rows = packed_rows([[200, 56], [256], [100, 100, 20]], 256, vocab=VOCAB - 2)
    batch = finish(rows, whole_words=True)
    found, count = hidden(batch), 0
    for row in range(3):
        for word in words(rows["tokens"][row], rows["segment_ids"][row]):
            assert found[row, word].all() or not found[row, word].any()
            count += found[row, word].any() and word.stop - word.start > 1
    assert count > 5
    assert batch["loss_weights"].sum() > 0.9 * round(0.15 * 256) * 3 * 0.95


def test_spans_are_as_long_as_in_the_paper():
    """Geometric with p = 0.2, cut at 10: 3.8 on average; all of a span is shown alike."""
    lengths = []
    for seed in range(30):
        got = choose(
            ROWS["tokens"],
            ROWS["segment_ids"],
            VOCABULARY,
            np.random.default_rng(seed),
            rate=0.15,
            budget=77,
            span_p=0.2,
        )
        real = got.weights_BK > 0
        for row in range(16):
            lengths += np.unique(got.units_BK[row][real[row]], return_counts=True)[1].tolist()
    lengths = np.array(lengths)
    expected = 0.2 * 0.8 ** np.arange(10)
    expected /= expected.sum()
    assert lengths.max() == 10
    # the last span drawn is left out if it does not fit, so long ones are a little rarer
    np.testing.assert_allclose(np.bincount(lengths, minlength=11)[1:] / len(lengths), expected, atol=0.025)
    assert 3.4 < lengths.mean() < 3.9
    batch = finish(ROWS, span_p=0.2, mask=0.5, random=0.5)
    kinds = batch["tokens"] == MASK
    edges = (kinds[:, 1:] != kinds[:, :-1]) & hidden(batch)[:, 1:] & hidden(batch)[:, :-1]
    assert edges.sum() < 0.1 * hidden(batch).sum()  # only where two spans touch


def test_spans_of_words_do_not_cut_words_or_cross_documents():
    rows = packed_rows([[30] * 8] * 8, 240, vocab=VOCAB - 2)
    batch = finish(rows, whole_words=True, span_p=0.2)
    found = hidden(batch)
    for row in range(8):
        for word in words(rows["tokens"][row], rows["segment_ids"][row]):
            assert found[row, word].all() or not found[row, word].any()
    got = choose(
        rows["tokens"], rows["segment_ids"], VOCABULARY, np.random.default_rng(0), rate=0.9, budget=240, span_p=0.2
    )
    for row, slot in np.argwhere(got.weights_BK > 0):
        same = got.positions_BK[row][(got.units_BK[row] == got.units_BK[row, slot]) & (got.weights_BK[row] > 0)]
        assert len(set(rows["segment_ids"][row, same])) == 1 and same.max() - same.min() == len(same) - 1


def test_the_head_sees_hidden_places_only():
    """Its work is `rate` of the length, whatever the model."""
    spec = Masked().batch_spec(4, 100)
    assert spec["targets"].shape == (4, 15)

    class Model:
        def __call__(self, tokens, segments, positions, *, causal):
            assert not causal
            return Output(jnp.repeat(tokens[..., None], 3, -1))

        def masked_logits(self, hidden):
            assert hidden.shape == (16, 77, 3)
            return hidden

    objective, batch = Masked().bind(VOCABULARY), finish(ROWS)
    hidden_states = objective.head(Model(), objective.forward(Model(), batch).hidden, batch)
    expected = np.take_along_axis(batch["tokens"], batch["target_positions"], 1)
    np.testing.assert_array_equal(hidden_states[..., 0], expected)


def test_loss_is_the_formula():
    batch = finish(packed_rows([[16], [5, 7], [3]], 16, vocab=VOCAB - 2), rate=0.5)
    logits = np.random.default_rng(0).normal(size=(3, 8, VOCAB)).astype(np.float32)
    terms, metrics = Masked(rate=0.5).loss(logits, batch)
    log_z = np.log(np.exp(logits.astype(np.float64)).sum(-1))
    nats = (log_z - np.take_along_axis(logits, batch["targets"][..., None], -1)[..., 0]) * batch["loss_weights"]
    np.testing.assert_allclose(terms["masked"].sum, nats.sum(), rtol=1e-5)
    assert terms["masked"].weight == batch["loss_weights"].sum() == 8 + 6 + 2
    hits = ((logits.argmax(-1) == batch["targets"]) * batch["loss_weights"]).sum()
    assert metrics["masked_accuracy"] == (hits, 16)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"rate": 0.0}, "rate"),
        ({"mask": 0.9, "random": 0.2}, "at most 1"),
        ({"random": -0.1}, "not negative"),
        ({"span_p": 0.0}, "span_p"),
        ({"max_span": 0}, "max_span"),
    ],
)
def test_wrong_settings_are_one_line(fields, message):
    with pytest.raises(UserError, match=message):
        Masked(**fields)


def test_the_tokenizer_must_know_words_and_have_a_sentinel():
    with pytest.raises(UserError, match="where words begin"):
        Masked(whole_words=True).bind(Vocabulary(VOCAB, num_sentinels=1))
    with pytest.raises(UserError, match="extra_ids = 1"):
        Masked().bind(Vocabulary(VOCAB))
