"""The tasks of the local engine: reading files into spills, and taking one shard through one phase of the recipe.

A task is a pure function of the files that earlier tasks wrote. Everything it writes is complete and final when it
returns, so a task that was killed is simply run again.
"""

import dataclasses
import os
from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pretrain.core import storage
from pretrain.curate import counts, spill
from pretrain.curate.documents import DOCUMENTS, EDITS, REJECTED, UNREADABLE, Unreadable, document_id, shard_of
from pretrain.curate.formats import read_file
from pretrain.curate.inputs import InputFile
from pretrain.curate.readers import Fields
from pretrain.curate.split import split_of
from pretrain.curate.stages import DECISIONS, KeyedStage, MapStage, apply, rejected_rows, rejections

READ = "read"  # the name under which readers reject
READ_BATCH_DOCUMENTS, READ_BATCH_CHARACTERS = 4_096, 8 << 20
STAGE_BATCH_DOCUMENTS = 1_024
EXAMPLES = 3  # of each kind, a shard
PROBLEMS = 20  # unreadable records told about, a task
ROW_GROUP = 2_048


@dataclasses.dataclass(frozen=True)
class Phase:
    """Map stages, then at most one keyed stage: what can be done in one pass over a shard."""

    maps: tuple[MapStage, ...] = ()
    keyed: KeyedStage | None = None

    @property
    def stages(self) -> tuple[MapStage | KeyedStage, ...]:
        """All of them, in order."""
        return self.maps if self.keyed is None else (*self.maps, self.keyed)


@dataclasses.dataclass(frozen=True)
class Plan:
    """What every task needs to know.

    Attributes:
        work: local folder for spills and results.
        output: where the corpus goes, local or remote.
        phases: the recipe's stages; only the last has no keyed stage.
    """

    work: str
    output: str
    shards: int
    fields: Fields
    validation_fraction: float
    phases: tuple[Phase, ...]

    def path(self, *parts: object) -> str:
        """A file in the work folder."""
        return os.path.join(self.work, *map(str, parts))


def split_phases(stages: tuple[MapStage | KeyedStage, ...]) -> tuple[Phase, ...]:
    """Cuts a recipe behind each keyed stage, because its decisions need all documents."""
    phases, maps = [], []
    for stage in stages:
        if isinstance(stage, KeyedStage):
            phases.append(Phase(tuple(maps), stage))
            maps = []
        else:
            maps.append(stage)
    return (*phases, Phase(tuple(maps)))


def read_batches(files: list[InputFile], fields: Fields, validation_fraction: float) -> Iterator[tuple[pa.Table, list]]:
    """Documents of files in bounded tables of schema `DOCUMENTS`, each with what was unreadable among them."""
    rows: dict[str, list] = {name: [] for name in DOCUMENTS.names}
    unreadable: list[Unreadable] = []
    characters = 0
    for file in files:
        for item in read_file(file, fields):
            source = item.source or file.source
            if isinstance(item, Unreadable):
                unreadable.append(item._replace(source=source))
                continue
            id_ = item.id or document_id(source, item.origin)
            split = split_of(id_ if item.group is None else item.group, validation_fraction)
            for name, value in zip(rows, (id_, source, split, item.text, item.origin, item.metadata), strict=True):
                rows[name].append(value)
            characters += len(item.text)
            if characters >= READ_BATCH_CHARACTERS or len(rows["id"]) + len(unreadable) >= READ_BATCH_DOCUMENTS:
                yield pa.table(rows, schema=DOCUMENTS), unreadable
                rows, unreadable, characters = {name: [] for name in rows}, [], 0
    yield pa.table(rows, schema=DOCUMENTS), unreadable


