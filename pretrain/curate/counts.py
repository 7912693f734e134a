"""The books of a run: documents and bytes by source, in and out of each stage, and the check that they balance.

Plain nested dictionaries of integers, so that tasks can return them as JSON and a sum over tasks is the total.
"""

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pretrain.core.errors import RunError
from pretrain.curate.documents import text_bytes

DOMAINS = 200  # of each source, a shard


def add(total: dict[str, Any], part: dict[str, Any]) -> dict[str, Any]:
    """Adds the numbers and lists of `part` to those of `total`, at every depth, in place."""
    for key, value in part.items():
        if isinstance(value, dict):
            add(total.setdefault(key, {}), value)
        elif isinstance(value, list):
            total[key] = total.get(key, []) + value
        else:
            total[key] = total.get(key, 0) + value
    return total


def sizes(documents: pa.Table) -> pa.Table:
    """What is counted of documents: columns `source` and `bytes`."""
    return pa.table({"source": documents["source"], "bytes": text_bytes(documents)})


def of_documents(documents: pa.Table) -> dict[str, dict[str, int]]:
    """{source: {"documents", "bytes"}} of a table of schema `DOCUMENTS`."""
    return _by_source(sizes(documents))


def of_rejected(rejected: pa.Table) -> dict[str, dict[str, dict[str, int]]]:
    """{source: {rule: {"documents", "bytes"}}} of a table of schema `REJECTED`."""
    counts: dict[str, Any] = {}
    for row in rejected.group_by(["source", "rule"]).aggregate([("bytes", "sum"), ([], "count_all")]).to_pylist():
        numbers = {"documents": row["count_all"], "bytes": row["bytes_sum"]}
        counts.setdefault(row["source"], {})[row["rule"]] = numbers
    return counts


def of_edits(edits: pa.Table) -> dict[str, dict[str, dict[str, int]]]:
    """{source: {rule: {"edits", "bytes"}}} of a table of schema `EDITS`."""
    counts: dict[str, Any] = {}
    for row in edits.group_by(["source", "rule"]).aggregate([("bytes", "sum"), ([], "count_all")]).to_pylist():
        counts.setdefault(row["source"], {})[row["rule"]] = {"edits": row["count_all"], "bytes": row["bytes_sum"]}
    return counts


def of_tags(tags: pa.Table) -> dict[str, dict[str, dict[str, dict[str, int]]]]:
    """{source: {tag: {value: {"documents"}}}} of rows `source`, `tag`, `value`."""
    counts: dict[str, Any] = {}
    for row in _counted(tags, ["source", "tag", "value"]):
        by_value = counts.setdefault(row["source"], {}).setdefault(row["tag"], {})
        by_value[row["value"]] = {"documents": row["count_all"]}
    return counts


def shown_tags(kept: pa.Table, decisions: pa.Table) -> pa.Table:
    """The tags among decisions about documents that were kept: `source`, `tag` and `value` as it is counted.

    Numbers are counted by their first digit (0.1, 0.2 … 0.9, 1, 2 …), those near 0 as 0.
    """
    decisions = decisions.filter(pc.is_valid(decisions["tag"]))
    row = pc.index_in(decisions["id"], value_set=kept["id"])
    decisions, row = decisions.filter(pc.is_valid(row)), pc.drop_null(row)
    values = (
        f"{round(value, 2):.1g}" for value in decisions["value"].filter(pc.is_null(decisions["label"])).to_pylist()
    )
    shown = [next(values) if label is None else label for label in decisions["label"].to_pylist()]
    source = kept["source"].take(row)
    return pa.table([source, decisions["tag"], pa.array(shown, pa.string())], names=["source", "tag", "value"])


def of_lengths(documents: pa.Table) -> dict[str, dict[str, int]]:
    """{source: {bin: documents}}: bin b holds texts of 2**b … 2**(b+1) - 1 bytes, empty ones are in bin 0."""
    table = pa.table(
        {
            "source": documents["source"],
            "bin": pa.array(np.log2(np.maximum(text_bytes_numpy(documents), 1)).astype(np.int64)),
        }
    )
    counts: dict[str, Any] = {}
    for row in _counted(table, ["source", "bin"]):
        counts.setdefault(row["source"], {})[str(row["bin"])] = row["count_all"]
    return counts


def of_metadata(documents: pa.Table, key: str) -> dict[str, dict[str, int]]:
    """{source: {value: documents}} of a text field of the metadata; documents without it do not count."""
    return _by_value(documents, pc.struct_field(pc.extract_regex(documents["metadata"], _json_text(key)), "value"))


