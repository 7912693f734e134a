"""Multi-head attention with grouped key/value heads (Vaswani et al. 2017; Ainslie et al. 2023).

Axes: B batch · L queries · S keys · D embed · H query heads · K kv heads · G = H / K · Q head dimension.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from pretrain.core.errors import check
from pretrain.core.platform import platform
from pretrain.models.config import TransformerConfig
from pretrain.models.layers import Norm, Projection, compute_dtype, param
from pretrain.models.positions import Rotary, rotate
from pretrain.models.splash import SAVED, fits_blocks, splash_attention
from pretrain.sharding.ring import ring_attention
from pretrain.sharding.rules import constrain, parallelism, ways_of

MAX_BLOCKS = 16  # of queries in causal attention; more would only lengthen compilation
FUSED = {"gpu": "cudnn", "tpu": "splash"}  # flash attention by platform, in bfloat16
MASKED = -1e30  # finite, so that a row with nothing to look at gives a mean and not NaN
RING_SEES = (
    "Parallelism.context = 'ring' knows documents and causality alone, not prefixes, sliding windows, attention sinks "
    "nor biases by distance: choose 'all_gather' or 'ulysses'"
)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Cache:
    """Keys and values of the tokens seen so far, for decoding.

    Attributes:
        key_BSKQ, value_BSKQ: [batch, capacity, kv heads, head dim]; stacked over layers outside the scan.
    """

    key_BSKQ: jax.Array
    value_BSKQ: jax.Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Sight:
    """Who looks at whom, the same for all layers.

    Attributes:
        mask_BLS: bool, [batch, queries, keys]; None where the sequence is in zig-zag order.
        bias_1HLS: float32, added to scores: [1, heads, queries, keys], or None.
        rotary: tables of `rotary_tables` for the queries' positions, or None.
        segments: int32 ids of queries and keys, [batch, length] each, where they and `causal` say all of the mask.
        causal: the mask hides all keys beyond a query, and the places of queries and keys are the same.
    """

    mask_BLS: jax.Array | None
    bias_1HLS: jax.Array | None = None
    rotary: Rotary | None = None
    segments: tuple[jax.Array, jax.Array] | None = None
    causal: bool = dataclasses.field(default=False, metadata={"static": True})


def attention_mask(
    queries_BL: jax.Array, keys_BS: jax.Array | None = None, *, causal: bool, prefix_BL: jax.Array | None = None
) -> jax.Array:
    """Who may look at whom: [batch, queries, keys], true within a segment (and not ahead when causal).

    Padding has segment 0 and sees only padding, so every row of a self-attention has something to look at.

    Args:
        queries_BL, keys_BS: segment ids; keys None for those of the queries.
        causal: hides keys beyond a query.
        prefix_BL: bool, keys that causality does not hide from their own segment (prefix LM).
    """
    keys_BS = queries_BL if keys_BS is None else keys_BS
    mask_BLS = queries_BL[:, :, None] == keys_BS[:, None, :]
    if causal:
        seen_LS = jnp.tril(jnp.ones(mask_BLS.shape[1:], bool))
        mask_BLS &= seen_LS if prefix_BL is None else seen_LS | prefix_BL[:, None, :]
    return mask_BLS


def within_window(mask_BLS: jax.Array, queries_L: jax.Array, keys_S: jax.Array, window: int) -> jax.Array:
    """`mask_BLS` without the keys `window` or more places from a query."""
    return mask_BLS & (jnp.abs(queries_L[:, None] - keys_S[None, :]) < window)


def dot_product_attention(
    q_BLHQ: jax.Array,
    k_BSKQ: jax.Array,
    v_BSKQ: jax.Array,
    sight: Sight,
    *,
    scale: float | None = None,
    softcap: float | None = None,
    sinks_H: jax.Array | None = None,
    implementation: str = "xla",
) -> jax.Array:
    """Softmax attention; scores and softmax in float32. Returns [batch, length, heads, head dim].

    Where causal, queries go in blocks that leave out the keys beyond them: half the work, and scores of one block at a
    time.

    Args:
        q_BLHQ, k_BSKQ, v_BSKQ: queries, keys, values.
        sight: who looks at whom.
        scale: factor on scores; None = head_dim ** -0.5.
        softcap: c * tanh(scores / c).
        sinks_H: scores of looking at nothing.
        implementation: "cudnn" or "splash", each where it can do what is asked; "ring", which refuses what it cannot.
    """
    batch, length, heads, head_dim = q_BLHQ.shape
    scale = 1 / math.sqrt(head_dim) if scale is None else scale
    if implementation == "ring":
        check(sight.segments is not None and sight.bias_1HLS is None and sinks_H is None, RING_SEES)
        options = {"causal": sight.causal, "scale": scale, "softcap": softcap}
        return ring_attention(q_BLHQ, k_BSKQ, v_BSKQ, sight.segments, **options)
    if implementation == "cudnn" and softcap is None and sinks_H is None and sight.bias_1HLS is None:
        mask_B1LS = sight.mask_BLS[:, None]
        return jax.nn.dot_product_attention(q_BLHQ, k_BSKQ, v_BSKQ, mask=mask_B1LS, scale=scale, implementation="cudnn")
    plain = sight.segments is not None and sinks_H is None and sight.bias_1HLS is None
    if implementation == "splash" and plain and fits_blocks(length, k_BSKQ.shape[1], exchanged=exchanges_heads()):
        options = {"causal": sight.causal, "scale": scale, "softcap": softcap, "exchanged": exchanges_heads()}
        return splash_attention(q_BLHQ, k_BSKQ, v_BSKQ, sight.segments, **options)
    kv_heads = k_BSKQ.shape[2]
    q_BKLGQ = (q_BLHQ * scale).reshape(batch, length, kv_heads, -1, head_dim).transpose(0, 2, 1, 3, 4)
    k_BKSQ, v_BKSQ = k_BSKQ.transpose(0, 2, 1, 3), v_BSKQ.transpose(0, 2, 1, 3)
    in_blocks = sight.causal and ways_of("context") == 1
    block = max(64, -(-length // MAX_BLOCKS)) if in_blocks else length
    blocks_BKLGQ = []
    for start in range(0, length, block):
        rows = slice(start, start + block)
        seen = slice(0, min(start + block, length) if sight.causal else None)
        scores_BKLGS = _products("bkrq,bksq->bkrs", q_BKLGQ[:, :, rows], k_BKSQ[:, :, seen], jnp.float32)
        if softcap is not None:
            scores_BKLGS = softcap * jnp.tanh(scores_BKLGS / softcap)
        if sight.bias_1HLS is not None:
            bias_HLS = sight.bias_1HLS[0, :, rows, seen]
            bias_KGLS = bias_HLS.reshape(kv_heads, -1, *bias_HLS.shape[1:])
            scores_BKLGS = _add_to_each(scores_BKLGS, bias_KGLS.swapaxes(1, 2))
        scores_BKLGS = jnp.where(sight.mask_BLS[:, None, rows, None, seen], scores_BKLGS, MASKED)
        weights_BKLGS = _softmax(scores_BKLGS, sinks_H).astype(v_BSKQ.dtype)
        blocks_BKLGQ.append(_products("bkrs,bksq->bkrq", weights_BKLGS, v_BKSQ[:, :, seen]))
    y_BKLGQ = jnp.concatenate(blocks_BKLGQ, axis=2) if len(blocks_BKLGQ) > 1 else blocks_BKLGQ[0]
    return y_BKLGQ.transpose(0, 2, 1, 3, 4).reshape(batch, length, heads, head_dim)


def _products(equation: str, x_BKLGX: jax.Array, y_BKSX: jax.Array, dtype=None) -> jax.Array:
    """Products of queries, all that share their keys as rows of one matrix: for XLA for CPU three times as fast."""
    rows_BKRX = x_BKLGX.reshape(*x_BKLGX.shape[:2], -1, x_BKLGX.shape[-1])
    return jnp.einsum(equation, rows_BKRX, y_BKSX, preferred_element_type=dtype).reshape(*x_BKLGX.shape[:4], -1)


@jax.custom_vjp
def _add_to_each(scores_BKLGS: jax.Array, bias_KLGS: jax.Array) -> jax.Array:
    """Their sum; on CPU the bias's gradient, a sum over the batch, is a product, which is several times as fast."""
    return scores_BKLGS + bias_KLGS


