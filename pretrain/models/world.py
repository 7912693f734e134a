"""A world model: what a camera sees next, given the past and an action, and what to do (Ha and Schmidhuber 2018).

Frames are rows of patches, each frame with a token for the robot's own state. An encoder looks at each frame alone, and
the policy reads it: it has seen no action, and no past from which to copy one (de Haan et al. 2019). So one model is
both (a vision-language-action model, Brohan et al. 2023, where an instruction is given: the vector that is
read from it is added to the state's token). A second stack looks back from
each place over time, as in the space-time Transformer of Genie (Bruce et al. 2024). An action first says how the
robot's own state changes. That and the action then steer the norms of a decoder, as a time and a class steer a
diffusion Transformer's, and the decoder says what changes in the frame, looking within it alone. The split is that of
V-JEPA 2-AC (Assran et al. 2025). Time is a rotary position, so that a window of any length can be looked at.

Axes: B batch · T time · I bytes of an instruction · N patches · Z values of a patch as the model sees it (pixels, or
digits of a code) · M = N + 1 tokens of a frame, its state's the last · R frames, or places, as rows of their own · S
state · A action · D embed.
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
from pretrain.models.instructions import Instruction
from pretrain.models.layers import Norm, Projection, compute_dtype, param
from pretrain.models.mlp import Mlp
from pretrain.models.stack import Context, Stack
from pretrain.sharding.rules import constrain

OCTAVES = 6  # of sines in the features of states and actions
HISTORY = 4  # layers that look at a frame, for each that looks back


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
        present_BTD: of the frame alone, at its state's token.
        tokens_BTMD: of the patches and the state, having looked back.
        states_BTS: from -1 to 1; None for films without a robot, as the next one.
        moves_BTS: by how much the state has changed since the step before; 0 at an episode's first.
    """

    present_BTD: jax.Array
    tokens_BTMD: jax.Array
    states_BTS: jax.Array | None
    moves_BTS: jax.Array | None

    def at(self, steps: slice) -> "Past":
        """What is known at some steps."""
        return jax.tree.map(lambda x: x[:, steps], self)


class Future(NamedTuple):
    """What follows an action: tokens of the patches to come, [B, T, N, D], and the change of the state, [B, T, S]."""

    tokens_BTND: jax.Array
    change_BTS: jax.Array | None


class Residual(nnx.Module):
    """An MLP on a normed copy, added."""

    def __init__(self, config: TransformerConfig, *, rngs: nnx.Rngs):
        self.norm, self.mlp = Norm(config.embed_dim, config), Mlp(config, rngs=rngs)

    def __call__(self, x_BTD: jax.Array) -> jax.Array:
        return x_BTD + self.mlp(self.norm(x_BTD))


