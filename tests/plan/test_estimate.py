"""Memory and time by formula, chips, and `pretrain plan` for topologies that are not compiled for."""

import dataclasses
import json
from pathlib import Path

import pytest

from pretrain.core import config as gin_config
from pretrain.core.errors import UserError, check
from pretrain.experiment import Experiment
from pretrain.main import main
from pretrain.models.config import REMAT_NAMES, TransformerConfig
from pretrain.optim.optimizers import Optimizer
from pretrain.plan.chips import parse_pod
from pretrain.plan.estimate import Setting, candidates, changes_that_fit, estimate, values_of_a_layer
from pretrain.sharding.parallelism import Parallelism

ROOT = Path(__file__).resolve().parents[2]
LLAMA = str(ROOT / "gin_configs" / "runs" / "llama3_8b.gin")
ONE = {"data": 1, "fsdp": 1, "stage": 1, "context": 1, "expert": 1, "tensor": 1}
POD = parse_pod("v5p:4x4x4")


def llama(**ways: int) -> Setting:
    assert Experiment  # its parts are what gin files bind
    gin_config.load([LLAMA])
    return Setting(TransformerConfig(), 128, 8192, 1, {**ONE, "fsdp": 64, **ways}, 8_030_261_248)


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


PARAMETERS = 8_030_261_248 / 64  # a chip's, fully sharded


@pytest.mark.parametrize(
    ("use", "microbatches", "more"),
    [(Parallelism(zero=3), 4, 0), (Parallelism(zero=2), 4, 6 * 63), (Parallelism(zero=1), 4, (6 + 4) * 63),
     (Parallelism(zero=1), 1, 6 * 63)],
)  # fmt: skip
def test_what_zero_leaves_whole(use, microbatches, more):
    """Parameters and their copy in bfloat16, 6 bytes each; float32 gradients where more are to be added."""
    guess = estimate(dataclasses.replace(llama(), use=use, microbatches=microbatches), POD)
    assert guess.state == pytest.approx(PARAMETERS * (18 + more))
    sharded = estimate(dataclasses.replace(llama(), microbatches=microbatches), POD)
    if use.zero == 2:  # sums for each microbatch, without the gathers; new parameters once in float32
        assert guess.beside_seconds / sharded.beside_seconds == pytest.approx((2 * 4 + 4) / (6 * 4))


@pytest.mark.parametrize(("state", "bytes_each"), [("float32", 18), ("bfloat16", 14), ("int8", 12 + 8 / 256)])
def test_moments_by_how_they_are_kept(state, bytes_each):
    guess = estimate(dataclasses.replace(llama(), optimizer=Optimizer(state=state)), POD)
    assert guess.state == pytest.approx(PARAMETERS * bytes_each)


def test_offloaded_moments_come_for_the_update_alone():
    here, away = (dataclasses.replace(llama(), use=Parallelism(offload_optimizer=off)) for off in (False, True))
    assert estimate(here, POD).state - estimate(away, POD).state == pytest.approx(8 * PARAMETERS)
    assert estimate(away, POD).peak == pytest.approx(estimate(here, POD).peak - 8 * PARAMETERS)
    few = estimate(dataclasses.replace(away, length=128), POD)
    assert few.peak == few.state + few.fetched  # where the update needs more than the backward pass


def test_an_average_and_bfloat16_parameters_count():
    average = estimate(dataclasses.replace(llama(), optimizer=Optimizer(average=0.999)), POD)
    assert average.state == pytest.approx(22 * PARAMETERS)
    model = dataclasses.replace(llama().model, param_dtype="bfloat16")
    assert estimate(dataclasses.replace(llama(), model=model), POD).state == pytest.approx(16 * PARAMETERS)


def test_mlps_in_parts_need_less_at_once():
    """Of 4 parts: hidden values and gathered matrices of one at a time, and a sum in float32."""
    whole, parts = (dataclasses.replace(llama().model, mlp_chunks=n, vocab_chunks=64) for n in (1, 4))
    most, least = (estimate(dataclasses.replace(llama(), model=m), POD).working for m in (whole, parts))
    tokens, hidden, matrices = 2 * 8192, 14336, 3 * 4096 * 14336
    saved = tokens * 4 * hidden * 2 * 3 / 4 + 2 * matrices * 2 * 3 / 4 - tokens * 4096 * 4
    assert most - least == pytest.approx(saved)


def test_stages_stand_idle_and_keep_what_idle_ticks_see():
    """7 of 23 ticks of 8 stages and 16 microbatches; with 4 rounds, 7 of 71."""
    flat = estimate(llama(fsdp=8, stage=1, data=8), POD)
    use = Parallelism(pipeline_microbatches=16)
    staged = dataclasses.replace(llama(fsdp=8, stage=8), use=use)
    guess = estimate(staged, POD)
    assert guess.compute_seconds == pytest.approx(flat.compute_seconds * 23 / 16)
    assert guess.saved == pytest.approx(flat.saved * 23 / 16)  # 1/8 of the layers, 8 times the tokens
    rounds = dataclasses.replace(staged, use=dataclasses.replace(use, pipeline_rounds=4))
    assert estimate(rounds, POD).compute_seconds == pytest.approx(flat.compute_seconds * 71 / 64)
    assert guess.waited_seconds > 0


