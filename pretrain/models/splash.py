"""Flash attention on TPU by jax's splash kernels: scores never leave the core, and blocks nobody looks at are skipped.

Dao et al. 2022; the kernels are `jax.experimental.pallas.ops.tpu.splash_attention`. They see one device's part, so the
call is a `shard_map`: rows over the batch axes, heads over tensor, queries over context with all keys gathered.

Axes: B batch · L queries · S keys · H query heads · K kv heads · Q head dimension.
"""

import jax
import jax.numpy as jnp

from pretrain.sharding.rules import current_mesh, named_sharding, partition_spec, shard_map, ways

BLOCKS = 512, 256, 128  # sides of a block of scores; the largest that divides the length
SAVED = "attention"  # name of the kernel's residuals (outputs, log-partitions) for policies of rematerialisation


def block_for(length: int) -> int | None:
    """The side of a block for a sequence length; None where no block divides it."""
    return next((block for block in BLOCKS if length % block == 0), None)


def fits_blocks(length: int, keys: int, *, exchanged: bool = False) -> bool:
    """Whether blocks divide the keys and one device's part of the queries; `exchanged` as in `splash_attention`."""
    mesh = current_mesh()
    if mesh is not None and not exchanged:
        (length,) = named_sharding(("length",), (length,), mesh).shard_shape((length,))
    return block_for(length) is not None and block_for(keys) is not None


def splash_attention(
    q_BLHQ: jax.Array,
    k_BSKQ: jax.Array,
    v_BSKQ: jax.Array,
    segments: tuple[jax.Array, jax.Array],
    *,
    causal: bool,
    scale: float,
    softcap: float | None = None,
    exchanged: bool = False,
    interpret: bool = False,
) -> jax.Array:
    """Softmax attention within segments; [batch, length, heads, head dim].

    Args:
        q_BLHQ, k_BSKQ, v_BSKQ: queries, keys, values, whose lengths are such that `fits_blocks`.
        segments: int32 ids of queries [batch, length] and of keys [batch, keys].
        causal: keys beyond a query are hidden.
        scale: factor on scores.
        softcap: c * tanh(scores / c).
        exchanged: heads are split over context too, in place of queries (Ulysses).
        interpret: run the kernels in Python's stead of a TPU, for tests.
    """
    # Imported here: Pallas takes half a second, and only TPUs need it.
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

    length, heads, keys = *q_BLHQ.shape[1:3], k_BSKQ.shape[1]
    mesh = current_mesh()
    axes = ("exchanged_heads", None) if exchanged else ("activation_heads", "length")
    layout = named_sharding(axes, (heads, length), mesh) if mesh else None
    head_ways, length_ways = ways(layout, (heads, length)) if mesh else (1, 1)
    if k_BSKQ.shape[2] % head_ways:  # too few kv heads to split: a copy for each query head
        k_BSKQ, v_BSKQ = (jnp.repeat(x, heads // x.shape[2], axis=2) for x in (k_BSKQ, v_BSKQ))
    mask = masks.CausalMask((length, keys)) if causal else masks.FullMask((length, keys))
    kernel = splash.make_splash_mha(
        masks.MultiHeadMask([mask] * heads), head_shards=head_ways, q_seq_shards=length_ways,
        block_sizes=splash.BlockSizes(**_blocks(length // length_ways, keys)), attn_logits_soft_cap=softcap,
        residual_checkpoint_name=SAVED, interpret=interpret,
    )  # fmt: skip

    def attend(kernel, q_BHLQ, k_BKSQ, v_BKSQ, queries_BL, keys_BS):
        return jax.vmap(kernel)(q_BHLQ, k_BKSQ, v_BKSQ, splash.SegmentIds(queries_BL, keys_BS))

    operands = (q_BLHQ * scale).transpose(0, 2, 1, 3), k_BSKQ.transpose(0, 2, 1, 3), v_BSKQ.transpose(0, 2, 1, 3)
    if mesh is not None and mesh.size > 1:
        spec = lambda x, *axes: partition_spec(axes, x.shape, mesh)  # noqa: E731
        queries = spec(operands[0], "batch", *axes, None)
        others = spec(operands[1], "batch", axes[0], None, None)
        segment_specs = spec(segments[0], "batch", axes[1]), spec(segments[1], "batch", None)
        in_specs = (kernel.manual_sharding_spec(layout), queries, others, others, *segment_specs)
        attend = shard_map(attend, in_specs=in_specs, out_specs=queries)
    return attend(kernel, *operands, *segments).transpose(0, 2, 1, 3)


def _blocks(length: int, keys: int) -> dict[str, int]:
    """Sides of the blocks of the forward kernel and the two backward ones (keys and values; queries)."""
    q, kv = block_for(length), block_for(keys)
    names = ("block_q", "block_q_dkv", "block_q_dq"), ("block_kv", "block_kv_dkv", "block_kv_dq")
    return {**dict.fromkeys(names[0], q), **dict.fromkeys(names[1], kv)}
