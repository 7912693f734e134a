"""The Beam engine writes the same bytes as the local one, with stages of every kind."""

import pytest
import toy_stages
from corpora import contents, write_jsonl

from pretrain.core.errors import RunError, UserError
from pretrain.curate import beam_engine
from pretrain.curate.exact_dedup import ExactDedup
from pretrain.curate.recipe import Recipe, curate


@pytest.fixture
def corpus(tmp_path, monkeypatch):
    """Two files of records that every toy stage has something to say about, one of them broken."""
    monkeypatch.chdir(tmp_path)
    rows: list = [
        {"id": f"{index:03d}", "text": f"shared header\nmail me{index}@x.org\nbody {index % 50}\n{'x' * (index % 50)}"}
        for index in range(300)
    ]
    write_jsonl(tmp_path / "corpus" / "a.jsonl", [*rows[:150], b"{bad"])
    write_jsonl(tmp_path / "corpus" / "b.jsonl", [*rows[150:], rows[7]])
    write_jsonl(tmp_path / "reference.jsonl", [{"text": "y" * 60}])
    return tmp_path


def recipe(**settings) -> Recipe:
    stages = (
        toy_stages.MaskMail(),
        toy_stages.DropRepeatedLines(),
        toy_stages.LongerThanReference("reference.jsonl"),
        toy_stages.TagLength(),
        ExactDedup(),
    )
    return Recipe(input="corpus", stages=stages, shards=3, **settings)


def test_the_same_bytes_as_the_local_engine(corpus, monkeypatch):
    monkeypatch.setattr(beam_engine, "PIECE_BYTES", 2_000)  # so that tables are cut and put together
    local = curate(recipe(), corpus / "local", workers=1)
    assert curate(recipe(), corpus / "beam", engine="beam") == local
    assert contents(corpus / "beam") == contents(corpus / "local")
    assert (corpus / "beam" / "lines.txt").read_text().endswith(" lines")
    assert local["total"]["kept"]["documents"] < local["total"]["read"]["documents"] == 302


def test_too_much_unreadable_ends_a_beam_run_too(corpus):
    write_jsonl(corpus / "corpus" / "bad.jsonl", [b"{"] * 30)
    with pytest.raises(RunError, match="31 of 332 records are unreadable"):
        curate(recipe(), corpus / "out", engine="beam")
    assert not (corpus / "out" / "complete.json").exists()


def test_unknown_engines_are_refused(corpus):
    with pytest.raises(UserError, match="--engine must be one of local, beam"):
        curate(recipe(), corpus / "out", engine="spark")
