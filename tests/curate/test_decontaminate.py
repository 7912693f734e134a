"""Decontamination: leaks in any dress are found, clean text is not, drop and cut, the report, and benchmark files."""

import json
import random
import re

import numpy as np
import pyarrow as pa
import pytest
from corpora import batch, documents, output_table, write_jsonl
from hypothesis import given, settings
from hypothesis import strategies as st

from pretrain.core.errors import RunError, UserError
from pretrain.curate import ngram_index
from pretrain.curate.benchmark_files import BenchmarkFields, Item, load_items
from pretrain.curate.decontaminate import Decontaminate
from pretrain.curate.ngram_index import NgramIndex, letter_positions, letters_of
from pretrain.curate.recipe import Recipe, curate
from pretrain.curate.simplify import simplify
from pretrain.curate.stages import FittedStage, KeyedStage, apply

QUESTION = (
    "A farmer keeps 17 brown hens and twice as many white ones; each hen lays five eggs a week. "
    "How many eggs does the farmer collect in a fortnight, if foxes never come?"
)
FILLER = "Nothing in this sentence has to do with poultry, and it goes on for a while about the weather. "
ANY_TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=60)


@pytest.fixture
def bench(tmp_path, monkeypatch):
    """A function that makes the fitted stage for some items (id: text) and settings."""
    monkeypatch.chdir(tmp_path)

    def make(items: dict[str, str], **configured) -> KeyedStage:
        write_jsonl(tmp_path / "bench.jsonl", [{"id": id_, "text": text} for id_, text in items.items()])
        return Decontaminate("bench.jsonl", **configured).fit()

    return make


def groups_of(stage: KeyedStage, table: pa.Table, batch_size: int = 3) -> pa.Table:
    evidence = pa.concat_tables(stage.key(part) for part in table.combine_chunks().to_batches(max_chunksize=batch_size))
    return stage.group(evidence.sort_by([("key", "ascending"), ("id", "ascending")]))


def decide(stage: KeyedStage, texts: list[str]) -> list[dict]:
    return (
        stage.decide_all(groups_of(stage, documents(texts)))
        .sort_by([("id", "ascending"), ("start", "ascending")])
        .to_pylist()
    )


DRESSES = {
    "verbatim": lambda text: text,
    "upper": str.upper,
    "no punctuation": lambda text: re.sub(r"[^\w\s]", "", text),
    "typographic": lambda text: "\u201c" + text.replace(" ", "\u00a0").replace(".", "\u2026") + "\u201d",
    "lines": lambda text: text.replace(" ", "\n"),
    "hyphenated": lambda text: re.sub(r"(\w{3})(\w)", r"\1-\n\2", text),
    "spaced out": lambda text: " ".join(text),
    "no spaces": lambda text: text.replace(" ", ""),
    "accents": lambda text: text.replace("e", "e\u0301"),
    "full width": lambda text: text.translate({code: code + 0xFEE0 for code in range(33, 127)}),
}


@pytest.mark.parametrize("dress", DRESSES)
def test_a_leak_is_found_in_any_dress(bench, dress):
    stage = bench({"q1": QUESTION})
    decisions = decide(stage, [FILLER, f"{FILLER}\n{DRESSES[dress](QUESTION)}\n{FILLER}", FILLER * 2])
    assert [(row["id"], row["rule"], row["value"], row["duplicate_of"]) for row in decisions] == [
        ("id001", "leaked_item", 1.0, "bench/q1")
    ]


def test_thirteen_words_in_a_row_are_a_leak_and_twelve_are_not(bench):
    stage = bench({"q1": QUESTION})
    words = QUESTION.split()
    texts = [" ".join([FILLER, *words[3 : 3 + number], FILLER]) for number in (12, 13, 14)]
    ngrams = len(words) - 12
    assert [(row["id"], row["value"]) for row in decide(stage, texts)] == [
        ("id001", pytest.approx(1 / ngrams)),
        ("id002", pytest.approx(2 / ngrams)),
    ]


