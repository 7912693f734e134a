"""The whole path with input, caches, checkpoints and results in an object store, through a kill in mid-checkpoint."""

import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from gcs_server import BUCKET, object_server
from tiny import ROOT, TINY_GIN

RUN = f"gs://{BUCKET}/run"
INPUT = f"gs://{BUCKET}/input/*.jsonl"
CLOCKS = ("seconds", "tokens_per_second", "data_wait", "mfu")  # what a clock says differs from run to run


def documents(count: int) -> bytes:
    """JSON lines of `count` made-up documents, with ids: those made of paths would differ between stores."""
    rng = random.Random(0)
    words = ["".join(rng.choices("abcdefghij", k=rng.randint(2, 7))) for _ in range(300)]
    rows = [{"id": f"document-{number}", "text": " ".join(rng.choices(words, k=60))} for number in range(count)]
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def finish(process: subprocess.Popen) -> tuple[str, str]:
    """Standard output and standard error of a process that must succeed."""
    output, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    return output, errors


@pytest.fixture(scope="module")
def store():
    with object_server() as running:
        running.put("input/a.jsonl", documents(100))
        yield running


@pytest.fixture(scope="module")
def start(store, tmp_path_factory):
    """Starts `pretrain run` with the object store in its environment."""
    folder = tmp_path_factory.mktemp("machine")
    environment = os.environ | store.environment() | {"PYTHONPATH": str(ROOT), "TMPDIR": str(folder)}

    def start(*arguments: str) -> subprocess.Popen:
        command = [sys.executable, "-m", "pretrain", "run", "--workers=1", *arguments]
        return subprocess.Popen(
            command, env=environment, cwd=folder, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )

    return start


@pytest.fixture(scope="module")
def killed(store, start) -> list[str]:
    """A run that is killed in the middle of writing its second checkpoint; gives what it left of that checkpoint."""
    first = start(f"--gin_file={TINY_GIN}", f"--workdir={RUN}", f"--input={INPUT}", "--gin.CHECKPOINT_EVERY=10")

    def kill(name: str) -> None:
        if name.startswith("run/checkpoints/20/") and "ocdbt" in name and store.names("run/checkpoints/20/"):
            first.send_signal(signal.SIGKILL)
            raise ConnectionAbortedError

    store.on_write = kill
    _, errors = first.communicate(timeout=120)
    store.on_write = lambda name: None
    assert first.returncode == -signal.SIGKILL, errors
    return store.names("run/checkpoints/20/")


@pytest.fixture(scope="module")
def finished(killed, start, tmp_path_factory) -> tuple[str, str, Path]:
    """What the run prints when it is started again, told only where it is: a workdir knows its configuration.

    The folder is that of the same run on a local disk, which nobody kills.
    """
    assert killed, "killed before the checkpoint of step 20 began"
    second = start(f"--workdir={RUN}")
    folder = tmp_path_factory.mktemp("local")
    (folder / "a.jsonl").write_bytes(documents(100))
    flags = (f"--gin_file={TINY_GIN}", f"--workdir={folder / 'run'}", f"--input={folder / '*.jsonl'}")
    local = start(*flags, "--gin.CHECKPOINT_EVERY=10")
    finish(local)
    return *finish(second), folder / "run"


def rows(text: bytes) -> list[dict]:
    """Rows of metrics without what a clock says."""
    found = [json.loads(line) for line in text.decode().splitlines()]
    return [{name: value for name, value in row.items() if name not in CLOCKS} for row in found]


def test_it_resumes_from_the_last_whole_checkpoint_and_finishes(finished, store):
    output, errors, _ = finished
    assert "resumed from step 10" in errors
    assert "ERROR" not in errors and "Traceback" not in errors
    evaluation = json.loads(output.splitlines()[-1])
    assert evaluation == json.loads(store.get("run/evaluation.json"))
    assert evaluation["step"] == 40 and evaluation["bytes"] > 0
    assert len(store.get("run/samples.jsonl").splitlines()) == 4
    assert b"</html>" in store.get("run/report.html")
    assert [row["step"] for row in rows(store.get("run/metrics.jsonl"))] == list(range(5, 41, 5))
    assert any(name.startswith("run/tensorboard/") for name in store.names())


def test_it_equals_a_run_on_a_local_disk_that_nobody_killed(finished, store):
    *_, workdir = finished
    assert rows((workdir / "metrics.jsonl").read_bytes()) == rows(store.get("run/metrics.jsonl"))
    for name in ("evaluation.json", "samples.jsonl"):
        assert (workdir / name).read_bytes() == store.get(f"run/{name}"), name


def test_nothing_renames_appends_or_leaves_scratch_files(finished, store):
    assert store.refused == []
    assert not [name for name in store.names("run/") if "spill" in name or "/." in name or "building" in name]
