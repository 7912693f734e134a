"""10,000 mutated gin files, manifests, descriptions, metrics files and command lines, seeded."""

import os

from fuzzing import fuzz

CASES, SEED = 10_000, int(os.environ.get("FAULT_SEED", "0"))


def test_no_traceback_no_hang_no_write_outside_of_the_workdir(tiny_run, tmp_path):
    print(f"{CASES} cases: {fuzz(tmp_path, tiny_run, CASES, SEED * CASES)}")
