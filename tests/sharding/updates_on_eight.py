"""Run in a process with 8 forced host devices: what ZeRO's stages and a host's memory change of updates: nothing.

PYTHONPATH=.:tests:tests/objectives XLA_FLAGS=--xla_force_host_platform_device_count=8 \
    python tests/sharding/updates_on_eight.py

On stdout a JSON object for each case: how far parameters are from those of one device after two updates, and the bytes
that one device holds of parameters and of optimizer state, as shares of all.
"""

import functools
import json

import conformance
import jax
import numpy as np
from equal_on_eight import LENGTHS, MICROBATCHES, MODELS, batch_of, mesh
from tiny import model

from pretrain.optim.optimizers import Optimizer, build_optimizer
from pretrain.optim.schedules import Schedule
from pretrain.sharding.mesh import MeshConfig, make_mesh
from pretrain.sharding.parallelism import Parallelism
from pretrain.sharding.placement import batch_shardings, place_batch, replicated
from pretrain.sharding.rules import use_mesh
from pretrain.train.state import TrainState, init_state, state_shardings
from pretrain.train.step import StepBuilder

CASES = {
    "zero 1": Parallelism(zero=1),
    "zero 2": Parallelism(zero=2),
    "zero 3, offloaded": Parallelism(zero=3, offload_optimizer=True),
}


def share(tree) -> float:
    """Of a tree's bytes, those on the first device."""
    leaves = jax.tree.leaves(tree)
    return sum(x.addressable_shards[0].data.nbytes for x in leaves) / sum(x.nbytes for x in leaves)


def after_two_updates(config: MeshConfig, devices: list[jax.Device], use: Parallelism) -> TrainState:
    """The state of the small decoder after two batches."""
    objective, specification = MODELS["decoder"]
    objective, trained = objective.bind(conformance.VOCABULARY), model(specification)
    optimizer, rate = build_optimizer(Optimizer(), Schedule(warmup_steps=0), 10, trained.logical_axes())
    step = StepBuilder(trained, objective, optimizer, rate, microbatches=MICROBATCHES)
    on = make_mesh(config, devices)
    layout = state_shardings(trained, optimizer, on, 0, use=use)
    shardings = batch_shardings(objective.batch_spec(len(LENGTHS), conformance.LENGTH), on)
    with use_mesh(on, parallelism=use):
        state = jax.jit(functools.partial(init_state, trained, optimizer, 0), out_shardings=layout)()
        update = jax.jit(step.train, in_shardings=(layout, shardings), out_shardings=(layout, replicated(on)))
        for _ in range(2):
            state, _ = update(state, place_batch(batch_of("decoder"), shardings))
    return state


if __name__ == "__main__":
    assert jax.device_count() == 8
    plain = after_two_updates(mesh(), jax.devices()[:1], Parallelism())
    for name, use in CASES.items():
        state = after_two_updates(mesh(data=2, fsdp=4), jax.devices(), use)
        pairs = zip(*map(jax.tree.leaves, (state.params, plain.params)), strict=True)
        apart = max(float(np.abs(np.asarray(a) - np.asarray(b)).max()) for a, b in pairs)
        kinds = sorted({x.sharding.memory_kind for x in jax.tree.leaves(state.opt_state) if x.ndim})
        shares = {"params": share(state.params), "opt_state": share(state.opt_state)}
        print(json.dumps({"case": name, "apart": apart, **shares, "memory": kinds}), flush=True)
