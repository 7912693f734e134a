"""From a cache to batches: the batch of step k is a pure function of the loader's fingerprint and k.

Nothing is remembered from batch to batch. The stream says which rows of which sources make up batch k, the plan which
pieces of which records make up a row, and the records are read in bulk. Workers, hosts and restarts can only change who
computes a batch. Batches are made a block at a time (what one bulk read is good for) and handed out one by one.
No TensorFlow.
"""

import math
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
from pretrain.core.fields import check_fields
from pretrain.core.rng import host_rng
from pretrain.data.assembly import Arrays, Assembler, Contents, contents
from pretrain.data.lengths import describe
from pretrain.data.mixing import MixtureConfig
from pretrain.data.plan import PLAN_VERSION
from pretrain.data.position import Position
from pretrain.data.recent import Recent
from pretrain.data.sources import Sources, open_sources
from pretrain.data.stream import Stream

BLOCK_BYTES = 2 << 20  # of one packed feature, read and laid out at once
# An objective's `finish` draws random numbers for groups of rows: at most so many in a batch, each of at least so many
# rows where the batch has them, since an objective may look across rows and long arrays are faster.
RANDOM_GROUPS, GROUP_ROWS = 64, 16


@gin.configurable
@dataclass(frozen=True)
class LoaderConfig:
    """How batches are produced. All but the mixture change their speed and never their content.

    Attributes:
        num_workers: processes that prepare batches; 0 uses threads of this process.
        num_threads: threads that prepare batches, in each process.
        prefetch: blocks of batches (a few MB each) kept ready, in each process.
        prefetch_to_device: batches put on the devices before the step that uses them.
        mixture: shares of the sources.
    """

    num_workers: int = 0
    num_threads: int = 2
    prefetch: int = 4
    prefetch_to_device: int = 2
    mixture: MixtureConfig = field(default_factory=MixtureConfig)

    def __post_init__(self):
        check_fields(self)
        for name, least in (("num_workers", 0), ("num_threads", 1), ("prefetch", 1), ("prefetch_to_device", 0)):
            value = getattr(self, name)
            check(value >= least, f"LoaderConfig.{name} = {value} must be {least} or more")


