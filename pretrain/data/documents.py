"""Whole documents of a cache, for evaluation: the text as curated, and its tokens as stored."""

import os
from collections.abc import Iterator

import numpy as np

from pretrain.core import storage
from pretrain.core.errors import check
from pretrain.data import tokenizers
from pretrain.data.cache import read_info
from pretrain.data.corpus import read_documents
from pretrain.data.records import Feature, Shards, little_endian

RECORDS_AT_ONCE = 1024


def stored_tokens(cache_dir: os.PathLike | str, split: str) -> Iterator[np.ndarray]:
    """Token ids of each document of a split, its end token included, int32, in the cache's order."""
    info = read_info(cache_dir)
    names = [feature["name"] for feature in info["features"]]
    check(names == ["tokens"], f"whole documents are read from caches of text; this one holds {', '.join(names)}")
    dtype = little_endian(Feature.from_json(info["features"][0]).dtype)
    for source, splits in info["sources"].items():
        if split in splits:
            shards = Shards(storage.inside(cache_dir, source) / split, splits[split]["shards"])
            for start in range(0, len(shards), RECORDS_AT_ONCE):
                for record in shards.read(np.arange(start, min(start + RECORDS_AT_ONCE, len(shards)))):
                    yield np.frombuffer(record, dtype).astype(np.int32)


def stored_examples(cache_dir: os.PathLike | str, source: str, split: str) -> Iterator[dict[str, np.ndarray]]:
    """The features of each record of a source and split, text as int32, in the cache's order.

    Raises:
        UserError: there is no such source or split.
    """
    info = read_info(cache_dir)
    splits = info["sources"].get(source, {})
    check(split in splits, f"the cache has no {source}/{split}; its sources are {', '.join(info['sources'])}")
    table = [Feature.from_json(feature) for feature in info["features"]]
    shards = Shards(storage.inside(cache_dir, source) / split, splits[split]["shards"])
    for start in range(0, len(shards), RECORDS_AT_ONCE):
        numbers = np.arange(start, min(start + RECORDS_AT_ONCE, len(shards)))
        for record, lengths in zip(shards.read(numbers), shards.index.lengths[numbers].tolist(), strict=True):
            example, offset = {}, 0
            for feature, length in zip(table, lengths, strict=True):
                end = offset + length * feature.item_bytes
                values = np.frombuffer(record[offset:end], little_endian(feature.dtype)).reshape(length, *feature.shape)
                example[feature.name] = values.astype(np.int32) if feature.is_text else values
                offset = end
            yield example


def texts(cache_dir: os.PathLike | str, corpus_dir: os.PathLike | str, split: str) -> Iterator[str]:
    """The text of each document of a split: as curated, or, of a seqio mixture, as its tokens decode."""
    if read_info(cache_dir)["corpus"] is not None:
        yield from curated_texts(corpus_dir, split)
        return
    tokenizer = tokenizers.load(storage.Path(cache_dir) / "tokenizer")
    yield from map(tokenizer.decode, stored_tokens(cache_dir, split))


def curated_texts(corpus_dir: os.PathLike | str, split: str) -> Iterator[str]:
    """The text of each document of a split of a curated corpus."""
    for path in sorted((storage.Path(corpus_dir) / "documents").iterdir()):
        if path.name.endswith(".parquet"):
            for _, document_split, _, texts in read_documents(path):
                if document_split == split:
                    yield from texts
