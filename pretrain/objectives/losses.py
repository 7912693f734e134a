"""Losses as sums with weights, in float32. Axes: B batch · L length · V vocabulary."""

import jax
import jax.numpy as jnp


def cross_entropy(logits_BLV: jax.Array, targets_BL: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Negative log-likelihood in nats and log-partition of each position, both [batch, length] float32."""
    log_z_BL = jax.nn.logsumexp(logits_BLV, axis=-1)
    target_logit_BL = jnp.take_along_axis(logits_BLV, targets_BL[..., None], axis=-1)[..., 0]
    return log_z_BL - target_logit_BL, log_z_BL


def weighted_sum(values_BL: jax.Array, weights_BL: jax.Array) -> jax.Array:
    """Sum of weight * value; a position of weight 0 adds exactly 0, whatever its value."""
    return jnp.sum(jnp.where(weights_BL > 0, values_BL * weights_BL, 0.0), dtype=jnp.float32)
