"""How a record's picture becomes what the model sees: decoded, cut out at random, flipped, recoloured."""

import dataclasses
from collections.abc import Sequence

import gin
import numpy as np

from pretrain.core import images
from pretrain.core.batch import ArraySpec
from pretrain.core.errors import check
from pretrain.core.fields import check_fields


@gin.configurable
@dataclasses.dataclass(frozen=True)
class Pictures:
    """Pictures of one size, or, with `patches`, each in its own shape (NaFlex, Tschannen et al. 2025).

    Attributes:
        image_size: side in pixels; it may differ from `Vision.image_size`.
        channels: 1 or 3.
        area: least and largest share of the picture that a random crop takes; (1, 1) shows the middle square, whole.
        aspect: width / height of a random crop, least and largest.
        flip: mirror every other picture; not where left and right mean something.
        colours: strength of changes of brightness, contrast and saturation; 0 for none.
        grey: probability of losing the colours.
        patches: most patches of a picture that keeps its shape; None cuts all to squares. With it there are no crops.
        patch_size: side of a patch, as `Vision.patch_size`; of use with `patches`, and where patches are hidden.
    """

    image_size: int = 224
    channels: int = 3
    area: Sequence[float] = (0.08, 1.0)
    aspect: Sequence[float] = (3 / 4, 4 / 3)
    flip: bool = True
    colours: float = 0.0
    grey: float = 0.0
    patches: int | None = None
    patch_size: int = 16

    feature = "image"

    def __post_init__(self):
        check_fields(self)
        check(self.channels in (1, 3), f"Pictures.channels must be 1 or 3, not {self.channels}")
        for name in ("area", "aspect"):
            low, high = getattr(self, name)
            check(0 < low <= high, f"Pictures.{name} must be two rising numbers above 0, not {getattr(self, name)}")
        check(self.area[1] <= 1, f"Pictures.area is a share, at most 1; got {self.area}")

    @property
    def grid(self) -> tuple[int, int, int]:
        """One time, and rows and columns of patches of a picture of one size."""
        return 1, self.image_size // self.patch_size, self.image_size // self.patch_size

    def spec(self) -> dict[str, ArraySpec]:
        """What `view` returns: `images`, or `patches` and `grid`."""
        if self.patches is None:
            return {"images": ArraySpec((self.image_size, self.image_size, self.channels), "uint8", (None, None, None))}
        values = self.patch_size**2 * self.channels
        return {
            "patches": ArraySpec((self.patches, values), "uint8", (None, None)),
            "grid": ArraySpec((2,), "int32", (None,)),
        }

    def decode(self, stored: np.ndarray) -> np.ndarray:
        """A record's picture, a file (uint8 [bytes]) or pixels (uint8 [height, width, channels]).

        Raises:
            BrokenImage: there is none, or it cannot be decoded.
        """
        if stored.ndim == 1:
            return images.decode(stored, self.channels)
        if stored.shape[-1] != self.channels or not stored.size:
            raise images.BrokenImage(f"pixels of shape {stored.shape}, not [height, width, {self.channels}]")
        return stored

    def view(self, stored: np.ndarray, rng: np.random.Generator) -> dict[str, np.ndarray]:
        """One random view of a record's picture, as `spec` says."""
        image = self.decode(stored)
        if self.patches is None and tuple(self.area) != (1, 1):
            image = images.random_resized_crop(image, self.image_size, rng, area=self.area, aspect=self.aspect)
        if self.flip:
            image = images.random_flip(image, rng)
        image = images.random_colours(np.ascontiguousarray(image), self.colours, rng)
        return self._finished(images.random_grey(image, self.grey, rng))

    def whole(self, stored: np.ndarray) -> dict[str, np.ndarray]:
        """A record's picture as evaluation sees it: nothing random."""
        return self._finished(self.decode(stored))

    def _finished(self, image: np.ndarray) -> dict[str, np.ndarray]:
        if self.patches is None:
            return {"images": images.resize_to_square(image, self.image_size)}
        rows, columns = grid_of(*image.shape[:2], self.patches, self.patch_size)
        image = images.resize(image, rows * self.patch_size, columns * self.patch_size)
        cut = image.reshape(rows, self.patch_size, columns, self.patch_size, self.channels).transpose(0, 2, 1, 3, 4)
        patches = np.zeros(self.spec()["patches"].shape, np.uint8)
        patches[: rows * columns] = cut.reshape(rows * columns, -1)
        return {"patches": patches, "grid": np.array([rows, columns], np.int32)}


def grid_of(height: int, width: int, patches: int, patch_size: int) -> tuple[int, int]:
    """Rows and columns of patches, at most `patches`, that keep a picture's shape best; it is not made larger."""
    scale = min(1.0, np.sqrt(patches * patch_size**2 / (height * width)))
    rows = max(1, min(patches, int(height * scale / patch_size)))
    return rows, max(1, min(patches // rows, int(width * scale / patch_size)))
