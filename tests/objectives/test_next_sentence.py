"""Next-sentence prediction: parts change places within like pieces, nothing but the text tells the answer."""

import dataclasses

import hypothesis.strategies as st
import jax
import numpy as np
import pytest
from hypothesis import given, settings
from tiny import CONFIG as DECODER
from tiny import VOCAB, model, packed_rows

from pretrain.core.errors import UserError
from pretrain.core.objective import Vocabulary
from pretrain.objectives.next_sentence import NextSentence, pair

VOCABULARY = Vocabulary(VOCAB, num_sentinels=1)
BOS, EOS = 1, 2
NEVER = {"rate": 0.01}  # of short rows: no token is hidden, so that the text can be read


def rows_of(lengths, length: int, *, ended: bool = True, seed: int = 0) -> dict[str, np.ndarray]:
    """Packed rows as `prepare` makes their pieces: BOS, text (with the EOS that ends a document), room for an EOS."""
    rows = packed_rows(lengths, length, vocab=VOCAB - 1, seed=seed)
    first = (rows["positions"] == 0) & (rows["segment_ids"] > 0)
    following = np.roll(rows["segment_ids"], -1, 1)
    following[:, -1] = 0
    last = (rows["segment_ids"] != following) & (rows["segment_ids"] > 0)
    before = np.roll(last, -1, 1) & ~last
    if ended:
        rows["tokens"][before] = EOS
    rows["tokens"][first], rows["tokens"][last] = BOS, EOS
    return rows


def finish(rows, seed: int = 0, **fields) -> dict[str, np.ndarray]:
    return NextSentence(**fields).bind(VOCABULARY).finish(rows, np.random.default_rng(seed))


def pieces(rows) -> list[tuple[int, slice]]:
    """Row and span of every piece."""
    found = []
    for row, segments in enumerate(rows["segment_ids"]):
        for segment in range(1, segments.max(initial=0) + 1):
            place = np.flatnonzero(segments == segment)
            found.append((row, slice(place[0], place[-1] + 1)))
    return found


def answers(batch) -> dict[tuple[int, int], int]:
    """Answer by row and place of a piece's first token."""
    row, slot = np.nonzero(batch["pair_weights"])
    places = batch["pair_positions"][row, slot]
    return dict(
        zip(zip(row.tolist(), places.tolist(), strict=True), batch["pair_targets"][row, slot].tolist(), strict=True)
    )


def test_a_piece_gets_bos_and_room_for_eos():
    objective = NextSentence().bind(VOCABULARY)
    made = objective.prepare({"tokens": np.array([7, 8, EOS], np.int32)}, np.random.default_rng(0))
    assert made["tokens"].tolist() == [BOS, 7, 8, EOS, EOS] and made["tokens"].dtype == np.int32
    assert objective.prepared_length(np.array([3])) == 5


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 1 << 20), st.lists(st.lists(st.integers(3, 12), max_size=5), min_size=1), st.booleans())
def test_second_parts_change_places_and_no_token_is_lost(seed, lengths, ended):
    rows = rows_of(lengths, 64, ended=ended, seed=seed)
    batch = finish(rows, seed, **NEVER)
    assert batch["loss_weights"].sum() == 0
    found, moved = answers(batch), []
    ours = {}
    for row, span in pieces(rows):
        text, shown = rows["tokens"][row, span], batch["tokens"][row, span]
        first, second = shown[batch["types"][row, span] == 0], shown[batch["types"][row, span] == 1]
        assert first[0] == BOS and first[-1] == EOS
        assert first[:-1].tolist() == text[: len(first) - 1].tolist()  # the first part stays
        own = text[len(text) - 1 - len(second) : len(text) - 1]
        answer = found.get((row, span.start), 0)
        if answer:
            moved.append((second.tolist(), own.tolist()))
        else:
            assert second.tolist() == own.tolist()
        ours[row, span.start] = len(text)
    assert sorted(shown for shown, _ in moved) == sorted(own for _, own in moved)
    assert not batch["types"][rows["segment_ids"] == 0].any() and not batch["tokens"][rows["segment_ids"] == 0].any()
    assert set(found) <= set(ours)
    large = sum(length >= 4 for length in ours.values())
    assert len(found) == large // 2 * 2 or not ended  # of one kind, at most one is left alone


def test_lengths_and_ends_do_not_tell_the_answer():
    lengths = np.random.default_rng(0).integers(4, 200, 4000)
    ended = np.random.default_rng(1).random(4000) < 0.5
    got = pair(lengths, ended, np.random.default_rng(2))
    changed, scored = got.donor_S != np.arange(4000), got.scored_S
    assert abs(changed[scored].mean() - 0.5) < 0.03
    assert scored.sum() >= 3998
    np.testing.assert_array_equal(got.second_S, got.second_S[got.donor_S])
    np.testing.assert_array_equal(ended, ended[got.donor_S])
    np.testing.assert_array_equal(got.donor_S[got.donor_S], np.arange(4000))  # an exchange: nothing twice
    assert (got.second_S >= 1).all() and (got.second_S <= lengths - 3).all()
    for values in (lengths, got.second_S, got.second_S / lengths):
        assert abs(np.corrcoef(values[scored], changed[scored])[0, 1]) < 0.05
    assert abs((got.second_S / (lengths - 2)).mean() - 0.5) < 0.03


def test_a_piece_alone_has_no_answer_but_is_masked():
    batch = finish(rows_of([[30]], 32), rate=0.3)
    assert batch["pair_weights"].sum() == 0 and batch["loss_weights"].sum() > 0
    assert batch["types"].sum() > 5
    special = np.isin(batch["targets"], [BOS, EOS]) & (batch["loss_weights"] > 0)
    assert not special.any()


def test_losses_are_two_terms_with_weights_of_their_own():
    objective = NextSentence(rate=0.5).bind(VOCABULARY)
    batch = objective.finish(rows_of([[12, 12], [12, 12], [9]], 32), np.random.default_rng(1))
    draw = np.random.default_rng(0)
    logits = {"masked": draw.normal(size=(3, 16, VOCAB)), "pair": draw.normal(size=(3, 8, 2))}
    terms, metrics = objective.loss(jax.tree.map(np.float32, logits), batch)
    log_z = np.log(np.exp(logits["pair"]).sum(-1))
    nats = log_z - np.take_along_axis(logits["pair"], batch["pair_targets"][..., None], -1)[..., 0]
    np.testing.assert_allclose(terms["next_sentence"].sum, (nats * batch["pair_weights"]).sum(), rtol=1e-5)
    assert terms["next_sentence"].weight == 4 and terms["masked"].weight == batch["loss_weights"].sum()
    right = (logits["pair"].argmax(-1) == batch["pair_targets"]) * batch["pair_weights"]
    assert metrics["next_sentence_accuracy"] == (right.sum(), 4)


def test_a_model_without_token_types_is_refused():
    config = dataclasses.replace(DECODER, architecture="encoder")
    objective = NextSentence().bind(VOCABULARY)
    batch = objective.finish(rows_of([[12, 12]], 32), np.random.default_rng(1))
    functional = model(config, objective.model_needs)
    with pytest.raises(UserError, match="token_types = 2"):
        jax.eval_shape(lambda params: objective.forward(functional.module(params), batch).hidden, functional.shapes)
