"""Deduplication by URL, and of lines and paragraphs across documents."""

import json
import pickle
import time

import pyarrow as pa
import pytest
from corpora import batch, documents, output_table, write_jsonl
from hypothesis import given, settings
from hypothesis import strategies as st
from keyed import applied, decide

from pretrain.core.errors import UserError
from pretrain.curate.exact_dedup import UrlDedup, normalise_url
from pretrain.curate.line_dedup import UNITS, LineDedup
from pretrain.curate.recipe import Recipe, curate
from pretrain.curate.stages import DECISIONS, KeyedStage

LICENCE = "Licensed under the terms of some licence that everybody copies.\n"
MENU = "Home | Products | About us | Contact | Imprint | Privacy policy\n"


@pytest.mark.parametrize(
    "url, same",
    [
        ("https://www.Example.org/a/", "example.org/a?"),
        ("http://example.org:80/a", "example.org/a?"),
        ("https://user@example.org:443/a#part", "example.org/a?"),
        ("https://example.org/a?utm_source=x&UTM_medium=y&fbclid=1", "example.org/a?"),
        ("  https://example.org/a\n", "example.org/a?"),
        ("https://example.org/%61", "example.org/a?"),
        ("https://example.org/caf%C3%A9", "example.org/caf%C3%A9?"),
        ("https://example.org/café", "example.org/caf%C3%A9?"),
        ("https://example.org/a?b=2&a=1", "example.org/a?a=1&b=2"),
        ("https://example.org/a?b=", "example.org/a?b="),
        ("http://example.org:8080", "example.org:8080?"),
        ("https://example.org/A", "example.org/A?"),
        ("ftp://example.org/a", ""),
        ("corpus/file.jsonl:17", ""),
        ("gs://bucket/file.jsonl:17", ""),
        ("http://[bad", ""),
        ("http://example.org:port/", ""),
        ("", ""),
        (None, ""),
        (7, ""),
    ],
)
def test_urls(url, same):
    assert normalise_url(url) == same


@settings(deadline=None, max_examples=150)
@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=30), st.sampled_from(["", "http://", "https://a.b/"]))
def test_any_url_is_normalised_once(text, beginning):
    once = normalise_url(beginning + text)
    assert normalise_url(f"https://{once}") in (once, "") or once == ""


def with_urls(urls: list[str | None], ids: list[str]) -> pa.Table:
    table = documents([f"text {number}" for number in range(len(urls))], ids)
    metadata = [json.dumps({} if url is None else {"url": url}) for url in urls]
    return table.set_column(table.schema.get_field_index("metadata"), "metadata", pa.array(metadata))


def test_one_document_of_each_url_stays():
    urls = ["https://a.org/x", "http://www.a.org/x/", None, None, "http://b.org", "https://a.org/x#top"]
    rows = decide(UrlDedup(), with_urls(urls, ["e", "b", "c", "d", "a", "f"]))
    assert [(row["id"], row["rule"], row["duplicate_of"]) for row in rows] == [
        ("e", "same_url", "b"),
        ("f", "same_url", "b"),
    ]


def test_the_origin_counts_where_it_is_a_url():
    table = documents(["a", "b", "c"])
    origins = pa.array(["https://a.org/", "http://a.org", "file.jsonl:7"])
    table = table.set_column(table.schema.get_field_index("origin"), "origin", origins)
    assert [row["id"] for row in decide(UrlDedup(), table)] == ["id001"]
    assert decide(UrlDedup(field="page"), with_urls(["http://a.org", "http://a.org"], ["a", "b"])) == []


def test_later_lines_go_and_the_first_stays():
    texts = [f"one {LICENCE}", f"{MENU}two\n{LICENCE}", f"three\n\n  {LICENCE.strip()}  \n{MENU}end", f"x\n{LICENCE}y"]
    kept, rejected, edits = applied(LineDedup(), documents(texts, ["d", "b", "c", "e"]))
    # By id: b has menu and licence first; "one Licensed …" is another line.
    assert kept["text"].to_pylist() == [texts[0], texts[1], "three\n\nend", "x\ny"]
    assert rejected.num_rows == 0
    found = {(row["id"], row["span"]["start"], row["rule"], row["bytes"]) for row in edits.to_pylist()}
    assert found == {
        ("c", 7, "repeated_line", len(LICENCE) + 4),
        ("c", 7 + len(LICENCE) + 4, "repeated_line", len(MENU)),
        ("e", 2, "repeated_line", len(LICENCE)),
    }


def test_repeats_within_a_document_go_too():
    kept, _, _ = applied(LineDedup(), documents([f"{MENU}a\n{MENU}b\n{MENU}"]))
    assert kept["text"].to_pylist() == [f"{MENU}a\nb\n"]


def test_short_lines_are_not_compared():
    texts = ["}\nshort line\n" + MENU, "}\nshort line\n" + LICENCE]
    assert decide(LineDedup(), documents(texts)) == []
    assert len(decide(LineDedup(min_characters=5), documents(texts))) == 1


