"""An encoder of sound and a decoder of text (Whisper, Radford et al. 2022).

Two convolutions make one hidden state of two frames of the log-mel spectrogram, 50 a second, and sinusoids say where it
stands; the rest is the encoder-decoder that all texts share. Silence behind a recording is heard, as in the paper.

Axes: B batch · T samples · S hidden states of the encoder · L text · D embed.
"""

import jax
import jax.numpy as jnp
from flax import nnx

from pretrain.core.objective import Output
from pretrain.core.sound import SoundShape
from pretrain.models.config import TransformerConfig
from pretrain.models.convolution import Convolution
from pretrain.models.layers import ACTIVATIONS, compute_dtype
from pretrain.models.log_mel import log_mel
from pretrain.models.positions import sinusoids
from pretrain.models.transformer import Tokens, Transformer
from pretrain.sharding.rules import constrain


class SpeechTransformer(Transformer):
    """Sound in, text out.

    Args:
        config: an encoder-decoder; `positions` and `max_length` are the decoder's.
        shape: of the recordings.
    """

    def __init__(self, config: TransformerConfig, shape: SoundShape, *, rngs: nnx.Rngs):
        super().__init__(config, rngs=rngs)
        self.shape, size = shape, config.embed_dim
        self.first = Convolution(shape.mels, size, config, width=3, padding=1, rngs=rngs)
        self.second = Convolution(size, size, config, width=3, stride=2, padding=1, rngs=rngs)

    def hear(self, samples_BT: jax.Array) -> jax.Array:
        """What goes into the encoder's first layer, [B, T / 320, embed].

        Args:
            samples_BT: int16, at 16 kHz.
        """
        gelu, dtype = ACTIVATIONS["gelu_erf"], compute_dtype(self.config)
        x_BSD = gelu(self.first(log_mel(samples_BT, self.shape.mels)))
        x_BSD = gelu(self.second(x_BSD))
        places = sinusoids(jnp.arange(x_BSD.shape[1])[None], self.config.embed_dim, closed=True)
        return constrain(x_BSD + places.astype(dtype), "batch", "residual_length", None)

    def transcribe(self, samples_BT: jax.Array, text: Tokens) -> Output:
        """Hidden states of the decoder, [B, L, embed], which has read `text`, one a row."""
        return self.translate(*self._heard(samples_BT), text)

    def listen(self, samples_BT: jax.Array) -> jax.Array:
        """The encoder's hidden states, [B, S, embed], for `put_down`."""
        return self.read(*self._heard(samples_BT)).hidden

    def put_down(self, memory_BSD: jax.Array, text: Tokens) -> jax.Array:
        """Hidden states as of `transcribe`, from what `listen` gave."""
        return self.write(memory_BSD, jnp.ones(memory_BSD.shape[:2], jnp.int32), text).hidden

    def _heard(self, samples_BT: jax.Array) -> Tokens:
        """What goes into the encoder, with segment ids and positions, [B, S] each."""
        x_BSD = self.hear(samples_BT)
        heard_BS = jnp.ones(x_BSD.shape[:2], jnp.int32)
        return x_BSD, heard_BS, jnp.broadcast_to(jnp.arange(x_BSD.shape[1]), heard_BS.shape)
