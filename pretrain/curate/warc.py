"""Web crawls: WARC files (pages, as HTML) and WET files (their text), plain or with one gzip or zstd member a record.

FastWARC reads the records, one at a time and no more than `Fields.max_record_bytes` of it. It stops at a record that
is damaged; here the stretch up to the next record becomes `Unreadable`, and reading goes on behind it.
"""

import json
import re
import zlib
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple
from urllib.parse import urlsplit

import brotli
import fsspec
from fastwarc.warc import ArchiveIterator, WarcRecord, WarcRecordType

from pretrain.curate.documents import Record, Unreadable
from pretrain.curate.html_text import decode, read_page
from pretrain.curate.inputs import InputFile
from pretrain.curate.readers import BEGINNING, Fields, one_line
from pretrain.curate.warc_recovery import end_of_record, next_record, skip_record

# Requests, headers and crawl notes are about documents and are none; of a page met again the text is elsewhere.
DOCUMENT_TYPES = WarcRecordType.response | WarcRecordType.resource | WarcRecordType.conversion
HTML = {"text/html", "application/xhtml+xml"}
CHUNK_SIZE = re.compile(rb"[0-9a-fA-F]{1,8}")
DAMAGE = (OSError, ValueError, EOFError, zlib.error, brotli.error)


def read_warc(file: InputFile, fields: Fields) -> Iterator[Record | Unreadable]:
    """One document a page; origin is the file and the record's offset in it, as stored; the URL is in the metadata."""
    with fsspec.open(file.path, "rb").open() as raw:
        start: int | None = 0
        while start is not None:
            start = yield from _read_from(raw, start, file, fields)


def _read_from(raw: BinaryIO, start: int, file: InputFile, fields: Fields):
    """Yields records from offset `start` up to damage; returns where to go on, None at the end."""
    raw.seek(start)
    position, held, in_member = None, None, 0
    try:
        for record in ArchiveIterator(raw, parse_http=False):
            # A document waits for the next record: damage at the end of a member shows only then.
            if held is not None:
                yield held
                held = None
            # Files compressed as a whole have one offset for all their records.
            in_member = in_member + 1 if position == record.stream_pos else 0
            position = record.stream_pos
            origin = f"{file.path}:{position}" + (f"+{in_member}" if in_member else "")
            if record.record_type & DOCUMENT_TYPES or not _has_length(record):
                item = _read_record(record, origin, fields)
                if isinstance(item, Broken):
                    following = skip_record(raw, position) if item.is_length_known else next_record(raw, position + 1)
                    yield Unreadable(origin, item.problem, item.content, _size(file, position, following))
                    return following
                held = item
    except DAMAGE as error:
        problem = one_line(error)
    else:
        if in_member or not _goes_on(raw, start if position is None else end_of_record(raw, position)):
            if held is not None:
                yield held
            return None
        problem = "no record begins here"  # a damaged gzip header can make the rest of a file look like its own
    broken = start if position is None else end_of_record(raw, position)
    if broken is None:  # the last record itself
        broken = position
    elif held is not None:
        yield held
    following = next_record(raw, broken + 1)
    raw.seek(broken)
    content = raw.read(BEGINNING)
    if content.strip():
        yield Unreadable(f"{file.path}:{broken}", f"damaged: {problem}", content, _size(file, broken, following))
    return following


def _goes_on(raw: BinaryIO, end: int | None) -> bool:
    """Whether anything but blank lines stands at `end` or behind it; None: nobody knows where the last record ends."""
    if end is None:
        return False
    raw.seek(end)
    return raw.read(BEGINNING).strip() != b""


def _size(file: InputFile, start: int, end: int | None) -> int:
    return (file.size if end is None else end) - start


class Broken(NamedTuple):
    """A record behind which the file has to be searched for the next; attributes as in `Unreadable`."""

    problem: str
    content: bytes
    is_length_known: bool


def _read_record(record: WarcRecord, origin: str, fields: Fields) -> Record | Unreadable | Broken:
    """A record's document; nothing longer than `Fields.max_record_bytes` is held."""
    limit, length = fields.max_record_bytes, record.content_length
    if not _has_length(record):
        return Broken("damaged: the record has no Content-Length", b"", False)
    if length > limit:
        problem = f"a record of {length:,} bytes; Fields.max_record_bytes is {limit:,}"
        return Broken(problem, record.reader.read(BEGINNING), True)
    block = record.reader.read(length) if length else b""
    if len(block) < length:
        return Broken(f"damaged: {len(block):,} bytes of a record of {length:,}", block[:BEGINNING], False)
    try:
        return _document(record, block, origin, fields)
    except DAMAGE as error:
        return Unreadable(origin, f"damaged: {one_line(error)}", block[:BEGINNING], length)


def _has_length(record: WarcRecord) -> bool:
    return (record.headers.get("Content-Length") or "").strip().isdigit()


