"""Reads a curated corpus, and turns its documents into records of tokens and arrays: the usual input of the cache."""

import contextlib
import functools
import itertools
import os
import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet

from pretrain.core import storage
from pretrain.core.arrays import from_bytes
from pretrain.core.errors import RunError, check
from pretrain.data import tokenizers
from pretrain.data.records import Feature, array_feature, little_endian, token_feature
from pretrain.data.tokenizers import Tokenizer

READ_ROWS, READ_WITH_ARRAYS = 1024, 128  # documents at a time, without arrays and with them


@dataclass(frozen=True)
class Examples:
    """N examples of one source and split, as records.

    Attributes:
        numbers: uint64 [N], where each stands in its input.
        text_bytes: uint32 [N], UTF-8 bytes of its text; 0 where there is none.
        lengths: uint32 [N, features].
        data: the records' bytes, one after another.
        empty: further examples that held nothing, and were left out.
    """

    source: str
    split: str
    numbers: np.ndarray
    text_bytes: np.ndarray
    lengths: np.ndarray
    data: bytes
    empty: int = 0


def check_source_name(name: str) -> None:
    """Refuses names that cannot be a folder."""
    check(
        bool(re.fullmatch(r"[\w.:@+=-]+", name)) and name.strip(".") != "", f"source {name!r} cannot be a folder name"
    )


def document_files(corpus_dir: os.PathLike | str) -> list[storage.Path]:
    """The Parquet files of a curated corpus, in order."""
    folder = storage.Path(corpus_dir) / "documents"
    check(folder.exists(), f"no curated documents in {corpus_dir}; run `pretrain curate` first")
    files = sorted((path for path in folder.iterdir() if path.name.endswith(".parquet")), key=os.fspath)
    check(bool(files), f"{folder} holds no Parquet file")
    return files


def read_documents(file: storage.Path) -> Iterator[tuple[str, str, np.ndarray, list[str]]]:
    """Yields (source, split, row numbers in the file, texts) in groups of bounded size."""
    for source, split, rows, batch in _groups(file, ["text"], READ_ROWS):
        yield source, split, rows, [text or "" for text in batch.column("text").to_pylist()]


def _groups(file: storage.Path, columns: list[str], rows: int) -> Iterator[tuple[str, str, np.ndarray, pa.RecordBatch]]:
    """Yields (source, split, row numbers in the file, their columns) in groups of at most `rows`."""
    row = 0
    with _open(file) as parquet:
        for batch in parquet.iter_batches(rows, columns=["source", "split", *columns]):
            groups = defaultdict(list)
            keys = (batch.column(name).to_pylist() for name in ("source", "split"))
            for offset, key in enumerate(zip(*keys, strict=True)):
                groups[key].append(offset)
            for (source, split), offsets in sorted(groups.items()):
                yield source, split, np.array(offsets) + row, batch.take(pa.array(offsets))
            row += batch.num_rows


def array_features(corpus_dir: os.PathLike | str) -> list[Feature]:
    """The arrays that documents hold, by name: the first of each says what they are like."""
    found: dict[str, Feature] = {}
    for file in document_files(corpus_dir):
        with _open(file) as parquet:
            if "arrays" not in parquet.schema_arrow.names:
                continue
            keys = pc.list_flatten(parquet.read(columns=["arrays.key_value.key"]).column(0))
            new = set(pc.unique(pc.struct_field(keys, "key")).to_pylist()) - set(found)
            batches = parquet.iter_batches(READ_WITH_ARRAYS, columns=["arrays"])
            while new:
                for name, data in itertools.chain(*(pairs.as_py() for pairs in next(batches).column(0).drop_null())):
                    if name in new:
                        array = _array(f"{file}, the first document with it", name, data)
                        found[name] = array_feature(name, array.dtype, array.shape[1:])
                        new.remove(name)
    return [found[name] for name in sorted(found)]


def _array(where: str, name: str, data: bytes) -> np.ndarray:
    try:
        return np.atleast_1d(from_bytes(data))
    except ValueError as error:
        raise RunError(f"{where}: array {name!r} is {error}; {_CHECK_ARRAYS}") from error


def stored_array(where: str, data: bytes, feature: Feature) -> np.ndarray:
    """An array of a document as the cache stores it, [elements, ...].

    Raises:
        RunError: it is damaged, not of the feature's shape and kind, or has values that cannot be stored.
    """
    array, stored = _array(where, feature.name, data), np.dtype(feature.dtype)
    if array.shape[1:] != feature.shape or array_feature(feature.name, array.dtype, array.shape[1:]) != feature:
        raise RunError(
            f"{where}: array {feature.name!r} is {array.dtype.name} {list(array.shape)}, others are {feature.dtype} "
            f"{['any', *feature.shape]}; {_CHECK_ARRAYS}"
        )
    if stored.kind in "iu" and stored != array.dtype and array.size:
        limits = np.iinfo(stored)
        if not limits.min <= array.min() <= array.max() <= limits.max:
            raise RunError(
                f"{where}: array {feature.name!r} has values from {array.min()} to {array.max()}; {limits.min} to "
                f"{limits.max} can be stored"
            )
    return array.astype(little_endian(feature.dtype), copy=False)


_CHECK_ARRAYS = "add @ArrayRules() to Recipe.stages, which rejects such documents, and curate again"


