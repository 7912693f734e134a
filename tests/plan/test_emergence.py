"""Emergence scores by their definition, the frontier they are taken over, and the command from a sweep to its files."""

import csv
import io
import json
import math
import shutil

import matplotlib.image
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pretrain.main import main
from pretrain.plan.emergence import emergence_score, emergence_table, frontier, scores_csv, sharpness, signed_rise
from pretrain.plan.emergence_plot import draw_emergence

BUDGETS = (1e12, 2e12, 4e12, 8e12)


@pytest.mark.parametrize(
    ("values", "score"),
    [
        ([0, 1], 1), ([0, 1, 2, 3], 3), ([3, 2, 1, 0], -3), ([2, 2, 2], 0), ([0, 0, 0, 1], math.inf),
        ([1, 0, 0, 0], -math.inf), ([0, 0.01, 0.02, 1], 1 / 0.01), ([0, 0.1, 0.3, 0.9, 0.6], 0.9 / np.sqrt(0.065)),
    ],
)  # fmt: skip
def test_scores_of_known_curves(values, score):
    assert emergence_score(values) == pytest.approx(score)


@given(st.lists(st.integers(-50, 50), min_size=2, max_size=9), st.floats(0.1, 10), st.floats(-5, 5))
@settings(deadline=None, max_examples=80)
def test_the_score_has_no_unit_and_turns_with_the_curve(values, scale, shift):
    y = np.array(values, float)
    score = emergence_score(y)
    assert emergence_score(scale * y) == pytest.approx(score)
    if len(set(values)) == len(values):  # else argmax and argmin depend on which of two comes first
        assert emergence_score(-y) == pytest.approx(-score)
        assert abs(signed_rise(y + shift)) == pytest.approx(np.ptp(y))


def checkpoint(run: str, flops: float, loss: float | None, **changes) -> dict:
    known = {"run": run, "step": 10, "params": 1000, "tokens": 10**6, "flops": flops, "validation_loss": loss}
    return known | {"final": True} | changes


def test_the_frontier_is_the_best_finished_model_of_each_budget():
    given_points = [
        checkpoint("b-good", 2.05e12, 3.0), checkpoint("a", 1e12, 3.5), checkpoint("b-bad", 2e12, 3.2),
        checkpoint("c", 4e12, None), checkpoint("a-early", 0.5e12, None, final=False),
    ]  # fmt: skip
    assert [c["run"] for c in frontier(given_points)] == ["a", "b-good"]
    assert frontier(given_points[3:]) == []


def made(curves: dict[str, list[float]], error: float = 0.001) -> dict:
    """A result of one task and size; beside each frontier model a worse one of its budget, with other values."""
    budgets = BUDGETS[: len(next(iter(curves.values())))]
    checkpoints, scores = [], []
    for index, flops in enumerate(budgets):
        for run, loss in ((f"good{index}", 3 - index / 10), (f"bad{index}", 3.9)):
            checkpoints.append(checkpoint(run, flops, loss, params=1000 * (index + 1)))
            values = {name: curve[index] if run[0] == "g" else 0.123 for name, curve in curves.items()}
            errors = {f"{name}_error": error for name in curves}
            scores.append({"run": run, "step": 10, "task": "copy", "size": 2, "questions": 9, "answer_tokens": 3.0,
                           "predicted_exact_match": 0.5, **values, **errors})  # fmt: skip
    metrics = {
        name: {"title": f"{name}, unit", "continuous": name != "hit", "higher_is_better": name != "miss",
               "chance": 0.25 if name == "hit" else None}
        for name in curves
    }  # fmt: skip
    result = {"checkpoints": checkpoints, "scores": scores, "metrics": metrics, "pairs": [["hit", "miss"]],
              "tasks": {"copy": {"title": "copy, letters", "sizes": [2]}}, "left_out": []}  # fmt: skip
    return result | {"sharpness": sharpness(result)}


def test_sharpness_takes_the_frontier_and_turns_metrics_where_less_is_better():
    rows = made({"hit": [0.0, 0.01, 0.02, 0.9], "miss": [4.0, 3.0, 2.0, 1.0]})["sharpness"]
    hit, miss = rows
    assert hit["metric"] == "hit" and hit["rise"] == pytest.approx(0.9) and hit["score"] == pytest.approx(90)
    assert miss["rise"] == pytest.approx(3) and miss["score"] == pytest.approx(3) and miss["note"] == ""
    assert hit["error"] == pytest.approx(0.001 * np.sqrt(2))


def test_what_has_no_score_says_why():
    rows = made({"hit": [0.0, 0.0, 0.0, 0.5], "miss": [1.0, 1.001, 1.002, 0.999]})["sharpness"]
    assert [(row["score"], row["note"]) for row in rows] == [(None, "all in one step"), (None, "within noise")]
    few = made({"hit": [0.0, 0.5], "miss": [1.0, 0.0]})
    assert {row["note"] for row in few["sharpness"]} == {"fewer than 3 budgets"}
    assert "2 budgets are finished and 3 are needed" in emergence_table(few)
    json.dumps(few, allow_nan=False)


def test_the_table_names_the_best_model_and_what_changed():
    text = emergence_table(made({"hit": [0.0, 0.0, 0.0, 0.5], "miss": [4.0, 3.0, 2.0, 1.0]}))
    assert text.startswith("good3: 4k parameters, 8T FLOPs, validation loss 2.700")
    line = next(line for line in text.splitlines() if line.startswith("copy") and "+" in line)
    assert line.split() == ["copy", "2", "+0.500", "(inf)", "+3.000", "(3.0)"]