def test_1f1b_keeps_little_and_works_more():
    """14 of 30 ticks idle; inputs of 15 microbatches, 4 layers at work, and the whole batch's in and out."""
    use = Parallelism(pipeline_microbatches=16)
    staged = dataclasses.replace(llama(fsdp=8, stage=8), use=use)
    in_turn = dataclasses.replace(staged, use=dataclasses.replace(use, pipeline_schedule="1f1b"))
    before, after = estimate(staged, POD), estimate(in_turn, POD)
    inputs = before.saved / (4 * 23 / 16)  # of one layer, full rematerialisation
    assert after.saved == pytest.approx(inputs * (2 + (15 + 4) / 16))
    assert 1.2 * 30 / 23 < after.compute_seconds / before.compute_seconds < 1.35 * 30 / 23
    assert after.hardware_flops > before.hardware_flops


def test_one_table_says_what_remat_keeps():
    model = llama().model
    kept = lambda **changes: values_of_a_layer(dataclasses.replace(model, **changes))[0]  # noqa: E731
    assert kept(remat="full") == 4096 and kept(remat="offload") == 0
    assert kept(remat="minimal") == kept(remat="named", remat_names=("attention", "gate", "up")) == 2 * 4096 + 2 * 14336
    assert kept(remat="named", remat_names=("key", "mlp_out")) == 2 * 4096 + 1024
    assert kept(remat="named", remat_names=REMAT_NAMES) < kept(remat="none")


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


def test_bindings_lead_away_from_saved_names():
    """ "full" is refused beside names, so they must go as well."""
    model = dataclasses.replace(llama().model, remat="named", remat_names=("attention",))
    now = dataclasses.replace(llama(), model=model)
    full = next(other for other in candidates(now, POD) if other.model.remat == "full")
    bindings = full.bindings(now)
    assert "--gin.TransformerConfig.remat_names=()" in bindings
    gin_config.load(
        [LLAMA], ["TransformerConfig.remat='named'", "TransformerConfig.remat_names=('attention',)",
                  *(binding.removeprefix("--gin.") for binding in bindings if "Transformer" in binding)],
    )  # fmt: skip
    assert TransformerConfig().remat == "full"


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


def test_a_search_says_what_it_was_refused(capsys, monkeypatch):
    """By the run and by the compiler alike; those after them are compiled in their place."""
    made = []

    def make_job(experiment, devices):
        made.append(experiment)
        check(len(made) != 1, "no such mesh here")

    def compile_job(job, pod):
        check(len(made) != 2, "XLA cannot compile this step")
        return {"hbm_bytes": {"peak": 1}, "step_seconds": 1.0, "model_flops": 1.0, "fits": True}

    monkeypatch.setattr("pretrain.ahead_of_time.tpu_devices", lambda pod: [])
    monkeypatch.setattr("pretrain.ahead_of_time.make_job", make_job)
    monkeypatch.setattr("pretrain.ahead_of_time.compile_job", compile_job)
    assert main(["plan", f"--gin_file={LLAMA}", "--topology=v5p:4x4x4", "--search", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert len(made) == 5 and [row["source"] for row in rows[:4]] == ["compiled"] * 3 + ["formula"]
    assert [row["source"] for row in rows[-2:]] == [
        "refused: no such mesh here", "refused: XLA cannot compile this step"]  # fmt: skip
    assert not any(row["fits"] for row in rows[-2:])


def test_models_of_every_kind_are_planned_by_formula(capsys):
    for run, parameters in (("mixtral_8x7b", 46_702_792_704), ("t5_11b", None)):
        path = ROOT / "gin_configs" / "runs" / f"{run}.gin"
        assert main(["plan", f"--gin_file={path}", "--topology=h200:256", "--json"]) == 0
        result = json.loads(capsys.readouterr().out)
        assert result["fits"] and result["parameters"] == (parameters or result["parameters"])


def test_without_the_compiler_the_error_says_what_to_install(capsys, monkeypatch):
    monkeypatch.setattr("pretrain.ahead_of_time.importlib.util.find_spec", lambda name: None)
    assert main(["plan", f"--gin_file={LLAMA}", "--topology=v5p:4x4x4"]) == 2
    assert "pip install 'pretrain[tpu]'" in capsys.readouterr().err


def test_a_compiler_is_asked_for_only_where_there_is_one(capsys):
    assert main(["plan", f"--gin_file={LLAMA}", "--topology=h100:64", "--show_sharding"]) == 2
    assert "needs a TPU topology" in capsys.readouterr().err
