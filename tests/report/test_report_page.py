"""The report as a page: whole, self-contained, safe with hostile text, honest about what is missing."""

import copy
import json
import re
from html.parser import HTMLParser

import pytest
import toy_run

from pretrain.core.errors import RunError
from pretrain.report.html import SECTIONS, write_report

HOSTILE = "<script>alert(1)</script>\"'><img src=x onerror=alert(1)>&lt;\x00\x1b[31m\ud800\u202e"
VOID = {"meta", "br", "img", "link", "input"}


class Page(HTMLParser):
    """Reads a page strictly: every element that is opened is closed, in order."""

    def __init__(self, text: str):
        super().__init__(convert_charrefs=True)
        self.tags, self.attributes, self.words, self._open = [], [], [], []
        self.feed(text)
        self.close()
        assert self._open == []
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += [(tag, name, value) for name, value in attributes]
        if tag not in VOID:
            self._open.append(tag)

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_startendtag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += [(tag, name, value) for name, value in attributes]

    def handle_data(self, data):
        if "style" not in self._open:
            self.words.append(data)


def report(tmp_path, contents=None, config=toy_run.CONFIG) -> str:
    workdir = toy_run.write(tmp_path / "my run", toy_run.files() if contents is None else contents)
    path = write_report(workdir, config)
    assert str(path) == str(workdir / "report.html")
    return (workdir / "report.html").read_text()


def test_a_finished_run_is_all_there(tmp_path):
    text = Page(report(tmp_path)).text
    for shown in (
        "my run",
        "1.750 bits per byte of held-out text; the best baseline, xz, needs 2.125",
        "40 k tokens trained on, in 40 steps",
        "20 s of training at 2,000 tokens a second",
        "3 files of 1.20 kB held 10 documents; 7 were kept, of which 1 (40 bytes) are held out",
        "Files that no reader knows were left out: 4 .pdf.",
        "books 10 7 1 kB 640 bytes 300 bytes 60 bytes 64.0 %",
        "rules max_characters 2 200 bytes 20.0 % rules min_characters 1 100 bytes 10.0 %",
        "rules boilerplate 5 60 bytes 6.0 %",
        "a.txt · value 9, threshold 64 too short",
        "b.txt · same as 1 (empty)",
        "sentencepiece with 8,192 entries, fingerprint abcdef",
        "books 6 150 100 % 600 bytes 4",
        "At step 40, after 40,000 tokens: loss 2 nats a token; best validation loss 2.250 at step 40.",
        "this model 1.750 xz 2.125 gzip 2.250 unigram 4.500",
        "60.0 % of 2 min were training that counts; the run was started 2 times and did 7 steps again.",
        "training that counts 60.0 % compiling 10.0 %",
        "starting and restarting 15.0 % steps done again 5.0 %",
        "1 crash restart process 0, exit_code -9 20",
        "2 hang seconds 61.5",
        "a <long> path",
        "def f(x): return x",
        "TRAIN_STEPS = 40",
        "TPU v5e \u00d7 8 (tpu), 2 process(es)",
        "flax not installed",
        "c0ffee, with changes",
    ):
        assert shown in text, shown


def test_it_needs_nothing_but_itself(tmp_path):
    page = report(tmp_path)
    parsed = Page(page)
    assert not {"script", "link", "img", "iframe", "object", "base", "form"} & set(parsed.tags)
    for tag, name, value in parsed.attributes:
        assert not name.startswith("on"), (tag, name)
        if name in ("src", "href", "xlink:href", "action"):
            assert value.startswith("#"), (tag, name, value)
    assert "http" not in re.sub(r'<meta http-equiv="Content-Security-Policy"', "", page)
    assert not re.search(r"url\((?!#)|@import", page)
    assert ("meta", "content", "default-src 'none'; style-src 'unsafe-inline'") in parsed.attributes


def test_ids_are_unique_and_every_reference_leads_somewhere(tmp_path):
    page = report(tmp_path)
    ids = re.findall(r'\bid="([^"]*)"', page)
    assert len(ids) == len(set(ids)) > len(SECTIONS)
    assert set(re.findall(r'href="#([^"]*)"', page)) | set(re.findall(r"url\(#([^)]*)\)", page)) <= set(ids)


def hostile(value):
    """The same value with every text and every name of a source, rule, ... replaced by a hostile one."""
    if isinstance(value, str):
        return HOSTILE
    if isinstance(value, list):
        return [hostile(item) for item in value]
    if isinstance(value, dict):
        return {key: hostile(item) for key, item in value.items()}
    return value


def test_no_text_can_break_out(tmp_path):
    contents = {name: hostile(value) for name, value in toy_run.files().items() if name != "metrics.jsonl"}
    sheet, cache = contents["corpus/datasheet.json"], contents["cache/complete.json"]
    source = sheet["sources"].pop("books")
    source["stages"][1]["rejected"] = {HOSTILE: {"documents": 3, "bytes": 300}}
    sheet["sources"][HOSTILE] = source
    sheet["input"]["ignored_files"] = {HOSTILE: 1}
    cache["sources"][HOSTILE] = cache["sources"].pop("books")
    contents["evaluation.json"]["baselines"] = {HOSTILE: 2.0}
    contents["environment.json"]["packages"] = {HOSTILE: HOSTILE}
    contents["environment.json"]["devices"] = {HOSTILE: 8}
    page = report(tmp_path, contents | {"metrics.jsonl": toy_run.metrics()}, config=HOSTILE)
    parsed = Page(page)
    assert not {"script", "img"} & set(parsed.tags)
    assert not [name for _, name, _ in parsed.attributes if name.startswith("on")]
    shown = HOSTILE.replace("\x00", "\u2400").replace("\x1b", "\u241b").replace("\ud800", "?")
    assert parsed.text.count(shown) >= 15


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("corpus/datasheet.json", "Not curated yet: run pretrain curate ."),
        ("cache/complete.json", "Not tokenized yet: run pretrain cache ."),
        ("metrics.jsonl", "Not trained yet: run pretrain train ."),
        ("evaluation.json", "Not evaluated yet: run pretrain evaluate ."),
        ("samples.jsonl", "No samples of the configured prompts yet: run pretrain run ."),
        ("environment.json", "Not recorded: training does that when it starts: run pretrain train ."),
    ],
)
def test_what_is_missing_is_said_and_the_rest_is_there(tmp_path, name, said):
    contents = toy_run.files()
    everything = Page(report(tmp_path / "whole", contents)).text
    assert said not in everything
    del contents[name]
    text = Page(report(tmp_path / "part", contents)).text
    assert said in text
    assert text.count(": run pretrain") == (2 if name == "corpus/datasheet.json" else 1)


