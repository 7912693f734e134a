"""The feed-forward sub-layer: two matrices, or three with a gate (Shazeer 2020, "GLU variants improve Transformer").

Axes: B batch · L length · D embed · F mlp.
"""

import jax
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from pretrain.models.config import TransformerConfig
from pretrain.models.layers import ACTIVATIONS, Projection
from pretrain.sharding.rules import constrain


class Mlp(nnx.Module):
    """[batch, length, embed] -> [batch, length, embed], through `size` hidden values (`config.mlp_dim`)."""

    def __init__(self, config: TransformerConfig, *, rngs: nnx.Rngs, size: int | None = None):
        embed, mlp, scale = config.embed_dim, size or config.mlp_dim, config.init_scale
        self.up = Projection((embed,), (mlp,), ("embed", "mlp"), config, rngs=rngs, scale=scale)
        self.gate = (
            Projection((embed,), (mlp,), ("embed", "mlp"), config, rngs=rngs, scale=scale) if config.is_gated else None
        )
        self.down = Projection((mlp,), (embed,), ("mlp", "embed"), config, rngs=rngs, scale=config.output_scale(mlp))
        self.activation = config.activation

    def __call__(self, x_BLD: jax.Array) -> jax.Array:
        activate = ACTIVATIONS[self.activation]
        up_BLF = checkpoint_name(self.up(x_BLD), "up")
        gate_BLF = None if self.gate is None else checkpoint_name(self.gate(x_BLD), "gate")
        hidden_BLF = activate(up_BLF) if gate_BLF is None else activate(gate_BLF) * up_BLF
        y_BLD = self.down(constrain(hidden_BLF, "batch", "length", "activation_mlp"))
        return checkpoint_name(y_BLD, "mlp_out")
