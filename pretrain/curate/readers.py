"""Readers: a file to a stream of records, format by format.

A reader never raises for what it finds in a file: what cannot be read comes out as `Unreadable`, with path and offset,
and the reader goes on where it can. Line formats are streamed; no more than one record is held.
"""

import dataclasses
import json
import zlib
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import gin
import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pretrain.core.arrays import to_bytes
from pretrain.core.errors import check
from pretrain.core.fields import check_fields
from pretrain.curate.documents import Record, Unreadable
from pretrain.curate.inputs import InputFile, open_stream, read_chunks, zstd

DECODER = msgspec.json.Decoder()
BEGINNING = 1024  # bytes kept of a record that is too long, for the excerpt
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
        main_text: of HTML pages only the main content; otherwise all their text.
        modules: Python modules that register seqio tasks.
        arrays: name of an array -> the field that holds it, of records with more than text; see `take_arrays`.
        instruction_bytes: where it is not 0, a record's text also stands at each step of its array `frames`, as the
            array `instructions` of so many bytes (`VideoShape.instruction`).
    """

    text: str = "text"
    id: str = "id"
    group: str | None = None
    text_unit: str = "file"
    max_record_bytes: int = 64 << 20
    main_text: bool = True
    modules: tuple[str, ...] = ()
    arrays: Mapping[str, str] = dataclasses.field(default_factory=dict)
    instruction_bytes: int = 0

    def __post_init__(self):
        check_fields(self)
        known = " ".join(TEXT_UNITS)
        check(self.text_unit in TEXT_UNITS, f"Fields.text_unit must be one of {known}, not {self.text_unit!r}")
        check(self.max_record_bytes > 0, f"Fields.max_record_bytes must be positive, not {self.max_record_bytes}")
        check(self.instruction_bytes >= 0, f"Fields.instruction_bytes must be 0 or more, not {self.instruction_bytes}")


class Piece(NamedTuple):
    """A stretch of a file: a line, a paragraph or all of it. With a problem, `content` may be only its beginning."""

    offset: int  # bytes from the (decompressed) file's beginning
    content: bytes
    size: int  # bytes
    problem: str = ""


def read_jsonl(file: InputFile, fields: Fields) -> Iterator[Record | Unreadable]:
    """One JSON object a line; blank lines are no records."""
    for piece in split_lines(file, fields.max_record_bytes):
        origin = f"{file.path}:{piece.offset}"
        if piece.problem:
            yield Unreadable(origin, piece.problem, piece.content, piece.size)
        elif piece.content.strip():
            yield _from_json(origin, piece.content, fields)


def read_text(file: InputFile, fields: Fields) -> Iterator[Record | Unreadable]:
    """UTF-8 text: one document a file, paragraph or line, by `fields.text_unit`."""
    for piece in TEXT_UNITS[fields.text_unit](file, fields.max_record_bytes):
        origin = file.path if fields.text_unit == "file" and not piece.problem else f"{file.path}:{piece.offset}"
        if piece.problem:
            yield Unreadable(origin, piece.problem, piece.content, piece.size)
            continue
        try:
            yield Record(piece.content.decode("utf-8-sig"), origin)
        except UnicodeDecodeError as error:
            yield Unreadable(origin, _utf8_problem(error), piece.content, piece.size)


def read_parquet(file: InputFile, fields: Fields) -> Iterator[Record | Unreadable]:
    """One row a document; the origin's offset is the row number."""
    row = 0
    with open_stream(file.path) as stream:
        parquet = pq.ParquetFile(stream)
        names = parquet.schema_arrow.names
        if fields.text not in names and not fields.arrays:
            yield Unreadable(file.path, f"no column {fields.text!r}; its columns are {', '.join(names)}")
            return
        try:
            for batch in parquet.iter_batches(batch_size=256):
                for values in _rows(batch, fields.text):
                    yield from_mapping(f"{file.path}:{row}", values, fields)
                    row += 1
        except DAMAGE as error:
            yield Unreadable(f"{file.path}:{row}", f"damaged: {one_line(error)}")


def is_divisible(file: InputFile, fields: Fields) -> bool:
    """Whether parts of a file can be read by themselves: where a record is a line and nothing is compressed."""
    is_lines = file.format == "jsonl" or (file.format == "text" and fields.text_unit == "line")
    return is_lines and not file.is_compressed


def split_lines(file: InputFile, max_bytes: int) -> Iterator[Piece]:
    """Lines of a file without their line feeds, holding no more than one line and the beginning of an over-long one.

    A file that ends in damage yields what stood before it, then the damage as a last problem. A part of a file yields
    the lines that begin in it; what stands before the first of them is the end of a line of the part before.
    """
    pieces = _lines_from(file, max(0, file.start - 1), max_bytes)
    if file.start:
        next(pieces, None)
    for piece in pieces:
        if file.end is not None and piece.offset >= file.end:
            return
        yield piece


def _lines_from(file: InputFile, start: int, max_bytes: int) -> Iterator[Piece]:
    """Lines from a place on, the first from its middle."""
    held, cut, offset, damage = bytearray(), 0, start, ""  # `cut`: bytes of the line that are not held any more

    def piece() -> Piece:
        size = len(held) + cut
        problem = f"a record of {size:,} bytes; Fields.max_record_bytes is {max_bytes:,}" if size > max_bytes else ""
        return Piece(offset, bytes(held), size, damage or problem)

    chunks = read_chunks(file, start)
    while True:
        try:
            chunk = next(chunks, b"")
        except DAMAGE as error:
            damage = f"damaged: {one_line(error)}"
            break
        if not chunk:
            break
        *ends, rest = chunk.split(b"\n")
        for end in ends:
            held += end
            yield piece()
            offset += len(held) + cut + 1
            held, cut = bytearray(), 0
        held += rest
        if len(held) + cut > max_bytes:
            cut += max(0, len(held) - BEGINNING)
            del held[BEGINNING:]
    if damage or held:
        yield piece()


