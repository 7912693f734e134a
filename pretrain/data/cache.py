"""The cache stage: a curated corpus or a seqio mixture, tokenized once, in one random order that a seed fixes.

The cache folder holds `tokenizer/`, `<source>/<split>/*.array_record` with an index beside each, and, written last,
`complete.json`: fingerprints, the feature table, shards and counts. A killed run goes on where it was.
"""

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, NotRequired, TypedDict

import gin

from pretrain.core import storage
from pretrain.core.console import say
from pretrain.core.errors import UserError, check
from pretrain.core.fields import check_fields
from pretrain.data import engines, shuffle, tokenizers
from pretrain.data.corpus import CorpusInput, document_files, read_documents
from pretrain.data.tokenizer_training import TokenizerConfig, load_path, train_or_load
from pretrain.data.tokenizers import Tokenizer

FORMAT = 1
IN_PROCESS_BYTES = 64e6  # a smaller input is not worth starting worker processes for


class ShardInfo(TypedDict):
    """A shard's file, as `complete.json` describes it."""

    file: str
    size: int
    records: int
    index_checksum: str


class SplitInfo(TypedDict):
    """A split of a source."""

    documents: int
    tokens: int
    bytes: int
    shards: list[ShardInfo]


class FeatureInfo(TypedDict):
    """A feature, as `Feature.to_json` gives it."""

    name: str
    dtype: str
    shape: list[int]


class CacheInfo(TypedDict):
    """What `complete.json` holds at least."""

    format: int
    fingerprint: str
    tokenizer: NotRequired[dict[str, Any] | None]
    features: list[FeatureInfo]
    rates: NotRequired[dict[str, float] | None]
    sources: dict[str, dict[str, SplitInfo]]


@gin.configurable
@dataclass(frozen=True)
class CacheConfig:
    """How a corpus, or a seqio mixture, becomes records.

    Attributes:
        tokenizer: which tokenizer to train or load; a mixture brings its own vocabulary.
        mixture: name of a seqio Task or Mixture to cache instead of the curated corpus.
        modules: modules to import first, which register that task or mixture.
        splits: of the mixture; those a task lacks are passed over.
        shard_megabytes: text per shard; a source and split smaller than this has one shard.
        seed: fixes the global order.
        engine: "local" processes or "beam".
        beam_options: command-line options of the Beam pipeline, e.g. `("--runner=DataflowRunner", ...)`.
        version: change it to build anew after changing the code of a task, which a fingerprint cannot see.
    """

    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    mixture: str | None = None
    modules: Sequence[str] = ()
    splits: Sequence[str] = ("train", "validation")
    shard_megabytes: float = 256.0
    seed: int = 0
    engine: str = "local"
    beam_options: Sequence[str] = ()
    version: str = ""

    def __post_init__(self):
        check_fields(self)
        check(self.shard_megabytes > 0, "CacheConfig.shard_megabytes must be positive")
        check(self.engine in ("local", "beam"), f"CacheConfig.engine = {self.engine!r}: 'local' or 'beam'")

    def content(self) -> dict:
        """What the records depend on, as JSON."""
        settings = asdict(self)
        return {
            name: settings[name] for name in ("tokenizer", "mixture", "splits", "shard_megabytes", "seed", "version")
        }


def read_info(cache_dir: os.PathLike | str) -> dict:
    """The `complete.json` of a finished cache.

    Raises:
        UserError: there is no finished cache in `cache_dir`.
    """
    marker = storage.Path(cache_dir) / "complete.json"
    check(marker.exists(), f"no finished cache in {cache_dir}; run `pretrain cache` first")
    info = storage.read_json(marker, CacheInfo)
    check(info.get("format") == FORMAT, f"{marker}: written by another version; build the cache again")
    return info


