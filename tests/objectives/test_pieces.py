"""Rows to pieces and back."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from tiny import packed_rows

from pretrain.objectives.pieces import Pieces, before_in_group, join, put_together, take_apart, within


@given(st.lists(st.lists(st.integers(1, 5), max_size=4), min_size=1, max_size=5))
def test_rows_come_back(lengths):
    rows = packed_rows(lengths, 20)
    pieces = take_apart(rows["tokens"], rows["segment_ids"])
    assert pieces.lengths_P.tolist() == [size for row in lengths for size in row]
    assert pieces.rows_P.tolist() == [number for number, row in enumerate(lengths) for _ in row]
    again = put_together(pieces, rows["tokens"].shape)
    for name, array in again.items():
        np.testing.assert_array_equal(array, rows[name])
        assert array.dtype == np.int32


@given(st.lists(st.lists(st.integers(1, 5), max_size=4), min_size=1, max_size=5), st.data())
def test_pieces_that_are_kept_stay_themselves(lengths, data):
    rows = packed_rows(lengths, 20)
    pieces = take_apart(rows["tokens"], rows["segment_ids"])
    kept = np.array([data.draw(st.booleans()) for _ in pieces.lengths_P], bool)
    fewer = put_together(pieces.keep(kept), rows["tokens"].shape, "inputs_")
    assert list(fewer) == ["inputs", "inputs_segment_ids", "inputs_positions"]
    found = take_apart(fewer["inputs"], fewer["inputs_segment_ids"])
    for mine, theirs in zip(found[1:], pieces[1:], strict=True):
        np.testing.assert_array_equal(mine, theirs[kept])
    np.testing.assert_array_equal(found.tokens_T, pieces.tokens_T[np.repeat(kept, pieces.lengths_P)])


def test_join_puts_each_piece_behind_its_partner():
    def pieces(texts):
        lengths, tokens = np.array([len(text) for text in texts]), [token for text in texts for token in text]
        return Pieces(np.array(tokens, np.int32), lengths, np.array([0, 0, 2]), np.array([1, 3, 1]))

    both = join(pieces([[1, 2], [], [3]]), pieces([[7], [8, 9], []]))
    assert both.tokens_T.tolist() == [1, 2, 7, 8, 9, 3] and both.lengths_P.tolist() == [3, 2, 1]
    assert both.segments_P.tolist() == [1, 3, 1] and both.starts_P.tolist() == [0, 3, 5]


def test_places_and_sums_in_groups():
    assert within(np.array([3, 0, 2])).tolist() == [0, 1, 2, 0, 1]
    assert before_in_group(np.array([5, 1, 4, 2]), np.array([0, 0, 3, 3])).tolist() == [0, 5, 0, 4]
    assert before_in_group(np.array([], int), np.array([], int)).tolist() == []
