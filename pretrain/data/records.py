"""The cache's one record format: raw little-endian features in ArrayRecord, with an index of lengths and checksums.

A record is the concatenation of its features' bytes in the order of the feature table; where each begins follows from
the lengths in the index. Text tokens, images, video and telemetry differ only in dtype and shape. Records are written
uncompressed in groups of one, so that a plan can read any of them in bulk; every read is checked against the CRC-32 of
each record, so a damaged or exchanged shard is an error and never a wrong batch.
"""

import contextlib
import hashlib
import io
import os
import tempfile
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter

from pretrain.core import storage
from pretrain.core.errors import RunError

WRITER_OPTIONS = "group_size:1,uncompressed"
READER_OPTIONS = "readahead_buffer_size:0,index_storage_option:in_memory"
INDEX_SUFFIX = ".index.npz"


@dataclass(frozen=True)
class Feature:
    """One named array of a record.

    Attributes:
        name: e.g. "tokens".
        dtype: numpy dtype name of the stored values, e.g. "uint16".
        shape: shape of one element along the leading, variable axis: () for tokens, (64, 64, 3) for video frames.
    """

    name: str
    dtype: str
    shape: tuple[int, ...] = ()

    @property
    def item_bytes(self) -> int:
        """Bytes of one element along the leading axis."""
        return np.dtype(self.dtype).itemsize * int(np.prod(self.shape, dtype=np.int64))

    @property
    def is_text(self) -> bool:
        """Whether it holds token ids: single unsigned integers are stored for nothing else."""
        return self.dtype in ("uint16", "uint32") and not self.shape

    def to_json(self) -> dict:
        return {"name": self.name, "dtype": self.dtype, "shape": list(self.shape)}

    @classmethod
    def from_json(cls, value: Mapping) -> "Feature":
        if value["dtype"] not in _DTYPES:
            raise RunError(f"feature {value['name']} is of type {value['dtype']!r}, which no cache holds; {_REBUILD}")
        return cls(value["name"], value["dtype"], tuple(value["shape"]))


def token_feature(vocab_size: int, name: str = "tokens") -> Feature:
    """The narrowest feature that holds ids below `vocab_size`."""
    return Feature(name, "uint16" if vocab_size <= 1 << 16 else "uint32")


def array_feature(name: str, dtype: np.dtype, shape: tuple[int, ...]) -> Feature:
    """The feature that holds arrays of numbers, `shape` each element: 64-bit integers are stored as int32.

    So are single uint16 and uint32 values, which would be taken for token ids.

    Raises:
        RunError: they are no numbers that the cache stores.
    """
    if dtype.name not in _DTYPES:
        raise RunError(f"array {name!r} is of type {dtype.name}, which no cache holds: write integers, floats or bools")
    wide = dtype.itemsize == 8 or (not shape and dtype.name in ("uint16", "uint32"))
    return Feature(name, "int32" if dtype.kind in "iu" and wide else dtype.name, shape)


def little_endian(dtype: str) -> np.dtype:
    return np.dtype(dtype).newbyteorder("<")


@dataclass(frozen=True)
class Index:
    """What is known of a shard's N records without reading them.

    Attributes:
        lengths: uint32 [N, features], elements along each feature's leading axis.
        checksums: uint32 [N], CRC-32 of each record.
        documents: uint64 [N], position of the document in the corpus it came from.
        text_bytes: uint32 [N], UTF-8 bytes of the document's text; 0 where there is none.
    """

    lengths: np.ndarray
    checksums: np.ndarray
    documents: np.ndarray
    text_bytes: np.ndarray

    def to_bytes(self) -> bytes:
        buffer = io.BytesIO()
        np.savez(buffer, **{name: getattr(self, name) for name in self.__dataclass_fields__})
        return buffer.getvalue()

    @classmethod
    def from_bytes(cls, data: bytes) -> "Index":
        with np.load(io.BytesIO(data)) as arrays:
            return cls(*(arrays[name] for name in cls.__dataclass_fields__))

    @classmethod
    def concatenate(cls, parts: Sequence["Index"]) -> "Index":
        names = cls.__dataclass_fields__
        return cls(*(np.concatenate([getattr(part, name) for part in parts]) for name in names))


