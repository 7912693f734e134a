"""What happens to one shard of a corpus, as pure functions of Arrow tables: both engines call them.

    settle     everything read into a shard → sorted by id, each id once
    run_stages → through the decisions of a keyed stage and through map stages, batch by batch
    evidence   → the rows of a keyed stage, with the partition in which each meets its like
    group      all evidence of a partition → what is worth deciding on
    finish     → the bytes of the output files, and what the datasheet says about them

Nothing here depends on the order in which tables arrive, so every engine writes the same bytes.
"""

import dataclasses
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pretrain.curate import counts
from pretrain.curate.documents import DOCUMENTS, EDITS, REJECTED, shard_of
from pretrain.curate.reading import READ
from pretrain.curate.stages import KeyedStage, MapStage, apply, rejected_rows, rejections

BATCH_DOCUMENTS, BATCH_BYTES = 1_024, 8 << 20  # of what a stage sees at once
EXAMPLES = 3  # of each kind, a shard
ROW_GROUP = 2_048
COMPRESSION = {"compression": "zstd", "compression_level": 3}
FOLDERS = ("documents", "rejected", "edits")
EMPTY = (DOCUMENTS.empty_table(), REJECTED.empty_table(), EDITS.empty_table())


@dataclasses.dataclass(frozen=True)
class Phase:
    """Map stages, then at most one keyed stage: what can be done in one pass over a shard."""

    maps: tuple[MapStage, ...] = ()
    keyed: KeyedStage | None = None

    @property
    def stages(self) -> tuple[MapStage | KeyedStage, ...]:
        """All of them, in order."""
        return self.maps if self.keyed is None else (*self.maps, self.keyed)


class Shard(NamedTuple):
    """What has become of a shard's documents so far: three tables of the schemas in `documents.py`."""

    documents: pa.Table
    rejected: pa.Table
    edits: pa.Table


def split_phases(stages: Iterable[MapStage | KeyedStage]) -> tuple[Phase, ...]:
    """Cuts a recipe behind each keyed stage, because its decisions need all documents; the last phase has none."""
    phases, maps = [], []
    for stage in stages:
        if isinstance(stage, KeyedStage):
            phases.append(Phase(tuple(maps), stage))
            maps = []
        else:
            maps.append(stage)
    return (*phases, Phase(tuple(maps)))


def shards_of(ids: pa.ChunkedArray, shards: int) -> np.ndarray:
    """`shard_of` for each of many ids."""
    return np.fromiter((shard_of(id_, shards) for id_ in ids.to_pylist()), np.int64, len(ids))


def settle(documents: pa.Table, rejected: pa.Table) -> tuple[Shard, dict]:
    """Everything read into a shard, sorted by id; of several with one id the first stays, by source, text and origin.

    Returns:
        The shard, and its summary: the counts of the reading "stage" and of lengths.
    """
    documents = _sorted_by_id(documents)
    ids = documents["id"].combine_chunks()
    is_repeated = np.zeros(len(ids), bool)
    if len(ids) > 1:
        is_repeated[1:] = pc.equal(ids[1:], ids[:-1]).to_numpy(zero_copy_only=False)
    everything = documents
    if is_repeated.any():
        repeated, documents = documents.filter(pa.array(is_repeated)), documents.filter(pa.array(~is_repeated))
        reasons = rejections(repeated["id"], "duplicate_id", duplicate_of=repeated["id"])
        rejected = pa.concat_tables([rejected, rejected_rows(repeated, reasons, READ)])
    counted = counts.stage_counts(counts.sizes(everything), counts.sizes(documents), rejected, EDITS.empty_table())
    for source, rules in counted["rejected"].items():
        unread = {rule: numbers for rule, numbers in rules.items() if rule != "duplicate_id"}
        for numbers in unread.values():
            counts.add(counted["in"], {source: numbers})
    summary = {"documents": documents.num_rows, "stages": {READ: counted}, "lengths": counts.of_lengths(documents)}
    return Shard(documents, rejected, EDITS.empty_table()), summary


def _sorted_by_id(documents: pa.Table) -> pa.Table:
    ids = documents["id"].combine_chunks()
    order = pc.sort_indices(ids).to_numpy()
    in_order = ids.take(pa.array(order))
    if len(ids) > 1 and pc.any(pc.equal(in_order[1:], in_order[:-1])).as_py():
        keys = [(name, "ascending") for name in ("id", "source", "text", "origin")]
        order = pc.sort_indices(documents, keys).to_numpy()
    return documents.take(pa.array(order))


