"""A sweep's grid is what it says, its runs are ordinary runs, and a killed one goes on."""

import json
import math
import shlex

import pytest
from tiny import FAST_TO_COMPILE, TINY_GIN, run_cli, write_corpus

from pretrain.core.errors import UserError
from pretrain.models.config import TransformerConfig
from pretrain.plan.points import read_points
from pretrain.plan.sweep import Sweep, final_loss, grid, launch_lines, write_points

MODEL = TransformerConfig(vocab_size=1024, embed_dim=256, num_heads=8, mlp_dim=688)
SWEEP = Sweep(budgets=(2e15, 1e15, 4e15), sizes=4, head_dim=32, held_out=3.0)


def test_runs_of_a_budget_cost_the_same_and_spread_about_the_middle():
    runs = grid(SWEEP, MODEL, 4096)
    assert len(runs) == 13 and [run.held_out for run in runs] == [False] * 12 + [True]
    for run in runs[:-1]:
        budget = min(SWEEP.budgets, key=lambda b: abs(b / run.flops - 1))
        assert run.flops == pytest.approx(budget, rel=0.02)
        assert run.tokens == 4096 * run.steps
    sizes = [run.params for run in runs[:4]]
    assert sizes == sorted(sizes) and math.sqrt(sizes[0] * sizes[-1]) == pytest.approx((1e15 / 120) ** 0.5, rel=0.3)
    assert runs[-1].flops == pytest.approx(1.2e16, rel=0.02)
    assert len({run.name for run in runs}) == 13


@pytest.mark.parametrize("wrong", [{"sizes": 2}, {"budgets": ()}, {"spread": 1.0}, {"head_dim": 0}])
def test_a_wrong_grid_is_refused(wrong):
    with pytest.raises(UserError, match="Sweep"):
        Sweep(**wrong)


def test_sizes_that_fall_together_are_refused():
    with pytest.raises(UserError, match="too small or too close"):
        grid(Sweep(budgets=(1e9, 2e9), head_dim=64), MODEL, 1024)


def test_a_cluster_gets_one_line_a_run():
    runs = grid(SWEEP, MODEL, 4096)
    lines = launch_lines(runs, "gs://b/sweep", ["a.gin"], ["SEED=3"])
    assert len(lines) == len(runs)
    assert lines[0].startswith("pretrain train --gin_file=a.gin --workdir=gs://b/sweep/runs/")
    words = shlex.split(lines[0])  # as a shell reads it
    assert "--gin.SEED=3" in words and "--gin.Experiment.data='gs://b/sweep'" in words


def test_finished_runs_are_read_back(tmp_path):
    runs = grid(SWEEP, MODEL, 4096)
    folder = tmp_path / "runs" / runs[0].name
    folder.mkdir(parents=True)
    row = {"step": runs[0].steps - 1, "validation_loss": 9.0}
    (folder / "metrics.jsonl").write_text(json.dumps(row) + "\n")
    assert final_loss(str(tmp_path), runs[0]) is None  # not finished
    (folder / "metrics.jsonl").write_text(json.dumps({**row, "step": runs[0].steps}) + "\n")
    assert final_loss(str(tmp_path), runs[0]) == 9.0
    points, held = read_points(str(write_points(str(tmp_path), runs)))
    assert points.params.tolist() == [runs[0].params] and held is None


def test_a_sweep_runs_and_a_second_one_finds_it_done(tmp_path):
    """One tiny budget end to end; the second call trains nothing."""
    write_corpus(tmp_path / "a.jsonl")
    workdir = tmp_path / "sweep"
    flags = [
        "scaling", "sweep", f"--gin_file={TINY_GIN}", f"--workdir={workdir}", f"--gin.INPUT='{tmp_path}/*.jsonl'",
        "--gin.Sweep.budgets=(2e9,)", "--gin.Sweep.sizes=3", "--gin.Sweep.spread=9.0", "--gin.Sweep.head_dim=4",
        "--gin.Sweep.held_out=0.0", "--gin.EVAL_EVERY=1000000", "--gin.TransformerConfig.kv_heads=None",
        "--gin.BATCH_SIZE=16", "--gin.CHECKPOINT_EVERY=200",
    ]  # fmt: skip
    fast = {"XLA_FLAGS": FAST_TO_COMPILE, "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
    first = run_cli(*flags, **fast)
    assert first.returncode == 0, first.stderr
    points, _ = read_points(str(workdir / "points.csv"))
    assert len(points) == 3 and points.flops == pytest.approx(2e9, rel=0.2)
    again = run_cli(*flags, **fast)
    assert again.returncode == 0 and "sweep: run" not in again.stderr
