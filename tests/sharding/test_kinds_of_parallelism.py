"""Every kind of parallelism gives the loss and the gradients of one device, and what makes no sense is refused."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny import CONFIG, FAST_TO_COMPILE, ROOT, TINY_GIN, abstract_mesh, model, run_cli

from pretrain.core.errors import UserError
from pretrain.models.config import Experts
from pretrain.models.vision_config import Vision
from pretrain.objectives.base import Objective
from pretrain.objectives.causal import Causal
from pretrain.objectives.contrastive import ImageText
from pretrain.objectives.pictures import Pictures
from pretrain.objectives.prefix import PrefixLM
from pretrain.sharding.parallelism import Parallelism
from pretrain.sharding.pipeline import last_ticks
from pretrain.sharding.rules import use_mesh
from pretrain.sharding.zigzag import homes
from pretrain.train.loop import Training
from pretrain.training import check_layout

DEVICES = "--xla_force_host_platform_device_count=8"
SCALARS = 512  # bytes of sums that are one number each
DROPPING = Experts(capacity_factor=2.0)
PAIRS = ImageText(pictures=Pictures(image_size=16, channels=1))
TOWERS = {"architecture": "two_towers", "vision": Vision(image_size=16, patch_size=4, channels=1)}
LOSS, GRADIENTS = 1e-6, 3e-5  # float32 sums in another order


def on_eight(script: str, *arguments: str) -> list[dict]:
    """What a script of this folder reports from a process with 8 devices."""
    paths = os.pathsep.join(map(str, (ROOT, ROOT / "tests", ROOT / "tests" / "objectives")))
    flags = f"{DEVICES} {FAST_TO_COMPILE}"
    environment = {**os.environ, "XLA_FLAGS": flags, "PYTHONPATH": paths, "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
    command = [sys.executable, Path(__file__).with_name(script), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment)
    assert done.returncode == 0, done.stderr[-4000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_eight_devices_compute_what_one_does():
    found = on_eight("equal_on_eight.py", "quick")
    assert len(found) == 7
    for apart in found:
        assert apart["loss"] < LOSS and apart["gradients"] < GRADIENTS and apart["devices"] == 8, apart


def test_what_is_split_changes_no_update():
    """ZeRO 1 and 2 hold parameters whole and moments in quarters; 3 both in quarters. Norms are whole always."""
    found = {entry["case"]: entry for entry in on_eight("updates_on_eight.py")}
    assert set(found) == {"zero 1", "zero 2", "zero 3, offloaded"}
    for name, entry in found.items():
        assert entry["apart"] < 2e-5, entry
        assert 0.24 < entry["opt_state"] < 0.3, entry
        assert entry["params"] == 1 if name in ("zero 1", "zero 2") else entry["params"] < 0.3, entry
    assert found["zero 3, offloaded"]["memory"] == ["pinned_host"] != found["zero 2"]["memory"]


def test_a_step_sends_the_bytes_of_the_textbook():
    """To some scalars, for every kind a formula names. The rest is small and no part of any loop: masks, tables."""
    cases = on_eight("bytes_on_eight.py")
    assert len(cases) == 10
    for case in cases:
        found, expected = case["found"], case["expected"]
        for kind, size in expected.items():
            assert 0 <= found[kind] - size <= SCALARS, (kind, case)
        rest = found.keys() - expected.keys()
        assert not any("in loops" in kind for kind in rest), case
        assert sum(found[kind] for kind in rest) < 0.2 * sum(expected.values()), case


def test_1f1b_keeps_fewer_microbatches():
    """Where GPipe keeps 8 layers' inputs of 8 microbatches, it keeps one input of 7 at most."""
    (found,) = on_eight("memory_on_eight.py", "8")
    assert found["1f1b"] < 0.4 * found["gpipe"] and found["1f1b"] < 0.5 * found["gpipe, pipeline_remat"], found


def refusal(use: Parallelism, mesh: dict[str, int], objective: Objective, length: int = 32, **changes) -> str:
    """Why a model of four layers and eight heads cannot be laid out."""
    config = dataclasses.replace(CONFIG, num_layers=4, num_heads=8, **changes)
    training = Training(batch_size=8, sequence_length=length)
    abstract = abstract_mesh(**mesh)
    with pytest.raises(UserError) as refused:
        check_layout(training, config, objective, abstract, use)
    return str(refused.value)


