"""Quality classifiers: two corpora told apart, the user's own models, action, batches, any text."""

import json
import pathlib
import pydoc_data.topics
import random

import gin
import numpy as np
import pyarrow as pa
import pytest
from corpora import SENTENCE, batch, documents, write_jsonl
from hypothesis import given, settings
from hypothesis import strategies as st

from pretrain.core import config as gin_config
from pretrain.core.errors import RunError, UserError
from pretrain.curate import fasttext_models
from pretrain.curate.documents import DOCUMENTS
from pretrain.curate.fasttext_models import Classifier, from_bytes, normalise, probabilities, train
from pretrain.curate.quality import FastTextQuality, QualityClassifier
from pretrain.curate.recipe import Recipe, curate
from pretrain.curate.stages import FittedStage, MapStage, apply

SPAM = "CLICK HERE now to win $$$ cash prizes!!! Limited offer, order cheap pills online, 100% free. "


def prose(number: int) -> list[str]:
    """Pieces of Python's own manual, which ships with the interpreter."""
    text = "\n".join(pydoc_data.topics.topics[name] for name in sorted(pydoc_data.topics.topics))
    size = len(text) // number
    return [text[start : start + size] for start in range(0, size * number, size)]


def junk(number: int) -> list[str]:
    """Advertising with its words in random order."""
    draw = random.Random(3)
    return [" ".join(draw.choices(SPAM.split(), k=80)) for _ in range(number)]


@pytest.fixture(scope="module")
def fitted() -> Classifier:
    stage = QualityClassifier(good="good", random="random")
    good, bad = prose(80), junk(80)
    return stage.fit({"good": [batch(good[:30]), batch(good[30:60])], "random": [batch(bad[:60])]})


def scores(stage: MapStage, texts: list[str]) -> np.ndarray:
    rows = stage.decide(batch(texts)).to_pylist()
    return np.array([row["value"] for row in rows if row["tag"] == stage.name])


def test_it_is_a_fitted_stage_with_two_references():
    stage = QualityClassifier(good="a", random="b")
    assert isinstance(stage, FittedStage) and not isinstance(stage, MapStage)
    assert stage.reference == {"good": "a", "random": "b"}


def test_held_out_text_is_told_apart(fitted):
    good, bad = scores(fitted, prose(80)[60:]), scores(fitted, junk(80)[60:])
    assert good.min() > 0.9 and bad.max() < 0.1


def test_bad_documents_are_dropped_with_their_score(fitted):
    table = documents([prose(80)[70], SPAM * 5])
    kept, rejected, _ = apply(table, fitted.decide(table.to_batches()[0]), "quality")
    assert kept["id"].to_pylist() == ["id000"]
    assert json.loads(kept["metadata"][0].as_py())["quality"] > 0.9
    (row,) = rejected.to_pylist()
    assert row["rule"] == "quality" and row["value"] < row["threshold"] == 0.5


def test_the_same_corpora_give_the_same_model_in_any_batches(fitted):
    good, bad = prose(80), junk(80)
    again = train({"good": [batch(good[:60])], "random": [batch(bad[:10]), batch(bad[10:60])]})
    assert again == fitted.model


def test_tagging_drops_nothing(fitted):
    stage = QualityClassifier(good="a", random="b", action="tag", name="goodness")
    stage = stage.fit({"good": [batch(prose(9))], "random": [batch(junk(9))]})
    decisions = stage.decide(batch([SPAM, ""]))
    assert decisions["rule"].null_count == 2 and set(decisions["tag"].to_pylist()) == {"goodness"}


def test_only_the_languages_asked_for_are_judged(fitted):
    stage = Classifier(**{**vars(fitted), "languages": ("en",)})
    table = documents([SPAM, SPAM])
    column = DOCUMENTS.get_field_index("metadata")
    table = table.set_column(column, DOCUMENTS.field(column), [['{"language": "en"}', '{"language": "de"}']])
    assert set(stage.decide(table.combine_chunks().to_batches()[0])["id"].to_pylist()) == {"id000"}


def test_a_users_model_is_read_from_its_file(fitted, tmp_path):
    path = tmp_path / "model.bin"
    path.write_bytes(fitted.model)
    texts = [prose(80)[70], SPAM * 5, ""]
    own = FastTextQuality(model=str(path), label="good", is_normalised=True, max_characters=10_000)
    np.testing.assert_array_equal(scores(own, texts), scores(fitted, texts))
    plain = FastTextQuality(model=str(path), label="__label__good", action="tag")
    assert plain.decide(batch(texts))["rule"].null_count == 3