def split_paragraphs(file: InputFile, max_bytes: int) -> Iterator[Piece]:
    """Stretches of lines between blank lines; one that grows beyond `max_bytes` is cut between lines."""
    start, held, size = 0, [], 0
    for line in split_lines(file, max_bytes):
        is_blank = not line.content.strip()
        if held and (line.problem or is_blank or size + line.size > max_bytes):
            yield Piece(start, b"\n".join(held), size - 1)
            held, size = [], 0
        if line.problem:
            yield line
        elif not is_blank:
            start = start if held else line.offset
            held.append(line.content)
            size += line.size + 1
    if held:
        yield Piece(start, b"\n".join(held), size - 1)


def _filled_lines(file: InputFile, max_bytes: int) -> Iterator[Piece]:
    return (line for line in split_lines(file, max_bytes) if line.content.strip() or line.problem)


def _whole_file(file: InputFile, max_bytes: int) -> Iterator[Piece]:
    content = bytearray()
    try:
        for chunk in read_chunks(file):
            content += chunk
            if len(content) > max_bytes:
                advice = "set Fields.text_unit to 'paragraph' or 'line'"
                problem = f"more than Fields.max_record_bytes = {max_bytes:,} bytes; {advice}"
                yield Piece(0, bytes(content[:BEGINNING]), len(content), problem)
                return
    except DAMAGE as error:
        yield Piece(len(content), bytes(content[:BEGINNING]), len(content), f"damaged: {one_line(error)}")
        return
    if content:
        yield Piece(0, bytes(content), len(content))


TEXT_UNITS = {"file": _whole_file, "paragraph": split_paragraphs, "line": _filled_lines}


def _from_json(origin: str, line: bytes, fields: Fields) -> Record | Unreadable:
    """A record from a line of JSON: msgspec, which is fast and strict; what it refuses, Python's own parser judges."""
    try:
        values = DECODER.decode(line)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        try:
            values = json.loads(line.decode("utf-8-sig"))
        except UnicodeDecodeError as error:
            return Unreadable(origin, _utf8_problem(error), line[:BEGINNING], len(line))
        except (ValueError, RecursionError) as error:
            return Unreadable(origin, f"not JSON: {one_line(error)}", line[:BEGINNING], len(line))
    if not isinstance(values, dict):
        return Unreadable(origin, "not a JSON object", line[:BEGINNING], len(line))
    return from_mapping(origin, values, fields, line)


def from_mapping(origin: str, values: dict[str, Any], fields: Fields, raw: bytes = b"") -> Record | Unreadable:
    """A record from named values; the fields that have no role of their own become its metadata."""
    arrays = take_arrays(values, fields.arrays)
    if isinstance(arrays, Unreadable):
        return arrays._replace(origin=origin)
    text = values.pop(fields.text, None)
    if text is None and fields.arrays:
        text = ""
    if isinstance(text, bytes):
        try:
            text = text.decode("utf-8")
        except UnicodeDecodeError as error:
            return Unreadable(origin, _utf8_problem(error), text[:BEGINNING], len(text))
    if not isinstance(text, str):
        found = "no field" if text is None else f"{type(text).__name__}, not text, in field"
        return Unreadable(origin, f"{found} {fields.text!r}", raw[:BEGINNING], len(raw))
    own_id, group = values.get(fields.id), values.get(fields.group) if fields.group else None
    own_id = str(own_id) if isinstance(own_id, (str, int)) and str(own_id).strip() else None
    if own_id is not None:
        del values[fields.id]
    try:
        for string in (text, own_id or "", str(group)):
            string.isascii() or string.encode("utf-8")
        metadata = json.dumps(values, sort_keys=True, default=str) if values else "{}"
    except UnicodeEncodeError:
        return Unreadable(origin, "an unpaired surrogate", raw, len(raw))
    except (ValueError, RecursionError) as error:
        return Unreadable(origin, f"metadata is no JSON: {one_line(error)}", raw, len(raw))
    return Record(text, origin, own_id, group=None if group is None else str(group), metadata=metadata, arrays=arrays)


def take_arrays(values: dict[str, Any], names: Mapping[str, str]) -> dict[str, bytes] | Unreadable | None:
    """Takes a record's arrays out of its values: a file's bytes as they are, numbers as .npy; None without any.

    Args:
        values: by field. A field holds bytes, an array, (nested) lists of numbers, or {"bytes": ...} as Hugging Face's
            data sets do; one that is not there, or null, is passed over: `ArrayRules` and `ImageRules` reject for that.
        names: name of an array -> field.
    """
    found = {}
    for name, field in names.items():
        value = values.pop(field, None)
        if isinstance(value, dict):
            value = value.get("bytes")
        if value is None:
            continue
        if not isinstance(value, bytes):
            try:
                array = np.asarray(value)
            except ValueError:  # lists of different lengths
                array = np.zeros(0, object)
            if array.dtype.kind not in "biuf":
                return Unreadable(
                    "", f"no numbers in field {field!r}", repr(value)[:BEGINNING].encode(), rule="no_numbers"
                )
            value = to_bytes(array)
        found[name] = value
    return found or None


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


def one_line(error: BaseException) -> str:
    """An error's message without line breaks, cut short; its type's name where it has none."""
    return " ".join(str(error).split())[:200] or type(error).__name__
