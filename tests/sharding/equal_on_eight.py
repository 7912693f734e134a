"""Run in a process with 8 forced host devices: loss and every gradient of small models, on meshes and on one device.

PYTHONPATH=.:tests:tests/objectives XLA_FLAGS=--xla_force_host_platform_device_count=8 \
    python tests/sharding/equal_on_eight.py quick|all

Every model is trained on packed rows of uneven weight, with accumulation and rematerialisation. A model of another kind
joins by a line in `MODELS`. Prints a JSON object a case: largest differences, relative to the array's largest.
"""

import dataclasses
import functools
import json
import sys
import time

import conformance
import jax
import numpy as np
from tiny import CONFIG, UNEVEN, model, params

from pretrain.core.rng import host_rng
from pretrain.models.config import Experts, TransformerConfig
from pretrain.models.vision_config import Towers, Vision
from pretrain.objectives.base import Objective
from pretrain.objectives.causal import Causal
from pretrain.objectives.contrastive import ImageText
from pretrain.objectives.denoising import SpanCorruption
from pretrain.objectives.pictures import Pictures
from pretrain.sharding.mesh import MeshConfig, make_mesh
from pretrain.sharding.parallelism import Parallelism
from pretrain.sharding.placement import batch_shardings, place_batch, tree_shardings
from pretrain.sharding.rules import use_mesh
from pretrain.train.step import StepBuilder

MICROBATCHES = 2
LENGTHS = [*UNEVEN, [9], [1, 1], [6, 8], [16], [2, 2, 2], [7, 7], [13], [4, 11], [5], [3, 3, 9], [16], [10, 1]]
SMALL = dataclasses.replace(
    CONFIG, num_layers=4, embed_dim=16, num_heads=8, kv_heads=4, head_dim=4, mlp_dim=16, remat="full", vocab_size=192
)

PICTURES = Pictures(image_size=16, channels=1)
VISION = Vision(image_size=16, patch_size=4, channels=1, pooling="attention")

MODELS: dict[str, tuple[Objective, TransformerConfig]] = {
    "decoder": (Causal(z_loss=0.01), dataclasses.replace(SMALL, mlp_chunks=2)),
    "mixture": (Causal(), dataclasses.replace(SMALL, experts=Experts(num_experts=4, top_k=2, balance=0.1))),
    "encoder_decoder": (
        SpanCorruption(density=0.5, mean_span=2.0),
        dataclasses.replace(SMALL, architecture="encoder_decoder", encoder_layers=4),
    ),
    "two_towers": (
        ImageText(pictures=PICTURES, text_length=conformance.LENGTH, rows=8),
        dataclasses.replace(SMALL, architecture="two_towers", vision=VISION, towers=Towers(joint_dim=16)),
    ),
}


@dataclasses.dataclass(frozen=True)
class Case:
    """A model on a mesh of 8 devices."""

    model: str
    mesh: MeshConfig
    use: Parallelism

    @property
    def name(self) -> str:
        ways = [f"{name} {size}" for name, size in dataclasses.asdict(self.mesh).items() if size > 1]
        changed = [
            f"{field.name}={getattr(self.use, field.name)}"
            for field in dataclasses.fields(self.use)
            if getattr(self.use, field.name) != field.default
        ]
        return f"{self.model}: {' x '.join(ways)}" + (f" ({', '.join(changed)})" if changed else "")


def mesh(**ways: int) -> MeshConfig:
    """A mesh whose other axes have one way."""
    return MeshConfig(**{"fsdp": 1, **ways})


