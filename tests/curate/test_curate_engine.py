"""The whole job: the same bytes for any workers, order and interruption, balanced books, and errors for people."""

import json
import os
import pathlib
import random
import signal
import subprocess
import time

import numpy as np
import pytest
import toy_stages
from corpora import SENTENCE, contents, output_table, records, write_jsonl
from killed_runs import start_run
from object_store import object_store

from pretrain.core.errors import RunError, UserError
from pretrain.curate import counts, engine, recipe, spill
from pretrain.curate.documents import DOCUMENTS, shard_of
from pretrain.curate.exact_dedup import ExactDedup
from pretrain.curate.inputs import InputFile, format_of
from pretrain.curate.readers import Fields
from pretrain.curate.recipe import Recipe, curate
from pretrain.curate.rules import TextRules
from pretrain.curate.shards import Phase
from pretrain.curate.tasks import Plan

HERE = pathlib.Path(__file__).parent


@pytest.fixture
def corpus(tmp_path, monkeypatch) -> pathlib.Path:
    """Three files of 100 documents with some of everything that can go wrong, and the working directory beside them."""
    monkeypatch.chdir(tmp_path)
    rows: list = records(294)
    rows += [{"id": "short", "text": "too short"}, {"id": "doc-00003", "text": "an id twice " + SENTENCE}]
    rows += [{"id": f"copy-{index}", "text": "  " + rows[index]["text"] + "\n"} for index in (5, 50, 150)]
    rows += [b'{"text": "cut']
    random.Random(1).shuffle(rows)
    for index, suffix in enumerate(["jsonl", "jsonl.gz", "jsonl.zst"]):
        write_jsonl(tmp_path / "corpus" / f"{index}.{suffix}", rows[100 * index : 100 * index + 100])
    return tmp_path


@pytest.fixture
def small_tasks(monkeypatch):
    """Makes one task of each file, so that there is something to divide among workers."""
    monkeypatch.setattr(engine, "READ_TASK_FILES", 1)


def test_what_comes_out(corpus):
    sheet = curate(Recipe(input="corpus"), corpus / "out", workers=1, config_text="the config")
    documents, rejected = output_table(corpus / "out", "documents"), output_table(corpus / "out", "rejected")
    assert list(documents[0]) == DOCUMENTS.names
    assert len(documents) == 294
    by_rule = sorted((row["rule"], row["id"], row["duplicate_of"]) for row in rejected if row["rule"] != "unreadable")
    assert by_rule == [
        ("duplicate_id", "doc-00003", "doc-00003"),
        ("min_characters", "short", None),
        ("same_text", "doc-00005", "copy-5"),
        ("same_text", "doc-00050", "copy-50"),
        ("same_text", "doc-00150", "copy-150"),
    ]
    (unreadable,) = [row for row in rejected if row["rule"] == "unreadable"]
    assert unreadable["stage"] == "read"
    assert unreadable["origin"].startswith("corpus/")
    assert unreadable["excerpt"].startswith("not JSON") and '{"text": "cut' in unreadable["excerpt"]
    assert unreadable["bytes"] == len(b'{"text": "cut')
    assert {row["source"] for row in documents} == {"corpus"}
    assert sheet["total"]["read"]["documents"] == len(documents) + len(rejected) == 300
    kept_bytes = sum(len(row["text"].encode()) for row in documents)
    assert sheet["total"]["read"]["bytes"] == kept_bytes + sum(row["bytes"] for row in rejected)
    assert sheet["total"]["kept"]["bytes"] == kept_bytes
    assert sheet == json.loads((corpus / "out" / "datasheet.json").read_text())
    assert sorted(os.listdir(corpus / "out")) == [
        "complete.json", "datasheet.html", "datasheet.json", "datasheet.md", "documents", "edits", "rejected",
    ]  # fmt: skip


