"""What an encoder of pictures or films is made of, what stands behind it where patches are hidden, and how it meets an
encoder of text: parts of a `TransformerConfig`.
"""

import dataclasses
from collections.abc import Sequence
from typing import Literal

import gin

from pretrain.core.errors import check
from pretrain.core.fields import check_fields


@gin.configurable
@dataclasses.dataclass(frozen=True)
class Predictor:
    """The narrow Transformer that says what hidden patches are like; it is thrown away after pretraining.

    As MAE's decoder (He et al. 2021); what is not said here is the encoder's.

    Attributes:
        num_layers, embed_dim, num_heads, mlp_dim: sizes.
    """

    num_layers: int = 8
    embed_dim: int = 512
    num_heads: int = 16
    mlp_dim: int = 2048

    def __post_init__(self):
        check_fields(self)
        for name in ("num_layers", "embed_dim", "num_heads", "mlp_dim"):
            check(getattr(self, name) > 0, f"Predictor.{name} must be > 0, got {getattr(self, name)}")
        check(
            self.embed_dim % 4 == 0 and self.embed_dim % self.num_heads == 0,
            f"Predictor.embed_dim ({self.embed_dim}) must be a multiple of 4 and of num_heads ({self.num_heads})",
        )


@gin.configurable
@dataclasses.dataclass(frozen=True)
class Vision:
    """An encoder of pictures cut into patches (Dosovitskiy et al. 2020); what is not said here is the Transformer's.

    Attributes:
        image_size: side in pixels of the pictures that positions are made for; other pictures interpolate them.
        patch_size: side of a patch in pixels.
        channels: of a picture.
        frames: of a film; 1 for pictures.
        tube: frames of a patch of a film; each tube has a sinusoid of its number beside `positions`.
        num_layers, embed_dim, num_heads, mlp_dim: sizes; None for the Transformer's own.
        positions: "learned", or "sincos" of row and column (Chen et al. 2021; nothing to learn).
        pooling: "class" (a token of its own), "attention" (a learned query, Zhai et al. 2022) or "mean".
        patch_bias: a bias in the patch embedding, where the model has biases.
        input_norm: a norm before the first layer (CLIP).
        mean, std: of pixels from 0 to 1, by channel or one for all.
        predictor: what stands behind the encoder where an objective hides patches.
    """

    image_size: int = 224
    patch_size: int = 16
    channels: int = 3
    frames: int = 1
    tube: int = 1
    num_layers: int | None = None
    embed_dim: int | None = None
    num_heads: int | None = None
    mlp_dim: int | None = None
    positions: Literal["learned", "sincos"] = "learned"
    pooling: Literal["class", "attention", "mean"] = "class"
    patch_bias: bool = True
    input_norm: bool = False
    mean: Sequence[float] = (0.5,)
    std: Sequence[float] = (0.5,)
    predictor: Predictor = dataclasses.field(default_factory=Predictor)

    def __post_init__(self):
        check_fields(self)
        sizes = ("num_layers", "embed_dim", "num_heads", "mlp_dim")
        for name in ("image_size", "patch_size", "channels", "frames", "tube", *sizes):
            value = getattr(self, name)
            check(value is None or value > 0, f"Vision.{name} must be > 0, got {value}")
        check(
            self.image_size % self.patch_size == 0,
            f"Vision.image_size ({self.image_size}) must be a multiple of patch_size ({self.patch_size})",
        )
        check(
            self.frames % self.tube == 0,
            f"Vision.frames ({self.frames}) must be a multiple of tube ({self.tube})",
        )
        for name in ("mean", "std"):
            count = len(getattr(self, name))
            check(count in (1, self.channels), f"Vision.{name} must have 1 or {self.channels} values, not {count}")

    @property
    def grid(self) -> int:
        """Patches along a side: the side of the table of learned positions."""
        return self.image_size // self.patch_size

    @property
    def patches(self) -> int:
        """Patches of a picture of this size, or of a film of so many frames."""
        return self.grid**2 * (self.frames // self.tube)

    @property
    def patch_values(self) -> int:
        """Numbers of a patch."""
        return self.tube * self.patch_size**2 * self.channels

    @property
    def length(self) -> int:
        """Tokens of such a picture or film."""
        return self.patches + (self.pooling == "class")


@gin.configurable
@dataclasses.dataclass(frozen=True)
class Towers:
    """How an encoder of pictures and one of text meet in one space (Radford et al. 2021; Zhai et al. 2023).

    Attributes:
        joint_dim: size of the space.
        causal_text: the text tower is causal (CLIP).
        text_pooling: "end" (the last token of a text, its EOS) or "mean".
        image_projection: a matrix from the image tower to the space; without, the tower is as wide as the space.
        projection_bias: a bias in the projections.
        temperature, pair_bias: the logits' first factor and, in the sigmoid loss, first bias.
    """

    joint_dim: int = 512
    causal_text: bool = True
    text_pooling: Literal["end", "mean"] = "end"
    image_projection: bool = True
    projection_bias: bool = False
    temperature: float = 1 / 0.07
    pair_bias: float = -10.0

    def __post_init__(self):
        check_fields(self)
        check(self.joint_dim > 0, f"Towers.joint_dim must be > 0, got {self.joint_dim}")
        check(self.temperature > 0, f"Towers.temperature must be > 0, got {self.temperature}")
