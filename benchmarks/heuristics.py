"""The four sets of quality rules (Gopher quality and repetition, C4, FineWeb) against datatrove's, time and decisions.

    python benchmarks/real_text.py corpus/ --megabytes=192
    python benchmarks/heuristics.py corpus/ --peer_python=peers/bin/python [--megabytes=16] [--workers=2]

`peer_python` has datatrove 0.10.1 and spacy; without it only ours is timed. Two comparisons, each with the same files
and cores on both sides, reading and writing included:

- every document through every filter: four runs of datatrove, one a filter, and one of ours that asks all four about
  every document and writes their answers into its metadata. This gives the decisions that are compared, too.
- one pipeline of the four, in which a document that a filter drops never reaches the next: `heuristics.gin`.
"""

import argparse
import dataclasses
import gzip
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pretrain.core.errors import exit_code
from pretrain.curate.c4 import C4
from pretrain.curate.fineweb import FineWebQuality
from pretrain.curate.gopher_quality import GopherQuality
from pretrain.curate.gopher_repetition import GopherRepetition
from pretrain.curate.recipe import Recipe, curate
from pretrain.curate.stages import tags

FILTERS = (GopherQuality(), GopherRepetition(), FineWebQuality(), C4(bad_words=""))  # C4's words: not in datatrove's
KEPT = "kept"
PEER = """
import json, sys, time
from datatrove.executor import LocalPipelineExecutor
from datatrove.pipeline.filters import C4QualityFilter, FineWebQualityFilter
from datatrove.pipeline.filters import GopherQualityFilter, GopherRepetitionFilter
from datatrove.pipeline.readers import JsonlReader
from datatrove.pipeline.writers import JsonlWriter
if __name__ == "__main__":
    folder, output, names, tasks, workers = json.loads(sys.argv[1])
    known = {"gopher_quality": GopherQualityFilter, "gopher_repetition": GopherRepetitionFilter,
             "fineweb": FineWebQualityFilter, "c4": C4QualityFilter}
    filters = [known[name](exclusion_writer=JsonlWriter(f"{output}/dropped/{name}")) for name in names]
    pipeline = [JsonlReader(folder), *filters, JsonlWriter(f"{output}/kept")]
    executor = LocalPipelineExecutor(pipeline, tasks=tasks, workers=workers, logging_dir=f"{output}/logs")
    started = time.perf_counter()
    executor.run()
    print("SECONDS", time.perf_counter() - started)
"""


@dataclasses.dataclass(frozen=True)
class EveryFilter:
    """Map stage that keeps all documents and writes into their metadata what each filter says: its rule, or "kept"."""

    name: str = "every_filter"

    def decide(self, documents: pa.RecordBatch) -> pa.Table:
        """One tag a filter and document."""
        answers = []
        for stage in FILTERS:
            decided = stage.decide(documents)
            rejected = decided.filter(pc.is_null(decided["start"]))
            rule = dict(zip(reversed(rejected["id"].to_pylist()), reversed(rejected["rule"].to_pylist()), strict=True))
            found = [rule.get(id_, KEPT) for id_ in documents["id"].to_pylist()]
            answers.append(tags(documents["id"], stage.name, pa.array(found, pa.string())))
        return pa.concat_tables(answers)


def sample(corpus: Path, folder: Path, megabytes: float) -> int:
    """Copies the corpus, or about so many megabytes evenly out of its files; returns the bytes of text."""
    files = sorted(corpus.glob("*.jsonl"))
    folder.mkdir()
    share = megabytes * 1e6 / sum(file.stat().st_size for file in files) if megabytes else 1.0
    size = 0
    for file in files:
        lines = file.read_text(encoding="utf-8").splitlines(keepends=True)
        lines = [line for number, line in enumerate(lines) if int((number + 1) * share) > int(number * share)]
        (folder / file.name).write_text("".join(lines), encoding="utf-8")
        size += sum(len(json.loads(line)["text"].encode()) for line in lines)
    return size


def run_ours(folder: Path, output: Path, stages: tuple, workers: int) -> float:
    """Seconds of a whole curation."""
    started = time.perf_counter()
    curate(Recipe(input=f"{folder}/*.jsonl", stages=stages, validation_fraction=0.0), output, workers=workers)
    return time.perf_counter() - started


