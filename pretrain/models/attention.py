"""Multi-head attention with grouped key/value heads (Vaswani et al. 2017; Ainslie et al. 2023).

Axes: B batch · L queries · S keys · D embed · H query heads · K kv heads · G = H / K · Q head dimension.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
from flax import nnx

from pretrain.models.config import TransformerConfig
from pretrain.models.layers import Norm, Projection, compute_dtype, rotate
from pretrain.sharding.rules import constrain

MAX_BLOCKS = 16  # of queries in causal attention; more would only lengthen compilation
MASKED = -1e30  # finite, so that a row with nothing to look at gives a mean and not NaN


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Cache:
    """Keys and values of the tokens seen so far, for decoding.

    Attributes:
        key_BSKQ, value_BSKQ: [batch, capacity, kv heads, head dim]; stacked over layers outside the scan.
    """

    key_BSKQ: jax.Array
    value_BSKQ: jax.Array


def attention_mask(segment_ids_BL: jax.Array, *, causal: bool) -> jax.Array:
    """Who may look at whom: [batch, queries, keys], true within a segment (and not ahead when causal).

    Padding has segment 0 and sees only padding, so every row has something to look at.
    """
    mask_BLS = segment_ids_BL[:, :, None] == segment_ids_BL[:, None, :]
    if causal:
        length = segment_ids_BL.shape[1]
        mask_BLS &= jnp.tril(jnp.ones((length, length), bool))
    return mask_BLS


def dot_product_attention(
    q_BLHQ: jax.Array,
    k_BSKQ: jax.Array,
    v_BSKQ: jax.Array,
    mask_BLS: jax.Array,
    *,
    causal: bool,
    implementation: str = "xla",
) -> jax.Array:
    """Softmax attention; scores and softmax in float32. Returns [batch, length, heads, head dim].

    With `causal`, key s is beyond query l for s > l (the mask says so too), and queries go in blocks that leave out the
    keys beyond them: half the work, and scores of one block at a time.
    """
    if implementation == "cudnn":
        return jax.nn.dot_product_attention(q_BLHQ, k_BSKQ, v_BSKQ, mask=mask_BLS[:, None], implementation="cudnn")
    batch, length, heads, head_dim = q_BLHQ.shape
    kv_heads = k_BSKQ.shape[2]
    q_BKGLQ = (q_BLHQ / math.sqrt(head_dim)).reshape(batch, length, kv_heads, heads // kv_heads, head_dim)
    q_BKGLQ = q_BKGLQ.transpose(0, 2, 3, 1, 4)
    k_BKSQ, v_BKSQ = k_BSKQ.transpose(0, 2, 1, 3), v_BSKQ.transpose(0, 2, 1, 3)
    block = max(64, -(-length // MAX_BLOCKS)) if causal else length
    blocks_BKGLQ = []
    for start in range(0, length, block):
        rows = slice(start, start + block)
        seen = slice(0, min(start + block, length) if causal else None)
        scores_BKGLS = jnp.einsum(
            "bkglq,bksq->bkgls", q_BKGLQ[:, :, :, rows], k_BKSQ[:, :, seen], preferred_element_type=jnp.float32
        )
        scores_BKGLS = jnp.where(mask_BLS[:, None, None, rows, seen], scores_BKGLS, MASKED)
        weights_BKGLS = jax.nn.softmax(scores_BKGLS, axis=-1).astype(v_BSKQ.dtype)
        blocks_BKGLQ.append(jnp.einsum("bkgls,bksq->bkglq", weights_BKGLS, v_BKSQ[:, :, seen]))
    y_BKGLQ = jnp.concatenate(blocks_BKGLQ, axis=3) if len(blocks_BKGLQ) > 1 else blocks_BKGLQ[0]
    return y_BKGLQ.transpose(0, 3, 1, 2, 4).reshape(batch, length, heads, head_dim)


class Attention(nnx.Module):
    """Self-attention: projections, rotary positions, attention, output projection."""

    def __init__(self, config: TransformerConfig, *, rngs: nnx.Rngs):
        embed, heads, kv_heads, size = config.embed_dim, config.num_heads, config.num_kv_heads, config.query_dim
        scale = config.init_scale
        self.query = Projection((embed,), (heads, size), ("embed", "heads", None), config, rngs=rngs, scale=scale)
        self.key = Projection((embed,), (kv_heads, size), ("embed", "kv_heads", None), config, rngs=rngs, scale=scale)
        self.value = Projection((embed,), (kv_heads, size), ("embed", "kv_heads", None), config, rngs=rngs, scale=scale)
        out_scale = config.output_scale(heads * size)
        self.out = Projection((heads, size), (embed,), ("heads", None, "embed"), config, rngs=rngs, scale=out_scale)
        self.query_norm = Norm(size, config, None, "rmsnorm") if config.qk_norm else None
        self.key_norm = Norm(size, config, None, "rmsnorm") if config.qk_norm else None
        flash = jax.default_backend() == "gpu" and compute_dtype(config) == jnp.bfloat16
        self.implementation = ("cudnn" if flash else "xla") if config.attention == "auto" else config.attention

    def __call__(
        self,
        x_BLD: jax.Array,
        mask_BLS: jax.Array,
        rotary: tuple[jax.Array, jax.Array] | None,
        cache: Cache | None = None,
        offset: jax.Array | None = None,
        *,
        causal: bool,
    ) -> tuple[jax.Array, Cache | None]:
        """Attends within `x_BLD`, or with a cache over all its slots, writing the new ones at `offset`.

        Args:
            x_BLD: inputs.
            mask_BLS: who looks at whom; S is L without a cache, the capacity with one.
            rotary: tables of `rotary_tables` for these positions, or None.
            cache: keys and values of earlier tokens.
            offset: int32 scalar, the slot of the first new token.
            causal: the mask hides all keys beyond a query, and positions of queries and keys are the same.
        """
        q_BLHQ, k_BLKQ, v_BLKQ = self.query(x_BLD), self.key(x_BLD), self.value(x_BLD)
        if self.query_norm is not None:
            q_BLHQ, k_BLKQ = self.query_norm(q_BLHQ), self.key_norm(k_BLKQ)
        if rotary is not None:
            q_BLHQ, k_BLKQ = rotate(q_BLHQ, rotary), rotate(k_BLKQ, rotary)
        q_BLHQ = constrain(q_BLHQ, "batch", "length", "activation_heads", None)
        k_BLKQ = constrain(k_BLKQ, "batch", "length", "activation_kv_heads", None)
        v_BLKQ = constrain(v_BLKQ, "batch", "length", "activation_kv_heads", None)
        if cache is not None:
            write = lambda old, new: jax.lax.dynamic_update_slice_in_dim(old, new.astype(old.dtype), offset, axis=1)  # noqa: E731
            cache = Cache(write(cache.key_BSKQ, k_BLKQ), write(cache.value_BSKQ, v_BLKQ))
            k_BLKQ, v_BLKQ = cache.key_BSKQ, cache.value_BSKQ
        y_BLHQ = dot_product_attention(
            q_BLHQ, k_BLKQ, v_BLKQ, mask_BLS, causal=causal, implementation=self.implementation
        )
        return self.out(constrain(y_BLHQ, "batch", "length", "activation_heads", None)), cache
