"""An encoder of sound that learns from what is hidden of it (wav2vec 2.0, Baevski et al. 2020, arXiv:2006.11477).

Convolutions make 49 frames a second of the samples. Some of these are hidden behind one learned vector; a Transformer,
in which a wide convolution says where frames stand, says of each hidden frame what its code is. Codes are made of the
frames themselves: entries of small codebooks, chosen by a softmax with Gumbel noise whose temperature falls with time.

Axes: B batch · T samples · L frames · C channels · D embed · G codebooks, or groups of channels · V entries ·
J joint space · W width · I, O channels of a group, in and out.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from pretrain.core.objective import Metrics
from pretrain.core.sound import Waves
from pretrain.models.config import TransformerConfig
from pretrain.models.convolution import Convolution
from pretrain.models.layers import ACTIVATIONS, Norm, Projection, compute_dtype, param
from pretrain.models.stack import Stack
from pretrain.models.vision import look_around, unit

HIDDEN = 1.0  # the vector of hidden frames begins even between 0 and this
FIRST, LAST, DECAY = 2.0, 0.5, 0.999995  # temperature of the choice of codes, and what is left of it at each step
SLOWER = 0.1  # the convolutions' gradients are so much smaller


class Heard(NamedTuple):
    """What the model makes of recordings.

    Attributes:
        said_BLJ, codes_BLJ: of each frame, what was said of it and its code; float32, of length 1.
        chosen_BLG: int32, the entries that a code is made of.
        chances_BLGV: float32, probabilities of entries, without noise.
        squares_B: mean square of the convolutions' frames.
    """

    said_BLJ: jax.Array
    codes_BLJ: jax.Array
    chosen_BLG: jax.Array
    chances_BLGV: jax.Array
    squares_B: jax.Array


class ChannelNorm(nnx.Module):
    """Each channel by its mean and deviation over time (GroupNorm with a group a channel), in float32."""

    def __init__(self, size: int, config: TransformerConfig):
        self.epsilon = config.norm_epsilon
        self.scale = param(jnp.ones(size, config.param_dtype), ("norm",))
        self.bias = param(jnp.zeros(size, config.param_dtype), ("norm",))

    def __call__(self, x_BLC: jax.Array) -> jax.Array:
        y_BLC = jax.nn.standardize(x_BLC.astype(jnp.float32), axis=1, epsilon=self.epsilon)
        return (y_BLC * self.scale[...] + self.bias[...]).astype(x_BLC.dtype)


class Places(nnx.Module):
    """A convolution by groups of channels, seconds wide: what it adds to a frame depends on where the frame stands.

    Its kernel is a direction and, for each place of the width, a length (weight normalisation).
    """

    def __init__(self, config: TransformerConfig, waves: Waves, *, rngs: nnx.Rngs):
        size, width, groups = config.embed_dim, waves.position_width, waves.position_groups
        kernel_WIC = 2 / math.sqrt(width * size) * jax.random.normal(rngs.params(), (width, size // groups, size))
        self.kernel = param(kernel_WIC.astype(config.param_dtype), (None, None, "embed"))
        lengths_W = jnp.sqrt(jnp.sum(jnp.square(kernel_WIC), axis=(1, 2)))
        self.lengths = param(lengths_W.astype(config.param_dtype), (None,))
        self.bias = param(jnp.zeros(size, config.param_dtype), ("norm",))
        self.groups, self.dtype = groups, compute_dtype(config)

    def __call__(self, x_BLD: jax.Array) -> jax.Array:
        kernel_WIC = self.kernel[...].astype(jnp.float32)
        lengths_W = jnp.sqrt(jnp.sum(jnp.square(kernel_WIC), axis=(1, 2)))
        kernel_WIC = kernel_WIC * (self.lengths[...] / lengths_W)[:, None, None]
        (batch, length, size), (width, inputs, _) = x_BLD.shape, kernel_WIC.shape
        padded_BLD = jnp.pad(x_BLD.astype(self.dtype), ((0, 0), (width // 2, width - 1 - width // 2), (0, 0)))
        x_BLGI = padded_BLD.reshape(batch, -1, self.groups, inputs)
        kernel_WIGO = kernel_WIC.astype(self.dtype).reshape(width, inputs, self.groups, -1)

        @jax.checkpoint
        def add_tap(sum_BLGO, tap):
            place, kernel_IGO = tap
            part_BLGI = jax.lax.dynamic_slice_in_dim(x_BLGI, place, length, axis=1)
            return sum_BLGO + jnp.einsum("blgi,igo->blgo", part_BLGI, kernel_IGO), None

        # Tap by tap: windows of 128 frames would be 128 times as large, and XLA doubles the gradient of a convolution
        # by groups on a mesh with tensor ways (jax 0.10.2).
        y_BLGO = jnp.zeros((batch, length, *kernel_WIGO.shape[2:]), self.dtype)
        y_BLGO, _ = jax.lax.scan(add_tap, y_BLGO, (jnp.arange(width), kernel_WIGO))
        return ACTIVATIONS["gelu_erf"](y_BLGO.reshape(batch, length, size) + self.bias[...].astype(self.dtype))


class Codes(nnx.Module):
    """Codes of frames: of each codebook one entry, side by side."""

    def __init__(self, config: TransformerConfig, waves: Waves, *, rngs: nnx.Rngs):
        w, shape = waves, (waves.codebooks, waves.entries)
        self.scores = Projection((w.channels,), shape, (None, None, None), config, rngs=rngs, scale=1.0)
        entries_GVJ = jax.random.uniform(rngs.params(), (*shape, w.code_dim // w.codebooks), config.param_dtype)
        self.entries = param(entries_GVJ, (None, None, None))
        self.temperature = param(jnp.full((), FIRST, jnp.float32), ())
        joint = (w.code_dim,), (w.joint_dim,)
        self.joint = Projection(*joint, ("embed", None), config, rngs=rngs)

    def __call__(self, x_BLC: jax.Array, noise_B: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Codes in the joint space [B, L, J], the entries chosen [B, L, G] and the chances of all [B, L, G, V].

        Args:
            x_BLC: frames.
            noise_B: int32, a number that each row's noise is drawn from.
        """
        scores_BLGV = self.scores(x_BLC).astype(jnp.float32)
        draw = lambda number: jax.random.gumbel(jax.random.key(number), scores_BLGV.shape[1:])  # noqa: E731
        noisy_BLGV = (scores_BLGV + jax.vmap(draw)(noise_B)) / jax.lax.stop_gradient(self.temperature[...])
        soft_BLGV, chosen_BLG = jax.nn.softmax(noisy_BLGV), jnp.argmax(noisy_BLGV, axis=-1)
        hard_BLGV = jax.nn.one_hot(chosen_BLG, soft_BLGV.shape[-1])
        picked_BLGV = hard_BLGV + soft_BLGV - jax.lax.stop_gradient(soft_BLGV)  # hard, with the soft one's gradient
        codes_BLGJ = jnp.einsum("blgv,gvj->blgj", picked_BLGV, self.entries[...].astype(jnp.float32))
        codes_BLJ = self.joint(codes_BLGJ.reshape(*codes_BLGJ.shape[:2], -1))
        return codes_BLJ, chosen_BLG, jax.nn.softmax(scores_BLGV)


