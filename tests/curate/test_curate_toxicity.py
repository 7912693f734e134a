"""Toxicity: lists by language, whole words, the user's lists, a classifier, any text."""

import random

import numpy as np
import pyarrow.compute as pc
import pytest
from corpora import SENTENCE, batch, documents
from hypothesis import given, settings
from hypothesis import strategies as st

from pretrain.core.errors import UserError
from pretrain.curate.documents import DOCUMENTS
from pretrain.curate.stages import FittedStage, apply
from pretrain.curate.toxicity import FOLDER, ToxicityClassifier, ToxicWords, word_list, word_pattern

RUDE = ["you", "stupid", "blorp", "shut", "up", "idiot", "go", "away", "moron"]
KIND = ["thank", "you", "for", "the", "kind", "help", "with", "this", "lovely", "book"]
LANGUAGES = sorted(path.name.removesuffix(".txt") for path in FOLDER.iterdir() if path.name.endswith(".txt"))


def in_language(texts: list[str], language: str):
    """A batch of texts tagged with a language."""
    table = documents(texts)
    column = DOCUMENTS.get_field_index("metadata")
    metadata = [[f'{{"language": "{language}"}}'] * len(texts)]
    return table.set_column(column, DOCUMENTS.field(column), metadata).combine_chunks().to_batches()[0]


def shares(stage: ToxicWords, documents_) -> list[float]:
    return [row["value"] for row in stage.decide(documents_).to_pylist() if row["tag"]]


def own_list(tmp_path, *words: str) -> ToxicWords:
    (tmp_path / "own.txt").write_text("# ours\n" + "\n".join(words), encoding="utf-8")
    return ToxicWords(lists={"en": str(tmp_path / "own.txt")})


def test_every_list_finds_each_of_its_entries_in_any_case():
    assert {"de", "en", "es", "fr", "it", "nl", "pl", "pt", "ru"} <= set(LANGUAGES)
    for language in LANGUAGES:
        words = word_list(language)
        assert len(words) >= 25
        texts = [
            f"Abc {word.rstrip('*').upper() if index % 2 else word.rstrip('*')}, abc."
            for index, word in enumerate(words)
        ]
        texts = [text for text in texts if text.lower().upper() == text.upper()]
        found = shares(ToxicWords(), in_language(texts, language))
        assert min(found) > 0.1, (language, texts[int(np.argmin(found))])


def test_whole_words_only_unless_a_star_says_otherwise(tmp_path):
    stage = own_list(tmp_path, "zork", "flub*", "two words", "ärg")
    texts = [
        "zork",
        "zorks azork",
        "FLUBBER Flub",
        "two words",
        "two  words",
        "ärg",
        "bärgen ärger",
        "zork-zork (zork)",
    ]
    assert shares(stage, batch(texts)) == [1.0, 0.0, 1.0, 0.5, 0.0, 1.0, 0.0, 1.0]


def test_the_share_decides_and_so_does_the_number(tmp_path):
    stage = own_list(tmp_path, "zork")
    texts = ["zork " + "fine " * 9, "zork " + "fine " * 199, "fine"]
    table = documents(texts)
    kept, rejected, _ = apply(table, stage.decide(table.to_batches()[0]), "toxic_words")
    assert kept["id"].to_pylist() == ["id001", "id002"]
    assert [(row["rule"], row["value"], row["threshold"]) for row in rejected.to_pylist()] == [
        ("toxic_words", 0.1, 0.01)
    ]
    lists = stage.lists
    assert ToxicWords(lists=lists, min_words=2).decide(batch(texts))["rule"].null_count == 3
    assert ToxicWords(lists=lists, action="tag").decide(batch(texts))["rule"].null_count == 3


def test_each_document_by_the_list_of_its_language(tmp_path):
    (tmp_path / "xx.txt").write_text("zork")
    stage = ToxicWords(lists={"xx": str(tmp_path / "xx.txt")})
    assert shares(stage, in_language(["zork"], "xx")) == [1.0]
    assert shares(stage, in_language(["zork"], "de")) == [0.0]
    assert shares(stage, in_language(["zork"], "unknown")) == [0.0]
    assert shares(stage, batch(["zork"])) == [0.0]
    assert shares(ToxicWords(lists=stage.lists, default_language="xx"), batch(["zork"])) == [1.0]