def test_shards_hold_sorted_ids_and_splits(corpus):
    curate(Recipe(input="corpus", shards=3, validation_fraction=0.2), corpus / "out", workers=1)
    paths = sorted((corpus / "out" / "documents").iterdir())
    assert [path.name for path in paths] == [f"0000{index}-of-00003.parquet" for index in range(3)]
    for index, path in enumerate(paths):
        import pyarrow.parquet as pq

        ids = pq.read_table(path)["id"].to_pylist()
        assert ids == sorted(ids)
        assert {shard_of(id_, 3) for id_ in ids} == {index}
    splits = [row["split"] for row in output_table(corpus / "out", "documents")]
    assert 0.1 < splits.count("validation") / len(splits) < 0.3
    assert set(splits) == {"train", "validation"}


def test_any_number_of_workers_and_order_of_files_gives_the_same_bytes(corpus, small_tasks):
    outputs = []
    for number in (1, 2, 3):
        curate(Recipe(input="corpus/*"), corpus / f"out{number}", workers=number)
        outputs.append(contents(corpus / f"out{number}"))
    assert outputs[0] == outputs[1] == outputs[2]
    names = ["corpus/2.jsonl.zst", "corpus/0.jsonl", "corpus/1.jsonl.gz"]
    curate(Recipe(input=names), corpus / "out4", workers=1)
    curate(Recipe(input=sorted(names)), corpus / "out5", workers=1)
    listed = [contents(corpus / name) for name in ("out4", "out5")]
    for folder in ("documents", "rejected", "edits"):
        parts = [
            {key: value for key, value in found.items() if key.startswith(folder)} for found in (outputs[0], *listed)
        ]
        assert parts[0] == parts[1] == parts[2]


@pytest.mark.parametrize("chosen_engine", ["local", "beam"])
def test_a_large_file_is_read_in_parts_and_gives_the_same_bytes(tmp_path, monkeypatch, chosen_engine):
    monkeypatch.chdir(tmp_path)
    without_ids = [{"text": f"no id {index} {SENTENCE * 3}"} for index in range(100)]
    write_jsonl(tmp_path / "a.jsonl", [*records(100), b'{"text": "cut', *without_ids])
    (tmp_path / "b.txt").write_text("".join(f"line {index} {SENTENCE * 2}\n\n" for index in range(100)))
    job = Recipe(input=["a.jsonl", "b.txt"], shards=3, fields=Fields(text_unit="line"))
    curate(job, tmp_path / "whole", workers=1)
    monkeypatch.setattr(recipe, "MIN_PART_BYTES", 5_000)
    curate(job, tmp_path / "parts", workers=2, engine=chosen_engine)
    assert contents(tmp_path / "parts") == contents(tmp_path / "whole")


def test_a_reading_task_has_a_part_of_a_large_file_or_several_small_ones():
    plan = Plan("work", "output", 1, Fields(), 0.0, (Phase(),), read_bytes=100)
    sizes = [("a.jsonl", 250), ("b.jsonl", 30), ("c.jsonl", 40), ("d.jsonl.gz", 250), ("e.txt", 250)]
    files = [InputFile(name, size, "corpus", format_of(name)) for name, size in sizes]
    tasks = [[(file.path, file.start, file.end) for file in group] for group in engine.read_groups(plan, files)]
    assert tasks == [
        [("a.jsonl", 0, 100)],
        [("a.jsonl", 100, 200)],
        [("a.jsonl", 200, 250), ("b.jsonl", 0, None)],
        [("c.jsonl", 0, None)],
        [("d.jsonl.gz", 0, None)],
        [("e.txt", 0, None)],
    ]


