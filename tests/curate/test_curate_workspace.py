"""Two runs do not spoil each other; a changed input is noticed; what is likely a mistake is said."""

import os
import subprocess
import sys

import pytest
from corpora import SENTENCE, contents, records, write_jsonl

from pretrain.core import storage
from pretrain.core.errors import UserError
from pretrain.curate import recipe
from pretrain.curate.inputs import InputFile
from pretrain.curate.recipe import Recipe, curate
from pretrain.curate.workspace import LOCK, Workspace, content_sample

HOLD = """
import sys, time
from pretrain.core import storage
from pretrain.curate.workspace import Workspace
with Workspace(storage.Path(sys.argv[1]), "run", []):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_second_run_into_one_output_is_refused_until_the_first_is_gone(tmp_path):
    write_jsonl(tmp_path / "in" / "a.jsonl", records(20))
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", HOLD, str(tmp_path / "out")]
    first = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    assert first.stdout.readline() == "held\n"
    try:
        with pytest.raises(UserError, match=f"another run .process {first.pid}. is writing"):
            curate(Recipe(input=str(tmp_path / "in")), tmp_path / "out", workers=1)
    finally:
        first.kill()
        first.wait(60)
    assert (tmp_path / "out" / LOCK).exists()
    curate(Recipe(input=str(tmp_path / "in")), tmp_path / "out", workers=1)
    assert not (tmp_path / "out" / LOCK).exists()


def test_a_lock_is_given_up_after_an_error(tmp_path):
    for _ in range(2):
        with pytest.raises(ZeroDivisionError), Workspace(storage.Path(tmp_path), "run", []):
            raise ZeroDivisionError
    assert os.listdir(tmp_path) == []


def test_an_input_that_changed_at_equal_size_is_another_input(tmp_path):
    path = write_jsonl(tmp_path / "in" / "a.jsonl", records(50))
    curate(Recipe(input=str(path)), tmp_path / "out", workers=1)
    before = contents(tmp_path / "out")
    os.utime(path, (1, 1))
    curate(Recipe(input=str(path)), tmp_path / "out", workers=1)  # copied, not changed
    path.write_bytes(path.read_bytes().replace(b"quick brown", b"quack brown"))
    with pytest.raises(UserError, match="another recipe or input"):
        curate(Recipe(input=str(path)), tmp_path / "out", workers=1)
    assert contents(tmp_path / "out") == before


def test_an_interrupted_run_does_not_go_on_with_spills_of_an_older_input(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", records(5))
    output = storage.Path(tmp_path / "out")
    found = []
    for time in (1, 1, 2):
        os.utime(path, (time, time))
        with Workspace(output, "run", [InputFile(str(path), 1, "corpus", "jsonl")]) as space:
            found.append(os.path.exists(space.folder))
            os.makedirs(space.folder, exist_ok=True)
    assert found == [False, True, False]
    assert len(list((tmp_path / "out").glob(".work-*"))) == 1


def test_samples_cover_small_files_and_both_ends_of_large_ones(tmp_path):
    path, changed = tmp_path / "a", tmp_path / "b"
    for size in (1, 100, 4096, 5000, 300_000):
        content = bytes(size)
        path.write_bytes(content)
        for position in (0, size - 1):
            changed.write_bytes(content[:position] + b"x" + content[position + 1 :])
            assert content_sample(str(path), size) != content_sample(str(changed), size)
    assert content_sample("gs://bucket/file", 5) == content_sample(str(tmp_path / "missing"), 5) == ""


def test_a_changed_reference_is_another_recipe(tmp_path, monkeypatch):
    import toy_stages

    monkeypatch.chdir(tmp_path)
    write_jsonl(tmp_path / "in" / "a.jsonl", records(5))
    wanted = Recipe(input="in", stages=(toy_stages.LongerThanReference("reference.jsonl"),))
    write_jsonl(tmp_path / "reference.jsonl", [{"text": "aaaa"}])
    curate(wanted, "out", workers=1)
    write_jsonl(tmp_path / "reference.jsonl", [{"text": "aaab"}])
    with pytest.raises(UserError, match="another recipe or input"):
        curate(wanted, "out", workers=1)


def test_what_is_likely_a_mistake_is_said(tmp_path, capsys):
    write_jsonl(tmp_path / "in" / "a.jsonl", [{"text": SENTENCE}])
    (tmp_path / "in" / "photo.png").write_bytes(b"x")
    (tmp_path / "in" / "README").write_bytes(b"x")
    curate(Recipe(input=str(tmp_path / "in"), validation_fraction=0.01), tmp_path / "out", workers=1)
    said = capsys.readouterr().err
    assert "files that no reader knows are left out: 1 .png, 1 no extension" in said
    assert "warning: no document is in the validation split" in said
    write_jsonl(tmp_path / "in" / "a.jsonl", [{"text": "short"}])
    curate(Recipe(input=str(tmp_path / "in"), validation_fraction=0), tmp_path / "other", workers=1)
    said = capsys.readouterr().err
    assert "warning: no document was kept" in said
    assert "validation split" not in said


def test_shards_grow_with_the_input(tmp_path):
    shards = {
        size: recipe._plan(Recipe(), storage.Path(tmp_path), "work", size).shards
        for size in (1, 192 << 20, 10 << 30, 1 << 40, 1 << 50)
    }
    assert shards == {1: 4, 192 << 20: 12, 10 << 30: 256, 1 << 40: 4096, 1 << 50: 4 << 20}
