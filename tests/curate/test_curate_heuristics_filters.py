"""The rules of Gopher, C4 and FineWeb: equal to plain Python on any text, and each rule by an example."""

import collections
import pickle
import re
import string
import unicodedata

import numpy as np
import pyarrow as pa
import pytest
import slow_words
from corpora import batch, documents
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pretrain.core.errors import UserError
from pretrain.curate import marks
from pretrain.curate.c4 import C4
from pretrain.curate.fineweb import FineWebQuality
from pretrain.curate.gopher_quality import GopherQuality
from pretrain.curate.gopher_repetition import GopherRepetition
from pretrain.curate.stages import DECISIONS, MapStage, apply

FILTERS = (GopherQuality(), GopherRepetition(), FineWebQuality(), C4())
WORDS = ("the", "and", "of a", "to be", "word", "Word.", "that's", "don't", "1 2 3", "é漢", "x" * 12, "a.", "Go!")
SIGNS = ("#", "...", "…", "- ", "• ", "—", ". ", '"', "?", "。", "[1]", "[edit]", "{")
ENDS = ("\n", "\n\n", "\n\n\n", "\r\n", "\u2028", " ", "\t")
PHRASES = (
    *("lorem ipsum", "JavaScript", "Terms of Use", "one two three."),
    *("Again and again it says.\n", "Fine line here, is it not?\n"),
)
PARTS = st.sampled_from(WORDS + SIGNS + ENDS + PHRASES)
TEXT = st.lists(PARTS, max_size=40).map(" ".join) | st.lists(PARTS, max_size=40).map("".join)
TEXTS = st.lists(TEXT, max_size=4)
FRACTION = st.sampled_from([0.0, 0.01, 0.1, 0.2, 0.5, 0.9, 1.0])
PROSE = "The quick brown fox jumps over the lazy dog, and nobody would have thought that of it.\n"


def decided(stage: MapStage, texts: list[str]) -> list[tuple[str, float] | None]:
    """(first rule broken, value) of each text, or None."""
    table = stage.decide(batch(texts))
    assert table.schema == DECISIONS
    rows = [row for row in table.to_pylist() if row["start"] is None]
    found = {row["id"]: (row["rule"], row["value"]) for row in reversed(rows)}
    return [found.get(id_) for id_ in batch(texts)["id"].to_pylist()]


def first_broken(*rules: tuple[str, float, bool]) -> tuple[str, float] | None:
    return next(((rule, pytest.approx(value)) for rule, value, is_broken in rules if is_broken), None)


def ratio(part: float, whole: float) -> float:
    return part / max(whole, 1)


def slow_lines(text: str) -> list[str]:
    return text.replace("\r\n", " \n").splitlines()


def slow_gopher_quality(stage: GopherQuality, text: str) -> tuple[str, float] | None:
    words = slow_words.words(text)
    symbols = set(marks.SYMBOLS) | {chr(code) for code in range(160) if unicodedata.category(chr(code)) == "Cc"} - set(
        "\t\n"
    )
    counted = [word for word in words if set(word) - symbols]
    mean = ratio(sum(map(len, counted)), len(counted))
    hashes, ellipses = (ratio(sum(map(text.count, signs)), len(words)) for signs in (["#"], ["...", "…"]))
    lines = [line.strip() for line in slow_lines(text)]
    bullets = ratio(sum(line.startswith(("•", "-")) for line in lines), len(lines))
    open_ends = ratio(sum(line.endswith(("...", "…")) for line in lines), len(lines))
    alphabetic = ratio(sum(any(map(str.isalpha, word)) for word in words), len(words))
    stop_words = len(set(words) & set(stage.stop_words))
    return first_broken(
        ("min_words", len(counted), len(counted) < stage.min_words),
        ("max_words", len(counted), len(counted) > stage.max_words),
        ("min_mean_word_length", mean, mean < stage.min_mean_word_length),
        ("max_mean_word_length", mean, mean > stage.max_mean_word_length),
        ("max_hashes_per_word", hashes, hashes > stage.max_hashes_per_word),
        ("max_ellipses_per_word", ellipses, ellipses > stage.max_ellipses_per_word),
        ("max_bullet_lines", bullets, bullets > stage.max_bullet_lines),
        ("max_ellipsis_lines", open_ends, open_ends > stage.max_ellipsis_lines),
        ("min_alphabetic_words", alphabetic, alphabetic < stage.min_alphabetic_words),
        ("min_stop_words", stop_words, stop_words < stage.min_stop_words),
    )


