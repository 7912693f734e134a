"""Fixtures of the whole suite: a tiny corpus, a tiny run through the real command line, a process with 8 devices."""

import fcntl
import json
import os
import pathlib
import subprocess
import sys
import tempfile
from collections.abc import Callable

# Before jax is imported, here and in every process that tests start: the CPU, and one compilation per program.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", tempfile.mkdtemp(prefix="pretrain-tests-"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")

import gin
import jax
import pytest
from tiny import FAST_TO_COMPILE, ROOT, TINY_GIN, write_corpus

from pretrain.main import main

# Tests look at numbers, not at speed: XLA compiles this process's programs in a seventh of the time. Processes started
# by tests run as a user's would.
jax.config.update("jax_disable_most_optimizations", True)
with pytest.MonkeyPatch.context() as only_here:
    only_here.setenv("XLA_FLAGS", f"{os.environ.get('XLA_FLAGS', '')} {FAST_TO_COMPILE}".strip())
    jax.devices()  # reads the flags

# `make test-parity` (needs torch); `make test-tpu-plan` (needs libtpu); `make faults` (takes long)
collect_ignore = ["parity", "extras", "tpu_plan", "faults"]  # make targets of their own


def once(tmp_path_factory, name: str, make: Callable[[pathlib.Path], None]) -> pathlib.Path:
    """A folder that `make` fills once in a test run, in whichever of its processes asks first."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / f"once-{name}"
    folder.mkdir(exist_ok=True)
    with open(folder / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "made").exists():
            make(folder)
            (folder / "made").touch()
    return folder


@pytest.fixture(scope="module", autouse=True)
def nothing_stays():
    """What the commands of one file bind would hold in every file that follows, and its programs would fill memory."""
    yield
    gin.clear_config()
    jax.clear_caches()


@pytest.fixture(scope="session")
def tiny_corpus(tmp_path_factory) -> pathlib.Path:
    """A JSONL file of short documents."""
    return once(tmp_path_factory, "corpus", lambda folder: write_corpus(folder / "corpus.jsonl")) / "corpus.jsonl"


@pytest.fixture(scope="session")
def tiny_cache(tmp_path_factory, tiny_corpus) -> pathlib.Path:
    """A workdir in which `curate` and `cache` are finished and nothing is trained; copy it, don't change it."""

    def make(folder: pathlib.Path) -> None:
        flags = [f"--gin_file={TINY_GIN}", f"--workdir={folder / 'run'}", "--workers=1"]
        assert main(["curate", *flags, f"--input={tiny_corpus}"]) == 0
        assert main(["cache", *flags, f"--gin.INPUT='{tiny_corpus}'"]) == 0

    return once(tmp_path_factory, "cached", make) / "run"


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory, tiny_corpus) -> pathlib.Path:
    """A finished `pretrain run`: 40 steps, checkpoints at 20 and 40, evaluated, sampled, reported; don't change it."""

    def make(folder: pathlib.Path) -> None:
        flags = [f"--gin_file={TINY_GIN}", f"--workdir={folder / 'run'}", "--workers=1", f"--input={tiny_corpus}"]
        assert main(["run", *flags]) == 0

    return once(tmp_path_factory, "finished", make) / "run"


class EightDevices(dict):
    """What `eight_devices.py` reports from a process with 8 forced host devices; a part is made when asked for."""

    def __init__(self, tmp_path_factory):
        super().__init__()
        self._tmp_path_factory = tmp_path_factory

    def __missing__(self, part: str) -> dict:
        paths = os.pathsep.join(map(str, (ROOT, ROOT / "tests" / "objectives")))
        flags = f"--xla_force_host_platform_device_count=8 {FAST_TO_COMPILE}"
        environment = {**os.environ, "XLA_FLAGS": flags, "PYTHONPATH": paths, "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
        script = pathlib.Path(__file__).with_name("eight_devices.py")

        def make(folder: pathlib.Path) -> None:
            command = [sys.executable, script, part, folder]
            done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment, timeout=900)
            assert done.returncode == 0, done.stderr[-4000:]
            (folder / "found.json").write_text(done.stdout.splitlines()[-1])

        folder = once(self._tmp_path_factory, f"eight-{part}", make)
        self[part] = json.loads((folder / "found.json").read_text())
        return self[part]


@pytest.fixture(scope="session")
def eight_devices(tmp_path_factory) -> EightDevices:
    """Reports by part: `eight_devices["objectives"]`."""
    return EightDevices(tmp_path_factory)
