"""Contrastive losses over a whole batch, computed a few rows at a time: nowhere does the matrix of all pairs exist.

Queries of a part are spread over the devices and meet all keys, which are small and which every device holds; the
backward pass computes a part's logits again. So a device's largest array is [rows of a part / devices, batch].

InfoNCE: van den Oord et al. 2018; with the other queries as negatives: Chen et al. 2020; sigmoid: Zhai et al. 2023.

Axes: B batch · C rows of a part · N keys · J joint space.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from pretrain.sharding.rules import constrain

MASKED = -1e30


class Sums(NamedTuple):
    """Sums over rows, float32 scalars: the loss, and how often the own key came first."""

    loss: jax.Array
    first: jax.Array


def info_nce(
    queries_BJ: jax.Array, keys_BJ: jax.Array, weights_B: jax.Array, *, rows: int, others: bool = False
) -> Sums:
    """-log softmax of each query's product with its own key, among its products with all keys.

    Args:
        queries_BJ, keys_BJ: float32; factors on the logits are in them.
        weights_B: of each row; rows of weight 0 are no negatives either.
        rows: of a part, at most.
        others: the other queries are negatives as well; queries and keys then share the factor between them.
    """
    batch = len(queries_BJ)
    keys_NJ = jnp.concatenate([keys_BJ, queries_BJ]) if others else keys_BJ
    is_key_N = jnp.tile(weights_B > 0, 2 if others else 1)
    keys_NJ, is_key_N = constrain(keys_NJ, None, None), constrain(is_key_N, None)
    column_N = jnp.arange(len(keys_NJ))

    def part(queries_CJ, own_C, weights_C):
        logits_CN = _logits(queries_CJ, keys_NJ)
        is_own_CN = column_N == own_C[:, None]
        seen_CN = jnp.where(is_key_N & (column_N != own_C[:, None] + batch), logits_CN, MASKED)
        own_logit_C = jnp.sum(jnp.where(is_own_CN, logits_CN, 0), axis=-1)
        loss_C = jax.nn.logsumexp(seen_CN, axis=-1) - own_logit_C
        return Sums(_sum(loss_C, weights_C), _sum((_best(seen_CN) == own_C) * 1.0, weights_C))

    return _in_parts(part, rows, queries_BJ, jnp.arange(batch), weights_B)


def sigmoid_pairs(queries_BJ: jax.Array, keys_BJ: jax.Array, weights_B: jax.Array, *, rows: int) -> Sums:
    """-log sigmoid of each product, or of its negative where the pair does not belong together (Zhai et al. 2023).

    Args:
        queries_BJ, keys_BJ: float32; factor and bias of the logits are in them.
        weights_B: of each row; a pair counts where both rows do, by the query's weight.
        rows: of a part, at most.
    """
    keys_BJ, is_key_B = constrain(keys_BJ, None, None), constrain(weights_B > 0, None)
    column_B = jnp.arange(len(keys_BJ))

    def part(queries_CJ, own_C, weights_C):
        logits_CB = _logits(queries_CJ, keys_BJ)
        is_own_CB = column_B == own_C[:, None]
        loss_CB = jax.nn.softplus(jnp.where(is_own_CB, -logits_CB, logits_CB))
        best_C = _best(jnp.where(is_key_B, logits_CB, MASKED))
        loss_C = jnp.sum(jnp.where(is_key_B, loss_CB, 0), axis=-1)
        return Sums(_sum(loss_C, weights_C), _sum((best_C == own_C) * 1.0, weights_C))

    return _in_parts(part, rows, queries_BJ, jnp.arange(len(queries_BJ)), weights_B)


def _logits(queries_CJ: jax.Array, keys_NJ: jax.Array) -> jax.Array:
    return constrain(jnp.einsum("cj,nj->cn", queries_CJ, keys_NJ, preferred_element_type=jnp.float32), "batch", None)


def _best(logits_CN: jax.Array) -> jax.Array:
    """The number of the greatest of each row, of several the least, so that keys that are all alike find nothing."""
    is_greatest_CN = logits_CN == jnp.max(logits_CN, axis=-1, keepdims=True)
    return jnp.min(jnp.where(is_greatest_CN, jnp.arange(logits_CN.shape[1]), logits_CN.shape[1]), axis=-1)


def _sum(values_C: jax.Array, weights_C: jax.Array) -> jax.Array:
    return jnp.sum(jnp.where(weights_C > 0, values_C * weights_C, 0.0), dtype=jnp.float32)


def _in_parts(part: Callable[..., Sums], rows: int, *arrays_B: jax.Array) -> Sums:
    """Sums of `part` over parts of at most `rows` rows; each part's rows are spread over all devices."""
    parts = number_of_parts(len(arrays_B[0]), rows)
    if parts == 1:
        return part(*arrays_B)
    split = [jnp.moveaxis(x.reshape(-1, parts, *x.shape[1:]), 1, 0) for x in arrays_B]

    def add(sums, each):
        each = [constrain(x, "batch", *([None] * (x.ndim - 1))) for x in each]
        return jax.tree.map(jnp.add, sums, jax.checkpoint(part)(*each)), None

    return jax.lax.scan(add, Sums(jnp.zeros(()), jnp.zeros(())), split)[0]


def number_of_parts(batch: int, rows: int) -> int:
    """The fewest equal parts of a batch that have at most `rows` rows each."""
    return next(parts for parts in range(1, batch + 1) if batch % parts == 0 and batch // parts <= max(rows, 1))
