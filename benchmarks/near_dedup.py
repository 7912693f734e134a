"""Near deduplication: the time of a whole run, ours and datatrove's in turn, and both against exact Jaccard similarity.

    python benchmarks/near_dedup.py CORPUS [--peer_python=…] [--rounds=1] [--workers=2] [--sample=4000]

CORPUS: a folder of JSONL with `id` and `text`, as `benchmarks/real_text.py` writes. Ours: `pretrain curate` with
data_recipes/near_dedup.gin. The peer: datatrove's four stages, reading the same files and writing the same documents,
with the same n-grams, bands, rows, seed and processes, 64-bit hashes; --peer_python is an interpreter that has it.
Both times are of whole processes, from start to end.

Quality, on the first --sample documents: of all pairs with exact Jaccard similarity of word 5-grams of at least .85,
how many are in one cluster (recall); of the pairs that were accepted, how many are at least `min_similarity`
(precision), and the same of rejected documents and those kept in their place, which a chain of links may join.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

RECIPE = Path(__file__).parents[1] / "data_recipes" / "near_dedup.gin"
RECALL_AT = 0.85
PEER = """
import sys
from datatrove.executor.local import LocalPipelineExecutor
from datatrove.pipeline.dedup import minhash
from datatrove.pipeline.readers import JsonlReader
from datatrove.pipeline.writers.jsonl import JsonlWriter
from datatrove.utils.hashing import HashConfig

corpus, folder, workers, files = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
config = minhash.MinhashConfig(
    n_grams=5, num_buckets=14, hashes_per_bucket=8, seed=1, hash_config=HashConfig(precision=64)
)

def run(name, tasks, *steps):
    executor = LocalPipelineExecutor(list(steps), tasks=tasks, workers=workers, logging_dir=f"{folder}/logs/{name}")
    executor.run()

if __name__ == "__main__":
    signatures, buckets, removed = (f"{folder}/{name}" for name in ("signatures", "buckets", "removed"))
    run("1", files, JsonlReader(corpus), minhash.MinhashDedupSignature(signatures, config))
    run("2", 14, minhash.MinhashDedupBuckets(signatures, buckets, config=config))
    run("3", 1, minhash.MinhashDedupCluster(buckets, removed, config=config))
    run("4", files, JsonlReader(corpus), minhash.MinhashDedupFilter(removed), JsonlWriter(f"{folder}/kept"))
