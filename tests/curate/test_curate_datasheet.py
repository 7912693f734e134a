"""The datasheet: complete, escaped, self-contained, and the same for the same numbers."""

import html.parser
import json
import pathlib
import re

import pyarrow as pa
import pytest
import toy_stages
from corpora import SENTENCE, documents, records, write_jsonl

from pretrain.curate import counts, datasheet, datasheet_page
from pretrain.curate.mixture import MixturePlan
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
    assert web["stages"][1]["rejected"] == {"min_characters": {"documents": 1, "bytes": 3, "tokens": 1}}
    assert web["stages"][2]["rejected"]["same_text"]["documents"] == 1
    assert web["train"]["documents"] + web["validation"]["documents"] == 31
    assert sum(web["lengths"]["read"].values()) == 33
    assert sum(web["lengths"]["kept"].values()) == 31
    assert made["input"]["ignored_files"] == {".png": 1}
    assert made["recipe"]["stages"][0]["stage"] == "TextRules"
    assert made["config"] == "Recipe.input = '<mine>'"
    assert set(made["versions"]) == {"python", "pretrain", "pyarrow", "numpy", "xxhash"}
    assert web["duplicates"] == {"number": 1, "rate": 1 / 33}
    assert made["tokens"] == "estimated from bytes, 4 of them a token"
    assert made["total"]["kept"]["tokens"] == round(web["kept"]["bytes"] / 4)


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
    assert [line.count("|") for line in rows] == [5] * (len(rows) - 3) + [6] * 3  # the funnel, then the mixture


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


def test_languages_licences_and_domains_come_from_the_metadata():
    metadata = [
        '{"language": "de", "url": "https://www.x.org/a?b"}',
        '{"license": "MIT", "language": "de", "url": "http://y.org:80"}',
        "{}",
    ]
    table = documents(["a", "b", "c"]).set_column(5, "metadata", pa.array(metadata))
    table = table.set_column(4, "origin", pa.array(["f:1", "f:2", "https://z.net/index.html"]))
    assert counts.of_metadata(table, "language") == {"corpus": {"de": 2}}
    assert counts.of_metadata(table, "licen[cs]e") == {"corpus": {"MIT": 1}}
    assert counts.of_domains(table) == {"corpus": {"x.org": 1, "y.org": 1, "z.net": 1}}


def test_rare_values_are_added_up():
    counted = {f"{index:03d}": 100 - index for index in range(50)}
    top = datasheet._top(counted)
    assert list(top)[:2] == ["000", "001"]
    assert len(top) == datasheet.TOP + 1
    assert sum(top.values()) == sum(counted.values())
    assert datasheet._top({}) == {}


def test_the_funnel_picture_narrows_with_what_is_left(sheet):
    picture = datasheet_page.funnel_picture(sheet[0]["sources"]["web"])
    widths = [float(width) for width in re.findall(r"<rect x=\S+ y=\S+ width=(\S+)", picture)]
    sizes = [stage["out"]["bytes"] for stage in sheet[0]["sources"]["web"]["stages"]]
    assert widths == sorted(widths, reverse=True) and len(widths) == 4
    assert widths[-1] / widths[0] == pytest.approx(sizes[-1] / sizes[0], abs=0.01)
    assert "after exact_dedup" in picture and "31 documents" in picture


def test_numeric_tags_become_histograms_and_others_tables(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(pathlib.Path(__file__).parent)
    write_jsonl(tmp_path / "a.jsonl", records(30))
    curate(Recipe(input=str(tmp_path / "a.jsonl"), stages=(toy_stages.TagLength(),)), tmp_path / "out", workers=1)
    text = (tmp_path / "out" / "datasheet.html").read_text()
    assert "<h3>length, by tag_length</h3><svg" in text
    assert "<h3>Parity, by tag_length</h3><table>" in text


@pytest.mark.parametrize(
    "number, shown", [(0, "0 B"), (999, "999 B"), (1536, "1.54 kB"), (2_500_000, "2.5 MB"), (10**16, "1e+04 TB")]
)
def test_bytes_for_people(number, shown):
    assert datasheet_page.shown_bytes(number) == shown


def test_another_mixture_rewrites_the_datasheet_of_a_finished_corpus(sheet, tmp_path):
    made, output = sheet
    assert made["mixture"]["shares"][0]["epochs"] == 1.0
    again = Recipe(input={"web": str(tmp_path / "in")}, mixture=MixturePlan(tokens=100_000))
    changed = curate(again, output, workers=1)
    assert changed["mixture"]["shares"][0]["seen"] == 100_000
    assert "web will be seen" in changed["mixture"]["warnings"][0]
    assert changed == json.loads((output / "datasheet.json").read_text())
    assert "Warning: web will be seen" in (output / "datasheet.md").read_text()
    assert changed["config"] == made["config"] and changed["sources"].keys() == made["sources"].keys()
