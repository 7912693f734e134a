"""Fixtures of the whole suite: a tiny corpus, a tiny run through the real command line, a process with 8 devices."""

import json
import os
import pathlib
import subprocess
import sys
import tempfile

# Before jax is imported, here and in every process that tests start: the CPU, and one compilation per program.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", tempfile.mkdtemp(prefix="pretrain-tests-"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")

import jax
import pytest
from tiny import ROOT, TINY_GIN, write_corpus

from pretrain.main import main

# Tests look at numbers, not at speed: XLA compiles this process's programs in half the time. Processes started by tests
# run as a user's would.
jax.config.update("jax_disable_most_optimizations", True)

collect_ignore = ["parity", "faults"]  # `make test-parity` (needs torch); `make faults` (takes long)


@pytest.fixture(scope="session")
def tiny_corpus(tmp_path_factory) -> pathlib.Path:
    """A JSONL file of short documents."""
    return write_corpus(tmp_path_factory.mktemp("corpus") / "corpus.jsonl")


@pytest.fixture(scope="session")
def tiny_cache(tmp_path_factory, tiny_corpus) -> pathlib.Path:
    """A workdir in which `curate` and `cache` are finished and nothing is trained; copy it, don't change it."""
    workdir = tmp_path_factory.mktemp("cached") / "run"
    flags = [f"--gin_file={TINY_GIN}", f"--workdir={workdir}", "--workers=1"]
    assert main(["curate", *flags, f"--input={tiny_corpus}"]) == 0
    assert main(["cache", *flags, f"--gin.INPUT='{tiny_corpus}'"]) == 0
    return workdir


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory, tiny_corpus) -> pathlib.Path:
    """A finished `pretrain run`: 40 steps, checkpoints at 20 and 40, evaluated, sampled, reported; don't change it."""
    workdir = tmp_path_factory.mktemp("finished") / "run"
    flags = [f"--gin_file={TINY_GIN}", f"--workdir={workdir}", "--workers=1", f"--input={tiny_corpus}"]
    assert main(["run", *flags]) == 0
    return workdir


@pytest.fixture(scope="session")
def eight_devices(tmp_path_factory) -> dict:
    """What `eight_devices.py` reports from a process with 8 forced host devices, case by case."""
    paths = os.pathsep.join(map(str, (ROOT, ROOT / "tests" / "objectives")))
    devices = "--xla_force_host_platform_device_count=8"
    environment = {**os.environ, "XLA_FLAGS": devices, "PYTHONPATH": paths, "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
    script = pathlib.Path(__file__).with_name("eight_devices.py")
    folder = tmp_path_factory.mktemp("eight")
    done = subprocess.run(
        [sys.executable, script, folder], capture_output=True, text=True, cwd=ROOT, env=environment, timeout=900
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout.splitlines()[-1])
