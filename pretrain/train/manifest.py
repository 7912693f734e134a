"""The manifest of a checkpoint: its step, the host's own state, and size and checksum of every file; written last.

A folder without a manifest is a save that was not finished. A folder that differs from its manifest in any way (a byte,
a file too many or too few, a link, another owner, another step's name) is damaged and is never loaded. The checksum is
XXH3 of 128 bits: 15 GB/s on one core, where SHA-256 takes ten times as long and CRC-32 is easily met by chance in a
large store. It shows damage; it does not show who wrote the files.

    {"format": 1, "step": 40, "holds": "state", "position": {...}, "metrics": {"loss": 2.5},
     "files": {"state/_METADATA": [3062, "9c0b..."], ...}, "digest": "5f1e..."}
"""

import concurrent.futures
import dataclasses
import json
import os
import stat
from typing import Any

import fsspec
import xxhash

from pretrain.core.storage import Path, is_remote, write_text

MANIFEST = "manifest.json"
STATE = "state"  # the folder of the arrays in a checkpoint's folder
MARKS = ("pinned.json", "set_aside.json")  # files that may join a checkpoint later
FORMAT = 1
_BLOCK = 4 << 20
_FIELDS = {"format": int, "step": int, "holds": str, "position": dict, "metrics": dict, "files": dict, "digest": str}


class Damaged(Exception):
    """A checkpoint is not what its manifest says; the message says in which way."""


class Unfinished(Damaged):
    """A checkpoint has no manifest: its save did not come to an end."""


@dataclasses.dataclass(frozen=True)
class Manifest:
    """What a checkpoint is.

    Attributes:
        step: steps done.
        position: JSON object of the host's own state: where the data stands, and whatever else must survive.
        metrics: of that step, for choosing the best.
        files: name in the checkpoint's folder -> (bytes, XXH3-128 in hex).
        holds: "state", everything a run needs to go on, or "params", for evaluation and generation only.
    """

    step: int
    position: dict[str, Any]
    metrics: dict[str, float]
    files: dict[str, tuple[int, str]]
    holds: str = "state"

    @property
    def bytes(self) -> int:
        """Size of all files."""
        return sum(size for size, _ in self.files.values())

    def to_json(self) -> str:
        """The text of `manifest.json`."""
        value = {"format": FORMAT, **dataclasses.asdict(self)}
        return json.dumps({**value, "digest": _digest(value)}, indent=1, sort_keys=True) + "\n"

    @classmethod
    def from_json(cls, text: str) -> "Manifest":
        """The manifest that `to_json` wrote.

        Raises:
            Damaged: it is not such a text, or one that was changed.
        """
        try:
            value = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise Damaged(f"{MANIFEST} is not JSON") from error
        if not isinstance(value, dict) or value.keys() != _FIELDS.keys():
            raise Damaged(f"{MANIFEST} does not have the fields of a manifest")
        for name, kind in _FIELDS.items():
            if not isinstance(value[name], kind):
                raise Damaged(f"{MANIFEST}: {name} is not of type {kind.__name__}")
        if value.pop("digest") != _digest(value):
            raise Damaged(f"{MANIFEST} was changed after it was written")
        if value.pop("format") != FORMAT:
            raise Damaged(f"{MANIFEST} is of a format that this version does not read")
        files = {name: _entry(name, entry) for name, entry in value.pop("files").items()}
        return cls(files=files, **value)


