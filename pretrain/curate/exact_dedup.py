"""Exact deduplication: of documents with the same normalised text, the one with the smallest id stays.

Normalised: Unicode NFC, each run of white space one space, none at the ends. Compared by a 128-bit hash (xxh3_128):
16 bytes a document, and a chance below 1e-20 that any two of a billion different documents collide.
"""

import dataclasses
import unicodedata

import gin
import numpy as np
import pyarrow as pa
import xxhash

from pretrain.curate.stages import DECISIONS, rejections

KEY_BYTES = 16
EVIDENCE = pa.schema({"key": pa.binary(KEY_BYTES), "id": pa.string()})
GROUPS = pa.schema({"id": pa.string(), "duplicate_of": pa.string()})


@gin.configurable(module="pretrain.curate")
@dataclasses.dataclass(frozen=True)
class ExactDedup:
    """Keyed stage that rejects all documents but one of each set of equal texts."""

    name: str = "exact_dedup"

    def key(self, documents: pa.RecordBatch) -> pa.Table:
        """One row a document: the hash of its normalised text."""
        keys = [xxhash.xxh3_128_digest(normalise(text).encode()) for text in documents["text"].to_pylist()]
        return pa.table([pa.array(keys, pa.binary(KEY_BYTES)), documents["id"]], schema=EVIDENCE)

    def group(self, evidence: pa.Table) -> pa.Table:
        """Every document but the first of its key, with that first one."""
        if not evidence.num_rows:
            return GROUPS.empty_table()
        keys = np.array(evidence["key"].to_pylist(), dtype=f"S{KEY_BYTES}").view(f"V{KEY_BYTES}")
        is_first = np.ones(len(keys), bool)
        is_first[1:] = keys[1:] != keys[:-1]
        first = np.maximum.accumulate(np.where(is_first, np.arange(len(keys)), 0))
        table = pa.table([evidence["id"], evidence["id"].take(pa.array(first))], schema=GROUPS)
        return table.filter(pa.array(~is_first))

    def decide_all(self, groups: pa.Table) -> pa.Table:
        """Rejects every document that `group` found, with Jaccard similarity 1 as evidence."""
        if not groups.num_rows:
            return DECISIONS.empty_table()
        return rejections(groups["id"], "same_text", 1.0, 1.0, groups["duplicate_of"])


def normalise(text: str) -> str:
    """NFC, white space folded and trimmed."""
    return " ".join(unicodedata.normalize("NFC", text).split())