@settings(deadline=None, max_examples=120)
@given(
    TEXTS, st.integers(0, 6), st.integers(6, 30), FRACTION, FRACTION, FRACTION, FRACTION, FRACTION, st.integers(0, 3)
)
def test_gopher_quality_equals_plain_python(texts, least, most, hashes, ellipses, bullets, ends, letters, stops):
    stage = GopherQuality(least, most, 1.5, 6.0, hashes, ellipses, bullets, ends, letters, stops)
    assert decided(stage, texts) == [slow_gopher_quality(stage, text) for text in texts]


def slow_repeats(pieces: list[str]) -> tuple[float, int]:
    """Fraction of pieces that came before, and characters in them."""
    again = [piece for place, piece in enumerate(pieces) if piece in pieces[:place]]
    return ratio(len(again), len(pieces)), sum(map(len, again))


def slow_gopher_repetition(stage: GopherRepetition, text: str) -> tuple[str, float] | None:
    rules = [("empty", 0, not text)]
    for unit, pieces in (("paragraph", re.split(r"\n{2,}", text.strip())), ("line", re.split("\n+", text))):
        fraction, characters = slow_repeats(pieces)
        for rule, value in (
            (f"max_repeated_{unit}s", fraction),
            (f"max_repeated_{unit}_characters", ratio(characters, len(text))),
        ):
            rules.append((rule, value, value > getattr(stage, rule)))
    words = slow_words.words(text)
    limits = [(n, "top", limit) for n, limit in stage.max_top_ngrams]
    limits += [(n, "repeated", limit) for n, limit in stage.max_repeated_ngrams]
    for n, measure, limit in limits:
        ngrams = [tuple(words[place : place + n]) for place in range(len(words) - n + 1)]
        characters = slow_top(ngrams) if measure == "top" else slow_repeated(ngrams, n)
        rules.append((f"max_{measure}_{n}_gram", ratio(characters, len(text)), ratio(characters, len(text)) > limit))
    return first_broken(*rules)


def slow_top(ngrams: list[tuple[str, ...]]) -> int:
    top = collections.Counter(ngrams).most_common(1)
    return len(" ".join(top[0][0])) * top[0][1] if top else 0


def slow_repeated(ngrams: list[tuple[str, ...]], n: int) -> int:
    seen, place, characters = set(), 0, 0
    while place < len(ngrams):
        again = ngrams[place] in seen
        characters += again * sum(map(len, ngrams[place]))
        seen.add(ngrams[place])
        place += n if again else 1
    return characters


@settings(deadline=None, max_examples=120)
@given(TEXTS, FRACTION, FRACTION, FRACTION, FRACTION, FRACTION, FRACTION)
@example(["\n\na\n\n", "a\n\na\n\na", "the the the the", "a b c d e f a b c d e f"], 1.0, 1.0, 1.0, 1.0, 0.2, 0.2)
def test_gopher_repetition_equals_plain_python(texts, paragraphs, in_paragraphs, lines, in_lines, top, repeated):
    ngrams = ((2, top), (3, top / 2)), ((5, repeated), (7, repeated / 2))
    stage = GopherRepetition(paragraphs, in_paragraphs, lines, in_lines, *ngrams)
    assert decided(stage, texts) == [slow_gopher_repetition(stage, text) for text in texts]


def slow_fineweb(stage: FineWebQuality, text: str) -> tuple[str, float] | None:
    lines = [line for line in text.split("\n") if line.strip()]
    punctuated = ratio(sum(line[-1] in marks.TERMINAL for line in lines), len(lines))
    short = ratio(sum(len(line) <= stage.short_line for line in lines), len(lines))
    repeated = ratio(slow_repeats(lines)[1], len(text.replace("\n", "")))
    feeds = ratio(text.count("\n"), len(slow_words.words(text)))
    return first_broken(
        ("empty", 0, not lines),
        ("min_punctuated_lines", punctuated, punctuated < stage.min_punctuated_lines),
        ("max_short_lines", short, short > stage.max_short_lines),
        ("max_repeated_line_characters", repeated, repeated > stage.max_repeated_line_characters),
        ("max_line_feeds_per_word", feeds, feeds > stage.max_line_feeds_per_word),
    )


