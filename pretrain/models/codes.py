"""A small tokenizer of patches: finite scalar quantization (Mentzer et al. 2023, arXiv:2309.15505).

A patch becomes a few numbers, each rounded to one of its levels; together they are the digits of its code. There is no
codebook to learn, and none that collapses: gradients pass the rounding straight through.

Axes: ... any · P values of a patch · Z digits of a code.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from pretrain.models.config import TransformerConfig
from pretrain.models.layers import Projection


def rounded(z: jax.Array, levels: tuple[int, ...]) -> jax.Array:
    """Digits of codes, float32 [..., Z], whole numbers from 0 to each level - 1; the slope is that before rounding."""
    bounded = jax.nn.sigmoid(z.astype(jnp.float32)) * (np.array(levels) - 1)
    return bounded + jax.lax.stop_gradient(jnp.round(bounded) - bounded)


class PatchCodes(nnx.Module):
    """Patches to digits of codes and back, each patch alone.

    Args:
        config: the width of the hidden layer is `mlp_dim`.
        values: numbers of a patch.
        levels: of each digit.
    """

    def __init__(self, config: TransformerConfig, values: int, levels: tuple[int, ...], *, rngs: nnx.Rngs):
        self.levels, hidden, digits = levels, config.mlp_dim, len(levels)
        make = lambda inputs, outputs, axes: Projection((inputs,), (outputs,), axes, config, rngs=rngs)  # noqa: E731
        self.encode_in, self.encode_out = make(values, hidden, (None, "mlp")), make(hidden, digits, ("mlp", None))
        self.decode_in, self.decode_out = make(digits, hidden, (None, "mlp")), make(hidden, values, ("mlp", None))

    @property
    def size(self) -> int:
        """Number of codes."""
        return math.prod(self.levels)

    def digits(self, patches: jax.Array) -> jax.Array:
        """Digits of codes, float32 [..., Z], of patches [..., P]."""
        return rounded(self.encode_out(jax.nn.gelu(self.encode_in(patches))), self.levels)

    def patches(self, digits: jax.Array) -> jax.Array:
        """Patches, float32 [..., P], of digits [..., Z]."""
        return self.decode_out(jax.nn.gelu(self.decode_in(self.centred(digits)))).astype(jnp.float32)

    def centred(self, digits: jax.Array) -> jax.Array:
        """Digits on a scale from -1 to 1."""
        return digits * (2 / (np.array(self.levels) - 1)) - 1

    def nearest(self, centred: jax.Array) -> jax.Array:
        """The digits that are nearest to numbers from -1 to 1."""
        return jnp.round((centred + 1) * ((np.array(self.levels) - 1) / 2))
