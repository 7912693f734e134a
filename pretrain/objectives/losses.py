"""Losses as sums with weights, in float32. Axes: B batch · L length · V vocabulary."""

from typing import Any

import jax
import jax.numpy as jnp

from pretrain.core.objective import LogitReading


def read_logits(logits: Any, targets_BL: jax.Array) -> LogitReading:
    """What a loss reads of logits: an array [batch, length, vocab], or logits that are made in parts (`read`)."""
    if hasattr(logits, "read"):
        return logits.read(targets_BL)
    vocab = logits.shape[-1]
    log_z_BL = jax.nn.logsumexp(logits, axis=-1)
    target_BL = jnp.take_along_axis(logits, targets_BL[..., None], axis=-1)[..., 0]
    # In place of an argmax, which XLA for CPU makes one number at a time.
    is_greatest_BLV = logits == jnp.max(logits, axis=-1, keepdims=True)
    best_BL = jnp.min(jnp.where(is_greatest_BLV, jnp.arange(vocab), vocab), axis=-1)
    return LogitReading(log_z_BL, target_BL, jnp.mean(logits, axis=-1), best_BL)


def cross_entropy(logits_BLV: jax.Array, targets_BL: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Negative log-likelihood in nats and log-partition of each position, both [batch, length] float32."""
    read = read_logits(logits_BLV, targets_BL)
    return read.log_z - read.target, read.log_z


def weighted_sum(values_BL: jax.Array, weights_BL: jax.Array) -> jax.Array:
    """Sum of weight * value; a position of weight 0 adds exactly 0, whatever its value."""
    return jnp.sum(jnp.where(weights_BL > 0, values_BL * weights_BL, 0.0), dtype=jnp.float32)


def take_places(values_BLD: jax.Array, places_BK: jax.Array) -> jax.Array:
    """The values at some places of each row, [batch, places, ...] from [batch, length, ...]."""
    return jnp.take_along_axis(values_BLD, places_BK[..., None], axis=1)


def put_places(values_BL: jax.Array, places_BK: jax.Array, new_BK: jax.Array, where_BK: jax.Array) -> jax.Array:
    """`values_BL` with `new_BK` at some places of each row, but where `where_BK` is False."""
    rows_B1 = jnp.arange(values_BL.shape[0])[:, None]
    places_BK = jnp.where(where_BK, places_BK, values_BL.shape[1])  # beyond the end, hence dropped
    return jnp.asarray(values_BL).at[rows_B1, places_BK].set(new_BK, mode="drop")


def binary_cross_entropy(logits_BL: jax.Array, labels_BL: jax.Array) -> jax.Array:
    """Negative log-likelihood in nats of labels (bool) whose log-odds are `logits_BL`, same shape."""
    return jax.nn.softplus(jnp.where(labels_BL, -logits_BL, logits_BL))
