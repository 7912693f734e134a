"""The Transformer family: embeddings, an encoder or a decoder or both, and the output head.

Axes: B batch · L length · S keys · D embed · V vocabulary · N layers · E experts.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from pretrain.core.errors import check
from pretrain.core.objective import Metrics, Output, Term
from pretrain.models.attention import Cache, Sight, attention_mask
from pretrain.models.config import TransformerConfig
from pretrain.models.experts import Routing, moved_bias
from pretrain.models.heads import HEADS, Ahead
from pretrain.models.layers import Norm, Projection, compute_dtype, contract, look_up, param
from pretrain.models.parted_logits import PartedLogits, Shape
from pretrain.models.positions import sinusoids
from pretrain.models.stack import Context, Stack
from pretrain.sharding.rules import constrain

LOAD = "expert_load"


class Tokens(NamedTuple):
    """Packed rows: ids, segments and positions within them, int32 [batch, length] each."""

    tokens_BL: jax.Array
    segment_ids_BL: jax.Array
    positions_BL: jax.Array


class Transformer(nnx.Module):
    """A decoder, an encoder, or both with the decoder attending to the encoder (`config.architecture`).

    Args:
        config: shape and choices.
        heads: names in `HEADS`.
        ahead: modules that predict one more token each.
    """

    def __init__(self, config: TransformerConfig, *, rngs: nnx.Rngs, heads: Sequence[str] = (), ahead: int = 0):
        check(config.vocab_size is not None, "TransformerConfig.vocab_size is not set")
        check(
            config.table_dim == config.embed_dim or bool(heads) or not config.tie_embeddings,
            "TransformerConfig.embedding_dim needs an objective with a head of its own, or tie_embeddings = False",
        )
        self.config = config
        dtype, table_scale = config.param_dtype, config.embedding_init_scale or config.embedding_scale

        def table(rows: int, columns: int = config.table_dim, scale: float = table_scale) -> jax.Array:
            return scale * jax.random.normal(rngs.params(), (rows, columns), dtype)

        self.embedding = param(table(config.vocab_size), ("vocab", "embed"))
        learned = config.positions == "learned"
        self.position_embedding = param(table(config.max_length), (None, "embed")) if learned else None
        self.type_embedding = param(table(config.token_types), (None, "embed")) if config.token_types else None
        self.embedding_norm = Norm(config.table_dim, config) if config.embedding_norm else None
        both, kind = config.architecture == "encoder_decoder", config.architecture
        encoder_layers = (config.encoder_layers or config.num_layers) if both else config.num_layers
        encodes = kind in ("encoder", "encoder_decoder")
        self.encoder = Stack(config, encoder_layers, two_sided=True, rngs=rngs) if encodes else None
        self.decoder = Stack(config, config.num_layers, cross=both, rngs=rngs) if kind != "encoder" else None
        rows = config.vocab_size
        columns = config.table_dim if "masked" in heads else config.embed_dim  # of what the logits are made from
        untied = not config.tie_embeddings
        self.unembedding = param(table(rows, columns, config.embedding_scale).T, ("embed", "vocab")) if untied else None
        shapes = (config.table_dim,), (config.embed_dim,)
        projected = config.table_dim != config.embed_dim
        self.embedding_projection = Projection(*shapes, (None, "embed"), config, rngs=rngs) if projected else None
        for name in heads:
            setattr(self, f"{name}_head", HEADS[name](config, rngs=rngs))
        self.ahead = nnx.List([Ahead(config, rngs=rngs) for _ in range(ahead)]) if ahead else None

    def __call__(
        self,
        tokens_BL: jax.Array,
        segment_ids_BL: jax.Array,
        positions_BL: jax.Array,
        *,
        causal: bool = True,
        prefix_BL: jax.Array | None = None,
        types_BL: jax.Array | None = None,
        factors_BLD: jax.Array | None = None,
    ) -> Output:
        """Hidden states before the head, [batch, length, embed] in the compute dtype, of the only stack.

        Args:
            tokens_BL, segment_ids_BL, positions_BL: packed rows, as in `Tokens`.
            causal: no token looks ahead in its segment, but at a prefix.
            prefix_BL: bool, tokens that all of their segment may look at.
            types_BL: int32, rows of the table of segment types.
            factors_BLD: what embeddings are multiplied by (dropout).
        """
        stack = self.encoder if self.decoder is None else self.decoder
        context = self._context(stack, segment_ids_BL, positions_BL, causal=causal, prefix_BL=prefix_BL)
        x_BLD = self.embed(tokens_BL, positions_BL, types_BL)
        x_BLD = x_BLD if factors_BLD is None else x_BLD * factors_BLD.astype(x_BLD.dtype)
        hidden_BLD, _, routing = stack(x_BLD, context)
        return Output(hidden_BLD, *self._router_terms(routing, context.valid_BL))

    def encode_decode(self, inputs: Tokens, targets: Tokens) -> Output:
        """The decoder's hidden states [batch, length of targets, embed]; segments with one number belong together."""
        return self.translate(self.embed(inputs[0], inputs[2]), *inputs[1:], targets)

    def translate(
        self, x_BSD: jax.Array, segment_ids_BS: jax.Array, positions_BS: jax.Array, targets: Tokens
    ) -> Output:
        """As `encode_decode`, of inputs that are embedded: words, or what else an encoder can read."""
        read = self.read(x_BSD, segment_ids_BS, positions_BS)
        written = self.write(read.hidden, segment_ids_BS, targets)
        return Output(written.hidden, {**written.terms, **read.terms}, {**written.metrics, **read.metrics})

    def read(self, x_BSD: jax.Array, segment_ids_BS: jax.Array, positions_BS: jax.Array) -> Output:
        """The encoder's hidden states [batch, length of inputs, embed], which a decoder looks at."""
        context = self._context(self.encoder, segment_ids_BS, positions_BS, causal=False)
        memory_BSD, _, routing = self.encoder(x_BSD, context)
        return Output(memory_BSD, *self._router_terms(routing, context.valid_BL, "encoder_"))

    def write(self, memory_BSD: jax.Array, segment_ids_BS: jax.Array, targets: Tokens) -> Output:
        """The decoder's hidden states [batch, length of targets, embed], from what `read` gave."""
        mask_BLS = attention_mask(targets[1], segment_ids_BS, causal=False)
        across = {"memory_BSD": memory_BSD, "memory_sight": Sight(mask_BLS, segments=(targets[1], segment_ids_BS))}
        target_context = self._context(self.decoder, *targets[1:], causal=True, **across)
        hidden_BLD, _, routing = self.decoder(self.embed(targets[0], targets[2]), target_context)
        return Output(hidden_BLD, *self._router_terms(routing, target_context.valid_BL))

    def look_ahead(self, hidden_BLD: jax.Array, next_tokens: Tokens, depth: int) -> jax.Array:
        """Hidden states that predict the token after `next_tokens`, by the module of this depth."""
        context = self._context(self.decoder, *next_tokens[1:], causal=True)
        return self.ahead[depth](hidden_BLD, self.embed(next_tokens[0], next_tokens[2]), context)

    def embed(self, tokens_BL: jax.Array, positions_BL: jax.Array, types_BL: jax.Array | None = None) -> jax.Array:
        """What goes into the first layer, [batch, length, embed]."""
        config, dtype = self.config, compute_dtype(self.config)
        x_BLD = look_up(self.embedding[...], tokens_BL).astype(dtype)
        if config.embedding_multiplier != 1:
            x_BLD = x_BLD * jnp.asarray(config.embedding_multiplier, dtype)
        if self.position_embedding is not None:
            x_BLD = x_BLD + self.position_embedding[...].astype(dtype)[positions_BL]
        if config.positions == "sinusoidal":
            x_BLD = x_BLD + sinusoids(positions_BL, config.table_dim).astype(dtype)
        if self.type_embedding is not None:
            types_BL = jnp.zeros_like(tokens_BL) if types_BL is None else types_BL
            x_BLD = x_BLD + self.type_embedding[...].astype(dtype)[types_BL]
        x_BLD = x_BLD if self.embedding_norm is None else self.embedding_norm(x_BLD)
        x_BLD = x_BLD if self.embedding_projection is None else self.embedding_projection(x_BLD)
        return constrain(x_BLD, "batch", "residual_length", None)

    def head(self, hidden_BLD: jax.Array) -> jax.Array | PartedLogits:
        """What a loss reads: logits as an array, or not made yet where `vocab_chunks` says so."""
        c = self.config
        if c.vocab_chunks == 1:
            return self.logits(hidden_BLD)
        shape = Shape(c.vocab_chunks, c.vocab_size, c.logit_multiplier / c.width_ratio, c.logit_softcap)
        return PartedLogits(hidden_BLD, self._head_kernel(), shape)

    def logits(self, hidden_BLD: jax.Array, bias_V: jax.Array | None = None) -> jax.Array:
        """Logits [batch, length, vocab] in float32."""
        kernel_DV = self._head_kernel()
        logits_BLV = contract(hidden_BLD, kernel_DV.astype(hidden_BLD.dtype), dtype=jnp.float32)
        logits_BLV = constrain(logits_BLV, "batch", "length", "activation_vocab")
        multiplier, softcap = self.config.logit_multiplier / self.config.width_ratio, self.config.logit_softcap
        logits_BLV = logits_BLV if multiplier == 1 else logits_BLV * multiplier
        logits_BLV = logits_BLV if bias_V is None else logits_BLV + bias_V.astype(jnp.float32)
        return logits_BLV if softcap is None else softcap * jnp.tanh(logits_BLV / softcap)

    def masked_logits(self, hidden_BLD: jax.Array) -> jax.Array:
        """Logits [batch, length, vocab] through the head "masked", float32."""
        check(self.config.vocab_chunks == 1, "the head of masked tokens has whole logits: set vocab_chunks = 1")
        return self.logits(self.masked_head(hidden_BLD), self.masked_head.bias[...])

    def _head_kernel(self) -> jax.Array:
        return self.embedding[...].T if self.unembedding is None else self.unembedding[...]

    def init_cache(self, batch: int, capacity: int) -> Cache:
        """An empty decoding cache, [layers, batch, capacity, kv heads, head dim]."""
        c = self.config
        shape = (c.num_layers, batch, capacity, c.num_kv_heads, c.query_dim)
        return Cache(jnp.zeros(shape, compute_dtype(c)), jnp.zeros(shape, compute_dtype(c)))

    def decode(self, tokens_BL: jax.Array, cache: Cache, offset: jax.Array) -> tuple[jax.Array, Cache]:
        """Hidden states of new tokens that follow `offset` cached ones, and the grown cache."""
        length, capacity = tokens_BL.shape[1], cache.key_BSKQ.shape[2]
        places_L = offset + jnp.arange(length)
        positions_BL = jnp.broadcast_to(places_L, tokens_BL.shape)
        mask_BLS = jnp.arange(capacity)[None, None, :] <= positions_BL[:, :, None]
        sight = self.decoder.sight(mask_BLS, positions_BL, places_L, causal=False)
        context = Context(sight, jnp.ones(tokens_BL.shape, bool), offset=offset)
        hidden_BLD, cache, _ = self.decoder(self.embed(tokens_BL, positions_BL), context, cache)
        return hidden_BLD, cache

    def advance(self, metrics: Metrics) -> None:
        """Moves the routers' selection biases by the loads of a step; no gradient does."""
        if self.config.experts is None or not self.config.experts.bias_rate:
            return
        for prefix, stack in (("", self.decoder or self.encoder), ("encoder_", self.decoder and self.encoder)):
            if stack is not None:
                load_NE, _ = metrics[f"{prefix}{LOAD}"]
                bias = stack.blocks.mlp.bias
                bias[...] = moved_bias(bias[...], load_NE, self.config.experts)

    def _context(self, stack: Stack, segment_ids_BL, positions_BL, *, causal: bool, prefix_BL=None, **more) -> Context:
        mask_BLS = attention_mask(segment_ids_BL, causal=causal, prefix_BL=prefix_BL)
        places_L = jnp.arange(segment_ids_BL.shape[1])
        segments = (segment_ids_BL, segment_ids_BL) if prefix_BL is None else None
        sight = stack.sight(mask_BLS, positions_BL, places_L, segments, causal=causal and prefix_BL is None)
        return Context(sight, segment_ids_BL > 0, **more)

    def _router_terms(self, routing: Routing | None, valid_BL: jax.Array, prefix: str = "") -> tuple[dict, dict]:
        """Losses and metrics of all routers; every one a sum with a weight that the batch alone decides."""
        experts = self.config.experts
        if routing is None or experts is None:
            return {}, {}
        layers = routing.load_E.shape[0]
        tokens, rows = jnp.sum(valid_BL, dtype=jnp.float32), jnp.sum(jnp.any(valid_BL, axis=1), dtype=jnp.float32)
        terms = {}
        if experts.balance:
            terms[f"{prefix}router_balance"] = Term(jnp.sum(routing.balance), rows * layers, experts.balance)
        if experts.router_z:
            terms[f"{prefix}router_z"] = Term(jnp.sum(routing.log_z), tokens * layers, experts.router_z)
        metrics = {f"{prefix}{LOAD}": (routing.load_E, tokens * experts.top_k / experts.num_experts)}
        if experts.capacity_factor is not None:
            metrics[f"{prefix}dropped"] = (jnp.sum(routing.dropped), tokens * experts.top_k * layers)
        return terms, metrics