def test_short_items_count_whole_and_the_shortest_not_at_all(bench):
    eight = "seven brown foxes jumped over eleven lazy hounds"
    stage = bench({"eight": eight, "seven": eight.rsplit(" ", 1)[0] + "s"})
    texts = [eight, eight.replace("lazy ", ""), eight.rsplit(" ", 1)[0] + "s"]
    assert [(row["id"], row["duplicate_of"]) for row in decide(stage, texts)] == [("id000", "bench/eight")]
    report = json.loads(stage.report(groups_of(stage, documents(texts)))["decontamination_report.json"])
    assert report["benchmarks"] == {"bench": {"items": 2, "too_short": 1, "leaked": 1}}


def test_frequent_ngrams_are_ignored(bench):
    stage = bench(
        {"q1": QUESTION, "q2": QUESTION.replace("fortnight", "fortnight of a long and happy year on the farm")}
    )
    assert len(decide(stage, [QUESTION + QUESTION] * 10)) == 10
    assert decide(stage, [QUESTION] * 11) == []
    report = json.loads(stage.report(groups_of(stage, documents([QUESTION] * 11)))["decontamination_report.json"])
    assert report["items"] == []
    assert report["ignored_ngrams_total"] == len(QUESTION.split()) - 12
    assert report["ignored_ngrams"][0]["documents"] == 11
    assert report["ignored_ngrams"][0]["items"][0] == "bench/q1"


