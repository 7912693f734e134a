"""The cache stage: a curated corpus, tokenized once, in one random order that a seed fixes.

The shuffle takes two passes and bounded memory: each file of documents is tokenized and dealt at random to the shards
of its source and split (a spill file), then each shard gathers its share, permutes it and is written. Every file is
written whole and skipped when it exists, so a killed run goes on where it was; `complete.json` comes last.
"""

import contextlib
import dataclasses
import io
import os
import shutil
from collections import defaultdict
from collections.abc import Iterator, Sequence

import gin
import numpy as np
import pyarrow.parquet

from pretrain.core import storage
from pretrain.core.console import say
from pretrain.core.errors import RunError, UserError, check
from pretrain.core.rng import host_rng, purpose_id
from pretrain.data import tokenizers
from pretrain.data.records import Feature, little_endian, token_feature, write_shard
from pretrain.data.tokenizers import Tokenizer, TokenizerConfig

FORMAT = 1
BATCH_BYTES = 4 << 20


@gin.configurable
@dataclasses.dataclass(frozen=True)
class CacheConfig:
    """How a corpus becomes token records.

    Attributes:
        tokenizer: which tokenizer to train or load.
        shard_megabytes: text per shard; a source and split smaller than this has one shard.
        seed: fixes the global order.
    """

    tokenizer: TokenizerConfig = dataclasses.field(default_factory=TokenizerConfig)
    shard_megabytes: float = 256.0
    seed: int = 0

    def __post_init__(self):
        check(self.shard_megabytes > 0, "CacheConfig.shard_megabytes must be positive")


def read_info(cache_dir: os.PathLike | str) -> dict:
    """The `complete.json` of a finished cache.

    Raises:
        UserError: there is no finished cache in `cache_dir`.
    """
    marker = storage.Path(cache_dir) / "complete.json"
    check(marker.exists(), f"no finished cache in {cache_dir}; run `pretrain cache` first")
    info = storage.read_json(marker)
    check(info.get("format") == FORMAT, f"{marker}: written by another version; build the cache again")
    return info


def build_cache(
    config: CacheConfig, corpus_dir: os.PathLike | str, cache_dir: os.PathLike | str, *, workers: int | None = None
) -> dict:
    """Builds the cache of a curated corpus, or returns at once when it is there already.

    Args:
        config: tokenizer, shard size and seed.
        corpus_dir: what `pretrain curate` wrote: `documents/*.parquet` and `complete.json`.
        cache_dir: where `tokenizer/`, `<source>/<split>/*.array_record` and `complete.json` go.
        workers: tokenizing threads; all processors when None.

    Returns:
        The content of `complete.json`: fingerprints, feature table, shards and counts by source and split.

    Raises:
        UserError: the corpus is missing or empty, or `cache_dir` holds a cache of something else.
    """
    corpus, cache = storage.Path(corpus_dir), storage.Path(cache_dir)
    check((corpus / "complete.json").exists(), f"no finished corpus in {corpus}; run `pretrain curate` first")
    inputs = {
        "format": FORMAT,
        "corpus": storage.read_json(corpus / "complete.json").get("fingerprint"),
        "config": dataclasses.asdict(config),
    }
    fingerprint = storage.fingerprint(inputs)
    _check_folder(cache, fingerprint)
    if (cache / "complete.json").exists():
        return read_info(cache)
    storage.write_json(cache / "building.json", {"fingerprint": fingerprint})
    files = sorted(path for path in (corpus / "documents").iterdir() if path.name.endswith(".parquet"))
    check(bool(files), f"{corpus / 'documents'} holds no Parquet file")
    tokenizer = _tokenizer(config, files, cache / "tokenizer")
    work = _Work(config, tokenizer, cache, _count_shards(files, config.shard_megabytes))
    for number, file in enumerate(files):
        work.spill(number, file, workers or os.cpu_count() or 1)
    info = {
        **inputs,
        "fingerprint": fingerprint,
        "tokenizer": tokenizer.info(),
        "features": [work.feature.to_json()],
        "sources": work.write_shards(len(files)),
    }
    check(_total(info, "train") > 0, f"{corpus}: no document in the train split is left to train on")
    storage.write_json(cache / "complete.json", info)
    work.clean_up()
    return info


