"""Small corpora and helpers for the tests of curation."""

import gzip
import json
import pathlib

import pyarrow as pa
import pyarrow.parquet as pq

from pretrain.curate.documents import DOCUMENTS
from pretrain.curate.formats import read_file
from pretrain.curate.inputs import InputFile, format_of, zstd
from pretrain.curate.readers import Fields

SENTENCE = "The quick brown fox jumps over the lazy dog, and then it goes home to sleep. "


def write_jsonl(path: pathlib.Path, records: list) -> pathlib.Path:
    """Writes dictionaries (or ready lines of bytes) as JSONL, compressed as the name says."""
    lines = [record if isinstance(record, bytes) else json.dumps(record).encode() for record in records]
    content = b"".join(line + b"\n" for line in lines)
    compress = {".gz": gzip.compress, ".zst": zstd.compress}.get(path.suffix, bytes)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(compress(content))
    return path


def records(number: int, start: int = 0) -> list[dict]:
    """Distinct records that pass the default rules."""
    return [{"id": f"doc-{index:05d}", "text": f"{index}: {SENTENCE * 2}"} for index in range(start, start + number)]


def read(path: pathlib.Path, **fields) -> list:
    """Everything that the path's reader yields."""
    file = InputFile(str(path), path.stat().st_size, "corpus", format_of(str(path)))
    return list(read_file(file, Fields(**fields)))


def documents(texts: list[str], ids: list[str] | None = None) -> pa.Table:
    """A table of schema `DOCUMENTS`."""
    number = len(texts)
    columns = {
        "id": ids or [f"id{index:03d}" for index in range(number)],
        "source": ["corpus"] * number,
        "split": ["train"] * number,
        "text": texts,
        "origin": [f"file:{index}" for index in range(number)],
        "metadata": ["{}"] * number,
        "arrays": [None] * number,
    }
    return pa.table(columns, schema=DOCUMENTS)


def batch(texts: list[str], ids: list[str] | None = None) -> pa.RecordBatch:
    """The same as one record batch, which may be empty."""
    table = documents(texts, ids).combine_chunks()
    return (table.to_batches() or [pa.RecordBatch.from_pylist([], schema=DOCUMENTS)])[0]


def output_table(output: pathlib.Path, folder: str) -> list[dict]:
    """All rows of an output folder, in the order of shards."""
    return [row for path in sorted((output / folder).glob("*.parquet")) for row in pq.read_table(path).to_pylist()]


def contents(folder: pathlib.Path) -> dict[str, bytes]:
    """Every file beneath a folder, hidden ones too."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
