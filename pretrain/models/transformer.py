"""The Transformer: embedding, a scanned stack of pre-norm blocks, final norm, output head.

Axes: B batch · L length · S cache capacity · D embed · V vocabulary · N layers.
"""

import functools

import jax
import jax.numpy as jnp
from flax import nnx

from pretrain.core.errors import check
from pretrain.models.attention import Attention, Cache, attention_mask
from pretrain.models.config import TransformerConfig
from pretrain.models.layers import Norm, compute_dtype, contract, param, rotary_tables
from pretrain.models.mlp import Mlp
from pretrain.sharding.rules import constrain


class Block(nnx.Module):
    """Attention and MLP, each on a normed copy of the residual stream."""

    def __init__(self, config: TransformerConfig, *, rngs: nnx.Rngs):
        self.attention_norm = Norm(config.embed_dim, config)
        self.attention = Attention(config, rngs=rngs)
        self.mlp_norm = Norm(config.embed_dim, config)
        self.mlp = Mlp(config, rngs=rngs)
        self.branch_scale = 1 / config.depth_ratio

    def __call__(self, x_BLD, mask_BLS, rotary, cache=None, offset=None, *, causal):
        y_BLD, cache = self.attention(self.attention_norm(x_BLD), mask_BLS, rotary, cache, offset, causal=causal)
        x_BLD = x_BLD + self._scaled(y_BLD)
        x_BLD = x_BLD + self._scaled(self.mlp(self.mlp_norm(x_BLD)))
        return constrain(x_BLD, "batch", "length", "activation_embed"), cache

    def _scaled(self, branch_BLD):
        return branch_BLD if self.branch_scale == 1 else branch_BLD * self.branch_scale


class Transformer(nnx.Module):
    """A decoder (causal) or an encoder, by the `causal` argument of the call."""

    def __init__(self, config: TransformerConfig, *, rngs: nnx.Rngs):
        check(config.vocab_size is not None, "TransformerConfig.vocab_size is not set")
        self.config = config
        dtype, scale = config.param_dtype, config.embedding_scale
        table = lambda rows: scale * jax.random.normal(rngs.params(), (rows, config.embed_dim), dtype)  # noqa: E731
        self.embedding = param(table(config.vocab_size), ("vocab", "embed"))
        learned = config.positions == "learned"
        self.position_embedding = param(table(config.max_length), (None, "embed")) if learned else None

        @nnx.split_rngs(splits=config.num_layers)
        @nnx.vmap(in_axes=(0,), out_axes=0)
        def make_blocks(rngs: nnx.Rngs) -> Block:
            return Block(config, rngs=rngs)

        self.blocks = make_blocks(rngs)  # one Block whose arrays have a leading "layers" axis
        self.final_norm = Norm(config.embed_dim, config)
        self.unembedding = None if config.tie_embeddings else param(table(config.vocab_size).T, ("embed", "vocab"))

    def __call__(
        self, tokens_BL: jax.Array, segment_ids_BL: jax.Array, positions_BL: jax.Array, *, causal: bool = True
    ) -> jax.Array:
        """Hidden states before the head, [batch, length, embed] in the compute dtype."""
        mask_BLS = attention_mask(segment_ids_BL, causal=causal)
        return self._stack(tokens_BL, positions_BL, mask_BLS, causal=causal)[0]

    def head(self, hidden_BLD: jax.Array) -> jax.Array:
        """Logits [batch, length, vocab] in float32."""
        kernel_DV = self.embedding[...].T if self.unembedding is None else self.unembedding[...]
        logits_BLV = contract(hidden_BLD, kernel_DV.astype(hidden_BLD.dtype), dtype=jnp.float32)
        logits_BLV = constrain(logits_BLV, "batch", "length", "activation_vocab")
        if self.config.width_ratio != 1:
            logits_BLV = logits_BLV / self.config.width_ratio
        if self.config.logit_softcap is not None:
            logits_BLV = self.config.logit_softcap * jnp.tanh(logits_BLV / self.config.logit_softcap)
        return logits_BLV

    def init_cache(self, batch: int, capacity: int) -> Cache:
        """An empty decoding cache, [layers, batch, capacity, kv heads, head dim]."""
        c = self.config
        shape = (c.num_layers, batch, capacity, c.num_kv_heads, c.query_dim)
        return Cache(jnp.zeros(shape, compute_dtype(c)), jnp.zeros(shape, compute_dtype(c)))

    def decode(self, tokens_BL: jax.Array, cache: Cache, offset: jax.Array) -> tuple[jax.Array, Cache]:
        """Hidden states of new tokens that follow `offset` cached ones, and the grown cache."""
        length, capacity = tokens_BL.shape[1], cache.key_BSKQ.shape[2]
        positions_BL = jnp.broadcast_to(offset + jnp.arange(length), tokens_BL.shape)
        mask_BLS = jnp.arange(capacity)[None, None, :] <= positions_BL[:, :, None]
        return self._stack(tokens_BL, positions_BL, mask_BLS, cache, offset, causal=False)

    def _stack(self, tokens_BL, positions_BL, mask_BLS, cache=None, offset=None, *, causal):
        config, dtype = self.config, compute_dtype(self.config)
        x_BLD = self.embedding[...].astype(dtype)[tokens_BL]
        if self.position_embedding is not None:
            x_BLD = x_BLD + self.position_embedding[...].astype(dtype)[positions_BL]
        x_BLD = constrain(x_BLD, "batch", "length", "activation_embed")
        rotary = (
            rotary_tables(positions_BL, config.query_dim, config.rope_theta) if config.positions == "rotary" else None
        )
        graph, layers = nnx.split(self.blocks)

        def run_layer(x_BLD, scanned):
            layer, layer_cache = scanned
            return nnx.merge(graph, layer)(x_BLD, mask_BLS, rotary, layer_cache, offset, causal=causal)

        unroll = config.num_layers if config.scan_unroll == -1 else config.scan_unroll
        x_BLD, cache = jax.lax.scan(_remat(run_layer, config.remat), x_BLD, (layers, cache), unroll=unroll)
        return self.final_norm(x_BLD), cache


def _remat(function, policy: str):
    """`function` with the backward pass computing again what `policy` says."""
    if policy == "none":
        return function
    saved = jax.checkpoint_policies.dots_with_no_batch_dims_saveable if policy == "minimal" else None
    return functools.partial(jax.checkpoint, prevent_cse=False, policy=saved)(function)
