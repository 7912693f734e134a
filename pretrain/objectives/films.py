"""How a record's film becomes what the model sees: a window of frames at a random place, some frames left out.

A film is stored as frames of one size, or as its file (MP4 and others), of which the window alone is kept, and scaled.
"""

import dataclasses

import gin
import numpy as np

from pretrain.core import films
from pretrain.core.batch import ArraySpec
from pretrain.core.errors import check
from pretrain.core.fields import check_fields


@gin.configurable
@dataclasses.dataclass(frozen=True)
class Films:
    """Windows of films of one size, cut into tubes: square patches of some frames (Arnab et al. 2021).

    Attributes:
        frames: of a window.
        stride: every how many-th frame is shown.
        height, width, channels: of a frame; values are uint8.
        patch_size, tube: side of a patch in pixels, and its frames; as in `Vision`.
        flip: mirror every other window; not where left and right mean something.
    """

    frames: int = 16
    stride: int = 1
    height: int = 224
    width: int = 224
    channels: int = 3
    patch_size: int = 16
    tube: int = 2
    flip: bool = False

    feature = "frames"

    def __post_init__(self):
        check_fields(self)
        for name in ("frames", "stride", "height", "width", "channels", "patch_size", "tube"):
            check(getattr(self, name) > 0, f"Films.{name} must be > 0, got {getattr(self, name)}")
        check(
            self.height % self.patch_size == 0 and self.width % self.patch_size == 0 and self.frames % self.tube == 0,
            f"Films: {self.frames} frames of {self.height} x {self.width} pixels cannot be cut into tubes "
            f"of {self.tube} frames with patches of {self.patch_size}",
        )

    @property
    def grid(self) -> tuple[int, int, int]:
        """Tubes in time, and rows and columns of them."""
        return self.frames // self.tube, self.height // self.patch_size, self.width // self.patch_size

    def spec(self) -> dict[str, ArraySpec]:
        """What `view` returns."""
        shape = (self.frames, self.height, self.width, self.channels)
        return {"frames": ArraySpec(shape, "uint8", (None,) * 4)}

    def view(self, stored: np.ndarray, rng: np.random.Generator) -> dict[str, np.ndarray]:
        """A random window of a record's film, uint8 [frames, height, width, channels].

        Raises:
            ValueError: a broken film, frames of another size, or too few.
        """
        length = films.measure(stored).frames if stored.ndim == 1 else len(stored)
        first = rng.integers(max(length - self.reach, 0) + 1)
        window = self._window(stored, first)
        return {"frames": window[:, :, ::-1] if self.flip and rng.random() < 0.5 else window}

    def whole(self, stored: np.ndarray) -> dict[str, np.ndarray]:
        """The first window of a film, as evaluation sees it."""
        return {"frames": self._window(stored, 0)}

    @property
    def reach(self) -> int:
        """Frames from the first of a window to its last."""
        return (self.frames - 1) * self.stride + 1

    def _window(self, stored: np.ndarray, first: int) -> np.ndarray:
        size = (self.height, self.width, self.channels)
        if stored.ndim == 1:
            return films.decode(stored, *size, first=first, count=self.frames, stride=self.stride)
        if stored.shape[1:] != size:
            raise ValueError(f"frames of shape {stored.shape[1:]}, not {size}")
        if len(stored) < self.reach:
            raise ValueError(f"a film of {len(stored)} frames, not of {self.reach} or more")
        return stored[first : first + self.reach : self.stride]