def test_shuffled_lines_give_the_same_documents(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows = [*records(50), {"id": "twice", "text": SENTENCE + "a"}, {"id": "twice", "text": SENTENCE + "b"}]
    found = []
    for name in ("a", "b"):
        random.Random(name).shuffle(rows)
        write_jsonl(tmp_path / name / "0.jsonl", rows)
        curate(Recipe(input=name), tmp_path / f"out-{name}", workers=1)
        documents = output_table(tmp_path / f"out-{name}", "documents")
        found.append([(row["id"], row["text"], row["split"]) for row in documents])
    assert found[0] == found[1]


def test_a_finished_run_is_skipped_and_another_recipe_refused(corpus, monkeypatch):
    first = curate(Recipe(input="corpus"), corpus / "out", workers=1)
    monkeypatch.setattr(recipe.local_engine, "run", None)  # would raise
    assert curate(Recipe(input="corpus"), corpus / "out", workers=2, config_text="other words") == first
    for other in (
        Recipe(input="corpus", validation_fraction=0.1),
        Recipe(input="corpus", stages=(TextRules(min_characters=65), ExactDedup())),
        Recipe(input="corpus", fields=Fields(text="body")),
        Recipe(input="corpus/0.jsonl"),
    ):
        with pytest.raises(UserError, match="another recipe or input"):
            curate(other, corpus / "out", workers=1)
    write_jsonl(corpus / "corpus" / "new.jsonl", records(1, start=900))
    with pytest.raises(UserError, match="another recipe or input"):
        curate(Recipe(input="corpus"), corpus / "out", workers=1)


def wait_for(condition, process: subprocess.Popen) -> None:
    deadline = time.monotonic() + 60
    while not condition() and process.poll() is None:
        assert time.monotonic() < deadline, "nothing happened in a minute"
        time.sleep(0.002)


@pytest.mark.parametrize("moment", ["read/1.json", "0/2.json", "0/decisions.json", "1/3.json"])
def test_a_killed_run_goes_on_and_gives_the_same_bytes(corpus, moment):
    undisturbed = start_run(corpus, "undisturbed")
    assert undisturbed.wait(60) == 0, undisturbed.stderr.read()
    killed = start_run(corpus, "killed")
    wait_for(lambda: list((corpus / "killed").glob(f".work-*/{moment}")), killed)
    killed.send_signal(signal.SIGKILL)
    assert killed.wait(60) == -signal.SIGKILL, "the run was over before it could be killed"
    assert not (corpus / "killed" / "complete.json").exists()
    finished = {path: path.stat().st_mtime_ns for path in (corpus / "killed").glob(".work-*/read/*.json")}
    assert finished
    again = start_run(corpus, "killed")
    wait_for(lambda: list((corpus / "killed").glob(".work-*/0/0.json")), again)
    unchanged = {path: path.stat().st_mtime_ns for path in finished if path.exists()}
    assert again.wait(60) == 0, again.stderr.read()
    assert all(finished[path] == time_ for path, time_ in unchanged.items()), "finished tasks were run again"
    assert contents(corpus / "killed") == contents(corpus / "undisturbed")


def test_workers_end_when_their_parent_is_killed(corpus):
    process = start_run(corpus, "killed")
    wait_for(lambda: list((corpus / "killed").glob(".work-*/read/0.json")), process)
    children = pathlib.Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    assert children
    process.send_signal(signal.SIGKILL)
    process.wait(60)
    deadline = time.monotonic() + 20
    while any(is_running(child) for child in children):
        assert time.monotonic() < deadline, "workers outlived their parent"
        time.sleep(0.05)


def is_running(pid: str) -> bool:
    try:
        return pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_what_an_interrupted_run_of_another_recipe_left_is_removed(corpus):
    leftovers = [
        "documents/00007-of-00009.parquet",
        "edits/.00001-of-00004.parquet.x1y2",
        ".datasheet.json.zz",
        ".work-1/a",
    ]
    for name in leftovers:
        (corpus / "out" / name).parent.mkdir(parents=True, exist_ok=True)
        (corpus / "out" / name).write_text("left")
    (corpus / "out" / "documents" / "notes.txt").write_text("mine")
    curate(Recipe(input="corpus"), corpus / "out", workers=1)
    assert not [name for name in leftovers if (corpus / "out" / name).exists()]
    assert (corpus / "out" / "documents" / "notes.txt").read_text() == "mine"


def test_too_much_unreadable_ends_the_run_with_a_list(corpus):
    write_jsonl(corpus / "corpus" / "bad.jsonl", [b"{"] * 30)
    with pytest.raises(RunError, match=r"31 of 330 records are unreadable") as error:
        curate(Recipe(input="corpus"), corpus / "out", workers=1)
    lines = str(error.value).splitlines()
    assert lines[1].startswith("  corpus/") and "not JSON" in lines[1]
    assert lines[-1] == "  and 11 more"
    assert len(lines) == 22
    assert not (corpus / "out" / "complete.json").exists()
    write_jsonl(corpus / "corpus" / "bad.jsonl", [b" "] * 30)  # repaired, at the same size
    assert curate(Recipe(input="corpus"), corpus / "out", workers=1)["total"]["kept"]["documents"] == 294


def test_unreadable_below_the_limit_is_counted(corpus):
    write_jsonl(corpus / "corpus" / "bad.jsonl", [b"{"] * 30)
    sheet = curate(Recipe(input="corpus", max_unreadable=0.1), corpus / "out", workers=1)
    read = sheet["sources"]["corpus"]["stages"][0]
    assert read["stage"] == "read"
    assert read["rejected"]["unreadable"] == {"documents": 31, "bytes": 30 + 13, "tokens": 11}
    assert read["in"]["documents"] == read["out"]["documents"] + 32


def test_stages_of_every_kind_in_one_recipe(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(HERE)
    rows = [
        {"id": f"{index:02d}", "text": f"shared header\nmail me{index}@x.org\nbody {index}\n{'x' * index}"}
        for index in range(40)
    ]
    write_jsonl(tmp_path / "corpus" / "a.jsonl", rows)
    write_jsonl(tmp_path / "reference.jsonl", [{"text": "y" * 40}, {"text": "y"}])
    stages = (
        toy_stages.MaskMail(),
        toy_stages.DropRepeatedLines(),
        toy_stages.LongerThanReference("reference.jsonl"),
        ExactDedup(),
    )
    sheet = curate(Recipe(input="corpus", stages=stages), tmp_path / "out", workers=1)
    documents = {row["id"]: row["text"] for row in output_table(tmp_path / "out", "documents")}
    assert documents["00"] == "shared header\nmail <EMAIL>\nbody 0\n"
    assert documents["07"] == "body 7\nxxxxxxx"
    edits = output_table(tmp_path / "out", "edits")
    assert sorted({row["stage"] for row in edits}) == ["mask_mail", "repeated_lines"]
    assert sum(row["stage"] == "repeated_lines" for row in edits) == 2 * 39
    rejected = output_table(tmp_path / "out", "rejected")
    assert {row["rule"] for row in rejected} == {"longer"}
    assert all(row["value"] > row["threshold"] == 40 for row in rejected)
    source = sheet["sources"]["corpus"]
    assert [stage["stage"] for stage in source["stages"]] == [
        "read",
        "mask_mail",
        "repeated_lines",
        "longer",
        "exact_dedup",
    ]
    for stage in source["stages"]:
        gone = sum(part["documents"] for part in stage["rejected"].values())
        assert stage["in"]["documents"] == stage["out"]["documents"] + gone
        taken = counts.total(stage["rejected"], "bytes") + counts.total(stage["edited"], "bytes")
        assert stage["in"]["bytes"] == stage["out"]["bytes"] + taken
    for before, after in zip(source["stages"], source["stages"][1:], strict=False):
        assert before["out"] == after["in"]


def test_named_sources_and_no_stages(corpus):
    write_jsonl(corpus / "more" / "a.jsonl", [{"text": SENTENCE}] * 2)
    wanted = Recipe(input={"first": "corpus/0.jsonl", "second": ["corpus/1.jsonl.gz", "more"]}, stages=())
    sheet = curate(wanted, corpus / "out", workers=1)
    assert sheet["sources"]["first"]["read"]["documents"] == 100
    assert sheet["sources"]["second"]["read"]["documents"] == 102
    assert len({row["id"] for row in output_table(corpus / "out", "documents") if row["text"] == SENTENCE}) == 2


def test_a_group_field_keeps_documents_together(tmp_path):
    rows = [{"text": f"{index} {SENTENCE}", "site": f"site{index % 20}"} for index in range(200)]
    write_jsonl(tmp_path / "a.jsonl", rows)
    wanted = Recipe(input=str(tmp_path / "a.jsonl"), fields=Fields(group="site"), validation_fraction=0.3)
    curate(wanted, tmp_path / "out", workers=1)
    splits: dict[str, set] = {}
    for row in output_table(tmp_path / "out", "documents"):
        splits.setdefault(json.loads(row["metadata"])["site"], set()).add(row["split"])
    assert len(splits) == 20
    assert all(len(found) == 1 for found in splits.values())
    assert set.union(*splits.values()) == {"train", "validation"}


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"input": ""}, "input is empty"),
        ({"validation_fraction": 1.5}, "validation_fraction must lie"),
        ({"max_unreadable": -1}, "max_unreadable must lie"),
        ({"shards": 0}, "shards must be at least 1"),
        ({"source": "a/b"}, "plain name"),
        ({"stages": (ExactDedup, TextRules())}, "write @Name"),
        ({"stages": ("rules",)}, "a list, each item @MapStage"),
        ({"stages": (TextRules(), TextRules())}, "used twice"),
        ({"stages": (TextRules(name="read"),)}, "used twice"),
    ],
)
def test_impossible_recipes(wrong, message):
    with pytest.raises(UserError, match=message):
        Recipe(**wrong)


