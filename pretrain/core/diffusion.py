"""Paths from a picture to noise, what a model may predict on them, and how one prediction gives all others.

At time t, from 0 to 1, a picture x is seen as  signal(t) x + noise(t) e  with e of unit normal noise. Paths: "linear"
(DDPM's betas, Ho et al. 2020, in the limit of many steps, Song et al. 2021), "cosine" (Nichol and Dhariwal 2021) and
"straight" (flow matching, Lipman et al. 2023; rectified flow, Liu et al. 2023). Predictions: the noise, the picture, v
= signal e - noise x (Salimans and Ho 2022), and the flow e - x.
"""

import dataclasses
import math
from typing import Literal

import gin
import jax
import jax.numpy as jnp

from pretrain.core.errors import check
from pretrain.core.fields import check_fields

Path = Literal["linear", "cosine", "straight"]
Prediction = Literal["noise", "picture", "v", "flow"]
BETAS = 0.1, 20.0  # of the linear path, at time 0 and 1, per unit of time
SMALLEST = 1e-4  # no signal or noise is divided by less


@gin.configurable
@dataclasses.dataclass(frozen=True)
class PictureShape:
    """Sizes of pictures, or of short films, and number of classes.

    Attributes:
        height, width, channels: of a picture; values are uint8.
        patch: side of a square patch, in pixels.
        classes: kinds of pictures, 1 where all are of one kind; one more stands for none.
        frames, tube: of a film, and of one patch of it; 1 for pictures.
        given: frames that a film begins with and that are seen without noise; the others are drawn.
        levels: of the digits of a patch's code, where codes of a small tokenizer are drawn; () for pixels.
    """

    height: int = 32
    width: int = 32
    channels: int = 1
    patch: int = 2
    classes: int = 10
    frames: int = 1
    tube: int = 1
    given: int = 0
    levels: tuple[int, ...] = ()

    def __post_init__(self):
        check_fields(self)
        for name in ("height", "width", "channels", "patch", "classes", "frames", "tube"):
            check(getattr(self, name) > 0, f"PictureShape.{name} must be > 0, got {getattr(self, name)}")
        check(
            self.height % self.patch == 0 and self.width % self.patch == 0,
            f"PictureShape: {self.height} x {self.width} pixels cannot be cut into patches of {self.patch}",
        )
        check(
            self.frames % self.tube == 0 and self.given % self.tube == 0 and 0 <= self.given < self.frames,
            f"PictureShape: {self.frames} frames, of which {self.given} are given, cannot be cut into tubes of "
            f"{self.tube}",
        )
        check(min(self.levels, default=2) >= 2, f"PictureShape.levels must be 2 or more each, got {self.levels}")

    @property
    def grid(self) -> tuple[int, int, int]:
        """Tubes in time, and rows and columns of patches."""
        return self.frames // self.tube, self.height // self.patch, self.width // self.patch

    @property
    def patches(self) -> int:
        """Patches of a picture or a film."""
        return math.prod(self.grid)

    @property
    def given_patches(self) -> int:
        """Patches of the frames that are given; they come first."""
        return self.patches * self.given // self.frames

    @property
    def patch_values(self) -> int:
        """Pixels of a patch, by channel."""
        return self.tube * self.patch**2 * self.channels

    @property
    def values(self) -> int:
        """Numbers of a patch as the model sees it: its pixels, or the digits of its code."""
        return len(self.levels) or self.patch_values


def signal_and_noise(path: Path, times: jax.Array) -> tuple[jax.Array, jax.Array]:
    """How much of the picture and of the noise is seen at times from 0 to 1, like `times`."""
    if path == "straight":
        return 1 - times, times
    if path == "cosine":
        return jnp.cos(times * jnp.pi / 2), jnp.sin(times * jnp.pi / 2)
    low, high = BETAS
    log_signal = -0.25 * times**2 * (high - low) - 0.5 * times * low
    return jnp.exp(log_signal), jnp.sqrt(-jnp.expm1(2 * log_signal))


def wanted(prediction: Prediction, picture: jax.Array, noise: jax.Array, a: jax.Array, b: jax.Array) -> jax.Array:
    """What a model should say of a picture and its noise, where `a` of the first and `b` of the second is seen."""
    return {"noise": noise, "picture": picture, "v": a * noise - b * picture, "flow": noise - picture}[prediction]


def picture_and_noise(
    prediction: Prediction, said: jax.Array, seen: jax.Array, a: jax.Array, b: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """The picture and the noise that a model's word implies, given `seen` = a picture + b noise."""
    if prediction == "picture":
        return said, (seen - a * said) / jnp.maximum(b, SMALLEST)
    if prediction == "noise":
        return (seen - b * said) / jnp.maximum(a, SMALLEST), said
    if prediction == "v":  # a² + b² need not be 1
        power = a**2 + b**2
        return (a * seen - b * said) / power, (b * seen + a * said) / power
    total = a + b
    return (seen - b * said) / total, (seen + a * said) / total
