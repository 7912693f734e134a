"""Kills a curation with SIGKILL at random moments and runs it again: the output must be the same bytes.

    python benchmarks/curation_kills.py CORPUS [--gin_file=FILE] [--kills=10] [--workers=2] [--seed=0]

Runs once undisturbed and takes its time; then kills runs into another folder at moments drawn from that time, each
going on where the one before was killed (a new folder is begun when a run gets through), and compares every file at
the end. Prints one JSON line; exit code 1 if any byte differs.
"""

import argparse
import json
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path


def start(arguments: argparse.Namespace, output: Path) -> subprocess.Popen:
    """`pretrain curate` into `output`."""
    command = [sys.executable, "-m", "pretrain", "curate", f"--gin_file={arguments.gin_file}"]
    command += [f"--input={arguments.corpus}", f"--output={output}", f"--workers={arguments.workers}"]
    return subprocess.Popen(command, stderr=subprocess.DEVNULL)


def contents(folder: Path) -> dict[str, bytes]:
    """Every file beneath a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpus")
    parser.add_argument("--gin_file", default="data_recipes/quickstart.gin")
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    moments, killed, number, differing = random.Random(arguments.seed), [], 0, []
    with tempfile.TemporaryDirectory() as folder:
        started = time.monotonic()
        assert start(arguments, Path(folder, "undisturbed")).wait() == 0, "the undisturbed run failed"
        whole, wanted = time.monotonic() - started, contents(Path(folder, "undisturbed"))
        while True:
            output = Path(folder, f"killed-{number}")
            process = start(arguments, output)
            if len(killed) < arguments.kills:
                moment = moments.uniform(0, whole)
                try:
                    process.wait(moment)
                except subprocess.TimeoutExpired:
                    process.send_signal(signal.SIGKILL)
                    process.wait()
                    killed.append(round(moment, 2))
                    continue
            if process.wait() or contents(output) != wanted:
                differing.append(str(output))
            number += 1
            if len(killed) >= arguments.kills:
                break
    result = {"seconds_undisturbed": round(whole, 1), "killed_at_seconds": killed, "completed": number}
    print(json.dumps(result | {"differing": differing}))
    return 1 if differing else 0


if __name__ == "__main__":
    sys.exit(main())
