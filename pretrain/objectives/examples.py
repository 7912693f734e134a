"""Objectives whose rows are examples: a picture, a pair, a recording shown whole, decoded and changed on the host.

Nothing is packed and nothing is cut: a row holds what `example` makes of one record. A record that nothing can be made
of (a broken picture, no caption) gives a row of zeros with weight 0, and is counted.
"""

import abc
import math

import jax
import jax.numpy as jnp
import numpy as np

from pretrain.core.batch import ArraySpec, Batch
from pretrain.core.objective import Metrics
from pretrain.objectives.base import Objective

ROW = "row"  # the one packed feature, of one element a row: all arrays of an example as bytes


class Examples(Objective):
    """One example a row. Batches hold the arrays of `example_spec`, and

    loss_weights: float32 [B], 1 for an example, 0 where there is none.
    unusable: float32 [B], 1 where there was a record and `example` could make nothing of it.
    """

    whole_records = True
    random_finish = False

    @abc.abstractmethod
    def example(self, record: dict[str, np.ndarray], rng: np.random.Generator) -> dict[str, np.ndarray]:
        """What a row holds: decoding and augmentation, on the loader's threads or processes.

        Args:
            record: the features, [n, ...] each; a document's text ends with EOS; what a document lacks has n = 0.
            rng: of (seed, source, epoch, record).

        Raises:
            ValueError: nothing can be made of the record.
        """

    @abc.abstractmethod
    def example_spec(self) -> dict[str, ArraySpec]:
        """Name, shape, dtype and logical axes of what `example` returns, without the batch."""

    @property
    def row_bytes(self) -> int:
        """Bytes of an example."""
        return sum(spec.zeros().nbytes for spec in self.example_spec().values())

    def packed_length(self, length: int) -> dict[str, int]:
        return {ROW: 1}

    def prepared_length(self, lengths) -> dict[str, np.ndarray]:
        lengths = next(iter(lengths.values())) if isinstance(lengths, dict) else lengths
        return {ROW: np.ones(len(lengths), np.int64)}

    def prepare(self, record: dict[str, np.ndarray], rng: np.random.Generator) -> dict[str, np.ndarray]:
        """All arrays of the example as one element of bytes, behind a byte that says whether there are any."""
        specs = self.example_spec()
        try:
            arrays = self.example(record, rng)
        except ValueError:
            return {ROW: np.zeros((1, 1 + self.row_bytes), np.uint8)}
        parts = [np.ones(1, np.uint8)]
        for name, spec in specs.items():
            array = np.asarray(arrays[name], spec.dtype, order="C")
            assert array.shape == spec.shape, (
                f"{type(self).__name__}.example: {name} is {array.shape}, not {spec.shape}"
            )
            parts.append(array.reshape(-1).view(np.uint8))
        return {ROW: np.concatenate(parts)[None]}

    def finish(self, packed: Batch, rng: np.random.Generator) -> Batch:
        """The examples' arrays, with a weight for each row.

        Args:
            packed: `row` uint8 [B, 1, 1 + row_bytes], `segment_ids` int32 [B, 1].
            rng: not used.
        """
        del rng
        rows_BX, is_there_B = packed[ROW].reshape(len(packed[ROW]), -1), packed["segment_ids"][:, 0] > 0
        if rows_BX.shape[1] != 1 + self.row_bytes:  # no row of the block holds anything
            rows_BX = np.zeros((len(rows_BX), 1 + self.row_bytes), np.uint8)
        is_usable_B = is_there_B & (rows_BX[:, 0] > 0)
        batch, start = {}, 1
        for name, spec in self.example_spec().items():
            size = math.prod(spec.shape) * np.dtype(spec.dtype).itemsize
            values = np.ascontiguousarray(rows_BX[:, start : start + size]).view(spec.dtype)
            batch[name] = values.reshape(len(rows_BX), *spec.shape)
            start += size
        weights = {"loss_weights": is_usable_B, "unusable": is_there_B & ~is_usable_B}
        return batch | {name: array.astype(np.float32) for name, array in weights.items()}

    def batch_spec(self, batch_size: int, length: int) -> dict[str, ArraySpec]:
        specs = {
            name: ArraySpec((batch_size, *spec.shape), spec.dtype, ("batch", *spec.axes))
            for name, spec in self.example_spec().items()
        }
        row = ArraySpec((batch_size,), "float32", ("batch",))
        return specs | {"loss_weights": row, "unusable": row}


def count_unusable(batch: dict[str, jax.Array]) -> Metrics:
    """The share of rows whose record nothing could be made of, as a metric."""
    unusable = jnp.sum(batch["unusable"])
    return {"unusable": (unusable, jnp.sum(batch["loss_weights"]) + unusable)}


def padded_text(tokens: np.ndarray, length: int) -> dict[str, np.ndarray]:
    """A text of `length` tokens, cut where it is longer, with its EOS at the end and 0 behind it.

    Raises:
        ValueError: there is nothing but the EOS.
    """
    if len(tokens) < 2:
        raise ValueError("no text")
    tokens = tokens if len(tokens) <= length else np.append(tokens[: length - 1], tokens[-1])
    padding = np.zeros(length - len(tokens), np.int32)
    return {
        "tokens": np.concatenate([tokens, padding]),
        "segment_ids": np.concatenate([np.ones(len(tokens), np.int32), padding]),
    }


def text_spec(length: int) -> dict[str, ArraySpec]:
    """What `padded_text` returns."""
    row = ArraySpec((length,), "int32", (None,))
    return {"tokens": row, "segment_ids": row}
