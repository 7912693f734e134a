"""From a cache to batches: the batch of step k is a pure function of the loader's fingerprint and k.

Nothing is remembered from batch to batch: the mixture says which rows make up batch k, the plan which pieces of which
records make up a row, and the records are read in bulk and joined without a loop over them. Workers, hosts and restarts
can only change who computes a batch. No TensorFlow.

Packed rows, as an objective's `finish` gets them (int32 [rows, length]):
    <feature>      the objective's packed feature; for text `tokens`: the document's tokens and its EOS. Every token of
                   the corpus stands in exactly one row per epoch. 0 where a row is not full.
    segment_ids    1, 2, ... for each piece in the row; 0 where a row is not full.
    positions      from 0 in each piece.
    first_inputs   where a piece begins: what to feed the model to predict its first token: BOS at the beginning of a
                   document, the token before when a long document goes on. 0 elsewhere.
    source_ids     number of the source each row comes from, in `loader.info["sources"]`.
"""

import dataclasses
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import gin
import grain
import numpy as np
from absl import flags

from pretrain.core import storage
from pretrain.core.errors import check
from pretrain.core.rng import host_rng, purpose_id
from pretrain.data.cache import read_info
from pretrain.data.mixing import Merge, MixtureConfig
from pretrain.data.plan import Pieces, SourcePlan, ragged_arange
from pretrain.data.records import Feature, Shards, little_endian

PLAN_VERSION = 1
RANDOM_GROUPS = 64


@gin.configurable
@dataclass(frozen=True)
class LoaderConfig:
    """How batches are produced; changes their speed and never their content.

    Attributes:
        num_workers: processes that prepare batches; 0 uses threads of this process.
        num_threads: threads that prepare batches, in each process.
        prefetch: batches kept ready, in each process.
        mixture: shares of the sources.
    """

    num_workers: int = 0
    num_threads: int = 2
    prefetch: int = 4
    mixture: MixtureConfig = field(default_factory=MixtureConfig)

    def __post_init__(self):
        check(self.num_workers >= 0, f"LoaderConfig.num_workers = {self.num_workers} must be 0 or more")
        check(self.num_threads >= 1, f"LoaderConfig.num_threads = {self.num_threads} must be 1 or more")
        check(self.prefetch >= 1, f"LoaderConfig.prefetch = {self.prefetch} must be 1 or more")


def make_loader(
    cache_dir: os.PathLike | str,
    *,
    split: str,
    objective: Any,
    batch_size: int,
    sequence_length: int,
    seed: int,
    mixture: MixtureConfig | None = None,
    epochs: int | None = None,
    process_index: int = 0,
    process_count: int = 1,
    num_workers: int = 0,
    num_threads: int = 2,
    prefetch: int = 4,
) -> "Loader":
    """Opens a cache for one objective.

    Args:
        cache_dir: what `build_cache` wrote.
        split: "train" or "validation".
        objective: its host side is used: `features`, `prepare`, `prepared_length`, `finish`.
        batch_size: rows of the global batch.
        sequence_length: tokens of a row.
        seed: fixes the order of everything.
        mixture: shares of the sources; by size when None.
        epochs: stop after so many epochs of every source (by size), the last batch filled up with empty rows; None
            never stops.
        process_index, process_count: this host and the number of hosts; host i gets the i-th slice of rows.
        num_workers, num_threads, prefetch: as in `LoaderConfig`.

    Raises:
        UserError: no such split, an empty split, sizes that do not divide, an unknown source in the mixture.
        RunError: the cache is damaged.
    """
    info = read_info(cache_dir)
    check(batch_size > 0 and sequence_length > 0, "batch_size and sequence_length must be positive")
    check(batch_size % process_count == 0, f"a batch of {batch_size} rows cannot be shared by {process_count} hosts")
    check(len(objective.features) == 1, f"{type(objective).__name__} needs several features; text caches have one")
    table = [Feature.from_json(feature) for feature in info["features"]]
    names = [feature.name for feature in table]
    check(objective.features[0] in names, f"the cache has no feature {objective.features[0]!r}; it has {names}")
    sources = {source: splits[split] for source, splits in info["sources"].items() if split in splits}
    sources = {source: entry for source, entry in sources.items() if entry["documents"]}
    check(bool(sources), f"the cache in {cache_dir} has no documents in split {split!r}")
    return Loader(
        storage.Path(cache_dir), info, split, sources, objective, table[0], batch_size, sequence_length, seed,
        mixture or MixtureConfig(), epochs, process_index, process_count,
        LoaderConfig(num_workers, num_threads, prefetch),
    )  # fmt: skip


