"""The zig-zag order of a sequence over the context axis, which gives every device the same causal work.

A sequence is cut into two halves for each of C devices. In natural order device i holds halves 2i and 2i + 1; in
zig-zag order i and 2C - 1 - i, an early and a late one. Even halves all go to different devices, and so do odd ones:
changing the order is two permutations of half a device's part.
"""

import functools

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from pretrain.core.errors import check
from pretrain.sharding.rules import current_mesh, shard_map

AXIS = "context"


def into_zigzag(x_BL: jax.Array) -> jax.Array:
    """[batch, length, ...] from natural to zig-zag order."""
    return _reordered(x_BL, _into)


def from_zigzag(x_BL: jax.Array) -> jax.Array:
    """[batch, length, ...] from zig-zag to natural order."""
    return _reordered(x_BL, _from)


def homes(ways: int) -> tuple[list[int], list[int]]:
    """The devices that hold even and odd halves in zig-zag order, by the device that holds them in natural order."""
    home = lambda half: half if half < ways else 2 * ways - 1 - half  # noqa: E731
    return [home(2 * i) for i in range(ways)], [home(2 * i + 1) for i in range(ways)]


def check_length(length: int, ways: int, *, causal: bool) -> None:
    """Raises UserError where a sequence does not fit the ring."""
    parts = 2 * ways if causal else ways
    check(
        length % parts == 0,
        f"Parallelism.context = 'ring' splits a sequence of {length} into {parts} parts, which do not divide it: "
        f"choose another SEQUENCE_LENGTH or MeshConfig.context ({ways}), or Parallelism.context = 'all_gather'",
    )


def _reordered(x_BL: jax.Array, function) -> jax.Array:
    ways, spec = current_mesh().shape[AXIS], PartitionSpec(None, AXIS)
    check_length(x_BL.shape[1], ways, causal=True)
    specs = {"in_specs": (spec, PartitionSpec(AXIS)), "out_specs": spec}
    return shard_map(functools.partial(function, ways), **specs, axes={AXIS})(x_BL, jnp.arange(ways))


def _into(ways: int, x_BL: jax.Array, index_1: jax.Array) -> jax.Array:
    even, odd = (
        jax.lax.ppermute(half_BL, AXIS, list(enumerate(home)))
        for half_BL, home in zip(jnp.split(x_BL, 2, axis=1), homes(ways), strict=True)
    )
    return jnp.concatenate(_swapped(index_1[0] % 2 == 1, even, odd), axis=1)


def _from(ways: int, x_BL: jax.Array, index_1: jax.Array) -> jax.Array:
    halves = _swapped(index_1[0] % 2 == 1, *jnp.split(x_BL, 2, axis=1))
    back = [
        jax.lax.ppermute(half_BL, AXIS, [(there, here) for here, there in enumerate(home)])
        for half_BL, home in zip(halves, homes(ways), strict=True)
    ]
    return jnp.concatenate(back, axis=1)


def _swapped(swap: jax.Array, first: jax.Array, second: jax.Array) -> tuple[jax.Array, jax.Array]:
    return jnp.where(swap, second, first), jnp.where(swap, first, second)
