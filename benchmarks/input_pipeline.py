"""Tokens per second from records on disk to packed numpy batches: ours, seqio's tf.data path, grain's stock first-fit.

    python benchmarks/input_pipeline.py [--rounds=5] [--records=20000] [--seconds=4]

One process, sequence 2,048, batches of 32 rows, the same records for all: log-normal lengths with a mean of about 600
tokens. The three stay loaded and take turns, so that a change in the machine's speed touches all of them; ratios are
taken round by round; tokens per second of processor time are given too, since other work touches them less. seqio:
LMFeatureConverter(pack=True) on TFRecord, tf.data with automatic parallelism. grain: FirstFitPackIterDataset, 32 bins,
ArrayRecord, two threads. Then: what our loader adds to steps of 50 ms, the cost of checksums, how full rows of pairs
are, the time to a batch at step 10**6, and memory over 10**5 steps.
"""

import argparse
import json
import resource
import statistics
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

LENGTH, ROWS, VOCAB = 2048, 32, 32_000


def lengths(count: int) -> np.ndarray:
    """Log-normal, mean about 600 tokens."""
    drawn = np.exp(np.random.default_rng(0).normal(5.9, 1.0, count))
    return np.clip(drawn.astype(np.int64), 1, None)


class Identity:
    """Packs token records as they are."""

    features = ("tokens",)
    random_finish = False

    def prepare(self, record, rng):
        return record

    prepare.identity = True

    def prepared_length(self, each):
        return each

    def finish(self, packed, rng):
        return packed


def write(folder: Path, count: int) -> None:
    """The records in our cache, in a plain ArrayRecord for grain, and in TFRecord for seqio."""
    import tensorflow as tf
    from array_record.python.array_record_module import ArrayRecordWriter

    from pretrain.data.records import token_feature, write_shard

    rng, sizes = np.random.default_rng(1), lengths(count)
    records = [rng.integers(4, VOCAB, size) for size in sizes]
    path = folder / "cache" / "text" / "train" / "train-00000-of-00001.array_record"
    entry = write_shard(path, (r.astype("<u2").tobytes() for r in records), sizes[:, None], np.arange(count), sizes * 4)
    total = {"tokens": int(sizes.sum()), "bytes": int(sizes.sum()) * 4}
    info = {
        "format": 1,
        "fingerprint": "benchmark",
        "features": [token_feature(VOCAB).to_json()],
        "tokenizer": {"fingerprint": "none", "vocab_size": VOCAB, "bos_id": 3},
        "sources": {"text": {"train": {"documents": count, **total, "shards": [entry | total]}}},
    }
    (folder / "cache" / "tokenizer").mkdir()
    (folder / "cache" / "tokenizer" / "tokenizer_info.json").write_text('{"fingerprint": "none"}')
    (folder / "cache" / "complete.json").write_text(json.dumps(info))
    writer = ArrayRecordWriter(str(folder / "plain.array_record"), "group_size:1")
    for record in records:
        writer.write(record.astype(np.int32).tobytes())
    writer.close()
    with tf.io.TFRecordWriter(str(folder / "plain.tfrecord")) as writer:
        for record in records:
            ints = tf.train.Feature(int64_list=tf.train.Int64List(value=record))
            writer.write(tf.train.Example(features=tf.train.Features(feature={"targets": ints})).SerializeToString())


def ours(folder: Path) -> Iterator[int]:
    """Yields the real tokens of each batch of our loader."""
    from pretrain.data.loader import make_loader

    loader = make_loader(
        folder / "cache", split="train", objective=Identity(), batch_size=ROWS, sequence_length=LENGTH, seed=0
    )
    for _, batch in loader.iterate():
        yield np.count_nonzero(batch["segment_ids"])


