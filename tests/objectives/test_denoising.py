"""Denoising: T5's arithmetic and spans, UL2's mixture, BART's infilling; nothing of a text is lost or made up."""

import collections
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import packed_rows

from pretrain.core.errors import UserError
from pretrain.core.objective import Vocabulary
from pretrain.core.rng import host_rng
from pretrain.objectives.denoising import MixtureOfDenoisers, SpanCorruption, TextInfilling
from pretrain.objectives.pieces import take_apart
from pretrain.objectives.spans import chosen, infilling_of, spans_of

VOCABULARY = Vocabulary(1000, num_sentinels=400)  # sentinel 0 is 999
TEXT = 600
EOS = VOCABULARY.eos_id


def t5_lengths(inputs_length: int, density: float, mean_span: float) -> tuple[int, int]:
    """The published arithmetic: the longest text whose corrupted form has `inputs_length` tokens, and its targets."""

    def lengths(tokens):
        noise = round(tokens * density)
        spans = round(noise / mean_span)
        return tokens - noise + spans + 1, noise + spans + 1

    tokens = inputs_length
    while lengths(tokens + 1)[0] <= inputs_length:
        tokens += 1
    targets = lengths(tokens)[1]
    if density == 0.5 and targets > lengths(tokens)[0]:
        tokens, targets = tokens - 1, targets - 1
    return tokens, targets


def pieces_of(batch: dict, side: str) -> list[list[int]]:
    """The token lists of the pieces of one side of a batch."""
    pieces = take_apart(batch[side], batch[f"{side}_segment_ids"])
    ends = np.cumsum(pieces.lengths_P)
    return [pieces.tokens_T[end - size : end].tolist() for end, size in zip(ends, pieces.lengths_P, strict=True)]


def restored(inputs: list[int], targets: list[int]) -> list[int]:
    """The text: each sentinel of the inputs replaced by what follows it in the targets."""
    assert inputs[-1] == targets[-1] == EOS
    spans, current = {}, None
    for token in targets[:-1]:
        if token >= TEXT:
            current = spans.setdefault(token, [])
        else:
            current.append(token)
    order = [token for token in inputs if token >= TEXT]
    assert order == list(spans) == [999 - number for number in range(len(order))]
    assert all(spans.values())
    return [each for token in inputs[:-1] for each in (spans[token] if token >= TEXT else [token])]


def test_the_published_example():
    """Raffel et al. 2020, section 3.1.4: 512 inputs come from 568 tokens and have 114 targets."""
    objective = SpanCorruption().bind(VOCABULARY)
    assert objective.packed_length(512) == 568
    spec = objective.batch_spec(2, 512)
    assert spec["inputs"].shape == (2, 512) and spec["targets"].shape == (2, 114)
    batch = objective.finish(packed_rows([[568], [568]], 568, vocab=TEXT), host_rng(0, "finish", 0))
    assert (batch["inputs_segment_ids"] == 1).all() and (batch["targets_segment_ids"] == 1).all()


@pytest.mark.parametrize("density", [0.1, 0.15, 0.2, 0.25, 0.3, 0.5])
@pytest.mark.parametrize("mean_span", [2.0, 3.0, 3.5, 5.0, 10.0])
def test_lengths_are_those_of_t5(density, mean_span):
    objective = SpanCorruption(density=density, mean_span=mean_span, sentinels=400)
    compared = 0
    for length in [*range(16, 130), 256, 384, 509, 510, 511, 512, 513, 1024]:
        tokens, targets = t5_lengths(length, density, mean_span)
        if round(round(tokens * density) / mean_span) < 1:
            continue  # T5's arithmetic has no span here, and its mask has one
        assert objective.packed_length(length) == tokens, length
        spec = objective.batch_spec(1, length)
        found = spec["inputs"].shape[1], spec["targets"].shape[1]
        # Where T5 takes a token off at half noise, a span may go with it, and T5 pads both sides by one.
        padded = density == 0.5 and found == (length - 1, targets - 1)
        assert padded or found == (length, targets), length
        compared += 1
    assert compared > 50