def _sum_over_batch(_, gradient_BKLGS: jax.Array) -> tuple[jax.Array, jax.Array]:
    if platform() != "cpu":
        return gradient_BKLGS, jnp.sum(gradient_BKLGS, axis=0)
    ones_B = jnp.ones(len(gradient_BKLGS), gradient_BKLGS.dtype)
    return gradient_BKLGS, jnp.einsum("b,bklgs->klgs", ones_B, gradient_BKLGS)


_add_to_each.defvjp(lambda scores_BKLGS, bias_KLGS: (scores_BKLGS + bias_KLGS, None), _sum_over_batch)


def _softmax(scores_BKLGS: jax.Array, sinks_H: jax.Array | None) -> jax.Array:
    """Attention weights; with sinks, each head's own score takes part and its weight is dropped."""
    if sinks_H is None:
        return jax.nn.softmax(scores_BKLGS, axis=-1)
    batch, kv_heads, length, group, _ = scores_BKLGS.shape
    sink_BKLG1 = jnp.broadcast_to(sinks_H.reshape(1, kv_heads, 1, group, 1), (batch, kv_heads, length, group, 1))
    return jax.nn.softmax(jnp.concatenate([scores_BKLGS, sink_BKLG1], -1), axis=-1)[..., :-1]


def in_ring() -> bool:
    """Whether keys and values go round the devices that share a sequence."""
    return ways_of("context") > 1 and parallelism().context == "ring"


