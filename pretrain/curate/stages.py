"""The contract of a curation stage, and how the engines apply what it decides.

A stage never touches files, processes or counters; it looks at Arrow batches and says what should happen, with
evidence. Engines (local now, Beam later) call the same functions and apply the same decisions, so they agree on rows.
There are three kinds:

*map* decides about each document by itself: filters, masking.
*keyed* compares documents: exact and near duplicates, repeated lines, n-grams shared with a benchmark. `key` gives
small evidence rows, any number for a document; rows of one key meet in `group`, which keeps what matters (duplicates,
edges, hits); `decide` sees all that is left at once (connected components, counts) and decides.
*fitted* learns from a reference corpus first, and then is a map or keyed stage: quality, perplexity.

A stage is a frozen gin-configurable dataclass, so it can be sent to a worker and put into a fingerprint.
"""

import json
from collections.abc import Iterable, Mapping
from typing import Protocol, runtime_checkable

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pretrain.curate.documents import EDITS, REJECTED, excerpt, text_bytes

# A row with `tag` writes {tag: label, or value where there is no label} into the document's metadata; one with `start`
# replaces characters [start, end) by `replacement`; any other rejects its document.
DECISIONS = pa.schema(
    {
        "id": pa.string(),
        "rule": pa.string(),
        "value": pa.float64(),
        "threshold": pa.float64(),
        "duplicate_of": pa.string(),
        "start": pa.int64(),
        "end": pa.int64(),
        "replacement": pa.string(),
        "tag": pa.string(),
        "label": pa.string(),
    }
)


@runtime_checkable
class MapStage(Protocol):
    """Decides about each document by itself.

    Attributes:
        name: unique in a recipe; it appears in every reject, edit and count.
    """

    name: str

    def decide(self, documents: pa.RecordBatch) -> pa.Table:
        """Decisions about a batch (which may be empty) of schema `DOCUMENTS`, as a table of schema `DECISIONS`.

        Of several rejections of one document the first counts; a rejected document is neither edited nor tagged.
        """


@runtime_checkable
class KeyedStage(Protocol):
    """Decides about documents by comparing them. Evidence must not hold whole texts.

    A stage may also have `report(groups) -> {file name: text}`, called with what `decide_all` is called with; the files
    are written into the output folder.
    """

    name: str

    def key(self, documents: pa.RecordBatch) -> pa.Table:
        """Evidence: columns `key` (16 bytes, hashed), `id` and others of the stage's own; the schema never varies."""

    def group(self, evidence: pa.Table) -> pa.Table:
        """What is worth deciding on, of some keys with all their rows, sorted by key and id; may be empty."""

    def decide_all(self, groups: pa.Table) -> pa.Table:
        """Decisions, of everything that `group` returned, in the order of keys."""


@runtime_checkable
class FittedStage(Protocol):
    """Learns from a reference corpus, then decides as a map stage.

    Attributes:
        reference: the reference corpus: a path, glob or folder as in `Recipe.input`; or {name: such a corpus} for a
            stage that learns from several.
    """

    name: str
    reference: str | Mapping[str, str]

    def fit(
        self, reference: Iterable[pa.RecordBatch] | Mapping[str, Iterable[pa.RecordBatch]]
    ) -> "MapStage | KeyedStage":
        """The fitted stage, of the same name; it is sent to the workers, so it holds plain values and arrays."""


Stage = MapStage | KeyedStage | FittedStage


def rejections(ids: pa.Array, rule: str, value=None, threshold: float | None = None, duplicate_of=None) -> pa.Table:
    """Decisions that reject `ids`; `value`, `threshold` and `duplicate_of` are arrays or one value for all."""
    given = {"id": ids, "rule": rule, "value": value, "threshold": threshold, "duplicate_of": duplicate_of}
    return _decisions(given, len(ids))


def replacements(ids: pa.Array, rule: str, start: pa.Array, end: pa.Array, replacement: str = "") -> pa.Table:
    """Decisions that replace characters [start, end) of the texts of `ids`; an id may come several times."""
    return _decisions({"id": ids, "rule": rule, "start": start, "end": end, "replacement": replacement}, len(ids))


def tags(ids: pa.Array, name: str, values: pa.Array | np.ndarray | str | float) -> pa.Table:
    """Decisions that write {name: value} into the metadata of `ids`: numbers or strings, an array or one for all.

    A tag changes no text and takes the place of what the metadata held under that name; null values write nothing.
    """
    values = pa.array(values) if isinstance(values, (np.ndarray, list)) else values
    if isinstance(values, (pa.Array, pa.ChunkedArray)):
        is_given = pc.is_valid(values)
        ids, values = ids.filter(is_given), values.filter(is_given)
        is_label = not (pa.types.is_floating(values.type) or pa.types.is_integer(values.type))
    else:
        is_label = isinstance(values, str)
    return _decisions({"id": ids, "tag": name, "label" if is_label else "value": values}, len(ids))


def _decisions(given: dict, length: int) -> pa.Table:
    columns = []
    for field in DECISIONS:
        column = given.get(field.name)
        if not isinstance(column, (pa.Array, pa.ChunkedArray)):
            column = pa.repeat(pa.scalar(column, field.type), length)
        columns.append(column.cast(field.type))
    return pa.table(columns, schema=DECISIONS)