class Loader:
    """Batches by step. Made by `make_loader`.

    Attributes:
        fingerprint: of everything the batches depend on.
        info: counts for reports: sources, shares, rows, tokens and efficiency of an epoch.
        num_batches: batches in all; None when the loader never stops.
    """

    def __init__(
        self, cache_dir, info, split, sources, objective, feature, batch_size, sequence_length, seed, mixture, epochs,
        process_index, process_count, config,
    ):  # fmt: skip
        self._objective, self._feature, self._seed, self._config = objective, feature, seed, config
        self._batch_size, self._length = batch_size, sequence_length
        self._process_index, self._process_count = process_index, process_count
        self._bos, self._vocab_size = info["tokenizer"]["bos_id"], info["tokenizer"]["vocab_size"]
        shards = {name: Shards(cache_dir / name / split, entry["shards"]) for name, entry in sources.items()}
        plans = {
            name: SourcePlan(
                name,
                each.index.lengths[:, 0],
                each.starts,
                sequence_length,
                objective.prepared_length,
                seed,
                by=mixture.by,
            )
            for name, each in shards.items()
        }
        shares = mixture.shares({name: plan.cost for name, plan in plans.items()})
        self._shards = [shards[name] for name in shares]
        self._purposes = [purpose_id(f"source {name}") for name in shares]
        self._merge = Merge([plans[name] for name in shares], list(shares.values()))
        rows = sum(plan.rows for plan in self._merge.plans)
        tokens = sum(plan.tokens for plan in self._merge.plans)
        self._stop = None if epochs is None else epochs * rows
        self.num_batches = None if epochs is None else -(-self._stop // batch_size)
        depends_on = [info["fingerprint"], info["tokenizer"]["fingerprint"], split, _describe(objective)]
        depends_on += [batch_size, sequence_length, seed, epochs, mixture.by, shares]
        self.fingerprint = storage.fingerprint([PLAN_VERSION, *depends_on])
        self.info = {
            "fingerprint": self.fingerprint,
            "split": split,
            "sources": list(shares),
            "shares": shares,
            "rows_per_epoch": rows,
            "tokens_per_epoch": tokens,
            "steps_per_epoch": rows / batch_size,
            "packing_efficiency": tokens / (rows * sequence_length),
        }

    def batch(self, step: int) -> dict[str, np.ndarray]:
        """This host's rows of global batch `step`."""
        check(step >= 0, f"there is no batch {step}")
        check(self.num_batches is None or step < self.num_batches, f"the data ends before step {step}")
        host_rows = self._batch_size // self._process_count
        first = self._process_index * host_rows
        if not getattr(self._objective, "random_finish", True):
            packed = self._pack(step * self._batch_size + np.arange(first, first + host_rows))
            return self._objective.finish(packed, host_rng(self._seed, "finish", step))
        # Random numbers are drawn for groups of rows that do not depend on the number of hosts.
        size = self._batch_size // np.gcd(self._batch_size, RANDOM_GROUPS)
        low, high = first // size * size, -(-(first + host_rows) // size) * size
        packed = self._pack(step * self._batch_size + np.arange(low, high))
        parts = []
        for group in range(low, high, size):
            rows = {name: array[group - low : group - low + size] for name, array in packed.items()}
            parts.append(self._objective.finish(rows, host_rng(self._seed, "finish", step, group)))
        inside = slice(first - low, first - low + host_rows)
        return {name: np.concatenate([part[name] for part in parts])[inside] for name in parts[0]}

    def iterate(self, start_step: int = 0) -> Iterator[tuple[int, dict[str, np.ndarray]]]:
        """Yields (step, batch) from `start_step` on, prepared ahead by grain's threads or worker processes."""
        count = (1 << 40) if self.num_batches is None else max(0, self.num_batches - start_step)
        config = self._config
        read = grain.ReadOptions(num_threads=config.num_threads, prefetch_buffer_size=config.prefetch)
        batches = grain.MapDataset.source(_Steps(self, start_step, count)).to_iter_dataset(read)
        if config.num_workers:
            if not flags.FLAGS.is_parsed():  # grain asks absl, also when `main` is not absl's
                flags.FLAGS.mark_as_parsed()
            options = grain.multiprocessing.MultiprocessingOptions(
                config.num_workers, per_worker_buffer_size=config.prefetch
            )
            batches = batches.mp_prefetch(options)
        iterator = iter(batches)
        try:
            yield from enumerate(iterator, start_step)
        finally:
            iterator.close()

    def state(self, step: int) -> dict:
        """What a checkpoint keeps of the data position: the next step and the fingerprint it belongs to."""
        return {"step": step, "fingerprint": self.fingerprint}

    def _pack(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        """Packed rows of the merged stream; rows past the end are empty."""
        shape = (len(rows), self._length)
        packed = {
            name: np.zeros(shape, np.int32) for name in (self._feature.name, "segment_ids", "positions", "first_inputs")
        }
        source_of_row = np.full(len(rows), -1, np.int32)
        real = len(rows) if self._stop is None else int(np.clip(self._stop - rows[0], 0, len(rows)))
        if real:
            sources, source_rows = self._merge.rows(int(rows[0]), int(rows[0]) + real)
            source_of_row[:real] = sources
            for source in np.unique(sources).tolist():
                chosen = np.flatnonzero(sources == source)
                plan = self._merge.plans[source]
                for epoch, number, where, within in plan.locate(source_rows[chosen]):
                    window = plan.window(epoch, number)
                    counts = window.starts[within + 1] - window.starts[within]
                    pieces = window.pieces.take(ragged_arange(window.starts[within], counts))
                    self._fill(packed, chosen[where], counts, pieces, source, epoch)
        packed["source_ids"] = np.broadcast_to(source_of_row[:, None], shape)
        return packed

    def _fill(
        self, packed: Mapping, rows: np.ndarray, counts: np.ndarray, pieces: Pieces, source: int, epoch: int
    ) -> None:
        """Writes the pieces of one window into their rows, `counts[i]` pieces to `rows[i]`."""
        tokens, first_inputs = self._read(pieces, source, epoch)
        lengths = pieces.packed_length
        starts = np.cumsum(lengths) - lengths
        first_piece = np.cumsum(counts) - counts
        row_lengths = np.add.reduceat(lengths, first_piece)
        filled = np.arange(self._length) < row_lengths[:, None]
        segments = np.arange(1, len(lengths) + 1) - np.repeat(first_piece, counts)
        firsts = np.zeros(len(tokens), np.int32)
        firsts[starts] = first_inputs
        values = {
            self._feature.name: tokens,
            "segment_ids": np.repeat(segments.astype(np.int32), lengths),
            "positions": np.arange(len(tokens), dtype=np.int32) - np.repeat(starts.astype(np.int32), lengths),
            "first_inputs": firsts,
        }
        for name, value in values.items():
            block = np.zeros(filled.shape, np.int32)
            block[filled] = value
            packed[name][rows] = block

    def _read(self, pieces: Pieces, source: int, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """Tokens of the pieces one after another, and the token fed before the first of each."""
        shards = self._shards[source]
        records = shards.read(pieces.record)
        stored = np.frombuffer(b"".join(records), little_endian(self._feature.dtype))
        lengths = shards.index.lengths[pieces.record, 0].astype(np.int64)
        starts = np.cumsum(lengths) - lengths + pieces.offset
        first_inputs = np.where(pieces.offset > 0, stored[starts - 1], self._bos)
        if len(stored) != pieces.length.sum():
            stored = stored[ragged_arange(starts, pieces.length)]
        if not getattr(type(self._objective).prepare, "identity", False):
            stored = self._prepare(stored, pieces, source, epoch)
        return stored, first_inputs

    def _prepare(self, tokens: np.ndarray, pieces: Pieces, source: int, epoch: int) -> np.ndarray:
        """Runs the objective's `prepare` on each piece, with a generator of its own."""
        parts = []
        ends = np.cumsum(pieces.length)
        for index, end in enumerate(ends.tolist()):
            position = (self._purposes[source], epoch, int(pieces.record[index]), int(pieces.offset[index]))
            record = {self._feature.name: tokens[end - pieces.length[index] : end].astype(np.int32)}
            prepared = self._objective.prepare(record, host_rng(self._seed, "prepare", *position))
            part = prepared[self._feature.name]
            check(
                len(part) == pieces.packed_length[index],
                f"{type(self._objective).__name__}.prepare made {len(part)} tokens of {pieces.length[index]}, "
                f"prepared_length says {pieces.packed_length[index]}",
            )
            parts.append(part)
        return np.concatenate(parts)


def _describe(objective: Any) -> list:
    """What identifies an objective: its class and the values of its fields."""
    fields = dataclasses.asdict(objective) if dataclasses.is_dataclass(objective) else {}
    return [type(objective).__qualname__, {name: repr(value) for name, value in fields.items()}]


class _Steps:
    """The loader as a random-access source of `count` batches from `start`, as grain wants it."""

    def __init__(self, loader: Loader, start: int, count: int):
        self._loader, self._start, self._count = loader, start, count

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        return self._loader.batch(self._start + int(index))
