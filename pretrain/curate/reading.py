"""From input files to tables: bounded batches of documents, with ids and splits, and of what could not be read."""

from collections.abc import Iterator

import numpy as np
import pyarrow as pa

from pretrain.core.arrays import from_bytes, instruction, to_bytes
from pretrain.curate import counts
from pretrain.curate.documents import DOCUMENTS, REJECTED, UNREADABLE, Record, Unreadable, document_id
from pretrain.curate.formats import read_file
from pretrain.curate.inputs import InputFile
from pretrain.curate.readers import Fields
from pretrain.curate.split import split_of

READ = "read"  # the name under which readers reject
PROBLEMS = 20  # unreadable records told about, a batch and a run
BATCH_DOCUMENTS, BATCH_CHARACTERS = 4_096, 8 << 20


def read_batches(
    files: list[InputFile], fields: Fields, validation_fraction: float
) -> Iterator[tuple[pa.Table, list[Unreadable]]]:
    """Documents of files in tables of schema `DOCUMENTS`, each with what no document was made of among them."""
    rows: list[tuple] = []
    unreadable: list[Unreadable] = []
    characters = 0
    for file in files:
        for item in read_file(file, fields):
            item = told(item, fields.instruction_bytes) if fields.instruction_bytes else item
            source = item.source or file.source
            if isinstance(item, Unreadable):
                unreadable.append(item._replace(source=source))
            else:
                text, origin, id_, _, group, metadata, arrays = item
                id_ = id_ or document_id(source, origin)
                split = split_of(id_ if group is None else group, validation_fraction)
                rows.append((id_, source, split, text, origin, metadata, arrays and list(arrays.items())))
                characters += len(text) + sum(map(len, (arrays or {}).values()))
            if characters >= BATCH_CHARACTERS or len(rows) + len(unreadable) >= BATCH_DOCUMENTS:
                yield _table(rows), unreadable
                rows, unreadable, characters = [], [], 0
    if rows or unreadable:
        yield _table(rows), unreadable


def read_counted(
    files: list[InputFile], fields: Fields, validation_fraction: float
) -> Iterator[tuple[pa.Table, pa.Table, dict]]:
    """As `read_batches`: documents, rows of schema `REJECTED`, and what is counted of them, to be added up.

    "documents" and "unreadable" are numbers of records, "read" is {source: {"documents", "bytes"}}, "problems" says
    in words what is unreadable, of the first few.
    """
    for documents, unreadable in read_batches(files, fields, validation_fraction):
        read = counts.of_documents(documents)
        for item in unreadable:
            counts.add(read, {item.source: {"documents": 1, "bytes": item.size}})
        damaged = [f"{item.origin}: {item.problem}" for item in unreadable if item.rule == UNREADABLE]
        records = documents.num_rows + len(unreadable)
        counted = {"documents": records, "read": read, "unreadable": len(damaged), "problems": damaged[:PROBLEMS]}
        yield documents, _unreadable_rows(unreadable), counted


def told(item: Record | Unreadable, size: int) -> Record | Unreadable:
    """A recording with its text at each step, as the array `instructions`, uint8 [steps, size]."""
    if isinstance(item, Unreadable):
        return item
    arrays = item.arrays or {}
    try:
        frames = from_bytes(arrays.get("frames", b""))
    except ValueError:
        return item  # `ArrayRules` says so
    if frames.ndim < 2:
        return Unreadable(item.origin, "no array frames, at whose steps to say its text", rule="no_frames")
    try:
        words = instruction(item.text, size)
    except ValueError as error:
        return Unreadable(item.origin, str(error), item.text.encode()[:200], rule="long_instruction")
    return item._replace(arrays={**arrays, "instructions": to_bytes(np.tile(words, (len(frames), 1)))})


def _table(rows: list[tuple]) -> pa.Table:
    columns = zip(*rows, strict=True) if rows else [()] * len(DOCUMENTS)
    return pa.table([pa.array(column, field.type) for column, field in zip(columns, DOCUMENTS, strict=True)], DOCUMENTS)


def _unreadable_rows(unreadable: list[Unreadable]) -> pa.Table:
    """Rows of schema `REJECTED` for what no document was made of."""
    rows = [
        {
            "id": document_id(item.source, item.origin),
            "source": item.source,
            "stage": READ,
            "rule": item.rule,
            "excerpt": f"{item.problem} | {item.content[:200].decode('utf-8', 'replace')}",
            "origin": item.origin,
            "bytes": item.size,
        }
        for item in unreadable
    ]
    return pa.Table.from_pylist(rows, schema=REJECTED)
