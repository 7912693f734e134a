"""The cache: every document once, in an order that a seed fixes, whoever builds it and however often it is killed."""

import hashlib
import json
import pathlib
import shutil
import time

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from toy_data import Plain, corpus_rows, write_corpus

from pretrain.core.errors import RunError, UserError
from pretrain.data import cache as cache_module
from pretrain.data import shuffle, tokenizers
from pretrain.data.cache import CacheConfig, build_cache, read_info
from pretrain.data.corpus import Examples
from pretrain.data.documents import curated_texts, stored_tokens
from pretrain.data.loader import make_loader
from pretrain.data.records import Shards, token_feature
from pretrain.data.tokenizer_training import TokenizerConfig

BYTES = TokenizerConfig(kind="bytes")
SHARDED = CacheConfig(tokenizer=BYTES, shard_megabytes=0.004)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return write_corpus(tmp_path_factory.mktemp("toy") / "corpus")


@pytest.fixture(scope="module")
def built(tmp_path_factory, corpus):
    folder = tmp_path_factory.mktemp("built") / "cache"
    return folder, build_cache(SHARDED, corpus, folder, workers=1)


def files(folder) -> dict[str, str]:
    """Digest of every file by its path."""
    paths = sorted(path for path in pathlib.Path(folder).rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


def texts_of(folder, info, source: str, split: str) -> list[str]:
    tokenizer = tokenizers.load(pathlib.Path(folder) / "tokenizer")
    shards = Shards(pathlib.Path(folder) / source / split, info["sources"][source][split]["shards"])
    decoded = []
    for record in shards.read(np.arange(len(shards))):
        tokens = np.frombuffer(record, "<u2")
        assert tokens[-1] == tokenizer.eos_id and tokenizer.eos_id not in tokens[:-1]
        decoded.append(tokenizer.decode(tokens))
    return decoded


def test_every_document_is_there_once_with_its_counts(built, corpus):
    folder, info = built
    rows = corpus_rows(corpus)
    for source in ("books", "web"):
        for split in ("train", "validation"):
            expected = [row["text"] for row in rows if (row["source"], row["split"]) == (source, split)]
            kept = [text for text in expected if text]
            entry = info["sources"][source][split]
            found = texts_of(folder, info, source, split)
            assert sorted(found) == sorted(kept) and found != kept
            assert (entry["documents"], entry["empty_documents"]) == (len(kept), len(expected) - len(kept))
            assert entry["bytes"] == sum(len(text.encode()) for text in kept)
            assert entry["tokens"] == entry["bytes"] + entry["documents"]
            assert entry["bytes_per_token"] == pytest.approx(entry["bytes"] / entry["tokens"])
            assert len(entry["shards"]) >= (2 if split == "train" else 1)


def test_the_index_knows_where_each_record_comes_from(built, corpus):
    folder, info = built
    tokenizer = tokenizers.load(folder / "tokenizer")
    tables = [pyarrow.parquet.read_table(file).to_pylist() for file in sorted((corpus / "documents").iterdir())]
    shards = Shards(folder / "web" / "train", info["sources"]["web"]["train"]["shards"])
    records = shards.read(np.arange(len(shards)))
    for record, document, size in zip(records, shards.index.documents.tolist(), shards.index.text_bytes, strict=True):
        text = tables[document >> 32][document & 0xFFFFFFFF]["text"]
        assert tokenizer.decode(np.frombuffer(record, "<u2")) == text
        assert size == len(text.encode())


def test_the_seed_alone_fixes_the_order(tmp_path, built, corpus):
    build_cache(SHARDED, corpus, tmp_path / "two", workers=2)
    assert files(tmp_path / "two") == files(built[0])
    other = CacheConfig(tokenizer=BYTES, shard_megabytes=0.004, seed=1)
    info = build_cache(other, corpus, tmp_path / "other", workers=1)
    mine, theirs = (texts_of(folder, i, "web", "train") for folder, i in (built, (tmp_path / "other", info)))
    assert mine != theirs and sorted(mine) == sorted(theirs)


def test_every_order_is_about_as_likely(tmp_path):
    """Where the first document of the corpus ends up, over many seeds, is spread evenly (chi-squared, 1 %)."""
    numbers = np.arange(8, dtype=np.uint64)
    lengths = np.ones((8, 1), np.uint32)

    class Source:
        features = [token_feature(300)]  # noqa: RUF012

        def examples(self, unit):
            yield Examples("a", "train", numbers, numbers.astype(np.uint32), lengths, numbers.astype("<u2").tobytes())

    places = []
    for seed in range(160):
        folder = tmp_path / str(seed)
        shuffle.spill(Source(), 0, {("a", "train"): 2}, seed, str(folder / "spill"))
        entries = [
            shuffle.write(str(folder), ("a", "train"), shard, 2, Source.features, seed, str(folder / "spill"))
            for shard in range(2)
        ]
        shards = Shards(folder / "a" / "train", entries)
        places.append(int(np.flatnonzero(shards.index.documents == 0)[0]))
    counts = np.bincount(places, minlength=8)
    assert ((counts - 20) ** 2 / 20).sum() < 18.48


def test_a_finished_cache_is_left_alone(built, corpus):
    folder, info = built
    before, start = files(folder), time.perf_counter()
    assert build_cache(SHARDED, corpus, folder) == info == read_info(folder)
    assert time.perf_counter() - start < 0.5 and files(folder) == before
    assert not (folder / "spill").exists() and not (folder / "building.json").exists()


def test_another_cache_is_not_overwritten(tmp_path, built, corpus):
    folder = tmp_path / "cache"
    shutil.copytree(built[0], folder)
    before = files(folder)
    with pytest.raises(UserError, match="holds the cache of another corpus or configuration"):
        build_cache(CacheConfig(tokenizer=BYTES, seed=7), corpus, folder)
    with pytest.raises(UserError, match="another corpus"):
        build_cache(SHARDED, write_corpus(tmp_path / "other", seed=3), folder)
    assert files(folder) == before


@pytest.mark.parametrize(("stage", "calls"), [("spill", 0), ("spill", 2), ("write", 0), ("write", 1), ("write", 4)])
def test_a_killed_build_goes_on_where_it_was(tmp_path, monkeypatch, built, corpus, stage, calls):
    real, done = getattr(shuffle, stage), []

    def dies(*arguments):
        if len(done) == calls:
            raise KeyboardInterrupt
        done.append(arguments)
        return real(*arguments)

    folder = tmp_path / "cache"
    monkeypatch.setattr(shuffle, stage, dies)
    with pytest.raises(KeyboardInterrupt):
        build_cache(SHARDED, corpus, folder, workers=1)
    assert not (folder / "complete.json").exists()
    with pytest.raises(UserError, match="no finished cache"):
        read_info(folder)
    kept = {path: path.stat().st_mtime_ns for path in folder.rglob("*.array_record")}
    monkeypatch.setattr(shuffle, stage, real)
    with pytest.raises(UserError, match="another corpus or configuration"):
        build_cache(CacheConfig(tokenizer=BYTES), corpus, folder)
    build_cache(SHARDED, corpus, folder, workers=1)
    assert files(folder) == files(built[0])
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    assert len(kept) == (calls if stage == "write" else 0)


def test_beam_builds_the_same_cache(tmp_path, built, corpus):
    config = CacheConfig(tokenizer=BYTES, shard_megabytes=0.004, engine="beam", beam_options=("--runner=DirectRunner",))
    build_cache(config, corpus, tmp_path / "cache")
    assert files(tmp_path / "cache") == files(built[0])


def test_trained_tokenizer_and_whole_documents(tmp_path, corpus):
    config = CacheConfig(tokenizer=TokenizerConfig(vocab_size=400))
    info = build_cache(config, corpus, tmp_path, workers=1)
    tokenizer = tokenizers.load(tmp_path / "tokenizer")
    assert info["tokenizer"] == tokenizer.info()
    expected = sorted(text for text in curated_texts(corpus, "validation") if text)
    assert sorted(tokenizer.decode(tokens) for tokens in stored_tokens(tmp_path, "validation")) == expected


def test_a_loaded_tokenizer_is_part_of_the_fingerprint(tmp_path, corpus):
    tokenizers.Bytes().save(tmp_path / "tokens")
    config = CacheConfig(tokenizer=TokenizerConfig(kind="load", path=str(tmp_path / "tokens")))
    build_cache(config, corpus, tmp_path / "cache", workers=1)
    tokenizers.Bytes(extra_ids=5).save(tmp_path / "tokens")
    with pytest.raises(UserError, match="another corpus or configuration"):
        build_cache(config, corpus, tmp_path / "cache", workers=1)


def test_training_reads_what_was_built(built):
    folder, info = built
    loader = make_loader(folder, split="train", objective=Plain(), batch_size=4, sequence_length=128, seed=0, epochs=1)
    batches = [loader.batch(step) for step in range(loader.num_batches)]
    total = sum(splits["train"]["tokens"] for splits in info["sources"].values())
    assert sum((batch["segment_ids"] > 0).sum() for batch in batches) == total
    eos = sum(((batch["tokens"] == 1) & (batch["segment_ids"] > 0)).sum() for batch in batches)
    assert eos == sum(splits["train"]["documents"] for splits in info["sources"].values())


def table(**columns) -> pyarrow.Table:
    return pyarrow.table({"source": ["a"], "split": ["train"], "text": ["words"], **columns})


@pytest.mark.parametrize(
    ("content", "error", "message"),
    [
        (table().drop_columns(["text"]), UserError, "has no column named text"),
        (table(split=["validation"]), UserError, "no document in the train split"),
        (table(text=[""]), UserError, "no document in the train split"),
        (table(text=[None]), UserError, "no document in the train split"),
        (table(source=["a/b"]), UserError, "source 'a/b' cannot be a folder name"),
        (table(source=[".."]), UserError, "cannot be a folder name"),
        (table().slice(0, 0), UserError, "nothing to cache"),
        (None, UserError, "holds no Parquet file"),
    ],
)
def test_bad_corpora(tmp_path, content, error, message):
    (tmp_path / "documents").mkdir()
    if content is not None:
        pyarrow.parquet.write_table(content, tmp_path / "documents" / "0.parquet")
    (tmp_path / "complete.json").write_text('{"fingerprint": "x"}')
    with pytest.raises(error, match=message):
        build_cache(CacheConfig(tokenizer=BYTES), tmp_path, tmp_path / "cache", workers=1)


def test_damaged_and_missing_corpora(tmp_path, corpus):
    with pytest.raises(UserError, match="no finished corpus"):
        build_cache(SHARDED, tmp_path / "nowhere", tmp_path / "cache")
    shutil.copytree(corpus, tmp_path / "corpus")
    damaged = tmp_path / "corpus" / "documents" / "part-1.parquet"
    whole = damaged.read_bytes()
    damaged.write_bytes(whole[: len(whole) // 2] + bytes(100) + whole[len(whole) // 2 + 100 :])
    with pytest.raises(RunError, match=r"part-1.parquet cannot be read .*; run `pretrain curate` again"):
        build_cache(SHARDED, tmp_path / "corpus", tmp_path / "cache", workers=1)
    damaged.write_bytes(whole[:50])
    with pytest.raises(RunError, match=r"part-1.parquet cannot be read"):
        build_cache(SHARDED, tmp_path / "corpus", tmp_path / "other", workers=1)


class Careless(tokenizers.Bytes):
    """Gives an id that its vocabulary does not have."""

    def _encode(self, texts):
        return [np.array([self.vocab_size], np.int32) for _ in texts]


def test_a_tokenizer_that_leaves_its_vocabulary_is_stopped(tmp_path, corpus, monkeypatch):
    monkeypatch.setattr(tokenizers, "load", lambda folder: Careless())
    with pytest.raises(RunError, match="token ids up to 260, the vocabulary ends at 260"):
        build_cache(SHARDED, corpus, tmp_path, workers=1)


def test_wrong_settings(tmp_path, built):
    with pytest.raises(UserError, match="shard_megabytes must be positive"):
        CacheConfig(shard_megabytes=0)
    with pytest.raises(UserError, match="'local' or 'beam'"):
        CacheConfig(engine="spark")
    marker = tmp_path / "complete.json"
    marker.write_text(json.dumps({**built[1], "format": cache_module.FORMAT + 1}))
    with pytest.raises(UserError, match="written by another version"):
        read_info(tmp_path)
    shapeless = [{"name": feature["name"], "dtype": feature["dtype"]} for feature in built[1]["features"]]
    marker.write_text(json.dumps({**built[1], "features": shapeless}))
    with pytest.raises(RunError, match="missing required field `shape`"):
        read_info(tmp_path)
