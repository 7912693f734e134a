"""What a batch is: named arrays with a shape, a dtype and logical axes.

Axis letters used in names across the project (`x_BLD` is an array of shape [batch, length, embed]):
    B batch · L length (queries) · S length (keys) · D embed · H query heads · K kv heads · G query heads per kv head
    Q head dimension · F mlp · V vocabulary · E experts · N layers · P pixels per patch · T time
"""

import dataclasses

import numpy as np

Batch = dict[str, np.ndarray]  # feature name -> array; the leading axis is always the batch


@dataclasses.dataclass(frozen=True)
class ArraySpec:
    """Shape, dtype and logical axes of one array; the axes are names in `sharding.rules`.

    Attributes:
        shape: global shape.
        dtype: numpy dtype name, e.g. "int32".
        axes: one logical axis name (or None) per dimension, e.g. ("batch", "length").
    """

    shape: tuple[int, ...]
    dtype: str
    axes: tuple[str | None, ...]

    def zeros(self) -> np.ndarray:
        """An array of this shape and dtype, for shape checks and compilation."""
        return np.zeros(self.shape, self.dtype)
