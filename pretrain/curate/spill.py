"""Files between steps: Arrow IPC files whose record batches are addressed by part (a shard or a key partition).

One file per writer, however many parts: the list of which batch belongs to which part is kept beside it.
"""

import os
from collections.abc import Iterable

import pyarrow as pa

from pretrain.core import storage

BUFFER_BYTES = 64 << 20  # of rows held back until they are written part by part
OPTIONS = pa.ipc.IpcWriteOptions(compression="lz4")


class PartWriter:
    """Writes rows to parts; a context manager. Rows of a part keep their order."""

    def __init__(self, path: str, schema: pa.Schema):
        self._path, self._schema = path, schema
        self._held: list[pa.Table] = []
        self._held_parts: list[list[int]] = []
        self._held_bytes = 0
        self._parts: list[int] = []  # of each batch written

    def __enter__(self) -> "PartWriter":
        os.makedirs(os.path.dirname(self._path), exist_ok=True)
        self._writer = pa.ipc.new_file(self._path, self._schema, options=OPTIONS)
        return self

    def write(self, rows: pa.Table, parts: list[int]) -> None:
        """Adds rows; `parts` names the part of each."""
        self._held.append(rows)
        self._held_parts.append(parts)
        self._held_bytes += rows.nbytes
        if self._held_bytes >= BUFFER_BYTES:
            self._flush()

    def __exit__(self, exception_type, *_) -> None:
        if exception_type is None:
            self._flush()
        self._writer.close()
        if exception_type is None:
            storage.write_json(self._path + ".parts", self._parts)

    def _flush(self) -> None:
        if not self._held:
            return
        rows = pa.concat_tables(self._held)
        parts = pa.array([part for parts in self._held_parts for part in parts], pa.int64())
        order = pa.compute.sort_indices(
            pa.table({"part": parts, "row": range(len(parts))}), [("part", "ascending"), ("row", "ascending")]
        )
        rows, parts = rows.take(order), parts.take(order).to_numpy()
        start = 0
        while start < len(parts):
            end = int(parts.searchsorted(parts[start], side="right"))
            for batch in rows.slice(start, end - start).combine_chunks().to_batches():
                self._writer.write_batch(batch)
                self._parts.append(int(parts[start]))
            start = end
        self._held, self._held_parts, self._held_bytes = [], [], 0


def read_part(paths: Iterable[str], part: int, schema: pa.Schema) -> pa.Table:
    """All rows of a part, in the order of the files and of their rows."""
    batches = []
    for path in paths:
        parts = storage.read_json(path + ".parts")
        if part not in parts:
            continue
        with pa.memory_map(path) as file:
            reader = pa.ipc.open_file(file)
            batches += [reader.get_batch(index) for index, found in enumerate(parts) if found == part]
    return pa.Table.from_batches(batches, schema)


def write_table(path: str, table: pa.Table) -> None:
    """Writes a whole table; under its final name only once it is complete."""
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with pa.ipc.new_file(path + ".partial", table.schema, options=OPTIONS) as writer:
        writer.write_table(table)
    os.replace(path + ".partial", path)


def read_table(path: str) -> pa.Table:
    """Reads what `write_table` wrote."""
    with pa.memory_map(path) as file:
        return pa.ipc.open_file(file).read_all()