def build_cache(
    config: CacheConfig, corpus_dir: os.PathLike | str, cache_dir: os.PathLike | str, *, workers: int | None = None
) -> dict:
    """Builds the cache of a curated corpus or a seqio mixture, or returns at once when it is there already.

    Args:
        config: what to cache and how.
        corpus_dir: what `pretrain curate` wrote; not read when `config.mixture` is given.
        cache_dir: where the cache goes; local or remote.
        workers: processes; by the size of the input when None.

    Returns:
        The content of `complete.json`: fingerprints, feature table, shards and counts by source and split.

    Raises:
        UserError: the corpus is missing or empty, or `cache_dir` holds a cache of something else.
        RunError: the corpus cannot be read, or a worker died.
    """
    cache = storage.Path(cache_dir)
    inputs = {"format": FORMAT, "config": config.content(), "corpus": _corpus_fingerprint(config, corpus_dir)}
    if config.mixture is None and config.tokenizer.kind == "load":
        inputs["loaded_tokenizer"] = load_path(config.tokenizer).fingerprint
    fingerprint = storage.fingerprint(inputs)
    _check_folder(cache, fingerprint)
    if (cache / "complete.json").exists():
        return read_info(cache)
    source, rates = _open_input(config, corpus_dir, cache)
    sizes = source.sizes()
    check(bool(sizes), "there is nothing to cache: the input holds no document")
    storage.write_json(cache / "building.json", {"fingerprint": fingerprint})
    tokenizer = _tokenizer(config, source, corpus_dir, cache / "tokenizer")
    shards = {key: max(1, round(size / (config.shard_megabytes * 1e6))) for key, size in sizes.items()}
    entries = _run(config, source, shards, cache, workers if workers or sum(sizes.values()) > IN_PROCESS_BYTES else 1)
    info = {
        **inputs,
        "fingerprint": fingerprint,
        "tokenizer": tokenizer.info() if tokenizer else None,
        "features": [feature.to_json() for feature in source.features],
        "rates": rates,
        "sources": entries,
    }
    tokens = sum(splits["train"]["tokens"] for splits in entries.values() if "train" in splits)
    check(tokens > 0, "no document in the train split is left to train on")
    storage.write_json(cache / "complete.json", info)
    shuffle.remove(os.fspath(cache / "spill"))
    (cache / "building.json").unlink(missing_ok=True)
    return read_info(cache)


def _corpus_fingerprint(config: CacheConfig, corpus_dir: os.PathLike | str) -> str | None:
    if config.mixture is not None:
        return None
    marker = storage.Path(corpus_dir) / "complete.json"
    check(marker.exists(), f"no finished corpus in {corpus_dir}; run `pretrain curate` first")
    return storage.read_json(marker).get("fingerprint")


def _check_folder(cache: storage.Path, fingerprint: str) -> None:
    for name in ("complete.json", "building.json"):
        if (cache / name).exists() and storage.read_json(cache / name).get("fingerprint") != fingerprint:
            raise UserError(f"{cache} holds the cache of another corpus or configuration; delete it or choose another")


def _open_input(config: CacheConfig, corpus_dir: os.PathLike | str, cache: storage.Path):
    """What to cache, and the rates of its sources where it has some."""
    if config.mixture is None:
        return CorpusInput(os.fspath(corpus_dir), os.fspath(cache / "tokenizer")), None
    from pretrain.data import tasks  # seqio is needed only here

    source = tasks.TaskInput(config.mixture, tuple(config.modules), tuple(config.splits))
    return source, source.rates()


def _tokenizer(config: CacheConfig, source, corpus_dir: os.PathLike | str, folder: storage.Path) -> Tokenizer | None:
    """The tokenizer of the records, saved in the cache: the mixture's own, or one trained or loaded."""
    if config.mixture is not None:
        tokenizer = source.tokenizer
        if tokenizer:
            tokenizer.save(folder)
        return tokenizer
    if (folder / tokenizers.INFO_FILE).exists():
        return tokenizers.load(folder)
    say(f"cache: tokenizer ({config.tokenizer.kind})")
    files = document_files(corpus_dir)
    texts = (
        text for file in files for _, split, _, group in read_documents(file) if split == "train" for text in group
    )
    return train_or_load(config.tokenizer, texts, folder)


def _run(config: CacheConfig, source, shards: shuffle.Shards, cache: storage.Path, workers: int | None) -> dict:
    """Both passes; returns the `sources` part of `complete.json`."""
    folder = os.fspath(cache / "spill")
    features, root = source.features, os.fspath(cache)
    deal = [(source, unit, shards, config.seed, folder) for unit in range(source.units())]
    keys = [(key, shard) for key, count in shards.items() for shard in range(count)]
    write = [(root, key, shard, shards[key], features, config.seed, folder) for key, shard in keys]
    if config.engine == "beam":
        engines.run_beam("cache: tokens", shuffle.spill, deal, config.beam_options)
        engines.run_beam("cache: shards", shuffle.write, write, config.beam_options)
        workers = 1  # what is left is to read the entries
    else:
        engines.run_local("cache: tokens", shuffle.spill, deal, workers)
    entries = engines.run_local("cache: shards", shuffle.write, write, workers)
    empty, sources = shuffle.empty_examples(folder), {}
    for key in shards:
        mine = [entry for (of, _), entry in zip(keys, entries, strict=True) if of == key]
        total = {name: sum(entry[name] for entry in mine) for name in ("records", "tokens", "bytes")}
        sources.setdefault(key[0], {})[key[1]] = {
            "documents": total["records"],
            "tokens": total["tokens"],
            "bytes": total["bytes"],
            "bytes_per_token": total["bytes"] / max(total["tokens"], 1),
            "empty_documents": empty.get(key, 0),
            "shards": mine,
        }
    return sources
