"""The feed-forward sub-layer: two matrices, or three with a gate (Shazeer 2020, "GLU variants improve Transformer").

Axes: B batch · L length · D embed · F mlp.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from pretrain.models.config import TransformerConfig
from pretrain.models.layers import ACTIVATIONS, Projection
from pretrain.sharding.rules import constrain, ways_of


def parts_of(size: int, chunks: int, ways: int) -> int:
    """Parts in which an MLP's hidden values are computed: `chunks`, or 1 where they do not divide what a device holds.

    Args:
        size: hidden values.
        chunks: parts asked for.
        ways: into which tensor and fsdp split the matrices, where they divide `size`.
    """
    held = size // ways if size % ways == 0 else size
    return chunks if held % chunks == 0 else 1


class Mlp(nnx.Module):
    """[batch, length, embed] -> [batch, length, embed], through `size` hidden values (`config.mlp_dim`)."""

    def __init__(self, config: TransformerConfig, *, rngs: nnx.Rngs, size: int | None = None):
        embed, mlp = config.embed_dim, size or config.mlp_dim
        scale, out_scale = config.matrix_scale("mlp_in", embed), config.matrix_scale("mlp_out", mlp)
        self.up = Projection((embed,), (mlp,), ("embed", "mlp"), config, rngs=rngs, scale=scale)
        self.gate = (
            Projection((embed,), (mlp,), ("embed", "mlp"), config, rngs=rngs, scale=scale) if config.is_gated else None
        )
        self.down = Projection((mlp,), (embed,), ("mlp", "embed"), config, rngs=rngs, scale=out_scale)
        self.activation = config.activation
        self.size, self.chunks = mlp, config.mlp_chunks
        self.computes_again = config.remat in ("full", "offload")

    def __call__(self, x_BLD: jax.Array) -> jax.Array:
        parts = parts_of(self.size, self.chunks, ways_of("tensor") * ways_of("fsdp"))
        if parts > 1:
            return checkpoint_name(self._in_parts(x_BLD, parts), "mlp_out")
        gate_BLF = None if self.gate is None else self.gate(x_BLD)
        return checkpoint_name(self.down(self._hidden(self.up(x_BLD), gate_BLF)), "mlp_out")

    def _hidden(self, up_BLF: jax.Array, gate_BLF: jax.Array | None = None) -> jax.Array:
        up_BLF, activate = checkpoint_name(up_BLF, "up"), ACTIVATIONS[self.activation]
        hidden_BLF = activate(up_BLF) if gate_BLF is None else activate(checkpoint_name(gate_BLF, "gate")) * up_BLF
        return constrain(hidden_BLF, "batch", "length", "activation_mlp")

    def _in_parts(self, x_BLD: jax.Array, parts: int) -> jax.Array:
        """One part of the hidden values after the other, summed in float32.

        Under full rematerialisation the backward pass makes each part again as well, so that only one part of the
        hidden values, of the gathered matrices and of their gradients is there at a time.
        """

        def cut(values: jax.Array, axis: int, *axes: str) -> jax.Array:
            """Part p of P holds values p, p + P ...: where they are split over chips, each chip has some of it."""
            before, after = values.shape[:axis], values.shape[axis + 1 :]
            return constrain(jnp.moveaxis(values.reshape(*before, -1, parts, *after), axis + 1, 0), None, *axes)

        into = [projection for projection in (self.up, self.gate) if projection is not None]
        kernels = [cut(projection.kernel[...], 1, "embed", "mlp") for projection in into]
        biases = [None if projection.bias is None else cut(projection.bias[...], 0, "mlp") for projection in into]

        def add(y_BLD, part):
            kernels, biases, down_FD = part
            hidden_BLF = self._hidden(*(p.apply(x_BLD, k, b) for p, k, b in zip(into, kernels, biases, strict=True)))
            return y_BLD + self.down.apply(hidden_BLF, down_FD, None).astype(jnp.float32), None

        add = jax.checkpoint(add, prevent_cse=False) if self.computes_again else add
        scanned = kernels, biases, cut(self.down.kernel[...], 0, "mlp", "embed")
        y_BLD = jax.lax.scan(add, jnp.zeros(x_BLD.shape, jnp.float32), scanned)[0].astype(self.down.dtype)
        return y_BLD if self.down.bias is None else y_BLD + self.down.bias[...].astype(self.down.dtype)