def _check_folder(cache: storage.Path, fingerprint: str) -> None:
    for name in ("complete.json", "building.json"):
        if (cache / name).exists() and storage.read_json(cache / name).get("fingerprint") != fingerprint:
            raise UserError(f"{cache} holds the cache of another corpus or configuration; delete it or choose another")


def _total(info: dict, split: str) -> int:
    return sum(splits[split]["tokens"] for splits in info["sources"].values() if split in splits)


def _tokenizer(config: CacheConfig, files: Sequence[storage.Path], folder: storage.Path) -> Tokenizer:
    if (folder / tokenizers.INFO_FILE).exists():
        return tokenizers.load(folder)
    say(f"cache: tokenizer ({config.tokenizer.kind})")
    texts = (
        text for file in files for _, split, _, texts in read_documents(file) if split == "train" for text in texts
    )
    return tokenizers.train_or_load(config.tokenizer, texts, folder)


def read_documents(file: storage.Path) -> Iterator[tuple[str, str, np.ndarray, list[str]]]:
    """Yields (source, split, row numbers in the file, texts) in groups of bounded size."""
    with file.open("rb") as stream:
        row = 0
        for batch in pyarrow.parquet.ParquetFile(stream).iter_batches(1024, columns=["source", "split", "text"]):
            groups = defaultdict(list)
            columns = (batch.column(name).to_pylist() for name in ("source", "split"))
            for offset, key in enumerate(zip(*columns, strict=True)):
                groups[key].append(offset)
            texts = batch.column("text").to_pylist()
            for (source, split), offsets in sorted(groups.items()):
                yield source, split, np.array(offsets) + row, [texts[offset] or "" for offset in offsets]
            row += batch.num_rows


def _count_shards(files: Sequence[storage.Path], shard_megabytes: float) -> dict[tuple[str, str], int]:
    """Number of shards of each source and split, from row counts and the files' metadata alone."""
    size = defaultdict(float)
    for file in files:
        with file.open("rb") as stream:
            parquet = pyarrow.parquet.ParquetFile(stream)
            column = parquet.schema_arrow.get_field_index("text")
            check(column >= 0, f"{file} has no column named text")
            groups = [parquet.metadata.row_group(group) for group in range(parquet.num_row_groups)]
            text = sum(group.column(column).total_uncompressed_size for group in groups)
            table = parquet.read(columns=["source", "split"])
        for counted in table.group_by(["source", "split"]).aggregate([([], "count_all")]).to_pylist():
            size[counted["source"], counted["split"]] += text * counted["count_all"] / table.num_rows
    return {key: max(1, round(value / (shard_megabytes * 1e6))) for key, value in sorted(size.items())}


