"""A world model: what a camera sees next, given the past and an action, and what to do (Ha and Schmidhuber 2018).

Frames are rows of patches, each frame with a token for the robot's own state. An encoder looks at the past: causal over
time, everything within a frame. A decoder takes what the encoder makes of a frame, and the action that follows it, and
says what changes, looking within the frame alone. The policy reads the encoder, which has seen no action; so one model
is both (a vision-language-action model, Brohan et al. 2023, where an instruction is given). The split is that of V-JEPA
2-AC (Assran et al. 2025). Time is a rotary position, so that a window of any length can be looked at.

Axes: B batch · T time · N patches · P values of a patch · M = N + 1 tokens of a frame · L = T M · S state · A action ·
D embed · K codes.
"""

import jax
import jax.numpy as jnp
from flax import nnx

from pretrain.core.errors import check
from pretrain.core.video import VideoShape
from pretrain.models.attention import attention_mask
from pretrain.models.codes import PatchCodes
from pretrain.models.config import TransformerConfig
from pretrain.models.layers import Projection, compute_dtype, param
from pretrain.models.stack import Context, Stack
from pretrain.sharding.rules import constrain

OCTAVES = 6  # of sines in the features of states and actions


def waves(values: jax.Array) -> jax.Array:
    """Numbers with their sines and cosines of rising frequency, [..., S] -> [..., S (1 + 2 octaves)] (Tancik et al.
    2020).

    A linear map of these can be sharp in the number, as a picture of a thing at that place has to be.
    """
    angles = values[..., None] * (jnp.pi * 2.0 ** jnp.arange(OCTAVES))
    return jnp.concatenate([values, *(f(angles).reshape(*values.shape[:-1], -1) for f in (jnp.sin, jnp.cos))], -1)


class WorldModel(nnx.Module):
    """Encoder of the past, decoder of the next frame, and a policy.

    Args:
        config: `encoder_layers` look at the past, `num_layers` at the frame that is to come.
        shape: sizes of a recording.
    """

    def __init__(self, config: TransformerConfig, shape: VideoShape, *, rngs: nnx.Rngs):
        check(
            config.positions in ("rotary", "none"),
            f"a world model has positions = 'rotary' (over time) or 'none', not {config.positions!r}",
        )
        self.config, self.shape = config, shape
        embed, features = (config.embed_dim,), 1 + 2 * OCTAVES
        into = lambda size: Projection((size,), embed, (None, "embed"), config, rngs=rngs)  # noqa: E731
        out_of = lambda size: Projection(embed, (size,), ("embed", None), config, rngs=rngs, scale=0.0)  # noqa: E731
        places = 0.02 * jax.random.normal(rngs.params(), (shape.patches + 1, config.embed_dim), config.param_dtype)
        self.places = param(places, (None, "embed"))  # of the patches; the last is the state's
        self.codes = PatchCodes(config, shape.patch_values, shape.levels, rngs=rngs) if shape.levels else None
        self.patch_in = into(len(shape.levels) or shape.patch_values)
        self.patch_out = out_of(self.codes.size if shape.levels else shape.patch_values)
        self.state_in = into(shape.state_dim * features) if shape.state_dim else None
        self.state_out = out_of(shape.state_dim) if shape.state_dim else None
        self.action_in = into(shape.action_dim * features) if shape.action_dim else None
        self.action_out = out_of(shape.action_dim) if shape.action_dim else None
        self.encoder = Stack(config, config.encoder_layers or config.num_layers, two_sided=True, rngs=rngs)
        self.decoder = Stack(config, config.num_layers, two_sided=True, rngs=rngs)

    def encode(self, patches_BTNP: jax.Array, states_BTS: jax.Array, segment_ids_BT: jax.Array) -> jax.Array:
        """What is known at each step: [batch, time, patches + 1, embed]; the last token of a frame is the state's.

        Args:
            patches_BTNP: from -1 to 1, as `to_patches` gives them; or digits of their codes.
            states_BTS: from -1 to 1.
            segment_ids_BT: int32, the episode each step is of; 0 for none.
        """
        batch, time = segment_ids_BT.shape
        x_BTMD = self._tokens(patches_BTNP, states_BTS)
        tokens = x_BTMD.shape[2]
        spread = lambda x_BT: jnp.repeat(x_BT, tokens, axis=1)  # noqa: E731
        segments_BL = spread(segment_ids_BT)
        times_BL = spread(jnp.broadcast_to(jnp.arange(time), (batch, time)))
        mask_BLS = attention_mask(segments_BL, causal=False) & (times_BL[:, :, None] >= times_BL[:, None, :])
        sight = self.encoder.sight(mask_BLS, times_BL, times_BL[0], causal=False)
        x_BLD = x_BTMD.reshape(batch, time * tokens, -1)
        hidden_BLD, _, _ = self.encoder(x_BLD, Context(sight, segments_BL > 0))
        return hidden_BLD.reshape(batch, time, tokens, -1)

    def imagine(self, hidden_BTMD: jax.Array, actions_BTA: jax.Array) -> jax.Array:
        """What follows an action, [batch, time, patches + 1, embed], from what is known before it."""
        batch, time, tokens, _ = hidden_BTMD.shape
        x_BTMD = hidden_BTMD + self.places[...].astype(hidden_BTMD.dtype)
        if self.action_in is not None:
            x_BTMD = x_BTMD + self.action_in(waves(actions_BTA))[:, :, None]
        x_RMD = x_BTMD.reshape(batch * time, tokens, -1)  # each frame is a row of its own
        mask_RMM = jnp.ones((batch * time, tokens, tokens), bool)
        still_RM = jnp.zeros((batch * time, tokens), jnp.int32)
        sight = self.decoder.sight(mask_RMM, still_RM, jnp.arange(tokens), causal=False)
        y_RMD, _, _ = self.decoder(x_RMD, Context(sight, still_RM == 0))
        return y_RMD.reshape(hidden_BTMD.shape)

    def next_patches(self, imagined_BTMD: jax.Array) -> jax.Array:
        """By how much patches change, or logits of their codes: float32 [batch, time, patches, values or codes]."""
        return self.patch_out(imagined_BTMD[:, :, :-1]).astype(jnp.float32)

    def next_state(self, imagined_BTMD: jax.Array) -> jax.Array:
        """By how much the state changes: float32 [batch, time, state]."""
        return self.state_out(imagined_BTMD[:, :, -1]).astype(jnp.float32)

    def policy(self, hidden_BTMD: jax.Array) -> jax.Array:
        """The action to take at each step, from -1 to 1 where it is in range: float32 [batch, time, action]."""
        return self.action_out(hidden_BTMD[:, :, -1]).astype(jnp.float32)

    def _tokens(self, patches_BTNP: jax.Array, states_BTS: jax.Array) -> jax.Array:
        patches_BTND = self.patch_in(patches_BTNP)
        state_BTD = jnp.zeros_like(patches_BTND[:, :, 0])
        if self.state_in is not None:
            state_BTD = self.state_in(waves(states_BTS))
        x_BTMD = jnp.concatenate([patches_BTND, state_BTD[:, :, None]], axis=2)
        x_BTMD = (x_BTMD + self.places[...].astype(x_BTMD.dtype)).astype(compute_dtype(self.config))
        return constrain(x_BTMD, "batch", "residual_length", None, None)
