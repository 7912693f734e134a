"""Run in a process with 8 forced host devices: what a step sends under each strategy, and what textbooks say of it.

PYTHONPATH=.:tests:tests/objectives XLA_FLAGS=--xla_force_host_platform_device_count=8 \
    python tests/sharding/bytes_on_eight.py [CASE ...]

Bytes are those of whole arrays (all-gather: the result; all others: the operand), read in the compiled program and
apart for what is in loops (over layers, turns of a ring, ticks of a pipeline; counted by trips) and what is done once.
XLA for CPU has no reduce-scatter: it sums whole and cuts, so these count as all-reduce here.

Prints a JSON object a case.
"""

import collections
import dataclasses
import functools
import json
import sys
from collections.abc import Callable

import conformance
import jax
from equal_on_eight import mesh
from tiny import CONFIG, model

from pretrain.core.platform import traced_for
from pretrain.models.config import Experts, TransformerConfig
from pretrain.objectives.causal import Causal
from pretrain.optim.optimizers import Optimizer, build_optimizer
from pretrain.optim.schedules import Schedule
from pretrain.plan.collectives import KINDS, first_group
from pretrain.plan.hlo import Program
from pretrain.sharding.mesh import MeshConfig, make_mesh
from pretrain.sharding.parallelism import Parallelism
from pretrain.sharding.placement import batch_shardings, replicated
from pretrain.sharding.rules import use_mesh
from pretrain.train.state import init_state, state_shardings
from pretrain.train.step import StepBuilder

WAYS, BATCH, LENGTH = 8, 16, 48
MODEL = dataclasses.replace(
    CONFIG, num_layers=3, num_heads=8, kv_heads=8, head_dim=8, mlp_dim=96, vocab_size=192, tie_embeddings=False
)
GROUPED = dataclasses.replace(MODEL, kv_heads=2)
MIXTURE = dataclasses.replace(MODEL, experts=Experts(num_experts=8, top_k=2))
DEEP = dataclasses.replace(MODEL, num_layers=8)
Bytes = dict[str, int]  # by kind, and "in loops" behind it


class Sizes:
    """Bytes of a model's arrays, and of its activations over the whole batch."""

    def __init__(self, config: TransformerConfig):
        embed, heads, kv_heads, size = config.embed_dim, config.num_heads, config.num_kv_heads, config.query_dim
        self.layers = config.num_layers
        self.token = 4 * BATCH * LENGTH  # a number for each token
        self.x, self.keys = self.token * embed, self.token * kv_heads * size
        self.heads = self.token * heads * size
        self.attention = 4 * 2 * embed * (heads + kv_heads) * size
        self.mlp = 4 * 3 * embed * config.mlp_dim
        self.norm = 4 * embed
        self.layer = self.attention + self.mlp + 2 * self.norm
        self.table = 4 * config.vocab_size * embed  # the head is as large
        self.outside = 2 * self.table + self.norm


def data(s: Sizes) -> Bytes:
    """All gradients are summed."""
    return {"all-reduce in loops": s.layers * s.layer, "all-reduce": s.outside}


def zero_3(s: Sizes) -> Bytes:
    """Matrices are gathered for both passes and their gradients scattered.

    The table stays: tokens go to its columns and come back, which is less.
    """
    return {
        "all-gather in loops": 2 * s.layers * (s.layer - 2 * s.norm), "all-gather": s.table + 2 * s.token,
        "all-reduce in loops": s.layers * s.layer, "all-reduce": s.outside - s.table,
        "all-to-all": 2 * s.x // WAYS,
    }  # fmt: skip


def zero_1(s: Sizes) -> Bytes:
    """Gradients are scattered; matrices are gathered once, after the update."""
    matrices = s.layers * (s.layer - 2 * s.norm) + 2 * s.table
    return {
        "all-gather": matrices + s.token,
        "all-reduce in loops": s.layers * s.layer, "all-reduce": s.outside - s.table,
        "all-to-all": s.x // WAYS,
    }  # fmt: skip


def tensor(s: Sizes) -> Bytes:
    """With sequence parallelism, a layer gathers 2 activations and scatters 2; backward 4 (2 again) and 2.

    XLA for CPU scatters what query, key, value, gate and up each send back, before their sum: 5 in place of 2. Outside
    of layers the head's input is gathered and its gradient scattered, five numbers of the softmax are summed.
    """
    return {
        "all-gather in loops": s.layers * 6 * s.x, "all-gather": s.x + s.table,
        "all-reduce in loops": s.layers * (7 * s.x + 2 * s.norm),
        "all-reduce": s.x + s.table + s.norm + 5 * s.token,
    }  # fmt: skip


def all_gather(s: Sizes) -> Bytes:
    """Keys and values are gathered, their gradients scattered."""
    return {
        "all-gather in loops": s.layers * 2 * s.keys, "all-gather": s.token,
        "all-reduce in loops": s.layers * (2 * s.keys + s.layer), "all-reduce": s.outside,
    }  # fmt: skip


