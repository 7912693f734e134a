"""Plans compiled again by the TPU compiler: peaks as recorded, Pallas attention, collectives by formula, exit codes.

`make test-tpu-plan`, in an environment with libtpu: each plan takes about a minute on two cores.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
RECORD = json.loads((ROOT / "benchmarks" / "pod_plans.json").read_text())
QUICK = ["llama3-8b", "llama3-8b v5e"]
TOLERANCE = 0.02


def pretrain(*arguments: str) -> tuple[int, str, str]:
    """Exit code and what it printed."""
    command = [sys.executable, "-m", "pretrain", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=900)
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize("name", QUICK)
def test_peak_is_as_recorded(name):
    recorded = RECORD[name]
    code, out, err = pretrain(*recorded["command"].split()[1:], "--json")
    assert code == (0 if recorded["fits"] else 3), err[-2000:]
    result = json.loads(out)
    assert result["parameters"] == recorded["parameters"]
    assert result["hbm_bytes"]["peak"] == pytest.approx(recorded["hbm_bytes"]["peak"], rel=TOLERANCE)
    assert result["hardware_flops"] == pytest.approx(recorded["hardware_flops"], rel=TOLERANCE)
    assert not result["unknown_loops"]
    assert any("splash" in kernel for kernel in result["kernels"])


TINY = [
    "--gin_file=gin_configs/runs/llama2_7b.gin", "--gin.TransformerConfig.num_layers=2", "--gin.BATCH_SIZE=64",
    "--gin.TransformerConfig.embed_dim=1024", "--gin.TransformerConfig.num_heads=8",
    "--gin.TransformerConfig.kv_heads=8", "--gin.TransformerConfig.mlp_dim=2048",
    "--gin.TransformerConfig.vocab_size=8192", "--gin.SEQUENCE_LENGTH=512", "--topology=v5e:2x4",
]  # fmt: skip


def test_what_does_not_fit_says_what_would():
    """The compiler gives up and says how much memory it wanted: that is an answer."""
    code, out, err = pretrain("plan", *TINY[:1], "--topology=v5e:2x2", "--json")
    assert code == 3, err[-2000:]
    assert "does not fit on v5e:2x2" in err
    result = json.loads(out)
    memory = result["hbm_bytes"]
    assert not result["fits"] and memory["peak"] > memory["capacity"]
    assert memory["arguments"] > 12 * result["parameters"] / 4  # a quarter of float32 parameters and moments
    assert result["hardware_flops"] > result["model_flops"] and result["step_seconds"] > 0
    assert [change["bindings"] for change in result["changes"]] == ["4 times the chips: nothing else is enough"]


def test_the_three_cheapest_changes_that_would_fit():
    """A small model whose batch is too large, and whose layers keep everything, has other ways out than more chips."""
    code, out, err = pretrain("plan", *TINY, "--gin.BATCH_SIZE=4096", "--gin.REMAT='none'", "--json")
    assert code == 3, err[-2000:]
    result = json.loads(out)
    assert len(result["changes"]) == 3
    assert all("--gin." in change["bindings"] for change in result["changes"])
    assert all(change["peak"] < result["hbm_bytes"]["capacity"] for change in result["changes"])


def test_a_side_of_a_slice_may_be_divided():
    """8 x 2 on 4 x 4: no size is a side."""
    code, out, err = pretrain("plan", *TINY[:-1], "--topology=v6e:4x4", "--gin.MeshConfig.tensor=2", "--json")
    assert code == 0, err[-2000:]
    result = json.loads(out)
    assert result["mesh"]["fsdp"] == 8 and result["mesh"]["tensor"] == 2


@pytest.mark.parametrize("across", ["data", "stage"])
def test_what_goes_between_slices_is_counted(across):
    """Also where both could go across: stages do, which are outermost in the mesh."""
    flags = [f"--gin.MeshConfig.{across}=2", *(["--gin.MeshConfig.data=2"] if across == "stage" else [])]
    code, out, err = pretrain("plan", *TINY[:-1], "--topology=v5p:2x2x1", "--slices=2", *flags, "--json")
    assert code == 0, err[-2000:]
    result = json.loads(out)
    assert across in {each["axes"] for each in result["collectives"] if each["size"] == 2}, result["collectives"]


def test_saved_plans_are_a_compilation_cache(tmp_path):
    code, _, err = pretrain("plan", *TINY, f"--save={tmp_path}")
    assert code == 0, err[-2000:]
    names = [path.name for path in tmp_path.iterdir()]
    assert "step.jax_export" in names and any(name.startswith("jit_train") for name in names), names


def test_the_layout_of_everything():
    code, out, err = pretrain("plan", *TINY, "--show_sharding", "--json")
    assert code == 0, err[-2000:]
    rows = json.loads(out)
    assert {row["kind"] for row in rows} == {"parameter", "batch", "activation"}
    embedding = next(row for row in rows if row["name"] == "embedding")
    assert embedding["spec"] == [None, "fsdp"] and embedding["bytes"] == 8192 * 1024 * 4 // 8
