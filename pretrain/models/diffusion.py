"""The diffusion Transformer, whose norms are steered by time and class (DiT, Peebles and Xie 2023, arXiv:2212.09748).

Patches of a noisy picture, or tubes of a film, attend to each other. What is noisy are their pixels, or the codes of a
small tokenizer that is trained along (latent diffusion, Rombach et al. 2022). In every layer a linear map of the time's
and the class's embedding shifts and scales what goes into attention and MLP, and gates what comes out; the gates begin
at 0, so a fresh layer does nothing.

Axes: B batch · N patches · Z values of a patch as the model sees it (pixels, or digits of a code) · D embed.
"""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from pretrain.core.diffusion import PictureShape
from pretrain.core.errors import check
from pretrain.models.attention import Attention, attention_mask
from pretrain.models.codes import PatchCodes
from pretrain.models.config import TransformerConfig
from pretrain.models.layers import Projection, compute_dtype, param
from pretrain.models.mlp import Mlp
from pretrain.models.positions import sinusoids
from pretrain.models.stack import Context, Stack
from pretrain.sharding.rules import constrain

WAVES = 256  # numbers that a time is written as
TIME_UNITS = 1000.0  # times are told as if from 0 to 1000, as in DDPM


def plain_norm(x_BND: jax.Array, shift_B1D: jax.Array, scale_B1D: jax.Array, epsilon: float) -> jax.Array:
    """LayerNorm without parameters of its own, then scaled by 1 + scale and shifted; in float32."""
    y = x_BND.astype(jnp.float32)
    y = y - jnp.mean(y, -1, keepdims=True)
    y = y * jax.lax.rsqrt(jnp.mean(jnp.square(y), -1, keepdims=True) + epsilon)
    return (y * (1 + scale_B1D.astype(jnp.float32)) + shift_B1D.astype(jnp.float32)).astype(x_BND.dtype)


class SteeredBlock(nnx.Module):
    """One layer of a stack, steered by `Context.condition_BD` (adaLN-Zero)."""

    def __init__(self, config: TransformerConfig, *, rngs: nnx.Rngs, cross: bool = False, routed: bool = False):
        check(not cross and not routed, "a diffusion Transformer has neither a second sequence nor experts")
        embed, self.epsilon = config.embed_dim, config.norm_epsilon
        self.attention, self.mlp = Attention(config, rngs=rngs), Mlp(config, rngs=rngs)
        self.steer = Projection((embed,), (6, embed), ("embed", None, None), config, rngs=rngs, scale=0.0)

    def __call__(self, x_BND: jax.Array, context: Context, cache=None, is_wide=None) -> tuple[jax.Array, None, None]:
        del cache, is_wide
        steered_B6D = self.steer(jax.nn.silu(context.condition_BD))
        shift, scale, gate, mlp_shift, mlp_scale, mlp_gate = jnp.split(steered_B6D, 6, axis=1)
        y_BND, _ = self.attention(plain_norm(x_BND, shift, scale, self.epsilon), context.sight)
        x_BND = x_BND + gate * y_BND
        x_BND = x_BND + mlp_gate * self.mlp(plain_norm(x_BND, mlp_shift, mlp_scale, self.epsilon))
        return constrain(x_BND, "batch", "residual_length", None), None, None


class DiffusionTransformer(nnx.Module):
    """Says of noisy pictures what `core.diffusion.Prediction` asks for.

    Args:
        config: of the layers; positions are sinusoids of row and column, and of time.
        shape: of the pictures or films.
    """

    def __init__(self, config: TransformerConfig, shape: PictureShape, *, rngs: nnx.Rngs):
        fits = config.positions in ("none", "rotary") and config.embed_dim % 4 == 0  # rotary: all stand at one place
        check(fits, "a diffusion Transformer has positions = 'none' and an embed_dim that is a multiple of 4")
        self.config, self.shape = config, shape
        embed, axes = (config.embed_dim,), ("embed", None)
        self.codes = PatchCodes(config, shape.patch_values, shape.levels, rngs=rngs) if shape.levels else None
        self.patch_in = Projection((shape.values,), embed, (None, "embed"), config, rngs=rngs)
        self.time_in = Projection((WAVES,), embed, (None, "embed"), config, rngs=rngs, scale=0.02)
        self.time_out = Projection(embed, embed, axes, config, rngs=rngs, scale=0.02)
        classes = 0.02 * jax.random.normal(rngs.params(), (shape.classes + 1, config.embed_dim), config.param_dtype)
        self.classes = param(classes, (None, "embed"))
        options = {"two_sided": True, "block": SteeredBlock, "final_norm": False}
        self.stack = Stack(config, config.num_layers, rngs=rngs, **options)
        self.last_steer = Projection(embed, (2, *embed), ("embed", None, None), config, rngs=rngs, scale=0.0)
        self.patch_out = Projection(embed, (shape.values,), axes, config, rngs=rngs, scale=0.0)

    def __call__(self, seen_BNZ: jax.Array, times_B: jax.Array, labels_B: jax.Array) -> jax.Array:
        """Hidden states [batch, patches, embed] before the last layer, already normed.

        Args:
            seen_BNZ: noisy patches; those of frames that are given come without noise.
            times_B: from 0 (no noise) to 1.
            labels_B: int32, classes; `shape.classes` for none.
        """
        dtype = compute_dtype(self.config)
        x_BND = self.patch_in(seen_BNZ) + self._places().astype(dtype)
        time_BD = self.time_out(jax.nn.silu(self.time_in(sinusoids(times_B * TIME_UNITS, WAVES))))
        condition_BD = (time_BD + self.classes[...].astype(dtype)[labels_B]).astype(dtype)
        valid_BN = jnp.ones(x_BND.shape[:2], jnp.int32)
        mask_BNN = attention_mask(valid_BN, causal=False)
        sight = self.stack.sight(mask_BNN, valid_BN, jnp.arange(x_BND.shape[1]), causal=False)
        x_BND, _, _ = self.stack(x_BND, Context(sight, valid_BN > 0, condition_BD=condition_BD))
        shift_B1D, scale_B1D = jnp.split(self.last_steer(jax.nn.silu(condition_BD)), 2, axis=1)
        return plain_norm(x_BND, shift_B1D, scale_B1D, self.config.norm_epsilon)

    def _places(self) -> jax.Array:
        """Where patches are, and when in a film: float32 [patches, embed]."""
        (times, rows, columns), embed = self.shape.grid, self.config.embed_dim
        places_ND = jnp.asarray(grid_sinusoids(rows, columns, embed))
        if times == 1:
            return places_ND
        return jnp.concatenate([places_ND + wave_D for wave_D in sinusoids(jnp.arange(times), embed)])

    def said(self, hidden_BND: jax.Array) -> jax.Array:
        """The prediction, float32 [batch, patches, values]."""
        return self.patch_out(hidden_BND).astype(jnp.float32)


def grid_sinusoids(rows: int, columns: int, embed_dim: int) -> np.ndarray:
    """Places of a grid, row by row, float32 [rows * columns, embed]: half is of the column, half of the row."""
    frequency = 10_000.0 ** (-np.arange(0, embed_dim // 2, 2) / (embed_dim // 2))

    def of(places: np.ndarray) -> np.ndarray:
        angle = places[:, None] * frequency
        return np.concatenate([np.sin(angle), np.cos(angle)], axis=-1)

    row, column = np.divmod(np.arange(rows * columns), columns)
    return np.concatenate([of(column), of(row)], axis=-1).astype(np.float32)