@pytest.mark.parametrize(
    ("use", "mesh", "objective", "changes", "words"),
    [
        (Parallelism(), {"data": 3}, Causal(), {}, "multiple of the 3 ways"),
        (Parallelism("ring"), {"context": 4}, Causal(), {"length": 20}, "a sequence of 20 into 8 parts"),
        (Parallelism("ring"), {"context": 4}, Causal(), {"sliding_window": 4}, "knows documents and causality alone"),
        (Parallelism("ring"), {"context": 4}, Causal(), {"positions": "alibi"}, "knows documents and causality alone"),
        (Parallelism("ring"), {"context": 4}, PrefixLM(), {}, "knows documents and causality alone"),
        (Parallelism("ring"), {"context": 4}, PAIRS, TOWERS, "knows documents and causality alone"),
        (Parallelism("ring"), {"context": 4}, Causal(), {"experts": DROPPING}, "in the order they stand in"),
        (Parallelism("ulysses"), {"context": 8, "tensor": 2}, Causal(), {}, "16 ways), which do not divide"),
        (Parallelism(), {"stage": 3}, Causal(), {}, "4 layers cannot be divided over MeshConfig.stage (3)"),
        (Parallelism(), {"expert": 4}, Causal(), {"experts": Experts(num_experts=6)}, "6 experts cannot be divided"),
        (Parallelism(pipeline_rounds=4), {"stage": 2}, Causal(), {}, "Parallelism.pipeline_rounds (4)"),
        (Parallelism(pipeline_microbatches=3), {"stage": 2}, Causal(), {}, "8 rows of a batch cannot be divided"),
        (Parallelism(pipeline_microbatches=1, pipeline_rounds=2), {"stage": 2}, Causal(), {}, "in multiples of"),
    ],
)
def test_what_makes_no_sense_is_refused_before_anything_is_made(use, mesh, objective, changes, words):
    assert words in refusal(use, mesh, objective, **changes)


def test_decoding_exchanges_no_heads():
    """A cache holds the heads that the model has, also where Ulysses would split a copy for each query head."""
    decoder = model(dataclasses.replace(CONFIG, num_heads=8, kv_heads=2))

    def decode(params, tokens_BL):
        module = decoder.module(params)
        return module.decode(tokens_BL, module.init_cache(2, 8), jnp.int32(0))[1]

    with use_mesh(abstract_mesh(context=4), parallelism=Parallelism("ulysses")):
        cache = jax.eval_shape(decode, decoder.shapes, jax.ShapeDtypeStruct((2, 4), jnp.int32))
    assert cache.key_BSKQ.shape == (CONFIG.num_layers, 2, 8, 2, 4)


def test_the_command_line_refuses_with_exit_code_2(tmp_path, tiny_corpus):
    ring = ["--gin.MeshConfig.context=8", "--gin.MeshConfig.fsdp=1", "--gin.Parallelism.context='ring'"]
    flags = [f"--gin_file={TINY_GIN}", f"--workdir={tmp_path / 'run'}", f"--input={tiny_corpus}"]
    done = run_cli("run", *flags, *ring, "--gin.SEQUENCE_LENGTH=24", XLA_FLAGS=DEVICES)
    assert done.returncode == 2 and "'ring' splits a sequence of 24 into 16 parts" in done.stderr, done.stderr


@pytest.mark.parametrize(
    "value",
    [
        {"context": "Ring"}, {"pipeline_rounds": 0}, {"pipeline_microbatches": 1.5}, {"pipeline_schedule": "1F1B"},
        {"pipeline_schedule": "1f1b", "pipeline_rounds": 2},
    ],
)  # fmt: skip
def test_values_are_checked(value):
    with pytest.raises(UserError, match="Parallelism"):
        Parallelism(**value)


@given(ways=st.integers(1, 64))
def test_zigzag_gives_every_device_an_early_and_a_late_half(ways):
    even, odd = homes(ways)
    assert sorted(even) == sorted(odd) == list(range(ways))
    held = {device: set() for device in range(ways)}
    for here in range(ways):
        held[even[here]].add(2 * here)
        held[odd[here]].add(2 * here + 1)
    assert held == {device: {device, 2 * ways - 1 - device} for device in range(ways)}


@given(stages=st.integers(1, 6), rounds=st.integers(1, 4), groups=st.integers(1, 4))
def test_microbatches_leave_the_pipeline_when_textbooks_say(stages, rounds, groups):
    """In order, one a tick within a group; the last one at the last tick, of which only stages - 1 are idle."""
    ticks = last_ticks(stages, rounds, groups * stages)
    assert (ticks[1:] > ticks[:-1]).all() and ticks[0] == rounds * stages - 1
    assert ticks[-1] + 1 == groups * stages * rounds + stages - 1
