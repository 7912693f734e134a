"""Where a run works, and what makes it the same run: fingerprints, a lock, spills, what earlier runs left behind.

A finished corpus is found again by its fingerprint: recipe, file names, sizes and samples of their content. An
interrupted run goes on only if no input file was written to in between: their times are part of the work folder's name.
"""

import fcntl
import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Mapping
from typing import Any

import xxhash

from pretrain.core import storage
from pretrain.core.errors import UserError
from pretrain.curate.formats import find_inputs
from pretrain.curate.inputs import InputFile
from pretrain.curate.shards import FOLDERS, shard_name
from pretrain.curate.stages import FittedStage, Stage

FORMAT_VERSION = 2  # raise it when the same recipe gives another output
COMPLETE = "complete.json"
LOCK = ".lock"
SAMPLES, SAMPLE_BYTES = 16, 4096  # of each local file


def fingerprint(settings: dict[str, Any], files: list[InputFile], stages: Iterable[Stage]) -> str:
    """Of everything that decides what comes out."""
    referred = [file for stage in stages for file in reference_files(stage)]
    return storage.fingerprint(
        [FORMAT_VERSION, settings, [[*file[:4], content_sample(file.path, file.size)] for file in [*files, *referred]]]
    )


def reference_files(stage: Stage) -> list[InputFile]:
    """The files that a fitted stage learns from."""
    if not isinstance(stage, FittedStage):
        return []
    patterns = stage.reference.values() if isinstance(stage.reference, Mapping) else [stage.reference]
    return [file for pattern in patterns for file in find_inputs(pattern, "reference")[0]]


def content_sample(path: str, size: int) -> str:
    """A hash of blocks all over a local file, of all of it if it is small; "" for what is no local file."""
    if storage.is_remote(path) or not os.path.isfile(path):
        return ""
    digest = xxhash.xxh3_64()
    with open(path, "rb") as file:
        for sample in range(SAMPLES):
            start = max(0, size - SAMPLE_BYTES) * sample // (SAMPLES - 1)
            file.seek(start)
            digest.update(file.read(SAMPLE_BYTES))
            if size <= SAMPLE_BYTES:
                break
    return digest.hexdigest()


class Workspace:
    """The right to write into `output`, and a folder to work in; a context manager.

    The lock keeps out processes of this machine that see the same output folder, or write to the same remote one.

    Args:
        output: the corpus to be, local or remote.
        fingerprint: of the run.
        files: what it reads.
        is_shared: whether other machines must see the folder, so that for a remote output it has to be remote too.

    Raises:
        UserError: on entering: another process is writing there.
    """

    def __init__(self, output: storage.Path, fingerprint: str, files: list[InputFile], is_shared: bool = False):
        times = [os.stat(file.path).st_mtime_ns if os.path.isfile(file.path) else 0 for file in files]
        name = storage.fingerprint([fingerprint, times])
        self._output = output
        if storage.is_remote(output):
            place = f"curate-{storage.fingerprint(os.fspath(output))}"
            self._root = os.path.join(tempfile.gettempdir(), f"pretrain-{os.getuid()}", place)
        else:
            self._root = os.fspath(output)
        self.folder = os.path.join(os.fspath(output) if is_shared else self._root, f".work-{name}")

    def __enter__(self) -> "Workspace":
        os.makedirs(self._root, exist_ok=True)
        self._lock = _acquire(os.path.join(self._root, LOCK), self._output)
        for name in os.listdir(self._root):
            if name.startswith(".work-") and name != os.path.basename(self.folder):
                shutil.rmtree(os.path.join(self._root, name))
        return self

    def __exit__(self, *exception) -> None:
        os.unlink(os.path.join(self._root, LOCK))
        os.close(self._lock)

    def remove(self) -> None:
        """Deletes all spills; restarting begins anew."""
        storage.Path(self.folder).rmtree(missing_ok=True)

    def clean_output(self, shards: int) -> None:
        """Removes what interrupted runs left in the output: half-written files, shards of another number of them."""
        names = {shard_name(shard, shards) for shard in range(shards)}
        for folder in FOLDERS:
            for path in (self._output / folder).iterdir():
                if path.name not in names and re.match(r"\.?\d{5}-of-\d{5}\.parquet", path.name):
                    path.unlink()
        for path in self._output.glob(".*"):
            if re.fullmatch(r"\.\w+\.(json|md|html|txt|jsonl)\.\w+", path.name):
                path.unlink()


def _acquire(path: str, output: storage.Path) -> int:
    """An open descriptor that holds the lock; the system gives it up when this process ends, however it ends."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = os.read(descriptor, 20).decode(errors="replace").strip() or "unknown"
            os.close(descriptor)
            raise UserError(
                f"another run (process {holder}) is writing into {output}; wait for it or name another --output"
            ) from error
        if os.path.exists(path) and os.path.samestat(os.fstat(descriptor), os.stat(path)):
            os.truncate(descriptor, 0)
            os.write(descriptor, f"{os.getpid()}\n".encode())
            return descriptor
        os.close(descriptor)  # its holder removed it on leaving: there is a new one
