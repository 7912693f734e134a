"""The command line as a person meets it: quick help, one line for each mistake, stages that skip and go on."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tiny import ROOT, TINY_GIN, run_cli

from pretrain.core.config import differences
from pretrain.main import COMMANDS, main, parse
from pretrain.train.metrics import read_metrics


def fails(capfd, *arguments: str, code: int = 2) -> str:
    """The one line that a wrong command line prints."""
    assert main(list(arguments)) == code
    error = capfd.readouterr().err
    assert "Traceback" not in error
    lines = [line for line in error.splitlines() if line.startswith("pretrain: ")]
    assert len(lines) == 1, error
    return lines[0]


@pytest.mark.parametrize("command", [None, *COMMANDS])
def test_help_is_quick_and_lists_flags(command):
    start = time.perf_counter()
    done = run_cli(*(command or "").split(), "--help")
    assert time.perf_counter() - start < 1.0
    assert done.returncode == 0
    assert "--workdir" in done.stdout and "--gin.NAME=VALUE" in done.stdout
    assert ("--gin_file" in done.stdout) != (command or "").startswith("checkpoint ")  # those read the run's own
    if command is None:
        assert all(f"  {name} " in done.stdout for name in COMMANDS)
    else:
        assert all(f"--{flag}" in done.stdout for flag in parse([command])[1])


def test_no_command_explains_itself(capfd):
    assert main([]) == 2
    assert "usage: pretrain COMMAND" in capfd.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["trian"], "did you mean train?"),
        (["train"], "--workdir is missing"),
        (["train", "--workdir=w", "--gin_file=nowhere.gin"], "no such gin file: nowhere.gin"),
        (["train", "--workdir=w"], "holds no run"),
        (["train", "--workdir=w", "--colour=red"], "Unknown command line flag 'colour'"),
        (["train", "--workdir=w", "now"], "unexpected argument 'now'"),
        (["generate", "--workdir=w", "--max_tokens=0"], "--max_tokens"),
        (["generate", "--workdir=w", "--top_p=1.5"], "--top_p"),
        (["curate", "--workdir=w", "--workers=0"], "--workers"),
        (["train", "--workdir=w", "--module_import=no.such.module"], "no.such.module"),
    ],
)
def test_mistakes_on_the_command_line(capfd, arguments, says):
    assert says in fails(capfd, *arguments)


@pytest.mark.parametrize(
    ("binding", "says"),
    [
        ("TRAIN_STEP=3", "did you mean TRAIN_STEPS?"),
        ("Trainin.steps=3", "did you mean Training"),
        ("Training.stepz=3", "stepz"),
        ("BATCH_SIZE=0", "must be"),
        ("BATCH_SIZE=-4", "must be"),
        ("BATCH_SIZE=many", "not gin syntax"),
        ("BATCH_SIZE=", "write --gin.NAME=VALUE"),
        ("SEQUENCE_LENGTH=1", "must be"),
        ("REMAT='some'", "must be one of"),
        ("LEARNING_RATE=0.0", "peak must be > 0"),
        ("TransformerConfig.num_heads=5", "multiple"),
        ("MeshConfig.data=3", "does not fit"),
        ("Training.microbatches=3", "multiple"),
        ("Recipe.max_unreadable='x'", "Recipe.max_unreadable must be a number; got 'x'"),
        ("Experiment.data=3", "gin gives a value of a wrong kind: "),
    ],
)
def test_mistakes_in_bindings(capfd, tmp_path, tiny_cache, binding, says):
    workdir = tmp_path / "run"
    for part in ("corpus", "cache"):
        shutil.copytree(tiny_cache / part, workdir / part)
    line = fails(capfd, "train", f"--gin_file={TINY_GIN}", f"--workdir={workdir}", f"--gin.{binding}")
    assert says in line


def test_bad_gin_file(capfd, tmp_path):
    file = tmp_path / "bad.gin"
    file.write_text("Training.steps = = 3\n")
    assert "bad.gin" in fails(capfd, "train", f"--gin_file={file}", f"--workdir={tmp_path}/w")
    file.write_text("import no_such_module_here\n")
    assert "no_such_module_here" in fails(capfd, "train", f"--gin_file={file}", f"--workdir={tmp_path}/w")


def test_missing_and_empty_inputs(capfd, tmp_path):
    flags = ["curate", f"--gin_file={TINY_GIN}", f"--workdir={tmp_path}/w", "--workers=1"]
    assert "no input files match" in fails(capfd, *flags, f"--input={tmp_path}/*.jsonl")
    (tmp_path / "empty.jsonl").write_text("")
    assert "the corpus is empty" in fails(capfd, *flags, f"--input={tmp_path}/empty.jsonl")
    fails(capfd, "train", f"--gin_file={TINY_GIN}", f"--workdir={tmp_path}/new")  # no cache yet
    assert "checkpoint" in fails(capfd, "evaluate", f"--gin_file={TINY_GIN}", f"--workdir={tmp_path}/new")


def test_another_run_in_the_workdir_is_refused(capfd, tiny_run):
    line = fails(capfd, "train", f"--workdir={tiny_run}", "--gin.BATCH_SIZE=8")
    assert "Training.batch_size = 4" in line and "now it is 8" in line
    assert "Training.steps" in fails(capfd, "train", f"--workdir={tiny_run}", "--gin.TRAIN_STEPS=10")
    assert "Schedule.peak" in fails(capfd, "evaluate", f"--workdir={tiny_run}", "--gin.LEARNING_RATE=1.0")


def test_a_default_that_is_written_out_is_no_other_run():
    bound = {"TransformerConfig.positions": "'rotary'", "TransformerConfig.num_layers": "2", "Gone.since": "1"}
    assert differences(bound, {"TransformerConfig.num_layers": "2", "Gone.since": "1"}) == []
    assert differences(bound, {"TransformerConfig.positions": "'alibi'"}) == [
        "Gone.since", "TransformerConfig.num_layers", "TransformerConfig.positions",
    ]  # fmt: skip


def test_what_may_change_on_resume_may(capfd, tiny_run, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(tiny_run, workdir)
    changes = ["TRAIN_STEPS=44", "LOG_EVERY=2", "CHECKPOINT_EVERY=7", "MeshConfig.data=-1", "MeshConfig.fsdp=1",
               "LoaderConfig.num_threads=1", "EVAL_EVERY=0"]  # fmt: skip
    assert main(["train", f"--workdir={workdir}", *(f"--gin.{change}" for change in changes)]) == 0
    assert "resumed from step 40" in capfd.readouterr().err
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows[-2:]] == [42, 44]
    assert len({row["step"] for row in rows}) == len(rows)


def test_second_run_skips_everything(capfd, tiny_run):
    before = {path: path.stat().st_mtime_ns for folder in ("corpus", "cache", "checkpoints")
              for path in (tiny_run / folder).rglob("*")}  # fmt: skip
    assert main(["run", f"--workdir={tiny_run}", "--workers=1"]) == 0
    captured = capfd.readouterr()
    assert "already at step 40" in captured.err
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert "bits_per_byte" in json.loads(captured.out.splitlines()[-1])


def test_generate_prints_the_prompt_and_is_seeded(capfd, tiny_run):
    texts = []
    for seed in (1, 1, 2):
        flags = [f"--workdir={tiny_run}", "--prompt=the ", "--max_tokens=24", f"--seed={seed}", "--temperature=2"]
        assert main(["generate", *flags]) == 0
        texts.append(capfd.readouterr().out)
    assert texts[0].startswith("the ") and texts[0] == texts[1] != texts[2]
    line = fails(capfd, "generate", f"--workdir={tiny_run}", "--max_tokens=100000")
    assert "shorten the prompt or lower max_tokens" in line
    assert "no checkpoint of step 7" in fails(capfd, "generate", f"--workdir={tiny_run}", "--checkpoint_step=7")


def test_report_is_one_file(capfd, tiny_run):
    assert main(["report", f"--workdir={tiny_run}"]) == 0
    path = capfd.readouterr().out.strip()
    text = Path(path).read_text(encoding="utf-8")
    assert text.lstrip().lower().startswith("<!doctype html>")
    assert "http://" not in text.replace("http://www.w3.org", "") or "src=" not in text


def test_a_reader_that_leaves_is_no_error():
    """As in `pretrain --help | head -1`."""
    ours, theirs = os.pipe()
    os.close(ours)
    command = [sys.executable, "-m", "pretrain", "--help"]
    found = subprocess.run(command, stdout=theirs, stderr=subprocess.PIPE, text=True)
    os.close(theirs)
    assert (found.returncode, found.stderr) == (128 + signal.SIGPIPE, "")


def test_a_log_on_a_full_disk_does_not_end_what_it_tells_of(tiny_cache, tmp_path):
    """Neither the trainer nor its supervisor, whose lines would go there as well."""
    shutil.copytree(tiny_cache, tmp_path / "run")
    command = [sys.executable, "-m", "pretrain", "train", f"--workdir={tmp_path / 'run'}", "--max_restarts=1"]
    with open("/dev/full", "w") as full:
        assert subprocess.run(command, stderr=full, cwd=ROOT).returncode == 0
        assert subprocess.run([*command, "--no_such_flag"], stderr=full, cwd=ROOT).returncode == 2
    assert [row["step"] for row in read_metrics(tmp_path / "run" / "metrics.jsonl")][-1:] == [40]