def some_rows(data, columns: int) -> list[list[int]]:
    """Rows of documents of any lengths that fit."""
    rows = []
    for _ in range(data.draw(st.integers(1, 4))):
        left, row = columns, []
        while left and data.draw(st.integers(0, 5)):
            row.append(data.draw(st.sampled_from([left, *range(1, min(left, 60) + 1)])))
            left -= row[-1]
        rows.append(row)
    return rows


@settings(max_examples=150, deadline=None)
@given(
    st.data(), st.integers(8, 160), st.sampled_from([0.1, 0.15, 0.3, 0.5, 0.7]), st.sampled_from([1.0, 2.0, 3.0, 8.0])
)
def test_inputs_and_targets_give_the_text_back(data, length, density, mean_span):
    objective = SpanCorruption(density=density, mean_span=mean_span, sentinels=400).bind(VOCABULARY)
    packed = packed_rows(some_rows(data, columns := objective.packed_length(length)), columns, vocab=TEXT)
    batch = objective.finish(packed, np.random.default_rng(data.draw(st.integers(0, 99))))
    for name, spec in objective.batch_spec(len(packed["tokens"]), length).items():
        assert (batch[name].shape, batch[name].dtype) == (spec.shape, np.dtype(spec.dtype)), name
    rows = packed["tokens"], packed["segment_ids"]
    texts = {(r, s): rows[0][r][rows[1][r] == s].tolist() for r in range(len(rows[0])) for s in set(rows[1][r]) - {0}}
    inputs, targets = pieces_of(batch, "inputs"), pieces_of(batch, "targets")
    assert len(inputs) == len(targets) <= len(texts)
    where = take_apart(batch["inputs"], batch["inputs_segment_ids"])
    keys = list(zip(where.rows_P.tolist(), where.segments_P.tolist(), strict=True))
    for key, one, other in zip(keys, inputs, targets, strict=True):
        assert restored(one, other) == texts[key]
    for row in range(len(rows[0])):  # what is left out is what is short
        kept = [len(texts[key]) for key in keys if key[0] == row]
        left_out = [len(text) for key, text in texts.items() if key[0] == row and key not in keys]
        assert not kept or max(left_out, default=0) <= max(kept)


@settings(max_examples=60, deadline=None)
@given(st.integers(16, 400), st.sampled_from([0.1, 0.15, 0.3, 0.5]), st.sampled_from([2.0, 3.0, 8.0]))
def test_one_document_fills_its_row(length, density, mean_span):
    objective = SpanCorruption(density=density, mean_span=mean_span, sentinels=400).bind(VOCABULARY)
    columns = objective.packed_length(length)
    batch = objective.finish(packed_rows([[columns]], columns, vocab=TEXT), np.random.default_rng(length))
    assert batch["inputs_segment_ids"].all() and batch["targets_segment_ids"].all()


def test_several_documents_in_a_row_hide_as_much():
    objective = SpanCorruption().bind(VOCABULARY)
    batch = objective.finish(packed_rows([[300, 268], [142] * 4, [568]], 568, vocab=TEXT), np.random.default_rng(0))
    noise = [(row < TEXT).sum() - (row == EOS).sum() - (row == 0).sum() for row in batch["targets"]]
    assert noise == [85, 85, 85]
    assert (batch["targets_segment_ids"] > 0).all()
    assert [row.max() for row in batch["inputs_segment_ids"]] == [2, 4, 1]


def test_the_decoder_reads_targets_shifted_by_one():
    objective = SpanCorruption().bind(VOCABULARY)
    batch = objective.finish(packed_rows([[60, 40]], 120, vocab=TEXT), np.random.default_rng(0))
    for segment in (1, 2):
        of = batch["targets_segment_ids"][0] == segment
        np.testing.assert_array_equal(
            batch["decoder_inputs"][0][of], [VOCABULARY.pad_id, *batch["targets"][0][of][:-1]]
        )
    np.testing.assert_array_equal(batch["loss_weights"], batch["targets_segment_ids"] > 0)


