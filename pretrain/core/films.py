"""Films as arrays: MP4, WebM, Matroska and AVI files decoded with PyAV, some frames of them, at the size that is asked.

All on the host. PyAV comes with the extra [video]. Bytes alone are read: no playlist, no other file and no network,
which some formats would have opened.
"""

import contextlib
import functools
import io
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

from pretrain.core.errors import UserError
from pretrain.core.images import MAX_PIXELS

CONTAINERS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi"
PIXELS = {1: "gray", 3: "rgb24"}


class BrokenFilm(ValueError):
    """Bytes that are no film, or a damaged one."""


class FilmSize(NamedTuple):
    """Of an encoded film: frames, their height and width in pixels, and seconds (0 where it does not say)."""

    frames: int
    height: int
    width: int
    seconds: float


def measure(data: bytes | np.ndarray) -> FilmSize:
    """Sizes of an encoded film, without decoding its frames.

    Raises:
        BrokenFilm: no film, a damaged one, or one with frames larger than `MAX_PIXELS`.
    """
    with _open(data) as (container, stream):
        frames = sum(packet.size > 0 for packet in container.demux(stream))
        rate = float(stream.average_rate or 0)
        return FilmSize(frames, stream.height, stream.width, frames / rate if rate else 0.0)


def decode(
    data: bytes | np.ndarray, height: int, width: int, channels: int = 3, *, first: int = 0, count: int, stride: int = 1
) -> np.ndarray:
    """Frames of an encoded film, scaled to a size: uint8 [count, height, width, channels].

    Args:
        data: the file's bytes, or these as uint8 [bytes].
        height, width: of the result, whatever the film's own shape.
        channels: 1 (grey) or 3 (RGB).
        first, count, stride: which frames.

    Raises:
        BrokenFilm: no film, a damaged one, or one with fewer frames.
    """
    found = []
    for number, frame in enumerate(frames_of(data, height, width, channels)):
        if number >= first and (number - first) % stride == 0:
            found.append(frame())
            if len(found) == count:
                return np.stack(found)
    raise BrokenFilm(f"a film that ends after {len(found)} of {count} frames")


def frames_of(
    data: bytes | np.ndarray, height: int, width: int, channels: int = 3
) -> Iterator[Callable[[], np.ndarray]]:
    """Every frame of an encoded film, as a function that scales it: frames that are passed over cost less.

    Raises:
        BrokenFilm: as `decode` does, but for the number of frames.
    """
    with _open(data) as (container, stream):
        for frame in container.decode(stream):
            scale = functools.partial(frame.reformat, width=width, height=height, format=PIXELS[channels])
            yield lambda scale=scale: scale().to_ndarray().reshape(height, width, channels)


@contextlib.contextmanager
def _open(data: bytes | np.ndarray) -> Iterator[tuple[Any, Any]]:
    """The container of a film, and its first stream of pictures."""
    try:
        import av
    except ImportError as error:
        raise UserError("films need PyAV: pip install 'pretrain[video]'") from error
    options = {"format_whitelist": CONTAINERS, "protocol_whitelist": "none"}
    try:
        with av.open(io.BytesIO(bytes(data)), options=options) as container:
            if not container.streams.video:
                raise BrokenFilm("a file without pictures")
            stream = container.streams.video[0]
            if not 0 < stream.height * stream.width <= MAX_PIXELS:
                raise BrokenFilm(f"frames of {stream.height} x {stream.width} pixels")
            yield container, stream
    except BrokenFilm:
        raise
    except (av.FFmpegError, ValueError, IndexError) as error:
        raise BrokenFilm(f"a damaged film: {error}") from error
