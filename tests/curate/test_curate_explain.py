"""--explain and the other flags of `pretrain curate`."""

import json
import os
import pathlib
import re
import subprocess
import sys

import pytest
import toy_stages
from corpora import SENTENCE, output_table, records, write_jsonl

from pretrain.core.errors import UserError
from pretrain.curate.decontaminate import Decontaminate
from pretrain.curate.exact_dedup import ExactDedup
from pretrain.curate.explain import explain
from pretrain.curate.recipe import Recipe, curate
from pretrain.curate.rules import TextRules
from pretrain.main import main


@pytest.fixture
def output(tmp_path, monkeypatch):
    """A curated corpus with something of everything to explain."""
    monkeypatch.chdir(tmp_path)
    rows: list = [
        *records(10),
        {"id": "mail", "text": f"{SENTENCE}Write to me@x.org or you@y.org. {SENTENCE}", "url": "https://x.org/a"},
        {"id": "short", "text": "me@x.org"},
        {"id": "copy-1", "text": records(2)[1]["text"] + " "},
        {"id": "copy-2", "text": " " + records(2)[1]["text"]},
        {"id": "doc-00002", "text": SENTENCE},
        b'{"text": "cut',
    ]
    write_jsonl(tmp_path / "in.jsonl", rows)
    stages = (toy_stages.MaskMail(), toy_stages.TagLength(), TextRules(), ExactDedup())
    curate(Recipe(input="in.jsonl", stages=stages, max_unreadable=0.5), "out", workers=1)
    return tmp_path / "out"


def test_a_kept_document_with_edits_and_tags(output):
    lines = explain(output, "mail").splitlines()
    assert re.fullmatch(r"mail, source corpus, read from in.jsonl:\d+", lines[0])
    assert lines[1:3] == ["  read: passed", "  mask_mail: passed with 2 edits, 4 bytes less"]
    assert lines[3] == "    email: characters 86 to 94, 1 bytes less"
    assert lines[5:8] == ["  tag_length: passed", "  text_rules: passed", "  exact_dedup: passed"]
    assert lines[8].startswith("kept in documents/0000") and "split " in lines[8]
    assert "  url: https://x.org/a" in lines and "  parity: even" in lines
    assert lines[-1].startswith("  The quick brown fox")


def test_a_rejected_document_says_rule_value_and_threshold(output):
    story = explain(output, "short")
    assert "  mask_mail: passed with 1 edit, 1 bytes less\n" in story
    assert "  text_rules: rejected: min_characters, 7 against 64\n" in story
    assert "exact_dedup" not in story


def test_the_chain_of_duplicates_ends_at_what_was_kept(output):
    story = explain(output, "doc-00001")
    assert "exact_dedup: rejected: same_text, 1 against 1" in story
    assert re.search(r"  duplicate of copy-1 from in.jsonl:\d+, which was kept\n", story)


def test_two_documents_with_one_id_and_what_could_not_be_read(output):
    story = explain(output, "doc-00002")
    assert "read: rejected: duplicate_id" in story and "kept in documents/" in story
    (row,) = [row for row in output_table(output, "rejected") if row["rule"] == "unreadable"]
    assert explain(output, row["id"]) == explain(output, row["origin"])
    assert "read: rejected: unreadable" in explain(output, row["id"])
    assert "not JSON" in explain(output, row["id"])


def test_what_cannot_be_explained(output, tmp_path):
    with pytest.raises(UserError, match="no document nobody"):
        explain(output, "nobody")
    with pytest.raises(UserError, match="no finished corpus"):
        explain(tmp_path / "elsewhere", "mail")


def test_the_command_line(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_jsonl(tmp_path / "in.jsonl", [*records(20), {"id": "leak", "text": f"{SENTENCE} {QUESTION} {SENTENCE}"}])
    write_jsonl(tmp_path / "benchmark.jsonl", [{"id": "q1", "text": QUESTION}])
    flags = ["--gin_file=data_recipes/quickstart.gin", "--input=in.jsonl", "--output=out", "--workers=1"]
    assert main(["curate", *flags, "--decontaminate_against=benchmark.jsonl"]) == 0
    assert "curate: 20 of 21 documents kept" in capsys.readouterr().err
    assert main(["curate", "--explain=leak", "--output=out"]) == 0
    assert "rejected: leaked_item" in capsys.readouterr().out
    assert (tmp_path / "out" / "decontamination_report.json").exists()
    assert json.loads((tmp_path / "out" / "complete.json").read_text())["recipe"]["stages"][-1]["stage"] == (
        "Decontaminate"
    )
    assert main(["curate", *flags]) == 2
    assert "holds the result of another recipe" in capsys.readouterr().err
    assert main(["curate", "--explain=leak"]) == 2
    assert "--explain needs --output" in capsys.readouterr().err
    assert main(["curate", *flags, "--engine=spark"]) == 2


def test_curation_alone_starts_without_jax(tmp_path):
    write_jsonl(tmp_path / "in.jsonl", records(5))
    flags = ["--gin_file=data_recipes/quickstart.gin", f"--input={tmp_path}/in.jsonl", f"--output={tmp_path}/out"]
    script = (
        f"import sys; from pretrain.main import main; assert main({['curate', *flags, '--workers=1']}) == 0; "
        "assert not {'jax', 'grain', 'tensorflow'} & set(sys.modules)"
    )
    environment = os.environ | {"PYTHONPATH": str(pathlib.Path(__file__).parents[2])}
    subprocess.run([sys.executable, "-c", script], check=True, env=environment)


QUESTION = "Which of these seven rivers flows through nine old towns before it reaches the cold northern sea at last"


def test_decontamination_takes_the_place_of_what_the_recipe_says():
    recipe = Recipe(stages=(TextRules(), Decontaminate(against="a.jsonl", ngram=9), ExactDedup()))
    stages = recipe.decontaminated("b.jsonl").stages
    assert [type(stage) for stage in stages] == [TextRules, Decontaminate, ExactDedup]
    assert (stages[1].against, stages[1].ngram) == (("b.jsonl",), 9)
    assert isinstance(Recipe().decontaminated("b.jsonl").stages[-1], Decontaminate)
