"""Stages by themselves: decisions, how they are carried out, the rules, exact dedup and the split."""

import json
import pickle
import unicodedata

import numpy as np
import pyarrow as pa
import pytest
from corpora import SENTENCE, batch, documents
from hypothesis import given, settings
from hypothesis import strategies as st

from pretrain.core.errors import UserError
from pretrain.curate import counts
from pretrain.curate.documents import DOCUMENTS, document_id, shard_of
from pretrain.curate.exact_dedup import ExactDedup, normalise
from pretrain.curate.rules import TextRules, letters, longest_lines
from pretrain.curate.split import split_of
from pretrain.curate.stages import (
    DECISIONS,
    FittedStage,
    KeyedStage,
    MapStage,
    apply,
    rejections,
    replacements,
    tags,
)

TEXTS = st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=50), max_size=8)


def ids(*names: str) -> pa.Array:
    return pa.array(names, pa.string())


def test_apply_without_decisions_changes_nothing():
    table = documents(["a", "b"])
    kept, rejected, edits = apply(table, DECISIONS.empty_table(), "stage")
    assert kept is table
    assert rejected.num_rows == edits.num_rows == 0


def test_the_first_rejection_of_a_document_counts():
    table = documents(["text é one", "two", "three"])
    decisions = pa.concat_tables(
        [rejections(ids("id002", "id000"), "late", 5.0, 4.0), rejections(ids("id000"), "later", 1.0, 2.0)]
    )
    kept, rejected, _ = apply(table, decisions, "stage")
    assert kept["id"].to_pylist() == ["id001"]
    assert [(row["id"], row["rule"], row["value"], row["threshold"]) for row in rejected.to_pylist()] == [
        ("id000", "late", 5.0, 4.0),
        ("id002", "late", 5.0, 4.0),
    ]
    first = rejected.to_pylist()[0]
    assert (first["bytes"], first["excerpt"], first["origin"], first["stage"]) == (11, "text é one", "file:0", "stage")


def test_edits_replace_spans_and_record_bytes():
    table = documents(["mail ä@b.c or d@e.f now", "clean", "x@y.z"])
    start, end = pa.array([14, 5, 0]), pa.array([19, 10, 5])
    decisions = replacements(ids("id000", "id000", "id002"), "email", start, end, "<EMAIL>")
    kept, rejected, edits = apply(table, decisions, "pii")
    assert kept["text"].to_pylist() == ["mail <EMAIL> or <EMAIL> now", "clean", "<EMAIL>"]
    assert kept.schema == table.schema
    assert rejected.num_rows == 0
    rows = edits.to_pylist()
    assert [(row["id"], row["span"], row["bytes"]) for row in rows] == [
        ("id000", {"start": 5, "end": 10}, -1),  # "ä@b.c" has 6 bytes, "<EMAIL>" 7
        ("id000", {"start": 14, "end": 19}, -2),
        ("id002", {"start": 0, "end": 5}, -2),
    ]
    assert {(row["source"], row["stage"], row["rule"]) for row in rows} == {("corpus", "pii", "email")}


def test_a_rejected_document_is_not_edited():
    decisions = pa.concat_tables(
        [replacements(ids("id000"), "cut", pa.array([0]), pa.array([1])), rejections(ids("id000"), "bad")]
    )
    kept, rejected, edits = apply(documents(["abc"]), decisions, "stage")
    assert (kept.num_rows, rejected["bytes"].to_pylist(), edits.num_rows) == (0, [3], 0)


def test_tags_go_into_the_metadata_and_change_no_text():
    table = documents(["a", "b", "c"]).set_column(
        5, DOCUMENTS.field("metadata"), pa.array(['{"url": "x", "quality": 1}', "{}", "{}"])
    )
    decisions = pa.concat_tables(
        [
            tags(table["id"], "quality", np.array([0.25, 0.5, 0.75])),
            tags(table["id"], "language", pa.array(["de", None, "en"])),
            tags(ids("id001"), "bucket", "head"),
            tags(ids("id002"), "level", 3),
            rejections(ids("id002"), "bad"),
        ]
    )
    kept, rejected, edits = apply(table, decisions, "stage")
    found = [json.loads(text) for text in kept["metadata"].to_pylist()]
    assert found == [{"url": "x", "quality": 0.25, "language": "de"}, {"quality": 0.5, "bucket": "head"}]
    assert (kept["text"].to_pylist(), rejected["id"].to_pylist(), edits.num_rows) == (["a", "b"], ["id002"], 0)
    assert counts.of_tags(counts.shown_tags(kept, decisions)) == {
        "corpus": {
            "quality": {"0.2": {"documents": 1}, "0.5": {"documents": 1}},
            "language": {"de": {"documents": 1}},
            "bucket": {"head": {"documents": 1}},
        }
    }


