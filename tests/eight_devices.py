"""Run by a fixture in a process with 8 forced host devices: a part of many small comparisons, as JSON on stdout.

PYTHONPATH=.:tests/objectives XLA_FLAGS=--xla_force_host_platform_device_count=8 python tests/eight_devices.py PART DIR
"""

import dataclasses
import json
import pathlib
import sys

import conformance
import contrastive_cases
import jax
import numpy as np
from tiny import CONFIG, model

from pretrain.core.trees import named_leaves
from pretrain.objectives.causal import Causal
from pretrain.optim.optimizers import Optimizer, build_optimizer
from pretrain.optim.schedules import Schedule
from pretrain.sharding.mesh import MeshConfig, make_mesh
from pretrain.sharding.placement import batch_shardings, place_batch, tree_shardings
from pretrain.sharding.rules import use_mesh
from pretrain.train.checkpoint import Checkpointer
from pretrain.train.state import TrainState, init_state, state_shardings
from pretrain.train.statistics import probe

MESHES = {
    "fsdp": MeshConfig(),
    "data x fsdp x tensor": MeshConfig(data=2, fsdp=2, tensor=2),
}


def difference(found, expected) -> float:
    """Largest difference over all leaves, relative to the leaf's largest value; of leaves of zeros as it is."""
    pairs = zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True)
    return max(
        float(np.abs(np.asarray(a) - np.asarray(b)).max() / (np.abs(np.asarray(b)).max() or 1)) for a, b in pairs
    )


def objective_on(objective, mesh) -> tuple[float, dict, int]:
    """Loss, gradients and number of devices that computed them."""
    step = conformance.builder(objective, head_chunks=2)
    packed = [conformance.packed(objective, lengths) for lengths in (conformance.UNEVEN, [[9], [1, 1], [], [16]])]
    rows = {name: np.concatenate([part[name] for part in packed]) for name in packed[0]}
    batch = objective.finish(rows, np.random.default_rng(0))
    shardings = batch_shardings(objective.batch_spec(8, conformance.LENGTH), mesh)
    layout = tree_shardings(step.model.logical_axes(), step.model.shapes, mesh)
    with use_mesh(mesh):
        call = jax.jit(step.gradients, in_shardings=(layout, shardings), out_shardings=(layout, None))
        params = jax.device_put(conformance.params_of(objective), layout)
        grads, (terms, _) = call(params, place_batch(batch, shardings))
    loss = sum(t.coefficient * float(t.sum) / float(t.weight) for t in terms.values())
    return loss, grads, len(jax.tree.leaves(grads)[0].sharding.device_set)


def objectives() -> dict:
    """Every objective on every mesh against one device."""
    one = make_mesh(MeshConfig(), jax.devices()[:1])
    report = {}
    for name, objective in conformance.cases().items():
        loss, grads, _ = objective_on(objective, one)
        for mesh, config in MESHES.items():
            there, there_grads, devices = objective_on(objective, make_mesh(config))
            far = abs(there - loss) / max(loss, 1)  # SimCSE's first loss is almost 0: rounding is of its logits
            entry = {"loss": far, "gradients": difference(there_grads, grads), "devices": devices}
            report[f"{name} on {mesh}"] = entry
    return report


def looks() -> dict:
    """What a look at a step in two microbatches gives on every mesh, against one device."""
    objective = Causal(z_loss=0.01)
    step = conformance.builder(objective, microbatches=2, head_chunks=2)
    packed = [conformance.packed(objective, lengths) for lengths in (conformance.UNEVEN, [[9], [1, 1], [], [16]]) * 2]
    rows = {name: np.concatenate([part[name] for part in packed]) for name in packed[0]}
    batch = objective.finish(rows, np.random.default_rng(0))

    def look(config, devices):
        mesh = make_mesh(config, devices)
        shardings = batch_shardings(objective.batch_spec(16, conformance.LENGTH), mesh)
        layout = tree_shardings(step.model.logical_axes(), step.model.shapes, mesh)
        with use_mesh(mesh):
            call = lambda params, batch: probe(step, TrainState(0, params, (), None), batch)  # noqa: E731
            params = jax.device_put(conformance.params_of(objective), layout)
            return jax.jit(call)(params, place_batch(batch, shardings))

    one = look(MeshConfig(), jax.devices()[:1])
    found = {name: look(config, jax.devices()) for name, config in MESHES.items()}
    names = [name for name, value in one.items() if jax.tree.leaves(value)]
    return {mesh: {name: difference(each[name], one[name]) for name in names} for mesh, each in found.items()}


