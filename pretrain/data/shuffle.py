"""One random order for all records, in two passes and bounded memory.

Each unit of input is read once and its records dealt at random to the shards of their source and split (a spill file);
then each shard gathers its share, permutes it and is written. Random dealing and then a random permutation of each
shard make every order equally likely. Every file is written whole and left alone when it exists, so a killed run goes
on where it was. Both passes are plain functions of picklable arguments, for local processes and for Beam.
"""

import contextlib
import io
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from pretrain.core import storage
from pretrain.core.rng import host_rng, purpose_id
from pretrain.data.corpus import Examples
from pretrain.data.records import Feature, write_shard

Shards = Mapping[tuple[str, str], int]  # (source, split) -> number of shards
_COLUMNS = ("numbers", "text_bytes", "lengths")


def spill(source: Any, unit: int, shards: Shards, seed: int, folder: str) -> None:
    """First pass: deals the records of one unit of input to shards.

    Args:
        source: has `examples(unit)`, which yields `Examples`, and `features`.
        unit: number of the unit.
        shards: how many shards each source and split has.
        seed: fixes the dealing.
        folder: where spill files go.
    """
    target = storage.Path(folder) / f"{unit:05d}.npz"
    if target.exists():
        return
    rng = host_rng(seed, "cache shards", unit)
    dealt: dict[str, list] = defaultdict(list)
    empty: dict[str, int] = defaultdict(int)
    item_bytes = [feature.item_bytes for feature in source.features]
    for examples in source.examples(unit):
        key = f"{examples.source}/{examples.split}"
        empty[key] += examples.empty
        shard = rng.integers(shards[examples.source, examples.split], size=len(examples.numbers))
        for number in np.unique(shard).tolist():
            dealt[f"{key}/{number}"].append(_part(examples, np.flatnonzero(shard == number), item_bytes))
    arrays = {f"{key}/empty": np.array(count) for key, count in empty.items()}
    for key, parts in dealt.items():
        for name, columns in zip((*_COLUMNS, "data"), zip(*parts, strict=True), strict=True):
            arrays[f"{key}/{name}"] = np.concatenate(columns)
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    storage.write_bytes(target, buffer.getvalue())


def _part(examples: Examples, which: np.ndarray, item_bytes: Sequence[int]) -> list[np.ndarray]:
    """The columns and the bytes of some of the examples."""
    ends = np.cumsum(examples.lengths.astype(np.int64) @ item_bytes)
    starts = np.concatenate([[0], ends])
    view = memoryview(examples.data)
    data = b"".join(view[starts[index] : ends[index]] for index in which.tolist())
    return [*(getattr(examples, name)[which] for name in _COLUMNS), np.frombuffer(data, np.uint8)]


def write(
    cache_dir: str, key: tuple[str, str], shard: int, count: int, features: list[Feature], seed: int, folder: str
) -> dict:
    """Second pass: gathers, permutes and writes one shard; returns its entry for `complete.json`."""
    source, split = key
    done = storage.Path(folder) / f"{source}.{split}.{shard:05d}.json"
    if done.exists():
        return storage.read_json(done)
    numbers, text_bytes, lengths, data = _gather(folder, f"{source}/{split}/{shard}", len(features))
    ends = np.cumsum(lengths.astype(np.int64) @ [feature.item_bytes for feature in features])
    starts = np.concatenate([[0], ends])
    order = host_rng(seed, "cache order", purpose_id(f"{source}/{split}"), shard).permutation(len(lengths))
    records = (data[starts[index] : ends[index]].tobytes() for index in order)
    path = storage.Path(cache_dir) / source / split / f"{split}-{shard:05d}-of-{count:05d}.array_record"
    entry = write_shard(path, records, lengths[order], numbers[order], text_bytes[order])
    entry |= {"tokens": int(lengths.sum(dtype=np.int64)), "bytes": int(text_bytes.sum(dtype=np.int64))}
    storage.write_json(done, entry)
    return entry


def _gather(folder: str, prefix: str, features: int) -> list[np.ndarray]:
    parts = [
        [np.zeros(0, np.uint64), np.zeros(0, np.uint32), np.zeros((0, features), np.uint32), np.zeros(0, np.uint8)]
    ]
    for file in spill_files(folder):
        with file.open("rb") as stream, np.load(stream) as arrays:
            if f"{prefix}/data" in arrays:
                parts.append([arrays[f"{prefix}/{name}"] for name in (*_COLUMNS, "data")])
    return [np.concatenate(columns) for columns in zip(*parts, strict=True)]


def empty_examples(folder: str) -> dict[tuple[str, str], int]:
    """How many examples of each source and split held nothing."""
    counts: dict[tuple[str, str], int] = defaultdict(int)
    for file in spill_files(folder):
        with file.open("rb") as stream, np.load(stream) as arrays:
            for name in arrays.files:
                source, split, what = name.split("/")[:3]
                if what == "empty":
                    counts[source, split] += int(arrays[name])
    return counts


def spill_files(folder: str) -> list[storage.Path]:
    return sorted((path for path in storage.Path(folder).iterdir() if path.name.endswith(".npz")), key=str)


def remove(folder: str) -> None:
    """Removes what only a restart needs."""
    with contextlib.suppress(OSError):
        storage.Path(folder).rmtree()
