"""Moving arrays onto the mesh: batches from this process's rows, parameters by their logical axes."""

import collections
import math
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from pretrain.core.batch import ArraySpec, Batch
from pretrain.core.errors import check
from pretrain.sharding.rules import RULES, current_mesh, named_sharding, parallelism


def batch_shardings(specs: dict[str, ArraySpec], mesh: Mesh) -> dict[str, NamedSharding]:
    """A sharding for each array of a batch."""
    return {name: named_sharding(spec.axes, spec.shape, mesh) for name, spec in specs.items()}


def share_of_batch(mesh: Mesh) -> tuple[int, int]:
    """Which part of each global batch this process feeds, and in how many parts it comes: (part, parts).

    Processes that hold the same rows, as under tensor parallelism across hosts, feed the same part.

    Raises:
        UserError: the mesh lays the rows of two processes across each other.
    """
    ways = math.prod(mesh.shape[axis] for axis in RULES["batch"])
    rows = collections.defaultdict(set)
    for device, (index,) in named_sharding(("batch",), (ways,), mesh).devices_indices_map((ways,)).items():
        rows[device.process_index].add(index.start or 0)
    parts = sorted({tuple(sorted(held)) for held in rows.values()})
    check(
        sum(map(len, parts)) == ways and len({len(part) for part in parts}) == 1,
        f"the {ways} ways that the mesh splits a batch (data x fsdp x expert) do not fit {len(rows)} processes: make "
        "them a multiple or a divisor of the number of processes",
    )
    return parts.index(tuple(sorted(rows[jax.process_index()]))), len(parts)


def place_batch(batch: Batch, shardings: dict[str, NamedSharding], rows: int | None = None) -> dict[str, jax.Array]:
    """Global arrays from this process's rows; every process calls it with its own share of the same step.

    Args:
        batch: the rows of this process's part, see `share_of_batch`; all other dimensions are whole.
        shardings: by name.
        rows: of the global batch; None for those that are here, in a run of one process.
    """
    arrays = {name: np.asarray(batch[name]) for name in shardings}
    return {
        name: jax.make_array_from_process_local_data(
            shardings[name], array, (len(array) if rows is None else rows, *array.shape[1:])
        )
        for name, array in arrays.items()
    }


def place_whole_batch(batch: Batch, shardings: dict[str, NamedSharding]) -> dict[str, jax.Array]:
    """Global arrays from a batch that every process has whole."""
    return {
        name: jax.make_array_from_callback(batch[name].shape, sharding, np.asarray(batch[name]).__getitem__)
        for name, sharding in shardings.items()
    }


def tree_shardings(axes: Any, shapes: Any, mesh: Mesh, whole: tuple[str, ...] = ()) -> Any:
    """Shardings for a tree of arrays from the tree of their logical axes (tuples) and of their shapes.

    Mesh axes in `whole` are not used.
    """
    return jax.tree.map(lambda shape, names: named_sharding(names, shape.shape, mesh, whole), shapes, axes)


def split_gradients(gradients: Any, axes: Any, *, accumulating: bool) -> Any:
    """Asks the compiler to lay gradients out as `Parallelism.zero` says; does nothing outside a mesh.

    Args:
        gradients: tree of arrays.
        axes: tree of their logical axes.
        accumulating: more are to be added; else the optimizer is next.
    """
    mesh = current_mesh()
    if mesh is None or mesh.size == 1:
        return gradients
    whole = ("fsdp",) if accumulating and parallelism().zero == 1 else ()
    return jax.lax.with_sharding_constraint(gradients, tree_shardings(axes, gradients, mesh, whole))


def replicated(mesh: Mesh) -> NamedSharding:
    """A sharding that keeps a copy on every device."""
    return NamedSharding(mesh, PartitionSpec())
