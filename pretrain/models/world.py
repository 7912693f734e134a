"""A world model: what a camera sees next, given the past and an action, and what to do (Ha and Schmidhuber 2018).

Frames are rows of patches, each frame with a token for the robot's own state. An encoder looks at the past: causal over
time, everything within a frame. The policy reads it, which has seen no action; so one model is both (a
vision-language-action model, Brohan et al. 2023, where an instruction is given). An action first says how the robot's
own state changes. That and the action then steer the norms of a decoder, as a time and a class steer a diffusion
Transformer's, and the decoder says what changes in the frame, looking within it alone. The split is that of V-JEPA 2-AC
(Assran et al. 2025). Time is a rotary position, so that a window of any length can be looked at.

Axes: B batch · T time · N patches · P values of a patch · M = N + 1 tokens of a frame · L = T M · S state · A action ·
D embed · K codes.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from pretrain.core.errors import check
from pretrain.core.video import VideoShape
from pretrain.models.attention import attention_mask
from pretrain.models.codes import PatchCodes
from pretrain.models.config import TransformerConfig
from pretrain.models.diffusion import SteeredBlock, grid_sinusoids
from pretrain.models.layers import Norm, Projection, compute_dtype, param
from pretrain.models.mlp import Mlp
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


class Past(NamedTuple):
    """What is known at each step.

    Attributes:
        tokens_BTMD: of a frame's patches, and of the state.
        states_BTS: from -1 to 1; None for films without a robot, as the next one.
        moves_BTS: by how much the state has changed since the step before; 0 at an episode's first.
    """

    tokens_BTMD: jax.Array
    states_BTS: jax.Array | None
    moves_BTS: jax.Array | None

    def last(self) -> "Past":
        """What is known at the last step."""
        return jax.tree.map(lambda x: x[:, -1:], self)


class Future(NamedTuple):
    """What follows an action: tokens of the patches to come, [B, T, N, D], and the change of the state, [B, T, S]."""

    tokens_BTND: jax.Array
    change_BTS: jax.Array | None


class WorldModel(nnx.Module):
    """Encoder of the past, decoder of the next frame, and a policy.

    Args:
        config: `encoder_layers` look at the past, `num_layers` at the frame that is to come.
        shape: sizes of a recording.
    """

    def __init__(self, config: TransformerConfig, shape: VideoShape, *, rngs: nnx.Rngs):
        check(
            config.positions in ("rotary", "none") and config.embed_dim % 4 == 0,
            "a world model has positions = 'rotary' (over time) or 'none', and an embed_dim that is a multiple of 4; "
            f"not {config.positions!r} and {config.embed_dim}",
        )
        self.config, self.shape = config, shape
        embed, features, (state, action) = (config.embed_dim,), 1 + 2 * OCTAVES, (shape.state_dim, shape.action_dim)
        into = lambda size: Projection((size,), embed, (None, "embed"), config, rngs=rngs)  # noqa: E731
        out_of = lambda size, more=0: Projection(  # noqa: E731
            (config.embed_dim + more,), (size,), ("embed" if not more else None, None), config, rngs=rngs, scale=0.0
        )
        state_place = 0.02 * jax.random.normal(rngs.params(), (1, config.embed_dim), config.param_dtype)
        grid = jnp.asarray(grid_sinusoids(*shape.grid, config.embed_dim), config.param_dtype)
        self.places = param(jnp.concatenate([grid, state_place]), (None, "embed"))  # of the patches, and of the state
        self.codes = PatchCodes(config, shape.patch_values, shape.levels, rngs=rngs) if shape.levels else None
        self.patch_in = into(len(shape.levels) or shape.patch_values)
        self.patch_out = out_of(self.codes.size if shape.levels else shape.patch_values)
        self.state_in = into(2 * state * features) if state else None
        self.state_out = out_of(state, 2 * state + action) if state else None
        self.next_in = into(state * features) if state else None
        self.away_in = into(2 * features) if shape.state_is_place else None
        self.action_in = into(action * features) if action else None
        self.action_out = out_of(action) if action else None
        self.motion_norm, self.motion = Norm(config.embed_dim, config), Mlp(config, rngs=rngs)
        self.condition_norm = Norm(config.embed_dim, config)
        self.encoder = Stack(config, config.encoder_layers or config.num_layers, two_sided=True, rngs=rngs)
        self.decoder = Stack(config, config.num_layers, two_sided=True, block=SteeredBlock, rngs=rngs)

    def encode(self, patches_BTNP: jax.Array, states_BTS: jax.Array | None, segment_ids_BT: jax.Array) -> Past:
        """What is known at each step.

        Args:
            patches_BTNP: from -1 to 1, as `to_patches` gives them; or digits of their codes.
            states_BTS: from -1 to 1.
            segment_ids_BT: int32, the episode each step is of; 0 for none.
        """
        batch, time = segment_ids_BT.shape
        moves_BTS = None if states_BTS is None else moves(states_BTS, segment_ids_BT)
        x_BTMD = self._tokens(patches_BTNP, states_BTS, moves_BTS)
        tokens = x_BTMD.shape[2]
        spread = lambda x_BT: jnp.repeat(x_BT, tokens, axis=1)  # noqa: E731
        segments_BL = spread(segment_ids_BT)
        times_BL = spread(jnp.broadcast_to(jnp.arange(time), (batch, time)))
        mask_BLS = attention_mask(segments_BL, causal=False) & (times_BL[:, :, None] >= times_BL[:, None, :])
        sight = self.encoder.sight(mask_BLS, times_BL, times_BL[0], causal=False)
        x_BLD = x_BTMD.reshape(batch, time * tokens, -1)
        hidden_BLD, _, _ = self.encoder(x_BLD, Context(sight, segments_BL > 0))
        return Past(hidden_BLD.reshape(batch, time, tokens, -1), states_BTS, moves_BTS)

    def imagine(self, past: Past, actions_BTA: jax.Array | None) -> Future:
        """What follows an action, from what is known before it."""
        batch, time, tokens, _ = past.tokens_BTMD.shape
        motion_BTD, change_BTS = self._move(past, actions_BTA)
        condition_BTD, x_BTMD = motion_BTD, past.tokens_BTMD + self.places[...].astype(past.tokens_BTMD.dtype)
        if change_BTS is not None:
            next_BTS = past.states_BTS + jax.lax.stop_gradient(change_BTS)
            condition_BTD = condition_BTD + self.next_in(waves(next_BTS))
            x_BTMD = x_BTMD + self._away(next_BTS, tokens)
        x_RMD = x_BTMD.reshape(batch * time, tokens, -1)  # each frame is a row of its own
        mask_RMM = jnp.ones((batch * time, tokens, tokens), bool)
        still_RM = jnp.zeros((batch * time, tokens), jnp.int32)
        sight = self.decoder.sight(mask_RMM, still_RM, jnp.arange(tokens), causal=False)
        context = Context(sight, still_RM == 0, condition_BD=condition_BTD.reshape(batch * time, -1))
        y_RMD, _, _ = self.decoder(x_RMD, context)
        return Future(y_RMD.reshape(x_BTMD.shape)[:, :, :-1], change_BTS)

    def next_patches(self, future: Future) -> jax.Array:
        """By how much patches change, or logits of their codes: float32 [batch, time, patches, values or codes]."""
        return self.patch_out(future.tokens_BTND).astype(jnp.float32)

    def policy(self, past: Past) -> jax.Array:
        """The action to take at each step, from -1 to 1 where it is in range: float32 [batch, time, action]."""
        return self.action_out(past.tokens_BTMD[:, :, -1]).astype(jnp.float32)

    def _move(self, past: Past, actions_BTA: jax.Array | None) -> tuple[jax.Array, jax.Array | None]:
        """What an action does to the robot, [B, T, D], and by how much its state changes, float32 [B, T, S]."""
        x_BTD = past.tokens_BTMD[:, :, -1]
        if actions_BTA is not None:
            x_BTD = x_BTD + self.action_in(waves(actions_BTA))
        x_BTD = x_BTD + self.motion(self.motion_norm(x_BTD))
        if self.state_out is None:
            return x_BTD, None
        raw = [past.states_BTS, past.moves_BTS, actions_BTA]  # laws of motion are often linear
        told_BTX = jnp.concatenate(
            [self.condition_norm(x_BTD).astype(jnp.float32), *(each for each in raw if each is not None)], axis=-1
        )
        return x_BTD, self.state_out(told_BTX).astype(jnp.float32)

    def _away(self, states_BTS: jax.Array, tokens: int) -> jax.Array | float:
        """How far each patch is from the place that a state is, [B, T, patches + 1, D]; 0 where it is none."""
        if self.away_in is None:
            return 0.0
        rows, columns = self.shape.grid
        row_N, column_N = np.divmod(np.arange(rows * columns), columns)
        centres_N2 = np.stack([(column_N + 0.5) / columns, (row_N + 0.5) / rows], axis=-1).astype(np.float32) * 2 - 1
        away_BTND = self.away_in(waves(centres_N2 - states_BTS[:, :, None, :2]))
        return jnp.pad(away_BTND, ((0, 0), (0, 0), (0, tokens - rows * columns), (0, 0)))

    def _tokens(self, patches_BTNP: jax.Array, states_BTS: jax.Array | None, moves_BTS: jax.Array | None) -> jax.Array:
        patches_BTND = self.patch_in(patches_BTNP)
        state_BTD = jnp.zeros_like(patches_BTND[:, :, 0])
        if self.state_in is not None:
            state_BTD = self.state_in(jnp.concatenate([waves(states_BTS), waves(moves_BTS)], axis=-1))
        x_BTMD = jnp.concatenate([patches_BTND, state_BTD[:, :, None]], axis=2)
        if states_BTS is not None:
            x_BTMD = x_BTMD + self._away(states_BTS, x_BTMD.shape[2])
        x_BTMD = (x_BTMD + self.places[...].astype(x_BTMD.dtype)).astype(compute_dtype(self.config))
        return constrain(x_BTMD, "batch", "residual_length", None, None)


def moves(states_BTS: jax.Array, segment_ids_BT: jax.Array) -> jax.Array:
    """By how much states have changed since the step before, float32 [B, T, S]; 0 at the first of an episode."""
    goes_on_BT = (segment_ids_BT[:, 1:] == segment_ids_BT[:, :-1]) & (segment_ids_BT[:, 1:] > 0)
    change_BTS = jnp.where(goes_on_BT[..., None], states_BTS[:, 1:] - states_BTS[:, :-1], 0)
    return jnp.pad(change_BTS, ((0, 0), (1, 0), (0, 0)))
