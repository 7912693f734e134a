"""10,000 mutated gin files, manifests, descriptions, metrics files and command lines, seeded, in ten parts."""

import os

import pytest
from fuzzing import fuzz

PARTS, CASES, SEED = 10, 1_000, int(os.environ.get("FAULT_SEED", "0"))


@pytest.mark.parametrize("part", range(PARTS))
def test_no_traceback_no_hang_no_write_outside_of_the_workdir(tiny_run, tmp_path, part):
    first = (SEED * PARTS + part) * CASES
    print(f"{CASES} cases from {first} on: {fuzz(tmp_path, tiny_run, CASES, first)}")
