"""Fill in the middle: pieces are cut in three and put together in the order that the sentinels say; nothing is lost."""

import collections

import numpy as np
import pytest
from conformance import VOCABULARY
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import VOCAB

from pretrain.core.errors import UserError
from pretrain.core.rng import host_rng
from pretrain.objectives.causal import Causal
from pretrain.objectives.fill_in_the_middle import ROOM, FillInTheMiddle
from pretrain.objectives.pieces import take_apart

PRE, SUF, MID = (VOCABULARY.sentinel(number) for number in range(3))
EOS = VOCABULARY.eos_id
LENGTH = 64


def documents(sizes: list[list[int]], ends: list[bool], seed: int = 0) -> list[list[np.ndarray]]:
    """Texts by row; those of which `ends` holds, in turn, end with the end token."""
    rng, ends = np.random.default_rng(seed), iter(ends)
    rows = [[rng.integers(4, VOCAB, size).astype(np.int32) for size in row] for row in sizes]
    for row in rows:
        for text in row:
            if next(ends, True):
                text[-1] = EOS
    return rows


def packed_texts(objective, rows: list[list[np.ndarray]]) -> dict[str, np.ndarray]:
    """Rows as the loader makes them, each text prepared."""
    names = ("tokens", "segment_ids", "positions", "first_inputs")
    packed = {name: np.zeros((len(rows), LENGTH), np.int32) for name in names}
    for row, texts in enumerate(rows):
        start = 0
        for segment, text in enumerate(texts, 1):
            tokens = objective.prepare({"tokens": text}, host_rng(0, "prepare"))["tokens"]
            assert len(tokens) == objective.prepared_length(np.array([len(text)]))[0]
            of = slice(start, start + len(tokens))
            packed["tokens"][row, of], packed["segment_ids"][row, of] = tokens, segment
            packed["positions"][row, of], packed["first_inputs"][row, start] = np.arange(len(tokens)), 3
            start += len(tokens)
    return packed


def parse(tokens: list[int]) -> tuple[str, list[int]]:
    """The order of a piece, and the text it was made of (without its end token)."""
    if tokens[0] != PRE:
        return "plain", tokens
    assert tokens[-1] == EOS and sum(token >= VOCAB for token in tokens) == 3
    suffix_at, middle_at, body = tokens.index(SUF), tokens.index(MID), tokens[:-1]
    if suffix_at == 1:
        suffix, rest = body[2:middle_at], body[middle_at + 1 :]
        return "SPM", rest + suffix
    return "PSM", body[1:suffix_at] + body[middle_at + 1 :] + body[suffix_at + 1 : middle_at]


SIZES = st.lists(st.lists(st.integers(1, 12), max_size=4), min_size=1, max_size=4)


@settings(max_examples=100, deadline=None)
@given(
    SIZES, st.lists(st.booleans(), max_size=16), st.sampled_from([0.0, 0.5, 1.0]), st.sampled_from([None, 1, 5]),
    st.integers(0, 99),
)  # fmt: skip
def test_every_text_is_there(sizes, ends, rate, longest, seed):
    objective = FillInTheMiddle(rate=rate, longest_middle=longest).bind(VOCABULARY)
    rows = documents(sizes, ends)
    batch = objective.finish(packed_texts(objective, rows), np.random.default_rng(seed))
    pieces = take_apart(batch["targets"], batch["segment_ids"])
    texts = [text.tolist() for row in rows for text in row]
    found = np.split(pieces.tokens_T, np.cumsum(pieces.lengths_P)[:-1]) if texts else []
    assert len(found) == len(texts)
    for tokens, text in zip(found, texts, strict=True):
        order, parsed = parse(tokens.tolist())
        assert parsed == (text if order == "plain" or text[-1] != EOS else text[:-1])
        assert rate == 0.5 or (order == "plain") == (rate == 0)
    marks = np.isin(batch["targets"], (PRE, SUF, MID))
    np.testing.assert_array_equal(batch["loss_weights"], (batch["segment_ids"] > 0) & ~marks)


def test_inputs_are_targets_shifted_by_one():
    objective = FillInTheMiddle(rate=1.0).bind(VOCABULARY)
    batch = objective.finish(packed_texts(objective, documents([[9, 20], [30]], [])), np.random.default_rng(0))
    pieces = take_apart(batch["tokens"], batch["segment_ids"])
    targets = take_apart(batch["targets"], batch["segment_ids"])
    assert pieces.lengths_P.tolist() == [9 + ROOM - 1, 20 + ROOM - 1, 30 + ROOM - 1]  # these have an end token
    for end, size in zip(np.cumsum(pieces.lengths_P), pieces.lengths_P, strict=True):
        assert pieces.tokens_T[end - size] == 3
        np.testing.assert_array_equal(pieces.tokens_T[end - size + 1 : end], targets.tokens_T[end - size : end - 1])
    assert batch["positions"].max() == 30 + ROOM - 2


