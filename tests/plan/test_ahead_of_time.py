"""Reports of steps that compile, that do not, and that are saved; what says what libtpu says stands in for it."""

import json
from pathlib import Path
from types import SimpleNamespace

import jax
import pytest

from pretrain import ahead_of_time
from pretrain.core import config as gin_config
from pretrain.core.errors import UserError
from pretrain.core.storage import Path as StoragePath
from pretrain.experiment import Experiment
from pretrain.main import main
from pretrain.plan.chips import parse_pod

ROOT = Path(__file__).resolve().parents[2]
RUN = str(ROOT / "gin_configs" / "runs" / "llama2_7b.gin")
CHIP = parse_pod("v5e:1x1")
PROGRAM = """
ENTRY %main (x: bf16[64,32], w: bf16[32,16]) -> bf16[64,16] {
  %x = bf16[64,32]{1,0} parameter(0)
  %w = bf16[32,16]{1,0} parameter(1)
  ROOT %y = bf16[64,16]{1,0} dot(%x, %w), lhs_contracting_dims={1}, rhs_contracting_dims={0}
}
"""
USAGE = "Memory Space: default (color=0)\nTotal bytes: 5000 (4.88KiB)\n"
TEMPORARIES = (
    "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO temporaries (198.44G) exceeds "
    "available HBM (15.75G)."
)
USED = "RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 20.50G of 15.75G hbm."
SIZES = {
    "argument_size_in_bytes": 3000, "temp_size_in_bytes": 4000, "output_size_in_bytes": 200,
    "alias_size_in_bytes": 100,
}  # fmt: skip


class Compiler:
    """Stands in for a lowered step: writes what libtpu would into the folder it is told, then returns or fails."""

    def __init__(self, files: dict[str, str], error: str | None = None):
        self.files, self.error, self.options = files, error, []

    def compile(self, compiler_options):
        self.options.append(compiler_options)
        for kind, text in self.files.items():
            path = Path(compiler_options["xla_dump_to"]) / f"module_0001.jit_train.after_optimizations{kind}.txt"
            path.write_text(text)
        if self.error:
            raise RuntimeError(self.error)
        return SimpleNamespace(memory_analysis=lambda: SimpleNamespace(**SIZES))


@pytest.fixture(scope="module")
def job():
    gin_config.load([RUN], ["TransformerConfig.num_layers=2", "BATCH_SIZE=4", "SEQUENCE_LENGTH=512"])
    return ahead_of_time.make_job(Experiment(""), jax.devices()[:1])


def report(job, compiler: Compiler, monkeypatch, save=None) -> dict:
    monkeypatch.setattr(ahead_of_time.Job, "lower", lambda self: compiler)
    monkeypatch.setattr(ahead_of_time, "_save", lambda job, folder: None)
    try:
        return ahead_of_time.compile_job(job, CHIP, save)
    finally:
        jax.config.update("jax_compilation_cache_dir", None)


def test_a_saved_plan_says_what_one_that_is_not_saved_says(job, monkeypatch, tmp_path):
    compiler = Compiler({"": PROGRAM, "-memory-usage-report": USAGE})
    plain, saved = report(job, compiler, monkeypatch), report(job, compiler, monkeypatch, StoragePath(tmp_path))
    assert plain["hbm_bytes"] == saved["hbm_bytes"] and plain["hbm_bytes"]["peak"] == 5000
    assert plain["hardware_flops"] == saved["hardware_flops"] == 2 * 64 * 32 * 16
    assert compiler.options[0].keys() == compiler.options[1].keys()


@pytest.mark.parametrize(("message", "gib", "counts_arguments"), [(TEMPORARIES, 198.44, False), (USED, 20.5, True)])
def test_a_step_too_large_to_compile_has_a_report(job, monkeypatch, tmp_path, message, gib, counts_arguments):
    compiler = Compiler({"_before_buffer_assignment": PROGRAM}, message)
    for save in (None, StoragePath(tmp_path)):
        result = report(job, compiler, monkeypatch, save)
        memory = result["hbm_bytes"]
        assert not result["fits"] and result["step_seconds"] > 0 and result["mfu"] > 0
        arguments = 12 * result["parameters"]  # float32 parameters and two moments; the batch and counters are small
        assert memory["arguments"] == pytest.approx(arguments, rel=1e-3)
        whole = gib * 2**30 + (0 if counts_arguments else memory["arguments"])
        assert memory["peak"] == pytest.approx(whole, rel=1e-6) and memory["aliased"] == memory["outputs"]


def test_what_the_compiler_refuses_for_another_reason_is_an_error(job, monkeypatch):
    with pytest.raises(UserError, match="XLA cannot compile this step for v5e:1x1: INTERNAL: a bug"):
        report(job, Compiler({}, "INTERNAL: a bug\nat length"), monkeypatch)
    with pytest.raises(UserError, match="before its program was made"):
        report(job, Compiler({}, TEMPORARIES), monkeypatch)


def test_out_of_memory_ends_with_3_and_the_three_cheapest_changes(monkeypatch, capsys):
    device = jax.devices()[:1]
    monkeypatch.setattr(ahead_of_time, "tpu_devices", lambda chips: device)
    monkeypatch.setattr(ahead_of_time.Job, "lower", lambda self: Compiler({"_before_buffer_assignment": PROGRAM}, USED))
    flags = ["--gin.TransformerConfig.num_layers=2", "--gin.BATCH_SIZE=64", "--gin.SEQUENCE_LENGTH=4096"]
    assert main(["plan", f"--gin_file={RUN}", "--topology=v5e:1x1", *flags, "--json"]) == 3
    said = capsys.readouterr()
    assert "does not fit on v5e:1x1" in said.err and "Traceback" not in said.err
    changes = json.loads(said.out)["changes"]
    assert len(changes) == 3 and all(change["peak"] <= CHIP.chip.memory for change in changes)
