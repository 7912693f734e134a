"""What is read off hidden states beside plain logits: BERT's heads and ELECTRA's, and predictions further ahead.

Devlin et al. 2018; Clark et al. 2020; multi-token prediction: DeepSeek-V3 2024, section 2.2.

Axes: B batch · L length · D embed · V vocabulary.
"""

import jax
import jax.numpy as jnp
from flax import nnx

from pretrain.models.config import TransformerConfig
from pretrain.models.layers import ACTIVATIONS, Norm, Projection, param
from pretrain.models.stack import Block, Context


class MaskedHead(nnx.Module):
    """A layer between the hidden states and the embedding table: [..., embed] -> [..., columns of the table]."""

    def __init__(self, config: TransformerConfig, *, rngs: nnx.Rngs):
        shapes = (config.embed_dim,), (config.table_dim,)
        self.dense = Projection(*shapes, ("embed", None), config, rngs=rngs, scale=config.init_scale)
        self.norm = Norm(config.table_dim, config, None)
        self.bias = param(jnp.zeros(config.vocab_size, config.param_dtype), ("vocab",))
        self.activate = ACTIVATIONS[config.activation]

    def __call__(self, hidden: jax.Array) -> jax.Array:
        return self.norm(self.activate(self.dense(hidden)))


class PairHead(nnx.Module):
    """Two classes from a sequence's first token: [..., embed] -> [..., 2], float32 (next-sentence prediction)."""

    def __init__(self, config: TransformerConfig, *, rngs: nnx.Rngs):
        embed, scale = (config.embed_dim,), config.init_scale
        self.pooler = Projection(embed, embed, ("embed", None), config, rngs=rngs, scale=scale)
        self.classes = Projection(embed, (2,), ("embed", None), config, rngs=rngs, scale=scale)

    def __call__(self, first: jax.Array) -> jax.Array:
        return self.classes(jnp.tanh(self.pooler(first))).astype(jnp.float32)


class ReplacedHead(nnx.Module):
    """Whether a token is not the text's own: [..., embed] -> [...] logits, float32."""

    def __init__(self, config: TransformerConfig, *, rngs: nnx.Rngs):
        embed, scale = (config.embed_dim,), config.init_scale
        self.dense = Projection(embed, embed, ("embed", None), config, rngs=rngs, scale=scale)
        self.decision = Projection(embed, (1,), ("embed", None), config, rngs=rngs, scale=scale)
        self.activate = ACTIVATIONS[config.activation]

    def __call__(self, hidden: jax.Array) -> jax.Array:
        return self.decision(self.activate(self.dense(hidden)))[..., 0].astype(jnp.float32)


class Ahead(nnx.Module):
    """One token further: joins a hidden state with the embedding of the next token and runs one more layer."""

    def __init__(self, config: TransformerConfig, *, rngs: nnx.Rngs):
        embed = config.embed_dim
        self.hidden_norm, self.token_norm = Norm(embed, config), Norm(embed, config)
        shape = (2 * embed,), (embed,)
        self.join = Projection(*shape, ("embed", None), config, rngs=rngs, scale=config.init_scale)
        self.block = Block(config, rngs=rngs)
        self.final_norm = Norm(embed, config)

    def __call__(self, hidden_BLD: jax.Array, next_BLD: jax.Array, context: Context) -> jax.Array:
        joined = jnp.concatenate([self.hidden_norm(hidden_BLD), self.token_norm(next_BLD)], axis=-1)
        return self.final_norm(self.block(self.join(joined), context)[0])


HEADS = {"masked": MaskedHead, "pair": PairHead, "replaced": ReplacedHead}
