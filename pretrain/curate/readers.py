"""Readers: a file to a stream of records, format by format.

A reader never raises for what it finds in a file: what cannot be read comes out as `Unreadable`, with path and offset,
and the reader goes on where it can. Line formats are streamed; no more than one record is held.
"""

import dataclasses
import json
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import gin
import pyarrow as pa
import pyarrow.parquet as pq

from pretrain.core.errors import check
from pretrain.curate.documents import Record, Unreadable
from pretrain.curate.inputs import InputFile, open_stream, read_chunks, zstd

TEXT_UNITS = ("file", "paragraph", "line")
DAMAGE = (OSError, EOFError, ValueError, zlib.error, zstd.ZstdError, pa.ArrowException)


@gin.configurable(module="pretrain.curate")
@dataclasses.dataclass(frozen=True)
class Fields:
    """Which fields of a record (JSON key or Parquet column) are what, and what one document of plain text is.

    Attributes:
        text: the field that holds the text.
        id: the field that holds the record's own id; records without it get one from their source and origin.
        group: the field whose documents must not be divided between train and validation; None: the id.
        text_unit: one document per "file", "paragraph" (blank lines between) or "line" of .txt, .md and .rst files.
        max_record_bytes: longer records are rejected as unreadable.
    """

    text: str = "text"
    id: str = "id"
    group: str | None = None
    text_unit: str = "file"
    max_record_bytes: int = 64 << 20

    def __post_init__(self):
        check(self.text_unit in TEXT_UNITS, f"Fields.text_unit must be one of {TEXT_UNITS}, not {self.text_unit!r}")
        check(self.max_record_bytes > 0, f"Fields.max_record_bytes must be positive, not {self.max_record_bytes}")


def read_file(file: InputFile, fields: Fields) -> Iterator[Record | Unreadable]:
    """Every document of a file, and everything in it that could not be read, in the file's order."""
    reader: Callable[[InputFile, Fields], Iterator[Record | Unreadable]] = READERS[file.format]
    if file.size == 0:
        yield Unreadable(file.path, "the file is empty")
        return
    try:
        yield from reader(file, fields)
    except DAMAGE as error:
        yield Unreadable(file.path, f"cannot open: {_one_line(error)}")


def read_jsonl(file: InputFile, fields: Fields) -> Iterator[Record | Unreadable]:
    """One JSON object a line; blank lines are no records."""
    for offset, line, problem in split_lines(file, fields.max_record_bytes):
        origin = f"{file.path}:{offset}"
        if problem:
            yield Unreadable(origin, problem, line, len(line))
        elif line.strip():
            yield _from_json(origin, line, fields)


def read_text(file: InputFile, fields: Fields) -> Iterator[Record | Unreadable]:
    """UTF-8 text: one document a file, paragraph or line, by `fields.text_unit`."""
    for offset, content, problem in _text_units(file, fields):
        origin = file.path if fields.text_unit == "file" and not problem else f"{file.path}:{offset}"
        if problem:
            yield Unreadable(origin, problem, content, len(content))
            continue
        try:
            yield Record(content.decode("utf-8"), origin)
        except UnicodeDecodeError as error:
            yield Unreadable(origin, _utf8_problem(error), content, len(content))


def read_parquet(file: InputFile, fields: Fields) -> Iterator[Record | Unreadable]:
    """One row a document; the origin's offset is the row number."""
    row = 0
    with open_stream(file.path) as stream:
        parquet = pq.ParquetFile(stream)
        names = parquet.schema_arrow.names
        if fields.text not in names:
            yield Unreadable(file.path, f"no column {fields.text!r}; its columns are {', '.join(names)}")
            return
        try:
            for batch in parquet.iter_batches(batch_size=256):
                for values in _rows(batch, fields.text):
                    yield _from_mapping(f"{file.path}:{row}", values, fields)
                    row += 1
        except DAMAGE as error:
            yield Unreadable(f"{file.path}:{row}", f"damaged: {_one_line(error)}")


READERS = {"jsonl": read_jsonl, "text": read_text, "parquet": read_parquet}


