"""One document's whole story, from the evidence that a run wrote: where it was read, what each stage said, its end."""

import json
import os
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pretrain.core import storage
from pretrain.core.errors import UserError, check
from pretrain.curate.documents import EXCERPT_CHARACTERS, shard_of
from pretrain.curate.reading import READ
from pretrain.curate.shards import FOLDERS, shard_name
from pretrain.curate.workspace import COMPLETE

LISTED = 20  # edits shown


def explain(output: os.PathLike | str, id_: str) -> str:
    """The story in lines of text.

    Args:
        output: what `curate` wrote.
        id_: of a document; of a broken record, the id or the origin (path:offset) that rejected/ gives.

    Raises:
        UserError: `output` holds no finished corpus, or nothing with that id was read.
    """
    output = storage.Path(output)
    check((output / COMPLETE).exists(), f"{output} holds no finished corpus; run `pretrain curate` first")
    complete = storage.read_json(output / COMPLETE)
    stages = [READ, *(stage["name"] for stage in complete["recipe"]["stages"])]
    documents, rejected, edits = (rows_of(output, folder, id_, complete["shards"]) for folder in FOLDERS)
    if not documents and not rejected:
        rejected = _by_origin(output, id_)
    if not documents and not rejected:
        raise UserError(f"no document {id_} in {output}: it was not read; ids are in documents/ and rejected/")
    lines: list[str] = []
    for row in rejected:
        story = _story(row, stages, [edit for edit in edits if row["rule"] != "duplicate_id"])
        lines += [*story, *_chain(output, row, complete["shards"]), *_excerpt(row["excerpt"]), ""]
    for row in documents:
        story = _story(row, stages, edits)
        lines += [*story, f"kept in {row['file']}, split {row['split']}", *_tags(row), *_excerpt(row["text"]), ""]
    return "\n".join(lines)


def rows_of(output: storage.Path, folder: str, id_: str, shards: int) -> list[dict[str, Any]]:
    """The rows of an id in one of the output's folders, each with its "file"."""
    name = f"{folder}/{shard_name(shard_of(id_, shards), shards)}"
    with (output / name).open("rb") as file:
        parquet = pq.ParquetFile(file)
        found = []
        for batch in parquet.iter_batches():
            rows = batch.filter(pc.equal(batch["id"], pa.scalar(id_)))
            found += [row | {"file": name} for row in rows.to_pylist()]
    return found


def _by_origin(output: storage.Path, origin: str) -> list[dict[str, Any]]:
    rows = []
    for path in sorted((output / "rejected").glob("*.parquet")):
        with path.open("rb") as file:
            table = pq.read_table(pa.PythonFile(file))
        rows += table.filter(pc.equal(table["origin"], origin)).to_pylist()
    return rows


def _story(row: dict[str, Any], stages: list[str], edits: list[dict]) -> Iterator[str]:
    yield f"{row['id']}, source {row['source']}, read from {row['origin']}"
    last = row.get("stage") or stages[-1]
    for stage in stages[: stages.index(last) + 1]:
        changes = [edit for edit in edits if edit["stage"] == stage]
        if stage == row.get("stage"):
            verdict = f"rejected: {row['rule']}"
            if row["value"] is not None:
                verdict += f", {row['value']:g}"
            if row["threshold"] is not None:
                verdict += f" against {row['threshold']:g}"
            yield f"  {stage}: {verdict}"
        elif changes:
            taken, s = sum(edit["bytes"] for edit in changes), "s" * (len(changes) > 1)
            yield f"  {stage}: passed with {len(changes)} edit{s}, {taken:,} bytes less"
            for edit in changes[:LISTED]:
                span = edit["span"]
                yield f"    {edit['rule']}: characters {span['start']} to {span['end']}, {edit['bytes']:,} bytes less"
            if len(changes) > LISTED:
                yield f"    and {len(changes) - LISTED} more"
        else:
            yield f"  {stage}: passed"


def _chain(output: storage.Path, row: dict[str, Any], shards: int) -> Iterator[str]:
    """Follows `duplicate_of` to the document that was kept in the end, or to what became of it."""
    seen = {row["id"]}
    while row.get("duplicate_of") and row["duplicate_of"] not in seen:
        id_ = row["duplicate_of"]
        seen.add(id_)
        kept, rejected = (rows_of(output, folder, id_, shards) for folder in ("documents", "rejected"))
        if not kept and not rejected:
            yield f"  duplicate of {id_}"
            return
        row = (kept or rejected)[0]
        end = "which was kept" if kept else f"which {row['stage']} rejected: {row['rule']}"
        yield f"  duplicate of {id_} from {row['origin']}, {end}"


def _tags(row: dict[str, Any]) -> Iterator[str]:
    for name, value in json.loads(row["metadata"]).items():
        yield f"  {name}: {value if isinstance(value, str) else json.dumps(value)}"


def _excerpt(text: str) -> Iterator[str]:
    yield "  " + " ".join(text[:EXCERPT_CHARACTERS].split())
