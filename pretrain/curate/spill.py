"""Files between steps: Arrow IPC files whose record batches are addressed by part (a shard or a key partition).

One file per writer, however many parts: the list of which batch belongs to which part is kept beside it.
"""

import os
from collections.abc import Iterable

import numpy as np
import pyarrow as pa

from pretrain.core import storage

BUFFER_BYTES = 64 << 20  # of rows held back until they are written part by part


class PartWriter:
    """Writes rows to parts; a context manager. Rows of a part keep their order.

    Args:
        path: the file; PATH.parts is written beside it, last.
        schema: of the rows.
        codec: "lz4", or None where the page cache will hold it all.
    """

    def __init__(self, path: str, schema: pa.Schema, codec: str | None = "lz4"):
        self._path, self._schema, self._codec = path, schema, codec
        self._held: list[pa.Table] = []
        self._held_parts: list[np.ndarray] = []
        self._held_bytes = 0
        self._parts: list[int] = []  # of each batch written

    def __enter__(self) -> "PartWriter":
        os.makedirs(os.path.dirname(self._path), exist_ok=True)
        self._writer = pa.ipc.new_file(_temporary(self._path), self._schema, options=_options(self._codec))
        return self

    def write(self, rows: pa.Table, parts: np.ndarray) -> None:
        """Adds rows; `parts` (integers) names the part of each."""
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
            os.replace(_temporary(self._path), self._path)
            storage.write_json(self._path + ".parts", self._parts)

    def _flush(self) -> None:
        if not self._held:
            return
        rows, parts = pa.concat_tables(self._held), np.concatenate(self._held_parts)
        order = np.argsort(parts, kind="stable")
        rows, parts = rows.take(pa.array(order)), parts[order]
        ends = [*(np.flatnonzero(np.diff(parts)) + 1), len(parts)] if len(parts) else []
        for start, end in zip([0, *ends], ends, strict=False):
            for batch in rows.slice(start, end - start).combine_chunks().to_batches():
                self._writer.write_batch(batch)
                self._parts.append(int(parts[start]))
        self._held, self._held_parts, self._held_bytes = [], [], 0


def read_part(paths: Iterable[str], part: int, schema: pa.Schema | None = None) -> pa.Table:
    """All rows of a part, in the order of the files and of their rows.

    Args:
        paths: what `PartWriter` wrote, all of one schema.
        part: which part.
        schema: theirs; None takes it from the first of them.
    """
    batches = []
    for path in paths:
        parts = storage.read_json(path + ".parts")
        if part not in parts and schema is not None:
            continue
        with pa.memory_map(path) as file:
            reader = pa.ipc.open_file(file)
            schema = schema or reader.schema
            batches += [reader.get_batch(index) for index, found in enumerate(parts) if found == part]
    return pa.Table.from_batches(batches, schema)


def write_table(path: str, table: pa.Table, codec: str | None = "lz4") -> None:
    """Writes a whole table; under its final name only once it is complete."""
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with pa.ipc.new_file(_temporary(path), table.schema, options=_options(codec)) as writer:
        writer.write_table(table)
    os.replace(_temporary(path), path)


def read_table(path: str) -> pa.Table:
    """Reads what `write_table` wrote."""
    with pa.memory_map(path) as file:
        return pa.ipc.open_file(file).read_all()


def _temporary(path: str) -> str:
    """Its own for each process: a worker of a killed run may live a moment longer than the run."""
    return f"{path}.{os.getpid()}"


def _options(codec: str | None) -> pa.ipc.IpcWriteOptions:
    return pa.ipc.IpcWriteOptions(compression=codec)