def seqio_path(folder: Path) -> Iterator[int]:
    import seqio
    import tensorflow as tf

    spec = {"targets": tf.io.FixedLenSequenceFeature((), tf.int64, allow_missing=True)}
    converter = seqio.LMFeatureConverter(pack=True)
    data = tf.data.TFRecordDataset(str(folder / "plain.tfrecord")).repeat()
    data = data.map(lambda raw: tf.io.parse_single_example(raw, spec), tf.data.AUTOTUNE)
    data = data.map(lambda each: {"targets": tf.cast(each["targets"][:LENGTH], tf.int32)}, tf.data.AUTOTUNE)
    data = converter(data, {"targets": LENGTH}).batch(ROWS).prefetch(tf.data.AUTOTUNE)
    for batch in data.as_numpy_iterator():
        yield np.count_nonzero(batch["decoder_segment_ids"])


def grain_path(folder: Path) -> Iterator[int]:
    import grain
    from grain.experimental import FirstFitPackIterDataset

    source = grain.sources.ArrayRecordDataSource(str(folder / "plain.array_record"))
    data = grain.MapDataset.source(source).repeat()
    data = data.map(lambda raw: {"tokens": np.frombuffer(raw, np.int32)[:LENGTH]})
    data = data.to_iter_dataset(grain.ReadOptions(num_threads=2, prefetch_buffer_size=64))
    data = FirstFitPackIterDataset(data, length_struct={"tokens": LENGTH}, num_packing_bins=32).batch(ROWS)
    for batch in data:
        segment_ids = batch["tokens_segment_ids"] if "tokens_segment_ids" in batch else batch[1]["tokens"]
        yield np.count_nonzero(segment_ids)


def measure(batches: Iterator[int], seconds: float) -> tuple[float, float, float]:
    """Tokens per second, tokens per second of processor time, and the share of the rows that is full."""
    tokens = steps = 0
    start, used = time.perf_counter(), time.process_time()
    while time.perf_counter() - start < seconds:
        tokens += next(batches)
        steps += 1
    elapsed, used = time.perf_counter() - start, time.process_time() - used
    return tokens / elapsed, tokens / used, tokens / (steps * ROWS * LENGTH)


def compare(folder: Path, rounds: int, seconds: float) -> dict:
    """Medians, spread and ratios of the three paths, which take turns."""
    paths = {"ours": ours(folder), "seqio": seqio_path(folder), "grain": grain_path(folder)}
    found: dict[str, list[tuple[float, float, float]]] = {name: [] for name in paths}
    for batches in paths.values():
        measure(batches, 1.0)  # opens files, traces graphs, fills buffers
    for _ in range(rounds):
        for name, batches in paths.items():
            found[name].append(measure(batches, seconds))
    result: dict = {}
    for name in paths:
        speed, per_core, full = zip(*found[name], strict=True)
        result[name] = {**spread([each / 1e6 for each in speed]), "efficiency": statistics.median(full)}
        result[name]["per second of processor time"] = statistics.median(per_core) / 1e6
    for peer in ("seqio", "grain"):
        result[f"ours / {peer}"] = spread([m[0] / t[0] for m, t in zip(found["ours"], found[peer], strict=True)])
    return result


