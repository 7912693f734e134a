"""Small stages of each kind, importable by worker processes, that show what the contract allows."""

import dataclasses
import re
from collections.abc import Iterable

import pyarrow as pa
import pyarrow.compute as pc
import xxhash

from pretrain.curate.stages import DECISIONS, rejections, replacements, tags


@dataclasses.dataclass(frozen=True)
class MaskMail:
    """Map stage that edits."""

    name: str = "mask_mail"

    def decide(self, documents: pa.RecordBatch) -> pa.Table:
        spans = [
            (id_, *match.span())
            for id_, text in zip(documents["id"].to_pylist(), documents["text"].to_pylist(), strict=True)
            for match in re.finditer(r"\S+@\S+", text)
        ]
        if not spans:
            return DECISIONS.empty_table()
        ids, starts, ends = (pa.array(column) for column in zip(*spans, strict=True))
        return replacements(ids, "email", starts, ends, "<EMAIL>")


@dataclasses.dataclass(frozen=True)
class DropRepeatedLines:
    """Keyed stage that edits: cuts every line which another document, smaller by id, has too."""

    name: str = "repeated_lines"

    def key(self, documents: pa.RecordBatch) -> pa.Table:
        rows = {"key": [], "id": [], "start": [], "end": []}
        for id_, text in zip(documents["id"].to_pylist(), documents["text"].to_pylist(), strict=True):
            start = 0
            for line in text.splitlines(keepends=True):
                rows["key"].append(xxhash.xxh3_128_digest(line.encode()))
                rows["id"].append(id_)
                rows["start"].append(start)
                rows["end"].append(start + len(line))
                start += len(line)
        schema = {"key": pa.binary(16), "id": pa.string(), "start": pa.int64(), "end": pa.int64()}
        return pa.table(rows, schema=pa.schema(schema))

    def group(self, evidence: pa.Table) -> pa.Table:
        keys = evidence["key"].to_pylist()
        return evidence.filter(
            pa.array([index > 0 and keys[index] == keys[index - 1] for index in range(len(keys))], pa.bool_())
        )

    def decide_all(self, groups: pa.Table) -> pa.Table:
        return replacements(groups["id"], "line", groups["start"], groups["end"])

    def report(self, groups: pa.Table) -> dict[str, str]:
        return {"lines.txt": f"{groups.num_rows} lines"}


@dataclasses.dataclass(frozen=True)
class LongerThanReference:
    """Fitted stage: rejects what is longer than everything in the reference."""

    reference: str
    name: str = "longer"

    def fit(self, reference: Iterable[pa.RecordBatch]) -> "MaxBytes":
        lengths = [pc.max(pc.binary_length(batch["text"])).as_py() or 0 for batch in reference]
        return MaxBytes(max(lengths), self.name)


@dataclasses.dataclass(frozen=True)
class MaxBytes:
    """The map stage that `LongerThanReference` becomes."""

    limit: int
    name: str

    def decide(self, documents: pa.RecordBatch) -> pa.Table:
        length = pc.binary_length(documents["text"])
        is_longer = pc.greater(length, self.limit)
        values = pc.cast(length.filter(is_longer), pa.float64())
        return rejections(documents["id"].filter(is_longer), "longer", values, float(self.limit))


@dataclasses.dataclass(frozen=True)
class TagLength:
    """Map stage that tags."""

    name: str = "tag_length"

    def decide(self, documents: pa.RecordBatch) -> pa.Table:
        length = pc.cast(pc.utf8_length(documents["text"]), pa.float64())
        parity = pc.if_else(pc.equal(pc.bit_wise_and(pc.utf8_length(documents["text"]), 1), 1), "odd", "even")
        return pa.concat_tables([tags(documents["id"], "length", length), tags(documents["id"], "parity", parity)])