def test_the_ratio_variant_asks_for_a_share_of_the_item(bench):
    stage = bench({"q1": QUESTION}, ngram=8, min_ratio=0.7)
    words = QUESTION.split()
    most, half = " ".join(words[: int(0.9 * len(words))]), " ".join(words[: len(words) // 2])
    decisions = decide(stage, [half, most])
    assert [row["id"] for row in decisions] == ["id001"]
    assert decisions[0]["threshold"] == 0.7 < decisions[0]["value"] < 1


def test_cut_takes_the_leak_and_its_surroundings_out(bench):
    stage = bench({"q1": QUESTION}, action="cut", margin=50)
    before, after = "".join(f"b{n} " for n in range(100)), "".join(f"a{n} " for n in range(100))
    texts = [before + QUESTION + after, QUESTION, before + QUESTION + "between" + QUESTION + after, before]
    decisions = stage.decide_all(groups_of(stage, documents(texts)))
    kept, rejected, edits = apply(documents(texts), decisions, "decontaminate")
    expected = before[:-50] + after[49:]  # the question mark ends the text, but is no letter: the span stops before it
    assert kept["text"].to_pylist() == [expected, expected, before]
    assert rejected["id"].to_pylist() == ["id001"]  # nothing would be left
    assert edits.num_rows == 2
    left = sum(len(text) for text in kept["text"].to_pylist())
    assert left + sum(edits["bytes"].to_pylist()) + sum(rejected["bytes"].to_pylist()) == sum(map(len, texts))


def test_the_report_says_where_how_much_and_what_stands_around(bench):
    stage = bench({"q1": QUESTION, "clean": FILLER + "But this is something else entirely and never seen again."})
    half = " ".join(QUESTION.split()[:20])
    files = stage.report(groups_of(stage, documents([f"Solve. {half} -- end", f"Look: {QUESTION}", "nothing"])))
    sheet = json.loads(files["decontamination_report.json"])
    (item,) = sheet["items"]
    assert (item["item"], item["ngrams"], item["found_in"]) == ("bench/q1", len(QUESTION.split()) - 12, 2)
    assert [(row["id"], row["share"] == 1.0) for row in item["documents"]] == [("id001", True), ("id000", False)]
    assert item["documents"][0]["span"] == [6, 6 + len(QUESTION) - 1]
    assert item["documents"][1]["text"].startswith("Solve. A farmer")
    assert sheet["benchmarks"] == {"bench": {"items": 2, "too_short": 0, "leaked": 1}}
    assert "## bench/q1" in files["decontamination_report.md"]


def test_the_whole_run_writes_the_report_whatever_the_shards(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_jsonl(tmp_path / "bench" / "quiz.jsonl.gz", [{"id": "q1", "text": QUESTION}])
    rows = [{"id": f"d{number}", "text": f"{number} {FILLER}"} for number in range(40)]
    rows[7]["text"] += QUESTION
    write_jsonl(tmp_path / "corpus.jsonl", rows)
    reports = []
    for shards in (1, 5):
        stage = Decontaminate("bench/*")
        curate(Recipe(input="corpus.jsonl", stages=(stage,), shards=shards), tmp_path / f"out{shards}", workers=1)
        assert [row["id"] for row in output_table(tmp_path / f"out{shards}", "rejected")] == ["d7"]
        reports.append((tmp_path / f"out{shards}" / "decontamination_report.json").read_text())
    assert reports[0] == reports[1]
    assert json.loads(reports[0])["items"][0]["item"] == "quiz/q1"
    with pytest.raises(UserError, match="no input files match"):
        curate(Recipe(input="corpus.jsonl", stages=(Decontaminate("none/*"),)), tmp_path / "out", workers=1)


def test_known_layouts(tmp_path):
    rows = {
        "mmlu": {"question": QUESTION, "choices": ["one", "two"], "answer": 1, "subject": "farming"},
        "hellaswag": {"ind": 24, "ctx": "A man sits", "endings": ["down.", "up."], "label": "0"},
        "humaneval": {"task_id": "HumanEval/0", "prompt": "def f():\n", "canonical_solution": "    return 1\n"},
        "gsm8k": {"question": "How many?", "answer": "#### 4"},
        "own": {"id": 5, "text": "words"},
    }
    for name, row in rows.items():
        write_jsonl(tmp_path / f"{name}.jsonl", [row])
    items = load_items(str(tmp_path), BenchmarkFields())
    assert items == [
        Item("gsm8k/1", ("How many?", "How many?\n#### 4")),
        Item("hellaswag/24", ("A man sits down.", "A man sits up.")),
        Item("humaneval/HumanEval/0", ("def f():\n    return 1\n",)),
        Item("mmlu/1", (QUESTION, f"{QUESTION}\none\ntwo")),
        Item("own/5", ("words",)),
    ]
    fields = BenchmarkFields(id="subject", text=["choices", "question"])
    assert load_items(str(tmp_path / "mmlu.jsonl"), fields) == [Item("mmlu/farming", (f"one\ntwo\n{QUESTION}",))]
    with pytest.raises(UserError, match=r"own.jsonl, line 1 has none of the fields question\+answer, but id, text"):
        load_items(str(tmp_path / "own.jsonl"), BenchmarkFields(layout="gsm8k"))


@pytest.mark.parametrize(
    "content, problem",
    [
        (b'{"id": 1, "text": "a"}\n{"id"', "line 2: not JSON"),
        (b"[1]\n", "line 1: not a JSON object"),
        (b'{"id": 1, "body": "a"}\n', "none of the fields text"),
        (b'{"id": 1, "text": 7}\n', "must hold text"),
        (b'{"question": null, "choices": ["a"]}\n', "must hold text"),
        (b'{"ctx": "a", "endings": 3}\n', "must hold text"),
        (b"\n", "no records"),
    ],
)
def test_a_benchmark_that_cannot_be_read_ends_the_run(tmp_path, content, problem):
    (tmp_path / "bench.jsonl").write_bytes(content)
    with pytest.raises(UserError, match=problem):
        Decontaminate(str(tmp_path / "bench.jsonl")).fit()


def test_benchmarks_that_change_during_a_run_end_it(bench, tmp_path):
    stage = bench({"q1": QUESTION})
    write_jsonl(tmp_path / "bench.jsonl", [{"id": "q1", "text": QUESTION + " And what of the ducks?"}])
    with pytest.raises(RunError, match="changed"):
        stage.key(batch([QUESTION]))


@pytest.mark.parametrize(
    "wrong",
    [{"min_words": 14}, {"min_words": 0}, {"action": "mask"}, {"min_ratio": 2}, {"max_documents": 0}, {"margin": -1}],
)
def test_impossible_settings_are_refused(wrong):
    with pytest.raises(UserError, match="Decontaminate"):
        Decontaminate("bench.jsonl", **wrong)
    with pytest.raises(UserError, match="layout"):
        BenchmarkFields(layout="trivia")


def test_the_contract(bench):
    stage = bench({"q1": QUESTION})
    assert isinstance(Decontaminate("bench.jsonl"), FittedStage)
    assert isinstance(stage, KeyedStage)
    empty, full = stage.group(stage.key(batch([]))), groups_of(stage, documents([QUESTION]))
    assert empty.schema == full.schema
    assert stage.decide_all(empty).schema == stage.decide_all(full).schema
    assert stage.decide_all(empty).num_rows == 0
    assert json.loads(stage.report(empty)["decontamination_report.json"])["items"] == []


WORDS = st.lists(st.sampled_from(["a", "b", "caf\u00e9", "D", "e1", "\u6f22\u5b57", "longer-word"]), max_size=40)


@settings(deadline=None, max_examples=80)
@given(WORDS, st.lists(WORDS, max_size=4), st.integers(1, 5), st.sampled_from([8, 24, 1 << 19]))
def test_matches_equal_a_plain_search(item, texts, ngram, piece):
    index = NgramIndex([Item("x/1", (" ".join(item),))], ngram, 1)
    split = simplify([" ".join(item)])[0].split()
    size = min(ngram, len(split))
    wanted = {b"".join(split[at : at + size]) for at in range(len(split) - size + 1)} if split else set()
    wanted = {found for found in wanted if len(found) >= ngram_index.ANCHOR}
    letters = letters_of([" ".join(text) for text in [*texts, item]])
    expected = {
        (number, at, at + len(found))
        for number, text in enumerate(letters)
        for found in wanted
        for at in range(len(text))
        if text.startswith(found, at)
    }
    before = ngram_index.PIECE_BYTES
    try:
        ngram_index.PIECE_BYTES = piece
        matches = index.find(letters)
    finally:
        ngram_index.PIECE_BYTES = before
    found = list(zip(matches.text.tolist(), matches.start.tolist(), matches.end.tolist(), strict=True))
    assert sorted(found) == sorted(expected)
    assert found == sorted(found, key=lambda row: row[:2])


@settings(deadline=None, max_examples=200)
@given(ANY_TEXT)
def test_letter_positions_point_at_the_characters_that_letters_come_from(text):
    letters, positions = letters_of([text])[0], letter_positions(text)
    assert len(letters) == len(positions)
    assert (np.diff(positions) >= 0).all()
    for character in np.unique(positions):
        own = bytes(np.frombuffer(letters, np.uint8)[positions == character])
        assert own == letters_of([text[character]])[0]


@settings(deadline=None, max_examples=60)
@given(st.randoms(use_true_random=False), st.lists(ANY_TEXT, max_size=3))
def test_a_planted_leak_is_always_found(tmp_path_factory, rng: random.Random, around):
    path = tmp_path_factory.mktemp("bench") / "b.jsonl"
    write_jsonl(path, [{"id": "q", "text": QUESTION}])
    text = "".join(
        rng.choice([str.upper, str.lower])(c) + rng.choice(["", "", " ", "\n", "-", "\u2014"]) for c in QUESTION
    )
    decisions = decide(Decontaminate(str(path)).fit(), [" ".join([*around, text, *around]), " ".join(around)])
    assert [row["id"] for row in decisions] == ["id000"]