def run_stages(
    shard: Shard, maps: tuple[MapStage, ...], keyed: str = "", decided: pa.Table | None = None
) -> tuple[Shard, dict[str, dict]]:
    """Takes a shard through what keyed stage `keyed` decided about it, then through map stages.

    Returns:
        The shard afterwards, and {stage: counts}.
    """
    names = [*([keyed] if keyed else []), *(stage.name for stage in maps)]
    if not names:
        return shard, {}
    books = [counts.Book() for _ in names]
    done: list[Shard] = []
    find = _finder(shard.documents, decided) if keyed else None
    for start, documents in _batches(shard.documents):
        deciders: list[Callable] = [stage.decide for stage in maps]
        if find is not None:
            deciders.insert(0, lambda batch, first=start: find(first, batch.num_rows))
        rejected, edits = [], []
        for name, decide, book in zip(names, deciders, books, strict=True):
            decisions = decide(_one_batch(documents))
            kept, new_rejected, new_edits = apply(documents, decisions, name)
            book.enter(documents, kept, new_rejected, new_edits, decisions)
            documents = kept
            rejected.append(new_rejected)
            edits.append(new_edits)
        done.append(Shard(documents, pa.concat_tables(rejected), pa.concat_tables(edits)))
    shard = Shard(
        pa.concat_tables(part.documents for part in done),
        pa.concat_tables([shard.rejected, *(part.rejected for part in done)]),
        pa.concat_tables([shard.edits, *(part.edits for part in done)]),
    )
    return shard, {name: book.counts() for name, book in zip(names, books, strict=True)}


def _finder(documents: pa.Table, decisions: pa.Table) -> Callable[[int, int], pa.Table]:
    """A function that gives the decisions about documents `start` … `start + number - 1`."""
    rows = pc.index_in(decisions["id"], value_set=documents["id"])
    if rows.null_count:
        unknown = decisions["id"].filter(pc.is_null(rows))
        raise ValueError(f"decisions about unknown ids: {unknown[:3].to_pylist()}")
    rows = rows.to_numpy()
    order = np.argsort(rows, kind="stable")
    rows, decisions = rows[order], decisions.take(pa.array(order))

    def find(start: int, number: int) -> pa.Table:
        first, last = np.searchsorted(rows, [start, start + number])
        return decisions.slice(first, last - first)

    return find


def _batches(documents: pa.Table) -> Iterator[tuple[int, pa.Table]]:
    """(first row, rows) of a table in bounded parts; at least one, which may be empty."""
    total = np.cumsum(counts.text_bytes_numpy(documents))
    start = 0
    while start == 0 or start < len(total):
        before = total[start - 1] if start else 0
        by_bytes = int(np.searchsorted(total, before + BATCH_BYTES, side="right"))
        end = min(max(by_bytes, start + 1), start + BATCH_DOCUMENTS, len(total))
        yield start, documents.slice(start, end - start)
        start = max(end, 1)


def _one_batch(documents: pa.Table) -> pa.RecordBatch:
    batches = documents.combine_chunks().to_batches()
    return batches[0] if batches else pa.RecordBatch.from_pylist([], schema=documents.schema)


def evidence(stage: KeyedStage, documents: pa.Table, partitions: int) -> tuple[pa.Table, np.ndarray]:
    """A keyed stage's rows about a shard's documents, and the partition of each."""
    table = pa.concat_tables(stage.key(_one_batch(batch)) for _, batch in _batches(documents))
    return table, (_keys(table["key"])[:, 1] % np.uint64(partitions)).astype(np.int64)


def group(stage: KeyedStage, tables: list[pa.Table]) -> pa.Table:
    """What a keyed stage keeps of a partition's evidence, from tables in any order."""
    empty = stage.key(_one_batch(DOCUMENTS.empty_table()))
    table = pa.concat_tables([empty, *tables])
    return stage.group(table.take(pa.array(_key_order(table))))


