"""What curation reads and writes: the Arrow schemas of documents, rejects and edits, and document ids.

The text column is a large string, so that no shard can outgrow 32-bit offsets. Bytes are always UTF-8 bytes of text.
A document may hold arrays beside its text (`core/arrays.py`): pictures, frames, readings; its text is then a caption or
an instruction, and may be empty.
"""

import hashlib
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import xxhash

DOCUMENTS = pa.schema(
    {
        "id": pa.string(),
        "source": pa.string(),
        "split": pa.string(),  # "train" or "validation"
        "text": pa.large_string(),
        "origin": pa.string(),  # path or URL, with ":offset" where there is one
        "metadata": pa.string(),  # a JSON object
        "arrays": pa.map_(pa.string(), pa.large_binary()),  # by name, as in `core/arrays.py`; null for text alone
    }
)

REJECTED = pa.schema(
    {
        "id": pa.string(),
        "source": pa.string(),
        "stage": pa.string(),
        "rule": pa.string(),
        "value": pa.float64(),
        "threshold": pa.float64(),
        "duplicate_of": pa.string(),
        "excerpt": pa.string(),
        "origin": pa.string(),
        "bytes": pa.int64(),  # of the text as it was when rejected
    }
)

EDITS = pa.schema(
    {
        "id": pa.string(),
        "source": pa.string(),
        "stage": pa.string(),
        "rule": pa.string(),
        "span": pa.struct({"start": pa.int64(), "end": pa.int64()}),  # characters of the text the stage was given
        "bytes": pa.int64(),  # taken out, less what was put in its place
    }
)

EXCERPT_CHARACTERS = 200
UNREADABLE = "unreadable"


class Record(NamedTuple):
    """One document as a reader finds it.

    Attributes:
        text: its text.
        origin: path or URL, with ":offset" where there is one.
        id: the record's own id; None derives one from source and origin.
        source: source name; None takes the name of the input.
        group: documents of one group fall on the same side of the train/validation split; None takes the id.
        metadata: a JSON object as a string.
        arrays: what it holds beside its text, by name, as bytes.
    """

    text: str
    origin: str
    id: str | None = None
    source: str | None = None
    group: str | None = None
    metadata: str = "{}"
    arrays: Mapping[str, bytes] | None = None


class Unreadable(NamedTuple):
    """A record or file that no document was made of.

    Attributes:
        origin: path or URL, with ":offset" where there is one.
        problem: what is wrong with it, in words.
        content: the first bytes of it, for the excerpt.
        size: bytes that were not read into a document; 0 where nobody can know.
        source: as in `Record`.
        rule: "unreadable" for damage, which counts against `Recipe.max_unreadable`; any other is a reader's decision
            about a sound record: an image in a crawl, an error page, a binary file among sources.
    """

    origin: str
    problem: str
    content: bytes = b""
    size: int = 0
    source: str | None = None
    rule: str = UNREADABLE


def document_id(source: str, origin: str) -> str:
    """A stable id for a record that has none: 32 hex digits of source and origin."""
    return hashlib.blake2b(f"{source}\n{origin}".encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()


def shard_of(id_: str, shards: int) -> int:
    """The output shard of a document: a hash of its id, so that it does not depend on the input's order or files."""
    return xxhash.xxh3_64_intdigest(id_.encode()) % shards


def text_bytes(documents: pa.Table | pa.RecordBatch) -> pa.Array:
    """UTF-8 bytes of each document's text, int64."""
    return pc.cast(pc.binary_length(documents["text"]), pa.int64())


def excerpt(texts: pa.Array) -> pa.Array:
    """The first characters of each text, as a string array."""
    return pc.cast(pc.utf8_slice_codeunits(texts, 0, EXCERPT_CHARACTERS), pa.string())


def arrays_of(documents: pa.Table | pa.RecordBatch) -> Iterator[dict[str, bytes]]:
    """The arrays of each document by name, empty where it has none; one document is held at a time."""
    for value in documents["arrays"]:
        yield dict(value.as_py() or ())
