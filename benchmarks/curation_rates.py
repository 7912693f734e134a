"""Rates of curation by recipe: MB of text a second on this machine, and a core, which a cost estimate starts from.

    python benchmarks/curation_rates.py CORPUS [--gin_files FILE ...] [--workers 2] [--repeats 3]

Each recipe runs `--repeats` times on all of CORPUS, the recipes alternating; medians are printed, one JSON line a
recipe. `seconds` is wall time of the whole command, interpreter start and imports included; `cpu_seconds` adds up all
processes, so `mb_per_cpu_second` is what one busy core does.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

RECIPES = ["quickstart", "exact_dedup", "near_dedup", "heuristics", "web_text"]


def run(corpus: str, gin_file: str, workers: int) -> tuple[float, float, int]:
    """(seconds, CPU seconds, bytes of text read) of one curation."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pretrain", "curate", f"--gin_file={gin_file}"]
        command += [f"--input={corpus}", f"--output={folder}/out", f"--workers={workers}"]
        before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
        subprocess.run(command, check=True, stderr=subprocess.DEVNULL)
        seconds, after = time.monotonic() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
        sheet = json.loads(Path(folder, "out", "datasheet.json").read_text())
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return seconds, cpu, sheet["total"]["read"]["bytes"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpus")
    parser.add_argument("--gin_files", nargs="+", default=[f"data_recipes/{name}.gin" for name in RECIPES])
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    gin_files = [file for file in arguments.gin_files if os.path.exists(file)]
    found: dict[str, list[tuple[float, float, int]]] = {file: [] for file in gin_files}
    for _ in range(arguments.repeats):
        for file in gin_files:
            found[file].append(run(arguments.corpus, file, arguments.workers))
    for file, runs in found.items():
        seconds, cpu = (statistics.median(column) for column in list(zip(*runs, strict=True))[:2])
        size = runs[0][2] / 1e6
        row = {"recipe": Path(file).stem, "seconds": round(seconds, 2), "cpu_seconds": round(cpu, 2)}
        row |= {"mb": round(size, 1), "mb_per_second": round(size / seconds, 1)}
        print(json.dumps(row | {"mb_per_cpu_second": round(size / cpu, 2)}))


if __name__ == "__main__":
    main()