def _key_order(table: pa.Table) -> np.ndarray:
    """Rows sorted by key and, among rows of one key, by id; rows of one document keep their order."""
    keys = _keys(table["key"])
    order = np.lexsort((keys[:, 1], keys[:, 0]))
    keys = keys[order]
    is_same = np.zeros(len(keys) + 1, bool)  # as the row before
    is_same[1:-1] = (keys[1:] == keys[:-1]).all(axis=1)
    place = np.flatnonzero(is_same[:-1] | is_same[1:])
    if len(place):
        shared = pa.table({"run": np.cumsum(~is_same[:-1])[place], "id": table["id"].take(pa.array(order[place]))})
        order[place] = order[place][pc.sort_indices(shared, [("run", "ascending"), ("id", "ascending")]).to_numpy()]
    return order


def _keys(column: pa.ChunkedArray) -> np.ndarray:
    """16-byte keys as rows of two uint64, the first of which sorts first."""
    column = column.combine_chunks()
    buffer = column.buffers()[1]
    if not len(column):
        return np.zeros((0, 2), np.uint64)
    flat = np.frombuffer(buffer, ">u8")[2 * column.offset : 2 * (column.offset + len(column))]
    return flat.astype(np.uint64).reshape(-1, 2)


def decide(stage: KeyedStage, groups: list[pa.Table], shards: int) -> tuple[pa.Table, np.ndarray, dict[str, str]]:
    """A keyed stage's decisions, of the groups of all partitions in order, the shard of each, and its reports."""
    everything = pa.concat_tables(groups)
    decisions = stage.decide_all(everything)
    reports = stage.report(everything) if hasattr(stage, "report") else {}
    return decisions, shards_of(decisions["id"], shards), reports


def finish(shard: Shard) -> tuple[dict[str, pa.Buffer], dict[str, Any]]:
    """A shard's output files by folder, and the summary of what is in them."""
    documents = shard.documents
    rejected = shard.rejected.sort_by([(name, "ascending") for name in ("id", "stage", "rule", "origin")])
    edits = shard.edits.sort_by([("id", "ascending")])
    files = {}
    for folder, table in zip(FOLDERS, (documents, rejected, edits), strict=True):
        sink = pa.BufferOutputStream()
        pq.write_table(
            table, sink, compression="zstd", compression_level=3, row_group_size=ROW_GROUP, **COLUMNS[folder]
        )
        files[folder] = sink.getvalue()
    splits = {name: documents.filter(pc.equal(documents["split"], name)) for name in ("train", "validation")}
    return files, {
        "kept": counts.of_documents(documents),
        "kept_lengths": counts.of_lengths(documents),
        "splits": {name: counts.of_documents(part) for name, part in splits.items()},
        "languages": counts.of_metadata(documents, "language"),
        "licences": counts.of_metadata(documents, "licen[cs]e"),
        "domains": counts.of_domains(documents),
        "duplicates": counts.of_duplicates(rejected),
        "examples_kept": _examples(_with_excerpt(documents), ["source"]),
        "examples_dropped": _examples(rejected, ["source", "stage", "rule"]),
    }


# Dictionaries and statistics are of no use, and take time, for columns whose values are all different.
COLUMNS: dict[str, dict] = {
    "documents": {"use_dictionary": ["source", "split", "metadata"], "write_statistics": ["id"]},
    "rejected": {"use_dictionary": ["source", "stage", "rule"], "write_statistics": ["id"]},
    "edits": {"use_dictionary": ["source", "stage", "rule"], "write_statistics": ["id"]},
}


def shard_name(shard: int, shards: int) -> str:
    """The file name of an output shard."""
    return f"{shard:05d}-of-{shards:05d}.parquet"


def _with_excerpt(documents: pa.Table) -> pa.Table:
    short = pc.utf8_slice_codeunits(documents["text"], 0, 200)
    return documents.drop_columns(["text", "metadata", "arrays"]).append_column("excerpt", short)


def _examples(rows: pa.Table, keys: list[str]) -> list[dict]:
    """The first rows by id of each combination of keys."""
    seen: dict[tuple, int] = {}
    examples = []
    columns = [rows[key].to_pylist() for key in keys]
    for index, key in enumerate(zip(*columns, strict=True)):
        seen[key] = seen.get(key, 0) + 1
        if seen[key] <= EXAMPLES:
            examples += rows.slice(index, 1).to_pylist()
    return examples
