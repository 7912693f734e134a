"""Words, lines and n-grams of a batch: equal to plain Python on any text, and to spaCy on real phrases."""

import collections

import numpy as np
import pyarrow as pa
import pytest
import slow_words
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pretrain.curate import english, lines, marks, words
from pretrain.curate.ngrams import Texts
from pretrain.curate.words import blocks, offsets, split_words

# What the rules tell apart, letters of several kinds, and any other character.
TELLING = "aZzß漢é09.,:;-—~'\"()[]{}<>=/+*^#@_%$€²|•°§…\u2013\u2019\uff01\u3002\u0301&!?sS"
SPACES = " \n\t\r\x0b\x1c\x85\u00a0\u2003\u2028\u3000"
PHRASES = ("http://a.bc/d", "x@y.de", "10km", "b.C", "U.S.", "'''")
PIECES = st.sampled_from([*english.wholes()[:60], *list(english.contractions())[:60], *PHRASES])
ANY = st.characters(exclude_categories=["Cs", "Cn"], max_codepoint=0x2FFF)
TEXT = st.lists(PIECES | st.text(TELLING, max_size=4) | st.sampled_from(SPACES) | ANY, max_size=20).map("".join)
TEXTS = st.lists(TEXT, max_size=6)


def texts_array(texts: list[str]) -> pa.Array:
    return pa.array(texts, pa.large_string())


def as_lists(found: words.Words) -> list[list[str]]:
    """The words of each text."""
    all_words = found.vocabulary.take(pa.array(found.ids_W)).to_pylist()
    return [all_words[start:end] for start, end in zip(found.starts_D1, found.starts_D1[1:], strict=False)]


@settings(deadline=None, max_examples=120)
@given(TEXTS)
@example(["(don't.", "'''", "foo():", "[:]", "a..b...", "10km/h.", "it's 's", "e.g.,", "--a--b---c----d", "+1+a"])
@example(["", " \n ", "x" * 10_001, "$5$ 5$. US$5 °C. 8)8) <3<3<3", "a…b ….…", "Ab.Cd a.b@c.de/f=g"])
def test_words_equal_plain_python(texts):
    assert as_lists(split_words(texts_array(texts))) == [slow_words.words(text) for text in texts]


def test_white_space_of_several_bytes_at_the_end_is_no_word():
    """Whatever lay in memory before: without trimming, two batches in five had such a word here."""
    texts = ["a.m.a.m.0000 ", "a.m.a.m.a.m.a.m.a.m.a.m.a.m. \x80a.m.a.m.Jr.a.m.   \x85"]
    for number in range(300):
        split_words(texts_array([("a", "é", "\x85 b", "ffff \u3000")[number % 4] * (number % 19 + 1)]))
        assert as_lists(split_words(texts_array(texts))) == [slow_words.words(text) for text in texts]


# What spaCy 3.8.18's English tokenizer says.
SPACY = {
    "Hello, it's a don't \"test\"...": "Hello , it 's a do n't \" test \" ...",
    "e.g. (what) you-know, 10km for $5": "e.g. ( what ) you - know , 10 km for $ 5",
    "U.S. Inc. foo_bar x=1; 3,000 f(x)": "U.S. Inc. foo_bar x=1 ; 3,000 f(x )",
    "a/b <b>hi</b> :-) C++": "a / b < b > hi</b > :-) C++",
    "and/or if __init__(self): raise IS''": "and/or if _ _ init__(self ): raise IS ''",
    "http://www.apache.org/licenses/LICENSE-2.0": "http://www.apache.org/licenses/LICENSE-2.0",
    "<ruediger@c-plusplus.de>, data.shape[1:]`": "< ruediger@c-plusplus.de > , data.shape[1 :] `",
    "pytest.raises(TypeError): cannot id": "pytest.raises(TypeError ): can not i d",
    'overwrite_x=False): %s.",': 'overwrite_x = False ): % s. " ,',
    "don't you'll we're gonna I'd've": "do n't you 'll we 're gon na I 'd 've",
    "an id. thats. im, don't.": "an i d. that s. i m , do n't .",
    "[['d', symm_iterator(): 5'-6 1--2": "[ [ 'd ' , symm_iterator ( ): 5'-6 1 - -2",
}


@pytest.mark.parametrize("text", SPACY)
def test_words_equal_spacy(text):
    assert as_lists(split_words(texts_array([text]))) == [SPACY[text].split()]