def of_domains(documents: pa.Table) -> dict[str, dict[str, int]]:
    """{source: {domain: documents}} by the metadata's `url`, or by an origin that is one; the commonest `DOMAINS`."""
    places = [pc.struct_field(pc.extract_regex(documents["metadata"], _json_text("url")), "value"), documents["origin"]]
    hosts = [
        pc.struct_field(pc.extract_regex(place, r"^https?://(?:www\.)?(?P<host>[^/:?#]+)"), "host") for place in places
    ]
    found = _by_value(documents, pc.coalesce(*hosts))
    return {
        source: dict(sorted(domains.items(), key=lambda item: (-item[1], item[0]))[:DOMAINS])
        for source, domains in found.items()
    }


def of_duplicates(rejected: pa.Table) -> dict[str, int]:
    """{source: documents} rejected as duplicates of another."""
    duplicates = rejected.filter(pc.is_valid(rejected["duplicate_of"]))
    return {row["source"]: row["count_all"] for row in _counted(duplicates, ["source"])}


def _by_value(documents: pa.Table, values: pa.ChunkedArray) -> dict[str, dict[str, int]]:
    table = pa.table([documents["source"], values], names=["source", "value"]).filter(pc.is_valid(values))
    counts: dict[str, dict[str, int]] = {}
    for row in _counted(table, ["source", "value"]):
        counts.setdefault(row["source"], {})[row["value"]] = row["count_all"]
    return counts


def _counted(table: pa.Table, keys: list[str]) -> list[dict[str, Any]]:
    return table.group_by(keys).aggregate([([], "count_all")]).to_pylist()


def _json_text(key: str) -> str:
    """A pattern for a text field of a JSON object; its `value` is as JSON writes it."""
    return rf'"{key}": ?"(?P<value>(?:[^"\\]|\\.)*)"'


def text_bytes_numpy(documents: pa.Table) -> np.ndarray:
    """`text_bytes` as a numpy array."""
    return text_bytes(documents).to_numpy()


def stage_counts(sizes_in: pa.Table, sizes_out: pa.Table, rejected: pa.Table, edits: pa.Table) -> dict:
    """{"in", "out", "rejected", "edited"} of one stage, each by source."""
    return {
        "in": _by_source(sizes_in),
        "out": _by_source(sizes_out),
        "rejected": of_rejected(rejected),
        "edited": of_edits(edits),
    }


class Book:
    """Counts of one stage over many batches, made once at the end."""

    def __init__(self):
        self._entries: list[tuple[pa.Table, ...]] = []

    def enter(
        self, documents: pa.Table, kept: pa.Table, rejected: pa.Table, edits: pa.Table, decisions: pa.Table
    ) -> None:
        """Notes what a stage decided about one batch."""
        columns = ["source", "rule", "bytes"]
        tables = (sizes(documents), sizes(kept), rejected.select(columns), edits.select(columns))
        self._entries.append((*tables, shown_tags(kept, decisions)))

    def counts(self) -> dict:
        """`stage_counts` of everything noted, and "tagged"."""
        *tables, tags = (pa.concat_tables(column) for column in zip(*self._entries, strict=True))
        return stage_counts(*tables) | {"tagged": of_tags(tags)}


def total(counts: dict[str, Any], key: str) -> int:
    """The sum of all numbers called `key`, at every depth."""
    return sum(
        total(value, key) if isinstance(value, dict) else (value if name == key else 0)
        for name, value in counts.items()
    )


def check_balance(read: dict[str, Any], kept: dict[str, Any], stages: dict[str, Any]) -> None:
    """Checks that documents kept + rejected = read and bytes kept + rejected + edited out = read, by source.

    Args:
        read: {source: {"documents", "bytes"}}, as counted when records left the readers.
        kept: the same, as counted when documents were written.
        stages: {stage: {"rejected": …, "edited": …}}, as `stage_counts` gives them.

    Raises:
        RunError: they do not balance, which is an error of this program.
    """
    for source in sorted(set(read) | set(kept)):
        rejected = [stage["rejected"].get(source, {}) for stage in stages.values()]
        edited = [stage["edited"].get(source, {}) for stage in stages.values()]
        for unit in ("documents", "bytes"):
            expected = total({source: read.get(source, {})}, unit)
            found = total({source: kept.get(source, {})}, unit) + sum(total(part, unit) for part in rejected + edited)
            if expected != found:
                raise RunError(
                    f"the books do not balance for {source}: {expected:,} {unit} read, {found:,} kept, rejected or "
                    "edited out; please report this, with the recipe"
                )


def _by_source(table: pa.Table) -> dict[str, dict[str, int]]:
    rows = table.group_by(["source"]).aggregate([("bytes", "sum"), ([], "count_all")]).to_pylist()
    return {row["source"]: {"documents": row["count_all"], "bytes": row["bytes_sum"]} for row in rows}
