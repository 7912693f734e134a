"""Input files: found by path, glob or folder, local or remote, and opened as bounded streams of plain bytes.

fsspec finds and opens them, so every object store that it knows can be read (gs://, s3://, hf://, memory:// …).
"""

import gzip
import io
import os
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import BinaryIO, NamedTuple

import fsspec

from pretrain.core.errors import UserError

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

COMPRESSIONS = {".gz": gzip.open, ".zst": zstd.open}
FORMATS = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".txt": "text",
    ".md": "text",
    ".rst": "text",
    ".parquet": "parquet",
    ".warc": "warc",
    ".wet": "warc",
    ".tar": "webdataset",
}
# Real text compresses up to about 100 times, and gzip can do no better than 1,032; what expands more is no corpus.
MAX_EXPANSION = 1_000
TYPICAL_EXPANSION = 4
EXPANSION_ALLOWANCE = 64 << 20  # bytes that any file may expand to
CHUNK = 1 << 18  # bytes


class InputFile(NamedTuple):
    """One file to read.

    Attributes:
        path: as the user wrote it (relative stays relative), so that ids do not depend on where the corpus lies.
        size: bytes on disk.
        source: the source its documents belong to.
        format: the reader's name; see `pretrain.curate.formats`.
        start, end: of a part of a file: where it begins, and where it ends. A part has the lines that begin in it.
    """

    path: str
    size: int
    source: str
    format: str
    start: int = 0
    end: int | None = None

    @property
    def is_compressed(self) -> bool:
        """Going by its name."""
        return os.path.splitext(self.path)[1].lower() in COMPRESSIONS

    @property
    def expected_bytes(self) -> int:
        """About how much text is in it, going by its size and name."""
        return self.size * (TYPICAL_EXPANSION if self.is_compressed or self.format == "parquet" else 1)


def format_of(path: str) -> str | None:
    """The reader for a path by its extension, less a compression's; None for an extension that none reads."""
    stem, extension = os.path.splitext(path.lower())
    if extension in COMPRESSIONS:
        extension = os.path.splitext(stem)[1]
    return FORMATS.get(extension)


def find_files(pattern: str, source: str, format_: str | None = None) -> tuple[list[InputFile], Counter]:
    """The files that a path, a glob or a folder (searched through) names, sorted by path.

    Args:
        pattern: path, glob or folder, local or remote.
        source: the source its documents belong to.
        format_: the reader for all of them; None goes by each file's extension.

    Returns:
        The files, and how many of a folder's files no reader knows, by extension.

    Raises:
        UserError: nothing matches, or a file named or matched outside a folder has an unknown extension.
    """
    try:
        filesystem, root = fsspec.core.url_to_fs(pattern)
    except (ValueError, ImportError) as error:
        raise UserError(f"cannot open --input={pattern}: {error}") from error
    is_glob = any(character in pattern for character in "*?[") and not filesystem.exists(root)
    is_folder = not is_glob and filesystem.isdir(root)
    found = filesystem.glob(root, detail=True) if is_glob else filesystem.find(root, detail=True)
    files, ignored = [], Counter()
    for path, info in sorted(found.items()):
        is_link_to_file = info.get("islink") and os.path.isfile(path)
        if info["type"] != "file" and not is_link_to_file:
            continue
        shown = as_written(pattern, path)
        reader = format_ or format_of(path)
        if reader is not None:
            files.append(InputFile(shown, info["size"], source, reader))
        elif is_folder:
            ignored[os.path.splitext(path)[1] or "no extension"] += 1
        else:
            known = " ".join(sorted(FORMATS)) + ", each also with " + " or ".join(COMPRESSIONS)
            raise UserError(f"no reader for {shown}: the extension must be one of {known}")
    if not files:
        raise UserError(f"no input files match {pattern}; give a path, a glob in quotes or a folder")
    return files, ignored


def as_written(pattern: str, path: str) -> str:
    """`path` in the user's terms: with the scheme, or relative to the working directory, where `pattern` was."""
    if "://" in pattern:
        return f"{pattern.split('://', 1)[0]}://{path.lstrip('/')}"
    if not os.path.isabs(pattern):
        return os.path.relpath(path)
    return path


def open_stream(path: str) -> BinaryIO:
    """Opens a file for buffered reading of its decompressed bytes; closing it closes the file beneath."""
    raw = fsspec.open(path, "rb").open()
    opener = COMPRESSIONS.get(os.path.splitext(path.lower())[1])
    if opener is None:
        return raw if hasattr(raw, "read1") else io.BufferedReader(raw)
    stream = opener(raw, "rb")
    return _Closing(stream, raw)


class _Closing:
    """A decompressing stream that closes the file beneath it too."""

    def __init__(self, stream: BinaryIO, raw: BinaryIO):
        self._stream, self._raw = stream, raw

    def read1(self, size: int) -> bytes:
        return self._stream.read1(size)

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self._stream.close()
        self._raw.close()


def read_chunks(file: InputFile, start: int = 0) -> Iterator[bytes]:
    """The decompressed bytes of a file, from `start` on if it is not compressed, in bounded pieces as they come.

    Raises:
        ValueError: the file expands beyond belief (a decompression bomb).
        OSError, EOFError, zlib.error, zstd.ZstdError: the file is damaged; all bytes before the damage came out.
    """
    limit = MAX_EXPANSION * file.size + EXPANSION_ALLOWANCE
    produced = 0
    with open_stream(file.path) as stream:
        if start:
            stream.seek(start)
        while chunk := stream.read1(CHUNK):
            produced += len(chunk)
            if produced > limit:
                raise ValueError(f"{file.size:,} bytes expand to more than {limit:,}")
            yield chunk


def divide(file: InputFile, max_bytes: int) -> list[InputFile]:
    """Parts of an uncompressed file of lines, of at most `max_bytes` each; the whole file if it is no longer."""
    starts = range(0, max(1, file.size), max_bytes)
    if len(starts) == 1:
        return [file]
    ends = [*starts[1:], file.size]
    return [file._replace(size=end - start, start=start, end=end) for start, end in zip(starts, ends, strict=True)]


def batch_files(files: Iterable[InputFile], max_bytes: int, max_files: int) -> list[list[InputFile]]:
    """Groups neighbouring files into units of work: big files alone, small ones together."""
    groups: list[list[InputFile]] = []
    size = 0
    for file in files:
        if not groups or size + file.size > max_bytes or len(groups[-1]) >= max_files:
            groups.append([])
            size = 0
        groups[-1].append(file)
        size += file.size
    return groups
