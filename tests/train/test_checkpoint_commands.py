"""`pretrain checkpoint list | verify | diff | prune | average`, on small checkpoints and on a finished run."""

import json
import shutil

import numpy as np
import pytest
from checkpoint_damage import STEPS, state_at, write_checkpoints

from pretrain.core.storage import Path
from pretrain.core.trees import named_leaves
from pretrain.main import main
from pretrain.train.checkpoint_folder import CheckpointFolder
from pretrain.train.stored_arrays import read_arrays


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("commands") / "run"
    write_checkpoints(workdir / "checkpoints")
    return workdir


@pytest.fixture
def workdir(original, tmp_path):
    return shutil.copytree(original, tmp_path / "run")


def call(capsys, *words) -> tuple[int, str, str]:
    code = main(["checkpoint", *map(str, words)])
    told = capsys.readouterr()
    return code, told.out, told.err


def damage(workdir, step: int) -> None:
    (workdir / "checkpoints" / str(step) / "state" / "_METADATA").write_text("{}")


def test_list_tells_of_each_checkpoint_what_it_is(workdir, capsys):
    folder = CheckpointFolder(workdir / "checkpoints")
    folder.pin(10, "before the anneal")
    folder.set_aside(20, "for a look")
    damage(workdir, 30)
    code, out, _ = call(capsys, "list", f"--workdir={workdir}", "--json")
    rows = json.loads(out)
    assert code == 0 and [(row["step"], row["state"]) for row in rows] == [
        (10, "whole"), (20, "set aside"), (30, "damaged"),
    ]  # fmt: skip
    assert rows[0]["pinned"] == "before the anneal" and rows[0]["best"] and rows[0]["loss"] == 0.1
    assert rows[0]["bytes"] > 5000 and "_METADATA has 2 bytes" in rows[2]["reason"]
    _, out, _ = call(capsys, "list", f"--workdir={workdir}")
    assert "pinned: before the anneal" in out and len(out.splitlines()) == 4


def test_verify_reads_every_byte_and_says_so_by_its_exit_code(workdir, capsys):
    assert call(capsys, "verify", f"--workdir={workdir}")[0] == 0
    damage(workdir, 20)
    code, out, err = call(capsys, "verify", f"--workdir={workdir}")
    assert code == 1 and "damaged" in out and err.strip().endswith("not whole: 20")
    assert call(capsys, "verify", f"--workdir={workdir}", "--steps=10,30")[0] == 0


def test_diff_of_two_steps_and_of_one_with_itself(workdir, capsys):
    code, out, _ = call(capsys, "diff", f"--workdir={workdir}", "--step=10", "--other_step=30", "--json")
    result = json.loads(out)
    gap = np.abs(np.asarray(state_at(10).params["embedding"]) - np.asarray(state_at(30).params["embedding"]))
    arrays = {array["name"]: array for array in result["arrays"]}
    assert code == 0 and not result["identical"]
    assert arrays["params/embedding"]["largest"] == pytest.approx(float(gap.max()))
    assert arrays["params/embedding"]["mean"] == pytest.approx(float(gap.mean()), rel=1e-5)
    assert arrays["params/head/scale"]["largest"] == 20
    _, out, _ = call(capsys, "diff", f"--workdir={workdir}", "--step=10", "--other_step=10")
    assert out.endswith("\nidentical\n") and "differs" not in out


def test_prune_removes_what_no_rule_keeps(workdir, capsys):
    CheckpointFolder(workdir / "checkpoints").pin(10, "mine")
    words = ["prune", f"--workdir={workdir}", "--keep=1"]
    code, out, _ = call(capsys, *words, "--dry_run")
    assert code == 0 and "step 20: removed" in out and CheckpointFolder(workdir / "checkpoints").steps() == list(STEPS)
    _, out, _ = call(capsys, *words)
    assert out.splitlines() == ["step 10: kept (pinned)", "step 20: removed", "step 30: kept (newest)"]
    assert CheckpointFolder(workdir / "checkpoints").steps() == [10, 30]


def test_prune_never_counts_on_a_damaged_checkpoint(workdir, capsys):
    damage(workdir, 30)
    _, out, _ = call(capsys, "prune", f"--workdir={workdir}", "--keep=1")
    assert "step 20: kept (newest)" in out and "left alone" in out
    folder = CheckpointFolder(workdir / "checkpoints")
    assert folder.steps() == [20, 30]
    folder.set_aside(30, "damaged")
    call(capsys, "prune", f"--workdir={workdir}", "--damaged")
    assert [path.name for path in (workdir / "checkpoints").iterdir()] == ["20"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["list"], "--workdir is missing"),
        (["list", "--workdir=/nowhere"], "no checkpoint in /nowhere"),
        (["verify", "--workdir={}", "--steps=15"], "no checkpoint of step 15"),
        (["verify", "--workdir={}", "--steps=../10"], "'../10' is not a step"),
        (["diff", "--workdir={}", "--step=15"], "no checkpoint of step 15"),
        (["average", "--workdir={}"], "--output is missing"),
        (["average", "--workdir={}", "--output={}"], "is there already"),
        (["prune", "--workdir={}", "--keep=0"], "keep"),
    ],
)
def test_wrong_requests_are_one_line(words, message, original, capsys):
    code, _, err = call(capsys, *(word.format(original) for word in words))
    assert code == 2 and message in err and len(err.splitlines()) == 1


@pytest.mark.parametrize(
    ("decay", "weights"), [(None, (0.5, 0.5)), (0.9, (0.9**20 / (1 + 0.9**20), 1 / (1 + 0.9**20)))]
)
def test_average_of_a_run_is_a_run_to_evaluate_and_generate_from(tiny_run, tmp_path, capsys, decay, weights):
    output = tmp_path / "soup"
    flags = [] if decay is None else [f"--decay={decay}"]
    assert call(capsys, "average", f"--workdir={tiny_run}", "--steps=20,40", f"--output={output}", *flags)[0] == 0
    parts = [named_leaves(read_arrays(Path(tiny_run) / "checkpoints" / str(step), "params")) for step in (20, 40)]
    made = named_leaves(read_arrays(Path(output) / "checkpoints" / "40"))
    assert made.keys() == parts[0].keys()
    for name, array in made.items():
        expected = weights[0] * parts[0][name].astype(np.float64) + weights[1] * parts[1][name]
        np.testing.assert_allclose(array, expected, rtol=1e-6, atol=1e-8)
    if decay is not None:
        return
    assert main(["evaluate", f"--workdir={output}"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["step"] == 40
    assert main(["generate", f"--workdir={output}", "--max_tokens=3", "--prompt=the cat"]) == 0
    assert main(["train", f"--workdir={output}", "--gin.TRAIN_STEPS=50"]) == 2
    assert "holds parameters only" in capsys.readouterr().err