def test_a_text_that_goes_on_starts_from_the_token_before_it():
    objective = FillInTheMiddle(rate=0.5).bind(VOCABULARY)
    packed = packed_texts(objective, documents([[9, 20], [30]], []))
    packed["first_inputs"][packed["first_inputs"] > 0] = 7, 8, 9
    batch = objective.finish(packed, np.random.default_rng(0))
    starts = (batch["positions"] == 0) & (batch["segment_ids"] > 0)
    assert batch["tokens"][starts].tolist() == [7, 8, 9]


def test_rates_and_cuts():
    """Half of the texts are cut, half of these in the order SPM; each part is a third of a text on average."""
    objective = FillInTheMiddle().bind(VOCABULARY)
    rows = documents([[40]] * 3000, [])
    batch = objective.finish(packed_texts(objective, rows), np.random.default_rng(0))
    orders, parts = collections.Counter(), []
    for row in range(3000):
        tokens = batch["targets"][row][batch["segment_ids"][row] > 0].tolist()
        order, _ = parse(tokens)
        orders[order] += 1
        if order == "PSM":
            parts.append(
                (tokens.index(SUF) - 1, tokens.index(MID) - tokens.index(SUF) - 1, len(tokens) - tokens.index(MID) - 2)
            )
    assert abs(orders["plain"] - 1500) < 100 and abs(orders["PSM"] - 750) < 80 and abs(orders["SPM"] - 750) < 80
    np.testing.assert_allclose(np.mean(parts, axis=0), [13, 13, 13], atol=1.5)


def test_middles_may_be_short():
    """Of 1 to 5 tokens, all as often, anywhere: what is before them has half of the rest on average."""
    objective = FillInTheMiddle(rate=1.0, longest_middle=5, spm_rate=0.0).bind(VOCABULARY)
    batch = objective.finish(packed_texts(objective, documents([[40]] * 3000, [])), np.random.default_rng(0))
    before = (batch["targets"] == SUF).argmax(1) - 1
    sizes = 39 + ROOM - (batch["targets"] == MID).argmax(1) - 2
    counts = np.bincount(sizes)
    assert counts[0] == 0 and len(counts) == 6 and (abs(counts[1:] - 600) < 100).all()
    np.testing.assert_allclose(before.mean(), (39 - sizes.mean()) / 2, atol=0.8)


@pytest.mark.parametrize("spm_rate", [0.0, 1.0])
def test_middles_and_their_ends_may_weigh_more(spm_rate):
    """In rows of two texts, of one and of none."""
    objective = FillInTheMiddle(rate=1.0, spm_rate=spm_rate, longest_middle=3, middle_weight=8.0).bind(VOCABULARY)
    packed = packed_texts(objective, documents([[9, 20], [30], []], []))
    batch = objective.finish(packed, np.random.default_rng(0))
    plain = FillInTheMiddle(rate=1.0, spm_rate=spm_rate, longest_middle=3).bind(VOCABULARY)
    once = plain.finish(packed, np.random.default_rng(0))["loss_weights"]
    for row, segment in ((0, 1), (0, 2), (1, 1)):
        here = batch["segment_ids"][row] == segment
        weights, tokens = batch["loss_weights"][row][here], batch["targets"][row][here]
        heavy = int((weights == 8).sum())
        assert 2 <= heavy <= 4 and (weights[-heavy:] == 8).all() and tokens[-1] == EOS
        np.testing.assert_array_equal(weights[:-heavy], once[row][here][:-heavy])
    assert not batch["loss_weights"][2].any()
    causal = FillInTheMiddle(rate=0.0, middle_weight=8.0).bind(VOCABULARY).finish(packed, np.random.default_rng(0))
    assert set(np.unique(causal["loss_weights"])) == {0.0, 1.0}


def test_without_a_rate_it_is_a_causal_model():
    objective = FillInTheMiddle(rate=0.0).bind(VOCABULARY)
    rows = documents([[9, 20], [30]], [])
    packed = packed_texts(objective, rows)
    batch = objective.finish(packed, np.random.default_rng(0))
    plain = Causal().finish(
        {name: array * (packed["tokens"] != VOCABULARY.pad_id) for name, array in packed.items()},
        np.random.default_rng(0),
    )
    real = np.flatnonzero(plain["segment_ids"][1])
    for name in ("tokens", "targets", "loss_weights"):
        np.testing.assert_array_equal(batch[name][1][real], plain[name][1][real])
        assert batch[name].sum() == plain[name].sum()


def test_sources_keep_their_weights():
    objective = FillInTheMiddle(rate=1.0, source_weights={"code": 2.0}).bind(VOCABULARY)
    packed = packed_texts(objective, documents([[9], [20]], []))
    packed["source_weights"] = np.repeat(np.array([[2.0], [1.0]], np.float32), LENGTH, 1)
    batch = objective.finish(packed, np.random.default_rng(0))
    assert batch["loss_weights"].sum(1).tolist() == [18, 20]


@pytest.mark.parametrize("field", ["rate", "spm_rate"])
def test_rates_are_shares(field):
    with pytest.raises(UserError, match=f"FillInTheMiddle.{field}"):
        FillInTheMiddle(**{field: 1.5})


def test_a_middle_has_a_token():
    with pytest.raises(UserError, match="longest_middle must be None or >= 1, got 0"):
        FillInTheMiddle(longest_middle=0)
