"""Exact deduplication: of documents with the same normalised text, or the same URL, the one with the smallest id stays.

Text normalised: Unicode NFC, each run of white space one space, none at the ends. Compared by a 128-bit hash
(xxh3_128): 16 bytes a document, and a chance below 1e-20 that any two of a billion different documents collide.
URL normalised: without scheme, "www.", user, default port, fragment, final slash and the parameters that only track
visitors; host in lower case, parameters sorted.
"""

import dataclasses
import json
import unicodedata
import urllib.parse

import gin
import numpy as np
import pyarrow as pa
import xxhash

from pretrain.core.fields import check_fields
from pretrain.curate.hashing import KEY_BYTES, from_binary
from pretrain.curate.stages import DECISIONS, rejections

EVIDENCE = pa.schema({"key": pa.binary(KEY_BYTES), "id": pa.string()})
GROUPS = pa.schema({"id": pa.string(), "duplicate_of": pa.string()})
DEFAULT_PORTS = {"http": 80, "https": 443}
TRACKING = ("utm_", "mc_", "pk_", "hsa_")  # beginnings of parameter names
TRACKING_NAMES = {
    "fbclid",
    "gclid",
    "dclid",
    "msclkid",
    "yclid",
    "igshid",
    "_ga",
    "phpsessid",
    "jsessionid",
    "sessionid",
}


@gin.configurable(module="pretrain.curate")
@dataclasses.dataclass(frozen=True)
class ExactDedup:
    """Keyed stage that rejects all documents but one of each set of equal texts."""

    name: str = "exact_dedup"

    def __post_init__(self):
        check_fields(self)

    def key(self, documents: pa.RecordBatch) -> pa.Table:
        """One row a document: the hash of its normalised text."""
        keys = [xxhash.xxh3_128_digest(normalise(text).encode()) for text in documents["text"].to_pylist()]
        return pa.table([pa.array(keys, pa.binary(KEY_BYTES)), documents["id"]], schema=EVIDENCE)

    def group(self, evidence: pa.Table) -> pa.Table:
        """Every document but the first of its key, with that first one."""
        return repeats(evidence)

    def decide_all(self, groups: pa.Table) -> pa.Table:
        """Rejects every document that `group` found, with Jaccard similarity 1 as evidence."""
        if not groups.num_rows:
            return DECISIONS.empty_table()
        return rejections(groups["id"], "same_text", 1.0, 1.0, groups["duplicate_of"])


@gin.configurable(module="pretrain.curate")
@dataclasses.dataclass(frozen=True)
class UrlDedup:
    """Keyed stage that rejects all documents but one of each URL; documents without one stay.

    Attributes:
        field: the field of the metadata that holds the URL; of documents without it the origin counts, if that is a
            web address.
    """

    field: str = "url"
    name: str = "url_dedup"

    def __post_init__(self):
        check_fields(self)

    def key(self, documents: pa.RecordBatch) -> pa.Table:
        """A row a document that has a URL."""
        given = zip(documents["metadata"].to_pylist(), documents["origin"].to_pylist(), strict=True)
        urls = [normalise_url(json.loads(metadata).get(self.field) or origin) for metadata, origin in given]
        row = pa.array([index for index, url in enumerate(urls) if url], pa.int64())
        keys = [xxhash.xxh3_128_digest(url.encode("utf-8", "replace")) for url in urls if url]
        return pa.table([pa.array(keys, pa.binary(KEY_BYTES)), documents["id"].take(row)], schema=EVIDENCE)

    def group(self, evidence: pa.Table) -> pa.Table:
        """Every document but the first of its key, with that first one."""
        return repeats(evidence)

    def decide_all(self, groups: pa.Table) -> pa.Table:
        """Rejects every document that `group` found."""
        return rejections(groups["id"], "same_url", duplicate_of=groups["duplicate_of"])


def repeats(evidence: pa.Table) -> pa.Table:
    """The id of every row but the first of its key, with that first one's; `evidence` is sorted by key and id."""
    keys = from_binary(evidence["key"]).view(f"V{KEY_BYTES}")[:, 0]
    is_first = np.append(True, keys[1:] != keys[:-1])[: len(keys)]
    first = np.maximum.accumulate(np.where(is_first, np.arange(len(keys)), 0))
    repeated = np.flatnonzero(~is_first)
    columns = [evidence["id"].take(pa.array(rows)) for rows in (repeated, first[repeated])]
    return pa.table(columns, schema=GROUPS)


def normalise(text: str) -> str:
    """NFC, white space folded and trimmed."""
    return " ".join(unicodedata.normalize("NFC", text).split())


def normalise_url(url: str | None) -> str:
    """What two addresses of one page have in common; "" for what is no web address."""
    try:
        parts = urllib.parse.urlsplit(url.strip() if isinstance(url, str) else "")
        host, port = (parts.hostname or "").removeprefix("www."), parts.port
    except ValueError:
        return ""
    if parts.scheme not in DEFAULT_PORTS or not host:
        return ""
    if port not in (None, DEFAULT_PORTS[parts.scheme]):
        host = f"{host}:{port}"
    pairs = [
        (name, value)
        for name, value in urllib.parse.parse_qsl(parts.query, keep_blank_values=True)
        if not name.lower().startswith(TRACKING) and name.lower() not in TRACKING_NAMES
    ]
    path = urllib.parse.quote(urllib.parse.unquote(parts.path, errors="surrogateescape"), errors="surrogateescape")
    return f"{host}{path.rstrip('/')}?{urllib.parse.urlencode(sorted(pairs), errors='replace')}"
