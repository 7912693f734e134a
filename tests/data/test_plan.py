"""The plan of a source: every record once per epoch, whatever the lengths."""

import pickle

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings
from toy_data import Halves, Noisy, Pair, Plain, log_normal

from pretrain.core.errors import UserError
from pretrain.data.lengths import Lengths
from pretrain.data.plan import SourcePlan, ragged_arange
from pretrain.data.recent import Recent


def all_rows(plan: SourcePlan, epoch: int):
    """Pieces and row of each, of all rows of an epoch, found row by row number."""
    rows = epoch * plan.rows + np.arange(plan.rows)
    for number, window, where, within in plan.locate(rows):
        assert number == epoch
        found = plan.window(number, window)
        for place, row in zip(where, within, strict=True):
            yield place, found.pieces.take(np.arange(found.starts[row], found.starts[row + 1]))


LENGTHS = st.lists(st.integers(0, 70), min_size=1, max_size=60).filter(any)


@settings(max_examples=100, deadline=None)
@given(LENGTHS, st.integers(1, 20), st.integers(1, 4), st.integers(0, 3), st.data())
def test_every_token_is_in_exactly_one_row_of_an_epoch(lengths, capacity, window_rows, seed, data):
    cuts = sorted(data.draw(st.lists(st.integers(0, len(lengths)), max_size=3)))
    starts = [0, *cuts, len(lengths)]
    records = np.array(lengths)[:, None]
    plan = SourcePlan("a", records, starts, Lengths(Plain(), capacity), seed, window_rows=window_rows)
    for epoch in range(2):
        seen = [np.zeros(length, int) for length in lengths]
        rows = []
        for row, pieces in all_rows(plan, epoch):
            rows.append(row)
            assert 0 < pieces.packed.sum() <= capacity
            for record, offset, length in zip(pieces.record, pieces.offset, pieces.length[:, 0], strict=True):
                seen[record][offset : offset + length] += 1
        assert sorted(rows) == list(range(plan.rows))
        assert all((counts == 1).all() for counts in seen)
    assert plan.cost == {"tokens": sum(lengths), "examples": sum(length > 0 for length in lengths)}
    assert (plan.empty, plan.split) == (lengths.count(0), sum(length > capacity for length in lengths))


def test_a_window_stays_within_its_shard():
    lengths = log_normal(400, 30)
    plan = SourcePlan("a", lengths[:, None], [0, 150, 400], Lengths(Plain(), 64), 0, window_rows=10)
    assert len(plan) > 10
    for window in range(len(plan)):
        records = plan.window(0, window).pieces.record
        assert records.max() < 150 or records.min() >= 150


def test_records_that_are_never_cut_are_shuffled_in_smaller_windows():
    """Their rows hold pictures: what is shuffled together is a thousand of them, however short."""

    class Whole(Plain):
        whole_records = True

    records = np.full((5000, 1), 32)
    cut, whole = (SourcePlan("a", records, [0, 5000], Lengths(of, 32), 0) for of in (Plain(), Whole()))
    assert len(cut) == 1 and len(whole) == 5


def test_epochs_differ_and_repeat():
    plan, again = (
        SourcePlan("a", log_normal(400, 30)[:, None], [0, 400], Lengths(Plain(), 64), 0, window_rows=10) for _ in "ab"
    )
    first, second = ([pieces.record.tolist() for _, pieces in all_rows(plan, epoch)] for epoch in (0, 1))
    assert first != second
    assert first == [pieces.record.tolist() for _, pieces in all_rows(again, 0)]
    assert plan.epoch(0).windows.tolist() != plan.epoch(1).windows.tolist()


def test_sources_and_seeds_draw_different_orders():
    lengths = log_normal(100, 30)[:, None]
    plans = [
        SourcePlan(name, lengths, [0, 100], Lengths(Plain(), 64), seed) for name, seed in (("a", 0), ("b", 0), ("a", 1))
    ]
    orders = [tuple(plan.window(0, 0).pieces.record.tolist()) for plan in plans]
    assert len(set(orders)) == 3


def test_kept_row_counts_give_the_same_plan():
    lengths = log_normal(500, 30)[:, None]
    plan = SourcePlan("a", lengths, [0, 500], Lengths(Plain(), 64), 0, window_rows=10)
    kept = SourcePlan("a", lengths, [0, 500], Lengths(Plain(), 64), 0, window_rows=10, counted=plan.window_rows)
    assert kept.rows == plan.rows
    np.testing.assert_array_equal(kept.epoch(3).rows, plan.epoch(3).rows)


