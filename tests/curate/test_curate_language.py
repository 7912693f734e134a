# ruff: noqa: RUF001
"""Language identification: languages told apart, thresholds and lists, and any text at all."""

import functools

import numpy as np
import pytest
from corpora import batch, documents
from hypothesis import given, settings
from hypothesis import strategies as st
from py3langid import langid

from pretrain.core.errors import UserError
from pretrain.curate.documents import DOCUMENTS
from pretrain.curate.judgement import in_languages, sample
from pretrain.curate.langid import BatchIdentifier
from pretrain.curate.language import Language, identifier
from pretrain.curate.stages import MapStage, apply

SENTENCES = {
    "cs": "Tato příručka popisuje, jak se program spouští, a vysvětluje všechny přepínače, které mu můžete dát.",
    "da": "Denne vejledning beskriver, hvordan programmet startes, og forklarer alle de tilvalg, som du kan bruge.",
    "de": "Dieses Handbuch beschreibt, wie man das Programm aufruft, und erklärt alle Optionen, die es dafür gibt.",
    "el": "Αυτό το εγχειρίδιο περιγράφει πώς εκτελείται το πρόγραμμα και εξηγεί όλες τις διαθέσιμες επιλογές.",
    "en": "This manual describes how the program is called, and explains every option that can be given to it.",
    "es": "Este manual describe cómo se ejecuta el programa y explica todas las opciones que se le pueden dar.",
    "fi": "Tämä käsikirja kuvaa, miten ohjelma käynnistetään, ja selittää kaikki valinnat, joita sille voi antaa.",
    "fr": "Ce manuel décrit comment le programme est appelé et explique toutes les options qu'on peut lui donner.",
    "hu": "Ez a kézikönyv leírja, hogyan kell a programot elindítani, és elmagyarázza az összes kapcsolót.",
    "it": "Questo manuale descrive come si avvia il programma e spiega tutte le opzioni che gli si possono dare.",
    "ja": "この手引きは、プログラムの起動方法を説明し、指定できるすべてのオプションについて解説します。",
    "nl": "Deze handleiding beschrijft hoe het programma wordt gestart en legt alle opties uit die er zijn.",
    "pl": "Ten podręcznik opisuje, jak uruchomić program, i wyjaśnia wszystkie opcje, które można mu podać.",
    "pt": "Este manual descreve como o programa é executado e explica todas as opções que lhe podem ser dadas.",
    "ro": "Acest manual descrie cum se pornește programul și explică toate opțiunile care îi pot fi date.",
    "ru": "Это руководство описывает, как запускать программу, и объясняет все ключи, которые ей можно задать.",
    "sv": "Den här handboken beskriver hur programmet startas och förklarar alla flaggor som kan ges till det.",
    "tr": "Bu kılavuz programın nasıl çalıştırılacağını anlatır ve verilebilecek bütün seçenekleri açıklar.",
    "uk": "Цей посібник описує, як запускати програму, і пояснює всі ключі, які їй можна задати.",
    "zh": "本手册介绍如何启动该程序，并说明可以使用的所有选项以及它们的含义和默认值。",
}
ANY_TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=200)


def tagged(stage: MapStage, texts: list[str], name: str) -> list:
    """What a stage writes into the metadata of each text."""
    rows = [row for row in stage.decide(batch(texts)).to_pylist() if row["tag"] == name]
    return [row["value"] if row["label"] is None else row["label"] for row in rows]


def test_twenty_languages_are_told_apart():
    assert tagged(Language(), list(SENTENCES.values()), "language") == list(SENTENCES)
    assert min(tagged(Language(), list(SENTENCES.values()), "language_score")) > 0.65


@functools.cache
def batch_identifier() -> BatchIdentifier:
    return BatchIdentifier()


@functools.cache
def one_at_a_time():
    """The package's own classifier."""
    return langid.LanguageIdentifier.from_model_file(langid.MODEL_FILE, norm_probs=True)


@settings(deadline=None, max_examples=60)
@given(st.lists(st.one_of(ANY_TEXT, st.sampled_from(list(SENTENCES.values())).map(str.upper)), max_size=6))
def test_many_texts_at_once_get_the_answers_of_one_at_a_time(texts):
    texts += SENTENCES.values()
    expected = [one_at_a_time().classify(text) for text in texts]
    found = batch_identifier()(texts)
    np.testing.assert_allclose([score for _, score in found], [score for _, score in expected], atol=1e-4)
    sure = [row for row, (_, score) in enumerate(expected) if score > 0.4]
    assert [found[row][0] for row in sure] == [expected[row][0] for row in sure]


def test_texts_without_known_letters_and_no_texts_at_all():
    assert batch_identifier()([]) == []
    texts = ["", "\0"]
    assert [score for _, score in batch_identifier()(texts)] == pytest.approx(
        [one_at_a_time().classify(text)[1] for text in texts]
    )