def test_everyday_words_of_one_language_are_left_alone_in_another():
    assert shares(ToxicWords(), in_language(["Fartgränsen tar slut här", "mit dem Schlag, kut"], "sv")) == [0.0, 0.0]
    assert shares(ToxicWords(), batch(["Scunthorpe assessed the cockpit, a class of Titian; " + SENTENCE])) == [0.0]


def test_bad_lists_are_refused(tmp_path):
    with pytest.raises(UserError, match="no such file"):
        ToxicWords(lists={"en": str(tmp_path / "none.txt")}).decide(batch(["a"]))
    (tmp_path / "empty.txt").write_text("# nothing\n\n")
    with pytest.raises(UserError, match="lists no words"):
        ToxicWords(lists={"en": str(tmp_path / "empty.txt")}).decide(batch(["a"]))


@pytest.mark.parametrize(
    "make, words",
    [
        (lambda: ToxicWords(threshold=2), "threshold"),
        (lambda: ToxicWords(action="x"), "action"),
        (lambda: ToxicityClassifier(toxic="a"), "two corpora"),
        (lambda: ToxicityClassifier(toxic="a", clean="b", threshold=2), "threshold"),
    ],
)
def test_impossible_settings_are_refused(make, words):
    with pytest.raises(UserError, match=words):
        make()


@settings(deadline=None, max_examples=60)
@given(
    st.lists(
        st.text(st.characters(exclude_categories=["Cs"]), max_size=60) | st.sampled_from(["Shit!", "shit-SHIT"]),
        max_size=6,
    ),
    st.integers(0, 6),
)
def test_any_text_in_any_batches(texts, cut):
    stage, ids = ToxicWords(), [f"id{index}" for index in range(len(texts))]
    whole = stage.decide(batch(texts, ids)).to_pylist()
    parts = [stage.decide(batch(texts[part], ids[part])).to_pylist() for part in (slice(0, cut), slice(cut, None))]
    key = lambda row: (row["id"], row["tag"] or "")  # noqa: E731
    assert sorted(parts[0] + parts[1], key=key) == sorted(whole, key=key)
    assert all(0 <= row["value"] <= 1 for row in whole)


@settings(deadline=None, max_examples=100)
@given(st.sampled_from(LANGUAGES), st.text(max_size=10), st.text(max_size=10), st.data())
def test_what_python_finds_passes_arrow(language, before, after, data):
    prefilter, pattern = word_pattern(language)
    word = data.draw(st.sampled_from(word_list(language))).rstrip("*")
    text = (before + word + after).encode("utf-8", "replace").decode()
    if pattern.search(text.lower()):
        assert pc.match_substring_regex([text.lower()], prefilter)[0].as_py()


def test_a_huge_line():
    assert shares(ToxicWords(), batch(["fine " * 1_000_000 + "shit"])) == [0.0]


def test_the_classifier_learns_its_examples_and_drops_what_is_above():
    draw = random.Random(5)
    rude = [" ".join(draw.choices(RUDE, k=30)) for _ in range(120)]
    kind = [" ".join(draw.choices(KIND, k=30)) for _ in range(120)]
    stage = ToxicityClassifier(toxic="a", clean="b")
    assert isinstance(stage, FittedStage) and stage.reference == {"toxic": "a", "clean": "b"}
    fitted = stage.fit({"toxic": [batch(rude[:100])], "clean": [batch(kind[:100])]})
    table = documents(rude[100:] + kind[100:])
    kept, rejected, _ = apply(table, fitted.decide(table.to_batches()[0]), "toxicity")
    assert kept["text"].to_pylist() == kind[100:]
    assert all(row["rule"] == "toxicity" and row["value"] > row["threshold"] == 0.5 for row in rejected.to_pylist())
