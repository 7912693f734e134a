"""Hashes of many things at once in numpy: spans of a buffer, rows of numbers; and keys for evidence.

Spans by prefix sums, without a loop over words or n-grams: Karp and Rabin, "Efficient randomized pattern-matching
algorithms" (1987), modulo 2**64 with an odd base, so that a span's hash can be moved to position 0 by the base's
inverse; then mixed (the finalizer of MurmurHash3), because the low bits of such sums depend on little of the text.
"""

import functools

import numpy as np
import pyarrow as pa

BASE = 0x9E3779B97F4A7C15
KEY_BYTES = 16
ROUNDS = ((33, 0xFF51AFD7ED558CCD), (33, 0xC4CEB9FE1A85EC53))


class SpanHashes:
    """Hashes of any spans of `text`.

    Args:
        text: bytes; 16 times as many are held while this is in use.
    """

    def __init__(self, text: bytes):
        self._sums = np.zeros(len(text) + 1, np.uint64)
        terms = np.frombuffer(text, np.uint8).astype(np.uint64)
        terms += np.uint64(1)
        terms *= powers(BASE, len(text))
        np.cumsum(terms, out=self._sums[1:])
        self._shift = powers(pow(BASE, -1, 1 << 64), len(text) + 1)

    def __call__(self, starts: np.ndarray | slice, ends: np.ndarray | slice) -> np.ndarray:
        """Hashes (uint64) of the bytes [start, end) for each pair; equal spans have equal hashes."""
        return mix((self._sums[ends] - self._sums[starts]) * self._shift[starts])

    def windows(self, length: int) -> np.ndarray:
        """Hashes (uint64) of all stretches of `length` bytes, by their start. Not mixed: use the high bits alone."""
        ends = self._sums[length:]
        return (ends - self._sums[: len(ends)]) * self._shift[: len(ends)]


def mix(hashes: np.ndarray) -> np.ndarray:
    """A one-to-one mapping of uint64 under which every bit depends on all bits."""
    for shift, factor in ROUNDS:
        hashes = hashes ^ (hashes >> np.uint64(shift))
        hashes *= np.uint64(factor)
    hashes ^= hashes >> np.uint64(33)
    return hashes


def row_keys(numbers_NC: np.ndarray, seed: int) -> np.ndarray:
    """128-bit hashes of the rows of an uint64 array, as uint8 [N, 16]."""
    lanes = np.random.default_rng(seed).integers(0, 2**64, 2, dtype=np.uint64)
    keys_N2 = np.broadcast_to(lanes, (len(numbers_NC), 2))
    for numbers_N in numbers_NC.T:
        keys_N2 = mix(keys_N2 ^ numbers_N[:, None]) + lanes
    return np.ascontiguousarray(keys_N2).view(np.uint8)


def to_binary(rows_NB: np.ndarray) -> pa.Array:
    """An Arrow array of fixed-size binary values from uint8 rows."""
    content = pa.py_buffer(np.ascontiguousarray(rows_NB))
    return pa.Array.from_buffers(pa.binary(rows_NB.shape[1]), len(rows_NB), [None, content])


def from_binary(column: pa.Array | pa.ChunkedArray) -> np.ndarray:
    """The uint8 rows of fixed-size binary values without nulls."""
    array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    width = array.type.byte_width
    content = np.frombuffer(array.buffers()[1], np.uint8, len(array) * width, array.offset * width)
    return content.reshape(len(array), width)


def powers(base: int, count: int) -> np.ndarray:
    """base**0 … base**(count - 1) modulo 2**64."""
    return _powers(base, max(1, count - 1).bit_length())[:count]


@functools.lru_cache(8)
def _powers(base: int, bits: int) -> np.ndarray:
    found = np.ones(1 << bits, np.uint64)
    for bit in range(bits):
        found[1 << bit : 2 << bit] = found[: 1 << bit] * np.uint64(pow(base, 1 << bit, 1 << 64))
    return found
