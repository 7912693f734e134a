"""Memory and time by formula, chips, and `pretrain plan` for topologies that are not compiled for."""

import dataclasses
import json
from pathlib import Path

import pytest

from pretrain.core import config as gin_config
from pretrain.core.errors import UserError
from pretrain.experiment import Experiment
from pretrain.main import main
from pretrain.models.config import REMAT_NAMES, TransformerConfig
from pretrain.plan.chips import parse_pod
from pretrain.plan.estimate import Setting, candidates, changes_that_fit, estimate

ROOT = Path(__file__).resolve().parents[2]
LLAMA = str(ROOT / "gin_configs" / "runs" / "llama3_8b.gin")
ONE = {"data": 1, "fsdp": 1, "stage": 1, "context": 1, "expert": 1, "tensor": 1}
POD = parse_pod("v5p:4x4x4")


def llama(**ways: int) -> Setting:
    assert Experiment  # its parts are what gin files bind
    gin_config.load([LLAMA])
    return Setting(TransformerConfig(), 128, 8192, 1, {**ONE, "fsdp": 64, **ways})


def test_what_is_known_by_arithmetic():
    guess = estimate(llama(), POD)
    assert guess.saved == 32 * 2 * 8192 * 4096 * 2  # 32 layers' inputs of 2 sequences, bfloat16: 4 GiB
    assert guess.state == pytest.approx(8.03e9 * 18 / 64, rel=0.01)
    assert guess.hardware_flops / guess.model_flops == pytest.approx(4 / 3, rel=0.02)  # full rematerialisation
    assert guess.step_seconds == guess.compute_seconds > guess.beside_seconds > guess.waited_seconds == 0


@pytest.mark.parametrize(
    ("change", "smaller"), [({"remat": "minimal"}, False), ({"remat": "none"}, False), ({"remat": "offload"}, True)]
)
def test_remat_trades_memory_for_flops(change, smaller):
    full = llama()
    other = dataclasses.replace(full, model=dataclasses.replace(full.model, **change))
    assert (estimate(other, POD).peak < estimate(full, POD).peak) is smaller
    assert estimate(other, POD).hardware_flops <= estimate(full, POD).hardware_flops


def test_replicas_between_slices_are_slower_than_within():
    setting = llama(data=2, fsdp=32)
    near, far = parse_pod("v5p:4x4x4"), parse_pod("v5p:4x4x2", 2)
    assert estimate(setting, near).waited_seconds == 0
    assert estimate(setting, far).waited_seconds > estimate(setting, near).beside_seconds


def test_what_is_saved_is_not_computed_again():
    plain = estimate(llama(), POD)
    saved = dataclasses.replace(llama().model, remat="named", remat_names=REMAT_NAMES)
    guess = estimate(dataclasses.replace(llama(), model=dataclasses.replace(saved, vocab_chunks=1)), POD)
    assert guess.hardware_flops == guess.model_flops < plain.hardware_flops


def test_tensor_parallelism_waits_for_its_network():
    split = llama(fsdp=16, tensor=4)
    hidden = 128 * 8192 * 4096 * 2 * 32 / 16  # bytes of hidden states in all layers, of one row of the mesh
    assert estimate(split, POD).waited_seconds == pytest.approx(8 * hidden * 3 / 4 / (POD.chip.links / 3))


def test_candidates_fill_the_pod_and_divide_the_batch():
    found = list(candidates(llama(), POD))
    assert len(found) > 20
    for setting in found:
        ways = setting.ways
        assert ways["data"] * ways["fsdp"] * ways["tensor"] == 64
        assert setting.batch_size % (setting.microbatches * ways["data"] * ways["fsdp"]) == 0
        assert setting.model.num_kv_heads % ways["tensor"] == 0


def test_changes_that_fit_are_cheap_and_fit():
    tight = llama(data=64, fsdp=1)
    peak = estimate(tight, POD).peak
    assert peak > POD.chip.memory
    changes = changes_that_fit(tight, peak, POD)
    assert len(changes) == 3
    assert all(change["peak"] <= POD.chip.memory for change in changes)
    assert [c["slower"] for c in changes] == sorted(c["slower"] for c in changes)
    assert "MeshConfig" in changes[0]["bindings"]
    hopeless = changes_that_fit(llama(), 100 * peak, POD)
    assert "times the chips" in hopeless[0]["bindings"]


def test_bandwidth_by_what_a_group_spans():
    pod = parse_pod("v5p:4x4x4", 2)
    assert pod.bandwidth(list(range(64))) == pod.chip.links
    assert pod.bandwidth(list(range(4))) == pod.chip.links / 3
    assert pod.bandwidth([0, 64]) == pod.chip.slow_links
    assert parse_pod("h100:16").bandwidth(list(range(16))) == parse_pod("h100:16").chip.slow_links


@pytest.mark.parametrize(
    ("text", "wraps"),
    [("v5p:4x4x8", (True,) * 3), ("v5p:2x4x4", (False,) * 3), ("v5e:8x16", (False, True, False)),
     ("v6e:16x16", (True, True, False))],
)  # fmt: skip
def test_dimensions_that_close_to_rings(text, wraps):
    assert parse_pod(text).wraps == wraps


@pytest.mark.parametrize("text", ["v5p", "v5p:4x4", "v5e:4x4x4", "v9:2x2", "v5p:0x1x1", "h100:x"])
def test_topologies_that_are_none(text):
    with pytest.raises(UserError, match="--topology="):
        parse_pod(text)


def test_a_gpu_mesh_is_estimated_and_says_so(capsys):
    assert main(["plan", f"--gin_file={LLAMA}", "--topology=h100:64", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert "nothing was compiled" in result["estimate"]
    assert result["parameters"] == 8_030_261_248
    assert set(result["hbm_bytes"]) == {"arguments", "temporaries", "outputs", "aliased", "peak", "capacity"}
    assert result["fits"] and 0 < result["mfu"] < 1
    assert result["budget"]["tokens"] == pytest.approx(15e12, rel=0.001)
    assert main(["plan", f"--gin_file={LLAMA}", "--topology=h100:64"]) == 0
    assert "estimate by formula" in capsys.readouterr().out


def test_what_does_not_fit_ends_with_3_and_changes_that_would(capsys):
    flags = [f"--gin_file={LLAMA}", "--topology=h100:64", "--gin.MeshConfig.data=64", "--gin.MeshConfig.fsdp=1"]
    assert main(["plan", *flags, "--gin.BATCH_SIZE=128"]) == 3
    said = capsys.readouterr()
    assert "DOES NOT FIT" in said.out and "--gin.MeshConfig.fsdp" in said.out
    assert "does not fit on h100:64" in said.err


def test_a_search_ranks_what_fits(capsys):
    assert main(["plan", f"--gin_file={LLAMA}", "--topology=h100:64", "--search", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert len(rows) == 20
    assert [row["step_seconds"] for row in rows] == sorted(row["step_seconds"] for row in rows)
    assert all(row["peak"] <= 80e9 for row in rows)


def test_without_the_compiler_the_error_says_what_to_install(capsys, monkeypatch):
    monkeypatch.setattr("pretrain.ahead_of_time.importlib.util.find_spec", lambda name: None)
    assert main(["plan", f"--gin_file={LLAMA}", "--topology=v5p:4x4x4"]) == 2
    assert "pip install 'pretrain[tpu]'" in capsys.readouterr().err


def test_a_compiler_is_asked_for_only_where_there_is_one(capsys):
    assert main(["plan", f"--gin_file={LLAMA}", "--topology=h100:64", "--show_sharding"]) == 2
    assert "needs a TPU topology" in capsys.readouterr().err