def write_shard(
    path: os.PathLike | str,
    records: Iterable[bytes],
    lengths: np.ndarray,
    documents: np.ndarray,
    text_bytes: np.ndarray,
) -> dict:
    """Writes one shard and then its index, and returns its entry for the cache's `complete.json`."""
    checksums = []
    with _published(path) as local:
        writer = ArrayRecordWriter(local, WRITER_OPTIONS)
        for record in records:
            checksums.append(zlib.crc32(record))
            writer.write(record)
        writer.close()
        size = os.path.getsize(local)
    index = Index(
        lengths.astype(np.uint32),
        np.array(checksums, np.uint32),
        documents.astype(np.uint64),
        text_bytes.astype(np.uint32),
    ).to_bytes()
    storage.write_bytes(os.fspath(path) + INDEX_SUFFIX, index)
    return {
        "file": storage.Path(path).name,
        "records": len(checksums),
        "size": size,
        "index_checksum": hashlib.blake2b(index, digest_size=8).hexdigest(),
    }


@contextlib.contextmanager
def _published(path: os.PathLike | str) -> Iterator[str]:
    """A local file to write; it appears whole under `path` when the block ends without an error."""
    target = storage.Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    folder = None if storage.is_remote(path) else os.fspath(target.parent)
    descriptor, local = tempfile.mkstemp(dir=folder, prefix=".shard.")
    os.close(descriptor)
    try:
        yield local
        if storage.is_remote(path):
            storage.write_bytes(target, storage.Path(local).read_bytes())
        else:
            os.chmod(local, 0o644)
            os.replace(local, target)
    finally:
        if os.path.exists(local):
            os.remove(local)


class Shards:
    """The records of one source and split, numbered through its shards in order.

    Opening reads the indexes; record files are opened when first read. Instances can be pickled to worker processes.

    Attributes:
        index: the shards' indexes, concatenated.
        starts: int64 [shards + 1], number of each shard's first record.
    """

    def __init__(self, folder: os.PathLike | str, entries: Sequence[Mapping]):
        self._folder = os.fspath(folder)
        self._entries = list(entries)
        self._readers: dict[int, ArrayRecordReader] = {}
        self.index = Index.concatenate([_open_index(storage.Path(folder), entry) for entry in entries])
        self.starts = np.cumsum([0, *(entry["records"] for entry in entries)])

    def __len__(self) -> int:
        return int(self.starts[-1])

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_readers": {}}

    def read(self, records: np.ndarray) -> list[bytes]:
        """The bytes of `records` (int64 [n], rising), each checked.

        Raises:
            RunError: a record cannot be read or is not the one the index describes.
        """
        shards = np.searchsorted(self.starts, records, "right") - 1
        found: list[bytes] = []
        for shard in np.unique(shards).tolist():
            found += self._read_shard(shard, records[shards == shard])
        return found

    def _read_shard(self, shard: int, records: np.ndarray) -> list[bytes]:
        within = records - self.starts[shard]
        try:
            found = self._reader(shard).read(within.tolist())
        except (RuntimeError, IndexError, ValueError) as error:
            raise RunError(f"{self._file(shard)} cannot be read ({_first_line(error)}); {_REBUILD}") from error
        checksums = np.fromiter(map(zlib.crc32, found), np.uint32, len(found))
        wrong = np.flatnonzero(checksums != self.index.checksums[records])
        if wrong.size:
            raise RunError(f"{self._file(shard)}: record {within[wrong[0]]} is damaged (checksum differs); {_REBUILD}")
        return found

    def _reader(self, shard: int) -> ArrayRecordReader:
        if shard not in self._readers:
            reader = ArrayRecordReader(storage.local_copy(self._file(shard)), READER_OPTIONS)
            if reader.num_records() != self._entries[shard]["records"]:
                raise RunError(f"{self._file(shard)} does not hold the records its index counts; {_REBUILD}")
            self._readers[shard] = reader
        return self._readers[shard]

    def _file(self, shard: int) -> str:
        return os.fspath(storage.inside(self._folder, self._entries[shard]["file"]))


_DTYPES = {np.dtype(code).name for code in np.typecodes["AllInteger"] + np.typecodes["AllFloat"][:3] + "?"}
_REBUILD = "delete the cache folder and run `pretrain cache` again"


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__


def _open_index(folder: storage.Path, entry: Mapping) -> Index:
    file = storage.inside(folder, entry["file"])
    if not file.exists():
        raise RunError(f"{file} is missing; {_REBUILD}")
    if (size := file.stat().length) != entry["size"]:
        raise RunError(f"{file} is {size} bytes where {entry['size']} were written; {_REBUILD}")
    index_file = storage.Path(os.fspath(file) + INDEX_SUFFIX)
    if not index_file.exists():
        raise RunError(f"{index_file} is missing; {_REBUILD}")
    data = index_file.read_bytes()
    if hashlib.blake2b(data, digest_size=8).hexdigest() != entry["index_checksum"]:
        raise RunError(f"{index_file} is damaged (checksum differs); {_REBUILD}")
    return Index.from_bytes(data)