def exchanges_heads() -> bool:
    """Whether heads are split in place of the sequence while attention runs."""
    return ways_of("context") > 1 and parallelism().context == "ulysses"


def exchange_heads(q_BLHQ, k_BSKQ, v_BSKQ) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Queries, keys and values with heads split in place of the sequence."""
    heads, tensor = k_BSKQ.shape[2], ways_of("tensor") * ways_of("context")
    check(
        q_BLHQ.shape[2] % tensor == 0,
        f"Parallelism.context = 'ulysses' splits heads over tensor x context ({tensor} ways), which do not divide "
        f"TransformerConfig.num_heads ({q_BLHQ.shape[2]}); choose 'ring' or 'all_gather'",
    )
    if heads % tensor:  # too few kv heads to split: a copy for each query head
        k_BSKQ, v_BSKQ = (jnp.repeat(x, q_BLHQ.shape[2] // heads, axis=2) for x in (k_BSKQ, v_BSKQ))
    return tuple(constrain(x, "batch", None, "exchanged_heads", None) for x in (q_BLHQ, k_BSKQ, v_BSKQ))


def lay_out_heads(q_BLHQ, k_BSKQ, v_BSKQ, ring: bool) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Queries, keys and values where attention wants them: a part of a sequence is to see all of its keys."""
    length = "length" if ring else None
    keys = [constrain(x, "batch", length, "activation_kv_heads", None) for x in (k_BSKQ, v_BSKQ)]
    return constrain(q_BLHQ, "batch", "length", "activation_heads", None), *keys


