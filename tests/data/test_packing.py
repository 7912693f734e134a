"""Packing: no row overflows, nothing is lost, and little is wasted."""

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings
from toy_data import log_normal

from pretrain.data.packing import count_rows, pack

CAPACITIES = st.lists(st.integers(1, 60), min_size=1, max_size=3)


@st.composite
def items(draw) -> tuple[np.ndarray, list[int]]:
    capacity = draw(CAPACITIES)
    least = 1 if len(capacity) == 1 else 0
    sizes = st.tuples(*(st.integers(least, limit) for limit in capacity)).filter(any)
    rows = draw(st.lists(sizes, min_size=1, max_size=120))
    return np.array(rows, np.int64), capacity


@settings(max_examples=150, deadline=None)
@given(items(), st.integers(0, 5))
def test_rows_hold_what_they_are_given(drawn, seed):
    lengths, capacity = drawn
    row = pack(lengths, capacity, np.random.default_rng(seed))
    assert row.shape == (len(lengths),)
    rows = count_rows(lengths, capacity)
    np.testing.assert_array_equal(np.unique(row), np.arange(rows))
    for column, limit in zip(lengths.T, capacity, strict=True):
        assert np.bincount(row, column).max() <= limit


@settings(max_examples=100, deadline=None)
@given(items())
def test_the_number_of_rows_depends_on_the_lengths_alone(drawn):
    lengths, capacity = drawn
    shuffled = np.random.default_rng(0).permutation(lengths)
    assert count_rows(shuffled, capacity) == count_rows(lengths, capacity)
    counts = {len(np.unique(pack(lengths, capacity, np.random.default_rng(seed)))) for seed in range(3)}
    assert counts == {count_rows(lengths, capacity)}


def best_fit_decreasing(lengths: list[int], capacity: int) -> list[int]:
    """The textbook algorithm, one item at a time; returns the loads of its rows."""
    room: list[int] = []
    for length in sorted(lengths, reverse=True):
        fitting = [row for row in range(len(room)) if room[row] >= length]
        if fitting:
            room[min(fitting, key=lambda row: room[row])] -= length
        else:
            room.append(capacity - length)
    return sorted(capacity - left for left in room)


@settings(max_examples=100, deadline=None)
@given(
    st.integers(2, 50).flatmap(lambda c: st.tuples(st.just(c), st.lists(st.integers(1, c), min_size=1, max_size=80)))
)
def test_one_feature_is_packed_as_the_textbook_packs_it(drawn):
    capacity, lengths = drawn
    row = pack(np.array(lengths)[:, None], [capacity], np.random.default_rng(0))
    assert sorted(np.bincount(row, lengths).astype(int)) == best_fit_decreasing(lengths, capacity)


@pytest.mark.parametrize("capacity", [256, 512, 2048])
def test_natural_lengths_fill_rows(capacity):
    lengths = np.minimum(log_normal(3000, 600), capacity)[:, None]
    assert lengths.sum() / (count_rows(lengths, [capacity]) * capacity) >= 0.98


def test_two_features_that_follow_one_length_fill_rows():
    inputs = np.minimum(log_normal(3000, 200), 512)
    lengths = np.stack([inputs, inputs // 4 + 1], axis=1)
    assert inputs.sum() / (count_rows(lengths, [512, 140]) * 512) >= 0.98


def pairs(count: int, mean: float, correlation: float, seed: int = 0) -> np.ndarray:
    """Lengths of sentences and of their translations: log-normal, alike to a degree."""
    rng = np.random.default_rng(seed)
    first, other = rng.normal(size=(2, count))
    second = correlation * first + np.sqrt(1 - correlation**2) * other
    lengths = np.exp(np.stack([first, second], axis=1) * 0.8) * mean / np.exp(0.32)
    return np.maximum(lengths, 1).astype(np.int64)


@pytest.mark.parametrize("capacity", [512, 1024])
def test_translation_pairs_fill_rows(capacity):
    lengths = np.minimum(pairs(3000, 30, 0.9), capacity)
    assert lengths.sum() / (count_rows(lengths, [capacity, capacity]) * 2 * capacity) >= 0.98


def test_unlike_pairs_leave_little_of_the_scarcer_feature():
    lengths = np.minimum(pairs(3000, 60, 0.0), 512)
    needed = lengths.sum(axis=0).max() / 512
    assert needed / count_rows(lengths, [512, 512]) >= 0.96


def test_a_feature_that_is_all_empty_costs_nothing():
    lengths = np.array([[4, 0], [4, 0], [2, 0]])
    assert sorted(np.bincount(pack(lengths, [6, 3], np.random.default_rng(0)))) == [1, 2]


def test_the_order_is_random_and_fixed_by_the_generator():
    lengths = np.full((64, 1), 10)
    first, again, other = (pack(lengths, [20], np.random.default_rng(seed)) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()