class _Work:
    """The two passes over one corpus."""

    def __init__(self, config: CacheConfig, tokenizer: Tokenizer, cache: storage.Path, shards: dict):
        self._config, self._tokenizer, self._cache, self._shards = config, tokenizer, cache, shards
        self._spills = cache / "spill"
        self.feature: Feature = token_feature(tokenizer.vocab_size)

    def spill(self, number: int, file: storage.Path, threads: int) -> None:
        """First pass over one file: tokenizes its documents and deals them to shards."""
        target = self._spills / f"{number:05d}.npz"
        if target.exists():
            return
        parts = defaultdict(list)  # (source, split, shard) -> [(document number, text bytes, tokens)]
        rng = host_rng(self._config.seed, "cache shards", number)
        empty = defaultdict(int)
        for source, split, rows, texts in read_documents(file):
            shards = rng.integers(self._shards[source, split], size=len(rows))
            for row, shard, text, ids in zip(rows, shards, texts, self._tokenizer.encode(texts), strict=True):
                if not text:
                    empty[source, split] += 1
                    continue
                tokens = np.append(ids, self._tokenizer.eos_id)
                parts[source, split, int(shard)].append(((number << 32) + int(row), len(text.encode()), tokens))
        arrays = {f"{'/'.join(map(str, key))}/empty": np.array(count) for key, count in empty.items()}
        for (source, split, shard), documents in parts.items():
            numbers, sizes, tokens = zip(*documents, strict=True)
            prefix = f"{source}/{split}/{shard}"
            arrays[f"{prefix}/documents"] = np.array(numbers, np.uint64)
            arrays[f"{prefix}/text_bytes"] = np.array(sizes, np.uint32)
            arrays[f"{prefix}/lengths"] = np.array([len(each) for each in tokens], np.uint32)
            arrays[f"{prefix}/tokens"] = self._stored(np.concatenate(tokens), file)
        buffer = io.BytesIO()
        np.savez(buffer, **arrays)
        storage.write_bytes(target, buffer.getvalue())

    def _stored(self, tokens: np.ndarray, file: storage.Path) -> np.ndarray:
        if tokens.min() < 0 or tokens.max() >= self._tokenizer.vocab_size:
            raise RunError(f"{file}: token ids {tokens.min()}..{tokens.max()}, vocabulary {self._tokenizer.vocab_size}")
        return tokens.astype(little_endian(self.feature.dtype))

    def write_shards(self, files: int) -> dict:
        """Second pass: gathers, permutes and writes every shard; returns the `sources` part of `complete.json`."""
        sources = defaultdict(dict)
        with contextlib.ExitStack() as stack:
            spills = []
            for number in range(files):
                stream = stack.enter_context((self._spills / f"{number:05d}.npz").open("rb"))
                spills.append(stack.enter_context(np.load(stream)))
            for (source, split), shards in self._shards.items():
                say(f"cache: {source} {split}: {shards} shard{'s' * (shards > 1)}")
                entries = [self._write_shard(spills, source, split, shard) for shard in range(shards)]
                empty = sum(int(spill[name]) for spill in spills if (name := f"{source}/{split}/empty") in spill)
                sources[source][split] = {
                    "documents": sum(entry["records"] for entry in entries),
                    "tokens": sum(entry["tokens"] for entry in entries),
                    "bytes": sum(entry["bytes"] for entry in entries),
                    "empty_documents": empty,
                    "shards": entries,
                }
        return dict(sources)

    def _write_shard(self, spills: Sequence, source: str, split: str, shard: int) -> dict:
        count = self._shards[source, split]
        path = self._cache / source / split / f"{split}-{shard:05d}-of-{count:05d}.array_record"
        done = self._spills / f"{source}.{split}.{shard:05d}.json"
        if done.exists():
            return storage.read_json(done)
        names = ("documents", "text_bytes", "lengths", "tokens")
        prefix = f"{source}/{split}/{shard}"
        parts = [[spill[f"{prefix}/{name}"] for name in names] for spill in spills if f"{prefix}/tokens" in spill]
        empty = [np.zeros(0, np.uint64)] * 3 + [np.zeros(0, little_endian(self.feature.dtype))]
        documents, text_bytes, lengths, tokens = (np.concatenate(arrays) for arrays in zip(*parts, empty, strict=True))
        order = host_rng(self._config.seed, "cache order", purpose_id(f"{source}/{split}"), shard).permutation(
            len(lengths)
        )
        ends = np.cumsum(lengths).astype(np.int64)
        records = (tokens[ends[row] - int(lengths[row]) : ends[row]].tobytes() for row in order)
        entry = write_shard(path, records, lengths[order][:, None], documents[order], text_bytes[order])
        entry |= {"tokens": int(lengths.sum()), "bytes": int(text_bytes.sum())}
        storage.write_json(done, entry)
        return entry

    def clean_up(self) -> None:
        """Removes what only a restart needs."""
        with contextlib.suppress(OSError):
            (self._cache / "building.json").unlink()
            self._spills.rmtree() if storage.is_remote(self._spills) else shutil.rmtree(self._spills)