def test_a_document_with_nothing_left_is_rejected():
    texts = [LICENCE + MENU, MENU + "\n \n" + LICENCE, LICENCE + "own"]
    rows = decide(LineDedup(), documents(texts))
    assert [(row["id"], row["rule"], row["value"], row["duplicate_of"]) for row in rows] == [
        ("id001", "repeated_lines", 1.0, "id000"),
        ("id002", "repeated_line", None, None),
    ]
    assert [row["id"] for row in decide(LineDedup(min_left=4), documents(texts)) if row["start"] is None] == [
        "id001",
        "id002",
    ]


def test_paragraphs():
    quote = "A paragraph of two lines that is quoted\nin more than one document.\n"
    texts = [f"{quote}\nA\n", f"B\n\n{quote}", f"B\n{quote}", f"{quote}\n\n{quote.strip()}"]
    kept, rejected, edits = applied(LineDedup(unit="paragraph"), documents(texts))
    assert kept["text"].to_pylist() == [texts[0], "B\n\n", texts[2]]
    assert rejected["id"].to_pylist() == ["id003"]
    assert edits["rule"].to_pylist() == ["repeated_paragraph"]


@pytest.mark.parametrize("unit", UNITS)
def test_units_of_a_text_of_blanks_are_found_in_linear_time(unit):
    started = time.perf_counter()
    assert list(UNITS[unit].finditer(" " * 200_000 + "\n" + "\t" * 200_000)) == []
    assert time.perf_counter() - started < 2


LINES = st.lists(st.sampled_from(["aa", "b b", " aa ", "", "  ", "ccc", "x", "\u00e9e", "e\u0301e"]), max_size=8)


@settings(deadline=None, max_examples=100)
@given(st.lists(LINES, min_size=1, max_size=6), st.randoms(use_true_random=False), st.integers(1, 4), st.integers(1, 3))
def test_lines_equal_a_plain_search(texts, random, batch_size, partitions):
    names = [f"{number:02d}" for number in range(len(texts))]
    random.shuffle(names)
    seen: set[str] = set()
    expected = {}
    for name, lines in sorted(zip(names, texts, strict=True)):
        kept = []
        for line in lines:
            plain = line.strip().replace("e\u0301", "\u00e9")
            if len(line.strip()) < 2 or plain not in seen:
                kept.append(line)
            if len(line.strip()) >= 2:
                seen.add(plain)
        if any(line.strip() for line in kept) or not any(line.strip() for line in lines):
            expected[name] = "".join(f"{line}\n" for line in kept)
    table = documents(["".join(f"{line}\n" for line in lines) for lines in texts], names)
    stage = LineDedup(min_characters=2)
    kept, rejected, _ = applied(stage, table, batch_size=batch_size, partitions=partitions)
    assert dict(zip(kept["id"].to_pylist(), kept["text"].to_pylist(), strict=True)) == expected
    assert kept.num_rows + rejected.num_rows == len(texts)


def test_a_whole_run_balances_and_does_not_depend_on_shards(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows = [
        {"id": f"d{n}", "text": f"{MENU}own {n // 2}\n{LICENCE}", "url": f"http://a.org/{n % 30}"} for n in range(40)
    ]
    write_jsonl(tmp_path / "corpus.jsonl", rows)
    found = []
    for shards in (1, 4):
        recipe = Recipe(input="corpus.jsonl", stages=(UrlDedup(), LineDedup()), shards=shards)
        curate(recipe, tmp_path / f"out{shards}", workers=1)
        found.append(
            [
                sorted(output_table(tmp_path / f"out{shards}", folder), key=lambda row: (row["id"], str(row)))
                for folder in ("documents", "rejected", "edits")
            ]
        )
    assert found[0] == found[1]
    assert {row["rule"] for row in found[0][1]} == {"same_url"}
    assert len(found[0][1]) == 10
    assert sum(row["text"].count(MENU) for row in found[0][0]) == 1


@pytest.mark.parametrize("wrong", [{"unit": "word"}, {"min_characters": 0}, {"min_left": -1}])
def test_impossible_settings_are_refused(wrong):
    with pytest.raises(UserError, match="LineDedup"):
        LineDedup(**wrong)


@pytest.mark.parametrize("stage", [UrlDedup(), LineDedup(), LineDedup(unit="paragraph", min_characters=1)])
def test_the_contract(stage):
    assert isinstance(stage, KeyedStage)
    assert pickle.loads(pickle.dumps(stage)) == stage
    empty, full = stage.key(batch([])), stage.key(batch([MENU, MENU, "\n"]))
    assert empty.schema == full.schema
    groups = [stage.group(part.sort_by([("key", "ascending"), ("id", "ascending")])) for part in (empty, full)]
    assert groups[0].schema == groups[1].schema
    assert stage.decide_all(groups[0]).schema == stage.decide_all(groups[1]).schema == DECISIONS