def train_state(mesh, trained=None, **changes):
    """How to make a fresh state, its layout on a mesh, and its shapes."""
    trained = trained or model()
    optimizer, _ = build_optimizer(Optimizer(**changes), Schedule(), 10, trained.logical_axes())
    make = lambda: init_state(trained, optimizer, 0)  # noqa: E731
    return make, state_shardings(trained, optimizer, mesh, seed=0), jax.eval_shape(make)


def layouts() -> dict:
    """Partition of each parameter and of its two moments, a device's share of the bytes, and the first parameter."""
    report = {}
    for name, config in MESHES.items():
        make, layout, _ = train_state(make_mesh(config))
        state = jax.jit(make, out_shardings=layout)()
        report[name] = {
            "params": {k: list(v.spec) for k, v in named_leaves(layout.params).items()},
            "opt_state": {k: list(v.spec) for k, v in named_leaves(layout.opt_state).items()},
            "held": sum(x.addressable_shards[0].data.nbytes for x in jax.tree.leaves(state)),
            "total": sum(x.nbytes for x in jax.tree.leaves(state)),
            "embedding": np.asarray(state.params["embedding"])[:2].tolist(),
        }
    return report


def checkpoints(folder: pathlib.Path) -> dict:
    """A state saved from 8 devices (fsdp) and restored on 8, on 2 x 4 and on 1."""
    make, layout, shapes = train_state(make_mesh(MeshConfig()))
    state = jax.jit(make, out_shardings=layout)()
    with Checkpointer(folder / "checkpoints") as checkpointer:
        checkpointer.save(7, state, {"step": 7})
    targets = {
        "8": make_mesh(MeshConfig()),
        "2 x 4": make_mesh(MeshConfig(data=2, fsdp=1, tensor=4)),
        "1": make_mesh(MeshConfig(), jax.devices()[:1]),
    }
    report = {}
    for name, mesh in targets.items():
        _, layout, _ = train_state(mesh)
        with Checkpointer(folder / "checkpoints", read_only=True) as checkpointer:
            restored, position = checkpointer.restore(shapes, layout)
            params_alone = checkpointer.restore_params(shapes.params, layout.params)
        leaves = list(zip(*map(jax.tree.leaves, (state, restored, layout)), strict=True))
        report[name] = {
            "equal": all(np.array_equal(a, b) for a, b, _ in leaves),
            "laid out": all(b.sharding == where for _, b, where in leaves),
            "params equal": difference(params_alone, state.params) == 0,
            "position": position,
        }
    return report


def chain(folder: pathlib.Path) -> dict:
    """A state with 8-bit moments that goes from mesh to mesh by checkpoints, and is compared with the first at each."""
    meshes = {
        "fsdp 8": make_mesh(MeshConfig()),
        "tensor 2 x data 2": make_mesh(MeshConfig(data=2, fsdp=1, tensor=2), jax.devices()[:4]),
        "1": make_mesh(MeshConfig(), jax.devices()[:1]),
        "stage 4 x data 2": make_mesh(MeshConfig(data=2, fsdp=1, stage=4)),
    }
    deep, first, report = model(dataclasses.replace(CONFIG, num_layers=4)), None, {}
    for step, (name, mesh) in enumerate(meshes.items()):
        make, layout, shapes = train_state(mesh, deep, state="int8")
        if first is None:
            state = first = jax.jit(make, out_shardings=layout)()
        else:
            with Checkpointer(folder / "chain", read_only=True) as checkpointer:
                state, _ = checkpointer.restore(shapes, layout)
        with Checkpointer(folder / "chain") as checkpointer:
            checkpointer.save(step, state, {"step": step})
        leaves = list(zip(*map(jax.tree.leaves, (first, state, layout)), strict=True))
        split = [len(b.sharding.device_set) > 1 and not b.sharding.is_fully_replicated for _, b, _ in leaves]
        report[name] = {
            "equal": all(np.array_equal(a, b) for a, b, _ in leaves),
            "laid out": all(b.sharding == where for _, b, where in leaves),
            "split": sum(split) / len(split),
        }
    return report


if __name__ == "__main__":
    assert jax.device_count() == 8
    assert CONFIG.compute_dtype == "float32"
    part, folder = sys.argv[1], pathlib.Path(sys.argv[2])
    parts = {"contrastive": contrastive_cases.differences, "objectives": objectives, "looks": looks, "layouts": layouts}
    parts |= {"checkpoints": lambda: checkpoints(folder), "chain": lambda: chain(folder)}
    print(json.dumps(parts[part]()))