def make_loader(
    cache_dir: os.PathLike | str,
    *,
    split: str,
    objective: Any,
    batch_size: int,
    sequence_length: int | Mapping[str, int],
    seed: int,
    mixture: MixtureConfig | None = None,
    epochs: int | None = None,
    total_steps: int | None = None,
    resume: Mapping | None = None,
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
        objective: its host side is used: `features`, `whole_records`, `row_bytes`, `prepare`, `prepared_length`,
            `finish`, `random_finish`.
        batch_size: rows of the global batch.
        sequence_length: elements of a row; by packed feature where they differ.
        seed: fixes the order of everything.
        mixture: shares of the sources; `MixtureConfig()` when None.
        epochs: in place of `mixture`: end after so many epochs of every source; empty rows fill up the last batch.
        total_steps: of the whole training; a mixture with a schedule needs it, and data that ends before is refused.
        resume: the `state` of an earlier loader; only the mixture may differ, and does so from that step on.
        process_index, process_count: this host and the number of hosts; host i gets the i-th slice of rows.
        num_workers, num_threads, prefetch: as in `LoaderConfig`.

    Raises:
        UserError: no such split, feature or source; sizes that do not divide; a state of other data.
        RunError: the cache is damaged, or holds another tokenizer's tokens.
    """
    check(batch_size > 0, f"batch_size = {batch_size} must be positive")
    check(batch_size % process_count == 0, f"a batch of {batch_size} rows cannot be shared by {process_count} hosts")
    check(mixture is None or epochs is None, "give a mixture or a number of epochs, not both")
    config = LoaderConfig(num_workers, num_threads, prefetch)
    sources = open_sources(cache_dir, split, objective, sequence_length, seed)
    if epochs is not None:
        mixture = MixtureConfig.whole_epochs(dict.fromkeys(sources.plans, epochs))
    mixture = mixture or MixtureConfig()
    about = [PLAN_VERSION, sources.info["fingerprint"], split, describe(objective), sources.lengths.capacity]
    base = storage.fingerprint([*about, batch_size, seed, mixture.stop, mixture.epochs])
    costs = {name: plan.cost for name, plan in sources.plans.items()}
    phases = mixture.phases(costs, total_steps and total_steps * batch_size, sources.info.get("rates"))
    position = Position(base, phases, phases).resumed(resume, batch_size)
    stream = Stream(sources.plans, position.phases)
    rows = _Rows(batch_size, process_index, process_count, stream.end(mixture.stop, mixture.epochs or {}))
    check(
        total_steps is None or rows.batches is None or rows.batches >= total_steps,
        f"the data ends after {rows.batches} steps (MixtureConfig.stop = {mixture.stop!r}) and the training takes "
        f"{total_steps}: make it shorter, or read more epochs",
    )
    return Loader(sources, stream, objective, rows, position, seed, config)


@dataclass(frozen=True)
class _Rows:
    """Which rows of the stream this host's part of a global batch is, and where the stream ends."""

    batch_size: int
    process_index: int
    process_count: int
    end: int | None

    @property
    def count(self) -> int:
        return self.batch_size // self.process_count

    @property
    def first(self) -> int:
        return self.process_index * self.count

    @property
    def batches(self) -> int | None:
        return None if self.end is None else -(-self.end // self.batch_size)


def _row_bytes(objective: Any, sources: Sources) -> int:
    """Bytes of the largest packed feature of a row; of all that it makes, where an objective says so itself."""
    items = {feature.name: feature.item_bytes for feature in sources.table}
    sizes = zip(sources.lengths.packed, sources.lengths.capacity, strict=True)
    return getattr(objective, "row_bytes", None) or max(size * max(4, items.get(name, 4)) for name, size in sizes)


def _summary(sources: Sources, stream: Stream, position: Position, batch_size: int) -> dict:
    """Counts for reports, of one epoch of every source that is read."""
    rows = sum(plan.rows for plan in stream.plans)
    tokens = sum(plan.cost["tokens"] for plan in stream.plans)
    return {
        "fingerprint": position.fingerprint,
        "sources": stream.sources,
        "unused_sources": sorted(set(sources.plans) - set(stream.sources)),
        "phases": [phase.to_json() for phase in position.phases],
        "rows_per_epoch": rows,
        "tokens_per_epoch": tokens,
        "steps_per_epoch": rows / batch_size,
        "packing_efficiency": tokens / (rows * sum(sources.lengths.capacity)),
        "empty_records": sum(plan.empty for plan in stream.plans),
        "split_records": sum(plan.split for plan in stream.plans),
    }


class Loader:
    """Batches by step. Made by `make_loader`.

    Attributes:
        fingerprint: of everything the batches depend on.
        info: for reports: sources, phases of the mixture, and rows, tokens and packing efficiency of an epoch.
        num_batches: batches in all; None when the loader never ends.
        batch_size: rows of the global batch.
    """

    def __init__(
        self,
        sources: Sources,
        stream: Stream,
        objective: Any,
        rows: _Rows,
        position: Position,
        seed: int,
        config: LoaderConfig,
    ):
        unknown = sorted((getattr(objective, "source_weights", None) or {}).keys() - sources.info["sources"].keys())
        check(not unknown, f"source_weights: the cache has no source {', '.join(unknown)}")
        self._stream, self._objective, self._seed, self._config = stream, objective, seed, config
        self._rows, self._position = rows, position
        self._assembler = Assembler(
            objective,
            sources.lengths,
            sources.table,
            [sources.shards[name] for name in stream.sources],
            stream.sources,
            bos_id=sources.tokenizer.get("bos_id", 0),
            vocab_size=sources.tokenizer.get("vocab_size"),
            seed=seed,
        )
        self._span = max(1, BLOCK_BYTES // (rows.count * _row_bytes(objective, sources)))  # batches of a block
        self._blocks = Recent(2)
        self.num_batches, self.batch_size = rows.batches, rows.batch_size
        self.fingerprint = position.fingerprint
        self.info = _summary(sources, stream, position, rows.batch_size)

    def batch(self, step: int) -> Arrays:
        """This host's rows of global batch `step`."""
        check(step >= 0, f"there is no batch {step}")
        check(self.num_batches is None or step < self.num_batches, f"the data ends before step {step}")
        number, place = divmod(step, self._span)
        block = self._blocks.get(number, lambda: self.block(number))
        return {name: array[place] for name, array in block.items()}

    def iterate(self, start_step: int = 0) -> Iterator[tuple[int, Arrays]]:
        """Yields (step, batch) from `start_step` on, prepared ahead by grain's threads or worker processes."""
        config, first = self._config, start_step // self._span
        end = 1 << 40 if self.num_batches is None else -(-self.num_batches // self._span)
        if first >= end:
            return
        read = grain.ReadOptions(num_threads=config.num_threads, prefetch_buffer_size=config.prefetch)
        blocks = grain.MapDataset.source(_Blocks(self, first, end - first)).to_iter_dataset(read)
        if config.num_workers:
            if not flags.FLAGS.is_parsed():  # grain asks absl, also when `main` is not absl's
                flags.FLAGS.mark_as_parsed()
            blocks = blocks.mp_prefetch(
                grain.multiprocessing.MultiprocessingOptions(config.num_workers, config.prefetch)
            )
        iterator = iter(blocks)
        try:
            for number, block in enumerate(iterator, first):
                for place in range(len(next(iter(block.values())))):
                    if (step := number * self._span + place) >= start_step:
                        yield step, {name: array[place] for name, array in block.items()}
        finally:
            iterator.close()

    def seek(self, step: int) -> Iterator[tuple[int, Arrays]]:
        """The same as `iterate(step)`: going to any step costs no more than making one block."""
        return self.iterate(step)

    def state(self, step: int) -> dict:
        """What a checkpoint keeps of the data position before `step`: a few hundred bytes of JSON, for `resume`."""
        return self._position.state(step)

    def contents(self, step: int, *, all_hosts: bool = False) -> Contents:
        """What stands in this host's rows of batch `step`, or in all rows: sources, records, pieces."""
        first, count = (0, self._rows.batch_size) if all_hosts else (self._rows.first, self._rows.count)
        rows = step * self._rows.batch_size + first + np.arange(count)
        return contents(self._stream, rows, self._rows.end)

    def documents(self, contents: Contents) -> np.ndarray:
        """The document each piece of `contents` comes from, int64: file number << 32 | row, for a curated corpus."""
        return self._assembler.documents(contents)

    def block(self, number: int) -> Arrays:
        """This host's rows of batches `number * span` and on, [batches, rows, ...]."""
        first = number * self._span
        steps = np.arange(first, first + self._span)
        if self.num_batches is not None:
            steps = steps[steps < self.num_batches]
        mine, size = self._rows, len(steps) * self._rows.count
        low, high = mine.first, mine.first + mine.count
        if getattr(self._objective, "random_finish", True):
            size = group_rows(mine.batch_size)  # whatever the number of hosts
            low, high = low // size * size, -(-high // size) * size
        rows = (steps[:, None] * mine.batch_size + np.arange(low, high)).reshape(-1)
        packed = self._assembler.rows(contents(self._stream, rows, mine.end))
        if getattr(self._objective, "reads_steps", False):
            packed["steps"] = np.broadcast_to((rows // mine.batch_size)[:, None], packed["source_ids"].shape)
        parts = []
        for start in range(0, len(rows), size):
            part = {name: array[start : start + size] for name, array in packed.items()}
            rng = host_rng(self._seed, "finish", *divmod(int(rows[start]), mine.batch_size))
            parts.append(self._objective.finish(part, rng))
        batch = parts[0]
        if len(parts) > 1:
            batch = {name: np.concatenate([part[name] for part in parts]) for name in batch}
        inside = slice(mine.first - low, mine.first - low + mine.count)
        return {
            name: array.reshape(len(steps), high - low, *array.shape[1:])[:, inside] for name, array in batch.items()
        }


def group_rows(batch_size: int) -> int:
    """Rows of a global batch whose random numbers are drawn together; divides the batch."""
    groups = math.gcd(batch_size, RANDOM_GROUPS)
    while groups > 1 and batch_size // groups < GROUP_ROWS:
        groups //= 2
    return batch_size // groups


class _Blocks:
    """The loader's blocks from `start` on as a random-access source, as grain wants it."""

    def __init__(self, loader: Loader, start: int, count: int):
        self._loader, self._start, self._count = loader, start, count

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> Arrays:
        return self._loader.block(self._start + int(index))