def split_lines(file: InputFile, max_bytes: int) -> Iterator[tuple[int, bytes, str]]:
    """Lines of a file as (byte offset, content without the line feed, problem or ""), never holding an over-long one.

    A file that ends in damage yields what stood before it, then the damage as a last problem.
    """
    held, offset, too_long = bytearray(), 0, 0
    damage = ""
    chunks = read_chunks(file)
    while True:
        try:
            chunk = next(chunks, b"")
        except DAMAGE as error:
            chunk, damage = b"", f"damaged: {_one_line(error)}"
        if not chunk:
            break
        *complete, rest = chunk.split(b"\n")
        for piece in complete:
            held += piece
            length = len(held) + too_long
            problem = f"a record of {length:,} bytes; Fields.max_record_bytes is {max_bytes:,}"
            yield offset, bytes(held), problem if length > max_bytes else ""
            offset += length + 1
            held, too_long = bytearray(), 0
        held += rest
        if len(held) + too_long > max_bytes:  # keep the beginning, for the excerpt
            too_long += len(held) - min(len(held), 1024)
            del held[1024:]
    length = len(held) + too_long
    if damage:
        yield offset, bytes(held), damage
    elif length:
        problem = f"a record of {length:,} bytes; Fields.max_record_bytes is {max_bytes:,}"
        yield offset, bytes(held), problem if length > max_bytes else ""


def _text_units(file: InputFile, fields: Fields) -> Iterator[tuple[int, bytes, str]]:
    """Plain text as (byte offset, content, problem or "")."""
    if fields.text_unit == "file":
        yield _whole_file(file, fields.max_record_bytes)
    elif fields.text_unit == "line":
        yield from (unit for unit in split_lines(file, fields.max_record_bytes) if unit[1].strip() or unit[2])
    else:
        yield from _paragraphs(split_lines(file, fields.max_record_bytes), fields.max_record_bytes)


def _whole_file(file: InputFile, max_bytes: int) -> tuple[int, bytes, str]:
    content = bytearray()
    try:
        for chunk in read_chunks(file):
            content += chunk
            if len(content) > max_bytes:
                advice = "set Fields.text_unit to 'paragraph' or 'line'"
                return 0, bytes(content[:1024]), f"more than Fields.max_record_bytes = {max_bytes:,} bytes; {advice}"
    except DAMAGE as error:
        return len(content), bytes(content), f"damaged: {_one_line(error)}"
    return 0, bytes(content), ""


def _paragraphs(lines: Iterator[tuple[int, bytes, str]], max_bytes: int) -> Iterator[tuple[int, bytes, str]]:
    start, held, size = 0, [], 0
    for offset, line, problem in lines:
        if held and (problem or not line.strip() or size + len(line) > max_bytes):
            yield start, b"\n".join(held), ""
            held, size = [], 0
        if problem:
            yield offset, line, problem
        elif line.strip():
            start = start if held else offset
            held.append(line)
            size += len(line) + 1
    if held:
        yield start, b"\n".join(held), ""


def _from_json(origin: str, line: bytes, fields: Fields) -> Record | Unreadable:
    try:
        values = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        return Unreadable(origin, _utf8_problem(error), line, len(line))
    except (ValueError, RecursionError) as error:
        return Unreadable(origin, f"not JSON: {_one_line(error)}", line, len(line))
    if not isinstance(values, dict):
        return Unreadable(origin, "not a JSON object", line, len(line))
    return _from_mapping(origin, values, fields, line)


def _from_mapping(origin: str, values: dict[str, Any], fields: Fields, raw: bytes = b"") -> Record | Unreadable:
    """A record from named values; the fields that have no role of their own become its metadata."""
    text = values.pop(fields.text, None)
    if isinstance(text, bytes):
        try:
            text = text.decode("utf-8")
        except UnicodeDecodeError as error:
            return Unreadable(origin, _utf8_problem(error), text, len(text))
    if not isinstance(text, str):
        found = "no field" if text is None else f"{type(text).__name__}, not text, in field"
        return Unreadable(origin, f"{found} {fields.text!r}", raw, len(raw))
    own_id, group = values.pop(fields.id, None), values.get(fields.group) if fields.group else None
    own_id = str(own_id) if isinstance(own_id, (str, int)) and str(own_id).strip() else None
    try:
        (text + (own_id or "") + str(group)).encode("utf-8")
    except UnicodeEncodeError:
        return Unreadable(origin, "an unpaired surrogate", raw, len(raw))
    metadata = json.dumps(values, sort_keys=True, default=str)
    return Record(text, origin, own_id, group=None if group is None else str(group), metadata=metadata)


def _rows(batch: pa.RecordBatch, text_field: str) -> Iterator[dict[str, Any]]:
    """Rows as dictionaries; strings are decoded one by one, because Parquet does not promise that they are UTF-8."""
    columns = []
    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
            values = column.cast(pa.large_binary()).to_pylist()
            if name != text_field:
                values = [None if value is None else value.decode("utf-8", "replace") for value in values]
            columns.append(values)
        else:
            columns.append(column.to_pylist())
    for values in zip(*columns, strict=True):
        yield dict(zip(batch.schema.names, values, strict=True))


def _utf8_problem(error: UnicodeDecodeError) -> str:
    return f"invalid UTF-8 at byte {error.start}"


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