class WorldModel(nnx.Module):
    """Encoder of a frame, look at the past, decoder of the next frame, and a policy.

    Args:
        config: `encoder_layers` look at a frame, a fourth as many at the past, `num_layers` at the frame to come.
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
        self.state_in = into(state * features) if state else None
        self.moves_in = into(state * features) if state else None
        self.next_in = into(state * features) if state else None
        self.state_out = out_of(state, 2 * state + action) if state else None
        self.away_in = into(2 * features) if shape.state_is_place else None
        self.action_in = into(action * features) if action else None
        self.choice = nnx.List([Residual(config, rngs=rngs) for _ in range(2 if action else 0)])
        self.choice_norm = Norm(config.embed_dim, config) if action else None
        self.action_out = out_of(action) if action else None
        self.motion, self.motion_norm = Residual(config, rngs=rngs), Norm(config.embed_dim, config)
        layers = config.encoder_layers or config.num_layers
        self.instruction = Instruction(config, rngs=rngs) if shape.instruction else None
        self.encoder = Stack(config, layers, two_sided=True, rngs=rngs)
        self.history = Stack(config, max(1, layers // HISTORY), rngs=rngs)
        self.decoder = Stack(config, config.num_layers, two_sided=True, block=SteeredBlock, rngs=rngs)

    def encode(
        self,
        patches_BTNZ: jax.Array,
        states_BTS: jax.Array | None,
        segment_ids_BT: jax.Array,
        instructions_BTI: jax.Array | None = None,
    ) -> Past:
        """What is known at each step.

        Args:
            patches_BTNZ: from -1 to 1, as `to_patches` gives them; or digits of their codes.
            states_BTS: from -1 to 1.
            segment_ids_BT: int32, the episode each step is of; 0 for none.
            instructions_BTI: uint8, what is to be done at each step, padded with 0.
        """
        moves_BTS = None if states_BTS is None else moves(states_BTS, segment_ids_BT)
        x_BTMD = self._within(self.encoder, self._tokens(patches_BTNZ, states_BTS, instructions_BTI))
        present_BTD = x_BTMD[:, :, -1]
        if moves_BTS is not None:
            x_BTMD = x_BTMD.at[:, :, -1].add(self.moves_in(waves(moves_BTS)).astype(x_BTMD.dtype))
        return Past(present_BTD, self._back(x_BTMD, segment_ids_BT), states_BTS, moves_BTS)

    def imagine(self, past: Past, actions_BTA: jax.Array | None) -> Future:
        """What follows an action, from what is known before it."""
        condition_BTD, change_BTS = self._move(past, actions_BTA)
        x_BTMD = past.tokens_BTMD + self.places[...].astype(past.tokens_BTMD.dtype)
        if change_BTS is not None:
            next_BTS = past.states_BTS + jax.lax.stop_gradient(change_BTS)
            condition_BTD = condition_BTD + self.next_in(waves(next_BTS))
            x_BTMD = x_BTMD + self._away(next_BTS)
        y_BTMD = self._within(self.decoder, x_BTMD, condition_BTD)
        return Future(y_BTMD[:, :, :-1], change_BTS)

    def next_patches(self, future: Future) -> jax.Array:
        """By how much patches change, or logits of their codes: float32 [batch, time, patches, values or codes]."""
        return self.patch_out(future.tokens_BTND).astype(jnp.float32)

    def policy(self, past: Past) -> jax.Array:
        """The action to take at each step, from -1 to 1 where it is in range: float32 [batch, time, action]."""
        x_BTD = past.present_BTD
        for residual in self.choice:
            x_BTD = residual(x_BTD)
        action_BTA = self.action_out(self.choice_norm(x_BTD)).astype(jnp.float32)
        return action_BTA + past.states_BTS if self.shape.action_is_state else action_BTA

    def _within(self, stack: Stack, x_BTMD: jax.Array, condition_BTD: jax.Array | None = None) -> jax.Array:
        """Each frame as a row of its own."""
        batch, time, tokens, _ = x_BTMD.shape
        x_RMD = x_BTMD.reshape(batch * time, tokens, -1)
        still_RM = jnp.zeros(x_RMD.shape[:2], jnp.int32)
        sight = stack.sight(jnp.ones((batch * time, tokens, tokens), bool), still_RM, jnp.arange(tokens), causal=False)
        condition_RD = None if condition_BTD is None else condition_BTD.reshape(batch * time, -1)
        y_RMD, _, _ = stack(x_RMD, Context(sight, still_RM == 0, condition_BD=condition_RD))
        return y_RMD.reshape(x_BTMD.shape)

    def _back(self, x_BTMD: jax.Array, segment_ids_BT: jax.Array) -> jax.Array:
        """Each place of a frame as a row of its own, over the steps of its episode up to each."""
        batch, time, tokens, _ = x_BTMD.shape
        x_RTD = x_BTMD.swapaxes(1, 2).reshape(batch * tokens, time, -1)
        segments_RT = jnp.repeat(segment_ids_BT, tokens, axis=0)
        times_RT = jnp.broadcast_to(jnp.arange(time), segments_RT.shape)
        sight = self.history.sight(attention_mask(segments_RT, causal=True), times_RT, times_RT[0], causal=True)
        y_RTD, _, _ = self.history(x_RTD, Context(sight, segments_RT > 0))
        return y_RTD.reshape(batch, tokens, time, -1).swapaxes(1, 2)

    def _move(self, past: Past, actions_BTA: jax.Array | None) -> tuple[jax.Array, jax.Array | None]:
        """What an action does to the robot, [B, T, D], and by how much its state changes, float32 [B, T, S]."""
        x_BTD = past.tokens_BTMD[:, :, -1]
        if actions_BTA is not None:
            x_BTD = x_BTD + self.action_in(waves(actions_BTA))
        x_BTD = self.motion(x_BTD)
        if self.state_out is None:
            return x_BTD, None
        raw = past.states_BTS, past.moves_BTS, actions_BTA  # laws of motion are often linear
        told = [self.motion_norm(x_BTD).astype(jnp.float32), *(each for each in raw if each is not None)]
        return x_BTD, self.state_out(jnp.concatenate(told, axis=-1)).astype(jnp.float32)

    def _away(self, states_BTS: jax.Array) -> jax.Array | float:
        """How far each patch is from the place that a state is, [B, T, M, D]; 0 where it is none."""
        if self.away_in is None:
            return 0.0
        rows, columns = self.shape.grid
        row_N, column_N = np.divmod(np.arange(rows * columns), columns)
        centres_N2 = np.stack([(column_N + 0.5) / columns, (row_N + 0.5) / rows], axis=-1).astype(np.float32) * 2 - 1
        away_BTND = self.away_in(waves(centres_N2 - states_BTS[:, :, None, :2]))
        return jnp.pad(away_BTND, ((0, 0), (0, 0), (0, 1), (0, 0)))

    def _tokens(
        self, patches_BTNZ: jax.Array, states_BTS: jax.Array | None, instructions_BTI: jax.Array | None
    ) -> jax.Array:
        patches_BTND = self.patch_in(patches_BTNZ)
        state_BTD = jnp.zeros_like(patches_BTND[:, :, 0]) if states_BTS is None else self.state_in(waves(states_BTS))
        if instructions_BTI is not None:
            told_RD = self.instruction(instructions_BTI.reshape(-1, instructions_BTI.shape[-1]))
            state_BTD = state_BTD + told_RD.reshape(state_BTD.shape)
        x_BTMD = jnp.concatenate([patches_BTND, state_BTD[:, :, None]], axis=2)
        if states_BTS is not None:
            x_BTMD = x_BTMD + self._away(states_BTS)
        x_BTMD = (x_BTMD + self.places[...].astype(x_BTMD.dtype)).astype(compute_dtype(self.config))
        return constrain(x_BTMD, "batch", "residual_length", None, None)


def moves(states_BTS: jax.Array, segment_ids_BT: jax.Array) -> jax.Array:
    """By how much states have changed since the step before, float32 [B, T, S]; 0 at the first of an episode."""
    goes_on_BT = (segment_ids_BT[:, 1:] == segment_ids_BT[:, :-1]) & (segment_ids_BT[:, 1:] > 0)
    change_BTS = jnp.where(goes_on_BT[..., None], states_BTS[:, 1:] - states_BTS[:, :-1], 0)
    return jnp.pad(change_BTS, ((0, 0), (1, 0), (0, 0)))