@settings(deadline=None, max_examples=120)
@given(TEXTS, FRACTION, FRACTION, st.integers(0, 30), FRACTION, FRACTION)
def test_fineweb_equals_plain_python(texts, punctuated, short, characters, repeated, feeds):
    stage = FineWebQuality(punctuated, short, characters, repeated, feeds)
    assert decided(stage, texts) == [slow_fineweb(stage, text) for text in texts]


CITATION = re.compile(r"\[\d*\]|\[edit\]|\[citation needed\]", re.ASCII)
POLICIES = ("terms of use", "privacy policy", "cookie policy", "uses cookies", "use of cookies", "use cookies")


def slow_sentences(line: str) -> int:
    count, ended = 1, False
    for word in slow_words.words(line):
        is_end = len(word) == 1 and word in marks.TERMINAL
        if is_end:
            ended = True
        elif ended and not all(unicodedata.category(character)[0] == "P" for character in word):
            count, ended = count + 1, False
    return count


def slow_c4(stage: C4, text: str) -> tuple[str | None, list[str]]:
    """The rule that rejects the text, or None; the lines left, stripped and without citations."""
    left, sentences, lorem, curly = [], 0, False, False
    for whole in slow_lines(text):
        whole = whole.strip()
        line = CITATION.sub("", whole)
        ends_well = line.endswith((".", "?", "!", '"', "'")) and not line.endswith("...")
        if stage.terminal_punctuation and not ends_well:
            continue
        words = whole.split()
        if len(words) < stage.min_words_per_line or max(map(len, words), default=0) > stage.max_word_characters:
            continue
        lower = line.lower()
        lorem |= "lorem ipsum" in lower
        curly |= stage.curly_brackets and "{" in line and "javascript" not in lower
        if "javascript" in lower or any(policy in lower for policy in POLICIES):
            continue
        left.append(line)
        sentences += slow_sentences(line)
    if lorem or curly:
        return ("lorem_ipsum" if lorem else "curly_bracket"), left
    return ("min_sentences" if sentences < stage.min_sentences else None), left


@settings(deadline=None, max_examples=300)
@given(TEXTS, st.integers(0, 4), st.integers(0, 3), st.sampled_from([11, 1_000]), st.booleans(), st.booleans())
@example(["a b c.\n\nx\na b c.\n\nx\n\n", "x\na b c.[1]\r\nx\n\u2028a b c d.", "x\n" * 3], 0, 3, 1_000, True, True)
def test_c4_equals_plain_python(texts, sentences, words, longest, terminal, curly):
    stage = C4(terminal, curly, words, longest, sentences, bad_words="")
    table = documents(texts)
    kept, rejected, edits = apply(table, stage.decide(batch(texts)), "c4")
    rules, texts_left = (
        dict(zip(*columns.to_pydict().values(), strict=True))
        for columns in (rejected.select(["id", "rule"]), kept.select(["id", "text"]))
    )
    for id_, text in zip(table["id"].to_pylist(), texts, strict=True):
        rule, left = slow_c4(stage, text)
        assert rules.get(id_) == rule
        if rule is None:
            lines = [line.strip() for line in slow_lines(texts_left[id_])]
            assert [line for line in lines if line] == [line.strip() for line in left if line.strip()]
    taken = sum(edits["bytes"].to_pylist()) + sum(rejected["bytes"].to_pylist())
    assert taken + sum(len(text.encode()) for text in texts_left.values()) == sum(len(text.encode()) for text in texts)
    assert all(row["bytes"] > 0 for row in edits.to_pylist())


