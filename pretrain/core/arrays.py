"""Arrays as bytes, for documents that hold more than text: pictures, frames, readings, sound.

An array is kept in the .npy format, which anyone can read; an encoded picture or sound is kept as the file it came in.
"""

import io

import numpy as np

MAGIC = b"\x93NUMPY"


def to_bytes(array: np.ndarray) -> bytes:
    """An array of numbers as a .npy file, little-endian and in C order.

    Raises:
        ValueError: the array holds objects.
    """
    array = np.asarray(array)
    buffer = io.BytesIO()
    np.save(buffer, np.ascontiguousarray(array, array.dtype.newbyteorder("<")), allow_pickle=False)
    return buffer.getvalue()


def from_bytes(data: bytes) -> np.ndarray:
    """What `to_bytes` was given, read only; bytes that are no .npy file come back as they are, uint8 [bytes].

    Raises:
        ValueError: the .npy file is damaged, or holds objects.
    """
    if not data.startswith(MAGIC):
        return np.frombuffer(data, np.uint8)
    buffer = io.BytesIO(data)
    try:
        version = np.lib.format.read_magic(buffer)
        read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, in_fortran_order, dtype = read_header(buffer)
    except (ValueError, SyntaxError, EOFError, TypeError) as error:
        raise ValueError(f"a damaged .npy header: {error}") from error
    if dtype.hasobject:
        raise ValueError("a .npy file of objects, not of numbers")
    found = memoryview(data)[buffer.tell() :]
    expected = dtype.itemsize * int(np.prod(shape, dtype=np.int64))
    if len(found) != expected:
        raise ValueError(f"a .npy file of {dtype.name} {list(shape)} with {len(found)} bytes of values, not {expected}")
    return np.frombuffer(found, dtype).reshape(shape, order="F" if in_fortran_order else "C")


def instruction(text: str, size: int) -> np.ndarray:
    """The UTF-8 bytes of a text, uint8 [size], padded with 0.

    Raises:
        ValueError: they are more.
    """
    found = np.frombuffer(text.encode("utf-8"), np.uint8)
    if len(found) > size:
        raise ValueError(f"an instruction of {len(found)} bytes, not of {size} or fewer")
    return np.pad(found, (0, size - len(found)))
