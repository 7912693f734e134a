"""Convolutions along time.

Axes: B batch · L length · W width · C channels.
"""

import jax
import jax.numpy as jnp
from flax import nnx

from pretrain.models.config import TransformerConfig
from pretrain.models.layers import Projection


class Convolution(nnx.Module):
    """[batch, length, inputs] -> [batch, (length + 2 padding - width) // stride + 1, outputs].

    One product of windows with a matrix, as all else is: XLA's gradient of a convolution is slow on CPU.
    """

    def __init__(
        self, inputs: int, outputs: int, config: TransformerConfig, *, width: int, stride: int = 1, padding: int = 0,
        bias: bool = True, scale: float | None = None, rngs: nnx.Rngs,
    ):  # fmt: skip
        axes = (None, None, "embed")
        self.matrix = Projection(
            (width, inputs), (outputs,), axes, config, rngs=rngs, scale=scale or config.init_scale, bias=bias
        )
        self.width, self.stride, self.padding = width, stride, padding

    def __call__(self, x_BLC: jax.Array) -> jax.Array:
        x_BLC = jnp.pad(x_BLC, ((0, 0), (self.padding, self.padding), (0, 0)))
        reach = x_BLC.shape[1] - self.width + 1  # first places of windows
        taps = [x_BLC[:, tap : tap + reach : self.stride] for tap in range(self.width)]
        return self.matrix(jnp.stack(taps, axis=2))
