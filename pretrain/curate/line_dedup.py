"""Deduplication of lines or paragraphs across a corpus: menus, licences, signatures, quoted pages.

As CCNet (Wenzek et al., 2020) does with paragraphs: of equal ones the first (by the document's id, then by place)
stays, every other is cut out of its document. Compared as in exact deduplication of documents.
"""

import dataclasses
import re

import gin
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import xxhash

from pretrain.core.errors import check
from pretrain.core.fields import check_fields
from pretrain.curate.exact_dedup import KEY_BYTES, normalise
from pretrain.curate.hashing import from_binary
from pretrain.curate.stages import DECISIONS, rejections, replacements

UNITS = {
    "line": re.compile(r"^(?=[^\n]*\S)[^\n]*\n?", re.MULTILINE),
    "paragraph": re.compile(r"^(?:(?=[^\n]*\S)[^\n]*(?:\n|\Z))++", re.MULTILINE),  # lines between blank ones
}
SPANS = {
    "id": pa.string(),
    "start": pa.int64(),  # characters of the document
    "end": pa.int64(),
    "visible": pa.int64(),  # characters of the unit, white space at its ends left out
    "total": pa.int64(),  # the same, of all the document's units
}
EVIDENCE = pa.schema({"key": pa.binary(KEY_BYTES), **SPANS})
GROUPS = pa.schema({**SPANS, "duplicate_of": pa.string()})


@gin.configurable(module="pretrain.curate")
@dataclasses.dataclass(frozen=True)
class LineDedup:
    """Keyed stage that cuts out what stood in the corpus before; a document of which too little is left is rejected.

    Attributes:
        unit: "line" or "paragraph".
        min_characters: shorter units are not compared (brackets, single words, "Yes.").
        min_left: characters that a document must have left, or it is rejected.
    """

    unit: str = "line"
    min_characters: int = 30
    min_left: int = 1
    name: str = "line_dedup"

    def __post_init__(self):
        check_fields(self)
        check(self.unit in UNITS, f"LineDedup.unit must be line or paragraph, not {self.unit!r}")
        check(self.min_characters >= 1, f"LineDedup.min_characters must be at least 1, not {self.min_characters}")
        check(self.min_left >= 0, f"LineDedup.min_left must not be negative: {self.min_left}")

    def key(self, documents: pa.RecordBatch) -> pa.Table:
        """A row a unit that is long enough."""
        keys, rows, starts, ends, visible, totals = [], [], [], [], [], []
        for row, text in enumerate(documents["text"].to_pylist()):
            total = 0
            for match in UNITS[self.unit].finditer(text):
                size = len(match[0].strip())
                total += size
                if size >= self.min_characters:
                    keys.append(xxhash.xxh3_128_digest(normalise(match[0]).encode()))
                    rows.append(row)
                    starts.append(match.start())
                    ends.append(match.end())
                    visible.append(size)
            totals += [total] * (len(rows) - len(totals))
        ids = documents["id"].take(pa.array(rows, pa.int64()))
        return pa.table([pa.array(keys, pa.binary(KEY_BYTES)), ids, starts, ends, visible, totals], schema=EVIDENCE)

    def group(self, evidence: pa.Table) -> pa.Table:
        """Every unit but the first of its key, with the id of the first one's document."""
        keys = from_binary(evidence["key"]).view(f"V{KEY_BYTES}")[:, 0]
        is_new = np.append(True, keys[1:] != keys[:-1])[: len(keys)]
        # Rows come sorted by key and id; the first of a document is the one with the smallest start.
        ids = evidence["id"].combine_chunks().dictionary_encode().indices.to_numpy()
        is_other = is_new | np.append(True, ids[1:] != ids[:-1])[: len(ids)]
        order = np.lexsort((evidence["start"].to_numpy(), np.cumsum(is_other)))
        first = np.maximum.accumulate(np.where(is_new, np.arange(len(keys)), 0))
        repeated = np.flatnonzero(~is_new)
        groups = evidence.drop_columns(["key"]).take(pa.array(order[repeated]))
        owners = evidence["id"].take(pa.array(first[repeated]))
        return groups.append_column("duplicate_of", owners).cast(GROUPS)

    def decide_all(self, groups: pa.Table) -> pa.Table:
        """Cuts repeated units, and rejects the documents that have nothing else."""
        if not groups.num_rows:
            return DECISIONS.empty_table()
        documents = groups.group_by("id").aggregate([("visible", "sum"), ("total", "max"), ("duplicate_of", "min")])
        left = pc.subtract(documents["total_max"], documents["visible_sum"])
        empty = documents.filter(pc.less(left, self.min_left))
        share = pc.divide(pc.cast(empty["visible_sum"], pa.float64()), empty["total_max"])
        rejected = rejections(empty["id"], f"repeated_{self.unit}s", share, None, empty["duplicate_of_min"])
        cut = groups.filter(pc.invert(pc.is_in(groups["id"], value_set=empty["id"])))
        return pa.concat_tables([rejected, replacements(cut["id"], f"repeated_{self.unit}", cut["start"], cut["end"])])