def ring(s: Sizes) -> Bytes:
    """A device's keys and values take n - 1 turns; backward with their gradients, which then go home."""
    part, turns = s.keys // WAYS, WAYS - 1
    segments = (s.layers + 1) * turns * s.token // WAYS  # forward they are the same for all layers
    return {
        "collective-permute in loops": s.layers * (2 * turns + 4 * turns + 2) * part + segments,
        "all-reduce in loops": s.layers * s.layer, "all-reduce": s.outside,
    }  # fmt: skip


def ulysses(s: Sizes) -> Bytes:
    """Queries, keys, values and results change from length to heads; their gradients back."""
    return {
        "all-to-all in loops": s.layers * 2 * (2 * s.heads + 2 * s.keys) // WAYS,
        "all-reduce in loops": s.layers * s.layer, "all-reduce": s.outside,
    }  # fmt: skip


def expert(s: Sizes) -> Bytes:
    """Each token goes to its experts and back, in both passes, padded to n times that; ids of experts go once.

    What is no expert's is summed as under data parallelism.
    """
    k, experts = MIXTURE.experts.top_k, MIXTURE.experts.num_experts
    dense = s.attention + 2 * s.norm + 4 * MIXTURE.embed_dim * experts
    return {
        "all-to-all in loops": s.layers * WAYS * k * (4 * s.x + s.token) // WAYS,
        "all-reduce in loops": s.layers * dense, "all-reduce": s.outside,
    }  # fmt: skip


def stage(s: Sizes) -> Bytes:
    """At each tick a microbatch's activations go on, backward their gradients; at last they go to all stages."""
    ticks = WAYS + WAYS - 1
    return {
        "collective-permute in loops": 2 * ticks * s.x // WAYS, "collective-permute": 2 * s.x,
        "all-reduce": 2 * s.x,
    }  # fmt: skip


CASES: dict[str, tuple[TransformerConfig, MeshConfig, Parallelism, Callable[[Sizes], Bytes]]] = {
    "data": (MODEL, mesh(data=WAYS), Parallelism(), data),
    "zero 1": (MODEL, mesh(fsdp=WAYS), Parallelism(zero=1), zero_1),
    "zero 2": (MODEL, mesh(fsdp=WAYS), Parallelism(zero=2), zero_1),
    "zero 3": (MODEL, mesh(fsdp=WAYS), Parallelism(zero=3), zero_3),
    "tensor": (MODEL, mesh(tensor=WAYS), Parallelism(), tensor),
    "context, all-gather": (GROUPED, mesh(context=WAYS), Parallelism("all_gather"), all_gather),
    "context, ring": (GROUPED, mesh(context=WAYS), Parallelism("ring"), ring),
    "context, ulysses": (MODEL, mesh(context=WAYS), Parallelism("ulysses"), ulysses),
    "expert": (MIXTURE, mesh(expert=WAYS), Parallelism(), expert),
    "stage": (DEEP, mesh(stage=WAYS), Parallelism(), stage),
}


def compiled_step(config: TransformerConfig, ways: MeshConfig, use: Parallelism) -> Program:
    """A training step, traced as for TPUs (whose matrix products keep their dimensions) and compiled for CPUs."""
    objective = Causal().bind(conformance.VOCABULARY)
    trained, on = model(config, objective.model_needs), make_mesh(ways, jax.devices())
    optimizer, rate = build_optimizer(Optimizer(), Schedule(warmup_steps=0), 10, trained.logical_axes())
    step = StepBuilder(trained, objective, optimizer, rate)
    specs = objective.batch_spec(BATCH, LENGTH)
    batch = {name: jax.ShapeDtypeStruct(spec.shape, spec.dtype) for name, spec in specs.items()}
    layout = state_shardings(trained, optimizer, on, 0, use=use)
    state = jax.eval_shape(functools.partial(init_state, trained, optimizer, 0))
    shardings = {"in_shardings": (layout, batch_shardings(specs, on)), "out_shardings": (layout, replicated(on))}
    with traced_for("tpu"), use_mesh(on, parallelism=use):
        return Program(jax.jit(step.train, **shardings).lower(state, batch).compile().as_text())


def bytes_of(program: Program) -> Bytes:
    """Bytes of all collectives of the program, but those between a device and itself."""
    found: collections.Counter = collections.Counter()
    for name, instruction, runs in program.instructions():
        if instruction.opcode in KINDS and len(first_group(instruction.attributes, WAYS)) > 1:
            operands = [array for arrays in program.operands(name, instruction) for array in arrays]
            moved = instruction.outputs if instruction.opcode == "all-gather" else operands
            key = instruction.opcode + (" in loops" if runs > 1 else "")
            found[key] += round(runs * sum(array.bytes for array in moved))
    return dict(found)


if __name__ == "__main__":
    assert jax.device_count() == WAYS
    for name in sys.argv[1:] or CASES:
        config, ways, use, formula = CASES[name]
        program = compiled_step(config, ways, use)
        assert not program.unknown_loops
        print(json.dumps({"case": name, "found": bytes_of(program), "expected": formula(Sizes(config))}), flush=True)
