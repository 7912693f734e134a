"""A run with somebody's own seqio mixture, from the command line: cached, trained, inspected, changed."""

import json
import pathlib
import re
from collections.abc import Iterator

import gin
import pytest
from tiny import TINY_GIN

from pretrain.main import main
from pretrain.train.metrics import read_metrics

FLAGS = [
    f"--gin_file={TINY_GIN}", "--module_import=their_tasks", "--gin.MIXTURE='their_mixture'", "--gin.TRAIN_STEPS=10",
    "--gin.EVAL_EVERY=0",
]  # fmt: skip


@pytest.fixture(scope="module")
def their_run(tmp_path_factory) -> Iterator[pathlib.Path]:
    """A run on their mixture, tokenized by two worker processes, which import their module too."""
    workdir = tmp_path_factory.mktemp("theirs") / "run"
    assert main(["cache", f"--workdir={workdir}", "--workers=2", *FLAGS]) == 0
    for command in ("train", "evaluate"):
        assert main([command, f"--workdir={workdir}"]) == 0
    yield workdir
    gin.clear_config()  # what the last command bound would hold in every test that follows


def test_their_mixture_is_cached_trained_and_evaluated(their_run):
    info = json.loads((their_run / "cache" / "complete.json").read_text())
    assert info["rates"] == {"their_other": 1.5, "their_text": 3.0}
    assert info["sources"]["their_text"]["train"]["documents"] == 40 and not (their_run / "corpus").exists()
    assert read_metrics(their_run / "metrics.jsonl")[-1]["step"] == 10
    evaluation = json.loads((their_run / "evaluation.json").read_text())
    assert evaluation["step"] == 10
    assert evaluation["bytes"] == len("held out") and evaluation["baselines"]["gzip"] > 0
    assert json.loads((their_run / "data.json").read_text())["phases"][0]["by"] == "examples"


def shown(capfd, workdir, *arguments: str) -> str:
    assert main(["inspect", f"--workdir={workdir}", *arguments]) == 0
    return capfd.readouterr().out


def test_inspect_shows_the_batch_of_any_step(their_run, capfd, tmp_path):
    out = shown(capfd, their_run, "--step=7", "--rows=2", f"--html={tmp_path / 'batch.html'}")
    plan = json.loads((their_run / "data.json").read_text())["fingerprint"]
    assert out.startswith(f"batch 7 of plan {plan}: rows ") and "… and 2 more rows" in out
    assert re.search(
        r"row 1: \d pieces? of their_(text|other)\n  1\. elements \d+ to \d+, epoch \d, of document \d+\n", out
    )
    assert "targets: '" in out and "loss_weights: " in out
    page = (tmp_path / "batch.html").read_text()
    assert plan in page and page.count("<section") == out.count(" of document ") and "<script" not in page
    assert shown(capfd, their_run, "--step=7", "--rows=2") == out != shown(capfd, their_run, "--step=8", "--rows=2")
    validation = shown(capfd, their_run, "--split=validation")
    assert "rows 1 their_text; 2 pieces" in validation and "row 3: empty, past the end of the data" in validation


def test_mistakes_of_inspect_are_one_line(their_run, capfd):
    for arguments, says in (
        (["--step=-1"], "--step"),
        (["--step=99", "--split=validation"], "the data ends before step 99"),
        (["--split=test"], "nothing in split 'test'"),
    ):
        assert main(["inspect", f"--workdir={their_run}", *arguments]) == 2
        assert says in capfd.readouterr().err


def test_a_mixture_changed_on_the_way_is_said_and_seen(their_run, capfd):
    """Last, since it goes on with the run: from step 10 on the other source alone."""
    change = ["--gin.MixtureConfig.weights={'their_other': 1}", "--gin.TRAIN_STEPS=12"]
    assert main(["train", f"--workdir={their_run}", *change]) == 0
    said = capfd.readouterr().err
    assert "data: another mixture from step 10 on, by tokens: their_other 100 % (plan " in said
    phases = json.loads((their_run / "data.json").read_text())["phases"]
    assert [phase["row"] for phase in phases] == [0, 40]
    assert "their_text" in shown(capfd, their_run, "--step=9").splitlines()[0].replace("0 their_text", "")
    assert "rows 4 their_other, 0 their_text" in shown(capfd, their_run, "--step=10")
    assert main(["train", f"--workdir={their_run}", "--gin.SEED=1"]) == 2 and "SEED" in capfd.readouterr().err.upper()
