"""Peak memory of a curation run at two sizes, and how much of it each further document costs.

    python benchmarks/curation_memory.py [--gin_file=FILE] [--documents 250000 1000000] [--workers=2]

Writes corpora of short documents (five sentences of words of Python's manual, about 550 bytes, seed 0; one in ten is a
copy of another with a word changed), which pass the rules of web_text.gin, runs `pretrain curate` on each, and adds up
the proportional set size of all its processes ten times a second (so pages that two processes share, and mapped files,
count once). Prints one JSON line a size and one with the growth.
"""

import argparse
import json
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from pydoc_data.topics import topics

import numpy as np

SECONDS_BETWEEN_LOOKS = 0.1
SENTENCE = "The {} of {} {} and {} {} to be {} with {} {} that {} {} have."
LINES = 5


def write_corpus(path: Path, documents: int) -> int:
    """Writes JSONL; returns the bytes of text."""
    random = np.random.default_rng(0)
    vocabulary = np.array(sorted(set(re.findall(r"\b[a-z]{4,9}\b", " ".join(topics.values())))))
    size = 0
    path.parent.mkdir(parents=True)
    with path.open("w") as file:
        for start in range(0, documents, 10_000):
            shape = (min(10_000, documents - start), LINES, SENTENCE.count("{}"))
            chosen = vocabulary[random.integers(0, len(vocabulary), shape)]
            chosen[9::10] = chosen[8::10]
            chosen[9::10, -1, -1] = "changed"
            for index, lines in enumerate(chosen, start):
                text = "\n".join(SENTENCE.format(*words) for words in lines)
                size += len(text)
                file.write(json.dumps({"id": f"{index:09d}", "text": text}) + "\n")
    return size


def proportional_bytes(root: int) -> int:
    """PSS of a process and all its descendants."""
    pending, total = [root], 0
    while pending:
        process = Path("/proc", str(pending.pop()))
        try:
            lines = (process / "smaps_rollup").read_text().splitlines()
            total += 1024 * sum(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
            for task in (process / "task").iterdir():
                pending += map(int, (task / "children").read_text().split())
        except (OSError, ProcessLookupError):
            continue  # it has ended
    return total


def measure(command: list[str]) -> tuple[int, float]:
    """(peak bytes, seconds) of a command.

    Raises:
        RuntimeError: it failed.
    """
    started, peak = time.monotonic(), 0
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    while process.poll() is None:
        peak = max(peak, proportional_bytes(process.pid))
        time.sleep(SECONDS_BETWEEN_LOOKS)
    if process.returncode:
        raise RuntimeError(process.stderr.read())
    return peak, time.monotonic() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gin_file", default="data_recipes/web_text.gin")
    parser.add_argument("--documents", type=int, nargs="+", default=[250_000, 1_000_000])
    parser.add_argument("--workers", type=int, default=2)
    arguments = parser.parse_args()
    peaks = []
    for documents in arguments.documents:
        with tempfile.TemporaryDirectory() as folder:
            size = write_corpus(Path(folder, "in", "a.jsonl"), documents)
            command = [sys.executable, "-m", "pretrain", "curate", f"--gin_file={arguments.gin_file}"]
            command += [f"--input={folder}/in", f"--output={folder}/out", f"--workers={arguments.workers}"]
            peak, seconds = measure(command)
            kept = json.loads(Path(folder, "out", "datasheet.json").read_text())["total"]["kept"]["documents"]
        peaks.append(peak)
        row = {"documents": documents, "kept": kept, "text_bytes": size, "peak_bytes": peak}
        row |= {"seconds": round(seconds, 1)}
        print(json.dumps(row), flush=True)
    if len(peaks) > 1:
        growth = (peaks[-1] - peaks[0]) / (arguments.documents[-1] - arguments.documents[0])
        print(json.dumps({"bytes_per_further_document": round(growth, 1)}))


if __name__ == "__main__":
    main()
