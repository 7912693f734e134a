"""Accumulation for losses that couple the rows of a batch: gradients through cached representations.

A contrastive loss compares each row with all others, so it is no sum over microbatches. But it depends on the model
only through the rows' representations, which are small: they are computed for all microbatches first, the loss and its
slopes with respect to them once, and each microbatch is then run again to carry its slopes to the parameters
(GradCache, Gao et al. 2021). The gradient is that of the whole batch, in the memory of a microbatch.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from pretrain.core.objective import Metrics, Terms
from pretrain.models.functional import Params

Totals = tuple[Terms, Metrics]
# (parameters, microbatch) -> representations [rows, ...], what the microbatch adds to the loss by itself, and totals
Represent = Callable[[Params, Any], tuple[Any, tuple[jax.Array, Totals]]]


def coupled_gradients(
    represent: Represent, loss: Callable[[Any], tuple[jax.Array, Totals]], params: Params, parts: Any
) -> tuple[Params, Totals]:
    """Gradients of the whole batch's loss, and its totals.

    Args:
        represent: runs the model on a microbatch.
        loss: of the representations of the whole batch, in the batch's order.
        params: of the model.
        parts: the batch in microbatches, [microbatches, rows, ...]: row i of microbatch m is row i * microbatches + m.
    """
    cached = jax.lax.scan(lambda _, part: (None, represent(params, part)[0]), None, parts)[1]
    slopes, totals = jax.grad(loss, has_aux=True)(jax.tree.map(_whole, cached))

    def share(params, part, slopes):
        outputs, (own, own_totals) = represent(params, part)
        products = jax.tree.map(lambda x, slope: jnp.sum(x * slope), outputs, slopes)
        return own + sum(jax.tree.leaves(products)), own_totals

    grad = jax.grad(share, has_aux=True)

    def add(carry, part):
        return jax.tree.map(jnp.add, carry, grad(params, *part)), None

    pairs = (parts, jax.tree.map(lambda x, slope: _parts(slope, len(x)), cached, slopes))
    shapes = jax.eval_shape(grad, params, *jax.tree.map(lambda x: x[0], pairs))
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    grads, own_totals = jax.lax.scan(add, zeros, pairs)[0]
    return grads, ({**own_totals[0], **totals[0]}, {**own_totals[1], **totals[1]})


def _whole(parts: jax.Array) -> jax.Array:
    """[microbatches, rows, ...] -> [batch, ...]."""
    return jnp.moveaxis(parts, 0, 1).reshape(-1, *parts.shape[2:])


def _parts(whole: jax.Array, microbatches: int) -> jax.Array:
    """[batch, ...] -> [microbatches, rows, ...]."""
    return jnp.moveaxis(whole.reshape(-1, microbatches, *whole.shape[1:]), 1, 0)
