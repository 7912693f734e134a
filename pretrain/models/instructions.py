"""What a robot is told to do: the bytes of a text, read by one layer, as one vector.

Axes: R rows · I bytes · D embed.
"""

import jax
import jax.numpy as jnp
from flax import nnx

from pretrain.models.attention import attention_mask
from pretrain.models.config import TransformerConfig
from pretrain.models.layers import compute_dtype, param
from pretrain.models.positions import sinusoids
from pretrain.models.stack import Context, Stack

BYTES = 256  # 0 stands for none


class Instruction(nnx.Module):
    """Bytes of UTF-8 to the mean of what a layer makes of them."""

    def __init__(self, config: TransformerConfig, *, rngs: nnx.Rngs):
        self.config = config
        table = 0.02 * jax.random.normal(rngs.params(), (BYTES, config.embed_dim), config.param_dtype)
        self.bytes = param(table, (None, "embed"))
        self.stack = Stack(config, 1, two_sided=True, rngs=rngs)

    def __call__(self, bytes_RI: jax.Array) -> jax.Array:
        """Vectors [rows, embed] of texts uint8 [rows, bytes], padded with 0; of a text without bytes 0."""
        valid_RI, dtype = (bytes_RI > 0).astype(jnp.int32), compute_dtype(self.config)
        places_I = jnp.arange(bytes_RI.shape[1])
        x_RID = self.bytes[...].astype(dtype)[bytes_RI] + sinusoids(places_I, self.config.embed_dim).astype(dtype)
        mask_RII = attention_mask(valid_RI, causal=False)
        sight = self.stack.sight(mask_RII, valid_RI, places_I, causal=False)
        y_RID, _, _ = self.stack(x_RID, Context(sight, valid_RI > 0))
        weights_RI1 = valid_RI[..., None].astype(dtype)
        return jnp.sum(y_RID * weights_RI1, axis=1) / jnp.maximum(jnp.sum(weights_RI1, axis=1), 1)