def largest_logit(q_BLHQ: jax.Array, k_BSKQ: jax.Array, sight: Sight, scale: float) -> jax.Array:
    """The largest score that any query gives a key it sees, before softcap and biases; float32 scalar."""
    batch, length, _, head_dim = q_BLHQ.shape
    kv_heads = k_BSKQ.shape[2]
    block = 128 if length % 128 == 0 else length  # queries at a time, so that the scores never exist whole
    q_NBMKGQ = (q_BLHQ * scale).reshape(batch, length // block, block, kv_heads, -1, head_dim).swapaxes(0, 1)
    mask_NBMS = sight.mask_BLS.reshape(batch, length // block, block, -1).swapaxes(0, 1)

    def of_block(rows):
        scores_BKGMS = jnp.einsum("bmkgq,bskq->bkgms", rows[0], k_BSKQ, preferred_element_type=jnp.float32)
        return jnp.max(jnp.where(rows[1][:, None, None], scores_BKGMS, MASKED))

    return jnp.max(jax.lax.map(of_block, (q_NBMKGQ, mask_NBMS)))


class Attention(nnx.Module):
    """Attention of a sequence to itself or, with `memory`, to another: projections, rotation, attention, projection.

    Attributes:
        watched: whether a call notes its largest score, as the intermediate `logit_max`; see `train.statistics`.
    """

    def __init__(self, config: TransformerConfig, *, rngs: nnx.Rngs):
        embed, heads, kv_heads, size = config.embed_dim, config.num_heads, config.num_kv_heads, config.query_dim
        scale = config.matrix_scale("attention_in", embed)
        usual = 1.0 if config.attention_scale is None else size**-0.5 / config.attention_scale
        self.query = Projection(
            (embed,), (heads, size), ("embed", "heads", None), config, rngs=rngs,
            scale=usual * scale,
        )  # fmt: skip
        self.key = Projection(
            (embed,), (kv_heads, size), ("embed", "kv_heads", None), config, rngs=rngs, scale=scale,
            bias=config.use_bias and config.key_bias,
        )  # fmt: skip
        self.value = Projection((embed,), (kv_heads, size), ("embed", "kv_heads", None), config, rngs=rngs, scale=scale)
        out_scale = config.matrix_scale("attention_out", heads * size)
        self.out = Projection((heads, size), (embed,), ("heads", None, "embed"), config, rngs=rngs, scale=out_scale)
        self.query_norm = Norm(size, config, None, "rmsnorm") if config.qk_norm else None
        self.key_norm = Norm(size, config, None, "rmsnorm") if config.qk_norm else None
        self.sinks = param(jnp.zeros(heads, config.param_dtype), ("heads",)) if config.attention_sinks else None
        self.scale, self.softcap, self.watched = config.attention_scale, config.attention_softcap, False
        fused = FUSED.get(platform(), "xla") if compute_dtype(config) == jnp.bfloat16 else "xla"
        self.implementation = fused if config.attention == "auto" else config.attention

    def __call__(
        self,
        x_BLD: jax.Array,
        sight: Sight,
        cache: Cache | None = None,
        offset: jax.Array | None = None,
        memory_BSD: jax.Array | None = None,
    ) -> tuple[jax.Array, Cache | None]:
        """Attends within `x_BLD`, or to `memory_BSD`, or with a cache over all its slots.

        Args:
            x_BLD: inputs.
            sight: who looks at whom; S is L without cache and memory.
            cache: keys and values of earlier tokens; the new ones are written at `offset`.
            offset: int32 scalar, the slot of the first new token.
            memory_BSD: an encoder's output.
        """
        source_BSD = x_BLD if memory_BSD is None else memory_BSD
        q_BLHQ = constrain(self.query(x_BLD), "batch", "length", "activation_heads", None)
        k_BSKQ, v_BSKQ = (
            constrain(project(source_BSD), "batch", "length", "activation_kv_heads", None)
            for project in (self.key, self.value)
        )
        if self.query_norm is not None:
            q_BLHQ, k_BSKQ = self.query_norm(q_BLHQ), self.key_norm(k_BSKQ)
        if sight.rotary is not None:
            q_BLHQ, k_BSKQ = rotate(q_BLHQ, sight.rotary), rotate(k_BSKQ, sight.rotary)
        if self.watched and sight.mask_BLS is not None:
            scale = q_BLHQ.shape[-1] ** -0.5 if self.scale is None else self.scale
            self.logit_max = nnx.Intermediate(largest_logit(q_BLHQ, k_BSKQ, sight, scale))
        implementation = "ring" if in_ring() and cache is None else self.implementation
        exchanged = exchanges_heads() and cache is None
        if exchanged:
            q_BLHQ, k_BSKQ, v_BSKQ = exchange_heads(q_BLHQ, k_BSKQ, v_BSKQ)
        else:
            q_BLHQ, k_BSKQ, v_BSKQ = lay_out_heads(q_BLHQ, k_BSKQ, v_BSKQ, implementation == "ring")
        if cache is not None:
            write = lambda old, new: jax.lax.dynamic_update_slice_in_dim(old, new.astype(old.dtype), offset, axis=1)  # noqa: E731
            cache = Cache(write(cache.key_BSKQ, k_BSKQ), write(cache.value_BSKQ, v_BSKQ))
            k_BSKQ, v_BSKQ = cache.key_BSKQ, cache.value_BSKQ
        q_BLHQ, k_BSKQ, v_BSKQ = (
            checkpoint_name(x, name) for x, name in ((q_BLHQ, "query"), (k_BSKQ, "key"), (v_BSKQ, "value"))
        )
        y_BLHQ = dot_product_attention(
            q_BLHQ, k_BSKQ, v_BSKQ, sight, scale=self.scale, softcap=self.softcap,
            sinks_H=None if self.sinks is None else self.sinks[...].astype(jnp.float32),
            implementation=implementation,
        )  # fmt: skip
        if implementation != "splash":  # whose kernels name what their backward pass needs
            y_BLHQ = checkpoint_name(y_BLHQ, SAVED)
        if exchanged:  # as the gradient is to be too, before it meets scores
            y_BLHQ = constrain(y_BLHQ, "batch", None, "exchanged_heads", None)
        y_BLD = self.out(constrain(y_BLHQ, "batch", "length", "activation_heads", None))
        return checkpoint_name(y_BLD, "attention_out"), cache
