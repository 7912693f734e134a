"""Small corpora, caches and objectives for the tests of the data path."""

import dataclasses
import json
import pathlib

import numpy as np
import pyarrow
import pyarrow.parquet

from pretrain.data.records import Feature, little_endian, write_shard

WORDS = ("the", "quick", "brown", "fox", "jumps", "déjà vu", "中文", "😀", "def f(x):\n    return x + 1\n", "\t", "a")


@dataclasses.dataclass(frozen=True)
class Plain:
    """Hands the packed rows on as they are."""

    features = ("tokens",)
    random_finish = False

    def prepare(self, record, rng):
        return record

    prepare.identity = True

    def prepared_length(self, lengths):
        return lengths

    def finish(self, packed, rng):
        return packed


@dataclasses.dataclass(frozen=True)
class Noisy(Plain):
    """Draws random numbers before packing (one more token, at a random place) and after it (a mask)."""

    random_finish = True

    def prepare(self, record, rng):
        tokens = record["tokens"]
        return {"tokens": np.insert(tokens, rng.integers(len(tokens) + 1), 1_000_000)}

    def prepared_length(self, lengths):
        return lengths + 1

    def finish(self, packed, rng):
        return {**packed, "mask": (rng.random(packed["tokens"].shape) < 0.5).astype(np.int32)}


@dataclasses.dataclass(frozen=True)
class Halves(Plain):
    """One feature in, two packed features out: the first two thirds, rounded up, and the rest with a separator."""

    def prepare(self, record, rng):
        cut = -(-2 * len(record["tokens"]) // 3)
        return {"inputs": record["tokens"][:cut], "targets": np.append(record["tokens"][cut:], 7)}

    def prepared_length(self, lengths):
        return {"inputs": -(-2 * lengths // 3), "targets": lengths - -(-2 * lengths // 3) + 1}


@dataclasses.dataclass(frozen=True)
class Pair(Plain):
    """Two features that are packed side by side and never cut."""

    features = ("inputs", "targets")

    def prepared_length(self, lengths):
        return lengths


def log_normal(count: int, mean: float, seed: int = 0, longest: int = 10**6) -> np.ndarray:
    """Lengths as natural text has them, int64 [count]."""
    lengths = np.exp(np.random.default_rng(seed).normal(0, 1.0, count)) * mean / np.exp(0.5)
    return np.clip(lengths.astype(np.int64), 1, longest)


def write_cache(
    folder, lengths: dict[str, list], *, split="train", vocab_size=1 << 31, features=None, fingerprint="toy"
) -> pathlib.Path:
    """A cache whose tokens say where they belong: source number * 10**8 + a running number, in the cache's order.

    Args:
        folder: where to write it.
        lengths: source -> lengths [records] or [records, features] of each shard.
    """
    folder = pathlib.Path(folder)
    table = features or [Feature("tokens", "uint32")]
    sources = {}
    for number, (source, shards) in enumerate(sorted(lengths.items())):
        running, entries = 0, []
        for shard, each in enumerate(shards):
            each = np.asarray(each, np.int64).reshape(len(each), -1)
            records = []
            for row in each:
                parts = []
                for feature, length in zip(table, row, strict=True):
                    size = int(length) * int(np.prod(feature.shape, dtype=int))
                    values = number * 10**8 + running + np.arange(size)
                    if feature.dtype not in ("uint32", "int32"):
                        values = values % 251
                    parts.append(values.astype(little_endian(feature.dtype)).tobytes())
                running += int(row[0])
                records.append(b"".join(parts))
            path = folder / source / split / f"{split}-{shard:05d}.array_record"
            entry = write_shard(path, records, each, np.arange(len(each)), each[:, 0] * 3)
            entries.append(entry | {"tokens": int(each.sum()), "bytes": int(each[:, 0].sum() * 3)})
        total = {name: sum(entry[name] for entry in entries) for name in ("tokens", "bytes")}
        sources[source] = {split: {"documents": sum(entry["records"] for entry in entries), **total, "shards": entries}}
    (folder / "tokenizer").mkdir(exist_ok=True)
    (folder / "tokenizer" / "tokenizer_info.json").write_text(json.dumps({"fingerprint": "toy"}))
    info = {
        "format": 1, "fingerprint": fingerprint, "features": [each.to_json() for each in table], "sources": sources,
        "tokenizer": {"fingerprint": "toy", "vocab_size": vocab_size, "bos_id": 3, "eos_id": 1, "pad_id": 0},
    }  # fmt: skip
    (folder / "complete.json").write_text(json.dumps(info))
    return folder


def text(rng: np.random.Generator, words: int) -> str:
    return " ".join(rng.choice(WORDS, words))


def write_corpus(folder, documents: int = 200, seed: int = 0, files: int = 3, sources=("books", "web")) -> pathlib.Path:
    """A curated corpus: sources in turn, every seventh document for validation, every fiftieth empty."""
    folder = pathlib.Path(folder)
    rng = np.random.default_rng(seed)
    rows = [
        {
            "id": f"d{number}",
            "source": sources[number % len(sources)],
            "split": "validation" if number % 7 == 0 else "train",
            "text": "" if number % 50 == 1 else text(rng, int(rng.integers(1, 80))),
            "origin": f"file.txt:{number}",
            "metadata": "{}",
        }
        for number in range(documents)
    ]
    (folder / "documents").mkdir(parents=True)
    for number in range(files):
        table = pyarrow.Table.from_pylist(rows[number::files])
        pyarrow.parquet.write_table(table, folder / "documents" / f"part-{number}.parquet")
    (folder / "complete.json").write_text(json.dumps({"fingerprint": f"corpus-{seed}-{documents}-{files}"}))
    return folder


def corpus_rows(folder) -> list[dict]:
    files = sorted((pathlib.Path(folder) / "documents").iterdir())
    return [row for file in files for row in pyarrow.parquet.read_table(file).to_pylist()]
