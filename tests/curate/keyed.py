"""Runs a keyed stage as the engines do, with any batches and any division of its keys."""

import pyarrow as pa

from pretrain.curate.stages import KeyedStage, apply


def groups_of(stage: KeyedStage, table: pa.Table, batch_size: int = 3, partitions: int = 2) -> pa.Table:
    """What the stage keeps of its evidence."""
    evidence = pa.concat_tables(stage.key(part) for part in table.combine_chunks().to_batches(max_chunksize=batch_size))
    evidence = evidence.append_column("row", pa.array(range(len(evidence))))
    order = [("key", "ascending"), ("id", "ascending"), ("row", "ascending")]
    evidence = evidence.sort_by(order).drop_columns(["row"])
    part = [key[0] % partitions for key in evidence["key"].to_pylist()]
    masks = [pa.array([found == number for found in part], pa.bool_()) for number in range(partitions)]
    return pa.concat_tables(stage.group(evidence.filter(mask)) for mask in masks)


def decide(stage: KeyedStage, table: pa.Table, **divided) -> list[dict]:
    """Its decisions as rows, sorted by id and place."""
    if not table.num_rows:
        return []
    decisions = stage.decide_all(groups_of(stage, table, **divided))
    return decisions.sort_by([("id", "ascending"), ("start", "ascending")]).to_pylist()


def applied(stage: KeyedStage, table: pa.Table, **divided) -> tuple[pa.Table, pa.Table, pa.Table]:
    """Documents kept, rejects and edits."""
    return apply(table, stage.decide_all(groups_of(stage, table, **divided)), stage.name)
