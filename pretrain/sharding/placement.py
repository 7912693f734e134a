"""Moving arrays onto the mesh: batches from this host's rows, parameters by their logical axes."""

from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from pretrain.core.batch import ArraySpec, Batch
from pretrain.sharding.rules import named_sharding


def batch_shardings(specs: dict[str, ArraySpec], mesh: Mesh) -> dict[str, NamedSharding]:
    """A sharding for each array of a batch."""
    return {name: named_sharding(spec.axes, spec.shape, mesh) for name, spec in specs.items()}


def place_batch(batch: Batch, shardings: dict[str, NamedSharding]) -> dict[str, jax.Array]:
    """Global arrays from this process's rows; every process calls it with its own rows of the same step."""
    return {
        name: jax.make_array_from_process_local_data(sharding, np.asarray(batch[name]))
        for name, sharding in shardings.items()
    }


def tree_shardings(axes: Any, shapes: Any, mesh: Mesh) -> Any:
    """Shardings for a tree of arrays from the tree of their logical axes (tuples) and of their shapes."""
    return jax.tree.map(lambda shape, names: named_sharding(names, shape.shape, mesh), shapes, axes)


def replicated(mesh: Mesh) -> NamedSharding:
    """A sharding that keeps a copy on every device."""
    return NamedSharding(mesh, PartitionSpec())
