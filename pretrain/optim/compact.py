"""Optimizer state in fewer bits: moments kept in bfloat16, or in 8 bits with a scale for each block.

Block-wise 8-bit state follows Dettmers et al. 2022 (arXiv 2110.02861), with powers in place of their table of codes:
a value is  sign * (|code| / 127) ** power  times the greatest of its block, which has many codes near zero. Second
moments are rounded up, so that none that is not zero becomes zero and an update never divides by nothing.
"""

import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax

BLOCK = 256  # values that share a scale, at most; they lie along the last axis
LEAST = 16  # smaller blocks save nothing: such arrays stay as they are
CODES = 127
Storage = Literal["float32", "bfloat16", "int8"]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Blocks:
    """An array in 8 bits.

    Attributes:
        codes: int8, of the array's shape.
        scales: float32, [..., blocks]: the greatest absolute value of each block.
        power: of a code.
    """

    codes: jax.Array
    scales: jax.Array
    power: int = dataclasses.field(metadata={"static": True})

    def values(self) -> jax.Array:
        """The array, float32."""
        share = self.codes.astype(jnp.float32) / CODES
        blocks = (jnp.sign(share) * jnp.abs(share) ** self.power).reshape(*self.scales.shape, -1)
        return (blocks * self.scales[..., None]).reshape(self.codes.shape)


def in_blocks(x: jax.Array, *, power: int, round_up: bool = False) -> Blocks | jax.Array:
    """An array in 8 bits, or as it is where its last axis does not fall into blocks worth a scale."""
    block = block_of(x.shape)
    if block is None:
        return x
    blocks = x.reshape(*x.shape[:-1], -1, block)
    scales = jnp.max(jnp.abs(blocks), axis=-1)
    share = (jnp.abs(blocks) / jnp.maximum(scales, 1e-38)[..., None]) ** (1 / power)
    codes = jnp.sign(blocks) * (jnp.ceil if round_up else jnp.round)(jnp.minimum(share, 1) * CODES)
    return Blocks(codes.astype(jnp.int8).reshape(x.shape), scales, power)


def block_of(shape: tuple[int, ...]) -> int | None:
    """The largest block that divides the last axis; None where there is none worth a scale."""
    if not shape:
        return None
    largest = max(size for size in range(1, min(shape[-1], BLOCK) + 1) if shape[-1] % size == 0)
    return largest if largest >= LEAST else None


def compact(transform: optax.GradientTransformation, storage: Storage) -> optax.GradientTransformation:
    """A transformation whose state has the fields `mu` and `nu`, with these kept in another form between updates.

    Args:
        transform: e.g. `optax.scale_by_adam()`.
        storage: "float32" changes nothing.
    """
    if storage == "float32":
        return transform

    def packed(state: Any) -> Any:
        if storage == "bfloat16":
            return state._replace(mu=_cast(state.mu, jnp.bfloat16), nu=_cast(state.nu, jnp.bfloat16))
        mu = jax.tree.map(lambda x: in_blocks(x, power=2), state.mu)
        nu = jax.tree.map(lambda x: in_blocks(x, power=4, round_up=True), state.nu)
        return state._replace(mu=mu, nu=nu)

    def unpacked(state: Any) -> Any:
        return state._replace(mu=restored(state.mu), nu=restored(state.nu))

    def update(updates, state, params=None):
        updates, state = transform.update(updates, unpacked(state), params)
        return updates, packed(state)

    return optax.GradientTransformation(lambda params: packed(transform.init(params)), update)


def _cast(tree: Any, dtype: Any) -> Any:
    return jax.tree.map(lambda x: x.astype(dtype), tree)


def restored(tree: Any) -> Any:
    """Moments as float32 arrays, however they are kept."""
    is_blocks = lambda node: isinstance(node, Blocks)  # noqa: E731
    return jax.tree.map(lambda x: x.values() if is_blocks(x) else x.astype(jnp.float32), tree, is_leaf=is_blocks)
