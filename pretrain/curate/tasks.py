"""The tasks of the local engine: reading files into spills, and taking one shard through one phase of the recipe.

A task is a pure function of the files that earlier tasks wrote. Everything it writes is complete and final when it
returns, so a task that was killed is simply run again.
"""

import dataclasses
import os

from pretrain.core import storage
from pretrain.curate import counts, spill
from pretrain.curate.documents import DOCUMENTS, REJECTED
from pretrain.curate.inputs import InputFile
from pretrain.curate.readers import Fields
from pretrain.curate.reading import PROBLEMS, read_counted
from pretrain.curate.shards import (
    FOLDERS,
    Phase,
    Shard,
    decide,
    evidence,
    finish,
    group,
    run_stages,
    settle,
    shard_name,
    shards_of,
)
from pretrain.curate.stages import DECISIONS


@dataclasses.dataclass(frozen=True)
class Plan:
    """What every task needs to know.

    Attributes:
        work: local folder for spills and results.
        output: where the corpus goes, local or remote.
        phases: the recipe's stages; only the last has no keyed stage.
        read_bytes: of files that are read in one task, about.
        spill_codec: compression of spills, "lz4" or None.
    """

    work: str
    output: str
    shards: int
    fields: Fields
    validation_fraction: float
    phases: tuple[Phase, ...]
    read_bytes: int = 16 << 20
    spill_codec: str | None = "lz4"

    def path(self, *parts: object) -> str:
        """A file in the work folder."""
        return os.path.join(self.work, *map(str, parts))


def read_task(plan: Plan, files: list[InputFile], index: int) -> dict:
    """Reads files into a spill of documents and one of unreadable records, divided by shard."""
    summary: dict = {"documents": 0, "read": {}, "unreadable": 0, "problems": []}
    documents_spill = spill.PartWriter(plan.path("read", f"{index}.documents"), DOCUMENTS, plan.spill_codec)
    rejected_spill = spill.PartWriter(plan.path("read", f"{index}.rejected"), REJECTED, plan.spill_codec)
    with documents_spill, rejected_spill:
        for documents, rejected, counted in read_counted(files, plan.fields, plan.validation_fraction):
            documents_spill.write(documents, shards_of(documents["id"], plan.shards))
            rejected_spill.write(rejected, shards_of(rejected["id"], plan.shards))
            counts.add(summary, counted)
    return summary | {"problems": summary["problems"][:PROBLEMS]}


def shard_task(plan: Plan, number: int, shard: int, readers: int) -> dict:
    """Takes one shard through phase `number`: earlier keyed decisions, map stages, then evidence or the output."""
    phase, keyed, decided = plan.phases[number], "", None
    if number == 0:
        spills = [
            spill.read_part([plan.path("read", f"{index}.{kind}") for index in range(readers)], shard, schema)
            for kind, schema in (("documents", DOCUMENTS), ("rejected", REJECTED))
        ]
        tables, summary = settle(*spills)
    else:
        tables = Shard(*(spill.read_table(plan.path(number - 1, f"{shard}.{name}")) for name in FOLDERS))
        keyed = plan.phases[number - 1].keyed.name
        decided = spill.read_part([plan.path(number - 1, "decisions")], shard, DECISIONS)
        summary = {"documents": tables.documents.num_rows, "stages": {}}
    tables, counted = run_stages(tables, phase.maps, keyed, decided)
    summary["stages"].update(counted)
    if phase.keyed is None:
        files, finished = finish(tables)
        write_shard(plan, shard, files)
        return summary | finished
    rows, partitions = evidence(phase.keyed, tables.documents, plan.shards)
    with spill.PartWriter(plan.path(number, f"{shard}.evidence"), rows.schema, plan.spill_codec) as writer:
        writer.write(rows, partitions)
    for name, table in zip(FOLDERS, tables, strict=True):
        spill.write_table(plan.path(number, f"{shard}.{name}"), table, plan.spill_codec)
    return summary


def write_shard(plan: Plan, shard: int, files: dict) -> None:
    """Writes a finished shard's files, given by folder."""
    for folder, content in files.items():
        storage.write_bytes(storage.Path(plan.output) / folder / shard_name(shard, plan.shards), content)


def group_task(plan: Plan, number: int, partition: int) -> dict:
    """Brings together the evidence of some keys from all shards, and keeps what the stage finds worth deciding on."""
    paths = [plan.path(number, f"{shard}.evidence") for shard in range(plan.shards)]
    tables = [spill.read_part([path], partition) for path in paths]
    groups = group(plan.phases[number].keyed, tables)
    spill.write_table(plan.path(number, f"{partition}.groups"), groups, plan.spill_codec)
    return {"documents": sum(table.num_rows for table in tables)}


def decide_task(plan: Plan, number: int) -> dict:
    """Lets a keyed stage decide on everything its groups found, and divides the decisions by shard."""
    groups = [spill.read_table(plan.path(number, f"{partition}.groups")) for partition in range(plan.shards)]
    stage = plan.phases[number].keyed
    decisions, shards, reports = decide(stage, groups, plan.shards)
    with spill.PartWriter(plan.path(number, "decisions"), DECISIONS, plan.spill_codec) as writer:
        writer.write(decisions, shards)
    for name, text in reports.items():
        storage.write_text(storage.Path(plan.output) / name, text)
    return {"documents": decisions.num_rows}