def test_spans_are_random_and_of_the_mean_length():
    """Over many draws every token but the first is noise as often, and the lengths of spans are geometric-like."""
    lengths, noise, spans = np.full(4000, 40), np.full(4000, 12), np.full(4000, 4)
    is_noise, span = spans_of(lengths, noise, spans, np.random.default_rng(0))
    is_noise = is_noise.reshape(4000, 40)
    assert (is_noise.sum(1) == 12).all() and not is_noise[:, 0].any() and is_noise[:, -1].all()
    starts = (np.diff(is_noise.astype(int), axis=1) == 1).sum(1)
    assert (starts == 4).all() and (span.reshape(4000, 40).max(1) == 3).all()
    share = is_noise[:, 8:32].mean(0)
    assert share.min() > 0.2 and share.max() < 0.4
    sizes = collections.Counter(np.bincount(np.repeat(np.arange(4000), 40) * 4 + span, is_noise.reshape(-1)).tolist())
    assert set(sizes) == set(range(1, 10)) and sizes[1] > sizes[3] > sizes[6]


def test_every_choice_of_places_is_as_likely():
    rng = np.random.default_rng(0)
    drawn = chosen(np.full(6000, 4), np.full(6000, 2), rng).reshape(-1, 4)
    counts = collections.Counter(map(tuple, drawn.tolist()))
    assert len(counts) == 6 and min(counts.values()) > 880 and max(counts.values()) < 1120


# --- decoder layout


@pytest.mark.parametrize("kind", [SpanCorruption, MixtureOfDenoisers, TextInfilling])
def test_a_decoder_reads_inputs_as_a_prefix_and_predicts_the_targets(kind):
    both = kind(layout="decoder", sentinels=200).bind(VOCABULARY)
    apart = kind(sentinels=200).bind(VOCABULARY)
    packed = packed_rows([[20, 13], [40]], both.packed_length(96), vocab=TEXT)
    one = both.finish(packed, np.random.default_rng(3))
    two = apart.finish(packed, np.random.default_rng(3))
    pieces = list(zip(pieces_of(two, "inputs"), pieces_of(two, "targets"), strict=True))
    found = take_apart(one["tokens"], one["segment_ids"])
    assert len(found.lengths_P) == len(pieces)
    for (inputs, targets), row, segment in zip(pieces, found.rows_P, found.segments_P, strict=True):
        of = one["segment_ids"][row] == segment
        np.testing.assert_array_equal(one["tokens"][row][of], [*inputs, *targets][:-1])
        np.testing.assert_array_equal(one["targets"][row][of], [*inputs, *targets][1:])
        assert one["prefix_mask"][row][of].tolist() == [True] * len(inputs) + [False] * (len(targets) - 1)
        predicted = one["targets"][row][of][one["loss_weights"][row][of] > 0]
        np.testing.assert_array_equal(predicted, targets)


@pytest.mark.parametrize("length", [64, 128, 132, 256, 512])
def test_a_decoders_row_is_full(length):
    objective = SpanCorruption(layout="decoder").bind(VOCABULARY)
    columns = objective.packed_length(length)
    batch = objective.finish(packed_rows([[columns]], columns, vocab=TEXT), np.random.default_rng(0))
    assert batch["tokens"].shape == (1, length) and (batch["segment_ids"] == 0).sum() <= 2
    assert objective.batch_spec(1, length)["tokens"].shape == (1, length)
    with pytest.raises(UserError, match="multiple of 4"):
        objective.packed_length(length + 1)


# --- UL2


def test_ul2_has_a_mode_and_a_kind_of_noise_in_every_row():
    objective = MixtureOfDenoisers(sentinels=200).bind(VOCABULARY)
    columns, rows = objective.packed_length(256), 700
    batch = objective.finish(packed_rows([[columns]] * rows, columns, vocab=TEXT), np.random.default_rng(0))
    modes = {999 - 197: "R", 999 - 198: "S", 999 - 199: "X"}  # the last of the sentinels
    found = collections.Counter(modes[token] for token in batch["inputs"][:, 0].tolist())
    assert found.keys() == {"R", "S", "X"}
    assert abs(found["R"] - 200) < 40 and abs(found["S"] - 100) < 30 and abs(found["X"] - 400) < 40
    for row in range(40):
        inputs, targets = (
            batch[side][row][batch[f"{side}_segment_ids"][row] > 0].tolist() for side in ("inputs", "targets")
        )
        assert (
            restored(inputs[1:], targets)
            == packed_rows([[columns]] * rows, columns, vocab=TEXT)["tokens"][row].tolist()
        )
        noise = sum(token < TEXT for token in targets) - 1
        if modes[inputs[0]] == "S":  # one span, at the end
            assert inputs[-2] == 999 and noise == round(columns / 4)
        else:
            assert noise in (round(0.15 * columns), round(0.5 * columns))


