"""Run in a process with 8 forced host devices: what each schedule of a pipeline keeps while gradients are made.

PYTHONPATH=.:tests:tests/objectives XLA_FLAGS=--xla_force_host_platform_device_count=8 \
    python tests/sharding/memory_on_eight.py [MICROBATCHES ...]

32 layers on 4 stages x data 2, 4 rows of 64 tokens a microbatch, full rematerialisation. Prints a JSON object for each
number of microbatches: bytes of temporaries on a device, as XLA counts them, by schedule.
"""

import dataclasses
import json
import sys

import conformance
import jax
from tiny import CONFIG, model

from pretrain.objectives.causal import Causal
from pretrain.sharding.mesh import MeshConfig, make_mesh
from pretrain.sharding.parallelism import Parallelism
from pretrain.sharding.placement import batch_shardings, tree_shardings
from pretrain.sharding.rules import use_mesh
from pretrain.train.step import StepBuilder

LENGTH, ROWS = 64, 4
DEEP = dataclasses.replace(
    CONFIG, num_layers=32, embed_dim=32, num_heads=2, kv_heads=2, head_dim=16, mlp_dim=64, remat="full", vocab_size=192
)
SCHEDULES = {
    "gpipe": Parallelism(),
    "gpipe, pipeline_remat": Parallelism(pipeline_remat=True),
    "1f1b": Parallelism(pipeline_schedule="1f1b"),
}


def temporaries(microbatches: int, use: Parallelism) -> int:
    """Bytes on a device."""
    objective, on = Causal().bind(conformance.VOCABULARY), make_mesh(MeshConfig(stage=4, data=2, fsdp=1))
    trained = model(DEEP, objective.model_needs)
    step = StepBuilder(trained, objective, None, None, head_chunks=16)
    spec = objective.batch_spec(ROWS * microbatches, LENGTH)
    batch = {name: jax.ShapeDtypeStruct(each.shape, each.dtype) for name, each in spec.items()}
    layout = tree_shardings(trained.logical_axes(), trained.shapes, on)
    with use_mesh(on, parallelism=dataclasses.replace(use, pipeline_microbatches=microbatches)):
        call = jax.jit(step.gradients, in_shardings=(layout, batch_shardings(spec, on)), out_shardings=(layout, None))
        return call.lower(trained.shapes, batch).compile().memory_analysis().temp_size_in_bytes


if __name__ == "__main__":
    for count in map(int, sys.argv[1:] or ["4", "8", "16", "32"]):
        found = {name: temporaries(count, use) for name, use in SCHEDULES.items()}
        print(json.dumps({"microbatches": count, **found}), flush=True)
