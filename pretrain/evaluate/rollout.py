"""What a world model imagines: frames and states many steps ahead from its own predictions, and animations of them.

Axes: B batch · T time · K steps ahead · N patches · Z values of a patch as the model sees it (pixels, or digits of a
code) · S state · A action · H height · W width · C channels.
"""

import io
import math
import os
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from pretrain.core.storage import write_bytes
from pretrain.core.video import VideoShape, digits_of, from_patches, to_patches
from pretrain.models.functional import FunctionalModel, Params


def rollout(
    model: FunctionalModel,
    video: VideoShape,
    params: Params,
    frames_BTHWC: jax.Array,
    states_BTS: jax.Array | None = None,
    actions_BKA: jax.Array | None = None,
    steps: int | None = None,
    instructions_BI: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array | None]:
    """Frames uint8 [batch, steps, H, W, C] and states float32 [batch, steps, S] that follow; traceable.

    Only the given frames are real: each predicted one takes the place of the oldest, so the model always looks back
    over as many frames as it was given.

    Args:
        model, video, params: of `NextFrame`.
        frames_BTHWC: uint8, what was seen.
        states_BTS: in the units of the recording; None where it has none.
        actions_BKA: what is done from the last frame on; None where the recording has none.
        steps: how far to look ahead; None: as many as there are actions.
        instructions_BI: uint8, what is to be done, as `core.arrays.instruction` gives it.
    """
    module = model.module(params)
    seen_BTNZ = to_patches(frames_BTHWC, video.patch)
    seen_BTNZ = seen_BTNZ if module.codes is None else module.codes.digits(seen_BTNZ)
    known_BT = jnp.ones(frames_BTHWC.shape[:2], jnp.int32)
    states = None if states_BTS is None else video.normalized(states_BTS)
    told_BTI = _at_each_step(instructions_BI, known_BT)

    def ahead(window: tuple, action_BA: jax.Array | None) -> tuple[tuple, tuple]:
        seen_BTNZ, states_BTS = window
        actions = None if action_BA is None else video.normalized(action_BA)[:, None]
        past = module.encode(seen_BTNZ, states_BTS, known_BT, told_BTI)
        future = module.imagine(past.at(slice(-1, None)), actions)
        next_BNZ = _taken(video, seen_BTNZ[:, -1], module.next_patches(future)[:, 0])
        seen_BTNZ = jnp.concatenate([seen_BTNZ[:, 1:], next_BNZ[:, None]], axis=1)
        state_BS = None
        if states_BTS is not None:
            state_BS = states_BTS[:, -1] + future.change_BTS[:, 0]
            states_BTS = jnp.concatenate([states_BTS[:, 1:], state_BS[:, None]], axis=1)
        return (seen_BTNZ, states_BTS), (next_BNZ, state_BS)

    actions_KBA = None if actions_BKA is None else jnp.moveaxis(actions_BKA, 1, 0)
    length = steps if actions_KBA is None else None
    _, (next_KBNZ, states_KBS) = jax.lax.scan(ahead, (seen_BTNZ, states), actions_KBA, length=length)
    patches_KBNP = next_KBNZ if module.codes is None else module.codes.patches(next_KBNZ)
    frames_BKHWC = jnp.moveaxis(from_patches(patches_KBNP, video), 0, 1)
    return frames_BKHWC, None if states is None else video.restored(jnp.moveaxis(states_KBS, 0, 1))


def act(
    model: FunctionalModel,
    video: VideoShape,
    params: Params,
    frames_BHWC: jax.Array,
    states_BS: jax.Array | None,
    instructions_BI: jax.Array | None = None,
) -> jax.Array:
    """What the policy does, float32 [batch, action] in the recording's units; traceable.

    Args:
        model, video, params: of `NextFrame`.
        frames_BHWC: uint8, what is seen.
        states_BS: in the recording's units; None where it has none.
        instructions_BI: uint8, what is to be done, as `core.arrays.instruction` gives it; None for a model without.
    """
    module = model.module(params)
    seen_BTNZ = to_patches(frames_BHWC[:, None], video.patch)
    seen_BTNZ = seen_BTNZ if module.codes is None else module.codes.digits(seen_BTNZ)
    states_BTS = None if states_BS is None else video.normalized(states_BS)[:, None]
    known_BT = jnp.ones(seen_BTNZ.shape[:2], jnp.int32)
    told_BTI = _at_each_step(instructions_BI, known_BT)
    return video.restored(module.policy(module.encode(seen_BTNZ, states_BTS, known_BT, told_BTI))[:, 0])


def _at_each_step(instructions_BI: jax.Array | None, known_BT: jax.Array) -> jax.Array | None:
    """Instructions [batch, time, bytes]."""
    if instructions_BI is None:
        return None
    return jnp.broadcast_to(instructions_BI[:, None], (*known_BT.shape, instructions_BI.shape[-1]))


def _taken(video: VideoShape, last_BNZ: jax.Array, predicted: jax.Array) -> jax.Array:
    """The next patches as the model sees them: the last ones changed, or the likeliest codes."""
    if video.levels:
        return digits_of(jnp.argmax(predicted, axis=-1), video.levels)
    return jnp.clip(last_BNZ + predicted, -1, 1)


def psnr(found: Any, wanted: Any) -> float:
    """Peak signal-to-noise ratio of uint8 frames in decibels, from the mean square over all of them; inf when equal."""
    error = np.mean(np.square(np.asarray(found, np.float64) - np.asarray(wanted, np.float64)))
    return math.inf if error == 0 else 10 * math.log10(255**2 / error)


def side_by_side(*films: np.ndarray, gap: int = 4, scale: int = 2) -> np.ndarray:
    """Films uint8 [steps, H, W, C] of one length, in one: next to each other, each pixel `scale` times as large."""
    large = [np.asarray(film).repeat(scale, axis=1).repeat(scale, axis=2) for film in films]
    steps, height, _, channels = large[0].shape
    line = np.full((steps, height, gap, channels), 255, np.uint8)
    parts = [part for film in large for part in (film, line)][:-1]
    return np.concatenate(parts, axis=2)


def write_animation(path: os.PathLike | str, film: np.ndarray, frames_per_second: float = 10) -> None:
    """A film uint8 [steps, H, W, C] (C 1 or 3) as a GIF that repeats."""
    pictures = [Image.fromarray(frame[..., 0] if frame.shape[-1] == 1 else frame) for frame in np.asarray(film)]
    buffer = io.BytesIO()
    first, *others = pictures
    duration = round(1000 / frames_per_second)
    first.save(buffer, "GIF", save_all=True, append_images=others, duration=duration, loop=0)
    write_bytes(path, buffer.getvalue())