def seal(
    folder: Path, step: int, position: dict[str, Any], metrics: dict[str, float], holds: str = "state"
) -> Manifest:
    """Writes the manifest of a checkpoint whose files are all there; from then on it is complete."""
    manifest = Manifest(step, position, metrics, _checksums(folder, _listing(folder)), holds)
    write_text(folder / MANIFEST, manifest.to_json())
    return manifest


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a checkpoint, without a look at the files.

    Raises:
        Unfinished: there is none.
        Damaged: it was changed, or the folder has the name of another step.
    """
    try:
        text = (folder / MANIFEST).read_text()
    except FileNotFoundError as error:
        raise Unfinished(f"no {MANIFEST}: its save was not finished") from error
    except (OSError, ValueError) as error:
        raise Damaged(f"{MANIFEST} cannot be read: {error}") from error
    manifest = Manifest.from_json(text)
    if folder.name != str(manifest.step):
        raise Damaged(f"the folder is named {folder.name} and holds step {manifest.step}")
    return manifest


def verify(folder: Path) -> Manifest:
    """Reads every file of a checkpoint and compares it with the manifest.

    Raises:
        Unfinished, Damaged: as the message says.
    """
    manifest = read_manifest(folder)
    try:
        found = _listing(folder)
        for name in sorted(manifest.files.keys() | found.keys()):
            if name not in found:
                raise Damaged(f"{name} is missing")
            if name not in manifest.files:
                raise Damaged(f"{name} is not in the manifest")
            if found[name] != manifest.files[name][0]:
                raise Damaged(f"{name} has {found[name]:,} bytes instead of {manifest.files[name][0]:,}")
        checksums = _checksums(folder, found)
    except OSError as error:
        raise Damaged(f"a file cannot be read: {error}") from error
    for name, entry in manifest.files.items():
        if checksums[name] != entry:
            raise Damaged(f"the bytes of {name} have changed")
    return manifest


def _digest(value: dict[str, Any]) -> str:
    return xxhash.xxh3_128_hexdigest(json.dumps(value, sort_keys=True).encode())


def _entry(name: str, entry: Any) -> tuple[int, str]:
    if not isinstance(entry, list) or [type(part) for part in entry] != [int, str]:
        raise Damaged(f"{MANIFEST}: the entry of {name} is not a size and a checksum")
    return entry[0], entry[1]


def _listing(folder: Path) -> dict[str, int]:
    """Sizes of a checkpoint's files by name; what is neither a file nor a folder, or another user's, is damage."""
    if is_remote(folder):
        filesystem, root = fsspec.url_to_fs(os.fspath(folder))
        found = filesystem.find(root, detail=True)
        sizes = {os.path.relpath(name, root): entry["size"] for name, entry in found.items()}
    else:
        sizes = dict(_local_files(os.fspath(folder)))
    return {name: size for name, size in sizes.items() if name != MANIFEST and name not in MARKS}


def _local_files(root: str):
    if not stat.S_ISDIR(os.lstat(root).st_mode):
        raise Damaged("it is a link, not a folder")
    owner = os.lstat(root).st_uid
    for parent, folders, files in os.walk(root):
        for name in (*folders, *files):
            path = os.path.join(parent, name)
            about, shown = os.lstat(path), os.path.relpath(path, root)
            if not stat.S_ISREG(about.st_mode) and not stat.S_ISDIR(about.st_mode):
                raise Damaged(f"{shown} is not a plain file")
            if about.st_uid != owner:
                raise Damaged(f"{shown} belongs to another user (uid {about.st_uid}, not {owner})")
            if stat.S_ISREG(about.st_mode):
                yield shown, about.st_size


def _checksums(folder: Path, names: dict[str, int]) -> dict[str, tuple[int, str]]:
    """(bytes, XXH3-128) of each file, the largest first, on all cores; xxhash and reading let other threads run."""
    ordered = sorted(names, key=names.get, reverse=True)
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        return dict(zip(ordered, pool.map(lambda name: _checksum(folder / name), ordered), strict=True))


def _checksum(path: Path) -> tuple[int, str]:
    digest, size, block = xxhash.xxh3_128(), 0, bytearray(_BLOCK)
    view = memoryview(block)
    with path.open("rb") if is_remote(path) else open(os.fspath(path), "rb", buffering=0) as file:
        while read := file.readinto(block):
            digest.update(view[:read])
            size += read
    return size, digest.hexdigest()