"""


def run_ours(corpus: Path, folder: Path, workers: int) -> float:
    command = [sys.executable, "-m", "pretrain", "curate", f"--gin_file={RECIPE}", f"--workers={workers}"]
    return timed([*command, f"--input={corpus}/*.jsonl", f"--output={folder}"])


def run_peer(python: str, corpus: Path, folder: Path, workers: int) -> float:
    script = folder.with_suffix(".py")
    script.write_text(PEER)
    return timed([python, str(script), str(corpus), str(folder), str(workers), str(len(list(corpus.glob("*.jsonl"))))])


def timed(command: list[str]) -> float:
    started = time.perf_counter()
    finished = subprocess.run(command, capture_output=True, text=True, check=False)
    if finished.returncode:
        sys.exit(f"{' '.join(command)} failed:\n{finished.stderr[-3000:]}")
    return time.perf_counter() - started


def peer_kept(folder: Path) -> int:
    import gzip

    return sum(1 for path in (folder / "kept").glob("*.gz") for _ in gzip.open(path))


def exact_pairs(texts: list[str]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """All pairs of texts with Jaccard similarity above .5, and it; by counting, without hashing or sampling."""
    from scipy.sparse import csr_array

    from pretrain.curate.simplify import simplify

    numbers: dict[tuple, int] = {}
    indices, offsets = [], [0]
    for words in (text.split() for text in simplify(texts, digits=False)):
        ngrams = set(zip(*(words[start:] for start in range(5)), strict=False)) or {tuple(words)}
        indices += [numbers.setdefault(ngram, len(numbers)) for ngram in ngrams]
        offsets.append(len(indices))
    shape = (len(texts), len(numbers))
    matrix = csr_array((np.ones(len(indices), np.int32), np.array(indices), np.array(offsets)), shape=shape)
    shared = (matrix @ matrix.T).tocoo()
    is_once = shared.row < shared.col
    row, column, common = shared.row[is_once], shared.col[is_once], shared.data[is_once]
    sizes = np.diff(offsets)
    jaccard = common / (sizes[row] + sizes[column] - common)
    is_similar = jaccard > 0.5
    return row[is_similar], column[is_similar], jaccard[is_similar]


def quality(corpus: Path, number: int) -> dict[str, float]:
    """Recall and precision on the first documents of the corpus."""
    from pretrain.curate.documents import DOCUMENTS
    from pretrain.curate.near_dedup import NearDedup

    lines = (line for path in sorted(corpus.glob("*.jsonl")) for line in path.open())
    rows = [json.loads(line) for line, _ in zip(lines, range(number), strict=False)]
    texts, ids = [row["text"] for row in rows], [row["id"] for row in rows]
    position = {id_: index for index, id_ in enumerate(ids)}
    fixed = {"source": "x", "split": "train", "origin": "x", "metadata": "{}", "arrays": None}
    columns = {"id": ids, "text": texts, **{name: [value] * len(ids) for name, value in fixed.items()}}
    table = pa.table([pa.array(columns[field.name], field.type) for field in DOCUMENTS], schema=DOCUMENTS)
    stage = NearDedup()
    evidence = pa.concat_tables(stage.key(batch) for batch in table.to_batches(max_chunksize=1024))
    links = stage.group(evidence.sort_by([("key", "ascending"), ("id", "ascending")]))
    decisions = stage.decide_all(links).to_pylist()
    root = np.arange(len(ids))
    for decision in decisions:
        root[position[decision["id"]]] = position[decision["duplicate_of"]]
    one, other, jaccard = exact_pairs(texts)
    exact = dict(zip(zip(one.tolist(), other.tolist(), strict=True), jaccard.tolist(), strict=True))
    near = jaccard >= RECALL_AT

    def similarity(pairs) -> np.ndarray:
        ordered = [tuple(sorted((position[a], position[b]))) for a, b in pairs]
        return np.array([exact.get(pair, 0.0) for pair in ordered])

    pairs = zip(links["id"].to_pylist(), links["better"].to_pylist(), strict=True)
    accepted = {pair for pair in pairs if pair[1] is not None}
    linked = similarity(sorted(accepted))
    kept = similarity((decision["id"], decision["duplicate_of"]) for decision in decisions)
    return {
        "documents": len(ids),
        f"pairs with Jaccard >= {RECALL_AT}": int(near.sum()),
        "recall": float((root[one[near]] == root[other[near]]).mean()),
        "accepted pairs": len(linked),
        f"precision at {stage.min_similarity}": float((linked >= stage.min_similarity).mean()),
        "accepted from an estimate of": stage.accepted_similarity,
        "rejected documents": len(kept),
        f"rejected with the kept one at {stage.min_similarity}": float((kept >= stage.min_similarity).mean()),
        "mean error of the value": float(np.mean([d["value"] for d in decisions] - kept)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpus", type=Path)
    parser.add_argument("--peer_python")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--sample", type=int, default=4000)
    arguments = parser.parse_args()
    corpus = arguments.corpus.resolve()
    result: dict = {"quality": quality(corpus, arguments.sample)} if arguments.sample else {}
    ours, peer = [], []
    for _ in range(arguments.rounds):
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            ours.append(run_ours(corpus, folder / "ours", arguments.workers))
            kept = sum(pq.read_metadata(path).num_rows for path in (folder / "ours" / "documents").iterdir())
            result["ours"] = {"seconds": ours, "kept": kept}
            if arguments.peer_python:
                peer.append(run_peer(arguments.peer_python, corpus, folder / "peer", arguments.workers))
                result["datatrove"] = {"seconds": peer, "kept": peer_kept(folder / "peer")}
    if peer:
        result["ratio of medians"] = statistics.median(peer) / statistics.median(ours)
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