RING, ULYSSES = Parallelism(context="ring"), Parallelism(context="ulysses")
INTERLEAVED = Parallelism(pipeline_rounds=2)
IN_TURN = Parallelism(pipeline_schedule="1f1b", pipeline_microbatches=4)
LAYOUTS: list[tuple[MeshConfig, Parallelism]] = [
    (mesh(data=8), Parallelism()),
    (mesh(fsdp=8), Parallelism()),
    (mesh(data=2, tensor=4), Parallelism()),
    (mesh(data=2, context=4), Parallelism()),
    (mesh(data=2, context=4), RING),
    (mesh(data=2, context=4), ULYSSES),
    (mesh(data=2, expert=4), Parallelism()),
    (mesh(data=2, stage=4), Parallelism()),
    (mesh(data=4, stage=2), INTERLEAVED),
    (mesh(data=2, stage=4), IN_TURN),
    (mesh(fsdp=2, stage=2, tensor=2), IN_TURN),
    (mesh(data=2, stage=2, context=2), dataclasses.replace(IN_TURN, context="ring")),
    (mesh(data=2, fsdp=2, tensor=2), Parallelism()),
    (mesh(data=2, fsdp=4), Parallelism()),
    (mesh(fsdp=4, context=2), RING),
    (mesh(fsdp=4, context=2), ULYSSES),
    (mesh(fsdp=2, context=2, tensor=2), RING),
    (mesh(fsdp=2, context=2, tensor=2), ULYSSES),
    (mesh(fsdp=4, expert=2), Parallelism()),
    (mesh(data=2, expert=2, tensor=2), Parallelism()),
    (mesh(data=2, stage=2, tensor=2), Parallelism()),
    (mesh(fsdp=4, stage=2), Parallelism()),
    (mesh(fsdp=2, stage=2, tensor=2), Parallelism(pipeline_rounds=2, pipeline_remat=True)),
    (mesh(data=2, stage=2, context=2), Parallelism()),
    (mesh(data=2, stage=2, context=2), RING),
    (mesh(fsdp=2, stage=2, expert=2), Parallelism()),
    (mesh(fsdp=2, context=2, expert=2), RING),
]
CASES = {
    case.name: case
    for case in (Case(model, *layout) for model in MODELS for layout in LAYOUTS)
    if case.model != "two_towers" or case.use.context != "ring"  # refused: pictures have no segments
}
# What every run of the tests looks at; `make parallel` looks at all.
QUICK = [
    "decoder: fsdp 2 x context 2 x tensor 2 (context=ring)",
    "decoder: stage 2 x fsdp 2 x tensor 2 (pipeline_rounds=2, pipeline_remat=True)",
    "mixture: stage 2 x fsdp 2 x expert 2",
    "mixture: stage 2 x fsdp 2 x tensor 2 (pipeline_microbatches=4, pipeline_schedule=1f1b)",
    "encoder_decoder: fsdp 2 x context 2 x tensor 2 (context=ulysses)",
    "encoder_decoder: stage 2 x data 2 x context 2 (context=ring)",
    "two_towers: data 2 x fsdp 2 x tensor 2",
]


@functools.cache
def batch_of(name: str) -> dict[str, np.ndarray]:
    """A finished batch of 16 packed rows."""
    objective = MODELS[name][0].bind(conformance.VOCABULARY)
    return objective.finish(conformance.packed(objective, LENGTHS), host_rng(0, "finish", 0))


def loss_and_gradients(case: Case, devices: list[jax.Device]) -> tuple[float, dict, int]:
    """Loss and gradients, and on how many devices these were made."""
    objective, config = MODELS[case.model]
    objective, needs = objective.bind(conformance.VOCABULARY), objective.model_needs
    trained = model(config, needs)
    step = StepBuilder(trained, objective, None, None, microbatches=MICROBATCHES)
    on = make_mesh(case.mesh, devices)
    batch = batch_of(case.model)
    layout = tree_shardings(trained.logical_axes(), trained.shapes, on)
    shardings = batch_shardings(objective.batch_spec(len(LENGTHS), conformance.LENGTH), on)
    with use_mesh(on, parallelism=case.use):
        call = jax.jit(step.gradients, in_shardings=(layout, shardings), out_shardings=(layout, None))
        grads, (terms, _) = call(jax.device_put(params(config, needs), layout), place_batch(batch, shardings))
    loss = sum(term.coefficient * float(term.sum) / float(term.weight) for term in terms.values())
    return loss, grads, len(jax.tree.leaves(grads)[0].sharding.device_set)


@functools.cache
def on_one_device(name: str) -> tuple[float, dict, int]:
    return loss_and_gradients(Case(name, mesh(), Parallelism()), jax.devices()[:1])


def compare(case: Case) -> dict[str, float]:
    """Largest differences of loss and gradients between a mesh and one device."""
    begun = time.monotonic()
    loss, grads, devices = loss_and_gradients(case, jax.devices())
    expected_loss, expected, _ = on_one_device(case.model)
    pairs = zip(jax.tree.leaves(grads), jax.tree.leaves(expected), strict=True)
    apart = max(float(np.abs(np.asarray(a) - np.asarray(b)).max() / np.abs(np.asarray(b)).max()) for a, b in pairs)
    loss_apart = abs(loss - expected_loss) / expected_loss
    return {"loss": loss_apart, "gradients": apart, "devices": devices, "seconds": time.monotonic() - begun}


if __name__ == "__main__":
    assert jax.device_count() == 8
    names = {"quick": QUICK, "all": list(CASES)}[sys.argv[1]]
    for name in names:
        print(json.dumps({"case": name, **compare(CASES[name])}), flush=True)