@pytest.mark.parametrize("start, end", [([0, 2], [3, 4]), ([2], [9]), ([3], [2]), ([-1], [2])])
def test_impossible_spans_are_errors_of_the_stage(start, end):
    decisions = replacements(ids(*["id000"] * len(start)), "cut", pa.array(start), pa.array(end))
    with pytest.raises(ValueError, match="stage cut"):
        apply(documents(["abcdef"]), decisions, "cut")


def test_a_decision_about_an_unknown_document_is_an_error():
    with pytest.raises(ValueError, match="nobody"):
        apply(documents(["a"]), rejections(ids("nobody"), "rule"), "stage")


@settings(deadline=None, max_examples=60)
@given(TEXTS, st.data())
def test_bytes_add_up_whatever_is_decided(texts, data):
    table = documents(texts)
    decisions = [DECISIONS.empty_table()]
    for id_, text in zip(table["id"].to_pylist(), texts, strict=True):
        action = data.draw(st.sampled_from(["keep", "reject", "edit"]))
        if action == "reject":
            decisions.append(rejections(ids(id_), "rule"))
        if action == "edit":
            marks = sorted(data.draw(st.lists(st.integers(0, len(text)), min_size=2, max_size=2)))
            decisions.append(replacements(ids(id_), "cut", pa.array(marks[:1]), pa.array(marks[1:]), "é"))
    kept, rejected, edits = apply(table, pa.concat_tables(decisions), "stage")
    left = sum(len(text.encode()) for text in kept["text"].to_pylist())
    out = sum(rejected["bytes"].to_pylist()) + sum(edits["bytes"].to_pylist())
    assert left + out == sum(len(text.encode()) for text in texts)
    assert kept.num_rows + rejected.num_rows == len(texts)


def broken_rule(text: str, **thresholds) -> str | None:
    decisions = TextRules(**thresholds).decide(batch([text])).to_pylist()
    return decisions[0]["rule"] if decisions else None


@pytest.mark.parametrize(
    "text, rule",
    [
        (SENTENCE, None),
        ("short", "min_characters"),
        ("", "min_characters"),
        ("é" * 64, None),
        ("é" * 63, "min_characters"),
        (SENTENCE * 20, "max_characters"),
        (SENTENCE + "\0", "max_unprintable_fraction"),
        (SENTENCE + "\ufffd", "max_unprintable_fraction"),
        (SENTENCE + "\x1b", "max_unprintable_fraction"),
        (SENTENCE + "\t\r\n\f\x85", None),
        ("word " * 60, "max_line_characters"),
        ("word \n" * 60, None),
        ("12345 " * 20, "min_alphabetic_fraction"),
        ("漢字 " * 40, None),
    ],
)
def test_rules(text, rule):
    assert broken_rule(text, max_characters=1_000, max_line_characters=200) == rule


def test_rules_say_value_and_threshold():
    rows = TextRules().decide(batch(["tiny", SENTENCE, "1 " * 50])).to_pylist()
    assert [(row["id"], row["rule"], row["value"], row["threshold"]) for row in rows] == [
        ("id000", "min_characters", 4.0, 64.0),
        ("id002", "min_alphabetic_fraction", 0.0, 0.25),
    ]


@settings(deadline=None, max_examples=100)
@given(TEXTS)
def test_measures_equal_plain_python(texts):
    table = batch(texts)
    lines = [max(len(line) for line in text.split("\n")) for text in texts]
    np.testing.assert_array_equal(longest_lines(table["text"]), np.array(lines, np.int64))
    # Arrow and this interpreter can carry different versions of Unicode: compare what both know.
    known = [text for text in texts if all(unicodedata.category(c) != "Cn" and ord(c) < 0x3000 for c in text)]
    expected = [sum(unicodedata.category(c).startswith("L") for c in text) for text in known]
    np.testing.assert_array_equal(letters(batch(known)["text"]), np.array(expected, np.int64))


def test_measures_of_a_slice():
    table = batch(["skipped\nlonger line", "ab\ncde", "f"]).slice(1)
    np.testing.assert_array_equal(longest_lines(table["text"]), [3, 1])
    np.testing.assert_array_equal(letters(table["text"]), [5, 1])


@pytest.mark.parametrize(
    "settings_",
    [{"min_characters": 9, "max_characters": 8}, {"min_alphabetic_fraction": 1.5}, {"max_unprintable_fraction": -1}],
)
def test_rules_refuse_impossible_thresholds(settings_):
    with pytest.raises(UserError, match="TextRules"):
        TextRules(**settings_)