def test_csv_has_a_row_a_checkpoint_and_cell():
    result = made({"hit": [0.0, 0.1, 0.2, 0.5], "miss": [4.0, 3.0, 2.0, 1.0]})
    rows = list(csv.DictReader(io.StringIO(scores_csv(result))))
    assert len(rows) == 8 and float(rows[6]["hit"]) == 0.5 and float(rows[6]["flops"]) == 8e12
    assert rows[6]["run"] == "good3" and rows[6]["task"] == "copy"


@pytest.mark.parametrize("budgets", [1, 4])
def test_the_picture_is_a_png_that_grows_with_tasks(budgets):
    result = made({"hit": [0.0, 0.1, 0.2, 0.5][:budgets], "miss": [4.0, 3.0, 2.0, 1.0][:budgets]})
    one = matplotlib.image.imread(io.BytesIO(draw_emergence(result)))
    more = result["scores"] + [{**row, "task": "sort"} for row in result["scores"]]
    both = result | {"scores": more, "tasks": {**result["tasks"], "sort": {"title": "sort", "sizes": [2]}}}
    two = matplotlib.image.imread(io.BytesIO(draw_emergence(both)))
    assert two.shape[1] > one.shape[1] > 100 and two.shape[0] == one.shape[0]
    assert one[..., :3].std() > 0.01  # not blank


@pytest.fixture(scope="module")
def sweep(tmp_path_factory, tiny_run):
    """A sweep of two finished runs and one that was killed."""
    folder = tmp_path_factory.mktemp("sweep") / "scaling"
    shutil.copytree(tiny_run / "cache" / "tokenizer", folder / "cache" / "tokenizer")
    for name in ("a", "b", "killed", "no_checkpoint"):
        keep = shutil.ignore_patterns("cache", "corpus", "tensorboard", "report.html")
        shutil.copytree(tiny_run, folder / "runs" / name, ignore=keep)
    rows = (folder / "runs" / "killed" / "metrics.jsonl").read_text().splitlines()
    (folder / "runs" / "killed" / "metrics.jsonl").write_text("\n".join(rows[:-1]) + "\n")
    shutil.rmtree(folder / "runs" / "no_checkpoint" / "checkpoints")
    return folder


def test_a_sweep_is_evaluated_from_its_folder(sweep, capfd):
    flags = [f"--workdir={sweep}", "--questions=6", "--task=induction_tokens", "--task=copy", "--checkpoints=all"]
    assert main(["scaling", "emergence", *flags, "--json"]) == 0
    out, err = capfd.readouterr()
    result = json.loads(out)
    assert result == json.loads((sweep / "emergence.json").read_text())
    assert [(c["run"], c["step"], c["final"]) for c in result["checkpoints"]] == [
        ("a", 20, False), ("a", 40, True), ("b", 20, False), ("b", 40, True)
    ]  # fmt: skip
    assert result["checkpoints"][1]["tokens"] == 40 * 4 * 32
    found = {(row["run"], row["step"], row["task"], row["size"]) for row in result["scores"]}
    assert len(found) == len(result["scores"])
    assert {cell[2:] for cell in found} >= {("induction_tokens", 1), ("induction_tokens", 4), ("copy", 1)}
    # a context of 32 bytes is too little for the rest: said once on the terminal, kept for each run in the file
    assert err.count("left out induction_tokens of size 8: 36 tokens do not fit a context of 32") == 1
    assert {row["run"] for row in result["left_out"] if row["size"] == 8} == {"a", "b"}
    assert "left out killed: it is at step" in err and "left out no_checkpoint: it has no checkpoint any more" in err
    twins = [[{**row, "run": ""} for row in result["scores"] if row["run"] == name] for name in "ab"]
    assert twins[0] == twins[1]  # copies of one run
    assert (sweep / "emergence.csv").read_text().count("\n") == 1 + len(result["scores"])
    assert (sweep / "emergence.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "--workdir is missing"),
        (["--workdir=nowhere"], "nowhere holds no sweep"),
        (["--workdir={}", "--gin_file=a.gin"], "--gin_file has no use here"),
        (["--workdir={}", "--task=chess"], "--task=chess: no such task; there are induction_tokens"),
        (["--workdir={}", "--task=capital"], "no question of these tasks fits the models' context"),
        (["--workdir={}", "--checkpoints=some"], "--checkpoints"),
        (["--workdir={}/runs/killed"], "holds no sweep"),
        (["--workdir={}", "--gin.Training.stepz=3"], "stepz"),
    ],
)
def test_mistakes_are_one_line(sweep, capfd, arguments, says):
    assert main(["scaling", "emergence", *(argument.format(sweep) for argument in arguments)]) == 2
    lines = [line for line in capfd.readouterr().err.splitlines() if line.startswith("pretrain: ")]
    assert len(lines) == 1 and says in lines[0]


def test_a_sweep_without_a_finished_run_says_so(sweep, tmp_path, capfd):
    shutil.copytree(sweep / "runs" / "killed", tmp_path / "runs" / "killed")
    assert main(["scaling", "emergence", f"--workdir={tmp_path}"]) == 2
    assert "no run of" in capfd.readouterr().err