def _document(record: WarcRecord, block: bytes, origin: str, fields: Fields) -> Record | Unreadable:
    """The document of a whole record's block.

    Raises:
        One of `DAMAGE`: the block is not what its headers say.
    """
    headers = {name.lower(): value for name, value in record.headers.to_tuples()}
    content_type, body = headers.get("content-type", ""), block
    if content_type.startswith("application/http"):
        status, http, body = _parse_http(block)
        content_type = http.get("content-type", "")
        if status != 200:
            return Unreadable(origin, f"HTTP status {status}", block[:BEGINNING], len(block), rule="http_status")
        body = decode_body(body, http, fields.max_record_bytes)
    media_type, _, parameters = content_type.partition(";")
    media_type = media_type.strip().lower()
    charset = parameters.lower().partition("charset=")[2].split(";")[0].strip(" \"'") or None
    if media_type in HTML:
        text, title, charset = read_page(body, charset, fields.main_text)
    elif media_type == "text/plain":
        is_wet = record.record_type & WarcRecordType.conversion
        (text, charset), title = decode(body, "utf-8" if is_wet else charset), ""
    else:
        problem = f"content type {media_type or 'unknown'}"
        return Unreadable(origin, problem, body[:BEGINNING], len(block), rule="content_type")
    if not text.strip():
        return Unreadable(origin, "no main text", body[:BEGINNING], len(block), rule="no_text")
    url = headers.get("warc-target-uri", "").strip("<>")
    metadata = {
        "url": url,
        "date": headers.get("warc-date", ""),
        "content_type": media_type,
        "charset": charset,
        "title": title,
        "truncated": headers.get("warc-truncated", ""),
        "languages": headers.get("warc-identified-content-language", ""),
    }
    own_id = headers.get("warc-record-id", "").strip("<> ") or None
    metadata = json.dumps({name: value for name, value in metadata.items() if value}, sort_keys=True)
    return Record(text, origin, own_id, group=_host(url), metadata=metadata)


def _host(url: str) -> str | None:
    """The host of a URL: pages of one share text, so they stay on one side of the split."""
    try:
        return urlsplit(url).hostname
    except ValueError:
        return None


def _parse_http(block: bytes) -> tuple[int, dict[str, str], bytes]:
    """Status, headers (lower case) and body of an HTTP response.

    Raises:
        ValueError: it is none.
    """
    head, gap, body = block.partition(b"\r\n\r\n")
    if not gap:
        head, gap, body = block.partition(b"\n\n")
    first, *lines = head.decode("latin-1").splitlines() or [""]
    words = first.split(None, 2)
    if len(words) < 2 or not words[0].startswith("HTTP/") or not words[1].isdigit():
        raise ValueError("no HTTP response in a record of that type")
    pairs = (line.partition(":") for line in lines)
    return int(words[1]), {name.strip().lower(): value.strip() for name, _, value in pairs}, body


def decode_body(body: bytes, http: dict[str, str], limit: int) -> bytes:
    """Undoes transfer and content encodings where they are still on; no more than `limit` bytes.

    Raises:
        ValueError: it expands to more.
        OSError, zlib.error, brotli.error: it is damaged.
    """
    if http.get("transfer-encoding", "").lower() == "chunked":
        body = _dechunk(body)
    for coding in reversed(http.get("content-encoding", "").lower().replace(" ", "").split(",")):
        if coding in ("gzip", "x-gzip"):  # many crawlers store the decoded body under the headers as they came
            body = _inflate(body, limit) if body.startswith(b"\x1f\x8b") else body
        elif coding == "deflate":
            body = _inflate(body, limit)
        elif coding == "br":
            body = _unbrotli(body, limit)
        elif coding not in ("", "identity"):
            raise ValueError(f"content encoding {coding}")
    return body


def _dechunk(body: bytes) -> bytes:
    """The body of a chunked transfer; one that does not begin with a chunk's size was decoded by the crawler."""
    pieces, position = [], 0
    while position < len(body):
        end = body.find(b"\n", position)
        size = body[position:end].partition(b";")[0].strip() if end >= 0 else b""
        if not CHUNK_SIZE.fullmatch(size):
            if not pieces:
                return body
            raise ValueError(f"a damaged chunk of a chunked transfer, {position:,} bytes in")
        length = int(size, 16)
        if not length:
            break
        piece = body[end + 1 : end + 1 + length]
        if len(piece) < length:
            raise ValueError(f"a chunked transfer that ends early, after {len(body):,} bytes")
        pieces.append(piece)
        position = end + 1 + length
        position += len(body[position : position + 2]) - len(body[position : position + 2].lstrip(b"\r\n"))
    return b"".join(pieces)


def _inflate(body: bytes, limit: int) -> bytes:
    """gzip, zlib or bare deflate, as servers mean it."""
    is_wrapped = body[:2] == b"\x1f\x8b" or (body[:1] == b"\x78" and int.from_bytes(body[:2], "big") % 31 == 0)
    decompressor = zlib.decompressobj(47 if is_wrapped else -15)
    content = decompressor.decompress(body, limit + 1)
    if len(content) <= limit and not decompressor.eof:
        raise ValueError(f"a content encoding that ends early, after {len(content):,} bytes")
    return _bounded(content, limit)


def _unbrotli(body: bytes, limit: int) -> bytes:
    decompressor = brotli.Decompressor()
    content = _bounded(decompressor.process(body, output_buffer_limit=limit + 1), limit)
    while not decompressor.is_finished():
        more = decompressor.process(b"", output_buffer_limit=limit + 1)
        if not more:
            raise ValueError(f"a content encoding that ends early, after {len(content):,} bytes")
        content = _bounded(content + more, limit)
    return content


def _bounded(content: bytes, limit: int) -> bytes:
    if len(content) > limit:
        raise ValueError(f"content that expands to more than Fields.max_record_bytes = {limit:,} bytes")
    return content