def test_users_errors(corpus):
    with pytest.raises(UserError, match="no input files match"):
        curate(Recipe(input="missing/*.jsonl"), corpus / "out")
    (corpus / "empty").mkdir()
    with pytest.raises(UserError, match="no input files match"):
        curate(Recipe(input="empty"), corpus / "out")
    with pytest.raises(UserError, match="workers must be at least 1"):
        curate(Recipe(input="corpus"), corpus / "out", workers=0)
    with pytest.raises(UserError, match="lies inside the input folder"):
        curate(Recipe(input="corpus"), corpus / "corpus" / "out")
    with pytest.raises(UserError, match="lies inside the input folder"):
        curate(Recipe(input="**/*.jsonl"), corpus / "out")


def test_unbalanced_books_are_an_error():
    numbers = {"documents": 3, "bytes": 30}
    stage = {
        "rejected": {"a": {"rule": {"documents": 1, "bytes": 9}}},
        "edited": {"a": {"rule": {"edits": 5, "bytes": 1}}},
    }
    counts.check_balance({"a": numbers}, {"a": {"documents": 2, "bytes": 20}}, {"stage": stage})
    with pytest.raises(RunError, match="30 bytes read, 29"):
        counts.check_balance({"a": numbers}, {"a": {"documents": 2, "bytes": 19}}, {"stage": stage})
    with pytest.raises(RunError, match="3 documents read, 2"):
        counts.check_balance({"a": numbers}, {"a": {"documents": 1, "bytes": 20}}, {"stage": stage})
    with pytest.raises(RunError, match="for b: 0 documents read, 1"):
        counts.check_balance({}, {"b": {"documents": 1, "bytes": 0}}, {})


