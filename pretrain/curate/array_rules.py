"""Which arrays a document must hold, and of what kind and shape: what the cache and training rely on."""

import dataclasses
from collections.abc import Mapping, Sequence

import gin
import pyarrow as pa

from pretrain.core.arrays import from_bytes
from pretrain.core.errors import check
from pretrain.core.fields import check_fields
from pretrain.curate.documents import arrays_of
from pretrain.curate.stages import DECISIONS, rejections

Kind = tuple[str, Sequence[int | None]]


@gin.configurable(module="pretrain.curate")
@dataclasses.dataclass(frozen=True)
class ArrayRules:
    """Map stage that rejects documents by their arrays, with the array's name in the rule.

    Rules: "no_NAME" (missing), "broken_NAME" (damaged), "dtype_NAME", "shape_NAME", "short_NAME" and "long_NAME" (along
    the leading axis), "lengths_differ".

    Attributes:
        arrays: name -> (dtype, shape), e.g. {"frames": ("uint8", (None, 96, 96, 3))}; None in a shape is any size.
        least, most: elements along the leading axis; recordings of one frame teach nothing about the next.
        same_length: all of these arrays must be equally long, so that recordings can be cut into pieces.
    """

    arrays: Mapping[str, Kind] = dataclasses.field(default_factory=dict)
    least: int = 1
    most: int | None = None
    same_length: bool = False
    name: str = "array_rules"

    def __post_init__(self):
        check_fields(self)
        for name, kind in self.arrays.items():
            check(
                len(kind) == 2 and isinstance(kind[0], str), f"ArrayRules.arrays: {name}: write ('float32', (None, 2))"
            )
        check(self.least >= 0, f"ArrayRules.least must be 0 or more, not {self.least}")

    def decide(self, documents: pa.RecordBatch) -> pa.Table:
        """Rejects by the first rule that is broken; value and threshold say the length where it is at fault."""
        found = [self._problem(arrays) for arrays in arrays_of(documents)]
        tables = [
            rejections(documents["id"].slice(row, 1), problem[0], *map(float, problem[1:]))
            for row, problem in enumerate(found)
            if problem
        ]
        return pa.concat_tables([DECISIONS.empty_table(), *tables])

    def _problem(self, arrays: dict[str, bytes]) -> tuple | None:
        lengths = []
        for name, (dtype, shape) in self.arrays.items():
            if name not in arrays:
                return (f"no_{name}",)
            try:
                array = from_bytes(arrays[name])
            except ValueError:
                return (f"broken_{name}",)
            if array.dtype.name != dtype:
                return (f"dtype_{name}",)
            if array.ndim != len(shape) or any(
                s is not None and s != n for s, n in zip(shape, array.shape, strict=True)
            ):
                return (f"shape_{name}",)
            length = len(array) if array.ndim else 1
            if length < self.least:
                return (f"short_{name}", length, self.least)
            if self.most is not None and length > self.most:
                return (f"long_{name}", length, self.most)
            lengths.append(length)
        return ("lengths_differ",) if self.same_length and len(set(lengths)) > 1 else None