def dedup(table: pa.Table) -> dict[str, str]:
    """{id: duplicate_of} by the stage's three steps, one group a key partition."""
    stage = ExactDedup()
    evidence = pa.concat_tables(stage.key(part) for part in table.combine_chunks().to_batches(max_chunksize=3))
    evidence = evidence.sort_by([("key", "ascending"), ("id", "ascending")])
    is_even = pa.array([key[0] % 2 == 0 for key in evidence["key"].to_pylist()], pa.bool_())
    is_odd = pa.compute.invert(is_even)
    groups = pa.concat_tables([stage.group(evidence.filter(mask)) for mask in (is_even, is_odd)])
    decisions = stage.decide_all(groups).to_pylist()
    assert all(row["rule"] == "same_text" and row["value"] == 1.0 for row in decisions)
    return {row["id"]: row["duplicate_of"] for row in decisions}


def test_exact_dedup_folds_white_space_and_unicode_forms():
    texts = [
        "caf\u00e9 au lait",
        "cafe\u0301  au\n\tlait ",
        "\u2003caf\u00e9\u00a0au lait\v",
        "Caf\u00e9 au lait",
        "",
        " \n",
    ]
    assert dedup(documents(texts)) == {"id001": "id000", "id002": "id000", "id005": "id004"}


@settings(deadline=None, max_examples=60)
@given(st.lists(st.sampled_from(["a", "b", "a ", " b", "c\n", "d"]), min_size=1, max_size=12), st.randoms())
def test_exact_dedup_keeps_the_smallest_id_in_any_order(texts, random):
    names = [f"{index:02d}" for index in range(len(texts))]
    random.shuffle(names)
    first: dict[str, str] = {}
    for name, text in sorted(zip(names, texts, strict=True)):
        first.setdefault(text.strip(), name)
    expected = {
        name: first[text.strip()] for name, text in zip(names, texts, strict=True) if first[text.strip()] != name
    }
    assert dedup(documents(texts, names)) == expected


@settings(deadline=None, max_examples=60)
@given(TEXTS)
def test_normalising_twice_changes_nothing(texts):
    for text in texts:
        once = normalise(text)
        assert normalise(once) == once


def test_keys_that_end_in_zero_bytes_are_not_confused():
    evidence = pa.table([pa.array([b"\1" * 15 + b"\0", b"\1" * 16], pa.binary(16)), ids("a", "b")], names=["key", "id"])
    assert ExactDedup().group(evidence).num_rows == 0
    zeros = pa.table([pa.array([b"\0" * 16] * 2, pa.binary(16)), ids("a", "b")], names=["key", "id"])
    assert ExactDedup().group(zeros).to_pylist() == [{"id": "b", "duplicate_of": "a"}]


@pytest.mark.parametrize("stage", [TextRules(), ExactDedup()])
def test_stages_keep_the_contract(stage):
    kinds = [isinstance(stage, kind) for kind in (MapStage, KeyedStage, FittedStage)]
    assert kinds.count(True) == 1
    assert pickle.loads(pickle.dumps(stage)) == stage
    empty, full = batch([]), batch(["a", SENTENCE, SENTENCE])
    if isinstance(stage, MapStage):
        assert stage.decide(empty).schema == stage.decide(full).schema == DECISIONS
        return
    assert stage.key(empty).schema == stage.key(full).schema
    groups = [stage.group(stage.key(part).sort_by("key")) for part in (empty, full)]
    assert groups[0].schema == groups[1].schema
    assert stage.decide_all(groups[0]).schema == stage.decide_all(groups[1]).schema == DECISIONS


def test_a_map_stage_does_not_depend_on_batches():
    table = documents(["a", SENTENCE, "1 " * 99, SENTENCE * 2, "b"])
    whole = TextRules().decide(table.combine_chunks().to_batches()[0])
    parts = pa.concat_tables(TextRules().decide(part) for part in table.to_batches(max_chunksize=1))
    order = [("id", "ascending"), ("rule", "ascending")]
    assert whole.sort_by(order).equals(parts.sort_by(order))


def test_split_is_stable_near_its_fraction_and_nested():
    groups = [f"group {index}" for index in range(20_000)]
    small = {group for group in groups if split_of(group, 0.05) == "validation"}
    large = {group for group in groups if split_of(group, 0.10) == "validation"}
    assert abs(len(small) / len(groups) - 0.05) < 0.005
    assert small < large
    assert {split_of(group, 0.0) for group in groups} == {"train"}
    assert {split_of(group, 1.0) for group in groups} == {"validation"}
    assert [split_of(f"group {index}", 0.3) for index in range(6)] == GOLDEN_SPLITS


# A change here moves documents between the train and validation splits of every corpus made before.
GOLDEN_SPLITS = ["train", "train", "train", "validation", "train", "validation"]


def test_ids_and_shards_are_stable():
    assert document_id("web", "a.jsonl:0") == "2a74e4843b867042d20cc13b3c9c2a28"
    assert document_id("web", "a.jsonl:0") != document_id("books", "a.jsonl:0")
    assert [shard_of(name, 7) for name in ("a", "b", "é")] == [1, 4, 6]