@settings(deadline=None, max_examples=50)
@given(TEXTS, st.data())
def test_words_do_not_depend_on_the_batch(texts, data):
    whole = as_lists(split_words(texts_array(texts)))
    chosen = data.draw(st.lists(st.sampled_from(range(len(texts))), max_size=4)) if texts else []
    assert as_lists(split_words(texts_array([texts[row] for row in chosen]))) == [whole[row] for row in chosen]
    padded = texts_array(["before", *texts]).slice(1)
    assert as_lists(split_words(padded)) == whole


@pytest.mark.parametrize("block", [1, 3, 50])
def test_words_do_not_depend_on_blocks(block, monkeypatch):
    texts = ["one two, three. " * 5, "don't " + "x" * 60, "", "é漢"]
    expected = as_lists(words._split(texts_array(texts)))
    monkeypatch.setattr(words, "BLOCK", block)
    assert as_lists(words._split(texts_array(texts))) == expected


def test_blocks_hold_at_most_the_limit_or_one_thing():
    assert blocks(np.array([3, 3, 9, 1, 1, 1, 0]), 6) == [(0, 2), (2, 3), (3, 7)]
    assert blocks(np.array([], np.int64), 6) == []


@settings(deadline=None, max_examples=120)
@given(TEXTS)
@example(["a\r\nb\rc\x0bd\x1ce\x85f\u2028g", "\n", "\r\n", "", "a\n\nb\n"])
def test_lines_equal_plain_python(texts):
    table = texts_array(texts)
    for found, expected in (
        (lines.split(table), [text.split("\n") for text in texts]),
        (lines.split_lines(table), [text.replace("\r\n", " \n").splitlines() for text in texts]),
    ):
        assert found.strings.to_pylist() == [line for text in expected for line in text]
        np.testing.assert_array_equal(found.counts(), np.array([len(text) for text in expected], np.int64))
        earlier = [line in text[:place] for text in expected for place, line in enumerate(text)]
        np.testing.assert_array_equal(found.repeated(), np.array(earlier, bool))
        characters = np.array([sum(map(len, text)) for text in expected], np.int64)
        np.testing.assert_array_equal(found.total(found.characters()), characters)


REPETITIVE = st.lists(st.sampled_from(["a", "b", "c", "a b c", "b a", "longer"]), max_size=30).map(" ".join)


@settings(deadline=None, max_examples=120)
@given(st.lists(REPETITIVE, max_size=4), st.integers(1, 6))
def test_repeated_ngrams_equal_plain_python(texts, n):
    split = [text.split() for text in texts]
    ground = Texts(split_words(texts_array(texts)))
    found = list(ground.repeats(n))[-1]
    tops, repeated, starts, first = [], [], [], 0
    for text in split:
        ngrams = [tuple(text[place : place + n]) for place in range(len(text) - n + 1)]
        count = collections.Counter(ngrams)
        starts += [first + place for place, ngram in enumerate(ngrams) if count[ngram] > 1]
        top = count.most_common(1)
        tops.append(len(" ".join(top[0][0])) * top[0][1] if top else 0)
        seen, place, characters = set(), 0, 0
        while place < len(ngrams):
            again = ngrams[place] in seen
            characters += again * sum(map(len, ngrams[place]))
            seen.add(ngrams[place])
            place += n if again else 1
        repeated.append(characters)
        first += len(text)
    np.testing.assert_array_equal(found.starts_G, np.array(starts, np.int64))
    np.testing.assert_array_equal(ground.top_characters(found), np.array(tops, np.int64))
    exact = ground.repeated_characters(found, np.full(len(texts), -1.0))
    np.testing.assert_array_equal(exact, np.array(repeated, np.int64))
    bounded = ground.repeated_characters(found, np.array(repeated) + 0.5)
    assert np.all(bounded >= exact)


def test_strings_that_hashes_confuse_stay_apart():
    """Thue-Morse strings, which collide under any polynomial hash modulo 2**64."""
    even = "ab"
    for _ in range(11):
        even += even.translate(str.maketrans("ab", "ba"))
    odd = even.translate(str.maketrans("ab", "ba"))
    assert len(split_words(texts_array([f"{even} {odd}"])).vocabulary) == 2
    assert not lines.split(texts_array([f"{even}\n{odd}"])).repeated().any()


def test_tables_are_what_they_say():
    assert all(len(whole) > 1 for whole in english.wholes())
    assert len(set(english.wholes())) == len(english.wholes())
    assert english.contractions()["I'd've"] == (1, 3)
    assert not {"is", "its", "were", "here"} & set(english.contractions())
    assert len(marks.TERMINAL) == len(set(marks.TERMINAL))
    assert offsets(np.array([2, 0, 1])).tolist() == [0, 2, 2, 3]
