"""A vocabulary of words: which, in what order, with what counts, and back from a folder."""

import numpy as np
import pytest

from pretrain.core.errors import UserError
from pretrain.data import tokenizers
from pretrain.data.tokenizer_training import TokenizerConfig, train_or_load
from pretrain.data.word_tokenizer import Words, count_words

TEXTS = ["The cat, the dog; THE end.", "a cat and a dog", "Öl and øl"]


def test_words_are_ordered_by_count_then_alphabet():
    words = Words(count_words(TEXTS, min_count=2))
    assert words.words[4:] == ["the", "a", "and", "cat", "dog"]
    assert words.counts.tolist() == [0, 0, 0, 0, 3, 2, 2, 2, 2]
    assert Words(count_words(TEXTS, min_count=1, most=2)).words[4:] == ["the", "a"]
    assert Words(count_words(TEXTS, min_count=1, lowercase=False)).counts.sum() == 14


def test_encoding_leaves_out_what_is_no_word():
    words = Words(count_words(TEXTS, min_count=2), extra_ids=2)
    ids = words.encode(["The zebra -- and the CAT", ""])
    assert [each.dtype for each in ids] == [np.int32, np.int32]
    assert words.decode(ids[0]) == "the and the cat" and ids[1].size == 0
    assert words.vocab_size == 11 and words.counts.shape == words.starts_word.shape == (11,)
    assert words.id_of("Cat") == words.encode(["cat"])[0][0]
    with pytest.raises(UserError, match="zebra"):
        words.id_of("zebra")


def test_comes_back_from_its_folder(tmp_path):
    made = train_or_load(TokenizerConfig(kind="words", min_count=1, extra_ids=1), TEXTS, tmp_path)
    back = tokenizers.load(tmp_path)
    assert (back.kind, back.fingerprint, back.words) == ("words", made.fingerprint, made.words)
    np.testing.assert_array_equal(back.counts, made.counts)


def test_word_pattern_and_its_faults():
    assert Words(count_words(["it's x-ray"], min_count=1, pattern=r"\S+")).words[4:] == ["it's", "x-ray"]
    for pattern in ("(", "(a)"):
        with pytest.raises(UserError, match="word_pattern"):
            count_words(TEXTS, pattern=pattern)
    with pytest.raises(UserError, match="min_count"):
        count_words(TEXTS, min_count=100)
    with pytest.raises(UserError, match="vocabulary of words"):
        Words(b"{}")