def apply(documents: pa.Table, decisions: pa.Table, stage: str) -> tuple[pa.Table, pa.Table, pa.Table]:
    """Carries decisions out.

    Returns:
        The documents kept (in their order, edited), rows of schema `REJECTED` and rows of schema `EDITS`.

    Raises:
        ValueError: a decision about a document that is not there.
    """
    if not decisions.num_rows:
        return documents, REJECTED.empty_table(), EDITS.empty_table()
    unknown = pc.invert(pc.is_in(decisions["id"], value_set=documents["id"]))
    if pc.any(unknown).as_py():
        raise ValueError(f"stage {stage} decided about unknown ids: {decisions['id'].filter(unknown)[:3].to_pylist()}")
    is_tag, is_edit = pc.is_valid(decisions["tag"]), pc.is_valid(decisions["start"])
    is_rejection = pc.invert(pc.or_(is_tag, is_edit))
    kept, rejected = _reject(documents, decisions.filter(is_rejection), stage)
    kept = _tag(kept, decisions.filter(is_tag))
    kept, edits = _edit(kept, decisions.filter(is_edit), stage)
    return kept, rejected, edits


def _reject(documents: pa.Table, decisions: pa.Table, stage: str) -> tuple[pa.Table, pa.Table]:
    first = np.sort(np.unique(decisions["id"].to_numpy(zero_copy_only=False), return_index=True)[1])
    decisions = decisions.take(pa.array(first))
    row = pc.index_in(documents["id"], value_set=decisions["id"])
    is_rejected = pc.is_valid(row)
    dropped = documents.filter(is_rejected)
    reasons = decisions.take(pc.drop_null(row))
    return documents.filter(pc.invert(is_rejected)), rejected_rows(dropped, reasons, stage)


def rejected_rows(documents: pa.Table, reasons: pa.Table, stage: str) -> pa.Table:
    """Rows of schema `REJECTED` for documents and their decisions, given in the same order."""
    columns = {
        **{name: reasons[name] for name in ("rule", "value", "threshold", "duplicate_of")},
        **{name: documents[name] for name in ("id", "source", "origin")},
        "stage": pa.repeat(stage, documents.num_rows),
        "excerpt": excerpt(documents["text"]),
        "bytes": text_bytes(documents),
    }
    return pa.table([columns[name] for name in REJECTED.names], schema=REJECTED)


def _tag(documents: pa.Table, decisions: pa.Table) -> pa.Table:
    row = pc.index_in(decisions["id"], value_set=documents["id"])
    decisions = decisions.append_column("row", row).filter(pc.is_valid(row))
    if not decisions.num_rows:
        return documents
    added: dict[int, dict[str, str | float]] = {}
    for row_, name, label, value in zip(
        *(decisions[column].to_pylist() for column in ("row", "tag", "label", "value")), strict=True
    ):
        added.setdefault(row_, {})[name] = value if label is None else label
    metadata = documents["metadata"].to_pylist()
    for row_, values in added.items():
        metadata[row_] = json.dumps(json.loads(metadata[row_]) | values, sort_keys=True)
    column = documents.schema.get_field_index("metadata")
    return documents.set_column(column, documents.schema.field(column), pa.array(metadata, pa.string()))


def _edit(documents: pa.Table, decisions: pa.Table, stage: str) -> tuple[pa.Table, pa.Table]:
    row = pc.index_in(decisions["id"], value_set=documents["id"])
    decisions = decisions.append_column("row", row).filter(pc.is_valid(row))
    decisions = decisions.sort_by([("row", "ascending"), ("start", "ascending"), ("end", "ascending")])
    if not decisions.num_rows:
        return documents, EDITS.empty_table()
    new_texts: dict[int, list[str]] = {}
    rows, position, text = [], 0, ""
    for change in decisions.to_pylist():
        index = change["row"]
        if index not in new_texts:
            _finish(new_texts, rows, text, position)
            new_texts[index], position, text = [], 0, documents["text"][index].as_py()
        start, end = change["start"], change["end"]
        if not position <= start <= end <= len(text):
            raise ValueError(
                f"stage {stage}: span {start}:{end} of document {change['id']} overlaps or is out of range"
            )
        new_texts[index] += [text[position:start], change["replacement"]]
        taken = len(text[start:end].encode()) - len(change["replacement"].encode())
        source = documents["source"][index].as_py()
        span = {"start": start, "end": end}
        rows.append(
            {"id": change["id"], "source": source, "stage": stage, "rule": change["rule"], "span": span, "bytes": taken}
        )
        position = end
    _finish(new_texts, rows, text, position)
    texts = documents["text"].to_pylist()
    for index, pieces in new_texts.items():
        texts[index] = "".join(pieces)
    column = documents.schema.get_field_index("text")
    edited = documents.set_column(column, documents.schema.field(column), pa.array(texts, pa.large_string()))
    return edited, pa.Table.from_pylist(rows, schema=EDITS)


def _finish(new_texts: dict[int, list[str]], rows: list, text: str, position: int) -> None:
    """Adds what stands behind the last span of the document worked on."""
    if rows:
        new_texts[next(reversed(new_texts))].append(text[position:])