def test_efficiency_on_natural_lengths():
    plan = SourcePlan("a", log_normal(20_000, 600)[:, None], [0, 20_000], Lengths(Plain(), 2048), 0)
    assert plan.cost["tokens"] / (plan.rows * 2048) >= 0.98


def test_pieces_leave_room_for_what_prepare_adds():
    lengths = Lengths(Noisy(), 16)
    assert lengths.longest == 15
    plan = SourcePlan("a", np.array([[40]]), [0, 1], lengths, 0)
    pieces = plan.window(0, 0).pieces
    assert sorted(pieces.length[:, 0]) == [10, 15, 15]
    np.testing.assert_array_equal(pieces.packed[:, 0], pieces.length[:, 0] + 1)


def test_one_feature_may_become_two():
    lengths = Lengths(Halves(), {"inputs": 20, "targets": 12})
    assert lengths.packed == ("inputs", "targets") and lengths.capacity == (20, 12)
    assert lengths.longest == 30  # two thirds of it are 20
    np.testing.assert_array_equal(lengths.prepared(np.array([[30], [1]])), [[20, 11], [1, 1]])


def test_windows_of_pairs_are_small_enough_to_pack_quickly(monkeypatch):
    monkeypatch.setattr("pretrain.data.plan.WINDOW_PAIRS", 50)
    records = np.stack([log_normal(400, 20, seed, 90) for seed in (0, 1)], axis=1)
    plan = SourcePlan("a", records, [0, 150, 400], Lengths(Pair(), 100), 0)
    assert len(plan) == 3 + 5
    seen = [record for _, pieces in all_rows(plan, 1) for record in pieces.record]
    assert sorted(seen) == list(range(400))


def test_pairs_are_never_cut():
    records = np.array([[5, 3], [0, 0], [9, 9]])
    plan = SourcePlan("a", records, [0, 3], Lengths(Pair(), 10), 0)
    assert sorted(plan.window(0, 0).pieces.record) == [0, 2]
    with pytest.raises(UserError, match=r"1 of 3 records are longer than a row .*\[9, 9\].*never cut"):
        SourcePlan("a", records, [0, 3], Lengths(Pair(), 8), 0)


class Falling(Plain):
    def prepared_length(self, lengths):
        return np.maximum(10 - lengths, 1)


class Large(Plain):
    def prepared_length(self, lengths):
        return lengths + 100


class WrongShape(Plain):
    def prepared_length(self, lengths):
        return lengths[:1] if len(lengths) > 1 else lengths


@pytest.mark.parametrize(
    ("objective", "message"),
    [
        (Falling(), "must not fall"),
        (Large(), "not even a record of length 1 fits"),
        (WrongShape(), "one length for each"),
    ],
)
def test_objectives_that_cannot_be_planned_are_refused(objective, message):
    with pytest.raises(UserError, match=message):
        Lengths(objective, 16).longest  # noqa: B018


def test_sequence_lengths_must_name_the_packed_features():
    with pytest.raises(UserError, match="must name inputs, targets"):
        Lengths(Halves(), {"inputs": 20})
    with pytest.raises(UserError, match="must be positive"):
        Lengths(Plain(), 0)


@given(st.lists(st.tuples(st.integers(0, 100), st.integers(0, 9)), max_size=20))
def test_ragged_arange(ranges):
    starts, lengths = (
        (np.array(column, np.int64) for column in zip(*ranges, strict=True)) if ranges else (np.zeros(0, int),) * 2
    )
    expected = [number for start, length in ranges for number in range(start, start + length)]
    assert ragged_arange(starts, lengths).tolist() == expected


def test_recent_forgets_what_was_used_longest_ago():
    recent, made = Recent(2), []

    def get(key):
        return recent.get(key, lambda: made.append(key) or key.upper())

    assert [get(key) for key in "abacab"] == list("ABACAB")
    assert made == ["a", "b", "c", "b"]


def test_recent_keeps_what_weighs_no_more_than_it_may():
    recent, made = Recent(10, len), []

    def get(text):
        return recent.get(text, lambda: made.append(text) or text)

    for text in ("aaaa", "bbbb", "aaaa", "cccc", "aaaa", "bbbb", "d" * 30, "d" * 30, "aaaa"):
        assert get(text) == text
    assert made == ["aaaa", "bbbb", "cccc", "bbbb", "d" * 30, "aaaa"]
    assert pickle.loads(pickle.dumps(recent)).get("x", lambda: "y") == "y"
