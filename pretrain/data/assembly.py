"""From pieces of records to packed rows: bulk reads, one join, no loop over records.

Axes: R rows, L elements of a row. Packed rows, as an objective's `finish` gets them, for one packed feature:
    <feature>      [R, L, ...] the feature, text as int32; for text `tokens`: a document's tokens and its EOS, every one
                   of the corpus in exactly one row per epoch. 0 where a row is not full.
    segment_ids    int32 [R, L], 1, 2, ... for each piece in the row; 0 where the row is not full.
    positions      int32 [R, L], from 0 in each piece.
    first_inputs   int32 [R, L], for text: at the start of a piece, what to feed the model to predict its first token:
                   BOS at the start of a document, the token before where a long document goes on. 0 elsewhere.
    source_ids     int32 [R, L], number of the source each row comes from; -1 for rows past the end.
    source_weights float32 [R, L], where the objective has weights of that name for sources.
    steps          int64 [R, L], the step each row is for, where the objective has `reads_steps` (the loader adds it).
With several packed features, `<feature>_segment_ids` and `<feature>_positions` belong to each.
"""

import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pretrain.core.errors import RunError
from pretrain.core.rng import host_rng, purpose_id
from pretrain.data.lengths import Lengths
from pretrain.data.plan import Pieces, ragged_arange
from pretrain.data.recent import Recent
from pretrain.data.records import Feature, Shards, little_endian
from pretrain.data.stream import Stream

Arrays = dict[str, np.ndarray]
LONG_RECORD = 1 << 16  # bytes; the pieces of a longer record lie in many batches, so it is kept once it was read
LONG_RECORDS = 64 << 20  # bytes of such records that are kept


@dataclass(frozen=True)
class Contents:
    """What stands in R rows, in the order in which it stands there.

    Attributes:
        pieces: the pieces.
        row: int64 [pieces], rising.
        source, epoch: int64 [pieces].
        row_source: int32 [R], -1 for rows past the end of the stream.
    """

    pieces: Pieces
    row: np.ndarray
    source: np.ndarray
    epoch: np.ndarray
    row_source: np.ndarray


def contents(stream: Stream, rows: np.ndarray, end: int | None) -> Contents:
    """What stands in `rows` (int64 [R], rising) of the stream; rows from `end` on are empty."""
    real = rows if end is None else rows[rows < end]
    row_source = np.full(len(rows), -1, np.int32)
    found = []
    if real.size:
        sources, source_rows = (each[real - real[0]] for each in stream.rows(int(real[0]), int(real[-1]) + 1))
        row_source[: len(real)] = sources
        for source in np.unique(sources).tolist():
            mine = np.flatnonzero(sources == source)
            for epoch, number, where, within in stream.plans[source].locate(source_rows[mine]):
                window = stream.plans[source].window(epoch, number)
                counts = window.starts[within + 1] - window.starts[within]
                which = ragged_arange(window.starts[within], counts)
                labels = np.broadcast_to(np.array([[source], [epoch]]), (2, len(which)))
                found.append((window.pieces.take(which), np.repeat(mine[where], counts), labels))
    if not found:
        none = np.zeros(0, np.int64)
        return Contents(Pieces(none, none, none[:, None], none[:, None]), none, none, none, row_source)
    pieces = Pieces(*(np.concatenate([getattr(p, name) for p, _, _ in found]) for name in Pieces.__dataclass_fields__))
    row = np.concatenate([row for _, row, _ in found])
    source, epoch = np.concatenate([labels for _, _, labels in found], axis=1)
    order = np.argsort(row, kind="stable")
    return Contents(pieces.take(order), row[order], source[order], epoch[order], row_source)