def test_a_run_that_has_not_begun(tmp_path):
    (tmp_path / "my run").mkdir()
    assert Page(report(tmp_path, {})).text.count(": run pretrain") == len(SECTIONS) - 1


def test_equal_results_give_equal_bytes(tmp_path):
    assert report(tmp_path / "one") == report(tmp_path / "two")


def test_a_second_report_takes_the_place_of_the_first(tmp_path):
    first = report(tmp_path)
    contents = toy_run.files()
    contents["evaluation.json"]["bits_per_byte"] = 1.25
    second = report(tmp_path, contents)
    assert first != second and "1.250" in second


@pytest.mark.parametrize("name", ["corpus/datasheet.json", "cache/complete.json", "evaluation.json", "samples.jsonl"])
def test_a_damaged_file_is_named(tmp_path, name):
    workdir = toy_run.write(tmp_path, toy_run.files())
    (workdir / name).write_text('{"half": ')
    with pytest.raises(RunError, match=name.replace(".", r"\.")):
        write_report(workdir, "")


def test_a_last_line_of_metrics_that_a_crash_cut_off_is_left_out(tmp_path):
    workdir = toy_run.write(tmp_path, toy_run.files())
    whole = (workdir / "metrics.jsonl").read_text()
    (workdir / "metrics.jsonl").write_text(whole + '{"step": 50, "lo')
    write_report(workdir, "")
    assert "At step 40" in (workdir / "report.html").read_text()


def test_a_long_run_stays_below_a_megabyte(tmp_path):
    contents = toy_run.files()
    contents["metrics.jsonl"] = toy_run.metrics(20_000, mfu=0.4)
    contents["samples.jsonl"] = [{"prompt": "p", "text": "word " * 10_000}] * 100
    sheet = contents["corpus/datasheet.json"]
    sheet["sources"] = {f"source {number}": toy_run.SOURCE for number in range(500)}
    contents["cache/complete.json"]["sources"] = {
        f"source {number}": toy_run.CACHE["sources"]["books"] for number in range(500)
    }
    page = report(tmp_path, contents)
    assert len(page.encode()) < 1_000_000
    text = Page(page).text
    assert "70 more are in samples.jsonl" in text
    assert "460 more 4,600 3,220" in text and "460 more 2,760 69,000" in text


def test_steps_without_a_finite_loss_are_told(tmp_path):
    contents = toy_run.files()
    for row in contents["metrics.jsonl"][2:]:
        row["loss"] = None
        row.pop("validation_loss", None)
    text = Page(report(tmp_path, contents)).text
    assert "not a finite number at 2 of the logged steps, first at step 30" in text
    assert "At step 40, after 40,000 tokens; best validation loss 4.500 at step 20." in text


def test_nothing_dropped(tmp_path):
    contents = toy_run.files()
    source = copy.deepcopy(toy_run.SOURCE)
    source["stages"] = source["stages"][:1]
    contents["corpus/datasheet.json"]["sources"] = {"books": source}
    assert "Nothing was dropped." in Page(report(tmp_path, contents)).text


def test_examples_are_few(tmp_path):
    contents = toy_run.files()
    example = toy_run.SOURCE["examples"]["dropped"][0]
    source = copy.deepcopy(toy_run.SOURCE)
    source["examples"]["dropped"] = [example | {"origin": f"file {number}"} for number in range(9)]
    contents["corpus/datasheet.json"]["sources"] = {"books": source, "web": source}
    assert (
        len(re.findall(r"file \d · value", json.dumps(Page(report(tmp_path, contents)).text, ensure_ascii=False))) == 3
    )


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("evaluation.json", lambda found: found.pop("step")),
        ("evaluation.json", lambda found: found["baselines"].update(xz=[2.0])),
        ("evaluation.json", lambda found: found["baselines"].clear()),
        ("samples.jsonl", lambda found: found[0].pop("prompt")),
        ("metrics.jsonl", lambda found: found[1].update(tokens_per_second=0)),
        ("metrics.jsonl", lambda found: found[1].update(loss="low")),
        ("goodput.json", lambda found: found["seconds"].update(productive=1e300)),
        ("goodput.json", lambda found: found["seconds"].pop("lost")),
        ("environment.json", lambda found: found.update(git={"commit": None})),
    ],
)
def test_a_changed_value_is_named(tmp_path, name, change):
    contents = toy_run.files()
    change(contents[name])
    workdir = toy_run.write(tmp_path, contents)
    with pytest.raises(RunError, match=name.replace(".", r"\.") + " is not what this program wrote"):
        write_report(workdir, "")
