"""Opens a cache for one objective: checks that it is whole, and plans the rows of each of its sources."""

import contextlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from pretrain.core import storage
from pretrain.core.errors import RunError, check
from pretrain.data import tokenizers
from pretrain.data.cache import read_info
from pretrain.data.lengths import Lengths, describe
from pretrain.data.plan import PLAN_VERSION, SourcePlan
from pretrain.data.records import Feature, Shards

KEPT_WINDOWS = 64  # a source with more windows keeps their row counts in the cache's `plans/`


@dataclass(frozen=True)
class Sources:
    """The non-empty sources of one split of a cache, planned for one objective.

    Attributes:
        info: the cache's `complete.json`.
        table: its features, in the order in which they lie in a record.
        lengths: what the objective makes of lengths.
        shards: records, by source.
        plans: rows, by source.
    """

    info: Mapping
    table: list[Feature]
    lengths: Lengths
    shards: dict[str, Shards]
    plans: dict[str, SourcePlan]

    @property
    def tokenizer(self) -> Mapping:
        """Special ids and vocabulary size; empty for a cache without text."""
        return self.info.get("tokenizer") or {}


def open_sources(
    cache_dir: os.PathLike | str, split: str, objective: Any, sequence_length: int | Mapping[str, int], seed: int
) -> Sources:
    """Opens and plans every source of `split` that holds anything.

    Raises:
        UserError: no such split, or the cache lacks a feature of the objective.
        RunError: the cache is damaged, or holds another tokenizer's tokens.
    """
    cache, info = storage.Path(cache_dir), read_info(cache_dir)
    _check_tokenizer(cache, info)
    table = [Feature.from_json(feature) for feature in info["features"]]
    names = [feature.name for feature in table]
    lengths = Lengths(objective, sequence_length)
    missing = [name for name in lengths.features if name not in names]
    check(not missing, f"the cache has no feature {', '.join(missing)}; it has {', '.join(names)}")
    columns = [names.index(name) for name in lengths.features]
    shards = _open_shards(cache, info, split)
    plans = {}
    for source, each in shards.items():
        about = [PLAN_VERSION, info["fingerprint"], split, source, describe(objective), lengths.capacity]
        kept = cache / "plans" / f"{storage.fingerprint(about)}.npy"
        plans[source] = _plan(source, each, columns, lengths, seed, kept)
    return Sources(info, table, lengths, shards, plans)


def _plan(
    source: str, shards: Shards, columns: list[int], lengths: Lengths, seed: int, kept: storage.Path
) -> SourcePlan:
    """The plan of one source; for a large one, how many rows each window fills is counted once and kept."""
    counted = np.frombuffer(kept.read_bytes(), "<i8") if kept.exists() else None
    plan = SourcePlan(source, shards.index.lengths[:, columns], shards.starts, lengths, seed, counted=counted)
    if counted is None and len(plan) > KEPT_WINDOWS:
        with contextlib.suppress(OSError):  # a cache that cannot be written to is counted anew each time
            storage.write_bytes(kept, plan.window_rows.astype("<i8").tobytes())
    return plan


def _check_tokenizer(cache: storage.Path, info: Mapping) -> None:
    """Refuses a cache whose `tokenizer/` is not the one that made its tokens."""
    if info.get("tokenizer"):
        found = storage.read_json(cache / "tokenizer" / tokenizers.INFO_FILE, dict[str, Any]).get("fingerprint")
        if found != info["tokenizer"]["fingerprint"]:
            raise RunError(
                f"{cache}: the tokens were made by tokenizer {info['tokenizer']['fingerprint']}, the folder holds "
                f"{found}; caches of different tokenizers cannot be mixed: delete it and run `pretrain cache` again"
            )


def _open_shards(cache: storage.Path, info: Mapping, split: str) -> dict[str, Shards]:
    """The non-empty sources of a split, by name."""
    entries = {name: splits[split] for name, splits in sorted(info["sources"].items()) if split in splits}
    shards = {name: Shards(storage.inside(cache, name) / split, entry["shards"]) for name, entry in entries.items()}
    shards = {name: each for name, each in shards.items() if each.index.lengths.any()}
    check(bool(shards), f"the cache in {cache} has nothing in split {split!r}")
    return shards