def test_c4_says_which_lines_it_took_out():
    text = "Menu\nOne two three four.\nIt needs JavaScript to run.\nSee our privacy policy now.\nNo.\n"
    text += "Five six seven[2].\nEnd\n\n"
    kept, rejected, edits = apply(documents([text]), C4(min_sentences=2, bad_words="").decide(batch([text])), "c4")
    assert kept["text"].to_pylist() == ["One two three four.\nFive six seven.\n"]
    assert rejected.num_rows == 0
    found = [(row["rule"], text[row["span"]["start"] : row["span"]["end"]]) for row in edits.to_pylist()]
    assert found == [
        ("no_terminal_punctuation", "Menu\n"),
        ("javascript", "It needs JavaScript to run.\n"),
        ("policy", "See our privacy policy now.\n"),
        ("few_words", "No.\n"),
        ("citation", "[2]"),
        ("no_terminal_punctuation", "\nEnd\n"),
    ]


def test_c4_rejects_documents_with_bad_words(tmp_path):
    (tmp_path / "words.txt").write_text("# a list\nDarn\nno (good\nsnit*\n\n", encoding="utf-8")
    stage = C4(min_sentences=0, bad_words=str(tmp_path / "words.txt"))
    texts = ["A DARN thing.", "Undarned thing.", "darning", "It is no (good: bad.", "fine", "snits snit"]
    expected = ["bad_words", None, None, "bad_words", None, "bad_words"]
    assert [found and found[0] for found in decided(stage, texts)] == expected
    ours = [found and found[0] for found in decided(C4(min_sentences=0), ["What bullshitters!", "A bull, a sheet."])]
    assert ours == ["bad_words", None]
    with pytest.raises(UserError, match="no file"):
        C4(bad_words=str(tmp_path / "missing"))
    with pytest.raises(UserError, match="no list"):
        C4(bad_words="xx")


def test_gopher_quality_rules_by_example():
    ten = PROSE * 4
    examples = {
        None: ten,
        "min_words": PROSE,
        "max_words": ten * 10,
        "min_mean_word_length": "a b the of " * 20,
        "max_mean_word_length": "incomprehensibilities " * 60,
        "max_hashes_per_word": ten + "#" * 20,
        "max_ellipses_per_word": ten + "... " * 20,
        "max_bullet_lines": "".join(f"- {PROSE}" for _ in range(5)),
        "max_ellipsis_lines": (PROSE.strip(".\n") + "…\n") * 4,
        "min_alphabetic_words": ten + " 123 4567" * 60,
        "min_stop_words": "some words here appear without those stopping ones " * 10,
    }
    found = decided(GopherQuality(max_words=500), list(examples.values()))
    assert [rule and rule[0] for rule in found] == list(examples)


@pytest.mark.parametrize("stage", FILTERS, ids=lambda stage: stage.name)
def test_filters_keep_the_contract_and_do_not_depend_on_batches(stage):
    assert isinstance(stage, MapStage) and pickle.loads(pickle.dumps(stage)) == stage
    texts = [PROSE * 3, "", "- bullet\n" * 30, PROSE + PROSE.upper() * 5, string.printable * 3, "漢字。" * 100]
    assert stage.decide(batch([])).num_rows == 0
    whole = stage.decide(batch(texts))
    parts = pa.concat_tables(stage.decide(batch(texts).slice(row, 1)) for row in range(len(texts)))
    order = [(name, "ascending") for name in ("id", "rule", "start")]
    assert whole.sort_by(order).equals(parts.sort_by(order))
    values = [row["value"] for row in whole.to_pylist() if row["start"] is None]
    assert np.all(np.isfinite(np.array(values, float)))


@pytest.mark.parametrize(
    "make, problem",
    [
        (lambda: GopherQuality(min_words=9, max_words=8), "min_words"),
        (lambda: GopherQuality(max_bullet_lines=1.5), "max_bullet_lines"),
        (lambda: GopherQuality(min_stop_words=9), "min_stop_words"),
        (lambda: GopherRepetition(max_repeated_lines=-1), "max_repeated_lines"),
        (lambda: GopherRepetition(max_top_ngrams=((3, 0.1), (2, 0.1))), "max_top_ngrams"),
        (lambda: FineWebQuality(max_short_lines=2), "max_short_lines"),
        (lambda: C4(min_sentences=-1), "min_sentences"),
    ],
)
def test_impossible_settings_are_refused(make, problem):
    with pytest.raises(UserError, match=problem):
        make()
