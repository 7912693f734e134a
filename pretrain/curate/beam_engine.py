"""The Beam engine: the functions of `shards.py` as one pipeline, for Dataflow, Flink, Spark or this process.

    files → read → by shard → phase 0 → evidence by partition → groups → all in one place → decisions → phase 1 …

Tables travel as Arrow IPC pieces of a few megabytes, numbered, so that they are put together in the same order on
every runner. The last phase writes the output files itself, so workers need access to where they go. Beam is imported
only here, and only when asked for.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from pretrain.core import storage
from pretrain.core.errors import UserError
from pretrain.curate import counts
from pretrain.curate.documents import DOCUMENTS, EDITS, REJECTED
from pretrain.curate.engine import check_readable, read_groups, read_summary, shard_summary, total_of
from pretrain.curate.inputs import InputFile
from pretrain.curate.reading import PROBLEMS, read_counted
from pretrain.curate.shards import FOLDERS, Shard, decide, evidence, finish, group, run_stages, settle, shards_of
from pretrain.curate.stages import DECISIONS
from pretrain.curate.tasks import Plan, write_shard

PIECE_BYTES = 4 << 20
IN_PROCESS = "--runner=BundleBasedDirectRunner"
SCHEMAS = {"documents": DOCUMENTS, "rejected": REJECTED, "edits": EDITS, "decisions": DECISIONS}


class Piece(NamedTuple):
    """A part of a table on its way.

    Attributes:
        kind: which table.
        position: pieces of a kind are put together in this order.
        content: Arrow IPC stream.
    """

    kind: str
    position: tuple[int, ...]
    content: bytes


def run(plan: Plan, files: list[InputFile], max_unreadable: float, options: Sequence[str]) -> dict:
    """Does the whole job and checks its books; see `engine.run`.

    Args:
        plan: the job; `plan.work` has to be where both this process and the workers can write.
        files: what to read.
        max_unreadable: share of records; checked when all is done.
        options: Beam's pipeline options; none runs in this process.

    Raises:
        UserError: Beam is not installed.
        TooMuchUnreadable: more than `max_unreadable` of the records.
        RunError: the books do not balance.
    """
    try:
        import apache_beam as beam
        from apache_beam.options.pipeline_options import PipelineOptions
    except ImportError as error:
        raise UserError("the beam engine needs apache-beam: pip install 'pretrain[data]'") from error
    groups = list(enumerate(read_groups(plan, files)))
    with beam.Pipeline(options=PipelineOptions(list(options) or [IN_PROCESS])) as pipeline:
        shards = pipeline | "shards" >> beam.Create([(shard, None) for shard in range(plan.shards)])
        pieces = pipeline | "files" >> beam.Create(groups) | beam.Reshuffle() | "read" >> beam.FlatMap(_read, plan)
        for number, phase in enumerate(plan.phases):
            name = ", ".join(stage.name for stage in phase.stages) or "write"
            gathered = {"pieces": pieces, "shards": shards} | f"{number}: by shard" >> beam.CoGroupByKey()
            if phase.keyed is None:
                _ = gathered | f"{number}: {name}" >> beam.FlatMap(_run_phase, plan, number)
                continue
            outputs = gathered | f"{number}: {name}" >> beam.FlatMap(_run_phase, plan, number).with_outputs(
                "evidence", main="state"
            )
            decisions = (
                {"pieces": outputs.evidence, "shards": shards}
                | f"{number}: by key" >> beam.CoGroupByKey()
                | f"{number}: groups" >> beam.FlatMap(_group, plan, number)
                | f"{number}: in one place" >> beam.GroupByKey()
                | f"{number}: decisions" >> beam.FlatMap(_decide, plan, number)
            )
            pieces = (outputs.state, decisions) | f"{number}: state and decisions" >> beam.Flatten()
    summaries = [storage.read_json(read_summary(plan, index)) for index, _ in groups]
    check_readable(summaries, max_unreadable)
    numbers = [(number, shard) for number in range(len(plan.phases)) for shard in range(plan.shards)]
    return total_of(plan, summaries, [storage.read_json(shard_summary(plan, *where)) for where in numbers])


def _read(numbered: tuple[int, list[InputFile]], plan: Plan) -> Iterator[tuple[int, Piece]]:
    index, files = numbered
    summary: dict = {"documents": 0, "read": {}, "unreadable": 0, "problems": []}
    batches = read_counted(files, plan.fields, plan.validation_fraction)
    for batch, (documents, rejected, counted) in enumerate(batches):
        counts.add(summary, counted)
        for kind, table in (("documents", documents), ("rejected", rejected)):
            yield from _divided(kind, (index, batch), table, shards_of(table["id"], plan.shards))
    storage.write_json(read_summary(plan, index), summary | {"problems": summary["problems"][:PROBLEMS]})


def _run_phase(keyed_pieces: tuple[int, dict[str, Iterable[Piece]]], plan: Plan, number: int) -> Iterator[Any]:
    from apache_beam.pvalue import TaggedOutput

    shard, gathered = keyed_pieces
    found = _tables(gathered["pieces"])
    phase, keyed = plan.phases[number], ""
    if number == 0:
        tables, summary = settle(found["documents"], found["rejected"])
    else:
        tables, keyed = Shard(*(found[name] for name in FOLDERS)), plan.phases[number - 1].keyed.name
        summary = {"documents": tables.documents.num_rows, "stages": {}}
    tables, counted = run_stages(tables, phase.maps, keyed, found["decisions"])
    summary["stages"].update(counted)
    if phase.keyed is None:
        files, finished = finish(tables)
        write_shard(plan, shard, files)
        summary |= finished
    else:
        rows, partitions = evidence(phase.keyed, tables.documents, plan.shards)
        for element in _divided("evidence", (shard,), rows, partitions):
            yield TaggedOutput("evidence", element)
        for name, table in zip(FOLDERS, tables, strict=True):
            yield from _divided(name, (0,), table, np.full(table.num_rows, shard))
    storage.write_json(shard_summary(plan, number, shard), summary)


def _group(keyed_pieces: tuple[int, dict[str, Iterable[Piece]]], plan: Plan, number: int) -> Iterator[Any]:
    partition, gathered = keyed_pieces
    stage = plan.phases[number].keyed
    groups = group(stage, [_table(piece) for piece in sorted(gathered["pieces"], key=lambda piece: piece.position)])
    yield 0, Piece("groups", (partition,), _bytes(groups))


def _decide(keyed_pieces: tuple[int, Iterable[Piece]], plan: Plan, number: int) -> Iterator[tuple[int, Piece]]:
    pieces = sorted(keyed_pieces[1], key=lambda piece: piece.position)
    decisions, shards, reports = decide(plan.phases[number].keyed, [_table(piece) for piece in pieces], plan.shards)
    for name, text in reports.items():
        storage.write_text(storage.Path(plan.output) / name, text)
    yield from _divided("decisions", (0,), decisions, shards)


def _divided(kind: str, position: tuple[int, ...], table: pa.Table, parts: np.ndarray) -> Iterator[tuple[int, Piece]]:
    """Pieces of a table, each with the number of the part it belongs to; rows of a part keep their order."""
    order = np.argsort(parts, kind="stable")
    table, parts = table.take(pa.array(order)), parts[order]
    ends = np.append(np.flatnonzero(np.diff(parts)) + 1, len(parts)) if len(parts) else []
    start, step = 0, max(1, PIECE_BYTES * len(parts) // max(1, table.nbytes))
    for end in ends:
        for row in range(start, end, step):
            rows = table.slice(row, min(step, end - row))
            yield int(parts[start]), Piece(kind, (*position, row), _bytes(rows))
        start = end


def _tables(pieces: Iterable[Piece]) -> dict[str, pa.Table]:
    """The tables that pieces make, by kind, empty ones too."""
    by_kind: dict[str, list[Piece]] = {kind: [] for kind in SCHEMAS}
    for piece in pieces:
        by_kind[piece.kind].append(piece)
    return {
        kind: pa.concat_tables(
            [SCHEMAS[kind].empty_table(), *map(_table, sorted(found, key=lambda piece: piece.position))]
        )
        for kind, found in by_kind.items()
    }


def _bytes(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema, options=pa.ipc.IpcWriteOptions(compression="lz4")) as writer:
        writer.write_table(table)
    return sink.getvalue().to_pybytes()


def _table(piece: Piece) -> pa.Table:
    return pa.ipc.open_stream(piece.content).read_all()