class WaveEncoder(nnx.Module):
    """Samples in; what is said of hidden frames, and codes, out.

    Args:
        config: of the Transformer.
        waves: what is before and beside it.
    """

    untrained = ("codes/temperature",)

    def __init__(self, config: TransformerConfig, waves: Waves, *, rngs: nnx.Rngs):
        self.config, self.waves, size = config, waves, config.embed_dim
        inputs = [1, *[waves.channels] * (len(waves.convolutions) - 1)]
        self.convolutions = nnx.List(
            Convolution(
                count, waves.channels, config, width=width, stride=stride, bias=False,
                scale=math.sqrt(2 / (width * count)), rngs=rngs,
            )
            for count, (width, stride) in zip(inputs, waves.convolutions, strict=True)
        )  # fmt: skip
        self.channel_norm = ChannelNorm(waves.channels, config)
        self.frame_norm = Norm(waves.channels, config)
        self.codes = Codes(config, waves, rngs=rngs)
        self.widen = Projection((waves.channels,), (size,), (None, "embed"), config, rngs=rngs, scale=config.init_scale)
        hidden_D = jax.random.uniform(rngs.params(), (size,), config.param_dtype, 0, HIDDEN)
        self.hidden = param(hidden_D, ("norm",))
        self.places = Places(config, waves, rngs=rngs)
        self.embedding_norm = Norm(size, config)
        self.stack = Stack(config, config.num_layers, two_sided=True, rngs=rngs)
        joint = (size,), (waves.joint_dim,)
        self.joint = Projection(*joint, ("embed", None), config, rngs=rngs)

    def frames(self, samples_BT: jax.Array, lengths_B: jax.Array) -> jax.Array:
        """What the convolutions make of samples, [B, L, C].

        Args:
            samples_BT: int16, with silence behind a recording.
            lengths_B: int32, samples of each.
        """
        gelu, x_BT = ACTIVATIONS["gelu_erf"], samples_BT.astype(jnp.float32)
        there_BT = jnp.arange(x_BT.shape[1]) < lengths_B[:, None]
        x_BT = jax.nn.standardize(x_BT, axis=1, epsilon=1e-7, where=there_BT) * there_BT
        x_BLC = jnp.where(jnp.isfinite(x_BT), x_BT, 0)[..., None]  # a row without a recording has no mean
        for number, convolution in enumerate(self.convolutions):
            x_BLC = convolution(x_BLC)
            x_BLC = gelu(self.channel_norm(x_BLC) if number == 0 else x_BLC)
        return x_BLC

    def encode(self, x_BLC: jax.Array, valid_BL: jax.Array, hidden_BL: jax.Array | None = None) -> jax.Array:
        """Hidden states of frames that `frame_norm` has been over, [B, L, D].

        Args:
            x_BLC: frames.
            valid_BL: bool, which there are.
            hidden_BL: bool, which are not shown; None for none.
        """
        x_BLD = self.widen(x_BLC)
        if hidden_BL is not None:
            x_BLD = jnp.where(hidden_BL[..., None], self.hidden[...].astype(x_BLD.dtype), x_BLD)
        x_BLD = jnp.where(valid_BL[..., None], x_BLD, 0)
        return look_around(self.stack, self.embedding_norm(x_BLD + self.places(x_BLD)), valid_BL)

    def __call__(
        self, samples_BT: jax.Array, lengths_B: jax.Array, valid_BL: jax.Array, hidden_BL: jax.Array, noise_B: jax.Array
    ) -> Heard:
        """Args: as `frames`, `encode` and `Codes` take them."""
        x_BLC = self.frames(samples_BT, lengths_B)
        x_BLC = SLOWER * x_BLC + jax.lax.stop_gradient((1 - SLOWER) * x_BLC)
        squares_BL = jnp.mean(jnp.square(x_BLC.astype(jnp.float32)), axis=-1) * valid_BL
        squares_B = jnp.sum(squares_BL, axis=1) / jnp.maximum(jnp.sum(valid_BL, axis=1), 1)
        x_BLC = self.frame_norm(x_BLC)
        codes_BLJ, chosen_BLG, chances_BLGV = self.codes(x_BLC, noise_B)
        said_BLJ = self.joint(self.encode(x_BLC, valid_BL, hidden_BL))
        return Heard(unit(said_BLJ), unit(codes_BLJ), chosen_BLG, chances_BLGV, squares_B)

    def advance(self, metrics: Metrics) -> None:
        """Cools the choice of codes, after each update."""
        del metrics
        temperature = self.codes.temperature
        temperature[...] = jnp.maximum(DECAY * temperature[...], LAST)
