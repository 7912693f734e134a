"""The one table from logical axes (what a dimension means) to mesh axes (where it is laid out).

Models and objectives name dimensions; only this file knows the mesh. Changing the parallelism is a gin binding of
`MeshConfig`, never a change of a model. The idea is t5x's logical axis rules, kept to one small table.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

from pretrain.sharding.parallelism import Parallelism

# From the slowest part of the network to the fastest. A pipeline is around all else: XLA wants the axes that nested
# `shard_map`s take in this order (jax 0.12).
MESH_AXES = ("stage", "data", "fsdp", "context", "expert", "tensor")

# logical axis -> mesh axes it is split over, in order. A dimension named None is replicated.
RULES: Mapping[str, tuple[str, ...]] = {
    # batches and activations
    "batch": ("data", "fsdp", "expert"),
    "replicas": ("data", "expert"),  # of a batch, what is left to split where the width is over fsdp
    "length": ("context",),
    "residual_length": ("context", "tensor"),  # sequence parallelism (Korthikanti et al. 2022)
    "activation_heads": ("tensor",),
    "activation_kv_heads": ("tensor",),
    "exchanged_heads": ("tensor", "context"),  # of Ulysses, while a sequence is whole
    "activation_mlp": ("tensor",),
    "activation_vocab": ("tensor",),
    # parameters
    "embed": ("fsdp",),
    "heads": ("tensor",),
    "kv_heads": ("tensor",),
    "mlp": ("tensor", "fsdp"),
    "vocab": ("tensor",),
    "experts": ("expert",),
    "layers": ("stage",),
    "norm": (),
}


def partition_spec(
    axes: tuple[str | None, ...], shape: tuple[int, ...], mesh: Mesh | AbstractMesh, whole: tuple[str, ...] = ()
) -> PartitionSpec:
    """The partition of an array with these logical axes; not over the mesh axes in `whole`.

    A mesh axis is used once per array, in the order of `_choosing`, and only where it divides the dimension; what
    cannot be split is replicated.

    Raises:
        ValueError: a name is not in the table.
    """
    _check_names(axes)
    used: set[str] = set()
    entries: list[str | tuple[str, ...] | None] = [None] * len(axes)
    for place in _choosing(axes, shape, mesh):
        chosen, remaining = [], shape[place]
        for mesh_axis in RULES[axes[place]] if axes[place] else ():
            ways = mesh.shape[mesh_axis]
            if mesh_axis not in (*used, *whole) and ways > 1 and remaining % ways == 0:
                chosen.append(mesh_axis)
                used.add(mesh_axis)
                remaining //= ways
        entries[place] = tuple(chosen) if len(chosen) > 1 else chosen[0] if chosen else None
    return PartitionSpec(*entries)


def _choosing(axes: tuple[str | None, ...], shape: tuple[int, ...], mesh: Mesh | AbstractMesh) -> list[int]:
    """The dimensions of an array in the order in which they choose mesh axes: from the left, but "mlp" first where it
    can be split by all that it may be.

    A TPU pads rows to a multiple of 128 values: 8,192 x 28,672 in 256 parts has 32 in a row, or 112 (docs/scale.md).
    """
    order = list(range(len(axes)))
    if "mlp" in axes and shape[axes.index("mlp")] % math.prod(mesh.shape[axis] for axis in RULES["mlp"]) == 0:
        order.sort(key=lambda place: axes[place] != "mlp")
    return order


def named_sharding(
    axes: tuple[str | None, ...], shape: tuple[int, ...], mesh: Mesh | AbstractMesh, whole: tuple[str, ...] = ()
) -> NamedSharding:
    """`partition_spec` on a mesh."""
    return NamedSharding(mesh, partition_spec(axes, shape, mesh, whole))


def ways(sharding: NamedSharding, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Into how many parts a sharding splits each dimension of an array of this shape."""
    return tuple(whole // part for whole, part in zip(shape, sharding.shard_shape(shape), strict=True))


def current_mesh() -> Mesh | None:
    """The mesh that a function is being traced on, where there is one."""
    return _current_mesh.mesh


def parallelism() -> Parallelism:
    """How the current mesh is used: what `use_mesh` was given, or else what gin says."""
    return _current_mesh.parallelism or Parallelism()


def ways_of(axis: str) -> int:
    """Ways of a mesh axis in the current trace; 1 outside a mesh."""
    return 1 if _current_mesh.mesh is None else _current_mesh.mesh.shape[axis]


def shard_map(function: Callable, *, in_specs: Any, out_specs: Any, axes: set[str] | None = None) -> Callable:
    """`jax.shard_map` on the current mesh, also inside another one.

    Args:
        function: works on one device's parts.
        in_specs, out_specs: partition specs of its arguments and results.
        axes: mesh axes that the function sees; None for all that no outer `shard_map` has taken.
    """
    around = jax.sharding.get_abstract_mesh()
    axes = set(MESH_AXES) - set(around.manual_axes) if axes is None else axes
    mesh = current_mesh() if around.empty else None  # None: what is around
    return jax.shard_map(function, mesh=mesh, in_specs=in_specs, out_specs=out_specs, axis_names=axes, check_vma=False)


def constrain(x: jax.Array, *axes: str | None) -> jax.Array:
    """Asks the compiler to lay an activation out by its logical axes; does nothing outside a mesh or on one device."""
    _check_names(axes)
    mesh = _current_mesh.mesh
    if _current_mesh.seen is not None:
        _current_mesh.seen.append((axes, x.shape, x.dtype))
    if mesh is None or mesh.size == 1:
        return x
    around = jax.sharding.get_abstract_mesh()  # of a `shard_map`, where some axes are not to be named
    return jax.lax.with_sharding_constraint(x, named_sharding(axes, x.shape, mesh if around.empty else around))


def _check_names(axes: tuple[str | None, ...]) -> None:
    unknown = [axis for axis in axes if axis is not None and axis not in RULES]
    if unknown:
        raise ValueError(f"no logical axis {unknown[0]!r}: sharding.rules.RULES has {', '.join(RULES)}")


class _CurrentMesh:
    mesh: Mesh | None = None
    seen: list | None = None
    parallelism: Parallelism | None = None


_current_mesh = _CurrentMesh()


class use_mesh:
    """`with use_mesh(mesh):` makes `constrain` lay activations out on `mesh` while a function is traced.

    Args:
        mesh: where to; None for nowhere.
        seen: gets (logical axes, shape, dtype) of every activation that is laid out meanwhile.
        parallelism: how the mesh is used; None for what gin says.
    """

    def __init__(self, mesh: Mesh | None, seen: list | None = None, parallelism: Parallelism | None = None):
        self._new = mesh, seen, parallelism

    def __enter__(self) -> Mesh | None:
        current = _current_mesh
        self._previous = current.mesh, current.seen, current.parallelism
        current.mesh, current.seen, current.parallelism = self._new
        return self._new[0]

    def __exit__(self, *_) -> None:
        _current_mesh.mesh, _current_mesh.seen, _current_mesh.parallelism = self._previous
