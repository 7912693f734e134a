"""What goes wrong: runs killed at any moment, and every kind of broken input."""

import gzip
import json
import pathlib
import random
import signal
import time

import pytest
from corpora import SENTENCE, contents, output_table, records, write_jsonl
from killed_runs import start_run

from pretrain.core.errors import RunError
from pretrain.curate.inputs import zstd
from pretrain.curate.readers import Fields
from pretrain.curate.recipe import Recipe, curate
from pretrain.main import main

KILLS = 10


def test_killed_at_ten_random_moments_and_run_again_gives_the_same_bytes(tmp_path):
    for index in range(4):
        write_jsonl(tmp_path / "corpus" / f"{index}.jsonl", [*records(200, 190 * index), {"text": "short"}, b"{"])
    started = time.monotonic()
    undisturbed = start_run(tmp_path, "undisturbed", workers=1)
    assert undisturbed.wait(60) == 0, undisturbed.stderr.read()
    whole = time.monotonic() - started
    moments = random.Random(1)
    killed = 0
    for attempt in range(KILLS):
        # Each run goes on where the one before was killed; when one gets through, another output is begun.
        process = start_run(tmp_path, f"killed-{attempt // 4}", workers=1)
        time.sleep(moments.uniform(0.3, 1) * whole)
        process.send_signal(signal.SIGKILL)
        killed += process.wait(60) == -signal.SIGKILL
    assert killed >= KILLS // 2, "the runs were over before they could be killed"
    for output in {f"killed-{attempt // 4}" for attempt in range(KILLS)}:
        again = start_run(tmp_path, output, workers=1)
        assert again.wait(60) == 0, again.stderr.read()
        assert contents(tmp_path / output) == contents(tmp_path / "undisturbed")


@pytest.fixture
def broken(tmp_path, monkeypatch) -> pathlib.Path:
    """One file of each kind of damage, among sound records."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "in"
    good = [json.dumps(record).encode() for record in records(8)]
    write_jsonl(folder / "malformed.jsonl", [good[0], b'{"text": "cut', good[1]])
    write_jsonl(folder / "field.jsonl", [{"body": SENTENCE}, {"text": 5}, {"text": None}, [SENTENCE]])
    write_jsonl(folder / "utf8.jsonl", [good[2], b'{"text": "\xff\xfe"}', rb'{"text": "\ud800"}', good[3]])
    write_jsonl(folder / "nul.jsonl", [{"id": "nul", "text": SENTENCE + "\0" + SENTENCE}, b"\0\0\0"])
    write_jsonl(folder / "ids.jsonl", [{"id": "same", "text": f"{SENTENCE} {index}"} for index in range(3)])
    write_jsonl(folder / "long.jsonl", [good[4], b'{"text": "' + b"a" * (200 << 20) + b'"}', good[5]])
    (folder / "empty.jsonl").touch()
    lines = [json.dumps(record).encode() + b"\n" for record in records(6_000, 100)]
    (folder / "gzip.jsonl.gz").write_bytes(gzip.compress(b"".join(lines[:3_000]))[:-2_000])
    (folder / "zstd.jsonl.zst").write_bytes(zstd.compress(b"".join(lines[3_000:]))[:-2_000])
    (folder / "bomb.jsonl.zst").write_bytes(zstd.compress(good[6] + b"\n" + bytes(400 << 20)))
    return folder


def test_every_kind_of_damage_is_rejected_with_reason_and_place(broken):
    sheet = curate(Recipe(input="in", max_unreadable=0.9), "out", workers=1)
    rejected = output_table(pathlib.Path("out"), "rejected")
    found = {(row["origin"], row["rule"]): row["excerpt"] for row in rejected if row["rule"] != "same_text"}
    offset = len(json.dumps(records(1)[0])) + 1  # of the second line, where the first is a record
    expected = {
        (f"in/malformed.jsonl:{offset}", "unreadable"): "not JSON",
        ("in/field.jsonl:0", "unreadable"): "no field 'text'",
        ("in/field.jsonl:90", "unreadable"): "int, not text, in field 'text'",
        ("in/field.jsonl:102", "unreadable"): "no field 'text'",
        ("in/field.jsonl:117", "unreadable"): "not a JSON object",
        (f"in/utf8.jsonl:{offset}", "unreadable"): "invalid UTF-8 at byte 10",
        (f"in/utf8.jsonl:{offset + 15}", "unreadable"): "an unpaired surrogate",
        ("in/nul.jsonl:0", "max_unprintable_fraction"): "The quick brown",
        ("in/nul.jsonl:186", "unreadable"): "not JSON",
        (f"in/long.jsonl:{offset}", "unreadable"): "a record of 209,715,212 bytes; Fields.max_record_bytes is",
        ("in/empty.jsonl", "unreadable"): "no records: the file is empty",
    }
    for place, beginning in expected.items():
        assert found.pop(place).startswith(beginning), place
    assert sorted(rule for origin, rule in found if "ids" in origin) == ["duplicate_id"] * 2
    rest = {origin.split(":")[0]: excerpt for (origin, _), excerpt in found.items() if "ids" not in origin}
    assert set(rest) == {"in/gzip.jsonl.gz", "in/zstd.jsonl.zst", "in/bomb.jsonl.zst"}
    assert all(excerpt.startswith("damaged: ") for excerpt in rest.values())
    assert "expand to more than" in rest["in/bomb.jsonl.zst"]
    kept = {row["id"] for row in output_table(pathlib.Path("out"), "documents")}
    assert {f"doc-{index:05d}" for index in range(7)} | {"same"} <= kept  # what is sound went on
    assert len([id_ for id_ in kept if id_ >= "doc-00100"]) > 1_000  # and what stood before the damage
    assert sheet["total"]["read"]["documents"] == len(kept) + len(rejected)


def test_too_much_damage_is_exit_code_1_with_a_list(broken, capsys):
    arguments = ["curate", "--gin_file=data_recipes/quickstart.gin", "--input=in/[f-n]*.jsonl", "--output=out"]
    assert main([*arguments, "--workers=1"]) == 1
    said = capsys.readouterr().err
    assert "7 of 15 records are unreadable; Recipe.max_unreadable is 0.01" in said
    assert "\n  in/field.jsonl:0: no field 'text'\n" in said
    assert not pathlib.Path("out/complete.json").exists()


def test_records_may_be_as_long_as_asked_for(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", [{"text": SENTENCE * 1000}])
    with pytest.raises(RunError, match="1 of 1 records are unreadable"):
        curate(Recipe(input=str(path), fields=Fields(max_record_bytes=1000)), tmp_path / "out", workers=1)
    curate(Recipe(input=str(path), fields=Fields(max_record_bytes=100_000)), tmp_path / "out", workers=1)
