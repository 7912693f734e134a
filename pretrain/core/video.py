"""What a camera and a robot record: its sizes, and frames as rows of patches, for models and objectives alike.

Axes: B batch · T time · H height · W width · C channels · N patches of a frame · P values of a patch ·
Z digits of a code · L patches of a film · K chosen ones.
"""

import dataclasses
import math

import gin
import jax
import jax.numpy as jnp
import numpy as np

from pretrain.core.errors import check
from pretrain.core.fields import check_fields


@gin.configurable
@dataclasses.dataclass(frozen=True)
class VideoShape:
    """Sizes of a recording.

    Attributes:
        height, width, channels: of a frame; values are uint8.
        patch: side of a square patch, in pixels.
        state_dim: numbers of proprioception at each step; 0 for none.
        action_dim: numbers of an action; 0 for a video without actions.
        instruction: bytes of text that stand at each step and say what is to be done; 0 for none.
        state_is_place: the first two numbers of a state are where the robot is in the frame, x and y: `lowest` at the
            left and upper edge, `highest` at the right and lower one. Every patch is then told how far off it is.
        action_is_state: an action is the state to go to. The policy then says by how much it is off.
        levels: of the digits of a patch's code, e.g. (5, 5, 5, 5), where models see and predict codes; () for pixels.
        lowest, highest: what states and actions range over; the models see them as -1 and 1.
    """

    height: int = 96
    width: int = 96
    channels: int = 3
    patch: int = 12
    state_dim: int = 2
    action_dim: int = 2
    instruction: int = 0
    state_is_place: bool = False
    action_is_state: bool = False
    levels: tuple[int, ...] = ()
    lowest: float = 0.0
    highest: float = 512.0

    def __post_init__(self):
        check_fields(self)
        for name in ("height", "width", "channels", "patch"):
            check(getattr(self, name) > 0, f"VideoShape.{name} must be > 0, got {getattr(self, name)}")
        for name in ("state_dim", "action_dim", "instruction"):
            check(getattr(self, name) >= 0, f"VideoShape.{name} must be >= 0, got {getattr(self, name)}")
        check(
            self.height % self.patch == 0 and self.width % self.patch == 0,
            f"VideoShape: {self.height} x {self.width} pixels cannot be cut into patches of {self.patch}",
        )
        check(
            self.state_dim >= 2 or not self.state_is_place,
            f"VideoShape.state_is_place needs two numbers of a place; state_dim is {self.state_dim}",
        )
        check(
            self.state_dim == self.action_dim or not self.action_is_state,
            f"VideoShape.action_is_state needs as many numbers of a state ({self.state_dim}) as of an action "
            f"({self.action_dim})",
        )
        check(min(self.levels, default=2) >= 2, f"VideoShape.levels must be 2 or more each, got {self.levels}")
        check(self.lowest < self.highest, f"VideoShape: lowest ({self.lowest}) must be below highest ({self.highest})")

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches."""
        return self.height // self.patch, self.width // self.patch

    @property
    def patches(self) -> int:
        """Patches of a frame."""
        return math.prod(self.grid)

    @property
    def patch_values(self) -> int:
        """Numbers of a patch."""
        return self.patch**2 * self.channels

    def normalized(self, values: jax.Array) -> jax.Array:
        """States or actions on a scale from -1 to 1, float32."""
        return (values.astype(jnp.float32) - self.lowest) * (2 / (self.highest - self.lowest)) - 1

    def restored(self, values: jax.Array) -> jax.Array:
        """The inverse of `normalized`."""
        return (values + 1) * ((self.highest - self.lowest) / 2) + self.lowest


def cut(images: jax.Array, patch: int, tube: int = 1) -> jax.Array:
    """Pictures [B, H, W, C] or films [B, T, H, W, C] as square patches, or tubes of some frames: [B, L, P].

    By time, then row by row; the values of a tube are those of its frames, one after another. The dtype stays.
    """
    films = images if images.ndim == 5 else images[:, None]
    batch, time, height, width, channels = films.shape
    x = films.reshape(batch, time // tube, tube, height // patch, patch, width // patch, patch, channels)
    return x.transpose(0, 1, 3, 5, 2, 4, 6, 7).reshape(batch, -1, tube * patch * patch * channels)


def joined(patches_BLP: jax.Array, grid: tuple[int, int, int], patch: int, tube: int = 1) -> jax.Array:
    """The inverse of `cut`, as films [B, T, H, W, C] of a grid of tubes in time, rows and columns."""
    times, rows, columns = grid
    x = patches_BLP.reshape(len(patches_BLP), times, rows, columns, tube, patch, patch, -1)
    return x.transpose(0, 1, 4, 2, 5, 3, 6, 7).reshape(-1, times * tube, rows * patch, columns * patch, x.shape[-1])


def chosen(x_BL: jax.Array, places_BK: jax.Array) -> jax.Array:
    """Some elements of each row, [B, K, ...] of [B, L, ...]; a place beyond the end is the last one."""
    index = places_BK.reshape(*places_BK.shape, *(1 for _ in x_BL.shape[2:]))
    return jnp.take_along_axis(x_BL, index, axis=1, mode="clip")


def to_patches(frames: jax.Array, patch: int) -> jax.Array:
    """uint8 frames [..., H, W, C] as float32 patches [..., N, P] from -1 to 1, row by row."""
    *batch, height, width, channels = frames.shape
    rows, columns = height // patch, width // patch
    x = frames.reshape(*batch, rows, patch, columns, patch, channels)
    x = jnp.moveaxis(x, -4, -3).reshape(*batch, rows * columns, patch * patch * channels)
    return x.astype(jnp.float32) / 127.5 - 1


def from_patches(patches: jax.Array, shape: VideoShape) -> jax.Array:
    """The inverse of `to_patches`; what lies beyond black and white is cut off."""
    *batch, _, _ = patches.shape
    p, (rows, columns) = shape.patch, shape.grid
    x = patches.reshape(*batch, rows, columns, p, p, shape.channels)
    x = jnp.moveaxis(x, -3, -4).reshape(*batch, shape.height, shape.width, shape.channels)
    return jnp.clip(jnp.round((x + 1) * 127.5), 0, 255).astype(jnp.uint8)


def code_of(digits: jax.Array, levels: tuple[int, ...]) -> jax.Array:
    """The number of each code, int32 [...], of digits [..., Z]; the first digit counts least."""
    places = np.concatenate([[1], np.cumprod(levels[:-1])]).astype(np.int32)
    return jnp.sum(jnp.round(digits).astype(jnp.int32) * places, axis=-1)


def digits_of(codes: jax.Array, levels: tuple[int, ...]) -> jax.Array:
    """The inverse of `code_of`, float32 [..., Z]."""
    places = np.concatenate([[1], np.cumprod(levels[:-1])]).astype(np.int32)
    return (codes[..., None] // places % np.array(levels, np.int32)).astype(jnp.float32)
