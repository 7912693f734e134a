"""Reads a curated corpus, and turns its documents into token records: the usual input of the cache."""

import contextlib
import os
import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow.parquet

from pretrain.core import storage
from pretrain.core.errors import RunError, check
from pretrain.data import tokenizers
from pretrain.data.records import Feature, little_endian, token_feature
from pretrain.data.tokenizers import Tokenizer


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
    row = 0
    with _open(file) as parquet:
        for batch in parquet.iter_batches(1024, columns=["source", "split", "text"]):
            groups = defaultdict(list)
            columns = (batch.column(name).to_pylist() for name in ("source", "split"))
            for offset, key in enumerate(zip(*columns, strict=True)):
                groups[key].append(offset)
            texts = batch.column("text").to_pylist()
            for (source, split), offsets in sorted(groups.items()):
                yield source, split, np.array(offsets) + row, [texts[offset] or "" for offset in offsets]
            row += batch.num_rows


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

    Every document gives one record: its tokens and EOS, the same as the corpus's seqio tasks give (`tasks.py`).
    """

    corpus_dir: str
    tokenizer_dir: str

    @property
    def tokenizer(self) -> Tokenizer:
        return tokenizers.load(self.tokenizer_dir)

    @property
    def features(self) -> list[Feature]:
        return [token_feature(self.tokenizer.vocab_size)]

    def units(self) -> int:
        return len(document_files(self.corpus_dir))

    def sizes(self) -> dict[tuple[str, str], float]:
        """Bytes of text by source and split, about, from row counts and the files' metadata alone."""
        sizes: dict[tuple[str, str], float] = defaultdict(float)
        for file in document_files(self.corpus_dir):
            with _open(file) as parquet:
                column = parquet.schema_arrow.get_field_index("text")
                check(column >= 0, f"{file} has no column named text")
                groups = [parquet.metadata.row_group(group) for group in range(parquet.num_row_groups)]
                text = sum(group.column(column).total_uncompressed_size for group in groups)
                table = parquet.read(columns=["source", "split"])
            for row in table.group_by(["source", "split"]).aggregate([([], "count_all")]).to_pylist():
                check_source_name(row["source"])
                sizes[row["source"], row["split"]] += text * row["count_all"] / table.num_rows
        return dict(sorted(sizes.items()))

    def examples(self, unit: int) -> Iterator[Examples]:
        tokenizer, [feature] = self.tokenizer, self.features
        file = document_files(self.corpus_dir)[unit]
        for source, split, rows, texts in read_documents(file):
            kept = [index for index, text in enumerate(texts) if text]
            encoded = [np.append(ids, tokenizer.eos_id) for ids in tokenizer.encode([texts[index] for index in kept])]
            tokens = np.concatenate(encoded) if encoded else np.zeros(0, np.int32)
            if tokens.size and not 0 <= tokens.min() <= tokens.max() < tokenizer.vocab_size:
                raise RunError(f"{file}: token ids up to {tokens.max()}, the vocabulary ends at {tokenizer.vocab_size}")
            yield Examples(
                source,
                split,
                (unit << 32) + rows[kept].astype(np.uint64),
                np.array([len(texts[index].encode()) for index in kept], np.uint32),
                np.array([len(ids) for ids in encoded], np.uint32)[:, None],
                tokens.astype(little_endian(feature.dtype)).tobytes(),
                len(texts) - len(kept),
            )