def run_peer(python: str, folder: Path, output: Path, names: list[str], workers: int) -> float:
    """Seconds of datatrove's pipeline, without the time that its process takes to start."""
    script = output.parent / "peer.py"
    script.write_text(PEER)
    arguments = [str(folder), str(output), names, len(list(folder.glob("*.jsonl"))), workers]
    done = subprocess.run([python, script, json.dumps(arguments)], capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"datatrove failed: {done.stderr[-2000:]}")
    return float(done.stdout.split("SECONDS")[1])


def our_answers(output: Path) -> dict[str, dict[str, str]]:
    """{filter: {id: rule or "kept"}} as `EveryFilter` wrote them."""
    answers: dict[str, dict[str, str]] = {stage.name: {} for stage in FILTERS}
    for file in (output / "documents").glob("*.parquet"):
        for id_, metadata in zip(*pq.read_table(file, columns=["id", "metadata"]).to_pydict().values(), strict=True):
            told = json.loads(metadata)
            for name in answers:
                answers[name][id_] = told[name]
    return answers


def peer_answers(output: Path, name: str) -> dict[str, str]:
    """{id: reason or "kept"} of one of datatrove's filters."""
    answers = {}
    for kind in ("kept", f"dropped/{name}"):
        for file in (output / kind).glob("*.jsonl.gz"):
            with gzip.open(file, "rt", encoding="utf-8") as lines:
                for line in lines:
                    record = json.loads(line)
                    answers[record["id"]] = record["metadata"].get("filter_reason", KEPT)
    return answers


def report(name: str, ours: dict[str, str], theirs: dict[str, str]) -> str:
    """How far the decisions of one filter agree, and the kinds of difference."""
    both = ours.keys() & theirs.keys()
    differing = Counter((theirs[id_], ours[id_]) for id_ in both if (ours[id_] == KEPT) != (theirs[id_] == KEPT))
    equal = 1 - differing.total() / len(both)
    kept = np.mean([ours[id_] == KEPT for id_ in both])
    kinds = "; ".join(f"{their} there, {our} here: {number}" for (their, our), number in differing.most_common())
    return f"{name:18} {equal:8.3%} equal of {len(both):,} ({kept:.1%} kept){': ' if kinds else ''}{kinds}"


def each_filter(flags: argparse.Namespace, folder: Path, work: Path) -> None:
    """Every document through every filter."""
    theirs, peer_seconds = {}, 0.0
    for stage in FILTERS if flags.peer_python else ():
        seconds = run_peer(flags.peer_python, folder, work / stage.name, [stage.name], flags.workers)
        theirs[stage.name] = peer_answers(work / stage.name, stage.name)
        peer_seconds += seconds
        print(f"datatrove {stage.name:18} {seconds:8.1f} s", flush=True)
    seconds = run_ours(folder, work / "every", (EveryFilter(),), flags.workers)
    ratio = f", {peer_seconds / seconds:.1f} times as fast as the sum" if theirs else ""
    print(f"ours, all four on every document {seconds:8.1f} s{ratio}", flush=True)
    for name, answers in our_answers(work / "every").items() if theirs else ():
        print(report(name, answers, theirs[name]), flush=True)


def one_pipeline(flags: argparse.Namespace, folder: Path, work: Path, size: int) -> None:
    """The four filters one after another."""
    seconds = run_ours(folder, work / "pipeline", FILTERS, flags.workers)
    print(f"ours, one pipeline of the four   {seconds:8.1f} s ({size / 1e6 / seconds:.1f} MB/s)", flush=True)
    if flags.peer_python:
        names = [stage.name for stage in FILTERS]
        peer = run_peer(flags.peer_python, folder, work / "peer", names, flags.workers)
        print(f"datatrove, one pipeline          {peer:8.1f} s, {peer / seconds:.1f} times ours")


def main() -> None:
    """Runs the comparisons and prints them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpus", type=Path)
    parser.add_argument("--peer_python")
    parser.add_argument("--megabytes", type=float, default=0, help="of the corpus; 0 for all")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--comparison", choices=["both", "each", "pipeline"], default="both")
    flags = parser.parse_args()
    work = Path(tempfile.mkdtemp(prefix="heuristics-"))
    try:
        size = sample(flags.corpus, work / "corpus", flags.megabytes)
        print(f"{size / 1e6:.1f} MB of text, {flags.workers} processes")
        if flags.comparison != "pipeline":
            each_filter(flags, work / "corpus", work)
        if flags.comparison != "each":
            one_pipeline(flags, work / "corpus", work, size)
    finally:
        shutil.rmtree(work)


if __name__ == "__main__":
    sys.exit(exit_code(main, "heuristics"))