class Assembler:
    """Reads pieces and lays them out in rows.

    Args:
        objective: its `prepare` is run on each piece, unless it is marked as the identity.
        lengths: packed features and the capacity of a row.
        table: the cache's features, in the order in which they lie in a record.
        shards: the records of each source, by source number.
        sources: their names.
        bos_id, vocab_size: of the tokenizer; `vocab_size` None for a cache without text.
        seed: of the generators that `prepare` gets.
    """

    def __init__(
        self,
        objective: Any,
        lengths: Lengths,
        table: Sequence[Feature],
        shards: Sequence[Shards],
        sources: Sequence[str],
        *,
        bos_id: int,
        vocab_size: int | None,
        seed: int,
    ):
        self._objective, self._lengths, self._table, self._shards = objective, lengths, list(table), list(shards)
        self._purposes = [purpose_id(f"source {source}") for source in sources]
        weights = getattr(objective, "source_weights", None)  # the last one is of rows past the end
        self._weights = np.array([*(weights.get(source, 1) for source in sources), 1], np.float32) if weights else None
        self._bos, self._vocab_size, self._seed = bos_id, vocab_size, seed
        self._identity = getattr(objective.prepare, "identity", False)
        self._long = Recent(LONG_RECORDS, len)
        self._columns = {feature.name: column for column, feature in enumerate(self._table)}

    def rows(self, contents: Contents) -> Arrays:
        """The packed rows that hold `contents`."""
        records = self._read(contents)
        read = {name: self._feature(name, contents, records) for name in self._lengths.features}
        packed = read if self._identity else self._prepare(read, contents)
        rows: Arrays = {}
        for column, name in enumerate(self._lengths.packed):
            prefix = "" if len(self._lengths.packed) == 1 else f"{name}_"
            rows |= self._lay_out(name, prefix, packed[name], contents, column)
        if len(self._lengths.packed) == 1 and packed[self._lengths.packed[0]].ndim == 1:
            rows["first_inputs"] = self._first_inputs(contents, records, rows["positions"], rows["segment_ids"])
        shape = (len(contents.row_source), self._lengths.capacity[0])
        rows["source_ids"] = np.broadcast_to(contents.row_source[:, None], shape)
        if self._weights is not None:
            rows["source_weights"] = np.broadcast_to(self._weights[contents.row_source][:, None], shape)
        return rows

    def documents(self, contents: Contents) -> np.ndarray:
        """The document each piece comes from, as the cache's index numbers them, int64 [pieces]."""
        found = np.zeros(len(contents.row), np.int64)
        for source in np.unique(contents.source).tolist():
            mine = contents.source == source
            found[mine] = self._shards[source].index.documents[contents.pieces.record[mine]]
        return found

    def _read(self, contents: Contents) -> list[bytes]:
        """The record of each piece; a record is read once however many of its pieces are asked for."""
        read: list[bytes] = []
        place = np.empty(len(contents.row), np.int64)
        for source in np.unique(contents.source).tolist():
            mine = np.flatnonzero(contents.source == source)
            distinct, inverse = np.unique(contents.pieces.record[mine], return_inverse=True)
            place[mine] = inverse + len(read)
            read += self._records(source, distinct)
        return list(map(read.__getitem__, place.tolist()))

    def _records(self, source: int, records: np.ndarray) -> list[bytes]:
        """The bytes of `records` (int64 [n], rising) of a source; long ones from memory where they were read lately."""
        shards = self._shards[source]
        sizes = shards.index.lengths[records].astype(np.int64) @ [feature.item_bytes for feature in self._table]
        long = sizes > LONG_RECORD
        if not long.any():
            return shards.read(records)
        short = iter(shards.read(records[~long]))
        return [
            self._long.get((source, record), lambda one=record: shards.read(np.array([one]))[0])
            if kept
            else next(short)
            for record, kept in zip(records.tolist(), long.tolist(), strict=True)
        ]

    def _feature(self, name: str, contents: Contents, records: list[bytes]) -> np.ndarray:
        """One feature of all pieces, one after another: [elements, ...], text as int32."""
        feature = self._table[self._columns[name]]
        start = self._start(name, contents)
        end = start + contents.pieces.length[:, self._lengths.features.index(name)] * feature.item_bytes
        # Slicing and joining without a Python loop; a slice that is the whole record is not even copied.
        data = b"".join(map(operator.getitem, records, map(slice, start.tolist(), end.tolist())))
        array = np.frombuffer(data, little_endian(feature.dtype)).reshape(-1, *feature.shape)
        if not feature.is_text:
            return array
        if self._vocab_size is not None and array.size and array.max() >= self._vocab_size:
            raise RunError(
                f"the cache holds token id {array.max()}, the vocabulary ends at {self._vocab_size}; rebuild it"
            )
        return array

    def _start(self, name: str, contents: Contents) -> np.ndarray:
        """Byte of its record at which each piece of a feature begins, int64 [pieces]."""
        column = self._columns[name]
        start = contents.pieces.offset * self._table[column].item_bytes
        if column:
            for source in np.unique(contents.source).tolist():
                mine = contents.source == source
                stored = self._shards[source].index.lengths[contents.pieces.record[mine], :column].astype(np.int64)
                start[mine] += stored @ [feature.item_bytes for feature in self._table[:column]]
        return start

    def _prepare(self, read: Arrays, contents: Contents) -> Arrays:
        """Runs the objective's `prepare` on each piece, with a generator of its own."""
        ends = np.cumsum(contents.pieces.length, axis=0)
        parts: dict[str, list[np.ndarray]] = {name: [] for name in self._lengths.packed}
        for index, (last, length) in enumerate(zip(ends.tolist(), contents.pieces.length.tolist(), strict=True)):
            record = {
                name: _native(read[name][end - count : end])
                for name, end, count in zip(self._lengths.features, last, length, strict=True)
            }
            key = (contents.epoch[index], contents.pieces.record[index], contents.pieces.offset[index])
            rng = host_rng(self._seed, "prepare", self._purposes[contents.source[index]], *map(int, key))
            prepared = self._objective.prepare(record, rng)
            for name, planned in zip(self._lengths.packed, contents.pieces.packed[index].tolist(), strict=True):
                if len(prepared[name]) != planned:
                    raise RunError(
                        f"{type(self._objective).__name__}.prepare made {len(prepared[name])} {name} of a record of "
                        f"length {length}, its prepared_length says {planned}"
                    )
                parts[name].append(prepared[name])
        empty = np.zeros(0, np.int32)
        return {name: np.concatenate(each) if each else empty for name, each in parts.items()}

    def _lay_out(self, name: str, prefix: str, values: np.ndarray, contents: Contents, column: int) -> Arrays:
        """One packed feature in rows, with segment ids and positions."""
        lengths, shape = contents.pieces.packed[:, column], (len(contents.row_source), self._lengths.capacity[column])
        row_lengths = np.bincount(contents.row, lengths, shape[0]).astype(np.int64)
        full_RL = np.arange(shape[1]) < row_lengths[:, None]
        pieces_of_row = np.bincount(contents.row, minlength=shape[0])
        segments = ragged_arange(np.ones(shape[0], np.int64), pieces_of_row).astype(np.int32)
        starts = (np.cumsum(lengths) - lengths).astype(np.int32)
        positions = np.arange(len(values), dtype=np.int32) - np.repeat(starts, lengths)
        wide = values.dtype.kind in "iu" and values.itemsize > 1
        rows = np.zeros((*shape, *values.shape[1:]), np.int32 if wide else values.dtype)
        segment_ids, positions_RL = np.zeros(shape, np.int32), np.zeros(shape, np.int32)
        rows[full_RL], segment_ids[full_RL], positions_RL[full_RL] = values, np.repeat(segments, lengths), positions
        return {name: rows, f"{prefix}segment_ids": segment_ids, f"{prefix}positions": positions_RL}

    def _first_inputs(
        self, contents: Contents, records: list[bytes], positions: np.ndarray, segment_ids: np.ndarray
    ) -> np.ndarray:
        feature = self._table[self._columns[self._lengths.features[0]]]
        first_inputs = np.zeros(positions.shape, np.int32)
        values = np.full(len(contents.row), self._bos, np.int32)
        later = np.flatnonzero(contents.pieces.offset) if feature.is_text else np.zeros(0, np.int64)
        if later.size:
            start = self._start(feature.name, contents)[later]
            before = map(slice, (start - feature.item_bytes).tolist(), start.tolist())
            data = b"".join(map(operator.getitem, map(records.__getitem__, later.tolist()), before))
            values[later] = np.frombuffer(data, little_endian(feature.dtype))
        first_inputs[(positions == 0) & (segment_ids > 0)] = values
        return first_inputs


def _native(array: np.ndarray) -> np.ndarray:
    """Text as int32, everything else as stored."""
    return array.astype(np.int32) if array.dtype in (np.uint16, np.uint32) else array