def test_spilled_rows_come_back_by_part_in_order(tmp_path, monkeypatch):
    import pyarrow as pa

    monkeypatch.setattr(spill, "BUFFER_BYTES", 100)
    schema = pa.schema({"n": pa.int64()})
    path = str(tmp_path / "deep" / "rows")
    with spill.PartWriter(path, schema) as writer:
        for start in range(0, 100, 7):
            rows = list(range(start, min(start + 7, 100)))
            writer.write(pa.table({"n": rows}, schema=schema), np.array(rows) % 3)
    for part in range(3):
        assert spill.read_part([path], part, schema)["n"].to_pylist() == list(range(part, 100, 3))
    assert spill.read_part([path, path], 4, schema).num_rows == 0
    assert spill.read_part([path, path], 1, schema).num_rows == 66


def test_input_and_output_in_an_object_store(corpus):
    curate(Recipe(input="corpus"), corpus / "out", workers=1)
    with object_store() as store:
        for path in (corpus / "corpus").iterdir():
            store.pipe(f"gs://bucket/corpus/{path.name}", path.read_bytes())
        wanted = Recipe(input="gs://bucket/corpus/*")
        sheet = curate(wanted, "gs://bucket/clean", workers=1)
        assert sheet == curate(wanted, "gs://bucket/clean", workers=1)
        assert sheet["total"]["kept"]["documents"] == 294
        names = {name.removeprefix("/bucket/clean/") for name in store.find("gs://bucket/clean")}
        assert names == set(contents(corpus / "out"))
        with pytest.raises(UserError, match="another recipe"):
            curate(Recipe(input="gs://bucket/corpus/0.jsonl"), "gs://bucket/clean", workers=1)