def read_task(plan: Plan, files: list[InputFile], index: int) -> dict:
    """Reads files into a spill of documents and one of unreadable records, divided by shard."""
    summary = {"documents": 0, "read": {}, "unreadable": 0, "problems": []}
    documents_spill = spill.PartWriter(plan.path("read", f"{index}.documents"), DOCUMENTS)
    rejected_spill = spill.PartWriter(plan.path("read", f"{index}.rejected"), REJECTED)
    with documents_spill, rejected_spill:
        for documents, unreadable in read_batches(files, plan.fields, plan.validation_fraction):
            rejected = _unreadable_rows(unreadable)
            documents_spill.write(documents, [shard_of(id_, plan.shards) for id_ in documents["id"].to_pylist()])
            rejected_spill.write(rejected, [shard_of(id_, plan.shards) for id_ in rejected["id"].to_pylist()])
            counts.add(summary["read"], counts.of_documents(documents))
            for item in unreadable:
                counts.add(summary["read"], {item.source: {"documents": 1, "bytes": item.size}})
            summary["documents"] += documents.num_rows + len(unreadable)
            damaged = [item for item in unreadable if item.rule == UNREADABLE]
            summary["unreadable"] += len(damaged)
            room = PROBLEMS - len(summary["problems"])
            summary["problems"] += [f"{item.origin}: {item.problem}" for item in damaged[:room]]
    return summary


def _unreadable_rows(unreadable: list[Unreadable]) -> pa.Table:
    rows = [
        {
            "id": document_id(item.source, item.origin),
            "source": item.source,
            "stage": READ,
            "rule": item.rule,
            "excerpt": f"{item.problem} | {item.content[:200].decode('utf-8', 'replace')}",
            "origin": item.origin,
            "bytes": item.size,
        }
        for item in unreadable
    ]
    return pa.Table.from_pylist(rows, schema=REJECTED)


def shard_task(plan: Plan, number: int, shard: int, readers: int) -> dict:
    """Takes one shard through phase `number`: earlier keyed decisions, map stages, then evidence or the output."""
    stages: dict[str, dict] = {}
    summary: dict = {"stages": stages}
    if number == 0:
        documents, rejected = _gather(plan, shard, readers, stages)
        summary["lengths"] = counts.of_lengths(documents)
        edits = EDITS.empty_table()
    else:
        documents, rejected, edits = (
            spill.read_table(plan.path(number - 1, f"{shard}.{name}")) for name in ("documents", "rejected", "edits")
        )
    summary["documents"] = documents.num_rows
    phase = plan.phases[number]
    deciders = [(stage.name, stage.decide) for stage in phase.maps]
    if number > 0:
        decided = spill.read_part([plan.path(number - 1, "decisions")], shard, DECISIONS)
        deciders.insert(0, (plan.phases[number - 1].keyed.name, lambda _: decided))
    for position, (name, decide) in enumerate(deciders):
        is_keyed = number > 0 and position == 0
        decisions = decide(documents) if is_keyed else pa.concat_tables(decide(batch) for batch in _batches(documents))
        kept, new_rejected, new_edits = apply(documents, decisions, name)
        stages[name] = counts.stage_counts(documents, kept, new_rejected, new_edits)
        stages[name]["tagged"] = counts.of_tags(kept, decisions)
        documents = kept
        rejected, edits = pa.concat_tables([rejected, new_rejected]), pa.concat_tables([edits, new_edits])
    if phase.keyed is None:
        summary.update(_write_output(plan, shard, documents, rejected, edits))
    else:
        _write_evidence(plan, number, shard, phase.keyed, documents)
        for name, table in (("documents", documents), ("rejected", rejected), ("edits", edits)):
            spill.write_table(plan.path(number, f"{shard}.{name}"), table)
    return summary


def _batches(documents: pa.Table) -> list[pa.RecordBatch]:
    """A table as batches for stages; at least one, which may be empty."""
    batches = documents.combine_chunks().to_batches(max_chunksize=STAGE_BATCH_DOCUMENTS)
    return batches or [pa.RecordBatch.from_pylist([], schema=documents.schema)]