def test_languages_not_kept_are_dropped_by_name_and_the_rest_is_tagged():
    table = documents([SENTENCES["en"], SENTENCES["de"], SENTENCES["fr"]])
    kept, rejected, edits = apply(table, Language(keep=["en", "fr"]).decide(table.to_batches()[0]), "language")
    assert kept["id"].to_pylist() == ["id000", "id002"]
    assert '"language": "fr"' in kept["metadata"][1].as_py()
    assert [(row["id"], row["rule"], row["threshold"]) for row in rejected.to_pylist()] == [
        ("id001", "language_de", 0.65)
    ]
    assert edits.num_rows == 0


def test_unsure_and_wordless_texts_are_dropped_with_their_score():
    rows = Language().decide(batch(["", "12:30 -- 45%", "\0\n", SENTENCES["en"]])).to_pylist()
    assert [(row["id"], row["rule"], row["value"]) for row in rows if row["rule"]] == [
        (f"id{index:03d}", "language_score", 0.0) for index in range(3)
    ]
    assert tagged(Language(), ["12:30"], "language") == ["und"]


def test_the_threshold_decides():
    mixed = "ok yes no la la"
    score = tagged(Language(), [mixed], "language_score")[0]
    assert 0 < score < 1
    for threshold, dropped in ((score, False), (min(1, score + 0.001), True)):
        rows = Language(threshold=threshold).decide(batch([mixed])).to_pylist()
        assert any(row["rule"] for row in rows) == dropped


def test_tagging_drops_nothing():
    decisions = Language(keep=["en"], action="tag").decide(batch(["", SENTENCES["de"]]))
    assert decisions["rule"].null_count == decisions.num_rows == 4


def test_a_long_document_is_judged_by_its_start_middle_and_end():
    text = SENTENCES["de"] + "x" * 50 + "\n" + SENTENCES["en"] * 40
    assert tagged(Language(sample_characters=90), [text], "language") == ["en"]


@pytest.mark.parametrize(
    "settings_, words",
    [
        ({"action": "delete"}, "action"),
        ({"threshold": 2}, "threshold"),
        ({"keep": "en"}, "list"),
        ({"sample_characters": 0}, "sample_characters"),
    ],
)
def test_impossible_settings_are_refused(settings_, words):
    with pytest.raises(UserError, match=words):
        Language(**settings_)


def test_unknown_languages_and_models_are_refused():
    with pytest.raises(UserError, match="klingon"):
        identifier(keep=("en", "klingon"))
    with pytest.raises(UserError, match="no such fastText model"):
        Language(model="/nowhere/lid.bin").decide(batch(["text"]))


@settings(deadline=None, max_examples=60)
@given(st.lists(ANY_TEXT, max_size=6), st.integers(0, 6))
def test_any_text_in_any_batches(texts, cut):
    stage, ids = Language(keep=["en"]), [f"id{index}" for index in range(len(texts))]
    whole = stage.decide(batch(texts, ids))
    parts = [stage.decide(batch(texts[part], ids[part])) for part in (slice(0, cut), slice(cut, None))]
    rows = [row for part in parts for row in part.to_pylist()]
    key = lambda row: (row["id"], row["tag"] or "", row["rule"] or "")  # noqa: E731
    assert sorted(rows, key=key) == sorted(whole.to_pylist(), key=key)
    kept, rejected, _ = apply(documents(texts, ids), whole, "language")
    assert kept.num_rows + rejected.num_rows == len(texts)
    scores = np.array(tagged(stage, texts, "language_score"), float)
    assert np.all((scores >= 0) & (scores <= 1))


@settings(deadline=None, max_examples=60)
@given(st.text(max_size=60), st.integers(1, 80))
def test_samples_are_whole_short_texts_or_windows_of_long_ones(text, characters):
    texts = batch([text.encode("utf-8", "replace").decode()])["text"]
    (shown,) = sample(texts, characters)
    original = texts[0].as_py()
    if len(original) <= characters:
        assert shown == original
    else:
        width = max(1, characters // 3)
        assert len(shown) == 3 * width + 2
        assert shown.startswith(original[:width]) and shown.endswith(original[-width:])


def test_a_huge_line():
    line = SENTENCES["en"] * 200_000  # 20 MB
    assert tagged(Language(), [line], "language") == ["en"]


def test_documents_of_a_language_by_what_was_tagged():
    table = documents(["a", "b", "c"])
    metadata = ['{"language": "en"}', "{}", '{"language": "de", "x": 1}']
    column = DOCUMENTS.get_field_index("metadata")
    tagged_ = table.set_column(column, DOCUMENTS.field(column), [metadata]).to_batches()[0]
    assert in_languages(tagged_, ["en"])["id"].to_pylist() == ["id000"]
    assert in_languages(tagged_, []).num_rows == 3
