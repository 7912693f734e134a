"""The datasheet: complete, escaped, self-contained, and the same for the same numbers."""

import html.parser
import json
import re

import pytest
from corpora import SENTENCE, records, write_jsonl

from pretrain.curate import datasheet
from pretrain.curate.recipe import Recipe, curate

NASTY = "<script>alert('x')</script> & `ticks` " + SENTENCE


@pytest.fixture
def sheet(tmp_path) -> tuple:
    rows = [
        *records(30),
        {"id": "!nasty", "text": NASTY},
        {"id": "tiny", "text": "<b>"},
        {"text": records(1)[0]["text"]},
    ]
    write_jsonl(tmp_path / "in" / "a.jsonl", rows)
    (tmp_path / "in" / "photo.png").write_bytes(b"x")
    wanted = Recipe(input={"web": str(tmp_path / "in")})
    made = curate(wanted, tmp_path / "out", workers=1, config_text="Recipe.input = '<mine>'")
    return made, tmp_path / "out"


class TagBalance(html.parser.HTMLParser):
    """Collects tags and whatever would load something from elsewhere."""

    def __init__(self):
        super().__init__()
        self.tags, self.links = set(), []

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)
        self.links += [value for name, value in attributes if name in ("src", "href")]


def test_json_holds_everything(sheet):
    made, output = sheet
    assert made == json.loads((output / "datasheet.json").read_text())
    web = made["sources"]["web"]
    assert web["read"]["documents"] == 33
    assert web["kept"]["documents"] == 31
    assert [stage["stage"] for stage in web["stages"]] == ["read", "text_rules", "exact_dedup"]
    assert web["stages"][1]["rejected"] == {"min_characters": {"documents": 1, "bytes": 3}}
    assert web["stages"][2]["rejected"]["same_text"]["documents"] == 1
    assert web["train"]["documents"] + web["validation"]["documents"] == 31
    assert sum(web["lengths"]["read"].values()) == 33
    assert sum(web["lengths"]["kept"].values()) == 31
    assert made["input"]["ignored_files"] == {".png": 1}
    assert made["recipe"]["stages"][0]["stage"] == "TextRules"
    assert made["config"] == "Recipe.input = '<mine>'"
    assert set(made["versions"]) == {"python", "pretrain", "pyarrow", "xxhash"}


def test_examples_of_kept_and_dropped(sheet):
    examples = sheet[0]["sources"]["web"]["examples"]
    assert len(examples["kept"]) == datasheet.EXAMPLES
    assert examples["kept"][0]["excerpt"] == NASTY[:200]
    dropped = {example["rule"]: example for example in examples["dropped"]}
    assert set(dropped) == {"min_characters", "same_text"}
    assert dropped["min_characters"]["value"] == 3.0
    assert dropped["same_text"]["duplicate_of"]


def test_markdown_shows_the_funnel(sheet):
    text = (sheet[1] / "datasheet.md").read_text()
    assert "31 of 33 documents kept" in text
    assert "Files without a reader, not read: 1 .png." in text
    assert re.search(r"\| web \| less text_rules: min_characters \| 1 \| 3 \|", text)
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert {line.count("|") for line in rows} == {5}


def test_html_is_self_contained_and_escaped(sheet):
    text = (sheet[1] / "datasheet.html").read_text()
    parser = TagBalance()
    parser.feed(text)
    assert "script" not in parser.tags and "b" not in parser.tags
    assert parser.links == []
    assert "&lt;script&gt;" in text and "&lt;mine&gt;" in text
    assert "http" not in text
    assert "1 .png" in text


def test_funnel_adds_up(sheet):
    rows = {what: (documents, size) for _, what, documents, size in datasheet.funnel(sheet[0])}
    gone = [value for what, value in rows.items() if what.startswith("less")]
    for unit in (0, 1):
        assert rows["read"][unit] == rows["kept"][unit] + sum(value[unit] for value in gone)
        assert rows["kept"][unit] == rows["train"][unit] + rows["validation"][unit]


def test_no_times_and_no_machine(sheet):
    for name in ("datasheet.json", "datasheet.md", "datasheet.html"):
        text = (sheet[1] / name).read_text()
        assert not re.search(r"\b\d{1,2}:\d{2}:\d{2}\b|\b20\d\d-\d\d-\d\d\b", text)
