"""The arrays of a checkpoint as Orbax stored them: their shapes, and their values on the host.

Orbax writes JSON metadata and an OCDBT database (a B+tree over data files) of Zarr chunks. None of these can carry
code, and TensorStore refuses an index that names a file outside of its folder.
"""

import os
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from pretrain.core.errors import RunError
from pretrain.core.storage import Path
from pretrain.core.trees import named_leaves
from pretrain.train.manifest import STATE, Damaged


def stored_shapes(checkpoint: Path) -> dict[str, tuple[tuple[int, ...], str]]:
    """Shape and dtype of every array by name, e.g. `{"params/embedding": ((512, 64), "float32")}`.

    Raises:
        Damaged: there is no such metadata, or it is not what Orbax writes.
    """
    return {name: _shape(leaf) for name, leaf in named_leaves(_metadata(checkpoint)).items()}


def read_arrays(checkpoint: Path, collection: str | None = None) -> Any:
    """A checkpoint's nested dict of arrays in host memory; of one collection alone, e.g. "params", where it is named.

    Raises:
        Damaged: they cannot be read.
        RunError: they are larger than this machine's memory.
    """
    tree = _metadata(checkpoint)
    if collection is not None:
        if collection not in tree:
            raise Damaged(f"it holds no {collection}")
        tree = {collection: tree[collection]}
    needed = sum(np.prod(leaf.shape, dtype=float) * np.dtype(leaf.dtype).itemsize for leaf in jax.tree.leaves(tree))
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if needed > memory:
        raise RunError(f"{checkpoint} holds {needed / 1e9:,.0f} GB of arrays, this machine {memory / 1e9:,.0f} GB")
    args = ocp.args.PyTreeRestore(
        item=jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), tree),
        restore_args=jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree),
        partial_restore=True,
    )
    return read_tree(checkpoint, args)


def read_tree(checkpoint: Path, args: ocp.args.PyTreeRestore) -> Any:
    """The arrays as Orbax reads them.

    Raises:
        Damaged: they cannot be read.
    """
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
        return _readable(lambda: reader.restore(checkpoint / STATE, args=args))


def _metadata(checkpoint: Path) -> Any:
    tree = _readable(lambda: ocp.PyTreeCheckpointHandler().metadata(checkpoint / STATE).tree)
    for name, leaf in named_leaves(tree).items():
        if not isinstance(leaf, ocp.metadata.ArrayMetadata):
            raise Damaged(f"{name} is not an array")
    return tree


def _shape(leaf: Any) -> tuple[tuple[int, ...], str]:
    return tuple(leaf.shape), str(np.dtype(leaf.dtype))


def _readable(read: Callable[[], Any]) -> Any:
    """What `read()` returns; all that Orbax and TensorStore raise, who have no type for unreadable files, is damage."""
    try:
        return read()
    except Exception as error:
        lines = str(error).splitlines() or [type(error).__name__]
        raise Damaged(f"its arrays cannot be read: {lines[0][:200]}") from error