def document_origins(corpus_dir: os.PathLike | str, numbers: np.ndarray) -> dict[int, str]:
    """Id and origin of documents, by the numbers that a cache's index has for them."""
    files, found = document_files(corpus_dir), {}
    for file in np.unique(numbers >> 32).tolist():
        with _open(files[file]) as parquet:
            columns = parquet.read(columns=["id", "origin"])
        for number in np.unique(numbers[numbers >> 32 == file]).tolist():
            row = columns.slice(number & 0xFFFFFFFF, 1).to_pylist()[0]
            found[number] = f"{row['id']} from {row['origin']}" if row["origin"] else row["id"]
    return found


@contextlib.contextmanager
def _open(file: storage.Path) -> Iterator[pyarrow.parquet.ParquetFile]:
    """A Parquet file; what is wrong with it is said with its name."""
    try:
        with file.open("rb") as stream:
            yield pyarrow.parquet.ParquetFile(stream)
    except (pyarrow.ArrowException, OSError) as error:
        raise RunError(f"{file} cannot be read ({error}); run `pretrain curate` again") from error


@dataclass(frozen=True)
class CorpusInput:
    """A curated corpus as input of the cache; one unit of work is one Parquet file.

    Every document gives one record: its tokens and EOS, the same as the corpus's seqio tasks give (`tasks.py`), and the
    arrays it holds. A document without text gives one only where it holds arrays; its tokens are then an EOS.
    """

    corpus_dir: str
    tokenizer_dir: str

    @property
    def tokenizer(self) -> Tokenizer:
        return tokenizers.load(self.tokenizer_dir)

    @property
    def features(self) -> list[Feature]:
        return [token_feature(self.tokenizer.vocab_size), *self.array_features]

    @functools.cached_property
    def array_features(self) -> list[Feature]:
        """Of the arrays beside the text."""
        return array_features(self.corpus_dir)

    def units(self) -> int:
        return len(document_files(self.corpus_dir))

    def sizes(self) -> dict[tuple[str, str], float]:
        """Bytes of text and arrays by source and split, about, from row counts and the files' metadata alone."""
        sizes: dict[tuple[str, str], float] = defaultdict(float)
        for file in document_files(self.corpus_dir):
            with _open(file) as parquet:
                column = parquet.schema_arrow.get_field_index("text")
                check(column >= 0, f"{file} has no column named text")
                groups = [parquet.metadata.row_group(group) for group in range(parquet.num_row_groups)]
                leaves = [group.column(leaf) for group in groups for leaf in range(group.num_columns)]
                held = [leaf for leaf in leaves if leaf.path_in_schema.split(".")[0] in ("text", "arrays")]
                size = sum(leaf.total_uncompressed_size for leaf in held)
                table = parquet.read(columns=["source", "split"])
            for row in table.group_by(["source", "split"]).aggregate([([], "count_all")]).to_pylist():
                check_source_name(row["source"])
                sizes[row["source"], row["split"]] += size * row["count_all"] / table.num_rows
        return dict(sorted(sizes.items()))

    def examples(self, unit: int) -> Iterator[Examples]:
        tokenizer, [text, *arrays] = self.tokenizer, self.features
        file = document_files(self.corpus_dir)[unit]
        columns, group_rows = (["text", "arrays"], READ_WITH_ARRAYS) if arrays else (["text"], READ_ROWS)
        for source, split, rows, batch in _groups(file, columns, group_rows):
            texts = [each or "" for each in batch.column("text").to_pylist()]
            held = (
                [dict(pairs or ()) for pairs in batch.column("arrays").to_pylist()] if arrays else [None] * len(texts)
            )
            kept = [index for index in range(len(texts)) if texts[index] or held[index]]
            encoded = [np.append(ids, tokenizer.eos_id) for ids in tokenizer.encode([texts[index] for index in kept])]
            tokens = np.concatenate(encoded) if encoded else np.zeros(0, np.int32)
            if tokens.size and not 0 <= tokens.min() <= tokens.max() < tokenizer.vocab_size:
                raise RunError(f"{file}: token ids up to {tokens.max()}, the vocabulary ends at {tokenizer.vocab_size}")
            lengths = np.array([len(ids) for ids in encoded], np.uint32)[:, None]
            data = tokens.astype(little_endian(text.dtype))
            if arrays:
                stored = [[_stored(f"{file}:{rows[i]}", held[i], feature) for feature in arrays] for i in kept]
                sizes = [[len(array) for array in record] for record in stored]
                lengths = np.hstack([lengths, np.array(sizes, np.uint32).reshape(-1, len(arrays))])
                data = _side_by_side(np.split(data, np.cumsum(lengths[:-1, 0])), stored)
            yield Examples(
                source,
                split,
                (unit << 32) + rows[kept].astype(np.uint64),
                np.array([len(texts[index].encode()) for index in kept], np.uint32),
                lengths,
                data if isinstance(data, bytes) else data.tobytes(),
                len(texts) - len(kept),
            )


def _stored(where: str, held: dict[str, bytes], feature: Feature) -> np.ndarray:
    """An array of a document as it is stored, empty where the document has none of that name."""
    if feature.name not in held:
        return np.zeros((0, *feature.shape), little_endian(feature.dtype))
    return stored_array(where, held[feature.name], feature)


def _side_by_side(tokens: list[np.ndarray], arrays: list[list[np.ndarray]]) -> bytes:
    """Records of tokens and arrays, one after another."""
    records = zip(tokens, arrays, strict=False)  # without records there is still one empty part of tokens
    return b"".join(part.tobytes() for ids, beside in records for part in (ids, *beside))