def _gather(plan: Plan, shard: int, readers: int, stages: dict) -> tuple[pa.Table, pa.Table]:
    """A shard's documents, sorted by id; of several with one id the first stays, by source, text and origin."""
    documents, rejected = (
        spill.read_part([plan.path("read", f"{index}.{kind}") for index in range(readers)], shard, schema)
        for kind, schema in (("documents", DOCUMENTS), ("rejected", REJECTED))
    )
    documents = documents.sort_by([(name, "ascending") for name in ("id", "source", "text", "origin")])
    ids = documents["id"].to_numpy()
    is_repeated = np.zeros(len(ids), bool)
    is_repeated[1:] = ids[1:] == ids[:-1]
    repeated = documents.filter(pa.array(is_repeated))
    reasons = rejections(repeated["id"], "duplicate_id", duplicate_of=repeated["id"])
    everything, documents = documents, documents.filter(pa.array(~is_repeated))
    counted = counts.stage_counts(everything, documents, REJECTED.empty_table(), EDITS.empty_table())
    for source, rules in counts.of_rejected(rejected).items():
        for numbers in rules.values():
            counts.add(counted["in"], {source: numbers})
    rejected = pa.concat_tables([rejected, rejected_rows(repeated, reasons, READ)])
    counted["rejected"] = counts.of_rejected(rejected)
    stages[READ] = counted
    return documents, rejected


def _write_evidence(plan: Plan, number: int, shard: int, stage: KeyedStage, documents: pa.Table) -> None:
    evidence = pa.concat_tables(stage.key(batch) for batch in _batches(documents))
    partitions = [int.from_bytes(key[:8], "little") % plan.shards for key in evidence["key"].to_pylist()]
    with spill.PartWriter(plan.path(number, f"{shard}.evidence"), evidence.schema) as writer:
        writer.write(evidence, partitions)


def group_task(plan: Plan, number: int, partition: int) -> dict:
    """Brings together the evidence of some keys from all shards, and keeps what the stage finds worth deciding on."""
    paths = [plan.path(number, f"{shard}.evidence") for shard in range(plan.shards)]
    stage = plan.phases[number].keyed
    empty = stage.key(pa.RecordBatch.from_pylist([], schema=DOCUMENTS))
    evidence = spill.read_part(paths, partition, empty.schema)
    evidence = evidence.sort_by([("key", "ascending"), ("id", "ascending")])
    spill.write_table(plan.path(number, f"{partition}.groups"), stage.group(evidence))
    return {"documents": evidence.num_rows}


def decide_task(plan: Plan, number: int) -> dict:
    """Lets a keyed stage decide on everything its groups found, and divides the decisions by shard."""
    groups = [spill.read_table(plan.path(number, f"{partition}.groups")) for partition in range(plan.shards)]
    decisions = plan.phases[number].keyed.decide_all(pa.concat_tables(groups))
    with spill.PartWriter(plan.path(number, "decisions"), DECISIONS) as writer:
        writer.write(decisions, [shard_of(id_, plan.shards) for id_ in decisions["id"].to_pylist()])
    return {"documents": decisions.num_rows}


def _write_output(plan: Plan, shard: int, documents: pa.Table, rejected: pa.Table, edits: pa.Table) -> dict:
    rejected = rejected.sort_by([(name, "ascending") for name in ("id", "stage", "rule", "origin")])
    edits = edits.sort_by([("id", "ascending")])
    for folder, table in (("documents", documents), ("rejected", rejected), ("edits", edits)):
        sink = pa.BufferOutputStream()
        pq.write_table(table, sink, compression="zstd", compression_level=3, row_group_size=ROW_GROUP)
        storage.write_bytes(storage.Path(plan.output) / folder / shard_name(shard, plan.shards), sink.getvalue())
    is_train = pc.equal(documents["split"], "train")
    return {
        "kept": counts.of_documents(documents),
        "kept_lengths": counts.of_lengths(documents),
        "splits": {
            "train": counts.of_documents(documents.filter(is_train)),
            "validation": counts.of_documents(documents.filter(pc.invert(is_train))),
        },
        "examples_kept": _examples(_with_excerpt(documents), ["source"]),
        "examples_dropped": _examples(rejected, ["source", "stage", "rule"]),
    }


def shard_name(shard: int, shards: int) -> str:
    """The file name of an output shard."""
    return f"{shard:05d}-of-{shards:05d}.parquet"


def _with_excerpt(documents: pa.Table) -> pa.Table:
    short = pc.utf8_slice_codeunits(documents["text"], 0, 200)
    return documents.drop_columns(["text", "metadata"]).append_column("excerpt", short)


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