def spread(values: list[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "low": min(values), "high": max(values)}


def step_overhead(folder: Path, rounds: int = 10, steps: int = 40, pause: float = 0.05) -> dict:
    """What the loader adds to steps of 50 ms on another device, in percent; with it and without it in turn.

    "waiting" is the time that the loop stood in `next(batches)`; "in all" also counts late wake-ups from the pause.
    """
    batches, waits = ours(folder), []
    for _ in range(100):  # the windows of the first epoch are packed, buffers are full
        next(batches)

    def run(fetch: Callable[[], object]) -> float:
        start, waited = time.perf_counter(), 0.0
        for _ in range(steps):
            before = time.perf_counter()
            fetch()
            waited += time.perf_counter() - before
            time.sleep(pause)
        waits.append(100 * waited / (steps * pause))
        return time.perf_counter() - start

    added = []
    for _ in range(rounds):
        bare = run(lambda: None)
        added.append(100 * (run(lambda: next(batches)) - bare) / bare)
    return {"in all, percent": spread(added), "waiting, percent": spread(waits[1::2])}


def checksums() -> dict:
    """What the check of every record costs at 25M tokens/s of 16 bits, in percent of one core."""
    record = bytes(1200)  # 600 tokens, as the mean of `lengths`
    start, count = time.perf_counter(), 200_000
    for _ in map(zlib.crc32, [record] * count):
        pass
    per_token = (time.perf_counter() - start) / (count * len(record) / 2)
    return {"percent of a core at 25M tokens/s": 100 * 25e6 * per_token}


def pairs(count: int = 12_000) -> dict:
    """Rows of encoder and decoder packed side by side: how full, how near to the fewest rows that could hold them."""
    from pretrain.data.packing import count_rows
    from pretrain.data.plan import WINDOW_PAIRS

    result = {}
    for name, means, sigma, correlation, capacity in (
        ("translation, 30 and 30 tokens in 512 and 512", (30, 30), 0.8, 0.9, (512, 512)),
        ("translation, 30 and 30 tokens in 1024 and 1024", (30, 30), 0.8, 0.9, (1024, 1024)),
        ("span corruption, documents of 300 in 1024 and 228", None, 1.0, 1.0, (1024, 228)),
        ("unrelated, 300 and 75 tokens in 2048 and 512", (300, 75), 1.0, 0.0, (2048, 512)),
        ("unrelated, 200 and 60 tokens in 512 and 154", (200, 60), 1.0, 0.0, (512, 154)),
    ):
        rng = np.random.default_rng(0)
        first, other = rng.normal(size=(2, count))
        both = np.stack([first, correlation * first + np.sqrt(1 - correlation**2) * other], axis=1)
        if means is None:  # T5: spans of 3 tokens; sentinels in both
            document = np.clip(np.exp(first) * 300 / np.exp(0.5), 8, 512).astype(np.int64)
            noise = np.maximum(np.round(0.15 * document), 1).astype(np.int64)
            spans = np.maximum(np.round(noise / 3), 1).astype(np.int64)
            sizes = np.stack([document - noise + spans + 1, noise + spans + 1], axis=1)
        else:
            sizes = np.exp(both * sigma) * np.array(means) / np.exp(sigma**2 / 2)
            sizes = np.clip(sizes.astype(np.int64), 1, capacity)
        start = time.perf_counter()
        windows = np.array_split(sizes, count // WINDOW_PAIRS)
        rows = sum(count_rows(window, capacity) for window in windows)
        fewest = (sizes.sum(axis=0) / capacity).max()
        milliseconds = 1000 * (time.perf_counter() - start) / len(windows)
        full = sizes.sum() / (rows * sum(capacity))
        result[name] = {"full": full, "of the bound": fewest / rows, "ms a window": milliseconds}
    return result


def seek(folder: Path) -> dict:
    """Milliseconds to a batch at step 10**6 of a loader that has never been there."""
    from pretrain.data.loader import make_loader

    times = []
    for step in range(10**6, 10**6 + 5000, 1000):
        loader = make_loader(
            folder / "cache", split="train", objective=Identity(), batch_size=ROWS, sequence_length=LENGTH, seed=0
        )
        start = time.perf_counter()
        loader.batch(step)
        times.append(1000 * (time.perf_counter() - start))
    return spread(times)


def memory(folder: Path, steps: int = 100_000) -> dict:
    """Resident megabytes after each tenth of the steps; rows of 256 tokens, so that it ends."""
    from pretrain.data.loader import make_loader

    loader = make_loader(
        folder / "cache", split="train", objective=Identity(), batch_size=8, sequence_length=256, seed=0
    )
    found = []
    for step, _ in loader.iterate():
        if step % (steps // 10) == 0:
            pages = int(Path("/proc/self/statm").read_text().split()[1])
            found.append(round(pages * resource.getpagesize() / 1e6))
        if step == steps:
            return {"resident_mb": found}
    raise AssertionError("the loader never ends")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--records", type=int, default=20_000)
    parser.add_argument("--seconds", type=float, default=4.0)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write(folder, arguments.records)
        result = {"million tokens/s": compare(folder, arguments.rounds, arguments.seconds)}
        result["loader added to a 50 ms step"] = step_overhead(folder)
        result["checksums"] = checksums()
        result["pairs"] = pairs()
        result["seek to step 10**6, ms"] = seek(folder)
        result["memory over 10**5 steps"] = memory(folder)
    print(json.dumps(result, indent=2, default=float))


if __name__ == "__main__":
    main()