def test_ul2_rates_and_a_kind_without_a_mean_span():
    denoisers = (("R", 0.15, 3.0), ("S", 0.25, None))
    objective = MixtureOfDenoisers(denoisers=denoisers, rates=(0.0, 1.0)).bind(VOCABULARY)
    assert objective.kinds(50, np.random.default_rng(0)).tolist() == [1] * 50
    assert objective.noise[1].mean_span == math.inf
    assert len({noise.mode for noise in objective.noise}) == 2


# --- BART


@settings(max_examples=80, deadline=None)
@given(st.data(), st.integers(8, 120), st.sampled_from([0.15, 0.3, 0.6]))
def test_infilling_asks_for_the_whole_text(data, length, density):
    objective = TextInfilling(density=density).bind(VOCABULARY)
    columns = objective.packed_length(length)
    assert columns == length
    packed = packed_rows(some_rows(data, columns), columns, vocab=TEXT)
    batch = objective.finish(packed, np.random.default_rng(data.draw(st.integers(0, 99))))
    inputs, targets = pieces_of(batch, "inputs"), pieces_of(batch, "targets")
    texts = pieces_of({**packed, "tokens_segment_ids": packed["segment_ids"]}, "tokens")
    assert all(target in texts for target in targets) and (len(targets) == len(texts) or len(texts) > 1)
    for one, other in zip(inputs, targets, strict=True):
        rest = iter(other)  # what is left of the text is in the inputs, in order
        assert all(token in rest for token in one if token < TEXT)
        assert all(token == 999 for token in one if token >= TEXT)
        assert (len(one) - one.count(999) < len(other)) == (999 in one)


def test_infilling_lengths_are_poisson_with_empty_spans():
    """Lewis et al. 2020: spans of Poisson(3) tokens, 30 % in all; empty ones insert a mask."""
    count, length, noise, spans = 3000, 100, 30, 10
    lengths = np.full(count, length)
    is_mask, token = infilling_of(lengths, np.full(count, noise), np.full(count, spans), np.random.default_rng(0))
    is_mask, token = is_mask.reshape(count, -1), token.reshape(count, -1)
    assert is_mask.shape == (count, length - noise + spans) and (is_mask.sum(1) == spans).all()
    after = np.append(token[:, 1:], (1 + np.arange(count))[:, None] * length, axis=1)
    sizes = (after - token)[is_mask]
    assert (after - token)[~is_mask].min() == (after - token)[~is_mask].max() == 1
    assert sizes.mean() == 3 and abs(sizes.var() - 2.7) < 0.1  # multinomial: 3 * (1 - 1/10)
    assert abs((sizes == 0).mean() - 0.9**30) < 0.01


def test_infilling_fills_its_row():
    objective = TextInfilling().bind(VOCABULARY)
    batch = objective.finish(packed_rows([[256], [200, 56]], 256, vocab=TEXT), np.random.default_rng(0))
    assert batch["inputs"].shape == (2, 256 - 77 + 26) and batch["inputs_segment_ids"].all()
    assert batch["targets_segment_ids"].all()


# --- mistakes


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SpanCorruption(density=0.0), "density"),
        (lambda: SpanCorruption(mean_span=0.5), "mean span"),
        (lambda: SpanCorruption(label_smoothing=1.0), "label_smoothing"),
        (lambda: TextInfilling(density=1.0), "density"),
        (lambda: SpanCorruption().packed_length(2048), "SpanCorruption.sentinels and TokenizerConfig.extra_ids to 114"),
        (lambda: SpanCorruption().packed_length(1), "too short"),
        (lambda: MixtureOfDenoisers(denoisers=()), "empty"),
        (lambda: MixtureOfDenoisers(denoisers=((0.15, 3.0, "R"),)), "mode, density, mean span"),
        (lambda: MixtureOfDenoisers(rates=(1.0,)), "rates must be 7 numbers"),
        (lambda: SpanCorruption().bind(Vocabulary(300, num_sentinels=3)), "extra_ids = 100"),
    ],
)
def test_mistakes_are_one_line(make, message):
    with pytest.raises(UserError, match=message):
        make()