def test_what_is_no_model_is_refused(tmp_path, fitted):
    with pytest.raises(UserError, match="no such fastText model"):
        FastTextQuality(model=str(tmp_path / "none.bin")).decide(batch(["a"]))
    (tmp_path / "text.bin").write_text("not a model")
    with pytest.raises(UserError, match="no fastText model"):
        FastTextQuality(model=str(tmp_path / "text.bin")).decide(batch(["a"]))
    (tmp_path / "model.bin").write_bytes(fitted.model)
    with pytest.raises(UserError, match=r"no label 'hq'.*__label__good"):
        FastTextQuality(model=str(tmp_path / "model.bin")).decide(batch(["a"]))


@pytest.mark.parametrize(
    "make, words",
    [
        (lambda: QualityClassifier(good="a"), "two corpora"),
        (lambda: QualityClassifier(good="a", random="b", threshold=2), "threshold"),
        (lambda: QualityClassifier(good="a", random="b", action="x"), "action"),
        (lambda: FastTextQuality(), "FastTextQuality.model"),
        (lambda: FastTextQuality(model="m", threshold=-1), "threshold"),
    ],
)
def test_impossible_settings_are_refused(make, words):
    with pytest.raises(UserError, match=words):
        make()


def test_an_empty_corpus_fails_with_its_name():
    with pytest.raises(RunError, match="'random' has no text"):
        train({"good": [batch([SENTENCE])], "random": [batch(["", " \n"])]})


@settings(deadline=None, max_examples=60)
@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=80), max_size=6), st.integers(0, 6))
def test_any_text_in_any_batches(fitted, texts, cut):
    ids = [f"id{index}" for index in range(len(texts))]
    whole = fitted.decide(batch(texts, ids)).to_pylist()
    parts = [fitted.decide(batch(texts[part], ids[part])).to_pylist() for part in (slice(0, cut), slice(cut, None))]
    key = lambda row: (row["id"], row["tag"] or "")  # noqa: E731
    assert sorted(parts[0] + parts[1], key=key) == sorted(whole, key=key)
    assert all(0 <= row["value"] <= 1 for row in whole)


@settings(deadline=None, max_examples=60)
@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=80))
def test_normalised_text_is_one_line_without_capitals_or_figures(text):
    (done,) = normalise(pa.array([text], pa.large_string())).to_pylist()
    assert "\n" not in done and "\0" not in done
    assert not any(c in "ABCXYZ123456789" for c in done)


def test_a_huge_line(fitted):
    model = from_bytes(fitted.model)
    text = pa.array(["word " * 2_000_000], pa.large_string())
    assert 0 <= probabilities(model, text, "good")[0] <= 1
    assert len(scores(fitted, ["word " * 2_000_000])) == 1


def test_in_a_recipe_with_its_corpora_as_files(tmp_path: pathlib.Path):
    for name, texts in (("good", prose(40)), ("random", junk(40))):
        write_jsonl(tmp_path / f"{name}.jsonl", [{"text": text, "source": "elsewhere"} for text in texts])
    write_jsonl(tmp_path / "in.jsonl", [{"id": "a", "text": prose(41)[5]}, {"id": "b", "text": SPAM * 5}])
    stage = QualityClassifier(good=str(tmp_path / "good.jsonl"), random=str(tmp_path / "random.jsonl"))
    sheet = curate(Recipe(str(tmp_path / "in.jsonl"), stages=(stage,), shards=1), tmp_path / "out", workers=1)
    assert sheet["total"]["kept"]["documents"] == 1


def test_models_are_loaded_once_a_process(fitted):
    assert from_bytes(fitted.model) is from_bytes(bytes(bytearray(fitted.model)))
    assert fasttext_models.from_bytes.cache_info().maxsize == 4


def test_all_judgements_are_named_alone_in_gin(tmp_path):
    """No two configurables of the whole program share these names."""
    stages = ["Language", "QualityClassifier", "FastTextQuality", "PerplexityFilter", "ToxicWords", "Pii"]
    modules = ["language", "quality", "perplexity", "toxicity", "pii"]
    lines = ["import pretrain.experiment", *(f"import pretrain.curate.{module}" for module in modules)]
    lines += [f"{stage}.name = 'own_{stage}'" for stage in stages]
    lines += ["Recipe.stages = [@Language(), @ToxicWords(), @Pii()]"]
    (tmp_path / "all.gin").write_text("\n".join(lines))
    gin_config.load([str(tmp_path / "all.gin")])
    assert [stage.name for stage in Recipe().stages] == ["own_Language", "own_ToxicWords", "own_Pii"]
    gin.clear_config()
