"""Finding the way in a damaged WARC file: where a record ends, and where the next sound one begins.

A record is known by its first line, "WARC/1.x"; compressed, by a gzip or zstd member that expands to one.
"""

import re
import zlib
from collections.abc import Callable, Iterator
from typing import BinaryIO

from pretrain.curate.inputs import CHUNK, zstd

VERSION = b"WARC/"
FIRST_LINES = re.compile(rb"WARC/[01]\.\d+\r?\n[!-9;-~]+:")
GZIP, ZSTD = b"\x1f\x8b\x08", b"\x28\xb5\x2f\xfd"
MAX_HEADER = 32 << 10  # bytes of a record's header, as FastWARC has it
DAMAGE = (zlib.error, zstd.ZstdError, EOFError, ValueError)


def next_record(raw: BinaryIO, start: int) -> int | None:
    """The offset of the first record or member that begins at `start` or behind it; None where there is none."""
    return next((offset for offset in _candidates(raw, start) if _is_record(raw, offset)), None)


def end_of_record(raw: BinaryIO, position: int) -> int | None:
    """The offset behind the record or member at `position` and the blank lines that follow; None: it is damaged."""
    raw.seek(position)
    beginning = raw.read(MAX_HEADER)
    new = _decompressor(beginning)
    end = position + _plain_length(beginning) if new is None else _member_end(raw, position, new)
    if end is None:
        return None
    raw.seek(end)
    following = raw.read(64)
    return end + len(following) - len(following.lstrip(b"\r\n"))


def skip_record(raw: BinaryIO, position: int) -> int | None:
    """The offset of the record behind the one at `position`, which is sound but too long to be read; None: no more.

    A compressed one is passed over without expanding it.
    """
    raw.seek(position)
    is_plain = _decompressor(raw.read(4)) is None
    return next_record(raw, end_of_record(raw, position) if is_plain else position + 1)


def _plain_length(beginning: bytes) -> int:
    head, gap, _ = beginning.partition(b"\r\n\r\n")
    for line in head.split(b"\r\n"):
        name, _, value = line.partition(b":")
        if name.strip().lower() == b"content-length" and value.strip().isdigit():
            return len(head) + len(gap) + int(value)
    return len(head) + len(gap)


def _member_end(raw: BinaryIO, position: int, new: Callable) -> int | None:
    """Expands a member, a bounded piece at a time, to learn where it ends."""
    decompressor = new()
    raw.seek(position)
    read = 0
    while not decompressor.eof and (chunk := raw.read(MAX_HEADER)):
        read += len(chunk)
        try:
            decompressor.decompress(chunk)
        except DAMAGE:
            return None
    return position + read - len(decompressor.unused_data) if decompressor.eof else None


def _candidates(raw: BinaryIO, start: int) -> Iterator[int]:
    """Offsets at which a record might begin, in order."""
    overlap = 16
    tail, offset = b"", start
    while True:
        raw.seek(offset + len(tail))
        chunk = raw.read(CHUNK)
        window = tail + chunk
        is_last = len(chunk) == 0
        end = len(window) if is_last else max(0, len(window) - overlap)
        found = set()
        for magic in (VERSION, GZIP, ZSTD):
            at = window.find(magic, 0, end + len(magic) - 1)
            while at >= 0:
                found.add(at)
                at = window.find(magic, at + 1, end + len(magic) - 1)
        yield from (offset + at for at in sorted(found) if at < end)
        if is_last:
            return
        tail, offset = window[end:], offset + end


def _is_record(raw: BinaryIO, offset: int) -> bool:
    raw.seek(offset)
    beginning = raw.read(512)
    new = _decompressor(beginning)
    if new is None:
        return FIRST_LINES.match(beginning) is not None
    try:
        return new().decompress(beginning, 64).startswith(VERSION)
    except DAMAGE:
        return False


def _decompressor(beginning: bytes) -> Callable | None:
    """What makes a decompressor for a member that begins so; None for plain bytes."""
    if beginning.startswith(GZIP):
        return lambda: zlib.decompressobj(31)
    return zstd.ZstdDecompressor if beginning.startswith(ZSTD) else None
