"""Logits over a large vocabulary, taken part by part and never whole; what a loss reads of them, and its gradient.

The softmax over parts is the online one of Milakov and Gimelshein 2018; the backward pass makes each part again (as in
cut cross-entropy, Wijmans et al. 2024). With parameters split over chips, only one part of the head's matrix is
gathered at a time, and only one part of its gradient waits to be summed.

Axes: B batch · L length · D embed · V vocabulary · P parts · W columns of a part.
"""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from pretrain.core.objective import LogitReading
from pretrain.sharding.rules import constrain

NEVER = -1e30  # logit of the columns that fill up the last part


class Shape(NamedTuple):
    """What makes logits of a product: parts, vocabulary, a factor, and a cap (None for none)."""

    parts: int
    vocab: int
    multiplier: float
    softcap: float | None


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class PartedLogits:
    """Logits that are not there yet.

    Attributes:
        hidden_BLD: hidden states in the compute dtype.
        kernel_DV: the head's matrix as stored.
        shape: parts and what is done to a product.
    """

    hidden_BLD: jax.Array
    kernel_DV: jax.Array
    shape: Shape = dataclasses.field(metadata={"static": True})

    def read(self, targets_BL: jax.Array) -> LogitReading:
        """What a loss needs of them, [batch, length] each."""
        parts, vocab = self.shape.parts, self.shape.vocab
        kernel_DV = jnp.pad(self.kernel_DV, ((0, 0), (0, -vocab % parts)))
        # Part p holds columns p, p + P, p + 2 P ...: where the vocabulary is split over chips, each has some of it.
        kernel_PDW = kernel_DV.reshape(kernel_DV.shape[0], -1, parts).transpose(2, 0, 1)
        kernel_PDW = constrain(kernel_PDW, None, "embed", "vocab")
        return LogitReading(*_read(self.shape, self.hidden_BLD, kernel_PDW, targets_BL))


def _logits(shape: Shape, hidden_BLD: jax.Array, kernel_DW: jax.Array, part: jax.Array) -> jax.Array:
    kernel_DW = kernel_DW.astype(hidden_BLD.dtype)
    logits_BLW = jnp.einsum("bld,dw->blw", hidden_BLD, kernel_DW, preferred_element_type=jnp.float32)
    logits_BLW = constrain(logits_BLW * shape.multiplier, "batch", "length", "activation_vocab")
    if shape.softcap is not None:
        logits_BLW = shape.softcap * jnp.tanh(logits_BLW / shape.softcap)
    return jnp.where(_columns(kernel_DW, shape, part) < shape.vocab, logits_BLW, NEVER)


def _columns(kernel_DW: jax.Array, shape: Shape, part: jax.Array) -> jax.Array:
    return jnp.arange(kernel_DW.shape[1]) * shape.parts + part


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _read(shape: Shape, hidden_BLD, kernel_PDW, targets_BL):
    """The fields of a `LogitReading`."""
    return _forward(shape, hidden_BLD, kernel_PDW, targets_BL)[0]


def _forward(shape: Shape, hidden_BLD, kernel_PDW, targets_BL):
    def add(carry, scanned):
        top_BL, best_BL, rest_BL, target_BL, total_BL = carry
        part, kernel_DW = scanned
        logits_BLW = _logits(shape, hidden_BLD, kernel_DW, part)
        columns_W = _columns(kernel_DW, shape, part)
        new_BL = jnp.maximum(top_BL, jnp.max(logits_BLW, axis=-1))
        first_BL = jnp.min(jnp.where(logits_BLW == new_BL[..., None], columns_W, shape.vocab), axis=-1)
        best_BL = jnp.minimum(jnp.where(new_BL > top_BL, shape.vocab, best_BL), first_BL)
        rest_BL = rest_BL * jnp.exp(top_BL - new_BL) + jnp.sum(jnp.exp(logits_BLW - new_BL[..., None]), axis=-1)
        is_target_BLW = columns_W == targets_BL[..., None]
        target_BL = target_BL + jnp.sum(jnp.where(is_target_BLW, logits_BLW, 0), axis=-1)
        total_BL = total_BL + jnp.sum(jnp.where(columns_W < shape.vocab, logits_BLW, 0), axis=-1)
        return (new_BL, best_BL, rest_BL, target_BL, total_BL), None

    zero_BL = jnp.zeros(targets_BL.shape, jnp.float32)
    start = (zero_BL + NEVER, jnp.full(targets_BL.shape, shape.vocab), zero_BL, zero_BL, zero_BL)
    parts = jnp.arange(shape.parts), kernel_PDW
    (top_BL, best_BL, rest_BL, target_BL, total_BL), _ = jax.lax.scan(add, start, parts)
    log_z_BL = top_BL + jnp.log(rest_BL)
    reading = (log_z_BL, target_BL, total_BL / shape.vocab, best_BL)
    return reading, (hidden_BLD, kernel_PDW, targets_BL, log_z_BL)


def _backward(shape: Shape, saved, gradients):
    hidden_BLD, kernel_PDW, targets_BL, log_z_BL = saved
    of_log_z, of_target, of_mean = (gradient[..., None] for gradient in gradients[:3])

    def add(grad_BLD, scanned):
        part, kernel_DW = scanned
        logits_BLW, pull = jax.vjp(lambda h, k: _logits(shape, h, k, part), hidden_BLD, kernel_DW)
        columns_W = _columns(kernel_DW, shape, part)
        grad_BLW = of_log_z * jnp.exp(logits_BLW - log_z_BL[..., None]) + of_mean / shape.vocab
        grad_BLW = grad_BLW + jnp.where(columns_W == targets_BL[..., None], of_target, 0)
        more_BLD, grad_DW = pull(grad_BLW)
        return grad_BLD + more_BLD.astype(jnp.float32), constrain(grad_DW, "embed", "vocab")

    start = jnp.zeros(hidden_BLD.shape, jnp.float32)
    grad_BLD, grad_PDW = jax.lax.scan(add, start, (jnp.arange(shape.parts), kernel_PDW))
    return grad_BLD.astype(hidden_BLD.dtype), grad_PDW, None


_read.defvjp(_forward, _backward)
